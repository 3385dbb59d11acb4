import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { BlockEngine } from 'napi-nvme';
import { afterEach, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { below, SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import { crc32c, crc32cSectors, createPagePool } from '../native/core.js';
import { PoolEngine } from '../nsd/block-engine-device.js';
import { NsdStore } from '../nsd/nsd-store.js';
import { startChild } from './testing/child.js';
import type { NsdRound, NsdWriterArguments } from './testing/nsd-writer-protocol.js';

const SECTORS = 48;
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** An NSD in a file, and what each of its sectors may be. */
async function nsd() {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-killed-'));
  cleanups.push(() => rm(directory, { recursive: true, force: true }));
  const file = path.join(directory, 'nsd');
  await writeFile(file, '');
  await truncate(file, 4 << 20);
  const pool = createPagePool(1 << 20);
  cleanups.push(async () => pool.close());
  const checksums = { sectors: crc32cSectors, bytes: (bytes: Uint8Array) => crc32c(bytes) };
  const segment = (at: number, count: number) => ({
    offsetBytes: at * SECTOR_BYTES,
    lengthBytes: count * SECTOR_BYTES,
  });
  const withStore = async <T>(use: (store: NsdStore) => Promise<T>, format = false): Promise<T> => {
    const engine = new PoolEngine(new BlockEngine({ queueDepth: 8 }), pool);
    try {
      const parts = { device: await engine.open(file), pool, checksums, staging: segment(0, 64) };
      const uuid = '11111111-2222-4333-8444-555555555555';
      if (format) await NsdStore.format(parts, { uuid, clusterId: 'c', failureGroup: 1, name: 'n' });
      const store = await NsdStore.open(parts, { uuid });
      const result = await use(store);
      await store.close();
      return result;
    } finally {
      await engine.close();
    }
  };
  await withStore(async (store) => {
    // Everything is in use, so that every write needs its intent.
    const memory = segment(64, SECTORS);
    pool.bytes.fill(0, memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
    const crcs = new Uint32Array(SECTORS);
    crc32cSectors(pool.bytes, memory.offsetBytes, SECTORS, crcs, 0);
    await store.write(0, memory, { crcs });
  }, true);
  const possible = Array.from({ length: SECTORS }, () => [0]);
  /** Looks at every sector, and takes what it finds for what is there. What is wrong, or null. */
  const judge = (): Promise<string | null> =>
    withStore(async (store) => {
      const memory = segment(64, 1);
      for (const [sector, values] of possible.entries()) {
        const reason = await store.read(sector, memory).then(
          () => 'none',
          (error: unknown) => FsError.from(error, 'read').reason,
        );
        // Also when it mismatches: then this is what nobody could be given.
        if (reason !== 'none') await deviceRead(file, (store.geometry.dataStart + sector) * SECTOR_BYTES, pool, memory);
        const words = new Uint32Array(pool.buffer, memory.offsetBytes, SECTOR_BYTES / 4);
        const whole = words.every((word) => word === words[0]) && values.includes(words[0]!);
        if (reason === 'none' && !whole) return `sector ${sector} reads ${words[0]}, not one of ${values}`;
        if (reason === 'none') possible[sector] = [words[0]!];
        else if (values.length === 1) return `sector ${sector}: ${reason}, and nobody was writing it`;
        else if (whole) return `sector ${sector}: ${reason}, though it is whole`;
        else await mend(store, sector);
      }
      return null;
    });
  const mend = async (store: NsdStore, sector: number): Promise<void> => {
    const memory = segment(64, 1);
    pool.bytes.fill(0, memory.offsetBytes, memory.offsetBytes + SECTOR_BYTES);
    const crcs = new Uint32Array(1);
    crc32cSectors(pool.bytes, memory.offsetBytes, 1, crcs, 0);
    await store.write(sector, memory, { crcs });
    possible[sector] = [0];
  };
  return { file, possible, judge };
}

async function deviceRead(
  file: string,
  offsetBytes: number,
  pool: ReturnType<typeof createPagePool>,
  memory: { offsetBytes: number; lengthBytes: number },
): Promise<void> {
  const engine = new PoolEngine(new BlockEngine({ queueDepth: 1 }), pool);
  const device = await engine.open(file, { readOnly: true });
  await device.read(offsetBytes, memory);
  await engine.close();
}

/** Kills a writer so many times, in the midst of its work; what was found wrong first, or null. */
async function kills(count: number, skipIntentFlush: boolean): Promise<string | null> {
  const { file, possible, judge } = await nsd();
  const random = new SeededRandom(1);
  let firstValue = 1;
  for (let i = 0; i < count; i++) {
    const args: NsdWriterArguments = { file, seed: i, sectors: SECTORS, firstValue, skipIntentFlush };
    const writer = startChild('daemon/testing/nsd-writer', [JSON.stringify(args)]);
    cleanups.push(() => writer.kill());
    const killAfter = 1 + below(random, 40);
    let heard = 0;
    const enough = new Promise<void>((resolve) => {
      writer.process.on('message', (message: NsdRound | { kind: 'flushed' }) => {
        if (message.kind === 'round')
          for (const { sector, count: sectors, value } of message.writes) {
            firstValue = Math.max(firstValue, value + 1);
            for (let at = sector; at < sector + sectors; at++) possible[at]!.push(value);
          }
        else for (const values of possible) values.splice(0, values.length - 1);
        if (++heard === killAfter) resolve();
      });
    });
    await Promise.race([
      enough,
      writer.exited.then((how) => Promise.reject(new Error(`the writer ended with ${how}`))),
    ]);
    await writer.kill();
    const wrong = await judge();
    if (wrong !== null) return `kill ${i}: ${wrong}`;
  }
  return null;
}

test('an NSD whose server is killed has every sector as flushed or as written later, or torn in itself (S1)', async () => {
  expect(await kills(8, false)).toBe(null);
});

test('the same kills show that the flush of the intents is left out', async () => {
  expect(await kills(30, true)).toMatch(/kill \d+: sector \d+/);
});
