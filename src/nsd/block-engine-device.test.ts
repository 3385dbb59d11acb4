import fs from 'node:fs';
import path from 'node:path';
import { BlockEngine } from 'napi-nvme';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SECTOR_BYTES } from '../common/units.js';
import { crc32c, crc32cSectors, createPagePool, type NativePagePool } from '../native/core.js';
import { PoolEngine } from './block-engine-device.js';
import { checksumsJs } from './checksum-js.js';
import { NsdStore } from './nsd-store.js';

const UUID = '11111111-2222-4333-8444-555555555555';
const POOL_BYTES = 4 << 20;

let directory: string;
let pool: NativePagePool;
let devices: PoolEngine;

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(process.cwd(), 'node_modules', '.nsd-test-'));
  pool = createPagePool(POOL_BYTES);
  devices = new PoolEngine(new BlockEngine({ queueDepth: 32 }), pool);
});
afterEach(async () => {
  await devices.close();
  pool.close();
  fs.rmSync(directory, { recursive: true, force: true });
});

function sparseFile(lengthBytes: number): string {
  const file = path.join(directory, 'device');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, lengthBytes);
  return file;
}
const segment = (sector: number, count: number): { offsetBytes: number; lengthBytes: number } => ({
  offsetBytes: sector * SECTOR_BYTES,
  lengthBytes: count * SECTOR_BYTES,
});

describe('an NSD on a device of this machine', () => {
  it('S4: is refused as busy, naming the process, while somebody else has the lock on it', async () => {
    const file = sparseFile(1 << 20);
    const first = await devices.open(file, { lock: true });
    await expect(devices.open(file, { lock: true })).rejects.toMatchObject({
      reason: 'busy',
      object: file,
      detail: expect.stringContaining(`process ${process.pid} (`) as string,
    });
    await first.close();
    await (await devices.open(file, { lock: true })).close();
  });

  it('keeps what was written, through the native pool and checksums, over a reopening by other means', async () => {
    const file = sparseFile(16 << 20);
    const parts = { pool, staging: segment(0, 32) };
    const device = await devices.open(file);
    await NsdStore.format(
      { ...parts, device, checksums: { sectors: crc32cSectors, bytes: crc32c } },
      { uuid: UUID, clusterId: 'c', failureGroup: 1, name: 'n' },
    );
    const store = await NsdStore.open(
      { ...parts, device, checksums: { sectors: crc32cSectors, bytes: crc32c } },
      { uuid: UUID },
    );
    const memory = segment(64, 500);
    for (let i = 0; i < memory.lengthBytes; i += 4)
      new DataView(pool.buffer).setUint32(memory.offsetBytes + i, i, true);
    const crcs = new Uint32Array(500);
    crc32cSectors(pool.bytes, memory.offsetBytes, 500, crcs, 0);
    const written = pool.bytes.slice(memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
    await Promise.all(
      Array.from({ length: 50 }, (_, i) =>
        store.write(300 + i * 10, segment(64 + i * 10, 10), { crcs, index: i * 10 }),
      ),
    );
    await store.flush();
    await store.close();

    // The other checksum implementation, so that both agree on what is on the disk.
    const again = await NsdStore.open(
      { ...parts, device: await devices.open(file), checksums: checksumsJs },
      { uuid: UUID },
    );
    pool.bytes.fill(0, memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
    await again.read(300, memory);
    const read = pool.bytes.subarray(memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
    expect(Buffer.from(read).equals(Buffer.from(written))).toBe(true);
    await again.discard(300, 500);
    await again.read(300, memory);
    expect(read.every((byte) => byte === 0)).toBe(true);
    await again.close();
  });

  it('reports the device’s errors in the one error type, naming errno, place and device', async () => {
    const file = sparseFile(1 << 20);
    await expect(devices.open(path.join(directory, 'none'))).rejects.toMatchObject({
      reason: 'notFound',
      code: 'ENOENT',
    });
    const readOnly = await devices.open(file, { readOnly: true });
    await expect(readOnly.write(0, segment(0, 1))).rejects.toMatchObject({ reason: 'readOnly', object: file });
    await expect(readOnly.read(1 << 20, segment(0, 1))).rejects.toMatchObject({ reason: 'shortIo', code: 'EIO' });
    const memory = await devices.open('/proc/self/mem', { readOnly: true });
    await expect(memory.read(0, segment(0, 1))).rejects.toMatchObject({
      reason: 'deviceError',
      detail: expect.stringContaining('EIO: the device failed, read of 4096 bytes at 0'),
    });
    await readOnly.close();
    await expect(readOnly.read(0, segment(0, 1))).rejects.toMatchObject({ reason: 'closed' });
  });
});
