import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { startPrivateEtcd } from '../../cluster/private-etcd.js';
import { nodeId } from '../../common/ids.js';
import type { Logger } from '../../common/logger.js';
import { type NodeConfig, type NodeEngine, startNode } from '../engine.js';

/** A cluster for tests: full nodes in this process, each with an NSD in a file, over real TCP and a private etcd. */
export interface LocalCluster {
  readonly directory: string;
  readonly etcd: string;
  readonly keyFile: string;
  readonly clusterName: string;
  readonly engines: NodeEngine[];
  /** Starts a node again, or another one; `index` from 0. */
  start(index: number, changes?: Partial<NodeConfig>): Promise<NodeEngine>;
  close(): Promise<void>;
}

export interface LocalClusterOptions {
  readonly nodes?: number;
  readonly nsdBytes?: number;
  readonly pagePoolBytes?: number;
  readonly fileSystem?: string | null;
  readonly settings?: NodeConfig['settings'];
  readonly logger?: Logger;
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
  const start = async (index: number, changes: Partial<NodeConfig> = {}): Promise<NodeEngine> => {
    const engine = await startNode({
      clusterName,
      etcd: [etcd.endpoint],
      keyFile,
      nodeId: nodeId(index + 1),
      name: `node${index + 1}`,
      listen: { host: '127.0.0.1', port: 0 },
      tokenServer: true,
      pagePoolBytes: options.pagePoolBytes ?? 64 << 20,
      leaseTtlMs: 5000,
      nsds: [
        {
          name: `nsd${index + 1}`,
          path: path.join(directory, `nsd${index + 1}`),
          sizeBytes: options.nsdBytes ?? 512 << 20,
          failureGroup: index + 1,
        },
      ],
      fileSystem: null,
      ...(options.logger === undefined ? {} : { logger: options.logger }),
      ...(options.settings === undefined ? {} : { settings: options.settings }),
      ...changes,
    });
    engines[index] = engine;
    return engine;
  };
  const close = async (): Promise<void> => {
    // Every NSD stays until everybody has written out.
    await Promise.allSettled(engines.map((engine) => engine.node.unmount()));
    await Promise.allSettled(engines.map((engine) => engine.close()));
    etcd.process.kill('SIGKILL');
    await new Promise((resolve) =>
      etcd.process.exitCode === null && etcd.process.signalCode === null
        ? etcd.process.once('exit', resolve)
        : resolve(undefined),
    );
    await rm(directory, { recursive: true, force: true });
  };
  try {
    for (let index = 0; index < (options.nodes ?? 3); index++) await start(index);
    if (options.fileSystem !== null) await engines[0]!.createFileSystem(options.fileSystem ?? 'test');
  } catch (error) {
    await close();
    throw error;
  }
  return { directory, etcd: etcd.endpoint, keyFile, clusterName, engines, start, close };
}
