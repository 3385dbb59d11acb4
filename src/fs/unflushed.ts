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

  /** What is to be flushed now goes to the caller; what is being flushed stays with whoever does it. */
  static take(sets: readonly UnflushedNsds[]): { nsds: Set<NsdIndex>; flushing: Promise<boolean>[] } {
    const nsds = new Set<NsdIndex>();
    const flushing: Promise<boolean>[] = [];
    for (const set of sets) {
      for (const nsd of set.#nsds) nsds.add(nsd);
      set.#nsds.clear();
      flushing.push(...set.#flushing);
    }
    return { nsds, flushing };
  }

  /** Runs `flush` for what was taken. It failed: everything is as before, for the next one. */
  static async during(
    sets: readonly UnflushedNsds[],
    nsds: ReadonlySet<NsdIndex>,
    flush: () => Promise<void>,
  ): Promise<void> {
    const flushing = flush();
    const succeeded = flushing.then(
      () => true,
      () => {
        for (const set of sets) for (const nsd of nsds) set.add(nsd);
        return false;
      },
    );
    for (const set of sets) set.#flushing.add(succeeded);
    try {
      await flushing;
    } finally {
      await succeeded;
      for (const set of sets) set.#flushing.delete(succeeded);
    }
  }
}
