import { invariant } from '../common/assert.js';
import { chance, type Random } from '../common/random.js';

/**
 * What was done to a device, op by op, and what may be on it after a power cut at any moment: all that a completed flush has covered, and of
 * the rest each op wholly, in part (whole blocks of 512 bytes), or not at all, each for itself (S1, I8).
 *
 * Invariant: an op is covered by a flush that began after the op had ended, once that flush has ended; a durable write once
 * it has ended itself. Moments are counted in events: each op's
 * beginning is one and each op's end is one. An op that fails just never ends.
 */

/** Contents by chunk of 4096 bytes; what isn't there is zeros. Chunks are never changed in place, so images may share them. */
export type DeviceImage = Map<number, Uint8Array>;
export const IMAGE_CHUNK_BYTES = 4096;
export const TORN_BLOCK_BYTES = 512;

export type DeviceOp =
  | {
      readonly kind: 'write';
      readonly offsetBytes: number;
      readonly bytes: Uint8Array;
      /** Covered as soon as it has ended. */
      readonly durable?: boolean;
    }
  | { readonly kind: 'discard'; readonly offsetBytes: number; readonly lengthBytes: number }
  | { readonly kind: 'flush' };

interface Recorded {
  readonly op: DeviceOp;
  readonly begunAt: number;
  endedAt: number;
}

/** What a power cut makes of an op that no flush has covered: of a torn one, which of its blocks of 512 bytes are there. */
export type Fate = 'absent' | 'present' | ((block: number) => boolean);

export class DeviceRecord {
  #base: DeviceImage;
  #ops: Recorded[] = [];
  #events = 0;
  readonly #byEvent = new Map<number, Recorded>();

  constructor(base: DeviceImage = new Map()) {
    this.#base = new Map(base);
  }

  /** How many events there have been. */
  get events(): number {
    return this.#events;
  }

  /** The bytes are kept as they are. Returns what `end` wants. */
  begin(op: DeviceOp): number {
    const begunAt = ++this.#events;
    const recorded = { op, begunAt, endedAt: Number.POSITIVE_INFINITY };
    this.#ops.push(recorded);
    this.#byEvent.set(begunAt, recorded);
    return begunAt;
  }
  end(begun: number): void {
    const recorded = this.#byEvent.get(begun);
    // One that was settled at a power cut while it was under way.
    if (recorded === undefined) return;
    invariant(recorded.endedAt === Number.POSITIVE_INFINITY, 'an op of a device ended twice');
    recorded.endedAt = ++this.#events;
  }

  /** The op that began with this event, or null. */
  opAt(event: number): DeviceOp | null {
    return this.#byEvent.get(event)?.op ?? null;
  }

  /** Writes and discards of the first `events` events that no flush has covered, in order. */
  pending(events = this.#events): DeviceOp[] {
    const coveredUpTo = this.#coveredUpTo(events);
    return this.#changes(events).flatMap((one) => (isCovered(one, coveredUpTo, events) ? [] : [one.op]));
  }

  /** The device after a power cut after so many events; `fate` is asked for each pending op, in order. */
  imageAt(events: number, fate: (op: DeviceOp, index: number) => Fate): DeviceImage {
    const coveredUpTo = this.#coveredUpTo(events);
    const image = new Map(this.#base);
    let index = 0;
    for (const one of this.#changes(events))
      apply(image, one.op, isCovered(one, coveredUpTo, events) ? 'present' : fate(one.op, index++));
    return image;
  }

  /** Forgets what is covered; the moments before now can't be asked for any more. */
  compact(): void {
    const coveredUpTo = this.#coveredUpTo(this.#events);
    const kept: Recorded[] = [];
    for (const one of this.#ops) {
      const { op } = one;
      // Ops under way, and flushes that may still cover something.
      const over = op.kind === 'flush' ? one.endedAt < Number.POSITIVE_INFINITY : one.endedAt < coveredUpTo;
      if (!over) {
        kept.push(one);
        continue;
      }
      // In order, as far as places are shared: of two writes to one place the later one never ends before the earlier one.
      apply(this.#base, op, 'present');
      this.#byEvent.delete(one.begunAt);
    }
    this.#ops = kept;
  }

  /** The power is cut now: what is there from here on, durably. */
  cut(fate: (op: DeviceOp, index: number) => Fate): DeviceImage {
    this.#base = this.imageAt(this.#events, fate);
    this.#ops = [];
    this.#byEvent.clear();
    return new Map(this.#base);
  }

  /** Ops that ended before this event are covered. */
  #coveredUpTo(events: number): number {
    let upTo = 0;
    for (const { op, begunAt, endedAt } of this.#ops)
      if (op.kind === 'flush' && endedAt <= events) upTo = Math.max(upTo, begunAt);
    return upTo;
  }
  #changes(events: number): Recorded[] {
    return this.#ops.filter(({ op, begunAt }) => op.kind !== 'flush' && begunAt <= events);
  }
}

const isCovered = ({ op, endedAt }: Recorded, coveredUpTo: number, events: number): boolean =>
  endedAt < coveredUpTo || (op.kind === 'write' && op.durable === true && endedAt <= events);

function apply(image: DeviceImage, op: DeviceOp, fate: Fate): void {
  if (op.kind === 'flush' || fate === 'absent') return;
  const lengthBytes = op.kind === 'write' ? op.bytes.length : op.lengthBytes;
  for (let at = 0; at < lengthBytes; at += TORN_BLOCK_BYTES) {
    if (fate !== 'present' && !fate(at / TORN_BLOCK_BYTES)) continue;
    const position = op.offsetBytes + at;
    const chunkAt = Math.floor(position / IMAGE_CHUNK_BYTES) * IMAGE_CHUNK_BYTES;
    const whole = fate === 'present' && position === chunkAt && lengthBytes - at >= IMAGE_CHUNK_BYTES;
    if (whole) {
      if (op.kind === 'discard') image.delete(chunkAt);
      else image.set(chunkAt, op.bytes.slice(at, at + IMAGE_CHUNK_BYTES));
      at += IMAGE_CHUNK_BYTES - TORN_BLOCK_BYTES;
      continue;
    }
    const chunk = image.get(chunkAt)?.slice() ?? new Uint8Array(IMAGE_CHUNK_BYTES);
    const end = Math.min(at + TORN_BLOCK_BYTES, lengthBytes);
    if (op.kind === 'discard') chunk.fill(0, position - chunkAt, position - chunkAt + end - at);
    else chunk.set(op.bytes.subarray(at, end), position - chunkAt);
    image.set(chunkAt, chunk);
  }
}

/** Each pending op for itself: there, not there, or torn. How much survives at all differs from cut to cut. */
export function randomFates(random: Random): (op: DeviceOp) => Fate {
  const survival = random.next();
  return () => {
    if (chance(random, 0.3)) {
      const seed = Math.floor(random.next() * 2 ** 32);
      // A block of one op is asked for once in an image, and must be the same in another image of the same fates.
      return (block) => Math.imul(seed ^ (block + 1), 0x9e3779b1) >>> 31 === 1;
    }
    return chance(random, survival) ? 'present' : 'absent';
  };
}

/** The same of a device that never tears a chunk: each of an op's chunks is there or not. */
export function sectorFates(random: Random): (op: DeviceOp) => Fate {
  const fates = randomFates(random);
  return (op) => {
    const fate = fates(op);
    return typeof fate === 'function' ? (block) => fate(block - (block % BLOCKS_PER_CHUNK)) : fate;
  };
}
const BLOCKS_PER_CHUNK = IMAGE_CHUNK_BYTES / TORN_BLOCK_BYTES;

/** Of `count` pending ops: none, all, each one alone, all but each one. */
export function extremeFates(count: number): ((op: DeviceOp, index: number) => Fate)[] {
  const is = (there: boolean): Fate => (there ? 'present' : 'absent');
  const fates = [() => is(false)] as ((op: DeviceOp, index: number) => Fate)[];
  if (count > 0) fates.push(() => is(true));
  // With one or two of them these are the same again.
  if (count > 1) for (let i = 0; i < count; i++) fates.push((_, index) => is(index === i));
  if (count > 2) for (let i = 0; i < count; i++) fates.push((_, index) => is(index !== i));
  return fates;
}
