import type { PagePool, PoolSegment } from '../../native/page-pool.js';
import { type DeviceImage, IMAGE_CHUNK_BYTES } from '../../nsd/device-record.js';
import type { BlockDevice } from '../../nsd/nsd-api.js';

/** A disk that begins with an image, shares its chunks with it and with others, and takes no time. */
export class ImageDevice implements BlockDevice {
  readonly logicalBlockBytes = 512;
  readonly #chunks: DeviceImage;

  constructor(
    readonly lengthBytes: number,
    private readonly pool: PagePool,
    image: DeviceImage,
  ) {
    this.#chunks = new Map(image);
  }

  async read(offsetBytes: number, { offsetBytes: target, lengthBytes }: PoolSegment): Promise<void> {
    for (let done = 0; done < lengthBytes; done += IMAGE_CHUNK_BYTES) {
      const chunk = this.#chunks.get(offsetBytes + done);
      if (chunk === undefined) this.pool.bytes.fill(0, target + done, target + done + IMAGE_CHUNK_BYTES);
      else this.pool.bytes.set(chunk, target + done);
    }
  }
  async write(offsetBytes: number, { offsetBytes: source, lengthBytes }: PoolSegment): Promise<void> {
    for (let done = 0; done < lengthBytes; done += IMAGE_CHUNK_BYTES)
      this.#chunks.set(offsetBytes + done, this.pool.bytes.slice(source + done, source + done + IMAGE_CHUNK_BYTES));
  }
  async flush(): Promise<void> {}
  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += IMAGE_CHUNK_BYTES) this.#chunks.delete(at);
  }
  async close(): Promise<void> {}

  image(): DeviceImage {
    return this.#chunks;
  }
}
