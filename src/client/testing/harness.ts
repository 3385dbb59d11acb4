import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Counters } from '../../common/counters.js';
import { connectSocket, directClient } from '../connect-socket.js';
import type { FileSystemClient } from '../file-system-client.js';
import { type ServeOptions, type SocketServer, serveSocket } from '../socket-server.js';
import type { SocketSessionOptions } from '../socket-session.js';
import { MemoryFileSystem } from './memory-file-system.js';

/** A client over a file system in memory, on the transport a test wants, and how to take it down. */
export interface Rig {
  readonly client: FileSystemClient;
  close(): Promise<void>;
}

export interface DirectRig extends Rig {
  readonly fs: MemoryFileSystem;
}
export interface SocketRig extends Rig {
  readonly fs: MemoryFileSystem;
  readonly path: string;
  readonly server: SocketServer;
  readonly counters: Counters;
}

export function directRig(): DirectRig {
  const fs = new MemoryFileSystem();
  const client = directClient(fs);
  return { fs, client, close: () => client.close() };
}

export async function socketRig(
  serve: Omit<ServeOptions, 'counters'> = {},
  session: SocketSessionOptions = {},
): Promise<SocketRig> {
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-socket-'));
  const path = join(folder, 'client.sock');
  const fs = new MemoryFileSystem();
  const counters = new Counters();
  const server = await serveSocket(path, fs, { ...serve, counters });
  const client = await connectSocket(path, session);
  return {
    fs,
    path,
    server,
    counters,
    client,
    close: async () => {
      await client.close();
      await server.close();
      await rm(folder, { recursive: true });
    },
  };
}

export interface RestartableDaemon {
  readonly fs: MemoryFileSystem;
  readonly path: string;
  /** The life that is there at first; the test ends it. */
  readonly first: SocketServer;
  /** The next life, at the same path, over the same file system. */
  restart(): Promise<void>;
}

/** A daemon that ends and comes back; what is left of it is taken down by the closers, last first. */
export async function restartableDaemon(closers: (() => Promise<unknown>)[]): Promise<RestartableDaemon> {
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-socket-'));
  closers.push(() => rm(folder, { recursive: true }));
  const path = join(folder, 's');
  const fs = new MemoryFileSystem();
  const first = await serveSocket(path, fs);
  const restart = async (): Promise<void> => {
    const next = await serveSocket(path, fs);
    closers.push(() => next.close());
  };
  return { fs, path, first, restart };
}

/** What a test compares of an error: everything node:fs promises about one. */
export async function outcome<T>(work: () => Promise<T>): Promise<unknown> {
  try {
    return { value: await work() };
  } catch (error) {
    const e = error as NodeJS.ErrnoException & { dest?: string };
    return {
      name: e.name,
      code: e.code,
      syscall: e.syscall,
      path: e.path,
      dest: e.dest,
      errno: e.errno,
      message: e.message,
    };
  }
}
