import { ExponentialBackoff, handleWhen, noop, retry } from 'cockatiel';
import { Etcd3, type IOptions, isRecoverableError } from 'etcd3';
import { FsError } from '../common/errors.js';
import type { CasResult, ClusterStore, StoreChange, StoreEntry, StoreLease, StoreWatch } from './cluster-store.js';
import { EtcdWatch, prefixEnd } from './etcd-watch.js';

/**
 * The ClusterStore over etcd. Owns two etcd3 clients (unary calls have deadlines, streams must not) and every watch.
 *
 * Invariants: every unary call ends at its deadline; nothing that writes a key is sent twice (a compare-and-swap whose answer was
 * lost would report its own success as a conflict), so a failed write means "unknown" and the caller reads again; keys live
 * under one prefix, which no answer shows.
 * Fault model: etcd may be unreachable, hung, without leader, restarted, or have compacted what a watch still wanted.
 * etcd3's own lease keeper, election, lock and circuit breaker aren't used: the first two notice too late, the breaker
 * refuses calls for 5 s after three failures, which is a whole lease.
 */
export interface EtcdStoreOptions {
  readonly endpoints: readonly string[];
  /** All keys are under `holdfast/<clusterName>/`. */
  readonly clusterName: string;
  /** Deadline of one call; a read may take it twice, because it is tried again. Default 1000. */
  readonly callDeadlineMs?: number;
}

const DEFAULT_CALL_DEADLINE_MS = 1000;
const CHANNEL_OPTIONS = {
  // etcd takes pings without a call for an attack, and hangs up.
  'grpc.keepalive_permit_without_calls': 0,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.min_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 500,
  // etcd3's two clients must not share a connection: a stuck stream would hold up the calls with deadlines.
  'grpc.use_local_subchannel_pool': 1,
} as const;

export class EtcdStore implements ClusterStore {
  readonly #prefix: string;
  readonly #callDeadlineMs: number;
  readonly #calls: Etcd3;
  readonly #streams: Etcd3;
  readonly #watches = new Set<EtcdWatch>();
  readonly #readRetry = retry(
    handleWhen((error) => isRecoverableError(error)),
    { maxAttempts: 1, backoff: new ExponentialBackoff({ initialDelay: 50, maxDelay: 200 }) },
  );
  #closed = false;

  constructor(options: EtcdStoreOptions) {
    this.#prefix = `holdfast/${options.clusterName}/`;
    this.#callDeadlineMs = options.callDeadlineMs ?? DEFAULT_CALL_DEADLINE_MS;
    const common: IOptions = {
      hosts: [...options.endpoints],
      grpcOptions: {
        ...CHANNEL_OPTIONS,
        'grpc.keepalive_time_ms': 2 * this.#callDeadlineMs,
        'grpc.keepalive_timeout_ms': 2 * this.#callDeadlineMs,
      },
      faultHandling: { global: noop, host: () => noop },
    };
    this.#calls = new Etcd3({
      ...common,
      defaultCallOptions: () => ({ deadline: Date.now() + this.#callDeadlineMs }),
    });
    this.#streams = new Etcd3(common);
  }

  async get(key: string): Promise<StoreEntry | null> {
    const answer = await this.#read('store.get', key, () => this.#calls.kv.range({ key: this.#key(key) }));
    const kv = answer.kvs[0];
    return kv === undefined ? null : { key, value: kv.value.toString(), revision: Number(kv.mod_revision) };
  }

  async list(prefix: string): Promise<{ entries: StoreEntry[]; revision: number }> {
    const key = this.#key(prefix);
    const answer = await this.#read('store.list', prefix, () =>
      this.#calls.kv.range({ key, range_end: prefixEnd(key), sort_target: 'Key', sort_order: 'Ascend' }),
    );
    const entries = answer.kvs.map((kv) => ({
      key: this.#bare(kv.key),
      value: kv.value.toString(),
      revision: Number(kv.mod_revision),
    }));
    return { entries, revision: Number(answer.header.revision) };
  }

  async compareAndSwap(key: string, expectedRevision: number, value: string, lease?: StoreLease): Promise<CasResult> {
    const answer = await this.#once('store.compareAndSwap', key, () =>
      this.#calls.kv.txn({
        compare: [{ key: this.#key(key), target: 'Mod', result: 'Equal', mod_revision: expectedRevision }],
        success: [{ request_put: this.#put(key, value, lease) }],
      }),
    );
    return answer.succeeded ? { ok: true, revision: Number(answer.header.revision) } : { ok: false };
  }

  async put(key: string, value: string, lease?: StoreLease): Promise<number> {
    const answer = await this.#once('store.put', key, () => this.#calls.kv.put(this.#put(key, value, lease)));
    return Number(answer.header.revision);
  }

  async delete(key: string, expectedRevision?: number): Promise<boolean> {
    const request = { key: this.#key(key) };
    if (expectedRevision === undefined) {
      const answer = await this.#once('store.delete', key, () => this.#calls.kv.deleteRange(request));
      return Number(answer.deleted) > 0;
    }
    const answer = await this.#once('store.delete', key, () =>
      this.#calls.kv.txn({
        compare: [{ key: request.key, target: 'Mod', result: 'Equal', mod_revision: expectedRevision }],
        success: [{ request_delete_range: request }],
      }),
    );
    return answer.succeeded && Number(answer.responses[0]?.response_delete_range.deleted ?? 0) > 0;
  }

  async grantLease(ttlMs: number): Promise<StoreLease> {
    // etcd counts whole seconds; rounding up only makes the others wait longer.
    const seconds = Math.max(1, Math.ceil(ttlMs / 1000));
    // Asked for again like a read: a lease that nobody heard of holds no key, and runs out.
    const answer = await this.#read('store.grantLease', `${seconds} s`, () =>
      this.#calls.leaseClient.leaseGrant({ TTL: seconds }),
    );
    const id = answer.ID;
    return {
      id,
      ttlMs: Number(answer.TTL) * 1000,
      renew: () => this.#renew(id),
      revoke: () => this.#revoke(id),
    };
  }

  watch(prefix: string, fromRevision: number, onChange: (change: StoreChange) => void, onGap: () => void): StoreWatch {
    const watch: EtcdWatch = new EtcdWatch(
      () => this.#streams.watchClient.watch(),
      this.#key(prefix),
      fromRevision,
      (event) => {
        const { kv } = event;
        const type = event.type === 'Put' ? 'put' : 'delete';
        const value = type === 'put' ? kv.value.toString() : '';
        onChange({ type, key: this.#bare(kv.key), value, revision: Number(kv.mod_revision) });
      },
      onGap,
      () => this.#watches.delete(watch),
    );
    this.#watches.add(watch);
    return watch;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const watch of [...this.#watches]) watch.close();
    this.#calls.close();
    this.#streams.close();
  }

  /** A stream of its own per renewal: its deadline ends it, and a broken one is never inherited by the next. */
  async #renew(id: string): Promise<void> {
    const op = 'store.renewLease';
    if (this.#closed) throw this.#failure(new Error('the store is closed'), op, id);
    try {
      const stream = await this.#calls.leaseClient.leaseKeepAlive({ deadline: Date.now() + this.#callDeadlineMs });
      const ttl = await new Promise<number>((resolve, reject) => {
        stream.on('data', (answer) => resolve(Number(answer.TTL)));
        stream.on('error', reject);
        stream.on('end', () => reject(new Error('the stream ended without an answer')));
        stream.write({ ID: id });
      }).finally(() => stream.end());
      if (!(ttl > 0)) throw leaseGone(op, id);
    } catch (error) {
      throw this.#failure(error, op, id);
    }
  }

  async #revoke(id: string): Promise<void> {
    try {
      await this.#once('store.revokeLease', id, () => this.#calls.leaseClient.leaseRevoke({ ID: id }));
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'notFound') throw error;
    }
  }

  #put(key: string, value: string, lease?: StoreLease) {
    const request = { key: this.#key(key), value: Buffer.from(value) };
    return lease === undefined ? request : { ...request, lease: lease.id };
  }

  async #read<T>(op: string, object: string, call: () => Promise<T>): Promise<T> {
    return this.#once(op, object, () => this.#readRetry.execute(call));
  }

  async #once<T>(op: string, object: string, call: () => Promise<T>): Promise<T> {
    if (this.#closed) throw new FsError('closed', { op, object, detail: 'the store is closed' });
    try {
      return await call();
    } catch (error) {
      throw this.#failure(error, op, object);
    }
  }

  #failure(error: unknown, op: string, object: string): FsError {
    if (FsError.is(error)) return error;
    const name = error instanceof Error ? error.constructor.name : '';
    if (name === 'EtcdLeaseInvalidError' || name === 'GRPCNotFoundError') return leaseGone(op, object);
    const reason = name === 'GRPCDeadlineExceededError' ? 'deadlinePassed' : 'storeUnavailable';
    const detail = `etcd: ${error instanceof Error ? error.message : String(error)}`;
    return new FsError(reason, { op, object, detail, cause: error });
  }

  #key(key: string): Buffer {
    return Buffer.from(this.#prefix + key);
  }
  #bare(key: Buffer): string {
    return key.toString().slice(this.#prefix.length);
  }
}

const leaseGone = (op: string, id: string): FsError =>
  new FsError('notFound', { op, object: id, detail: 'the lease has run out' });
