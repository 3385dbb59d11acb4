/** Holdfast's library: `import { connect } from 'holdfast'`. */
export { FsError } from './common/errors.js';
export { connectSocket } from './client/connect-socket.js';
export type { FileHandle } from './client/file-handle.js';
export type { FileSystemClient } from './client/file-system-client.js';
