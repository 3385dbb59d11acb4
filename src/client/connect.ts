import type { EngineConfig } from './engine-contract.js';
import { FileSystemClient } from './file-system-client.js';
import { invalidArgType } from './node-errors.js';
import type { Host } from './worker-protocol.js';
import { WorkerSession, type WorkerSessionOptions } from './worker-session.js';

/** `connect` of the library: joins the cluster as a node of this process, or becomes a proxied client of a local daemon. */
interface CommonOptions {
  /** The longest a synchronous operation waits for the engine, in ms. Default 60,000. */
  readonly syncDeadlineMs?: number | undefined;
  /** The longest close() waits for the engine to flush and leave the cluster, in ms. Default 30,000. */
  readonly closeDeadlineMs?: number | undefined;
}
export type NodeOptions = EngineConfig & CommonOptions;
export interface ProxyOptions extends CommonOptions {
  /** The daemon's client socket. */
  readonly socket: string;
  /** How long to look for a daemon that went away before everything fails, in ms. Default 30,000. */
  readonly reconnectForMs?: number | undefined;
}
export type ConnectOptions = NodeOptions | ProxyOptions;

/** Where the engine is, from here: resolved at run time, so that the client does not depend on what stands above it. */
const ENGINE = new URL('../daemon/engine.js', import.meta.url);

export async function connect(options: ConnectOptions): Promise<FileSystemClient> {
  return connectThrough(options, {}, ENGINE);
}

/** `connect` with another worker program or another engine: for tests. */
export async function connectThrough(
  options: ConnectOptions,
  worker: Pick<WorkerSessionOptions, 'entry' | 'execArgv' | 'credentials'>,
  engine: URL,
): Promise<FileSystemClient> {
  if (typeof options !== 'object' || options === null) throw invalidArgType('options', 'of type object', options);
  const { syncDeadlineMs, closeDeadlineMs } = options;
  return new FileSystemClient(
    await WorkerSession.start(toHost(options, engine), { ...worker, syncDeadlineMs, closeDeadlineMs }),
  );
}

function toHost(options: ConnectOptions, engine: URL): Host {
  if ('socket' in options) {
    if (typeof options.socket !== 'string') throw invalidArgType('options.socket', 'of type string', options.socket);
    return { kind: 'socket', path: options.socket, reconnectForMs: options.reconnectForMs };
  }
  const { cluster, fileSystem, nodeName, pagePoolBytes } = options;
  if (typeof cluster !== 'object' || cluster === null)
    throw invalidArgType('options.cluster', 'of type object', cluster);
  if (!Array.isArray(cluster.etcd)) throw invalidArgType('options.cluster.etcd', 'an instance of Array', cluster.etcd);
  for (const [name, value] of [
    ['options.cluster.name', cluster.name],
    ['options.cluster.keyFile', cluster.keyFile],
    ['options.fileSystem', fileSystem],
  ] as const)
    if (typeof value !== 'string') throw invalidArgType(name, 'of type string', value);
  const config: EngineConfig = { cluster, fileSystem, nodeName, pagePoolBytes };
  return { kind: 'engine', modulePath: engine.href, config };
}
