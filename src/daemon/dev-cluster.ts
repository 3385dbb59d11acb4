import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';
import { z } from 'zod';
import { startPrivateEtcd } from '../cluster/private-etcd.js';
import { FsError } from '../common/errors.js';
import { adminSocketPath } from './admin-api.js';
import { AdminClient } from './admin-client.js';
import type { DaemonConfigInput } from './config-schema.js';
import { isRunning, type ProcessRecord, processRecord, stopProcess } from './dev-cluster-process.js';

/**
 * A cluster on one machine for development: a private etcd and a few daemons, each with an NSD in a file, all on loopback
 * with their state in one directory.
 *
 * Invariants: whatever is running is written down (pid and start time) before anything else happens to it; only such
 * processes are ever signalled; `up` leaves what runs alone and starts what doesn't; what one `up` started and could
 * not finish it stops again. Fault model: any process may have died; the directory may be of an interrupted run.
 */
const STATE_FILE = 'dev.json';
const LOCK_FILE = 'dev.lock';
const READY_TIMEOUT_MS = 90_000;
const NODE_GRACE_MS = 40_000;
const UNMOUNT_GRACE_MS = 30_000;
const ETCD_GRACE_MS = 10_000;
/** sun_path, less the terminating NUL. */
const SOCKET_PATH_BYTES_MAX = 107;

const processSchema = z.object({ pid: z.int().min(2), startTicks: z.string() });
const nodeSchema = z.object({
  nodeId: z.int().min(1),
  process: processSchema.nullable(),
  socket: z.string(),
  config: z.string(),
  log: z.string(),
});
const stateSchema = z.object({
  clusterName: z.string(),
  etcd: z.object({ process: processSchema.nullable(), endpoint: z.string(), log: z.string() }).nullable(),
  nodes: z.array(nodeSchema),
});
export type DevNode = z.output<typeof nodeSchema>;
export type DevState = z.output<typeof stateSchema>;

export interface DevUpOptions {
  readonly dir: string;
  readonly nodes: number;
  /** Of each new NSD; sizes and memory as a configuration writes them. */
  readonly nsdSize: string;
  readonly pagePool: string;
  /** What is happening, for people. */
  readonly onProgress?: (text: string) => void;
}

export interface DevUpResult {
  readonly state: DevState;
  /** Node ids that this call started. */
  readonly started: readonly number[];
}

export async function devUp(options: DevUpOptions): Promise<DevUpResult> {
  const dir = path.resolve(options.dir);
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  checkSocketPath(path.join(dir, `node-${options.nodes}.sock`));
  return withLock(dir, () => bringUp(dir, options));
}

async function bringUp(dir: string, options: DevUpOptions): Promise<DevUpResult> {
  const progress = options.onProgress ?? (() => undefined);
  let state: DevState = readState(dir) ?? { clusterName: 'dev', etcd: null, nodes: [] };
  const save = (next: DevState): void => {
    state = next;
    writeState(dir, state);
  };
  const startedNow: ProcessRecord[] = [];
  try {
    if (!isRunning(state.etcd?.process ?? null)) {
      progress('starting etcd');
      await startEtcd(dir, state, save, startedNow);
    }
    const keyFile = path.join(dir, 'cluster.key');
    if (!existsSync(keyFile)) writeFileSync(keyFile, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 });

    const count = Math.max(options.nodes, state.nodes.length);
    const started: number[] = [];
    for (let nodeId = 1; nodeId <= count; nodeId++) {
      const known = state.nodes.find((node) => node.nodeId === nodeId);
      if (known !== undefined && isRunning(known.process)) continue;
      const node = startNode(dir, nodeId, state.etcd!.endpoint, options);
      save({ ...state, nodes: [...state.nodes.filter((other) => other.nodeId !== nodeId), node].sort(byId) });
      if (node.process !== null) startedNow.push(node.process);
      started.push(nodeId);
    }
    progress(started.length === 0 ? 'everything is running' : `starting node ${started.join(', ')}`);
    await Promise.all(state.nodes.map((node) => waitReady(node)));
    return { state, started };
  } catch (error) {
    for (const record of startedNow.reverse()) await stopProcess(record, 5000);
    throw error;
  }
}

const byId = (a: DevNode, b: DevNode): number => a.nodeId - b.nodeId;

async function startEtcd(
  dir: string,
  state: DevState,
  save: (state: DevState) => void,
  startedNow: ProcessRecord[],
): Promise<void> {
  const dataDir = path.join(dir, 'etcd');
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const logFile = path.join(dir, 'etcd.log');
  // Daemons that still run know etcd by its old address.
  const keepPort = state.nodes.some((node) => isRunning(node.process))
    ? Number(new URL(state.etcd!.endpoint).port)
    : null;
  const etcd = await startPrivateEtcd({
    dataDir,
    logFile,
    detached: true,
    ...(keepPort === null ? {} : { clientPort: keepPort }),
    onSpawn: (child, endpoint) => {
      const record = processRecord(child.pid!);
      if (record !== null) startedNow.push(record);
      save({ ...state, etcd: { process: record, endpoint, log: logFile } });
    },
  });
  etcd.process.unref();
}

function startNode(dir: string, nodeId: number, endpoint: string, options: DevUpOptions): DevNode {
  const file = (suffix: string): string => path.join(dir, `node-${nodeId}.${suffix}`);
  const config: DaemonConfigInput = {
    clusterName: 'dev',
    nodeId,
    name: `node-${nodeId}`,
    listen: { host: '127.0.0.1', port: 0 },
    etcd: [endpoint],
    clusterKeyFile: 'cluster.key',
    socket: `node-${nodeId}.sock`,
    pagePool: options.pagePool,
    nsds: [{ name: `nsd-${nodeId}`, path: `node-${nodeId}.nsd`, size: options.nsdSize, failureGroup: nodeId }],
  };
  writeFileSync(file('yaml'), stringify(config), { mode: 0o600 });
  const log = openSync(file('log'), 'a', 0o600);
  const child = spawn(
    process.execPath,
    ['--enable-source-maps', '--max-semi-space-size=32', daemonMain(), '--config', file('yaml')],
    {
      cwd: dir,
      detached: true,
      stdio: ['ignore', log, log],
    },
  );
  closeSync(log);
  child.on('error', () => undefined);
  child.unref();
  const record = child.pid === undefined ? null : processRecord(child.pid);
  return { nodeId, process: record, socket: file('sock'), config: file('yaml'), log: file('log') };
}

/** The daemon as it was built, also when this module runs from its source. */
function daemonMain(): string {
  const built = fileURLToPath(new URL('./main.js', import.meta.url));
  if (existsSync(built)) return built;
  let directory = path.dirname(built);
  while (!existsSync(path.join(directory, 'package.json')) && path.dirname(directory) !== directory)
    directory = path.dirname(directory);
  const main = path.join(directory, 'dist', 'src', 'daemon', 'main.js');
  if (!existsSync(main)) throw devError(`there is no ${main}: build it first (npm run build)`);
  return main;
}

/** Ready: it answers, and it is a member. @throws {FsError} when it ended or took too long. */
async function waitReady(node: DevNode): Promise<void> {
  const deadline = performance.now() + READY_TIMEOUT_MS;
  for (;;) {
    if (!isRunning(node.process))
      throw devError(`node ${node.nodeId} ended while it was starting, see ${node.log}${lastError(node.log)}`);
    if ((await nodeStatus(node)) !== null) return;
    if (performance.now() > deadline)
      throw devError(`node ${node.nodeId} was not ready within ${READY_TIMEOUT_MS / 1000} s, see ${node.log}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function nodeStatus(node: DevNode) {
  try {
    const client = await AdminClient.connect(adminSocketPath(node.socket));
    try {
      const status = await client.call('status', {});
      return status.phase === 'member' ? status : null;
    } finally {
      client.close();
    }
  } catch {
    return null;
  }
}

/** Best effort, and bounded: a node that can't answer, or can't write out, says so in its log when it is stopped. */
async function unmountNode(node: DevNode): Promise<void> {
  if (!isRunning(node.process)) return;
  try {
    const client = await AdminClient.connect(adminSocketPath(node.socket));
    const late = setTimeout(() => client.close(), UNMOUNT_GRACE_MS);
    try {
      await client.call('unmount', {});
    } finally {
      clearTimeout(late);
      client.close();
    }
  } catch {
    // Stopping it tries again.
  }
}

/** The last thing that the daemon said to people, to spare them a look into the log. */
function lastError(log: string): string {
  const lines = readFileSync(log, 'utf8').split('\n');
  const said = lines.findLast((line) => line.startsWith('holdfastd: '));
  return said === undefined ? '' : ` (${said.slice('holdfastd: '.length)})`;
}

export interface DevDownResult {
  readonly nodes: readonly { readonly nodeId: number; readonly outcome: 'gone' | 'stopped' | 'killed' }[];
  readonly etcd: 'gone' | 'stopped' | 'killed';
}

/**
 * Stops everything. First every node writes out, while all NSDs are still served: one that went first would take its NSD from
 * under the others' dirty pages. Then the nodes end, all at once; etcd last. `clean` removes the directory with all data.
 */
export async function devDown(dirGiven: string, options: { readonly clean: boolean }): Promise<DevDownResult> {
  const dir = path.resolve(dirGiven);
  if (readState(dir) === null) throw devError(`${dir} has no local cluster`, 'notFound');
  return withLock(dir, async () => {
    const state = readState(dir)!;
    await Promise.all(state.nodes.map(unmountNode));
    const nodes = await Promise.all(
      state.nodes.map(async (node) => ({
        nodeId: node.nodeId,
        outcome: node.process === null ? ('gone' as const) : await stopProcess(node.process, NODE_GRACE_MS),
      })),
    );
    const etcdProcess = state.etcd?.process ?? null;
    const etcd = etcdProcess === null ? 'gone' : await stopProcess(etcdProcess, ETCD_GRACE_MS);
    writeState(dir, {
      ...state,
      etcd: state.etcd === null ? null : { ...state.etcd, process: null },
      nodes: state.nodes.map((node) => ({ ...node, process: null })),
    });
    if (options.clean) rmSync(dir, { recursive: true, force: true });
    return { nodes, etcd };
  });
}

export interface DevNodeStatus {
  readonly nodeId: number;
  readonly running: boolean;
  readonly ready: boolean;
  readonly pid: number | null;
  readonly socket: string;
  readonly log: string;
}
export interface DevStatus {
  readonly dir: string;
  readonly etcd: { readonly running: boolean; readonly pid: number | null; readonly endpoint: string } | null;
  readonly nodes: readonly DevNodeStatus[];
}

export async function devStatus(dirGiven: string): Promise<DevStatus> {
  const dir = path.resolve(dirGiven);
  const state = readState(dir);
  if (state === null) throw devError(`${dir} has no local cluster; start one: holdfast dev up`, 'notFound');
  const nodes = await Promise.all(
    state.nodes.map(async (node) => {
      const running = isRunning(node.process);
      const ready = running && (await nodeStatus(node)) !== null;
      return {
        nodeId: node.nodeId,
        running,
        ready,
        pid: running ? node.process!.pid : null,
        socket: node.socket,
        log: node.log,
      };
    }),
  );
  const etcdRuns = isRunning(state.etcd?.process ?? null);
  const etcd =
    state.etcd === null
      ? null
      : { running: etcdRuns, pid: etcdRuns ? state.etcd.process!.pid : null, endpoint: state.etcd.endpoint };
  return { dir, etcd, nodes };
}

/** Null: no cluster was ever started in this directory. @throws {FsError} when the file is damaged. */
export function readState(dir: string): DevState | null {
  const file = path.join(dir, STATE_FILE);
  if (!existsSync(file)) return null;
  try {
    return stateSchema.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch (error) {
    throw devError(`${file} is damaged: end what runs by hand, then remove the directory`, 'badConfiguration', error);
  }
}

function writeState(dir: string, state: DevState): void {
  const file = path.join(dir, STATE_FILE);
  writeFileSync(`${file}.new`, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

/** One `up` or `down` at a time per directory; a lock of a process that died is taken over. */
async function withLock<T>(dir: string, work: () => Promise<T>): Promise<T> {
  const file = path.join(dir, LOCK_FILE);
  for (let attempt = 0; ; attempt++) {
    try {
      writeFileSync(file, JSON.stringify(processRecord(process.pid)), { flag: 'wx', mode: 0o600 });
      break;
    } catch (error) {
      if (attempt > 0 || (error as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw devError(`another command is working on ${dir} (or remove ${file})`, 'busy', error);
      }
      const owner = processSchema.nullable().safeParse(JSON.parse(readFileSync(file, 'utf8') || 'null'));
      if (!owner.success || !isRunning(owner.data)) rmSync(file, { force: true });
    }
  }
  try {
    return await work();
  } finally {
    rmSync(file, { force: true });
  }
}

function checkSocketPath(socket: string): void {
  const bytes = Buffer.byteLength(adminSocketPath(socket));
  if (bytes > SOCKET_PATH_BYTES_MAX)
    throw devError(
      `the path of the directory is too long for unix sockets by ${bytes - SOCKET_PATH_BYTES_MAX} bytes`,
      'invalidArgument',
    );
  const parent = statSync(path.dirname(socket));
  if (!parent.isDirectory()) throw devError(`${path.dirname(socket)} is no directory`, 'notDirectory');
}

function devError(
  detail: string,
  reason: 'internal' | 'notFound' | 'busy' | 'badConfiguration' | 'invalidArgument' | 'notDirectory' = 'internal',
  cause?: unknown,
): FsError {
  return new FsError(reason, { op: 'dev', detail, cause });
}
