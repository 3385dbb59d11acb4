import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { startPrivateEtcd } from '../../cluster/private-etcd.js';
import { eventually } from './counting.js';
import { type DaemonProcess, type DaemonProcessOptions, launchDaemon, startDaemon } from './daemon-process.js';

/** etcd, and daemons as processes, in a directory of their own. */
export interface DaemonCluster {
  readonly directory: string;
  /** Starts one; it is a member when this resolves. */
  start(nodeId: number): Promise<DaemonProcess>;
  /** Starts one, and doesn't wait. */
  launch(nodeId: number): DaemonProcess;
  /** Node 1 sees all NSDs, and makes a file system of them. */
  createFileSystem(metadataCopies?: 1 | 2): Promise<void>;
  /** Kills what still runs, and removes everything. */
  close(): Promise<void>;
}

export interface DaemonClusterOptions {
  /** Nodes 1 to `nsds` have one each. */
  readonly nsds: number;
  readonly leaseTtl: string;
  readonly fault?: (nodeId: number) => DaemonProcessOptions['fault'];
}

export async function startDaemonCluster({ nsds, leaseTtl, fault }: DaemonClusterOptions): Promise<DaemonCluster> {
  const cleanups: (() => Promise<unknown>)[] = [];
  const close = async (): Promise<void> => {
    for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
  };
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-daemons-'));
  cleanups.push(() => rm(directory, { recursive: true, force: true }));
  await mkdir(path.join(directory, 'etcd'));
  const etcd = await startPrivateEtcd({ dataDir: path.join(directory, 'etcd'), logFile: path.join(directory, 'log') });
  cleanups.push(async () => {
    const gone = new Promise((resolve) => etcd.process.once('exit', resolve));
    etcd.process.kill('SIGKILL');
    await gone;
  });
  const keyFile = path.join(directory, 'key');
  await writeFile(keyFile, randomBytes(32), { mode: 0o600 });
  const options = (nodeId: number): DaemonProcessOptions => {
    const faults = fault?.(nodeId);
    const common = { directory, etcd: etcd.endpoint, keyFile, leaseTtl, nodeId, nsd: nodeId <= nsds };
    return faults === undefined ? common : { ...common, fault: faults };
  };
  const launch = (nodeId: number): DaemonProcess => {
    const daemon = launchDaemon(options(nodeId));
    cleanups.push(() => daemon.kill());
    return daemon;
  };
  let first: DaemonProcess | null = null;
  const start = async (nodeId: number): Promise<DaemonProcess> => {
    const daemon = await startDaemon(options(nodeId));
    cleanups.push(() => daemon.kill());
    first ??= daemon;
    return daemon;
  };
  const createFileSystem = async (metadataCopies?: 1 | 2): Promise<void> => {
    const admin = await first!.admin();
    await eventually('node 1 sees every NSD', async () => (await admin.call('nsds', {})).length === nsds);
    await admin.call('createFileSystem', { name: 'test', ...(metadataCopies === undefined ? {} : { metadataCopies }) });
    admin.close();
  };
  return { directory, start, launch, createFileSystem, close };
}
