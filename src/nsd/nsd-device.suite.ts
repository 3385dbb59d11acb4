import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { BlockEngine } from 'napi-nvme';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { SECTOR_BYTES } from '../common/units.js';
import { crc32c, crc32cSectors, createPagePool, type NativePagePool } from '../native/core.js';
import type { PoolSegment } from '../native/page-pool.js';
import { type BlockEngineDevice, PoolEngine } from './block-engine-device.js';
import { checksumsJs } from './checksum-js.js';
import { NsdStore, type NsdStoreParts } from './nsd-store.js';

/** Something to make an NSD of. What is on it is lost. */
export interface NsdDeviceUnderTest {
  readonly path: string;
  readonly access: 'passthrough' | 'block' | 'file';
  close(): void | Promise<void>;
}

const UUID = '11111111-2222-4333-8444-555555555555';
const POOL_BYTES = 8 << 20;
const STAGING_SECTORS = 32;
const native = { sectors: crc32cSectors, bytes: crc32c };
const segment = (sector: number, count: number): PoolSegment => ({
  offsetBytes: sector * SECTOR_BYTES,
  lengthBytes: count * SECTOR_BYTES,
});

/**
 * One NSD on one device: the same for every kind of device that there is (a file, a namespace of this machine, one attached by NVMe over
 * Fabrics), over the device that the block engine picks for it. What lands there is looked at with dd.
 */
export function nsdDeviceSuite(kind: string, make: () => NsdDeviceUnderTest | Promise<NsdDeviceUnderTest>): void {
  describe(`an NSD on ${kind}`, () => {
    let under: NsdDeviceUnderTest;
    let pool: NativePagePool;
    let devices: PoolEngine;
    let parts: Omit<NsdStoreParts, 'device'>;

    beforeAll(async () => {
      under = await make();
    });
    afterAll(() => under?.close());
    beforeEach(() => {
      pool = createPagePool(POOL_BYTES);
      devices = new PoolEngine(new BlockEngine({ queueDepth: 32 }), pool);
      parts = { pool, checksums: native, staging: segment(0, STAGING_SECTORS) };
    });
    afterEach(async () => {
      await devices.close();
      pool.close();
    });

    const fill = (memory: PoolSegment): { bytes: Buffer; crcs: Uint32Array } => {
      const bytes = randomBytes(memory.lengthBytes);
      pool.bytes.set(bytes, memory.offsetBytes);
      const count = memory.lengthBytes / SECTOR_BYTES;
      const crcs = new Uint32Array(count);
      crc32cSectors(pool.bytes, memory.offsetBytes, count, crcs, 0);
      return { bytes, crcs };
    };
    const held = (memory: PoolSegment): Buffer =>
      Buffer.from(pool.bytes.slice(memory.offsetBytes, memory.offsetBytes + memory.lengthBytes));
    const dd = (offsetBytes: number, lengthBytes: number): Buffer => {
      const place = [`skip=${offsetBytes}`, `count=${lengthBytes}`, 'iflag=direct,skip_bytes,count_bytes'];
      return execFileSync('dd', [`if=${under.path}`, ...place, 'bs=64k', 'status=none'], { maxBuffer: 64 << 20 });
    };
    async function formatted(): Promise<{ store: NsdStore; device: BlockEngineDevice }> {
      const device = await devices.open(under.path);
      await NsdStore.format({ ...parts, device }, { uuid: UUID, clusterId: 'c', failureGroup: 1, name: 'n' });
      return { store: await NsdStore.open({ ...parts, device }, { uuid: UUID }), device };
    }

    it('is worked with in the best way that there is, and the handle says which', async () => {
      const { handle } = await devices.open(under.path, { readOnly: true });
      expect(handle.access).toBe(under.access);
      expect(handle.accessReason).not.toBe('');
      expect(SECTOR_BYTES % handle.logicalBlockBytes).toBe(0);
    });

    it('keeps what was written, in place, for other tools and after reopening', async () => {
      const { store, device } = await formatted();
      const memory = segment(64, 700);
      const { bytes, crcs } = fill(memory);
      await Promise.all(
        Array.from({ length: 70 }, (_, i) =>
          store.write(300 + i * 10, segment(64 + i * 10, 10), { crcs, index: i * 10 }),
        ),
      );
      await store.flush();
      expect(dd((store.geometry.dataStart + 300) * SECTOR_BYTES, memory.lengthBytes).equals(bytes)).toBe(true);
      await store.close();
      expect(device.handle.closed).toBe(true);
      // Both implementations of the checksum agree on what is there.
      const again = await NsdStore.open(
        { ...parts, checksums: checksumsJs, device: await devices.open(under.path) },
        { uuid: UUID },
      );
      pool.bytes.fill(0, memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
      await again.read(300, memory);
      expect(held(memory).equals(bytes)).toBe(true);
      await again.discard(300, 700);
      await again.read(300, memory);
      expect(held(memory).every((byte) => byte === 0)).toBe(true);
      await again.close();
    });

    it('gives every reader the last write, whatever runs beside it', async () => {
      const { store } = await formatted();
      const sectors = 256;
      const last = new Map<number, Buffer>();
      const lane = async (index: number): Promise<void> => {
        const memory = segment(64 + index * 32, 16);
        const landing = segment(64 + index * 32 + 16, 16);
        for (let round = 0; round < 12; round++) {
          // Each lane has its own sectors; the device and the checksum sectors are everybody's.
          const first = index * (sectors / 8) + (round % 3) * 8;
          const { bytes, crcs } = fill({ ...memory, lengthBytes: 8 * SECTOR_BYTES });
          await store.write(first, { ...memory, lengthBytes: 8 * SECTOR_BYTES }, { crcs });
          last.set(first, bytes);
          await store.read(first, { ...landing, lengthBytes: 8 * SECTOR_BYTES });
          if (!held({ ...landing, lengthBytes: 8 * SECTOR_BYTES }).equals(bytes)) throw new Error(`sector ${first}`);
        }
      };
      await Promise.all(Array.from({ length: 8 }, (_, index) => lane(index)));
      for (const [first, bytes] of last)
        expect(dd((store.geometry.dataStart + first) * SECTOR_BYTES, bytes.length).equals(bytes)).toBe(true);
      await store.close();
    });

    it('finds what somebody else changed on the device, and nothing else', async () => {
      const { store } = await formatted();
      const memory = segment(64, 8);
      const { bytes, crcs } = fill(memory);
      await store.write(10, memory, { crcs });
      await store.close();
      const raw = await devices.open(under.path);
      const place = (store.geometry.dataStart + 13) * SECTOR_BYTES;
      await raw.read(place, segment(80, 1));
      pool.bytes[80 * SECTOR_BYTES + 1000]! ^= 1;
      await raw.write(place, segment(80, 1));
      const again = await NsdStore.open({ ...parts, device: raw }, { uuid: UUID });
      await expect(again.read(10, memory)).rejects.toMatchObject({ reason: 'checksumMismatch', code: 'EIO' });
      await again.read(10, segment(64, 3));
      expect(held(segment(64, 3)).equals(bytes.subarray(0, 3 * SECTOR_BYTES))).toBe(true);
      await again.close();
    });

    it('reports the end of the device, and that it is closed, in the one error type', async () => {
      const device = await devices.open(under.path);
      const end = device.lengthBytes;
      await expect(device.read(end, segment(64, 2))).rejects.toMatchObject({ reason: 'shortIo', code: 'EIO' });
      if (under.access !== 'file')
        await expect(device.write(end, segment(64, 2))).rejects.toMatchObject({ reason: 'noSpace', code: 'ENOSPC' });
      await device.close();
      await expect(device.read(0, segment(64, 1))).rejects.toMatchObject({ reason: 'closed' });
    });
  });
}
