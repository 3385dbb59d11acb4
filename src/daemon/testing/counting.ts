import type { NodeEngine } from '../engine.js';

/** What counters of several nodes did between two moments: sums by name, and each node's own. */
export interface Counted {
  /** Over all nodes. */
  sum(name: string): number;
  /** Of one node, by its place in the list. */
  of(index: number, name: string): number;
}

/** Begins to count; the function that it returns says what happened since. */
export function counting(engines: readonly NodeEngine[]): () => Counted {
  const before = engines.map((engine) => engine.counters());
  return () => {
    const after = engines.map((engine) => engine.counters());
    const of = (index: number, name: string): number => (after[index]?.[name] ?? 0) - (before[index]?.[name] ?? 0);
    return { of, sum: (name) => engines.reduce((sum, _, index) => sum + of(index, name), 0) };
  };
}

/** For things that only polling can see (another process, a counter). @throws when it doesn't come true in time. */
export async function eventually(
  what: string,
  holds: () => boolean | Promise<boolean>,
  timeoutMs = 60_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`it did not come true within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
