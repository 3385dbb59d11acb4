/** The order of keys by which records of one sector come together: a radix sort (Knuth, volume 3, 5.2.5), since there may be a million of them. Pure. */

const DIGIT_BITS = 11;
const DIGITS = 1 << DIGIT_BITS;
const HALF = 2 ** 32;
/** Of fewer it is not worth its counters. */
const FEW = 256;

/** Indices of keys (integers up to 2^53), ascending by key; of equal keys the first comes first. */
export function keyOrder(keys: Float64Array): Uint32Array {
  const count = keys.length;
  let order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[i] = i;
  if (count < FEW) return order.sort((a, b) => keys[a]! - keys[b]! || a - b);
  const low = new Uint32Array(count);
  const high = new Uint32Array(count);
  let lowDiffers = 0;
  let highDiffers = 0;
  for (let i = 0; i < count; i++) {
    const key = keys[i]!;
    high[i] = key / HALF;
    low[i] = key - high[i]! * HALF;
    lowDiffers |= low[i]! ^ low[0]!;
    highDiffers |= high[i]! ^ high[0]!;
  }
  let other = new Uint32Array(count);
  const starts = new Uint32Array(DIGITS);
  for (const [words, differs] of [[low, lowDiffers] as const, [high, highDiffers] as const])
    for (let shift = 0; shift < 32; shift += DIGIT_BITS) {
      // In this digit they are all the same.
      if (((differs >>> shift) & (DIGITS - 1)) === 0) continue;
      starts.fill(0);
      for (let i = 0; i < count; i++) starts[(words[i]! >>> shift) & (DIGITS - 1)]!++;
      for (let digit = 0, sum = 0; digit < DIGITS; digit++) {
        const here = starts[digit]!;
        starts[digit] = sum;
        sum += here;
      }
      for (let i = 0; i < count; i++) {
        const index = order[i]!;
        other[starts[(words[index]! >>> shift) & (DIGITS - 1)]!++] = index;
      }
      [order, other] = [other, order];
    }
  return order;
}
