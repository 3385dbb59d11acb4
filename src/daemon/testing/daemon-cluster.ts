import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { EtcdStore } from '../../cluster/etcd-store.js';
import { startPrivateEtcd } from '../../cluster/private-etcd.js';
import { StoreKey } from '../../cluster/records.js';
import { nodeId as nodeIdOf } from '../../common/ids.js';
import { eventually } from './counting.js';
import {
  CLUSTER_NAME,
  type DaemonProcess,
  type DaemonProcessOptions,
  launchDaemon,
  untilMember,
} from './daemon-process.js';

/** etcd, and daemons as processes, in a directory of their own. */
export interface DaemonCluster {
  readonly directory: string;
  /** Starts one; it is a member when this resolves. */
  start(nodeId: number): Promise<DaemonProcess>;
  /** Starts one, and doesn't wait. */
  launch(nodeId: number): DaemonProcess;
  /** Node 1 sees all NSDs, and makes a file system of them. */
  createFileSystem(metadataCopies?: 1 | 2): Promise<void>;
  /**
   * Of these daemons (of all), at once, for longer than their leases are: what their NSDs held back is lost, and whoever starts again doesn't wait for a lease
   * of its own. The cluster store keeps running.
   */
  powerCut(nodeIds?: readonly number[]): Promise<void>;
  /** The end of what each daemon has said, its earlier lives too. */
  logs(charsMax: number): string;
  /** Kills what still runs, and removes everything. */
  close(): Promise<void>;
}

export interface DaemonClusterOptions {
  /** Nodes 1 to `nsds` have one each. */
  readonly nsds: number;
  readonly leaseTtl: string;
  /** Of what a kill leaves of what was not flushed, together with the node and how often that was started. */
  readonly seed?: number;
}

/** How likely an operation of a device sends something out early, whole or torn: so a kill finds some of what was not flushed there, some not. */
const EARLY = 0.2;

/** Every NSD holds back what is not flushed: a kill costs that, as a power cut would. */

export async function startDaemonCluster({ nsds, leaseTtl, seed = 0 }: DaemonClusterOptions): Promise<DaemonCluster> {
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
  /** As last started. */
  const daemons = new Map<number, DaemonProcess>();
  const all: DaemonProcess[] = [];
  cleanups.push(() => Promise.all(all.map((daemon) => daemon.kill())));
  const lives = new Map<number, number>();
  const options = (nodeId: number): DaemonProcessOptions => {
    const life = (lives.get(nodeId) ?? 0) + 1;
    lives.set(nodeId, life);
    // Not the same in every life.
    const fault = { seed: ((seed + nodeId) * 65_537 + life) >>> 0, early: EARLY };
    return { directory, etcd: etcd.endpoint, keyFile, leaseTtl, nodeId, nsd: nodeId <= nsds, fault };
  };
  const launch = (nodeId: number): DaemonProcess => {
    const daemon = launchDaemon(options(nodeId));
    daemons.set(nodeId, daemon);
    all.push(daemon);
    return daemon;
  };
  let first: DaemonProcess | null = null;
  const start = async (nodeId: number): Promise<DaemonProcess> => {
    const daemon = launch(nodeId);
    await untilMember(daemon);
    first ??= daemon;
    return daemon;
  };
  const store = new EtcdStore({ endpoints: [etcd.endpoint], clusterName: CLUSTER_NAME });
  cleanups.push(() => store.close());
  const powerCut = async (nodeIds: readonly number[] = [...daemons.keys()]): Promise<void> => {
    await Promise.all(nodeIds.map((nodeId) => daemons.get(nodeId)?.kill()));
    for (const nodeId of nodeIds) await store.delete(StoreKey.alive(nodeIdOf(nodeId)));
  };
  const logs = (charsMax: number): string =>
    [...daemons].map(([nodeId, daemon]) => `node ${nodeId} said: …${daemon.log().slice(-charsMax)}`).join('\n');
  const createFileSystem = async (metadataCopies?: 1 | 2): Promise<void> => {
    const admin = await first!.admin();
    await eventually('node 1 sees every NSD', async () => (await admin.call('nsds', {})).length === nsds);
    await admin.call('createFileSystem', { name: 'test', ...(metadataCopies === undefined ? {} : { metadataCopies }) });
    admin.close();
  };
  return { directory, start, launch, createFileSystem, powerCut, logs, close };
}
