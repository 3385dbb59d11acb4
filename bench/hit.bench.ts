/**
 * What a hit costs the application: 4 KiB readSync and writeSync on an open FileHandle of the library, through the worker
 * transport and the shared cache map, over a file that is cached whole. Baseline, alternating in the same run: the same bytes
 * copied between the same kinds of buffers. Goal: memcpy + 0.5 µs, and a million hits per second on one core.
 * Run: npx tsc -b && node dist/bench/hit.bench.js
 */
import { performance } from 'node:perf_hooks';
import { connectThrough } from '../src/client/connect.js';

const HIT_BYTES = 4096;
const FILE_BYTES = 1 << 20;
const BATCH = 20_000;
const ROUNDS = Number(process.env['HOLDFAST_BENCH_ROUNDS'] ?? 25);

/** The fake engine holds one file, /hot, cached whole under an exclusive token. */
const ENGINE = new URL('../src/client/testing/fake-engine.js', import.meta.url);
const options = { cluster: { etcd: [], name: 'bench', keyFile: '' }, fileSystem: 'mapped' };

/** Offsets in an order that the processor's prefetcher doesn't guess. */
const offsets = Int32Array.from({ length: 256 }, (_, i) => ((i * 167) % 256) * HIT_BYTES);

function time(work: (offset: number) => void): number {
  const start = performance.now();
  for (let i = 0; i < BATCH; i++) work(offsets[i & 255]!);
  return ((performance.now() - start) * 1e6) / BATCH;
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

const client = await connectThrough(options, {}, ENGINE);
const handle = await client.open('/hot', 'r+');
const memory = new Uint8Array(FILE_BYTES).fill(1);
const buffer = new Uint8Array(HIT_BYTES).fill(2);

const works = {
  'memcpy out': (at: number) => buffer.set(memory.subarray(at, at + HIT_BYTES)),
  'readSync hit': (at: number) => void handle.readSync(buffer, 0, HIT_BYTES, at),
  'memcpy in': (at: number) => memory.set(buffer, at),
  'writeSync hit': (at: number) => void handle.writeSync(buffer, 0, HIT_BYTES, at),
};
const samples = new Map<string, number[]>(Object.keys(works).map((name) => [name, []]));
for (let round = -3; round < ROUNDS; round++)
  for (const [name, work] of Object.entries(works)) {
    const ns = time(work);
    if (round >= 0) samples.get(name)!.push(ns);
  }

const ns = (name: string): number => median(samples.get(name)!);
const { hits } = await client.stats();
const all = ROUNDS + 3;
if (hits === null || hits.readHits !== all * BATCH || hits.writeHits !== all * BATCH)
  throw new Error(`not all were hits: ${JSON.stringify(hits)}`);

console.table(
  (
    [
      ['readSync hit', 'memcpy out'],
      ['writeSync hit', 'memcpy in'],
    ] as const
  ).map(([hit, baseline]) => ({
    operation: `4 KiB ${hit}`,
    'ns per hit': Math.round(ns(hit)),
    'ns memcpy': Math.round(ns(baseline)),
    'ns above memcpy': Math.round(ns(hit) - ns(baseline)),
    goal: '500',
    'million/s': (1000 / ns(hit)).toFixed(2),
  })),
);
await handle.close();
await client.close();
