/**
 * What the durable intents of S1 cost: writes over sectors that are in use, on one NSD in a file, with intents and without (`logged`: a log
 * record is the intent), and into sectors that were never written, which need none. In rounds in changing order; printed are medians, and the
 * median of the ratios within each round. Run with the directory to use as argument, which must not be a tmpfs.
 */
import fs from 'node:fs';
import path from 'node:path';
import { BlockEngine } from 'napi-nvme';
import { SECTOR_BYTES } from '../src/common/units.js';
import { crc32c, crc32cSectors, createPagePool } from '../src/native/core.js';
import { PoolEngine } from '../src/nsd/block-engine-device.js';
import { NsdStore } from '../src/nsd/nsd-store.js';

const FILE_BYTES = 256 << 20;
const SECONDS = Number(process.env['HOLDFAST_BENCH_SECONDS'] ?? 1);
const ROUNDS = Number(process.env['HOLDFAST_BENCH_ROUNDS'] ?? 5);
const file = path.join(process.argv[2] ?? process.cwd(), `.nsd-bench-${process.pid}`);

const fd = fs.openSync(file, 'w');
for (let at = 0; at < FILE_BYTES; at += 1 << 20) fs.writeSync(fd, Buffer.alloc(1 << 20, 0));
fs.fsyncSync(fd);
fs.closeSync(fd);

const pool = createPagePool(32 << 20);
const engine = new PoolEngine(new BlockEngine({ queueDepth: 64 }), pool);
const checksums = { sectors: crc32cSectors, bytes: (bytes: Uint8Array) => crc32c(bytes) };
const parts = {
  device: await engine.open(file),
  pool,
  checksums,
  staging: { offsetBytes: 0, lengthBytes: 1 << 20 },
};
await NsdStore.format(parts, {
  uuid: '11111111-2222-4333-8444-555555555555',
  clusterId: 'bench',
  failureGroup: 1,
  name: 'b',
});
const store = await NsdStore.open(parts);

interface Case {
  readonly name: string;
  readonly sectors: number;
  readonly depth: number;
  readonly logged: boolean;
  readonly flushEach: boolean;
}
const shapes = [
  { name: '4 KiB, depth 1', sectors: 1, depth: 1, flushEach: false },
  { name: '4 KiB + flush, depth 1', sectors: 1, depth: 1, flushEach: true },
  { name: '4 KiB + flush, depth 16', sectors: 1, depth: 16, flushEach: true },
  { name: '4 KiB, depth 64', sectors: 1, depth: 64, flushEach: false },
  { name: '1 MiB, depth 1', sectors: 256, depth: 1, flushEach: false },
  { name: '1 MiB, depth 8', sectors: 256, depth: 8, flushEach: false },
];

/** Microseconds of each write, and writes per second. */
async function measure({ sectors, depth, logged, flushEach }: Case): Promise<{ p50: number; perSecond: number }> {
  const places = Math.floor(store.dataSectorCount / sectors);
  const times: number[] = [];
  const end = performance.now() + SECONDS * 1000;
  const begun = performance.now();
  await Promise.all(
    Array.from({ length: depth }, async (_, lane) => {
      const memory = { offsetBytes: (1 << 20) + lane * sectors * SECTOR_BYTES, lengthBytes: sectors * SECTOR_BYTES };
      const crcs = new Uint32Array(sectors);
      while (performance.now() < end) {
        const at = performance.now();
        checksums.sectors(pool.bytes, memory.offsetBytes, sectors, crcs, 0);
        const place = Math.floor((Math.floor(Math.random() * (places / depth)) * depth + lane) % places);
        await store.write(place * sectors, memory, { crcs, logged });
        if (flushEach) await store.flush();
        times.push((performance.now() - at) * 1000);
      }
    }),
  );
  times.sort((a, b) => a - b);
  return { p50: times[times.length >> 1] ?? 0, perSecond: (times.length * 1000) / (performance.now() - begun) };
}
const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1] ?? 0;

// All of it in use.
const all = { offsetBytes: 1 << 20, lengthBytes: 1 << 20 };
const allCrcs = new Uint32Array(256);
checksums.sectors(pool.bytes, all.offsetBytes, 256, allCrcs, 0);
for (let at = 0; at + 256 <= store.dataSectorCount; at += 256)
  await store.write(at, all, { crcs: allCrcs, logged: true });
await store.flush();

console.log(
  '| writes over what is there | without an intent: p50, per s | with: p50, per s | rate, with / without |\n|---|---|---|---|',
);
for (const shape of shapes) {
  const found: Record<'plain' | 'logged', { p50: number[]; perSecond: number[] }> = {
    plain: { p50: [], perSecond: [] },
    logged: { p50: [], perSecond: [] },
  };
  const ratios: number[] = [];
  for (let round = 0; round < ROUNDS + 1; round++) {
    const rates = { plain: 0, logged: 0 };
    for (const kind of round % 2 === 0 ? (['plain', 'logged'] as const) : (['logged', 'plain'] as const)) {
      const { p50, perSecond } = await measure({ ...shape, logged: kind === 'logged' });
      rates[kind] = perSecond;
      // The first round is for the compiler.
      if (round === 0) continue;
      found[kind].p50.push(p50);
      found[kind].perSecond.push(perSecond);
    }
    if (round > 0) ratios.push(rates.plain / rates.logged);
  }
  const cell = (kind: 'plain' | 'logged'): string =>
    `${median(found[kind].p50).toFixed(0)} us, ${median(found[kind].perSecond).toFixed(0)}`;
  console.log(`| ${shape.name} | ${cell('logged')} | ${cell('plain')} | ${median(ratios).toFixed(2)} |`);
}
await store.close();
await engine.close();
fs.rmSync(file);
