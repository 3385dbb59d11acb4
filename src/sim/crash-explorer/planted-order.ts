import type { NsdIndex } from '../../common/ids.js';
import type { PagePool, PoolSegment } from '../../native/page-pool.js';
import type { NsdClientApi, SectorIo } from '../../nsd/nsd-api.js';

/**
 * Mistakes in the order of writes, put in between the file system and its NSDs: what the explorer must find (its self-test).
 *
 * What a write is for shows in how it is asked for: of the log (its sectors check themselves), in place (its records are its intent), or data.
 */
export const PLANTED_ORDERS = {
  'log-not-flushed': 'fsync returns before the log is durable: its flush is left out',
  'data-not-flushed': 'the flush between data and the record that exposes it is left out',
  'in-place-before-log': 'metadata is written in place while its log record is still on its way',
  'exposed-before-data': 'data is said to be written while it is still on its way, and is exposed',
} as const;
export type PlantedOrder = keyof typeof PLANTED_ORDERS;

type WriteKind = 'log' | 'inPlace' | 'data';
const kindOf = ({ logged, selfChecking }: SectorIo): WriteKind =>
  selfChecking === true ? 'log' : logged === true ? 'inPlace' : 'data';

/** The pool is as large again as what it is used for: the second half holds what is said to be written and isn't. */
export function plantOrder(inner: NsdClientApi, planted: PlantedOrder, late: LateMemory): NsdClientApi {
  const unflushed = new Map<NsdIndex, Set<WriteKind>>();
  /** What was put off, each after the one before. */
  let putOff: Promise<void> = Promise.resolve();
  let waiting: (() => Promise<void>)[] = [];
  const lateKind: WriteKind | null =
    planted === 'in-place-before-log' ? 'log' : planted === 'exposed-before-data' ? 'data' : null;
  const release = (): void => {
    for (const run of waiting) putOff = putOff.then(run);
    waiting = [];
  };
  return {
    read: (ios) => putOff.then(() => inner.read(ios)),
    versions: (extents) => inner.versions(extents),
    discard: async (extents) => {
      release();
      await putOff;
      await inner.discard(extents);
    },
    lossesOf: (nsd) => inner.lossesOf(nsd),
    async write(ios, asked) {
      const kind = kindOf(ios[0]!);
      const options = kind === 'log' && planted === 'log-not-flushed' ? {} : asked;
      if (options?.flush === undefined)
        for (const { nsd } of ios) unflushed.set(nsd, (unflushed.get(nsd) ?? new Set()).add(kind));
      if (kind !== lateKind) {
        await inner.write(ios, options);
        // Now it may come, too late.
        release();
        return;
      }
      const copies = ios.map((io) => ({ ...io, memory: late.copy(io.memory) }));
      waiting.push(() => inner.write(copies, options).catch(() => undefined));
      if (waiting.length > LATE_MAX) release();
    },
    async flush(nsds) {
      const skipped = (kinds: Set<WriteKind> | undefined): boolean =>
        (planted === 'log-not-flushed' && kinds?.has('log') === true) ||
        (planted === 'data-not-flushed' && kinds?.has('data') === true && !kinds.has('log'));
      const real = nsds.filter((nsd) => !skipped(unflushed.get(nsd)));
      for (const nsd of nsds) unflushed.delete(nsd);
      if (real.length > 0) await inner.flush(real);
    },
  };
}
const LATE_MAX = 8;

/** Memory of its own for what is written late: the file system reuses its pages. */
export class LateMemory {
  #at: number;
  constructor(
    private readonly pool: PagePool,
    private readonly area: PoolSegment,
  ) {
    this.#at = area.offsetBytes;
  }
  copy({ offsetBytes, lengthBytes }: PoolSegment): PoolSegment {
    if (this.#at + lengthBytes > this.area.offsetBytes + this.area.lengthBytes) this.#at = this.area.offsetBytes;
    const copy = { offsetBytes: this.#at, lengthBytes };
    this.pool.bytes.copyWithin(this.#at, offsetBytes, offsetBytes + lengthBytes);
    this.#at += lengthBytes;
    return copy;
  }
}
