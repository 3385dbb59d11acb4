import type { Timer } from '../common/clock.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { FILE_SYSTEM_NUMBER_MAX, type FileSystemNumber, fileSystemNumber, type NodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { NodeIdentity } from '../fabric/fabric.js';
import type { StoreLease, StoreWatch } from './cluster-store.js';
import { withoutLife } from './expulsion.js';
import { type ClaimOptions, claimIdentity, takeAlive } from './identity.js';
import {
  type Life,
  type MembershipEffect,
  type MembershipEvent,
  MembershipMachine,
  type MembershipPhase,
  type MembershipSettings,
} from './membership.js';
import type { ClusterView, CopyRecord, Membership, NodeRecord, NsdRecord } from './membership-api.js';
import {
  type ExpellingRecord,
  FILE_SYSTEM_PREFIX,
  type FileSystemRecord,
  parseAlive,
  parseCopies,
  parseFileSystem,
  parseNsd,
  parseView,
  StoreKey,
} from './records.js';

/**
 * The shell of membership: carries the machine's effects out on the cluster store and the clock, and its answers back.
 *
 * Invariants: events are stepped one at a time, in the order in which they arrived; effects are carried out in the order
 * that the machine gave; after `stop` nothing is done and nothing is heard any more.
 * Fault model: the store's (every call ends); callbacks may reject, and are then asked again.
 */
export interface MembershipListener {
  /** What hits compare the clock with, in the Clock's milliseconds; 0 stops them. */
  lease(deadlineMs: number): void;
  /** The lease is out: start nothing, serve nothing, keep everything (F3). */
  suspended(): void;
  /** Same incarnation, still in the view: go on. */
  resumed(): void;
  /** Expelled. Final: drop everything. */
  fenced(why: FsError): void;
}

/** F1's steps, done on other nodes by this one while it drives an expulsion. Each may be called again, for any reason. */
export interface ExpulsionActions {
  /** `server` refuses the target from now on and has drained what it had running for it. */
  fence(server: NodeRecord, target: ExpellingRecord): Promise<void>;
  /** `server`, a token server, lets the target's tokens fall. */
  tokensFall(server: NodeRecord, target: ExpellingRecord): Promise<void>;
}

export interface MembershipOptions extends Omit<ClaimOptions, 'ttlMs'> {
  readonly name: string;
  readonly settings: MembershipSettings;
  readonly listener: MembershipListener;
  readonly logger: Logger;
}

const CAS_ATTEMPTS_MAX = 100;

export class MembershipRuntime implements Membership {
  readonly #machine: MembershipMachine;
  readonly #listeners = new Set<(view: ClusterView, previous: ClusterView) => void>();
  readonly #queue: MembershipEvent[] = [];
  readonly #joined: Deferred<void> = deferred();
  readonly #ended: Deferred<void> = deferred();
  #view: ClusterView;
  #lease: StoreLease;
  #leaseDeadlineMs = 0;
  #actions: ExpulsionActions | null = null;
  #watch: StoreWatch | null = null;
  #timer: Timer | null = null;
  #stepping = false;
  #stopped = false;
  #failure: FsError | null = null;

  /**
   * Takes an identity: from now on the lease is kept, but the node is in no view. The engine makes its fabric with `self`,
   * listens, and then joins.
   * @throws {FsError} wrongKey, identityTaken, storeUnavailable, deadlinePassed.
   */
  static async claim(options: MembershipOptions): Promise<MembershipRuntime> {
    const claim = await claimIdentity({ ...options, ttlMs: options.settings.ttlMs });
    const self = { nodeId: claim.nodeId, incarnation: claim.incarnation };
    const runtime = new MembershipRuntime(options, self, claim.clusterId, claim.lease, claim.sentAtMs);
    try {
      const { entries, revision } = await options.store.list('');
      runtime.#dispatch({ type: 'listed', read: 0, entries, revision });
      runtime.#watch = options.store.watch(
        '',
        revision,
        (change) => runtime.#dispatch({ type: 'changed', change }),
        () => runtime.#dispatch({ type: 'gap' }),
      );
    } catch (error) {
      runtime.stop();
      await claim.lease.revoke().catch(() => undefined);
      throw error;
    }
    return runtime;
  }

  private constructor(
    readonly options: MembershipOptions,
    readonly self: NodeIdentity,
    readonly clusterId: string,
    lease: StoreLease,
    claimedAtMs: number,
  ) {
    this.#lease = lease;
    const machineSelf = { ...self, full: options.full };
    this.#machine = new MembershipMachine(machineSelf, clusterId, options.settings, claimedAtMs);
    this.#view = this.#machine.view;
    this.#joined.promise.catch(() => undefined);
  }

  /** Of this life, as it is now: for keys that go with it. */
  get lease(): StoreLease {
    return this.#lease;
  }
  get view(): ClusterView {
    return this.#view;
  }
  get phase(): MembershipPhase {
    return this.#machine.phase;
  }
  get suspended(): boolean {
    return this.#machine.suspended;
  }
  /** On the Clock; 0 before the first view and when it is over. */
  get leaseDeadlineMs(): number {
    return this.#leaseDeadlineMs;
  }
  /** Lives that are out of the view and not yet cleaned up after; their tokens are still closed. */
  get expelling(): readonly ExpellingRecord[] {
    return this.#machine.viewRecord.expelling;
  }

  onChange(listener: (view: ClusterView, previous: ClusterView) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Resolves when the view has this node: which may take until the traces of its older life are gone. */
  async join(
    node: { readonly address: NodeRecord['address']; readonly tokenServer: boolean },
    actions: ExpulsionActions,
  ): Promise<void> {
    this.#actions = actions;
    const record: NodeRecord = { ...this.self, name: this.options.name, ...node };
    this.#dispatch({ type: 'join', record });
    await this.#joined.promise;
  }

  /** A member is reached in another way from now on: everybody gets to know it. */
  addressChanged(address: NodeRecord['address']): void {
    this.#dispatch({ type: 'address', address });
  }

  /**
   * Leaves. `clean`: the caller has written out everything and given back its tokens; else the others do what they do with one that died, without waiting for
   * its lease. Ends at the latest after `timeoutMs`: then the lease runs out and the others expel us.
   */
  async leave(timeoutMs: number, clean = true): Promise<void> {
    const { clock } = this.options;
    const late = deferred<void>();
    const timer = clock.after(timeoutMs, () => late.resolve());
    this.#dispatch({ type: 'leave', clean });
    await Promise.race([this.#ended.promise, late.promise]);
    timer.cancel();
    this.stop();
    await this.#lease.revoke().catch(() => undefined);
  }

  /** Stops at once and tells nobody: what dying is like. The lease runs out by itself. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#watch?.close();
    this.#timer?.cancel();
    this.#listeners.clear();
    this.#joined.reject(this.#failure ?? new FsError('closed', { op: 'join', detail: 'membership was stopped' }));
  }

  /** Changes one NSD's record; `change` may be asked several times. Null leaves it as it is. */
  async updateNsd(uuid: string, change: (record: NsdRecord | null) => NsdRecord | null): Promise<void> {
    const { store } = this.options;
    for (let attempt = 0; attempt < CAS_ATTEMPTS_MAX; attempt++) {
      const entry = await store.get(StoreKey.nsd(uuid));
      const next = change(entry === null ? null : parseNsd(entry.value));
      if (next === null) return;
      if ((await store.compareAndSwap(StoreKey.nsd(uuid), entry?.revision ?? 0, JSON.stringify(next))).ok) return;
    }
    throw new FsError('busy', { op: 'updateNsd', object: uuid, detail: 'the record is changed all the time' });
  }

  /** Changes what stands about copies; `change` may be asked several times. Null leaves it as it is. This node knows it when this resolves. */
  async updateCopies(
    change: (copies: ReadonlyMap<string, CopyRecord>) => ReadonlyMap<string, CopyRecord> | null,
  ): Promise<void> {
    const { store } = this.options;
    const key = StoreKey.copies;
    for (let attempt = 0; attempt < CAS_ATTEMPTS_MAX; attempt++) {
      const entry = await store.get(key);
      if (entry !== null) this.#dispatch({ type: 'changed', change: { type: 'put', ...entry } });
      const record = entry === null ? {} : parseCopies(entry.value);
      if (record === null)
        throw new FsError('corrupt', {
          op: 'updateCopies',
          object: key,
          detail: 'what stands about copies is damaged',
        });
      const next = change(new Map(Object.entries(record)));
      if (next === null) return;
      const value = JSON.stringify(Object.fromEntries(next));
      const result = await store.compareAndSwap(key, entry?.revision ?? 0, value);
      if (!result.ok) continue;
      this.#dispatch({ type: 'changed', change: { type: 'put', key, value, revision: result.revision } });
      return;
    }
    throw new FsError('busy', { op: 'updateCopies', object: key, detail: 'the record is changed all the time' });
  }

  /** The number for a new file system; nobody else gets it, whatever becomes of the file system. @throws {FsError} notSupported, busy. */
  async allotFileSystemNumber(name: string): Promise<FileSystemNumber> {
    const { store } = this.options;
    const key = StoreKey.nextFileSystemNumber;
    for (let attempt = 0; attempt < CAS_ATTEMPTS_MAX; attempt++) {
      const entry = await store.get(key);
      const { entries } = await store.list(FILE_SYSTEM_PREFIX);
      const used = entries.map(({ value }) => parseFileSystem(value)?.number ?? -1);
      // Behind those too that were made before numbers were counted, or whose count was lost.
      const next = Math.max(Number(entry?.value ?? 0), ...used.map((number) => number + 1));
      if (!(next <= FILE_SYSTEM_NUMBER_MAX)) {
        const detail = `a cluster has room for ${FILE_SYSTEM_NUMBER_MAX + 1} file systems in its life`;
        throw new FsError('notSupported', { op: 'fs.create', object: name, detail });
      }
      if ((await store.compareAndSwap(key, entry?.revision ?? 0, String(next + 1))).ok) return fileSystemNumber(next);
    }
    throw new FsError('busy', { op: 'fs.create', object: name, detail: 'file systems are made all the time' });
  }

  /**
   * An operator says that a node is dead: it is expelled (F1) without its lease being waited for. A node that lives all the same finds itself
   * fenced and loses what it had not written. Resolves when the new epoch stands; the rest goes on by itself (`view.expelling`).
   * @throws {FsError} notFound, notPermitted (this node itself), busy
   */
  async expel(nodeId: NodeId): Promise<Life> {
    const { store, logger } = this.options;
    const refuse = (reason: 'notFound' | 'notPermitted' | 'busy', detail: string): FsError =>
      new FsError(reason, { op: 'node.expel', object: `node ${nodeId}`, detail });
    if (nodeId === this.self.nodeId) throw refuse('notPermitted', 'it is the node that was asked: ask another');
    for (let attempt = 0; attempt < CAS_ATTEMPTS_MAX; attempt++) {
      const entry = await store.get(StoreKey.view);
      const view = entry === null ? null : parseView(entry.value);
      if (entry === null || view === null) throw refuse('notFound', 'there is no view of the cluster');
      const life = view.nodes.find((node) => node.nodeId === nodeId);
      if (life === undefined) throw refuse('notFound', 'it is not in the cluster');
      if (await this.#swap(StoreKey.view, entry.revision, JSON.stringify(withoutLife(view, life)))) {
        logger.warn({ node: nodeId, incarnation: life.incarnation }, 'expelled by an operator');
        await this.#giveUpClaim(life);
        return { nodeId, incarnation: life.incarnation };
      }
    }
    throw refuse('busy', 'the view changes all the time');
  }

  /** Its next life need not wait for the lease of the one that is out. Best effort: the lease runs out by itself. */
  async #giveUpClaim({ nodeId, incarnation }: Life): Promise<void> {
    const { store, logger } = this.options;
    try {
      const entry = await store.get(StoreKey.alive(nodeId));
      if (entry !== null && parseAlive(entry.value)?.incarnation === incarnation)
        await store.delete(entry.key, entry.revision);
    } catch (error) {
      logger.warn({ node: nodeId, error: String(error) }, 'the claim of an expelled node stays until its lease is out');
    }
  }

  /** @throws {FsError} exists. */
  async createFileSystem(name: string, record: FileSystemRecord): Promise<void> {
    const created = await this.options.store.compareAndSwap(StoreKey.fileSystem(name), 0, JSON.stringify(record));
    if (!created.ok)
      throw new FsError('exists', { op: 'fs.create', object: name, detail: 'there is such a file system' });
  }

  async fileSystem(name: string): Promise<FileSystemRecord | null> {
    const entry = await this.options.store.get(StoreKey.fileSystem(name));
    if (entry === null) return null;
    const record = parseFileSystem(entry.value);
    if (record === null) throw new FsError('corrupt', { op: 'fs.info', object: name, detail: 'its record is damaged' });
    return record;
  }

  #dispatch(event: MembershipEvent): void {
    if (this.#stopped) return;
    this.#queue.push(event);
    if (this.#stepping) return;
    this.#stepping = true;
    try {
      for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
        for (const effect of this.#machine.step(next, this.options.clock.nowMs())) {
          if (this.#stopped) return;
          this.#carryOut(effect);
        }
      }
    } finally {
      this.#stepping = false;
    }
  }

  #carryOut(effect: MembershipEffect): void {
    const { listener, logger, clock, store } = this.options;
    switch (effect.type) {
      case 'suspended':
        logger.warn({ node: this.self.nodeId }, 'lease is out: suspended');
        listener.suspended();
        break;
      case 'resumed':
        logger.info({ node: this.self.nodeId }, 'lease is back: resumed');
        listener.resumed();
        break;
      case 'fenced':
        this.#failure = new FsError('fenced', {
          op: 'membership',
          object: `node ${this.self.nodeId}`,
          detail: effect.detail,
        });
        logger.error({ node: this.self.nodeId, detail: effect.detail }, 'expelled');
        this.#joined.reject(this.#failure);
        this.#ended.resolve();
        this.#leaseDeadlineMs = 0;
        listener.lease(0);
        listener.fenced(this.#failure);
        void this.#lease.revoke().catch(() => undefined);
        this.stop();
        break;
      case 'publish': {
        const previous = this.#view;
        this.#view = effect.view;
        if (previous.epoch !== effect.view.epoch)
          logger.info({ epoch: effect.view.epoch, nodes: [...effect.view.nodes.keys()] }, 'new epoch');
        for (const tell of [...this.#listeners]) tell(effect.view, previous);
        break;
      }
      case 'complain':
        logger.error({ keys: effect.keys }, 'records in the cluster store that are none');
        break;
      case 'lease':
        this.#leaseDeadlineMs = effect.deadlineMs;
        listener.lease(effect.deadlineMs);
        break;
      case 'joined':
        logger.info({ ...this.self, epoch: this.#view.epoch }, 'joined');
        this.#joined.resolve();
        break;
      case 'left':
        this.#ended.resolve();
        break;
      case 'renew':
        void this.#renew();
        break;
      case 'regain':
        void this.#regain();
        break;
      case 'readAll':
        store.list('').then(
          ({ entries, revision }) => this.#dispatch({ type: 'listed', read: effect.read, entries, revision }),
          () => this.#dispatch({ type: 'listFailed', read: effect.read }),
        );
        break;
      case 'swapView': {
        const value = JSON.stringify(effect.record);
        void this.#swap(StoreKey.view, effect.expectedRevision, value).then((done) =>
          this.#dispatch({ type: 'viewSwapped', done }),
        );
        break;
      }
      case 'fence':
      case 'tokensFall':
        void this.#act(effect.type, effect.server, effect.target);
        break;
      case 'wake':
        this.#timer?.cancel();
        this.#timer = Number.isFinite(effect.atMs)
          ? clock.after(Math.max(0, effect.atMs - clock.nowMs()), () => this.#dispatch({ type: 'tick' }))
          : null;
        break;
    }
  }

  /** What was written is known at once, without waiting for the watch. */
  async #swap(key: string, expectedRevision: number, value: string): Promise<boolean> {
    try {
      const result = await this.options.store.compareAndSwap(key, expectedRevision, value);
      if (!result.ok) return false;
      this.#dispatch({ type: 'changed', change: { type: 'put', key, value, revision: result.revision } });
      return true;
    } catch (error) {
      this.options.logger.warn({ key, error: String(error) }, 'a swap in the cluster store failed');
      return false;
    }
  }

  async #renew(): Promise<void> {
    const sentAtMs = this.options.clock.nowMs();
    try {
      await this.#lease.renew();
      this.#dispatch({ type: 'renewed', sentAtMs, outcome: 'kept' });
    } catch (error) {
      const gone = FsError.is(error) && error.reason === 'notFound';
      this.#dispatch({ type: 'renewed', sentAtMs, outcome: gone ? 'gone' : 'unknown' });
    }
  }

  async #regain(): Promise<void> {
    const { store, clock, settings, full } = this.options;
    const { nodeId, incarnation } = this.self;
    const sentAtMs = clock.nowMs();
    try {
      const entry = await store.get(StoreKey.alive(nodeId));
      const owner = entry === null ? null : parseAlive(entry.value);
      if (entry !== null && owner?.incarnation === incarnation) {
        // From an attempt of ours whose answer was lost, under a lease that we don't know.
        await store.delete(entry.key, entry.revision);
      } else if (entry !== null) {
        this.#dispatch({ type: 'regained', sentAtMs, outcome: 'taken' });
        return;
      }
      const lease = await store.grantLease(settings.ttlMs);
      const taken = await takeAlive(store, nodeId, incarnation, full, lease);
      if (taken) this.#lease = lease;
      this.#dispatch({ type: 'regained', sentAtMs, outcome: taken ? 'kept' : 'taken' });
    } catch {
      this.#dispatch({ type: 'regained', sentAtMs, outcome: 'unknown' });
    }
  }

  async #act(type: 'fence' | 'tokensFall', server: NodeRecord, target: ExpellingRecord): Promise<void> {
    let done = false;
    try {
      if (this.#actions !== null) {
        await this.#actions[type](server, target);
        done = true;
      }
    } catch (error) {
      // Who has left meanwhile, or has nothing to drive any more, owes and is owed no answer.
      if (!this.#stopped && this.#view.nodes.get(server.nodeId)?.incarnation === server.incarnation)
        this.options.logger.warn(
          { server: server.nodeId, target, error: String(error) },
          `${type} failed, asked again`,
        );
    }
    const event = type === 'fence' ? 'fenceAnswered' : 'fallAnswered';
    this.#dispatch({ type: event, target, server, done });
  }
}
