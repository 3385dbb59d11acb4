import type { CacheMap } from '../cache/cache-map.js';
import { Counters } from '../common/counters.js';
import { type Credentials, type FileSystem, ROOT } from '../fs/file-system-api.js';
import { DEFAULT_LIMITS, Dispatcher } from './dispatcher.js';
import { FileSystemClient } from './file-system-client.js';
import { DirectSession } from './session.js';
import { SocketSession, type SocketSessionOptions } from './socket-session.js';

/** A proxied client of the daemon that listens on `path`. @throws {FsError} unreachable when none does. */
export async function connectSocket(path: string, options?: SocketSessionOptions): Promise<FileSystemClient> {
  return new FileSystemClient(await SocketSession.open(path, options));
}

/** The API over a file system on this thread. */
export function directClient(
  fileSystem: FileSystem,
  options: { credentials?: Credentials; map?: CacheMap | null; counters?: Counters } = {},
): FileSystemClient {
  // A program may start as much at once as it likes; the memory is its own.
  const limits = { ...DEFAULT_LIMITS, inFlightMax: Number.POSITIVE_INFINITY };
  const dispatcher = new Dispatcher(fileSystem, options.counters ?? new Counters(), limits);
  return new FileSystemClient(
    new DirectSession(dispatcher.openSession(options.credentials ?? ROOT), options.map ?? null),
  );
}
