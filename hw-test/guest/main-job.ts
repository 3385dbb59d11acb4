/**
 * The main job across two guests, driven from guest 1: the same code and the same table as the quickstart's. What differs is what carries the
 * bytes and what the NSDs are; that is the caller's.
 */
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { mainJob } from '../../src/cli/main-job.js';
import { hashLocal } from '../../src/cli/quickstart-checks.js';
import { type CounterSnapshot, type Phase, report } from '../../src/cli/quickstart-report.js';
import { openClient } from '../../src/cli/target.js';
import type { FileSystemClient } from '../../src/client/file-system-client.js';
import { adminSocketPath } from '../../src/daemon/admin-api.js';
import { AdminClient } from '../../src/daemon/admin-client.js';
import { forward, type GuestDaemon, type GuestDaemonConfig, startDaemon, startStore } from './cluster.js';
import { hardware } from './environment.js';
import { barrier, publish, receive } from './exchange.js';
import { makeSampleTree, SAMPLE_FILES } from './sample-tree.js';

const CLIENT_PORT = 7501;
const ADMIN_PORT = 7502;
const RECORDS = 100;
const JOB_MS = 600_000;

export interface MainJobResult {
  readonly phases: readonly Phase[];
  /** Of both daemons at the end, by node id from 1. */
  readonly counters: readonly CounterSnapshot[];
}

/** On both guests. Guest 2 gets null: it serves until guest 1 is done. */
export async function runMainJob(
  name: string,
  config: GuestDaemonConfig,
  look: (daemon: GuestDaemon) => Promise<void> = async () => undefined,
): Promise<MainJobResult | null> {
  const directory = mkdtempSync(path.join(tmpdir(), 'main-job-'));
  const { guest, peer } = hardware();
  const undo: (() => Promise<unknown>)[] = [];
  try {
    if (guest === 1) undo.push(await startStore(name, directory));
    const daemon = await startDaemon(name, directory, config);
    undo.push(() => daemon.stop());
    if (guest === 2) {
      undo.push(await forward({ host: hardware().address, port: CLIENT_PORT }, daemon.socket));
      undo.push(await forward({ host: hardware().address, port: ADMIN_PORT }, adminSocketPath(daemon.socket)));
      publish(`${name}.ready`);
      await receive(`${name}.done`, JOB_MS);
      await look(daemon);
      await daemon.admin.call('unmount', {});
      await barrier(`${name}.unmounted`);
      return null;
    }
    await receive(`${name}.ready`, JOB_MS);
    const far = path.join(directory, 'far.sock');
    undo.push(await forward(far, { host: peer, port: CLIENT_PORT }));
    undo.push(await forward(adminSocketPath(far), { host: peer, port: ADMIN_PORT }));
    const result = await drive(directory, [daemon.socket, far]);
    await look(daemon);
    publish(`${name}.done`);
    await daemon.admin.call('unmount', {});
    await barrier(`${name}.unmounted`);
    return result;
  } finally {
    for (let step = undo.pop(); step !== undefined; step = undo.pop()) await step();
  }
}

async function drive(directory: string, sockets: readonly string[]): Promise<MainJobResult> {
  const admins = await Promise.all(sockets.map((socket) => AdminClient.connect(adminSocketPath(socket))));
  const clients: FileSystemClient[] = [];
  try {
    await admins[0]!.call('createFileSystem', { name: 'main-job' });
    for (const socket of sockets) clients.push(await openClient(socket, 0));
    const local = path.join(directory, 'tree');
    makeSampleTree(local);
    const roots = [{ local, inside: '/import/tree' }];
    const expected = await hashLocal(roots);
    if (expected.files.size !== SAMPLE_FILES) throw new Error(`the tree has ${expected.files.size} files`);
    const phases = await mainJob({
      clients,
      counters: (node) => admins[node - 1]!.call('counters', {}),
      roots,
      expected,
      readers: [2],
      writers: [1, 2],
      records: RECORDS,
      say: async (what, work) => {
        const startedMs = performance.now();
        const result = await work();
        console.log(`- ${what}: ${((performance.now() - startedMs) / 1000).toFixed(1)} s`);
        return result;
      },
    });
    console.log(`\n${report(phases)}\n`);
    const counters = await Promise.all(admins.map((admin) => admin.call('counters', {})));
    return { phases, counters };
  } finally {
    for (const client of clients) await client.close().catch(() => undefined);
    for (const admin of admins) admin.close();
  }
}
