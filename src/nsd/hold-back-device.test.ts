import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool } from '../native/page-pool.js';
import { HoldBackDevice } from './hold-back-device.js';
import { mustAllocate, RamDevice, testMemory } from './testing.js';

const SECTORS = 12;

function make(seed: number, earlyChance?: number, heldBytesMax?: number) {
  const { pool, arena } = testMemory(1 << 20);
  const ram = new RamDevice(SECTORS * SECTOR_BYTES, pool);
  const random = new SeededRandom(seed);
  const scratch = mustAllocate(arena, 2);
  const device = new HoldBackDevice(ram, pool, scratch, {
    random,
    ...(earlyChance === undefined ? {} : { earlyChance }),
    ...(heldBytesMax === undefined ? {} : { heldBytesMax }),
  });
  const memory = mustAllocate(arena, 4);
  const piece = (count: number) => ({ ...memory, lengthBytes: count * SECTOR_BYTES });
  const write = async (sector: number, count: number, value: number): Promise<void> => {
    pool.bytes.fill(value, memory.offsetBytes, memory.offsetBytes + count * SECTOR_BYTES);
    await device.write(sector * SECTOR_BYTES, piece(count));
  };
  const read = async (sector: number): Promise<number> => {
    await device.read(sector * SECTOR_BYTES, piece(1));
    return only(pool, memory.offsetBytes);
  };
  return { ram, device, write, read, pool };
}
function only(pool: PagePool, at: number): number {
  const bytes = pool.bytes.subarray(at, at + SECTOR_BYTES);
  return bytes.every((byte) => byte === bytes[0]) ? bytes[0]! : -1;
}
/** What a kill leaves of a sector, block by block. */
const left = (ram: RamDevice, sector: number): number[] =>
  Array.from({ length: 8 }, (_, block) => ram.bytes[sector * SECTOR_BYTES + block * 512]!);

describe('a device that holds back what is not flushed', () => {
  it('shows every write to readers at once, and after a kill each block of a sector is flushed, or some later write', async () => {
    const op = fc.oneof(
      { weight: 6, arbitrary: fc.record({ sector: fc.nat(SECTORS - 4), count: fc.integer({ min: 1, max: 4 }) }) },
      { weight: 1, arbitrary: fc.constant('flush' as const) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(op, { maxLength: 40 }), fc.nat(), async (ops, seed) => {
        const { ram, device, write, read } = make(seed, 0.3);
        const now = new Array<number>(SECTORS).fill(0);
        const possible = now.map(() => new Set([0]));
        for (const [i, one] of ops.entries()) {
          if (one === 'flush') {
            await device.flush();
            expect(device.heldBytes).toBe(0);
            for (const [sector, value] of now.entries()) possible[sector] = new Set([value]);
          } else {
            await write(one.sector, one.count, i + 1);
            for (let at = one.sector; at < one.sector + one.count; at++) {
              now[at] = i + 1;
              possible[at]!.add(i + 1);
            }
          }
          for (const [sector, value] of now.entries()) {
            expect(await read(sector)).toBe(value);
            for (const block of left(ram, sector)) expect([...possible[sector]!]).toContain(block);
          }
        }
      }),
      { numRuns: 60 },
    );
  });

  it('loses all of it at a kill when nothing goes out early, and tears some when something does', async () => {
    const kept = make(1, 0);
    await kept.write(0, 4, 7);
    expect(left(kept.ram, 2)).toEqual(new Array(8).fill(0));
    const torn = make(3, 1);
    await torn.write(0, 4, 7);
    for (let i = 0; i < 6; i++) await torn.read(0);
    const shapes = [0, 1, 2, 3].map((sector) => new Set(left(torn.ram, sector)).size);
    expect(shapes).toContain(2);
    expect(await torn.read(3)).toBe(7);
  });

  it('holds no more than it may, and forgets what is discarded', async () => {
    const { device, write, ram } = make(1, 0, 4 * SECTOR_BYTES);
    await write(0, 4, 1);
    await write(4, 4, 2);
    expect(device.heldBytes).toBeLessThanOrEqual(6 * SECTOR_BYTES);
    expect(left(ram, 0)).toEqual(new Array(8).fill(1));
    await device.discard(4 * SECTOR_BYTES, 4 * SECTOR_BYTES);
    await device.flush();
    expect(left(ram, 5)).toEqual(new Array(8).fill(0xdd));
  });

  it('lets a read beside a flush see the sectors that are just going out', async () => {
    const { device, write, read } = make(1, 0);
    await write(0, 4, 5);
    const flushed = device.flush();
    expect(await read(1)).toBe(5);
    await flushed;
    expect(await read(1)).toBe(5);
  });
});
