import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { startPrivateEtcd } from '../cluster/private-etcd.js';
import { nodeId } from '../common/ids.js';
import { type FileInput, type FileOutput, fileModel, LAYOUTS } from '../sim/file-model.js';
import { checkLinearizable, type Operation, type SequentialModel } from '../sim/linearizability.js';
import { type Child, startChild } from './testing/child.js';
import { eventually } from './testing/counting.js';
import type { Checked, Idle, LoadArguments, Recorded, Round, RoundDone, Unmounted } from './testing/load-protocol.js';
import { type LocksInput, type LocksOutput, locksModel } from './testing/locks-model.js';
import { NAMES, type NamesInput, type NamesOutput, namesModel } from './testing/names-model.js';

const full = process.env.HOLDFAST_TEST_FULL === '1';
const loadMs = full ? 60_000 : 6_000;
const processes = 3;
const FILES = 3;
const seed = Number(process.env.HOLDFAST_SEED ?? Date.now() % 1_000_000);

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

/** @throws with the operations that can't be ordered. */
function mustBeLinearizable<State, Input, Output>(
  what: string,
  model: SequentialModel<State, Input, Output>,
  recorded: readonly Recorded<Input, Output>[],
): void {
  const history: readonly Operation<Input, Output>[] = recorded;
  const verdict = checkLinearizable(model, history);
  if (verdict.ok) return;
  const show = (operation: Operation<Input, Output>): string =>
    `${operation.client} ${JSON.stringify(operation.input)} -> ${JSON.stringify(operation.output)} ` +
    `[${Math.round(operation.calledAt / 1000)}, ${Math.round(operation.returnedAt / 1000)}] µs`;
  throw new Error(
    `${what} (seed ${seed}) is ${verdict.undecided ? 'undecided' : 'not linearizable'}\nordered, the last of ${
      verdict.ordered.length
    }:\n${verdict.ordered.slice(-12).map(show).join('\n')}\nnone can be next:\n${verdict.stuckAt.map(show).join('\n')}`,
  );
}

test(`three processes, ${loadMs / 1000} s of random operations on shared files, names and locks: every history is linearizable, nothing is left behind`, {
  timeout: 10 * loadMs + 120_000,
}, async () => {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-load-'));
  cleanups.push(() => rm(directory, { recursive: true, force: true }));
  await mkdir(path.join(directory, 'etcd'));
  const etcd = await startPrivateEtcd({
    dataDir: path.join(directory, 'etcd'),
    logFile: path.join(directory, 'etcd.log'),
  });
  cleanups.push(async () => {
    const gone = new Promise((resolve) => etcd.process.once('exit', resolve));
    etcd.process.kill('SIGKILL');
    await gone;
  });
  const keyFile = path.join(directory, 'cluster.key');
  await writeFile(keyFile, randomBytes(32), { mode: 0o600 });
  const zeroNs = String(process.hrtime.bigint());
  const nodes: Child[] = [];
  for (let index = 0; index < processes; index++) {
    const args: LoadArguments = {
      index,
      zeroNs,
      config: {
        clusterName: 'load',
        etcd: [etcd.endpoint],
        keyFile,
        nodeId: nodeId(index + 1),
        name: `node${index + 1}`,
        listen: { host: '127.0.0.1', port: 0 },
        tokenServer: true,
        pagePoolBytes: 64 << 20,
        leaseTtlMs: 10_000,
        nsds: [
          {
            name: `nsd${index + 1}`,
            path: path.join(directory, `nsd${index + 1}`),
            sizeBytes: 256 << 20,
            failureGroup: index,
          },
        ],
        fileSystem: null,
        // Small enough that writing out, inodes and data, happens in the midst of it.
        settings: {
          cache: { writeBehindAgeMs: 200, writeBehindTickMs: 50 },
          fs: { inodeWriteBehindMs: 200, backgroundIntervalMs: 100 },
        },
      },
    };
    const child = startChild('daemon/testing/load-node', [JSON.stringify(args)]);
    cleanups.push(() => child.kill());
    nodes.push(child);
    await child.message('ready');
  }
  const ask = async <T extends { kind: string }>(node: Child, order: unknown, answer: string): Promise<T> => {
    node.send({ kind: 'order', order });
    return node.message<T>(answer);
  };
  const askAll = <T extends { kind: string }>(order: unknown, answer: string): Promise<T[]> =>
    Promise.all(nodes.map((node) => ask<T>(node, order, answer)));
  await ask(nodes[0]!, 'create', 'created');

  const endsAt = performance.now() + loadMs;
  let operations = 0;
  let rounds = 0;
  for (; rounds === 0 || performance.now() < endsAt; rounds++) {
    const round: Round = {
      kind: 'prepare',
      directory: `/round${rounds}`,
      files: FILES,
      layout: rounds % LAYOUTS.length,
      seed: seed + rounds,
      clients: 2,
      operationsPerClient: 35,
    };
    await ask(nodes[rounds % processes]!, round, 'prepared');
    const done = await askAll<RoundDone>({ ...round, kind: 'round' }, 'roundDone');
    for (let file = 0; file < FILES; file++) {
      const history: Recorded<FileInput, FileOutput>[] = done.flatMap((one) => one.files[file] ?? []);
      mustBeLinearizable(`round ${rounds}, file ${file}, layout ${round.layout}`, fileModel, history);
      operations += history.length;
    }
    const names: Recorded<NamesInput, NamesOutput>[] = done.flatMap((one) => one.names);
    mustBeLinearizable(`round ${rounds}, names`, namesModel(NAMES.map(() => 0)), names);
    const locks: Recorded<LocksInput, LocksOutput>[] = done.flatMap((one) => one.locks);
    mustBeLinearizable(`round ${rounds}, locks`, locksModel, locks);
    operations += names.length + locks.length;
  }
  process.stdout.write(`load: ${rounds} rounds, ${operations} operations, seed ${seed}\n`);

  // Nothing is left behind: no handle, no token, no file, no process.
  const unmounted = await askAll<Unmounted>('unmount', 'unmounted');
  expect(unmounted.map(({ openFiles, rangesHeld }) => ({ openFiles, rangesHeld }))).toEqual(
    nodes.map(() => ({ openFiles: 0, rangesHeld: 0 })),
  );
  // The last releases are on their way yet.
  await eventually('no token server has anything left', async () =>
    (await askAll<Idle>('idle', 'idle')).every((idle) => idle.serverRanges === 0 && idle.serverWaiting === 0),
  );
  const checked = await ask<Checked>(nodes[1]!, 'check', 'checked');
  expect(checked).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  await askAll('close', 'closed');
  expect(await Promise.all(nodes.map((node) => node.exited))).toEqual(nodes.map(() => 0));
  expect((await readdir(directory)).sort()).toEqual(['cluster.key', 'etcd', 'etcd.log', 'nsd1', 'nsd2', 'nsd3'].sort());
});
