import { describe, expect, it } from 'vitest';
import { Counters } from '../common/counters.js';
import { SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PoolSegment } from '../native/page-pool.js';
import { checksumsJs } from './checksum-js.js';
import { FaultDevice } from './fault-device.js';
import { SELF_CHECKING_WORD, VERSION_AFTER_LOSS } from './nsd-layout.js';
import { NsdStore, newSectorStates } from './nsd-store.js';
import { deviceBytesFor, mustAllocate, RamDevice, testMemory } from './testing.js';

const UUID = '11111111-2222-4333-8444-555555555555';

async function rig() {
  const { pool, arena } = testMemory(4 << 20);
  const device = new FaultDevice(new RamDevice(deviceBytesFor(40), pool), pool, mustAllocate(arena, 1), {
    holdBack: true,
  });
  const parts = { device, pool, checksums: checksumsJs, staging: mustAllocate(arena, 16), counters: new Counters() };
  await NsdStore.format(parts, { uuid: UUID, clusterId: 'c', failureGroup: 1, name: 'n' });
  let store = await NsdStore.open(parts);
  const memory = mustAllocate(arena, 2);
  const segment = (count: number): PoolSegment => ({ ...memory, lengthBytes: count * SECTOR_BYTES });
  return {
    device,
    get store() {
      return store;
    },
    async write(sector: number, count: number, value: number, durable: boolean, selfChecking = true) {
      pool.bytes.fill(value, memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
      const crcs = new Uint32Array(count);
      checksumsJs.sectors(pool.bytes, memory.offsetBytes, count, crcs, 0);
      await store.write(sector, segment(count), { crcs, selfChecking, durable });
    },
    async read(sector: number): Promise<{ value: number; version: number }> {
      const states = newSectorStates(1);
      await store.read(sector, segment(1), states);
      return { value: pool.bytes[memory.offsetBytes + 100]!, version: states.versions[0]! };
    },
    async word(sector: number): Promise<number> {
      const words = new Uint32Array(1);
      await store.versions([{ sector, sectorCount: 1 }], words);
      return words[0]!;
    },
    /** Nothing survives that the device didn't have to keep. */
    async powerCut(): Promise<void> {
      await device.powerCut({ ...new SeededRandom(1), next: () => 0.999_999 });
      device.powerOn();
      store = await NsdStore.open(parts);
    },
  };
}

describe('sectors that check themselves', () => {
  it('are one write of the device each time but the first, and durable with it where that is asked for (I8)', async () => {
    const r = await rig();
    await r.write(4, 2, 7, false);
    await r.store.flush();
    const { write: writes, flush: flushes } = r.device.operations;
    await r.write(4, 2, 8, true);
    expect(r.device.operations.write - writes).toBe(1);
    expect(r.device.operations.flush - flushes).toBe(0);
    await r.powerCut();
    expect(await r.read(4)).toEqual({ value: 8, version: 0 });
    expect(await r.read(5)).toEqual({ value: 8, version: 0 });
  });

  it('are not durable unless that is asked for', async () => {
    const r = await rig();
    await r.write(4, 1, 7, true);
    await r.write(4, 1, 8, false);
    await r.powerCut();
    expect((await r.read(4)).value).toBe(7);
  });

  it('are known as such before a durable write of them is answered, whoever made them so (I8)', async () => {
    for (const first of [true, false]) {
      const r = await rig();
      await r.write(4, 1, 7, first);
      if (!first) await r.write(4, 1, 9, true);
      await r.powerCut();
      expect(await r.word(4)).toBe(SELF_CHECKING_WORD);
      expect((await r.read(4)).value).toBe(first ? 7 : 9);
    }
  });

  it('read as what is there, whatever it is', async () => {
    const r = await rig();
    await r.write(4, 1, 7, true);
    await r.device.corrupt((r.store.geometry.dataStart + 4) * SECTOR_BYTES + 100, 0xff);
    expect((await r.read(4)).value).toBe(7 ^ 0xff);
  });

  it('are zeros when they were discarded, and of a later version than any that may have been there when written otherwise', async () => {
    const r = await rig();
    await r.write(4, 2, 7, true);
    await r.store.discard(4, 1);
    expect((await r.read(4)).value).toBe(0);
    await r.write(4, 2, 8, false, false);
    expect(await r.read(4)).toEqual({ value: 8, version: VERSION_AFTER_LOSS + 1 });
    expect(await r.read(5)).toEqual({ value: 8, version: VERSION_AFTER_LOSS });
  });
});

it('a write with a flush is durable, of what is checked too', async () => {
  const r = await rig();
  await r.write(4, 2, 7, true, false);
  await r.powerCut();
  expect(await r.read(5)).toEqual({ value: 7, version: 1 });
});
