import { below, type Random, SeededRandom } from '../../common/random.js';
import { type DeviceImage, type DeviceOp, extremeFates, type Fate, randomFates } from '../../nsd/device-record.js';
import type { Moment, Recording } from './run-workload.js';
import { checksums } from './stack.js';

/**
 * What may be on the disks after a power cut at a moment: all that a flush has covered, and of the rest any part, whatever the order in which it was written.
 */
export interface CrashState {
  readonly images: readonly DeviceImage[];
  /** The same for the same bytes on all disks. */
  readonly key: string;
  /** Some write is there in part. */
  readonly torn: boolean;
  readonly name: string;
}

export interface Depth {
  /** 2: none and all of the unflushed writes are there, both at each moment; 1: one of the two, in turns; 0: neither. */
  readonly extremes: 0 | 1 | 2;
  /** Fates drawn for each moment. */
  readonly random: number;
  /** Each unflushed write alone, and all but each: where there are no more of them than this. */
  readonly aloneMax: number;
}

type DrawFate = (op: DeviceOp, index: number) => Fate;

export function* statesAt(
  { records }: Recording,
  moment: Moment,
  base: readonly DeviceImage[],
  depth: Depth,
  random: Random,
): Generator<CrashState> {
  const counts = records.map((record, disk) => record.pending(moment.events[disk]!).length);
  const pending = counts.reduce((sum, count) => sum + count, 0);
  const turn = below(random, 2);
  const fates: { readonly name: string; readonly fate: DrawFate }[] = [];
  // None and all of them, then each alone, then all but each.
  const extremes = extremeFates(pending);
  const isWanted = (index: number): boolean =>
    pending === 0 ||
    (index >= 2 ? pending <= depth.aloneMax : depth.extremes === 2 || (depth.extremes === 1 && index === turn));
  extremes.forEach((fate, index) => {
    if (isWanted(index)) fates.push({ name: `extreme ${index}`, fate });
  });
  if (pending > 0)
    for (let i = 0; i < depth.random; i++) {
      const seed = below(random, 2 ** 32);
      fates.push({ name: `random ${seed}`, fate: randomFates(new SeededRandom(seed)) });
    }
  for (const { name, fate } of fates) {
    let before = 0;
    let torn = false;
    const images = records.map((record, disk) => {
      const offset = before;
      before += counts[disk]!;
      return record.imageAt(moment.events[disk]!, (op, index) => {
        const drawn = fate(op, offset + index);
        torn ||= typeof drawn === 'function';
        return drawn;
      });
    });
    yield { images, key: keyOf(images, base), torn, name };
  }
}

/** Where an image differs from what all began with, and by what. */
function keyOf(images: readonly DeviceImage[], base: readonly DeviceImage[]): string {
  const parts: string[] = [];
  images.forEach((image, disk) => {
    const before = base[disk]!;
    for (const [at, chunk] of image)
      if (before.get(at) !== chunk) parts.push(`${disk}.${at}.${checksums.bytes(chunk)}`);
    for (const at of before.keys()) if (!image.has(at)) parts.push(`${disk}.${at}.-`);
  });
  return parts.sort().join(' ');
}
