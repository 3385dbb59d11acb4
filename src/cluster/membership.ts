import type { Epoch, Incarnation, NodeId } from '../common/ids.js';
import type { StoreChange, StoreEntry } from './cluster-store.js';
import { ExpulsionDriver, type ExpulsionEffect } from './expulsion.js';
import { LeaseKeeper, type LeaseOutcome } from './lease-keeper.js';
import type { ClusterView, NodeRecord } from './membership-api.js';
import { sameLife, type ViewRecord } from './records.js';
import { type MirrorChange, StoreMirror } from './store-mirror.js';

/**
 * Membership of one node: its lease, its place in the view, and, when it is the one to do it, the expulsion of others.
 * A pure machine: (state, event, now) -> effects; `membership-runtime.ts` carries them out.
 *
 * Invariants: the lease's deadline counts from when the renewal was sent (F2); between a deadline that passed and an effect
 * `resumed` no deadline in the future is told; a lease regained after its key had vanished counts only when the view, still
 * with this incarnation, has been written again behind it: that makes every expulsion prepared on the vanished key fail its
 * swap, so of a return and an expulsion exactly one succeeds; `fenced` and `left` are final.
 * Fault model: every answer may be late, lost or "unknown"; the watch may lag or have gaps; any node, this one too, may stop
 * for any time and go on. Clocks run at the same rate within the lease's margin.
 */
export interface MembershipSettings {
  readonly ttlMs: number;
  /** Taken off the lease on our side: what clocks may drift, and what is running when the deadline passes. */
  readonly leaseMarginMs: number;
  readonly renewEveryMs: number;
  /** After a failure. */
  readonly retryMs: number;
  /** How long a node's lease must have been gone before it is expelled. */
  readonly expelAfterMs: number;
}
export const membershipSettings = (ttlMs: number, changes: Partial<MembershipSettings> = {}): MembershipSettings => ({
  ttlMs,
  leaseMarginMs: Math.max(50, ttlMs / 20),
  renewEveryMs: ttlMs / 4,
  retryMs: Math.min(250, ttlMs / 10),
  expelAfterMs: ttlMs + Math.max(50, ttlMs / 10),
  ...changes,
});

export interface Life {
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
}

export type MembershipEvent =
  /** Everything in the store at `revision`. `read` names the effect readAll that it answers; 0 is the first list. */
  | { type: 'listed'; read: number; entries: readonly StoreEntry[]; revision: number }
  | { type: 'listFailed'; read: number }
  | { type: 'changed'; change: StoreChange }
  | { type: 'gap' }
  | { type: 'join'; record: NodeRecord }
  /** This node is reached in another way from now on. After `join`. */
  | { type: 'address'; address: NodeRecord['address'] }
  /** `clean`: it has written everything out, and given its tokens back. */
  | { type: 'leave'; clean: boolean }
  | { type: 'renewed'; sentAtMs: number; outcome: LeaseOutcome }
  | { type: 'regained'; sentAtMs: number; outcome: LeaseOutcome }
  | { type: 'viewSwapped'; done: boolean }
  | { type: 'fenceAnswered' | 'fallAnswered'; target: Life; server: Life; done: boolean }
  | { type: 'tick' };

/** In the order in which they must be carried out: stop first, then tell, then ask. */
export type MembershipEffect =
  | { type: 'suspended' }
  | { type: 'fenced'; detail: string }
  | { type: 'publish'; view: ClusterView }
  | { type: 'complain'; keys: readonly string[] }
  /** What hits compare the clock with; 0: none may be served. */
  | { type: 'lease'; deadlineMs: number }
  | { type: 'resumed' }
  | { type: 'joined' }
  | { type: 'left' }
  | { type: 'renew' }
  | { type: 'regain' }
  | { type: 'readAll'; read: number }
  | { type: 'swapView'; expectedRevision: number; record: ViewRecord }
  | ExpulsionEffect
  /** Step with a tick then. Replaces the one before. */
  | { type: 'wake'; atMs: number };

const ORDER: readonly MembershipEffect['type'][] = [
  'suspended',
  'fenced',
  'publish',
  'complain',
  'lease',
  'resumed',
  'joined',
  'left',
];

export type MembershipPhase = 'claimed' | 'joining' | 'member' | 'leaving' | 'left' | 'fenced';

export class MembershipMachine {
  readonly #mirror = new StoreMirror();
  readonly #lease: LeaseKeeper;
  readonly #driver: ExpulsionDriver;
  #phase: MembershipPhase = 'claimed';
  #record: NodeRecord | null = null;
  #effects: MembershipEffect[] = [];
  #swapping = false;
  #swapNotBeforeMs = 0;
  /** The read in flight, 0: none. */
  #reading = 0;
  #lastRead = 0;
  #readNotBeforeMs = 0;
  #readWanted = false;
  /** A regained lease waits for the view to be written again. */
  #confirming = false;
  /** The swap in flight was sent behind the regained lease, and so confirms it. */
  #swapConfirms = false;
  #leavesClean = true;

  /** `claimedAtMs`: when the request for the first lease was sent. */
  constructor(
    readonly self: Life & { readonly full: boolean },
    readonly clusterId: string,
    readonly settings: MembershipSettings,
    claimedAtMs: number,
  ) {
    this.#lease = new LeaseKeeper(settings, claimedAtMs);
    this.#driver = new ExpulsionDriver(self, settings);
  }

  get phase(): MembershipPhase {
    return this.#phase;
  }
  get suspended(): boolean {
    return this.#lease.suspended;
  }
  get view(): ClusterView {
    const { epoch, nodes, tokenServers, expelling } = this.#mirror.view;
    const byId = new Map(nodes.map((node) => [node.nodeId, node]));
    const { nsds, copies } = this.#mirror;
    return { clusterId: this.clusterId, epoch, nodes: byId, tokenServers, nsds, copies, expelling };
  }
  get viewRecord(): ViewRecord {
    return this.#mirror.view;
  }

  step(event: MembershipEvent, nowMs: number): MembershipEffect[] {
    if (this.#phase === 'left' || this.#phase === 'fenced') return [];
    this.#effects = [];
    this.#take(event, nowMs);
    this.#reconcile(nowMs);
    const rank = (effect: MembershipEffect): number => {
      const index = ORDER.indexOf(effect.type);
      return index < 0 ? ORDER.length : index;
    };
    return this.#effects.sort((a, b) => rank(a) - rank(b));
  }

  #take(event: MembershipEvent, nowMs: number): void {
    switch (event.type) {
      case 'listed':
        if (event.read === this.#reading) this.#reading = 0;
        this.#learned(this.#mirror.applyList(event.entries, event.revision));
        break;
      case 'listFailed':
        if (event.read === this.#reading) this.#reading = 0;
        this.#readWanted = true;
        this.#readNotBeforeMs = nowMs + this.settings.retryMs;
        break;
      case 'changed':
        this.#learned(this.#mirror.applyChange(event.change));
        break;
      case 'gap':
        this.#readWanted = true;
        break;
      case 'join':
        if (this.#phase === 'claimed') {
          this.#phase = 'joining';
          this.#record = event.record;
        }
        break;
      case 'address':
        if (this.#record !== null) this.#record = { ...this.#record, address: event.address };
        break;
      case 'leave':
        this.#leavesClean = event.clean;
        // A swap that is under way may still put us into the view.
        if (this.#inView() || this.#swapping) this.#phase = 'leaving';
        else this.#leftCluster();
        break;
      case 'renewed':
        this.#lease.renewed(event.sentAtMs, event.outcome, nowMs);
        if (event.outcome === 'gone') this.#confirming = false;
        break;
      case 'regained':
        this.#lease.regained(event.sentAtMs, event.outcome, nowMs);
        this.#confirming = event.outcome === 'kept';
        this.#swapConfirms = false;
        break;
      case 'viewSwapped':
        this.#swapping = false;
        if (event.done && this.#confirming && this.#swapConfirms) {
          this.#confirming = false;
          this.#lease.confirm();
        }
        // Lost, or nobody knows: what is true now is in the store, and the watch may be the thing that is broken.
        if (!event.done) {
          this.#swapNotBeforeMs = nowMs + this.settings.retryMs;
          this.#readWanted = true;
        }
        break;
      case 'tick':
        break;
      default:
        this.#driver.take(event, nowMs);
    }
  }

  #learned(change: MirrorChange): void {
    if (change.bad.length > 0) this.#effects.push({ type: 'complain', keys: change.bad });
    if (change.view || change.nsds || change.copies) this.#effects.push({ type: 'publish', view: this.view });
  }

  #inView(): boolean {
    return this.#mirror.view.nodes.some((node) => sameLife(node, this.self));
  }

  #reconcile(nowMs: number): void {
    this.#reconcileSelf();
    if (this.#phase === 'left' || this.#phase === 'fenced') return;
    this.#reconcileLease(nowMs);
    if (this.#readWanted && this.#reading === 0 && nowMs >= this.#readNotBeforeMs) {
      this.#readWanted = false;
      this.#reading = ++this.#lastRead;
      this.#effects.push({ type: 'readAll', read: this.#reading });
    }
    const drives = this.#driver.drives(this.#mirror, nowMs) && this.#lease.valid(nowMs);
    if (drives) this.#effects.push(...this.#driver.reconcile(this.#mirror, nowMs));
    else this.#driver.stand();
    this.#reconcileView(nowMs, drives);
    this.#effects.push({ type: 'wake', atMs: this.#wakeMs(nowMs) });
  }

  /** What the view says about us. */
  #reconcileSelf(): void {
    const { view, alive } = this.#mirror;
    if (this.#inView()) {
      if (this.#phase !== 'joining') return;
      this.#phase = 'member';
      this.#effects.push({ type: 'joined' });
      return;
    }
    if (this.#phase === 'leaving') {
      const expelled = view.expelling.some((entry) => sameLife(entry, this.self) && !entry.clean);
      if (expelled && this.#leavesClean) this.#fenced('expelled while it was leaving');
      else if (!this.#swapping) this.#leftCluster();
    } else if (this.#phase === 'member') {
      this.#fenced(`epoch ${view.epoch} has no node ${this.self.nodeId} of incarnation ${this.self.incarnation}`);
    } else {
      const owner = alive.get(this.self.nodeId);
      if (owner !== undefined && owner.incarnation > this.self.incarnation)
        this.#fenced(`node ${this.self.nodeId} was claimed by incarnation ${owner.incarnation}`);
    }
  }

  #fenced(detail: string): void {
    this.#phase = 'fenced';
    this.#effects.push({ type: 'fenced', detail }, { type: 'lease', deadlineMs: 0 });
  }

  #leftCluster(): void {
    this.#phase = 'left';
    this.#effects.push({ type: 'lease', deadlineMs: 0 }, { type: 'left' });
  }

  #reconcileLease(nowMs: number): void {
    const tells = this.#phase === 'member' || this.#phase === 'leaving';
    for (const effect of this.#lease.reconcile(nowMs)) {
      if ((effect.type === 'suspended' || effect.type === 'resumed') && !tells) continue;
      this.#effects.push(effect);
    }
  }

  /** One swap at a time carries everything that we want changed. */
  #reconcileView(nowMs: number, drives: boolean): void {
    if (this.#swapping || nowMs < this.#swapNotBeforeMs) return;
    const before = this.#mirror.view;
    let next = before;
    if (this.#lease.valid(nowMs)) {
      if (drives) next = this.#driver.nextView(this.#mirror, nowMs);
      if (this.#phase === 'joining') next = this.#withSelf(next);
      if (this.#phase === 'member') next = this.#withAddress(next);
      if (this.#phase === 'leaving') next = this.#withoutSelf(next);
    }
    if (next === before && !this.#confirming) return;
    this.#swapping = true;
    this.#swapConfirms = this.#confirming;
    this.#effects.push({ type: 'swapView', expectedRevision: this.#mirror.viewRevision, record: next });
  }

  /**
   * An older life of ours may still be being expelled: its log may lie on NSDs to which this node is the only path, so this life has to serve
   * before that one's recovery can end. Lives are told apart by their incarnation everywhere.
   */
  #withSelf(view: ViewRecord): ViewRecord {
    const { nodeId } = this.self;
    const record = this.#record;
    if (record === null || view.nodes.some((entry) => entry.nodeId === nodeId)) return view;
    const nodes = [...view.nodes, record].sort((a, b) => a.nodeId - b.nodeId);
    if (!record.tokenServer && view.epoch > 0) return { ...view, nodes };
    const tokenServers = nodes.filter((node) => node.tokenServer).map((node) => node.nodeId);
    return { ...view, epoch: (view.epoch + 1) as Epoch, nodes, tokenServers };
  }

  /** An address says nothing about who may do what: the epoch stays. */
  #withAddress(view: ViewRecord): ViewRecord {
    const record = this.#record;
    const known = view.nodes.find((node) => sameLife(node, this.self));
    if (record === null || known === undefined || sameAddress(known.address, record.address)) return view;
    const nodes = view.nodes.map((node) => (node === known ? { ...node, address: record.address } : node));
    return { ...view, nodes };
  }

  #withoutSelf(view: ViewRecord): ViewRecord {
    const { nodeId, incarnation } = this.self;
    const nodes = view.nodes.filter((node) => !sameLife(node, this.self));
    if (nodes.length === view.nodes.length) return view;
    const served = view.tokenServers.includes(nodeId);
    const clean = this.#leavesClean;
    // F1: an epoch without it comes before its tokens fall.
    const epoch = (served || !clean ? view.epoch + 1 : view.epoch) as Epoch;
    const tokenServers = view.tokenServers.filter((server) => server !== nodeId);
    // The last full node out has nobody to clean up, and nobody who would have to know.
    const expelling = nodes.some((node) => node.address !== null)
      ? [...view.expelling, { nodeId, incarnation, epoch, clean }]
      : view.expelling;
    return { epoch, nodes, tokenServers, expelling };
  }

  #wakeMs(nowMs: number): number {
    const times = [this.#lease.wakeMs(), this.#driver.wakeMs(nowMs)];
    if (this.#readWanted && this.#reading === 0) times.push(this.#readNotBeforeMs);
    if (this.#swapNotBeforeMs > nowMs) times.push(this.#swapNotBeforeMs);
    return Math.max(nowMs, Math.min(...times));
  }
}

function sameAddress(one: NodeRecord['address'], other: NodeRecord['address']): boolean {
  if (one === null || other === null) return one === other;
  const rdma = one.rdma?.host === other.rdma?.host && one.rdma?.port === other.rdma?.port;
  return one.host === other.host && one.port === other.port && rdma;
}
