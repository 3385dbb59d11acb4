import { z } from 'zod';
import type { ClusterStore } from '../cluster/cluster-store.js';
import type { Counters } from '../common/counters.js';
import type { FsError } from '../common/errors.js';
import type { NodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';

/**
 * NSDs that a node refused to serve when it was to start. Such a node ends, and its own counters with it: so they are kept in the
 * cluster store, where the nodes that run, and the node itself when it does, find them for their status and metrics.
 *
 * Fault model: the store may be away. Then a refusal is in the node's log only, and what was known of others stays known.
 */
export interface RefusedNsd {
  readonly nodeId: number;
  readonly nsd: string;
  /** Why it was the last time, by name and in words. */
  readonly reason: string;
  readonly detail: string;
  /** How often, and when last, on the refusing node's clock. */
  readonly count: number;
  readonly lastMs: number;
  /** False: the node has started with it since. */
  readonly standing: boolean;
}

const PREFIX = 'refused/';
const ATTEMPTS_MAX = 10;
const schema = z.object({
  nodeId: z.int(),
  nsd: z.string(),
  reason: z.string(),
  detail: z.string(),
  count: z.int().min(0),
  lastMs: z.number(),
  standing: z.boolean(),
});

export class RefusedNsds {
  constructor(
    private readonly store: ClusterStore,
    private readonly self: NodeId,
    private readonly counters: Counters,
    private readonly logger: Logger,
  ) {}

  /** One more. Never fails: the refusal itself is what the caller has to tell. */
  async add(nsd: string, why: FsError): Promise<void> {
    const { reason, message: detail } = why;
    const made = { nodeId: this.self, nsd, reason, detail, lastMs: Date.now(), standing: true };
    await this.#change(nsd, (known) => ({ ...made, count: (known?.count ?? 0) + 1 }));
  }

  /** This node serves these. */
  async settle(nsds: readonly string[]): Promise<void> {
    for (const nsd of nsds)
      await this.#change(nsd, (known) => (known?.standing === true ? { ...known, standing: false } : null));
  }

  /** Of all nodes; sets the counters `nsd.refusedAtStart`, in all and by reason. */
  async list(): Promise<RefusedNsd[]> {
    const found: RefusedNsd[] = [];
    try {
      const { entries } = await this.store.list(PREFIX);
      for (const { value } of entries) {
        const record = parse(value);
        if (record !== null) found.push(record);
      }
    } catch (error) {
      this.logger.warn({ error: String(error) }, 'the NSDs that were refused are not known just now');
      return found;
    }
    this.counters.set(
      'nsd.refusedAtStart',
      found.reduce((sum, { count }) => sum + count, 0),
    );
    const byReason = new Map<string, number>();
    for (const { reason, count } of found) byReason.set(reason, (byReason.get(reason) ?? 0) + count);
    for (const [reason, count] of byReason) this.counters.set(`nsd.refusedAtStart.${reason}`, count);
    return found;
  }

  async #change(nsd: string, change: (known: RefusedNsd | null) => RefusedNsd | null): Promise<void> {
    const key = `${PREFIX}${this.self}/${nsd}`;
    try {
      for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        const entry = await this.store.get(key);
        const next = change(entry === null ? null : parse(entry.value));
        if (next === null) return;
        if ((await this.store.compareAndSwap(key, entry?.revision ?? 0, JSON.stringify(next))).ok) return;
      }
    } catch (error) {
      this.logger.warn({ nsd, error: String(error) }, 'a refused NSD could not be counted in the cluster store');
    }
  }
}

function parse(text: string): RefusedNsd | null {
  try {
    const result = schema.safeParse(JSON.parse(text));
    return result.success ? result.data : null;
  } catch {
    return null;
  }
}
