/**
 * The lock server: who may lock what of which file (fcntl and flock), for the objects that the token server of the same node serves.
 *
 * A file that one node locks is *delegated* to it: that node has the lock token, its table is the truth, and it decides without a message.
 * When a second one comes, the table is recalled, and the server decides for everybody, until one node has been alone with the file
 * again for a while. Pure: `(event, now) -> effects`.
 * Invariants: locks of two owners overlap only if both read; waiters are granted in the order of their arrival, as soon as nobody's lock stands
 * against them (as on Linux, a newcomer whom only waiters stand against is not held up); a wait is in the queue, and no outstanding message
 * (T2); every request is answered once, or falls with its sender (I12); a node's locks fall when it does, not before (I6); nothing is
 * decided about an object before everybody has told what it holds of it (T8).
 * Fault model: nodes and servers die and return as new lives, whose old messages are dropped; nodes may ask for nonsense.
 */
import type { Incarnation, NodeId } from '../../common/ids.js';
import { type ObjectKey, objectKey } from '../holder-table.js';
import { type Member, Members, Ownership } from '../members.js';
import type { ServerIdentity } from '../placement.js';
import { TokenClass } from '../token.js';
import type { MemberIdentity, TokenView } from '../token-server-events.js';
import { DeadlockDetector, type DetectorEffect } from './deadlock.js';
import type {
  LockMessage,
  LockRequest,
  LockServerRequest,
  LockToClientItem,
  LockToServerItem,
} from './lock-messages.js';
import { FileLocks, type LockOwner, LockSpace } from './lock-table.js';

/** Requests of one node in a row, and nobody else's lock or wait, before a file is delegated to it again. */
const ALONE_FOR_REQUESTS = 8;
const WAITERS_PER_FILE_MAX = 4096;
const EARLY_MAX = 10_000;

export type LockServerEvent =
  | { readonly type: 'view'; readonly view: TokenView }
  | { readonly type: 'message'; readonly from: MemberIdentity; readonly message: LockMessage<LockToServerItem> }
  /** Fenced (F1): its locks and waits fall. */
  | {
      readonly type: 'fallen';
      readonly nodeId: NodeId;
      readonly incarnation: Incarnation;
      readonly releaseHeld: boolean;
    }
  | { readonly type: 'holdClosed'; readonly nodeId: NodeId; readonly incarnation: Incarnation };
export interface LockServerEffect {
  readonly to: MemberIdentity;
  readonly message: LockMessage<LockToClientItem>;
}

interface Parked {
  readonly member: Member;
  readonly item: LockServerRequest;
}
interface Waiting extends Parked {
  readonly item: LockRequest;
  readonly sinceMs: number;
}
interface FileState {
  readonly key: ObjectKey;
  readonly object: number;
  readonly locks: FileLocks;
  /** In the order of arrival. */
  waiting: Waiting[];
  /** Who decides alone. */
  delegate: Member | null;
  recalling: boolean;
  /** Until the delegate has handed over, or everybody has claimed. */
  parked: Parked[];
  last: Member | null;
  inARow: number;
}

type HeldItem = LockToServerItem & { readonly kind: 'held' };

export interface LockServerOptions {
  readonly self: ServerIdentity;
  readonly count: (what: string) => void;
}

const keyOf = (object: number): ObjectKey => objectKey(TokenClass.lock, object);

export class LockServerMachine {
  readonly #members = new Members();
  readonly #ownership: Ownership;
  readonly #files = new Map<number, FileState>();
  readonly #detector = new DeadlockDetector();
  /** Of handovers and claims that have not ended. */
  readonly #held = new Map<Member, HeldItem[]>();
  readonly #alone = new Map<Member, number[]>();
  readonly #count: (what: string) => void;
  #early: { readonly member: Member; readonly epoch: number; readonly item: LockServerRequest }[] = [];
  #outboxes = new Map<Member, LockToClientItem[]>();
  #nowMs = 0;

  constructor({ self, count }: LockServerOptions) {
    this.#ownership = new Ownership(self);
    this.#count = count;
  }

  step(event: LockServerEvent, nowMs: number): LockServerEffect[] {
    this.#nowMs = nowMs;
    switch (event.type) {
      case 'view':
        this.#enterView(event.view);
        break;
      case 'message':
        this.#receive(event.from, event.message);
        break;
      case 'fallen':
        for (const member of this.#members.fall(event.nodeId, event.incarnation, event.releaseHeld)) this.#fall(member);
        this.#settle();
        break;
      case 'holdClosed': {
        const member = this.#members.meetDead(event) ?? this.#members.find(event);
        if (member !== undefined) {
          member.held = true;
          this.#close(member);
        }
        break;
      }
    }
    const effects: LockServerEffect[] = [];
    for (const [member, items] of this.#outboxes) {
      if (member.state !== 'live') continue;
      const message = { epoch: this.#ownership.epoch, toIncarnation: member.identity.incarnation, items };
      effects.push({ to: member.identity, message });
    }
    this.#outboxes = new Map();
    return effects;
  }

  /** Of every file that this server decides about: who holds and who waits, for tools. */
  list(): LockListing[] {
    return [...this.#files.values()].map(({ object, locks, waiting, delegate }) => ({
      object,
      delegate: delegate?.identity.nodeId ?? null,
      held: LISTED.flatMap((space) => locks.spaces[space].all().map((lock) => ({ space, ...lock }))),
      waiting: waiting.map(({ item, sinceMs }) => ({
        space: item.space,
        owner: item.owner,
        type: item.type,
        ...item.at,
        waitedMs: this.#nowMs - sinceMs,
      })),
    }));
  }

  #tell(member: Member, item: LockToClientItem): void {
    const items = this.#outboxes.get(member);
    if (items === undefined) this.#outboxes.set(member, [item]);
    else items.push(item);
  }

  // Members and views

  #meet(identity: MemberIdentity): Member | undefined {
    const known = this.#members.find(identity);
    if (known !== undefined) return known;
    for (const older of this.#members.lives(identity.nodeId))
      if (older.identity.incarnation < identity.incarnation && older.state === 'live') this.#close(older);
    return this.#members.meet(identity);
  }

  /** Dead, as far as the view knows: it waits for nothing any more, and keeps its locks until it has fallen. */
  #close(member: Member): void {
    if (member.state !== 'live') return;
    member.state = 'closed';
    member.inView = false;
    this.#held.delete(member);
    this.#alone.delete(member);
    this.#early = this.#early.filter((early) => early.member !== member);
    for (const file of this.#files.values()) this.#dropRequests(file, member);
    this.#effects(this.#detector.dropWhere((owner) => isOf(owner, member)));
  }

  #dropRequests(file: FileState, member: Member): void {
    file.waiting = file.waiting.filter((waiting) => waiting.member !== member);
    file.parked = file.parked.filter((parked) => parked.member !== member);
  }

  #fall(member: Member): void {
    this.#count('fallen');
    this.#ownership.waitFor.delete(member);
    this.#held.delete(member);
    this.#alone.delete(member);
    this.#effects(this.#detector.dropWhere((owner) => isOf(owner, member)));
    for (const file of [...this.#files.values()]) {
      this.#dropRequests(file, member);
      const dropped = file.locks.dropWhere((owner) => isOf(owner, member));
      if (file.delegate === member) this.#undelegated(file);
      else if (dropped) this.#wake(file);
      this.#forgetIfIdle(file);
    }
  }

  #enterView(view: TokenView): void {
    if (view.epoch <= this.#ownership.epoch) {
      if (view.epoch === this.#ownership.epoch) this.#admit(view);
      return;
    }
    const changed = this.#ownership.enter(view);
    const present = this.#admit(view);
    for (const member of [...this.#members.standing()]) if (member.inView && !present.has(member)) this.#close(member);
    for (const identity of view.closed ?? []) {
      const member = this.#members.meetDead(identity) ?? this.#members.find(identity);
      if (member !== undefined) this.#close(member);
    }
    if (changed) this.#beginRebuild();
    for (const member of this.#ownership.waitFor)
      if (member.state === 'live') this.#tell(member, { kind: 'ask', epoch: view.epoch });
    this.#settle();
    const early = this.#early;
    this.#early = [];
    for (const { member, epoch, item } of early) this.#request(member, epoch, item);
  }

  #admit(view: TokenView): Set<Member> {
    const present = new Set<Member>();
    for (const identity of view.nodes) {
      const member = this.#meet(identity);
      if (member === undefined || member.state !== 'live') continue;
      member.inView = true;
      present.add(member);
    }
    return present;
  }

  /** T8: what this server can't vouch for is forgotten; those who ask are told to ask again. */
  #beginRebuild(): void {
    this.#count('rebuild');
    for (const file of [...this.#files.values()]) {
      if (this.#ownership.trusts(file.key)) continue;
      for (const { member, item } of [...file.waiting, ...file.parked])
        this.#fail(member, item.requestId, 'staleEpoch');
      this.#files.delete(file.object);
    }
    this.#effects(this.#detector.dropWhere(() => true));
    this.#ownership.waitFor.clear();
    if (!this.#ownership.serves) return;
    for (const member of this.#members.standing()) this.#ownership.waitFor.add(member);
  }

  #settle(): void {
    if (!this.#ownership.settleIfComplete()) return;
    this.#count('rebuilt');
    for (const file of [...this.#files.values()]) this.#proceed(file);
  }

  // Messages

  #receive(from: MemberIdentity, message: LockMessage<LockToServerItem>): void {
    const member = message.toIncarnation === this.#ownership.self.incarnation ? this.#meet(from) : undefined;
    if (member === undefined || member.state !== 'live') {
      this.#count('messageOfOldLife');
      return;
    }
    for (const item of message.items) this.#item(member, message.epoch, item);
  }

  #item(member: Member, epoch: number, item: LockToServerItem): void {
    switch (item.kind) {
      case 'lock':
      case 'test':
      case 'reduce':
        if (isOf(item.owner, member)) this.#request(member, epoch, item);
        else this.#fail(member, item.requestId, 'invalidArgument');
        return;
      case 'cancel':
        this.#cancel(member, item.requestId);
        return;
      case 'held':
        if (!isOf(item.lock.owner, member)) return;
        listOf(this.#held, member).push(item);
        return;
      case 'alone':
        listOf(this.#alone, member).push(item.object);
        return;
      case 'handover':
        this.#handover(member, item.object);
        return;
      case 'claimEnd':
        this.#claims(member, this.#ownership.accepts(item));
        return;
      case 'report':
        if (isOf(item.report.owner, member)) this.#effects(this.#detector.report(item.report));
        return;
      case 'confirmed':
        if (isOf(item.owner, member)) this.#effects(this.#detector.confirmed(item.checkId, item.owner, item.holds));
        return;
    }
  }

  #effects(effects: readonly DetectorEffect[]): void {
    for (const effect of effects) {
      const { owner, version } = effect;
      const member = this.#members.find({ nodeId: owner.node, incarnation: owner.incarnation });
      if (member === undefined) continue;
      if (effect.type === 'confirm') this.#tell(member, { kind: 'confirm', checkId: effect.checkId, owner, version });
      else {
        this.#count('victims');
        this.#tell(member, { kind: 'victim', owner, version, opId: effect.opId });
      }
    }
  }

  #fail(member: Member, requestId: number, reason: 'staleEpoch' | 'invalidArgument' | 'noLocks' | 'aborted'): void {
    this.#tell(member, { kind: 'failed', requestId, reason });
  }

  #file(object: number): FileState {
    let file = this.#files.get(object);
    if (file === undefined) {
      const key = keyOf(object);
      const [locks, rest] = [new FileLocks(), { waiting: [], delegate: null, recalling: false, parked: [] }];
      file = { key, object, locks, ...rest, last: null, inARow: 0 };
      this.#files.set(object, file);
    }
    return file;
  }

  #forgetIfIdle(file: FileState): void {
    const { locks, waiting, delegate, parked } = file;
    if (delegate === null && locks.size === 0 && waiting.length === 0 && parked.length === 0)
      this.#files.delete(file.object);
  }

  // Requests

  #request(member: Member, epoch: number, item: LockServerRequest): void {
    const key = keyOf(item.object);
    const isEarly = epoch > this.#ownership.epoch || !member.inView;
    if (isEarly || !this.#ownership.owns(key)) {
      if (isEarly && this.#early.length < EARLY_MAX) this.#early.push({ member, epoch, item });
      else this.#fail(member, item.requestId, 'staleEpoch');
      return;
    }
    const isNew = !this.#files.has(item.object);
    const file = this.#file(item.object);
    if (!this.#ownership.trusts(key)) {
      this.#park(file, { member, item });
      return;
    }
    if (isNew) this.#delegate(file, member);
    if (file.delegate === member) this.#tell(member, { kind: 'redo', requestId: item.requestId });
    else if (file.delegate !== null) {
      this.#park(file, { member, item });
      this.#recall(file);
    } else {
      this.#execute(file, { member, item });
      this.#delegateIfAlone(file);
    }
  }

  #park(file: FileState, parked: Parked): void {
    if (file.parked.length < WAITERS_PER_FILE_MAX) file.parked.push(parked);
    else this.#fail(parked.member, parked.item.requestId, 'noLocks');
  }

  #execute(file: FileState, { member, item }: Parked): void {
    file.inARow = file.last === member ? file.inARow + 1 : 1;
    file.last = member;
    const { requestId } = item;
    if (item.kind === 'reduce') {
      file.locks.spaces[item.space].assign(item.owner, item.at, item.pieces);
      this.#tell(member, { kind: 'granted', requestId });
      this.#wake(file);
      return;
    }
    if (item.kind === 'test') {
      const blocker = file.locks.spaces[item.space].conflict(item.owner, item.type, item.at);
      this.#tell(member, blocker === null ? { kind: 'granted', requestId } : { kind: 'refused', requestId, blocker });
      return;
    }
    const { outcome, gaveUp } = file.locks.take(item);
    if (outcome === 'granted') this.#tell(member, { kind: 'granted', requestId });
    else if (outcome === 'full') this.#fail(member, requestId, 'noLocks');
    else if (!item.wait) this.#tell(member, { kind: 'refused', requestId, blocker: outcome.blocker });
    else if (file.waiting.length >= WAITERS_PER_FILE_MAX) this.#fail(member, requestId, 'noLocks');
    else {
      this.#count('queued');
      file.waiting.push({ member, item, sinceMs: this.#nowMs });
      this.#tell(member, { kind: 'queued', requestId });
    }
    if (gaveUp) this.#wake(file);
  }

  /** Something was given up: those who wait, in the order in which they came. */
  #wake(file: FileState): void {
    for (let again = true; again; ) {
      again = false;
      for (const waiting of file.waiting.slice()) {
        const { outcome, gaveUp } = file.locks.take(waiting.item);
        if (outcome !== 'granted' && outcome !== 'full') continue;
        file.waiting = file.waiting.filter((other) => other !== waiting);
        const { requestId } = waiting.item;
        if (outcome === 'full') this.#fail(waiting.member, requestId, 'noLocks');
        else {
          this.#count('grantedAfterWait');
          this.#tell(waiting.member, { kind: 'granted', requestId });
        }
        again ||= gaveUp;
      }
    }
  }

  #cancel(member: Member, requestId: number): void {
    const isMeant = (parked: Parked): boolean => parked.member === member && parked.item.requestId === requestId;
    const early = this.#early.findIndex(isMeant);
    if (early >= 0) {
      this.#early.splice(early, 1);
      this.#fail(member, requestId, 'aborted');
      return;
    }
    for (const file of this.#files.values()) {
      if (!file.waiting.some(isMeant) && !file.parked.some(isMeant)) continue;
      file.waiting = file.waiting.filter((waiting) => !isMeant(waiting));
      file.parked = file.parked.filter((parked) => !isMeant(parked));
      this.#fail(member, requestId, 'aborted');
      this.#forgetIfIdle(file);
      return;
    }
    // Its answer is on the way.
  }

  // Delegation

  #delegate(file: FileState, member: Member): void {
    this.#count('delegated');
    file.delegate = member;
    // What it holds it knows: every answer to it stands before this one.
    file.locks.dropWhere((owner) => isOf(owner, member));
    this.#tell(member, { kind: 'delegated', object: file.object });
  }

  #delegateIfAlone(file: FileState): void {
    const { last, locks, waiting, parked } = file;
    if (last === null || waiting.length > 0 || parked.length > 0) return;
    const isOthers = LISTED.some((space) => locks.spaces[space].all().some(({ owner }) => !isOf(owner, last)));
    if (isOthers) return;
    if (file.inARow >= ALONE_FOR_REQUESTS) this.#delegate(file, last);
    else this.#forgetUnlessContended(file);
  }

  /** A file without locks is kept for a while, so that two nodes that take turns don't pass the table to and fro. */
  #forgetUnlessContended(file: FileState): void {
    if (file.locks.size === 0 && this.#files.size > CONTENDED_FILES_MAX) this.#forgetIfIdle(file);
  }

  #recall(file: FileState): void {
    if (file.recalling || file.delegate === null || file.delegate.state !== 'live') return;
    this.#count('recalled');
    file.recalling = true;
    this.#tell(file.delegate, { kind: 'recall', object: file.object });
  }

  #handover(member: Member, object: number): void {
    const held = this.#held.get(member) ?? [];
    this.#held.delete(member);
    const file = this.#files.get(object);
    if (file?.delegate !== member) {
      this.#count('handoverOfNothing');
      return;
    }
    for (const item of held)
      if (item.object === object) file.locks.spaces[item.space].set(item.lock.owner, item.lock.type, item.lock);
    this.#undelegated(file);
    this.#forgetIfIdle(file);
  }

  #undelegated(file: FileState): void {
    file.delegate = null;
    file.recalling = false;
    file.last = null;
    this.#proceed(file);
  }

  /** What was parked is done, or calls the delegate. */
  #proceed(file: FileState): void {
    if (!this.#ownership.trusts(file.key)) return;
    if (file.delegate !== null) {
      const { delegate, parked } = file;
      file.parked = parked.filter(({ member }) => member !== delegate);
      for (const { member, item } of parked)
        if (member === delegate) this.#tell(member, { kind: 'redo', requestId: item.requestId });
      if (file.parked.length > 0 || file.locks.size > 0) this.#recall(file);
      return;
    }
    const parked = file.parked;
    file.parked = [];
    for (const one of parked) this.#execute(file, one);
    this.#forgetIfIdle(file);
  }

  #claims(member: Member, accepted: boolean): void {
    const held = this.#held.get(member) ?? [];
    const alone = this.#alone.get(member) ?? [];
    this.#held.delete(member);
    this.#alone.delete(member);
    if (!accepted || !this.#ownership.waitFor.has(member)) {
      this.#count('claimsOfOtherList');
      return;
    }
    const isWanted = (object: number): boolean =>
      this.#ownership.owns(keyOf(object)) && !this.#ownership.trusts(keyOf(object));
    for (const { object, space, lock } of held)
      if (isWanted(object)) this.#file(object).locks.spaces[space].set(lock.owner, lock.type, lock);
    for (const object of alone) {
      if (!isWanted(object)) continue;
      const file = this.#file(object);
      if (file.delegate === null) file.delegate = member;
      // Can't be: nobody is told to decide alone before the one before has handed over.
      else this.#count('claimConflict');
    }
    this.#ownership.waitFor.delete(member);
    this.#settle();
  }
}

const LISTED = [LockSpace.ranges, LockSpace.whole] as const;
/** Files without locks that the server goes on deciding about. */
const CONTENDED_FILES_MAX = 10_000;

const isOf = (owner: LockOwner, member: Member): boolean =>
  owner.node === member.identity.nodeId && owner.incarnation === member.identity.incarnation;

function listOf<T>(map: Map<Member, T[]>, member: Member): T[] {
  let list = map.get(member);
  if (list === undefined) {
    list = [];
    map.set(member, list);
  }
  return list;
}

export interface ListedLock {
  readonly space: LockSpace;
  readonly owner: LockOwner;
  readonly type: number;
  readonly start: number;
  readonly end: number;
}
export interface LockListing {
  readonly object: number;
  /** Who decides alone: its locks are its own to tell. */
  readonly delegate: number | null;
  readonly held: readonly ListedLock[];
  readonly waiting: readonly (ListedLock & { readonly waitedMs: number })[];
}
