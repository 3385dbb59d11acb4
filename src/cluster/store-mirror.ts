import type { NodeId } from '../common/ids.js';
import { nodeId } from '../common/ids.js';
import type { StoreChange, StoreEntry } from './cluster-store.js';
import type { CopyRecord, NsdRecord } from './membership-api.js';
import {
  ALIVE_PREFIX,
  type AliveRecord,
  EMPTY_VIEW,
  NSD_PREFIX,
  parseAlive,
  parseCopies,
  parseNsd,
  parseView,
  StoreKey,
  type ViewRecord,
} from './records.js';

/**
 * This node's copy of the cluster store, fed by lists and by the watch. Pure.
 *
 * Invariants: no key ever goes back to an older revision, whatever order lists and changes arrive in; a record that doesn't
 * parse counts as unchanged (view) or absent, and is reported once.
 */
interface Seen {
  /** Null: deleted. */
  readonly value: string | null;
  readonly revision: number;
}

export interface MirrorChange {
  readonly view: boolean;
  readonly nsds: boolean;
  readonly copies: boolean;
  /** Keys whose new value is no record. */
  readonly bad: readonly string[];
}

export class StoreMirror {
  readonly #seen = new Map<string, Seen>();
  readonly #alive = new Map<NodeId, AliveRecord & { readonly revision: number }>();
  #nsds: ReadonlyMap<string, NsdRecord> = new Map();
  #copies: ReadonlyMap<string, CopyRecord> = new Map();
  #view: ViewRecord = EMPTY_VIEW;

  get view(): ViewRecord {
    return this.#view;
  }
  /** What a compare-and-swap of the view must name; 0 when there is none yet. */
  get viewRevision(): number {
    const seen = this.#seen.get(StoreKey.view);
    return seen === undefined || seen.value === null ? 0 : seen.revision;
  }
  get nsds(): ReadonlyMap<string, NsdRecord> {
    return this.#nsds;
  }
  get copies(): ReadonlyMap<string, CopyRecord> {
    return this.#copies;
  }
  get alive(): ReadonlyMap<NodeId, AliveRecord & { readonly revision: number }> {
    return this.#alive;
  }

  applyChange(change: StoreChange): MirrorChange {
    const value = change.type === 'put' ? change.value : null;
    return this.#apply([{ key: change.key, value, revision: change.revision }]);
  }

  /** A list of everything, true at `revision`: what it doesn't have and isn't newer has been deleted. */
  applyList(entries: readonly StoreEntry[], revision: number): MirrorChange {
    const listed = new Set(entries.map((entry) => entry.key));
    const deleted = [...this.#seen]
      .filter(([key, seen]) => !listed.has(key) && seen.value !== null && seen.revision <= revision)
      .map(([key]) => ({ key, value: null, revision }));
    return this.#apply([...entries, ...deleted]);
  }

  #apply(updates: readonly { key: string; value: string | null; revision: number }[]): MirrorChange {
    let view = false;
    let nsds = false;
    let copies = false;
    const bad: string[] = [];
    for (const { key, value, revision } of updates) {
      const known = this.#seen.get(key);
      if (known !== undefined && known.revision >= revision) continue;
      this.#seen.set(key, { value, revision });
      let good = true;
      if (key === StoreKey.view) {
        // Written again as it was: that confirms a lease, and is no news.
        if (known?.value === value) continue;
        view = true;
        good = this.#setView(value);
      } else if (key.startsWith(NSD_PREFIX)) {
        nsds = true;
        good = this.#setNsd(key, value);
      } else if (key === StoreKey.copies) {
        copies = true;
        good = this.#setCopies(value);
      } else if (key.startsWith(ALIVE_PREFIX)) good = this.#setAlive(key, value, revision);
      else this.#seen.delete(key);
      if (!good) bad.push(key);
    }
    return { view, nsds, copies, bad };
  }

  #setView(value: string | null): boolean {
    if (value === null) return false;
    const record = parseView(value);
    // Epochs move up only: a view that goes back was put there by hand.
    if (record === null || record.epoch < this.#view.epoch) return false;
    this.#view = record;
    return true;
  }

  /** One that can't be read counts as unchanged: nobody reads a stale copy because of it. */
  #setCopies(value: string | null): boolean {
    const record = value === null ? null : parseCopies(value);
    if (record === null) return false;
    this.#copies = new Map(Object.entries(record));
    return true;
  }

  #setNsd(key: string, value: string | null): boolean {
    const next = new Map(this.#nsds);
    next.delete(key.slice(NSD_PREFIX.length));
    const record = value === null ? null : parseNsd(value);
    if (record !== null) next.set(record.uuid, record);
    this.#nsds = next;
    return value === null || record !== null;
  }

  #setAlive(key: string, value: string | null, revision: number): boolean {
    const id = nodeId(Number(key.slice(ALIVE_PREFIX.length)));
    const record = value === null ? null : parseAlive(value);
    if (record === null) this.#alive.delete(id);
    else this.#alive.set(id, { ...record, revision });
    return value === null || record !== null;
  }
}
