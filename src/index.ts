/** Holdfast's library: `import { connect } from 'holdfast'`. */

export {
  type ConnectOptions,
  connect,
  type NodeOptions,
  type ProxyOptions,
} from './client/connect.js';
export { connectSocket } from './client/connect-socket.js';
export { Dir, Dirent } from './client/dirent.js';
export { FileHandle } from './client/file-handle.js';
export { FileSystemClient } from './client/file-system-client.js';
export type { HintKind } from './client/ops.js';
export { BigIntStats, type StatFs, Stats } from './client/stats.js';
export { ReadStream, WriteStream } from './client/streams.js';
export { FsError, type Reason } from './common/errors.js';
