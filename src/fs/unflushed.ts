/**
 * The NSDs that have parts of an inode in their volatile caches. Whoever flushes takes the NSDs; who comes meanwhile has nothing to
 * flush, and must not say that all is durable before the flush under way has ended: so it waits for it, and takes over what it left.
 */
import type { NsdIndex } from '../common/ids.js';

export class UnflushedNsds {
  readonly #nsds = new Set<NsdIndex>();
  readonly #flushing = new Set<Promise<boolean>>();

  /** A write to it has ended. */
  add(nsd: NsdIndex): void {
    this.#nsds.add(nsd);
  }

  /** What is to be flushed now goes to the caller, with whose it is; what is being flushed stays with whoever does it. */
  static take(sets: readonly UnflushedNsds[]): {
    nsds: Set<NsdIndex>;
    of: UnflushedNsds[];
    flushing: Promise<boolean>[];
  } {
    const nsds = new Set<NsdIndex>();
    const of: UnflushedNsds[] = [];
    const flushing: Promise<boolean>[] = [];
    for (const set of sets) {
      flushing.push(...set.#flushing);
      if (set.#nsds.size === 0) continue;
      of.push(set);
      for (const nsd of set.#nsds) nsds.add(nsd);
      set.#nsds.clear();
    }
    return { nsds, of, flushing };
  }

  /** Runs `flush` for what was taken. It failed: everything is to be flushed again, by the next one. */
  static async during(
    of: readonly UnflushedNsds[],
    nsds: ReadonlySet<NsdIndex>,
    flush: () => Promise<void>,
  ): Promise<void> {
    const flushing = flush();
    const succeeded = flushing.then(
      () => true,
      () => {
        for (const set of of) for (const nsd of nsds) set.add(nsd);
        return false;
      },
    );
    for (const set of of) set.#flushing.add(succeeded);
    try {
      await flushing;
    } finally {
      await succeeded;
      for (const set of of) set.#flushing.delete(succeeded);
    }
  }
}
