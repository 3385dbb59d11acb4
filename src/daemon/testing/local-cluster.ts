import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { NativeCacheMap } from '../../cache/cache-map-native.js';
import { directClient } from '../../client/connect-socket.js';
import type { FileSystemClient } from '../../client/file-system-client.js';
import { startPrivateEtcd } from '../../cluster/private-etcd.js';
import { nodeId } from '../../common/ids.js';
import type { Logger } from '../../common/logger.js';
import { type NodeConfig, type NodeEngine, startNode } from '../engine.js';
import type { FormatOptions } from '../node.js';
import type { NsdFault } from '../open-stores.js';

/** A cluster for tests: full nodes in this process, each with an NSD in a file, over real TCP and a private etcd. */
export interface LocalCluster {
  readonly directory: string;
  readonly etcd: string;
  readonly keyFile: string;
  readonly clusterName: string;
  /** As last started; a hole where there never was one. */
  readonly engines: NodeEngine[];
  /** What `start` starts a node with. */
  config(index: number): NodeConfig;
  /** Starts a node again, or another one; `index` from 0. */
  start(index: number, changes?: Partial<NodeConfig>): Promise<NodeEngine>;
  /** The file where the NSD of a node is. */
  nsdPath(index: number): string;
  /** The library's API over a node's engine, hits included. */
  client(index: number): FileSystemClient;
  /** Everybody writes out while every NSD is there, then everybody leaves; etcd stays, `start` starts them again. */
  stopNodes(): Promise<void>;
  close(): Promise<void>;
}

export interface LocalClusterOptions {
  readonly nodes?: number;
  /** The first so many nodes have an NSD; all, if it isn't said. */
  readonly nsds?: number;
  readonly nsdBytes?: number;
  readonly pagePoolBytes?: number;
  readonly leaseTtlMs?: number;
  readonly format?: FormatOptions;
  readonly fileSystem?: string | null;
  readonly settings?: NodeConfig['settings'];
  readonly logger?: Logger;
  /** The NSD of a node holds back what is not flushed, so that killing its process loses or tears some of it. */
  readonly fault?: (index: number) => NsdFault;
  /** What is different on one node, whenever it is started. */
  readonly configure?: (index: number) => Partial<NodeConfig>;
}

export async function startLocalCluster(options: LocalClusterOptions = {}): Promise<LocalCluster> {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-cluster-'));
  await mkdir(path.join(directory, 'etcd'));
  const etcd = await startPrivateEtcd({
    dataDir: path.join(directory, 'etcd'),
    logFile: path.join(directory, 'etcd.log'),
  });
  const keyFile = path.join(directory, 'cluster.key');
  await writeFile(keyFile, randomBytes(32), { mode: 0o600 });
  const clusterName = 'test';
  const engines: NodeEngine[] = [];
  const maps: NativeCacheMap[] = [];
  const nodes = options.nodes ?? 3;
  const nsdPath = (index: number): string => path.join(directory, `nsd${index + 1}`);
  const config = (index: number): NodeConfig => ({
    clusterName,
    etcd: [etcd.endpoint],
    keyFile,
    nodeId: nodeId(index + 1),
    name: `node${index + 1}`,
    listen: { host: '127.0.0.1', port: 0 },
    tokenServer: true,
    pagePoolBytes: options.pagePoolBytes ?? 64 << 20,
    leaseTtlMs: options.leaseTtlMs ?? 5000,
    nsds:
      index < (options.nsds ?? nodes)
        ? [
            {
              name: `nsd${index + 1}`,
              path: nsdPath(index),
              sizeBytes: options.nsdBytes ?? 512 << 20,
              failureGroup: index + 1,
              ...(options.fault === undefined ? {} : { fault: options.fault(index) }),
            },
          ]
        : [],
    fileSystem: null,
    ...(options.logger === undefined ? {} : { logger: options.logger }),
    ...(options.settings === undefined ? {} : { settings: options.settings }),
    ...options.configure?.(index),
  });
  const start = async (index: number, changes: Partial<NodeConfig> = {}): Promise<NodeEngine> => {
    const engine = await startNode({ ...config(index), ...changes });
    engines[index] = engine;
    return engine;
  };
  const client = (index: number): FileSystemClient => {
    const engine = engines[index]!;
    const map = engine.mapIds === null ? null : NativeCacheMap.open(engine.mapIds.mapId);
    if (map !== null) maps.push(map);
    return directClient(engine.fileSystem, { map });
  };
  const stopNodes = async (): Promise<void> => {
    // Every NSD stays until everybody has written out.
    await Promise.allSettled(engines.map((engine) => engine.node.unmount()));
    await Promise.allSettled(engines.map((engine) => engine.close()));
    for (const map of maps.splice(0)) map.dispose();
  };
  const close = async (): Promise<void> => {
    await stopNodes();
    etcd.process.kill('SIGKILL');
    await new Promise((resolve) =>
      etcd.process.exitCode === null && etcd.process.signalCode === null
        ? etcd.process.once('exit', resolve)
        : resolve(undefined),
    );
    await rm(directory, { recursive: true, force: true });
  };
  try {
    for (let index = 0; index < nodes; index++) await start(index);
    if (options.fileSystem !== null)
      await engines[0]!.createFileSystem(options.fileSystem ?? 'test', undefined, options.format);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    directory,
    etcd: etcd.endpoint,
    keyFile,
    clusterName,
    engines,
    config,
    start,
    nsdPath,
    client,
    stopNodes,
    close,
  };
}
