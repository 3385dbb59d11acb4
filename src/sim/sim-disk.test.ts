import { describe, expect, it } from 'vitest';
import { SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import { heapPagePool } from '../native/page-pool.js';
import { checksumsJs } from '../nsd/checksum-js.js';
import { type DeviceImage, extremeFates, randomFates } from '../nsd/device-record.js';
import { NsdStore } from '../nsd/nsd-store.js';
import { Scheduler } from './scheduler.js';
import { SimDisk } from './sim-disk.js';

const LENGTH = 64 * SECTOR_BYTES;

function make(image?: DeviceImage) {
  const scheduler = new Scheduler();
  const pool = heapPagePool(64 * SECTOR_BYTES);
  const disk = new SimDisk(LENGTH, scheduler, new SeededRandom(5), undefined, image);
  const run = <T>(work: () => Promise<T>): Promise<T> => scheduler.run(work(), { stepsMax: 100_000 });
  const memory = (sectors: number) => ({ offsetBytes: 0, lengthBytes: sectors * SECTOR_BYTES });
  return { disk, pool, run, memory };
}

describe('a disk of the simulator', () => {
  it('keeps everything when a process dies, and after a power cut what was flushed, other writes in any state', async () => {
    const { disk, pool, run, memory } = make();
    const device = disk.open(pool);
    pool.bytes.fill(1, 0, SECTOR_BYTES);
    await run(() => device.write(0, memory(1)));
    await run(() => device.flush());
    pool.bytes.fill(2, 0, 4 * SECTOR_BYTES);
    await run(() => device.write(0, memory(4)));
    // Opened by another process.
    await run(() => disk.open(pool).read(0, memory(1)));
    expect(pool.bytes[0]).toBe(2);
    disk.powerCut(() => 'absent');
    expect([disk.peek(0)[0], disk.peek(SECTOR_BYTES)[0]]).toEqual([1, 0]);
    await expect(run(async () => device.read(0, memory(1)))).rejects.toMatchObject({ reason: 'deviceError' });
    await run(() => disk.open(pool).read(0, memory(1)));
    expect(pool.bytes[0]).toBe(1);
  });

  it('ends what is under way at a power cut with an error, and it takes no effect any more', async () => {
    const { disk, pool, run, memory } = make();
    const device = disk.open(pool);
    pool.bytes.fill(9, 0, SECTOR_BYTES);
    const writing = device.write(0, memory(1));
    disk.powerCut();
    await expect(run(() => writing)).rejects.toMatchObject({ reason: 'deviceError' });
    expect(disk.peek(0)[0]).toBe(0);
  });

  it('keeps a record of which it can be built as it may be after a power cut at any moment, for another disk', async () => {
    const { disk, pool, run } = make();
    const parts = (device: ReturnType<SimDisk['open']>, of: typeof pool) => ({
      device,
      pool: of,
      checksums: checksumsJs,
      staging: { offsetBytes: 32 * SECTOR_BYTES, lengthBytes: 16 * SECTOR_BYTES },
    });
    const uuid = '11111111-2222-4333-8444-555555555555';
    const format = { uuid, clusterId: 'c', failureGroup: 0, name: 'n' };
    await run(() => NsdStore.format(parts(disk.open(pool), pool), format));
    const record = disk.keepRecord();
    const write = async (store: NsdStore, value: number): Promise<void> => {
      pool.bytes.fill(value, 0, SECTOR_BYTES);
      const crcs = new Uint32Array(1);
      checksumsJs.sectors(pool.bytes, 0, 1, crcs, 0);
      await store.write(3, { offsetBytes: 0, lengthBytes: SECTOR_BYTES }, { crcs });
    };
    let flushedAt = 0;
    await run(async () => {
      const store = await NsdStore.open(parts(disk.open(pool), pool));
      await write(store, 1);
      await store.flush();
      flushedAt = record.events;
      await write(store, 2);
    });
    for (let events = flushedAt; events <= record.events; events++) {
      const fates = [...extremeFates(record.pending(events).length), randomFates(new SeededRandom(events))];
      for (const fate of fates) {
        const after = make(record.imageAt(events, fate));
        const value = await after.run(async () => {
          const store = await NsdStore.open(parts(after.disk.open(after.pool), after.pool), { uuid });
          await store.read(3, { offsetBytes: 0, lengthBytes: SECTOR_BYTES }).catch((error: unknown) => {
            // Torn in itself.
            expect(error).toMatchObject({ reason: 'checksumMismatch' });
            expect(fate).toBe(fates.at(-1));
            after.pool.bytes[0] = 2;
          });
          return after.pool.bytes[0];
        });
        expect([1, 2]).toContain(value);
      }
    }
  });
});
