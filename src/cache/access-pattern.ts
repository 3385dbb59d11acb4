import type { ByteRange } from '../common/byte-range.js';
import { PAGE_BYTES } from '../common/units.js';

/**
 * What a file's accesses foretell: streams of reads (forward, reverse, strided; several at a time), and of writes.
 *
 * Pure. It sees the reads that come to the engine only, not the hits; a stream therefore goes on when a read arrives anywhere
 * between its last read and its frontier, the end of what was fetched ahead (after Linux's ondemand read-ahead, Fengguang Wu
 * et al., OLS 2007, whose marker page is our withheld page). A stream begins with a read at offset 0, with two reads that
 * touch (three for reverse), or with three equal distances between reads of one length: chance gives these rarely.
 */
export interface ReadStream {
  readonly kind: 'forward' | 'reverse' | 'stride';
  /** The last read that came to the engine. */
  start: number;
  end: number;
  /** Distance from record to record, negative when it goes backwards; 0 unless strided. */
  readonly strideBytes: number;
  /** forward: end of what is fetched; reverse: its start; stride: start of the last record fetched. */
  frontier: number;
  windowBytes: number;
  /** forward: the page kept from hits, so that the reader who arrives there comes to the engine; -1: none. */
  withheldPage: number;
}

interface WriteStream {
  end: number;
  /** End of what was prepared for write hits: one of them may have brought the writer anywhere up to here. */
  preparedEnd: number;
}

const HISTORY_MAX = 8;
const STREAMS_MAX = 8;
const WRITE_STREAMS_MAX = 4;
const WINDOW_START_BYTES = 8 * PAGE_BYTES;
const WINDOW_MIN_BYTES = 2 * PAGE_BYTES;
const STRIDE_MAX_BYTES = 1 << 28;

export type Advice = 'normal' | 'sequential' | 'random';

export class AccessPattern {
  advice: Advice = 'normal';
  /** The latest first. */
  #history: ByteRange[] = [];
  #streams: ReadStream[] = [];
  #writes: WriteStream[] = [];

  /** The stream that the read belongs to, with the read taken in; null when it looks random. */
  noteRead(read: ByteRange): ReadStream | null {
    if (this.advice === 'random') return null;
    const known = this.#continued(read);
    const stream = known ?? this.#begun(read);
    if (known === null) {
      this.#history.unshift(read);
      if (this.#history.length > HISTORY_MAX) this.#history.pop();
    }
    if (stream === null) return null;
    stream.start = read.start;
    stream.end = read.end;
    if (stream.kind === 'forward') stream.frontier = Math.max(stream.frontier, read.end);
    if (stream.kind === 'reverse') stream.frontier = Math.min(stream.frontier, read.start);
    this.#streams = [stream, ...this.#streams.filter((other) => other !== stream)].slice(0, STREAMS_MAX);
    return stream;
  }

  /** True when the write goes on where one before it ended. */
  noteWrite(write: ByteRange): boolean {
    const stream = this.#writes.find((w) => write.start >= w.end && write.start <= w.preparedEnd);
    const next = { end: write.end, preparedEnd: Math.max(write.end, stream?.preparedEnd ?? 0) };
    this.#writes = [next, ...this.#writes.filter((w) => w !== stream && w.end !== write.end)].slice(
      0,
      WRITE_STREAMS_MAX,
    );
    return stream !== undefined;
  }
  prepared(endBytes: number): void {
    const latest = this.#writes[0];
    if (latest !== undefined) latest.preparedEnd = Math.max(latest.preparedEnd, endBytes);
  }

  /** An operation at this offset would go on with a stream towards the end of the file. */
  isSequentialAt(offset: number): boolean {
    if (this.advice === 'sequential') return true;
    for (const s of this.#streams) if (s.kind === 'forward' && s.start <= offset && offset <= s.frontier) return true;
    for (const w of this.#writes) if (w.end <= offset && offset <= w.preparedEnd) return true;
    return false;
  }

  /** What was fetched ahead was thrown away unused: look less far ahead, in the end not at all. */
  penalize(): void {
    for (const stream of this.#streams) stream.windowBytes = Math.floor(stream.windowBytes / 2);
    this.#streams = this.#streams.filter((stream) => stream.windowBytes >= WINDOW_MIN_BYTES);
  }

  /** From where the file is being used to where that is expected to lead soon, around the latest operation. */
  working(latest: ByteRange, windowBytes: number): ByteRange {
    for (const stream of this.#streams) {
      if (stream.start < latest.start || stream.start >= latest.end) continue;
      if (stream.kind === 'forward') return { start: latest.start, end: stream.frontier + windowBytes };
      if (stream.kind === 'reverse') return { start: Math.max(0, stream.frontier - windowBytes), end: latest.end };
      const reach = stream.frontier + stream.strideBytes;
      return { start: Math.max(0, Math.min(latest.start, reach)), end: Math.max(latest.end, reach) };
    }
    for (const stream of this.#writes) {
      const isLatest = latest.start < stream.end && stream.end <= latest.end;
      const isBehind = stream.end <= latest.start && latest.start < stream.preparedEnd;
      if (isLatest || isBehind) return { start: latest.start, end: stream.preparedEnd + windowBytes };
    }
    return latest;
  }

  #continued(read: ByteRange): ReadStream | null {
    for (const stream of this.#streams) {
      if (stream.kind === 'forward' && stream.start < read.start && read.start <= stream.frontier) return stream;
      if (stream.kind === 'reverse' && stream.frontier <= read.end && read.end < stream.end) return stream;
      if (stream.kind === 'stride') {
        const steps = (read.start - stream.start) / stream.strideBytes;
        const ahead = (stream.frontier - stream.start) / stream.strideBytes;
        if (Number.isInteger(steps) && steps >= 1 && steps <= ahead + 1) return stream;
      }
    }
    return null;
  }

  #begun(read: ByteRange): ReadStream | null {
    const lengthBytes = read.end - read.start;
    const windowBytes = Math.max(WINDOW_START_BYTES, 2 * lengthBytes);
    const stream = (kind: ReadStream['kind'], frontier: number, strideBytes = 0): ReadStream => ({
      kind,
      start: read.start,
      end: read.end,
      strideBytes,
      frontier,
      windowBytes,
      withheldPage: -1,
    });
    if (read.start === 0 || this.advice === 'sequential' || this.#history.some((h) => h.end === read.start))
      return stream('forward', read.end);
    const behind = this.#history.find((h) => h.start === read.end);
    if (behind !== undefined && this.#history.some((h) => h.start === behind.end)) return stream('reverse', read.start);
    for (const { start } of this.#history) {
      const distance = read.start - start;
      if (Math.abs(distance) <= lengthBytes || Math.abs(distance) > STRIDE_MAX_BYTES) continue;
      const steps = [1, 2, 3].map((step) => read.start - step * distance);
      const isRecord = (at: number): boolean =>
        this.#history.some((h) => h.start === at && h.end - h.start === lengthBytes);
      if (steps.every(isRecord)) return stream('stride', read.start, distance);
    }
    return null;
  }
}
