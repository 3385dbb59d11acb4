import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, CommanderError } from 'commander';
import type { FileSystemClient } from '../client/file-system-client.js';
import { adminSocketPath } from '../daemon/admin-api.js';
import { AdminClient } from '../daemon/admin-client.js';
import { type DevState, devDown, devUp } from '../daemon/dev-cluster.js';
import { mainJob } from './main-job.js';
import { bytesText, countText, durationText, Exit, note, print, sentence } from './output.js';
import { type Expected, hashLocal, type ImportRoot, skipped } from './quickstart-checks.js';
import { report } from './quickstart-report.js';
import { openClient } from './target.js';
import { localTree, scanTree } from './tree.js';

/**
 * Shows in a few minutes what Holdfast is for: three daemons, one file system, a real tree in through one node and out, byte for
 * byte, through the others, two nodes writing one file at once.
 *
 * Owns a local cluster in a temporary directory. Invariant: however it ends, nothing is left running, unless it was asked to keep
 * it; after a failure the logs stay, and it says where.
 */
const FILES_MIN = 5000;
const BYTES_MIN = 100e6;
const MIB = 2 ** 20;
/** Of each of the two writers. */
const RECORDS = 2000;

interface Cluster {
  readonly state: DevState;
  readonly clients: readonly FileSystemClient[];
  readonly admins: readonly AdminClient[];
}

/** Set by a signal: the next step doesn't begin, and what waits for a daemon fails. */
let interruption: NodeJS.Signals | null = null;
let connected: readonly FileSystemClient[] = [];

function interrupt(signal: NodeJS.Signals): void {
  note(`holdfast: ${signal}, stopping everything`);
  interruption = signal;
  for (const client of connected) void client.close().catch(() => undefined);
}

async function run(options: { keep: boolean; dir: string | undefined }): Promise<void> {
  const started = performance.now();
  const dir = options.dir === undefined ? mkdtempSync(path.join(tmpdir(), 'holdfast-')) : path.resolve(options.dir);
  process.once('SIGINT', interrupt);
  process.once('SIGTERM', interrupt);
  try {
    await show(dir);
    if (!options.keep) await say('stopping everything', () => devDown(dir, { clean: true }));
    print(`\nDone in ${durationText(performance.now() - started)}.`);
    if (options.keep) print(whatNext(dir));
  } catch (error) {
    process.exitCode = Exit.failed;
    if (interruption === null) note(`holdfast: ${sentence(error)}`);
    if (process.env['HOLDFAST_DEBUG'] === '1' && error instanceof Error) note(error.stack ?? '');
    if (existsSync(path.join(dir, 'dev.json')))
      await devDown(dir, { clean: interruption !== null }).catch((why: unknown) => note(`holdfast: ${sentence(why)}`));
    for (const file of existsSync(dir) ? readdirSync(dir) : []) if (file.endsWith('.nsd')) rmSync(path.join(dir, file));
    note(`holdfast: everything is stopped${interruption === null ? `; the logs are in ${dir}` : ''}`);
  }
}

async function show(dir: string): Promise<void> {
  const roots = await chooseTree();
  const expected = await say('hashing the tree here', () => hashLocal(roots));
  print(
    `  ${countText(expected.files.size)} files, ${bytesText(expected.bytes)}: ${roots.map((root) => root.local).join(', ')}`,
  );

  const cluster = await say('starting etcd and three daemons', () => start(dir, expected));
  try {
    await say('creating the file system', () => cluster.admins[0]!.call('createFileSystem', { name: 'quickstart' }));
    const { clients, admins } = cluster;
    const phases = await mainJob({
      clients,
      counters: (node) => admins[node - 1]!.call('counters', {}),
      roots,
      expected,
      readers: [2, 3],
      writers: [2, 3],
      records: RECORDS,
      say,
    });
    print(`\n${report(phases)}\n`);
    print(
      `${countText(expected.files.size)} files are the same on all nodes, cold and hot; two writers at once lost no byte.`,
    );
  } finally {
    for (const client of cluster.clients) await client.close().catch(() => undefined);
    for (const admin of cluster.admins) admin.close();
  }
}

/** The project's own packages and the system's headers, and more of the system if that is too little. */
async function chooseTree(): Promise<ImportRoot[]> {
  const project = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
  const candidates = [
    { local: path.join(project, 'node_modules'), inside: '/import/node_modules', always: true },
    { local: '/usr/include', inside: '/import/include', always: true },
    { local: '/usr/share/doc', inside: '/import/doc', always: false },
    { local: '/usr/share/perl', inside: '/import/perl', always: false },
    { local: '/usr/share', inside: '/import/share', always: false },
    { local: '/usr/lib/python3', inside: '/import/python3', always: false },
  ];
  const chosen: ImportRoot[] = [];
  let files = 0;
  let bytes = 0;
  for (const { local, inside, always } of candidates) {
    if (!existsSync(local) || (!always && files >= FILES_MIN && bytes >= BYTES_MIN)) continue;
    const tree = await scanTree(localTree, local, skipped);
    chosen.push({ local, inside });
    files += tree.files.length;
    bytes += tree.bytes;
  }
  if (files < FILES_MIN || bytes < BYTES_MIN)
    throw new Error(`found only ${files} files and ${bytesText(bytes)} on this machine to import`);
  return chosen;
}

async function start(dir: string, expected: Expected): Promise<Cluster> {
  // Hot reads should be hot: room for the tree with its pages half full, as far as the memory goes.
  const wanted = Math.max(256 * MIB, expected.bytes * 1.5 + expected.files.size * 16_384);
  const poolMib = Math.max(128, Math.floor(Math.min(wanted, freemem() / 6) / MIB));
  const { state } = await devUp({ dir, nodes: 3, nsdSize: '2GiB', pagePool: `${poolMib}MiB` });
  const clients = await Promise.all(state.nodes.map((node) => openClient(node.socket, 0)));
  connected = clients;
  const admins = await Promise.all(state.nodes.map((node) => AdminClient.connect(adminSocketPath(node.socket))));
  return { state, clients, admins };
}

/** Says what is done, and how long it took. */
async function say<T>(what: string, work: () => Promise<T>): Promise<T> {
  if (interruption !== null) throw new Error(`interrupted by ${interruption}`);
  print(`- ${what} ...`);
  const started = performance.now();
  const result = await work();
  print(`  ${durationText(performance.now() - started)}`);
  return result;
}

function whatNext(dir: string): string {
  const cli = path.relative(process.cwd(), fileURLToPath(new URL('./main.js', import.meta.url)));
  return `
The cluster is still running. To look around:

  export HOLDFAST_DIR=${dir}
  alias holdfast='node ${cli}'
  holdfast status --counters
  holdfast ls -l /import --node 3
  holdfast cp README.md hf:/ && holdfast cat /README.md --node 2
  holdfast token list
  holdfast bench
  holdfast dev down --clean            when you have seen enough
`;
}

const program = new Command('quickstart')
  .description('Three daemons, one file system, a real tree through it, every byte compared.')
  .option('--keep', 'leave the cluster running and say what to type next')
  .option('--dir <path>', 'where to keep its state (default: a new directory below the temporary one)')
  .addHelpText('after', '\nExamples:\n  npm run quickstart\n  npm run quickstart -- --keep\n')
  .exitOverride()
  .action((options: { keep?: boolean; dir?: string }) => run({ keep: options.keep ?? false, dir: options.dir }));

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? Exit.ok : Exit.usage;
}
