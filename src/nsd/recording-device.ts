import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { DeviceImage, DeviceRecord } from './device-record.js';
import { IMAGE_CHUNK_BYTES } from './device-record.js';
import type { BlockDevice } from './nsd-api.js';

/** A device whose every write, discard and flush goes into a record on its way to another device. */
export class RecordingDevice implements BlockDevice {
  constructor(
    private readonly inner: BlockDevice,
    private readonly pool: PagePool,
    private readonly record: DeviceRecord,
  ) {}

  get lengthBytes(): number {
    return this.inner.lengthBytes;
  }
  get keeper(): string | undefined {
    return this.inner.keeper;
  }
  get logicalBlockBytes(): number {
    return this.inner.logicalBlockBytes;
  }
  read(offsetBytes: number, memory: PoolSegment): Promise<void> {
    return this.inner.read(offsetBytes, memory);
  }
  async write(offsetBytes: number, memory: PoolSegment, durable = false): Promise<void> {
    const bytes = this.pool.bytes.slice(memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
    const begun = this.record.begin({ kind: 'write', offsetBytes, bytes, durable });
    await this.inner.write(offsetBytes, memory, durable);
    this.record.end(begun);
  }
  async flush(): Promise<void> {
    const begun = this.record.begin({ kind: 'flush' });
    await this.inner.flush();
    this.record.end(begun);
  }
  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    const begun = this.record.begin({ kind: 'discard', offsetBytes, lengthBytes });
    await this.inner.discard(offsetBytes, lengthBytes);
    this.record.end(begun);
  }
  close(): Promise<void> {
    return this.inner.close();
  }
}

/** What is on a device now, as the base of a record. */
export function imageOf(bytes: Uint8Array): DeviceImage {
  const image: DeviceImage = new Map();
  for (let at = 0; at < bytes.length; at += IMAGE_CHUNK_BYTES) {
    const chunk = bytes.slice(at, at + IMAGE_CHUNK_BYTES);
    if (chunk.some((byte) => byte !== 0)) image.set(at, chunk);
  }
  return image;
}
