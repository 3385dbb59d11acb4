import { constants } from 'node:fs';
import { NativeCacheMap } from '../../cache/cache-map-native.js';
import { directClient } from '../../client/connect-socket.js';
import type { FileHandle } from '../../client/file-handle.js';
import { below, type Random, SeededRandom } from '../../common/random.js';
import { checkFileSystem } from '../../fs/check/check.js';
import { type OpenFile, ROOT } from '../../fs/file-system-api.js';
import { SegmentArena } from '../../native/buffer-arena.js';
import { crc32c, crc32cSectors, openPagePool } from '../../native/core.js';
import {
  CELLS_MAX,
  type CellLayout,
  cellsOf,
  cellsOfSize,
  type FileInput,
  type FileOutput,
  LAYOUTS,
  stampedBytes,
} from '../../sim/file-model.js';
import { type NodeEngine, startNode } from '../engine.js';
import { planPool } from '../pool-plan.js';
import { argument, hear, tell } from './child.js';
import type { Checked, Idle, LoadArguments, Recorded, Round, RoundDone, Unmounted } from './load-protocol.js';
import { LOCK_BYTES, type LocksInput, type LocksOutput } from './locks-model.js';
import { NAMES, type NamesInput, type NamesOutput } from './names-model.js';

/**
 * One node of the load: a process that does random operations on files and names that all nodes share, and writes down every
 * one of them. Invariant: what it doesn't expect ends it, so nothing is missing in the record.
 */
const args = argument<LoadArguments>();
const zero = BigInt(args.zeroNs);
const now = (): number => Number(process.hrtime.bigint() - zero);
const engine = await startNode(args.config);
const map = engine.mapIds === null ? null : NativeCacheMap.open(engine.mapIds.mapId);
const client = directClient(engine.fileSystem, { map });
let stamps = 0;
const nextStamp = (): number => args.index * 2 ** 24 + ++stamps;

interface SharedFile {
  readonly handle: FileHandle;
  /** O_APPEND, and says where it wrote. */
  readonly appender: OpenFile;
}

async function prepare({ directory, files, layout }: Round): Promise<void> {
  await client.mkdir(directory);
  for (let i = 0; i < files; i++) {
    await client.writeFile(`${directory}/f${i}`, '');
    await client.truncate(`${directory}/f${i}`, LAYOUTS[layout]!.baseBytes);
  }
  await client.mkdir(`${directory}/names`);
  await client.writeFile(`${directory}/locked`, '');
}

async function runRound(round: Round): Promise<RoundDone> {
  const { directory, seed, clients, operationsPerClient } = round;
  const layout = LAYOUTS[round.layout]!;
  const files: SharedFile[] = [];
  for (let i = 0; i < round.files; i++) {
    const path = `${directory}/f${i}`;
    const appender = await engine.fileSystem.open(path, constants.O_WRONLY | constants.O_APPEND, 0, ROOT);
    files.push({ handle: await client.open(path, 'r+'), appender });
  }
  const done: RoundDone = { kind: 'roundDone', files: files.map(() => []), names: [], locks: [] };
  const loop = async (number: number): Promise<void> => {
    const random = new SeededRandom(seed * 64 + args.index * 8 + number);
    const name = `${args.index}.${number}`;
    const locked = await client.open(`${directory}/locked`, 'r+');
    for (let i = 0; i < operationsPerClient; i++) {
      const which = below(random, files.length + 2);
      if (which > files.length) {
        done.locks.push(await record(name, randomLocks(random, name), (input) => doLocks(locked, input)));
      } else if (which === files.length) {
        done.names.push(await record(name, randomNames(random), (input) => doNames(`${directory}/names`, input)));
      } else {
        const file = files[which]!;
        done.files[which]!.push(await record(name, randomFile(random), (input) => doFile(file, layout, input)));
      }
    }
    // Its locks go with the handle; that they do is part of the history.
    const gone: LocksInput = { op: 'unlock', from: 0, to: LOCK_BYTES, owner: name };
    done.locks.push(
      await record(name, gone, async () => {
        await locked.close();
        return [];
      }),
    );
    // What everybody ends up with is part of the history.
    for (const [which, file] of files.entries()) {
      const all: FileInput = { op: 'read', from: 0, to: 4 * CELLS_MAX };
      done.files[which]!.push(await record(name, all, (input) => doFile(file, layout, input)));
    }
  };
  await Promise.all(Array.from({ length: clients }, (_, number) => loop(number)));
  for (const file of files) {
    await file.handle.close();
    await file.appender.close();
  }
  return done;
}

async function record<Input, Output>(
  name: string,
  input: Input,
  work: (input: Input) => Promise<Output>,
): Promise<Recorded<Input, Output>> {
  const calledAt = now();
  const output = await work(input);
  return { client: name, input, output, calledAt, returnedAt: now() };
}

function randomFile(random: Random): FileInput {
  const kind = below(random, 12);
  const from = below(random, CELLS_MAX - 4);
  const to = from + 1 + below(random, 4);
  if (kind < 4) return { op: 'read', from, to: kind === 0 ? CELLS_MAX : to };
  if (kind < 8) return { op: 'write', from, to, stamp: nextStamp() };
  if (kind < 9) return { op: 'append', count: 1 + below(random, 2), stamp: nextStamp() };
  if (kind < 11) return { op: 'truncate', size: below(random, CELLS_MAX) };
  return { op: 'stat' };
}

async function doFile(file: SharedFile, layout: CellLayout, input: FileInput): Promise<FileOutput> {
  const { baseBytes, cellBytes } = layout;
  const at = (cell: number): number => baseBytes + cell * cellBytes;
  switch (input.op) {
    case 'read': {
      const buffer = Buffer.alloc((input.to - input.from) * cellBytes);
      const { bytesRead } = await file.handle.read(buffer, 0, buffer.length, at(input.from));
      return cellsOf(layout, buffer.subarray(0, bytesRead));
    }
    case 'write': {
      const bytes = stampedBytes(layout, input.stamp, input.to - input.from);
      const { bytesWritten } = await file.handle.write(bytes, 0, bytes.length, at(input.from));
      if (bytesWritten !== bytes.length) throw new Error('a short write');
      return [];
    }
    case 'append': {
      const bytes = stampedBytes(layout, input.stamp, input.count);
      const { offsetBytes, lengthBytes } = await file.appender.write(null, bytes);
      if (lengthBytes !== bytes.length) throw new Error('a short append');
      return [cellsOfSize(layout, offsetBytes)];
    }
    case 'truncate':
      await file.handle.truncate(at(input.size));
      return [];
    case 'stat':
      return [cellsOfSize(layout, (await file.handle.stat()).size)];
    case 'reverted':
      throw new Error('nobody dies here');
  }
}

function randomNames(random: Random): NamesInput {
  const kind = below(random, 12);
  const name = below(random, NAMES.length);
  const to = (name + 1 + below(random, NAMES.length - 1)) % NAMES.length;
  if (kind < 3) return { op: 'create', name };
  if (kind < 5) return { op: 'rename', from: name, to };
  if (kind < 6) return { op: 'link', from: name, to };
  if (kind < 8) return { op: 'unlink', name };
  if (kind < 11) return { op: 'lookup', name };
  return { op: 'list' };
}

async function doNames(directory: string, input: NamesInput): Promise<NamesOutput> {
  const path = (name: number): string => `${directory}/${NAMES[name]}`;
  /** 0 when the file system says that code, and nothing else is wrong. */
  const unless = async (code: string, work: () => Promise<number>): Promise<NamesOutput> => {
    try {
      return [await work()];
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === code) return [0];
      throw error;
    }
  };
  switch (input.op) {
    case 'create':
      return unless('EEXIST', async () => {
        const file = await client.open(path(input.name), 'wx');
        const { ino } = await file.stat();
        await file.close();
        return ino;
      });
    case 'unlink':
      return unless('ENOENT', async () => {
        await client.unlink(path(input.name));
        return 1;
      });
    case 'rename':
      return unless('ENOENT', async () => {
        await client.rename(path(input.from), path(input.to));
        return 1;
      });
    case 'link':
      try {
        return await unless('ENOENT', async () => {
          await client.link(path(input.from), path(input.to));
          return 1;
        });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EEXIST') return [2];
        throw error;
      }
    case 'lookup':
      return unless('ENOENT', async () => (await client.stat(path(input.name))).ino);
    case 'list': {
      const entries = await engine.fileSystem.readdir(directory, ROOT);
      return NAMES.map((name) => entries.find((entry) => entry.name === name)?.ino ?? 0);
    }
  }
}

function randomLocks(random: Random, owner: string): LocksInput {
  const from = below(random, LOCK_BYTES);
  const to = from + 1 + below(random, LOCK_BYTES - from);
  if (below(random, 5) < 2) return { op: 'unlock', from, to, owner };
  return { op: 'lock', type: below(random, 2) === 0 ? 'read' : 'write', from, to, owner };
}

/** The handle's own locks, not the process's: two loops of one process are two owners. */
async function doLocks(file: FileHandle, input: LocksInput): Promise<LocksOutput> {
  const range = { start: input.from, length: input.to - input.from, owner: 'handle' } as const;
  if (input.op === 'unlock') {
    await file.unlock(range);
    return [];
  }
  try {
    await file.lock({ ...range, type: input.type });
    return [1];
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return [0];
    throw error;
  }
}

/** Reads everything that is on the NSDs, while nobody has it mounted. */
async function check({ node, fileSystems }: NodeEngine): Promise<Checked> {
  const pool = openPagePool(engine.mapIds!.poolId);
  const plan = planPool(pool.lengthBytes, args.config.nsds.length);
  const [found] = await fileSystems();
  const report = await checkFileSystem({
    nsds: node.nsdClient(found!.record.nsds),
    arena: new SegmentArena(plan.fsStaging),
    pool,
    checksums: {
      sectors: (bytes, offsetBytes, sectorCount, out, outIndex) =>
        crc32cSectors(bytes, offsetBytes, sectorCount, out, outIndex),
      bytes: (bytes) => crc32c(bytes),
    },
  });
  const { problems, lostSubBlocks, lostInodes, inodes } = report;
  return { kind: 'checked', problems, lostSubBlocks, lostInodes, inodes };
}

await tell({ kind: 'ready' });
for (;;) {
  const order = await hear<{ kind: string } & { order: 'create' | 'unmount' | 'check' | 'idle' | 'close' | Round }>(
    'order',
  );
  const what = order.order;
  if (what === 'create') {
    await engine.createFileSystem('test');
    await tell({ kind: 'created' });
  } else if (what === 'unmount') {
    await client.close();
    const openFiles = engine.node.fileSystem?.usage().openFiles ?? 0;
    await engine.node.unmount();
    const unmounted: Unmounted = { kind: 'unmounted', openFiles, rangesHeld: engine.counters()['tokens.held'] ?? 0 };
    await tell({ ...unmounted });
  } else if (what === 'check') {
    await tell({ ...(await check(engine)) });
  } else if (what === 'idle') {
    const counters = engine.counters();
    const idle: Idle = {
      kind: 'idle',
      serverRanges: counters['tokens.server.ranges'] ?? 0,
      serverWaiting: counters['tokens.server.waiting'] ?? 0,
    };
    await tell({ ...idle });
  } else if (what === 'close') {
    map?.dispose();
    await engine.close();
    await tell({ kind: 'closed' });
    break;
  } else if (what.kind === 'prepare') {
    await prepare(what);
    await tell({ kind: 'prepared' });
  } else {
    await tell({ ...(await runRound(what)) });
  }
}
process.disconnect();
