/**
 * Read-ahead of inodes: who looks at inodes in ascending order (a listing with attributes, an archiver, a search) finds the tokens of the next runs
 * granted and their inodes read when he gets there, with one request, one revocation and one read for more and more of them.
 *
 * Owns: the streams, each where somebody goes on, and what is under way for them. Nothing depends on what it brings; it pins one sector, as a stat does,
 * and waits for a bounded time. A stream ends where numbers are free, as whoever creates is at work there.
 * Fault model: what fails ahead is counted (`fs.inodeAheadFailures`), and met again by whoever needs the inode. Counter: `fs.inodesAhead`.
 */
import { range } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, inodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { INODES_PER_SEGMENT, TokenClass, TokenMode } from '../token-manager/token.js';
import { segmentOf } from './layout.js';
import type { Volume } from './volume.js';

const STREAMS_MAX = 16;
/** At once, of all streams. */
const FETCHES_MAX = 8;
/** Runs asked for at a time: twice as many each time, up to this. */
const RUNS_MAX = 4;
/** Operations side by side don't come in order. */
const RUNS_BACK = 4;
const TIMEOUT_MS = 2_000;

/** All in runs. */
interface Stream {
  /** The farthest that was looked at. */
  last: number;
  /** Everything before it was looked at or has been asked for. */
  askedTo: number;
  /** Whoever gets here needs more soon. */
  trigger: number;
  /** To be asked for next time. */
  runs: number;
  ended: boolean;
}

export class InodeAhead {
  readonly #volume: Volume;
  /** The one that was used last at the end. */
  readonly #streams: Stream[] = [];
  readonly #fetches = new Set<Promise<void>>();
  #lastRun = -1;

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  /** Somebody looks at an inode's attributes. */
  looked(ino: InodeNumber): void {
    const { inodeRun } = this.#volume.settings;
    const run = Math.floor(ino / inodeRun);
    if (run === this.#lastRun) return;
    this.#lastRun = run;
    const at = this.#streams.findIndex(({ last, askedTo }) => last - RUNS_BACK <= run && run <= askedTo);
    const known = at < 0 ? undefined : this.#streams.splice(at, 1)[0];
    const stream = known ?? { last: run, askedTo: run + 1, trigger: run + 1, runs: 1, ended: false };
    this.#streams.push(stream);
    if (this.#streams.length > STREAMS_MAX) this.#streams.shift();
    stream.last = Math.max(stream.last, run);
    if (run < stream.trigger || stream.ended || this.#volume.closed || this.#fetches.size >= FETCHES_MAX) return;
    const first = Math.max(stream.askedTo, run + 1);
    stream.trigger = first;
    // Tokens of one segment are one object's.
    const runsPerSegment = INODES_PER_SEGMENT / inodeRun;
    const segmentEnd = (Math.floor(first / runsPerSegment) + 1) * runsPerSegment;
    stream.askedTo = Math.min(first + stream.runs, segmentEnd);
    stream.runs = Math.min(2 * stream.runs, RUNS_MAX);
    this.#start(stream, inodeNumber(first * inodeRun), stream.askedTo * inodeRun);
  }

  /** Nothing is under way any more; nothing begins on a volume that is closed. */
  async idle(): Promise<void> {
    await Promise.all([...this.#fetches]);
  }

  #start(stream: Stream, first: InodeNumber, end: number): void {
    const fetch = this.#fetch(stream, first, end)
      .catch((error: unknown) => {
        if (!FsError.is(error)) throw error;
        this.#volume.counters.add('fs.inodeAheadFailures');
      })
      .finally(() => this.#fetches.delete(fetch));
    this.#fetches.add(fetch);
  }

  async #fetch(stream: Stream, first: InodeNumber, end: number): Promise<void> {
    const { inodes, parts, counters } = this.#volume;
    if ((await inodes.find(first)) === null) {
      stream.ended = true;
      return;
    }
    const [from, to] = [first * SECTOR_BYTES, end * SECTOR_BYTES];
    const required = range(from, from + SECTOR_BYTES);
    const item = { class: TokenClass.status, object: segmentOf(first), mode: TokenMode.shared, required };
    const pins = await parts.tokens.acquire([{ ...item, desired: range(from, to) }], { timeoutMs: TIMEOUT_MS });
    try {
      if (!(await inodes.readAhead(first, end))) stream.ended = true;
      counters.add('fs.inodesAhead', end - first);
    } finally {
      pins.release();
    }
  }
}
