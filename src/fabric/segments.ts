import type { PoolSegment } from '../native/page-pool.js';

/** Scatter lists: pieces of a pool, in the order in which their bytes follow one another. */

/** The part [offset, offset + length) of a scatter list. */
export function slice(segments: readonly PoolSegment[], offsetBytes: number, lengthBytes: number): PoolSegment[] {
  const out: PoolSegment[] = [];
  for (const segment of segments) {
    if (lengthBytes === 0) break;
    if (offsetBytes >= segment.lengthBytes) {
      offsetBytes -= segment.lengthBytes;
      continue;
    }
    const take = Math.min(segment.lengthBytes - offsetBytes, lengthBytes);
    out.push({ offsetBytes: segment.offsetBytes + offsetBytes, lengthBytes: take });
    offsetBytes = 0;
    lengthBytes -= take;
  }
  return out;
}

/** Copies between two scatter lists of equal length. */
export function copySegments(
  from: Uint8Array,
  source: readonly PoolSegment[],
  to: Uint8Array,
  target: readonly PoolSegment[],
): void {
  let t = 0;
  let targetOffset = 0;
  for (const segment of source) {
    let done = 0;
    while (done < segment.lengthBytes) {
      const into = target[t]!;
      const take = Math.min(segment.lengthBytes - done, into.lengthBytes - targetOffset);
      const start = segment.offsetBytes + done;
      to.set(from.subarray(start, start + take), into.offsetBytes + targetOffset);
      done += take;
      targetOffset += take;
      if (targetOffset === into.lengthBytes) {
        t++;
        targetOffset = 0;
      }
    }
  }
}
