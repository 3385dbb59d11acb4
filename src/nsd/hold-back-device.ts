import { invariant } from '../common/assert.js';
import { chance, pick, type Random } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { BlockDevice } from './nsd-api.js';

/**
 * The fault port of an NSD engine that is going to be killed, for tests only: a volatile write cache in this process, in front of a device. Unflushed writes
 * are held in memory; reads see them; a flush puts them on the device and flushes that, and a durable write
 * does so with its own. At moments that the random source picks, some held
 * sector goes out early, wholly, or torn between its blocks of 512 bytes, in no order. So kill -9, which costs a bare device nothing
 * (the kernel keeps its pages), loses or tears a random part of what was not flushed, as a power cut does.
 *
 * Invariants: what had ended before a flush began is on the device when the flush has ended; a read never sees anything but the last write that had
 * ended before the read began, or a write beside it. What is held is bounded: beyond `heldBytesMax` sectors go out as they are.
 * Fault model: a device that fails when a sector goes out early is asked again at the flush, whose error it then is.
 */
export interface HoldBackOptions {
  readonly random: Random;
  /** How likely an operation sends a held sector out early. */
  readonly earlyChance?: number;
  readonly heldBytesMax?: number;
}

/** One sector as it was last written; never changed in place. */
type Held = Uint8Array;
const EARLY_CHANCE_DEFAULT = 0.05;
const HELD_BYTES_MAX_DEFAULT = 64 << 20;
const TORN_BLOCK_BYTES = 512;

export class HoldBackDevice implements BlockDevice {
  /** By device sector; the order is that of the last write. */
  readonly #held = new Map<number, Held>();
  readonly #random: Random;
  readonly #earlyChance: number;
  readonly #heldMax: number;
  /** What uses the scratch memory, one after the other. */
  #line: Promise<void> = Promise.resolve();

  constructor(
    private readonly inner: BlockDevice,
    private readonly pool: PagePool,
    /** Whole sectors of the pool that are this device's own. */
    private readonly scratch: PoolSegment,
    options: HoldBackOptions,
  ) {
    this.#random = options.random;
    this.#earlyChance = options.earlyChance ?? EARLY_CHANCE_DEFAULT;
    this.#heldMax = Math.floor((options.heldBytesMax ?? HELD_BYTES_MAX_DEFAULT) / SECTOR_BYTES);
  }

  get lengthBytes(): number {
    return this.inner.lengthBytes;
  }
  get logicalBlockBytes(): number {
    return this.inner.logicalBlockBytes;
  }
  get heldBytes(): number {
    return this.#held.size * SECTOR_BYTES;
  }

  async read(offsetBytes: number, memory: PoolSegment): Promise<void> {
    const sectors = sectorsOf(offsetBytes, memory.lengthBytes);
    // What goes out while the device is read may be in neither place when the read looks for it.
    const before = sectors.map((sector) => this.#held.get(sector));
    await this.inner.read(offsetBytes, memory);
    for (const [i, sector] of sectors.entries()) {
      const bytes = this.#held.get(sector) ?? before[i];
      if (bytes !== undefined) this.pool.bytes.set(bytes, memory.offsetBytes + i * SECTOR_BYTES);
    }
    await this.#perhapsEarly();
  }

  async write(offsetBytes: number, memory: PoolSegment, durable = false): Promise<void> {
    const written: [number, Held][] = [];
    for (const [i, sector] of sectorsOf(offsetBytes, memory.lengthBytes).entries()) {
      const at = memory.offsetBytes + i * SECTOR_BYTES;
      const bytes = this.pool.bytes.slice(at, at + SECTOR_BYTES);
      this.#held.delete(sector);
      this.#held.set(sector, bytes);
      written.push([sector, bytes]);
    }
    await this.#perhapsEarly();
    if (durable) {
      await this.#alone(() => this.#out(written));
      await this.inner.flush();
      return;
    }
    if (this.#held.size > this.#heldMax)
      await this.#alone(() => this.#out([...this.#held].slice(0, this.#heldMax / 2)));
  }

  async flush(): Promise<void> {
    await this.#alone(() => this.#out([...this.#held]));
    await this.inner.flush();
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    for (const sector of sectorsOf(offsetBytes, lengthBytes)) this.#held.delete(sector);
    // After what is on its way out of the same place.
    await this.#alone(() => this.inner.discard(offsetBytes, lengthBytes));
  }

  async close(): Promise<void> {
    await this.#line;
    await this.inner.close();
  }

  #alone(work: () => Promise<void>): Promise<void> {
    const done = this.#line.then(work);
    this.#line = done.catch(() => undefined);
    return done;
  }

  /** Onto the device, in runs of neighbours; a sector that was written again meanwhile stays held. */
  async #out(some: readonly (readonly [number, Held])[]): Promise<void> {
    const sorted = some.toSorted(([a], [b]) => a - b);
    const atOnce = this.scratch.lengthBytes / SECTOR_BYTES;
    for (let first = 0; first < sorted.length; ) {
      const start = sorted[first]![0];
      let count = 0;
      while (count < atOnce && sorted[first + count]?.[0] === start + count) {
        this.pool.bytes.set(sorted[first + count]![1], this.scratch.offsetBytes + count * SECTOR_BYTES);
        count++;
      }
      const memory = { offsetBytes: this.scratch.offsetBytes, lengthBytes: count * SECTOR_BYTES };
      await this.inner.write(start * SECTOR_BYTES, memory);
      for (const [sector, bytes] of sorted.slice(first, first + count))
        if (this.#held.get(sector) === bytes) this.#held.delete(sector);
      first += count;
    }
  }

  async #perhapsEarly(): Promise<void> {
    if (this.#held.size === 0 || !chance(this.#random, this.#earlyChance)) return;
    const [sector, bytes] = pick(this.#random, [...this.#held]);
    const torn = chance(this.#random, 0.5);
    const blocks = Array.from({ length: SECTOR_BYTES / TORN_BLOCK_BYTES }, () => chance(this.#random, 0.5));
    await this.#alone(async () => {
      // Written again, or out, meanwhile.
      if (this.#held.get(sector) !== bytes) return;
      if (torn) await this.#tear(sector, bytes, blocks);
      else await this.#out([[sector, bytes]]);
    }).catch(() => undefined);
  }

  /** Some of its blocks; the sector stays held. */
  async #tear(sector: number, bytes: Held, blocks: readonly boolean[]): Promise<void> {
    const memory = { offsetBytes: this.scratch.offsetBytes, lengthBytes: SECTOR_BYTES };
    await this.inner.read(sector * SECTOR_BYTES, memory);
    for (const [block, there] of blocks.entries()) {
      if (!there) continue;
      const at = block * TORN_BLOCK_BYTES;
      this.pool.bytes.set(bytes.subarray(at, at + TORN_BLOCK_BYTES), memory.offsetBytes + at);
    }
    await this.inner.write(sector * SECTOR_BYTES, memory);
  }
}

function sectorsOf(offsetBytes: number, lengthBytes: number): number[] {
  invariant(offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0, 'an NSD works in whole sectors');
  return Array.from({ length: lengthBytes / SECTOR_BYTES }, (_, i) => offsetBytes / SECTOR_BYTES + i);
}
