import type { Clock, Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import type { CasResult, ClusterStore, StoreChange, StoreEntry, StoreLease, StoreWatch } from './cluster-store.js';

/**
 * The ClusterStore in memory: etcd's promises on a Clock that is handed in, for the simulator and for tests. One MemoryStore
 * is the whole store; every node has a connection of its own (`connect`), which can be cut alone.
 *
 * Invariants: the same calls at the same times give the same answers in the same order; every call is answered on a later
 * turn of the clock, executed exactly once in between; a lease that isn't renewed runs out by the clock and takes its keys
 * along in one revision each; watches deliver every change in order, and hear of what they missed while cut.
 * Fault model: a connection that is cut before its request arrives leaves the store untouched; one cut between execution and
 * answer has executed, and fails all the same. Both fail with storeUnavailable at the call's deadline.
 */
export interface MemoryStoreOptions {
  /** One way, in milliseconds; asked for every message, so that a simulation can draw it. Default 0. */
  readonly latencyMs?: () => number;
  /** When a call without an answer fails. Default 1000. */
  readonly callDeadlineMs?: number;
  /** Changes kept for watches that fall behind. Default 10,000. */
  readonly historyMax?: number;
}

interface Record_ {
  value: string;
  revision: number;
  lease: string | null;
}
interface LeaseState {
  readonly ttlMs: number;
  expiresMs: number;
  timer: Timer;
  readonly keys: Set<string>;
}

export class MemoryStore {
  readonly #records = new Map<string, Record_>();
  readonly #leases = new Map<string, LeaseState>();
  readonly #connections = new Set<MemoryConnection>();
  readonly #historyMax: number;
  #history: StoreChange[] = [];
  /** Changes up to this revision are gone from the history. */
  #compacted = 0;
  #revision = 1;
  #nextLease = 1;
  #available = true;

  constructor(
    readonly clock: Clock,
    readonly options: MemoryStoreOptions = {},
  ) {
    this.#historyMax = options.historyMax ?? 10_000;
  }

  /** `latencyMs`: this connection's own, else the store's. */
  connect(latencyMs?: () => number): MemoryConnection {
    const latency = latencyMs ?? this.options.latencyMs ?? (() => 0);
    const connection: MemoryConnection = new MemoryConnection(this, latency, () =>
      this.#connections.delete(connection),
    );
    this.#connections.add(connection);
    return connection;
  }

  get available(): boolean {
    return this.#available;
  }
  /** The whole store: no call is executed while it is false, and leases go on running out. */
  setAvailable(available: boolean): void {
    this.#available = available;
    if (available) this.#notify();
  }

  get revision(): number {
    return this.#revision;
  }

  /** Forgets the changes up to now, as etcd's compaction does. */
  compact(): void {
    this.#compacted = this.#revision;
    this.#history = [];
  }

  /** Every key and value, for the checks of a simulation. */
  snapshot(): Map<string, string> {
    return new Map([...this.#records].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, r]) => [key, r.value]));
  }

  read(key: string): StoreEntry | null {
    const record = this.#records.get(key);
    return record === undefined ? null : { key, value: record.value, revision: record.revision };
  }

  readAll(prefix: string): StoreEntry[] {
    return [...this.#records]
      .filter(([key]) => key.startsWith(prefix))
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, { value, revision }]) => ({ key, value, revision }));
  }

  write(key: string, value: string, lease: string | null): number {
    if (lease !== null && !this.#leases.has(lease)) throw leaseGone('store.put', lease);
    this.#detach(key);
    this.#revision++;
    this.#records.set(key, { value, revision: this.#revision, lease });
    if (lease !== null) this.#leases.get(lease)!.keys.add(key);
    this.#changed({ type: 'put', key, value, revision: this.#revision });
    return this.#revision;
  }

  remove(key: string): boolean {
    if (!this.#records.has(key)) return false;
    this.#detach(key);
    this.#records.delete(key);
    this.#revision++;
    this.#changed({ type: 'delete', key, value: '', revision: this.#revision });
    return true;
  }

  createLease(ttlMs: number): string {
    const id = String(this.#nextLease++);
    const expiresMs = this.clock.nowMs() + ttlMs;
    this.#leases.set(id, { ttlMs, expiresMs, timer: this.#arm(id, ttlMs), keys: new Set() });
    return id;
  }

  renewLease(id: string): void {
    const lease = this.#leases.get(id);
    if (lease === undefined) throw leaseGone('store.renewLease', id);
    lease.timer.cancel();
    lease.expiresMs = this.clock.nowMs() + lease.ttlMs;
    lease.timer = this.#arm(id, lease.ttlMs);
  }

  /** Ends a lease and removes its keys: what running out does, and what a simulation may do early. */
  endLease(id: string): void {
    const lease = this.#leases.get(id);
    if (lease === undefined) return;
    lease.timer.cancel();
    for (const key of [...lease.keys].sort()) this.remove(key);
    this.#leases.delete(id);
  }

  /** The changes behind `revision`, or null when some are gone from the history. */
  changesSince(revision: number): readonly StoreChange[] | null {
    if (revision < this.#compacted) return null;
    return this.#history.filter((change) => change.revision > revision);
  }

  #arm(id: string, ttlMs: number): Timer {
    return this.clock.after(ttlMs, () => this.endLease(id));
  }

  #detach(key: string): void {
    const lease = this.#records.get(key)?.lease;
    if (lease != null) this.#leases.get(lease)?.keys.delete(key);
  }

  #changed(change: StoreChange): void {
    this.#history.push(change);
    if (this.#history.length > this.#historyMax) {
      const dropped = this.#history.splice(0, this.#history.length - this.#historyMax);
      this.#compacted = dropped[dropped.length - 1]!.revision;
    }
    this.#notify();
  }

  #notify(): void {
    for (const connection of this.#connections) connection.wakeWatches();
  }
}

/** One node's way to the store. */
export class MemoryConnection implements ClusterStore {
  readonly #watches = new Set<MemoryWatch>();
  #connected = true;
  #closed = false;

  constructor(
    readonly store: MemoryStore,
    readonly latencyMs: () => number,
    readonly onClose: () => void,
  ) {}

  get reachable(): boolean {
    return this.#connected && !this.#closed && this.store.available;
  }
  setConnected(connected: boolean): void {
    this.#connected = connected;
    if (connected) this.wakeWatches();
  }

  get(key: string): Promise<StoreEntry | null> {
    return this.#call('store.get', key, () => this.store.read(key));
  }
  list(prefix: string): Promise<{ entries: StoreEntry[]; revision: number }> {
    return this.#call('store.list', prefix, () => ({
      entries: this.store.readAll(prefix),
      revision: this.store.revision,
    }));
  }
  compareAndSwap(key: string, expectedRevision: number, value: string, lease?: StoreLease): Promise<CasResult> {
    return this.#call('store.compareAndSwap', key, (): CasResult => {
      if ((this.store.read(key)?.revision ?? 0) !== expectedRevision) return { ok: false };
      return { ok: true, revision: this.store.write(key, value, lease?.id ?? null) };
    });
  }
  put(key: string, value: string, lease?: StoreLease): Promise<number> {
    return this.#call('store.put', key, () => this.store.write(key, value, lease?.id ?? null));
  }
  delete(key: string, expectedRevision?: number): Promise<boolean> {
    return this.#call('store.delete', key, () => {
      if (expectedRevision !== undefined && this.store.read(key)?.revision !== expectedRevision) return false;
      return this.store.remove(key);
    });
  }
  grantLease(ttlMs: number): Promise<StoreLease> {
    return this.#call('store.grantLease', `${ttlMs} ms`, () => {
      const id = this.store.createLease(ttlMs);
      return {
        id,
        ttlMs,
        renew: () => this.#call('store.renewLease', id, () => this.store.renewLease(id)),
        revoke: () => this.#call('store.revokeLease', id, () => this.store.endLease(id)),
      };
    });
  }

  watch(prefix: string, fromRevision: number, onChange: (change: StoreChange) => void, onGap: () => void): StoreWatch {
    const watch: MemoryWatch = new MemoryWatch(this, prefix, fromRevision, onChange, onGap, () =>
      this.#watches.delete(watch),
    );
    this.#watches.add(watch);
    watch.wake();
    return watch;
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const watch of [...this.#watches]) watch.close();
    this.onClose();
  }

  wakeWatches(): void {
    for (const watch of this.#watches) watch.wake();
  }

  #call<T>(op: string, object: string, execute: () => T): Promise<T> {
    const { clock } = this.store;
    if (this.#closed) return Promise.reject(new FsError('closed', { op, object, detail: 'the store is closed' }));
    return new Promise((resolve, reject) => {
      const fail = (): void =>
        reject(new FsError('storeUnavailable', { op, object, detail: 'the store did not answer' }));
      const deadline = clock.after(this.store.options.callDeadlineMs ?? 1000, fail);
      clock.after(this.latencyMs(), () => {
        if (!this.reachable) return;
        let answer: () => void;
        try {
          const value = execute();
          answer = () => resolve(value);
        } catch (error) {
          answer = () => reject(error);
        }
        clock.after(this.latencyMs(), () => {
          if (!this.reachable) return;
          deadline.cancel();
          answer();
        });
      });
    });
  }
}

class MemoryWatch implements StoreWatch {
  #revision: number;
  #woken = false;
  #closed = false;

  constructor(
    readonly connection: MemoryConnection,
    readonly prefix: string,
    fromRevision: number,
    readonly onChange: (change: StoreChange) => void,
    readonly onGap: () => void,
    readonly onClose: () => void,
  ) {
    this.#revision = fromRevision;
  }

  /** Delivers on a later turn, so that no writer runs its watchers' code inside its own call. */
  wake(): void {
    if (this.#woken || this.#closed) return;
    this.#woken = true;
    this.connection.store.clock.after(this.connection.latencyMs(), () => {
      this.#woken = false;
      this.#deliver();
    });
  }

  #deliver(): void {
    if (this.#closed || !this.connection.reachable) return;
    const { store } = this.connection;
    const changes = store.changesSince(this.#revision);
    this.#revision = store.revision;
    if (changes === null) {
      this.onGap();
      return;
    }
    for (const change of changes) {
      if (this.#closed) return;
      if (change.key.startsWith(this.prefix)) this.onChange(change);
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.onClose();
  }
}

const leaseGone = (op: string, id: string): FsError =>
  new FsError('notFound', { op, object: id, detail: 'the lease has run out' });
