import { type ConnectOptions, connectThrough } from '../connect.js';
import type { FileSystemClient } from '../file-system-client.js';
import type { Rig } from './harness.js';

/** The library's worker, run from the sources, with an engine that is a module of the tests. */
const ENTRY = new URL('../worker.ts', import.meta.url);
const LOADER = new URL('./ts-loader.mjs', import.meta.url);
const FAKE_ENGINE = new URL('./fake-engine.ts', import.meta.url);

export const fakeCluster = { etcd: ['http://127.0.0.1:1'], name: 'test', keyFile: '/none' };

export function connectFake(
  options: Partial<ConnectOptions> & { fileSystem?: string } = {},
): Promise<FileSystemClient> {
  const all = { cluster: fakeCluster, fileSystem: 'memory', ...options } as ConnectOptions;
  return connectThrough(all, { entry: ENTRY, execArgv: ['--import', LOADER.href] }, FAKE_ENGINE);
}

export async function workerRig(): Promise<Rig> {
  const client = await connectFake();
  return { client, close: () => client.close() };
}
