/**
 * The token server: grants byte-range tokens, calls back what conflicts, in the order of arrival.
 *
 * Owns: the table of holders, the waiting lines, the sequence of grants, the trust in its own table after a takeover. Pure:
 * `(event, now) -> effects`, no clock, socket, random source or promise.
 * Invariants: I1 (a grant leaves only when nobody else holds what conflicts with it); T2 (every statement names the newest
 * grant that its sender had seen, and changes nothing granted later); T3 (a request never overtakes an earlier one that it
 * conflicts with); I6 and T8 (a closed member's tokens conflict with everyone; an object that is not trusted is not granted);
 * I12 (every request is granted, refused, or falls with its sender). What the table shows of a node is never less than what
 * the node holds.
 * Fault model: nodes die and return as new lives; messages of older lives, and for older lives of this server, are dropped;
 * nodes may ask for nonsense or claim what others hold: refused and counted, never a crash.
 */
import { type ByteRange, overlaps, range } from '../common/byte-range.js';
import type { Reason } from '../common/errors.js';
import { type Incarnation, nodeId } from '../common/ids.js';
import {
  type AnswerItem,
  BLOCKERS_MAX,
  type Blocker,
  type ClaimItem,
  type GrantedRange,
  type RequestItem,
  type RequestPart,
  type Statement,
  type ToClientItem,
  type ToServerItem,
  type ToServerMessage,
} from '../protocol/token-messages.js';
import { conflicts, keepBeside, modeExists } from './compatibility.js';
import {
  classOfKey,
  HIT_STRIDE,
  HolderTable,
  type MemberIndex,
  type ObjectKey,
  objectKey,
  objectOfKey,
} from './holder-table.js';
import { type Member, Members, Ownership } from './members.js';
import type { ServerIdentity } from './placement.js';
import { Ahead, DeadlineHeap, type ObjectQueue, type QueuedRequest, type SentRevoke } from './request-queue.js';
import { type TokenClass, TokenMode } from './token.js';
import type {
  MemberIdentity,
  ServerEffect,
  ServerEvent,
  ServerTransition,
  TokenServerSettings,
  TokenView,
} from './token-server-events.js';

export interface TokenServerOptions {
  readonly self: ServerIdentity;
  readonly settings: TokenServerSettings;
  readonly fired: (transition: ServerTransition) => void;
}

/** Ranges asked back in one step when the table is over its bound. */
const RECLAIMS_PER_STEP_MAX = 256;

export class TokenServerMachine {
  readonly #settings: TokenServerSettings;
  readonly #fired: (transition: ServerTransition) => void;
  readonly #table = new HolderTable();
  readonly #members = new Members();
  readonly #ownership: Ownership;
  readonly #queues = new Map<ObjectKey, ObjectQueue>();
  readonly #revokes = new Map<number, SentRevoke>();
  readonly #deadlines = new DeadlineHeap();
  /** Requests under a later view than ours, for objects that it will make ours. */
  #early: { member: Member; item: RequestItem }[] = [];
  #seq = 0;
  #lastRevokeId = 0;
  #reclaims = 0;
  #reclaimCursor: IterableIterator<ObjectKey> | null = null;
  /** Scratch for `collect`: no allocation per request. */
  readonly #hits: number[] = [];
  #nowMs = 0;
  #contradictionDueMs = Number.POSITIVE_INFINITY;
  #touched: Member[] = [];
  #violations: ServerEffect[] = [];

  constructor(options: TokenServerOptions) {
    this.#settings = options.settings;
    this.#fired = options.fired;
    this.#ownership = new Ownership(options.self);
  }

  /** Which of this node's lives the machine serves in. */
  get life(): Incarnation {
    return this.#ownership.self.incarnation;
  }
  /** When a `tick` is due, in milliseconds of the caller's clock; Infinity if never. */
  get nextWakeMs(): number {
    return Math.min(this.#deadlines.nextMs(), this.#contradictionDueMs);
  }
  get rangeCount(): number {
    return this.#table.size;
  }
  get waitingCount(): number {
    let count = 0;
    for (const queue of this.#queues.values()) count += queue.requests.length;
    return count;
  }
  /** Nodes whose claims a takeover still waits for. */
  get rebuildWaitsFor(): MemberIdentity[] {
    return [...this.#ownership.waitFor].map((m) => m.identity);
  }

  step(event: ServerEvent, nowMs: number): ServerEffect[] {
    this.#nowMs = nowMs;
    switch (event.type) {
      case 'view':
        this.#enterView(event.view);
        break;
      case 'message':
        this.#receive(event.from, event.message);
        break;
      case 'expelled':
        this.#fall(this.#members.fall(event.nodeId, event.incarnation, false));
        break;
      case 'released':
        this.#fall(this.#members.fall(event.nodeId, event.incarnation, true));
        break;
      case 'holdClosed':
        for (const member of this.#members.lives(event.nodeId)) {
          if (member.identity.incarnation > event.incarnation) continue;
          member.held = true;
          this.#close(member);
        }
        break;
      case 'tick':
        break;
    }
    this.#refuseOverdue();
    if (this.#ownership.waitFor.size > 0) this.#reportContradictions();
    if (this.#table.size > this.#settings.rangesMax) this.#reclaim();
    return this.#takeEffects();
  }

  #takeEffects(): ServerEffect[] {
    const effects: ServerEffect[] = [];
    for (const member of this.#touched) {
      const items = member.outbox!;
      member.outbox = null;
      if (member.state !== 'live') continue;
      const message = { epoch: this.#ownership.epoch, toIncarnation: member.identity.incarnation, items };
      effects.push({ type: 'send', to: member.identity, message });
    }
    this.#touched = [];
    if (this.#violations.length > 0) {
      effects.push(...this.#violations);
      this.#violations = [];
    }
    return effects;
  }

  #tell(member: Member, item: ToClientItem): void {
    if (member.outbox === null) {
      member.outbox = [];
      this.#touched.push(member);
    }
    member.outbox.push(item);
  }

  // ---- messages

  #receive(from: MemberIdentity, message: ToServerMessage): void {
    if (message.toIncarnation !== this.#ownership.self.incarnation) {
      this.#fired('messageToOldLife');
      return;
    }
    const member = this.#meet(from);
    if (member === undefined || member.state !== 'live') {
      this.#fired('messageFromOldLife');
      return;
    }
    if (message.seenSeq > this.#seq) {
      this.#fired('sequenceFromFuture');
      return;
    }
    for (const item of message.items) this.#receiveItem(member, message, item);
    member.seenSeq = Math.max(member.seenSeq, message.seenSeq);
  }

  #receiveItem(member: Member, message: ToServerMessage, item: ToServerItem): void {
    switch (item.kind) {
      case 'request':
        this.#receiveRequest(member, message.epoch, item);
        return;
      case 'cancel':
        this.#receiveCancel(member, item.requestId);
        return;
      case 'release': {
        const key = objectKey(item.class, item.object);
        const stale = this.#applyStatement(member, item);
        this.#fired(stale ? 'releaseStale' : 'releaseTaken');
        this.#advance(key);
        return;
      }
      case 'answer':
        this.#receiveAnswer(member, item);
        return;
      case 'claim':
        member.claims.push(item);
        return;
      case 'claimEnd':
        this.#receiveClaims(member, this.#ownership.accepts(item));
        return;
    }
  }

  /** T2: only what was granted up to the sequence that the statement names is changed. Returns whether some was newer. */
  #applyStatement(member: Member, statement: Statement): boolean {
    const key = objectKey(statement.class, statement.object);
    const asOf = this.asOfSeq(statement);
    let stale = false;
    for (const r of statement.ranges) {
      const result = this.#table.lower(key, member.index, r.start, r.end, statement.mode, asOf, member.seenSeq);
      stale ||= result.stale;
    }
    return stale;
  }

  /** Overridden by a mutation in the tests. */
  protected asOfSeq(statement: Statement): number {
    return statement.asOfSeq;
  }

  #receiveAnswer(member: Member, item: AnswerItem): void {
    const revoke = this.#revokes.get(item.revokeId);
    const stale = this.#applyStatement(member, item);
    const key = objectKey(item.class, item.object);
    if (revoke === undefined || revoke.member !== member.index || revoke.key !== key) {
      // Of before a takeover, or for a requester's object that moved: the statement still counts.
      this.#fired('answerUnknown');
    } else {
      this.#fired(stale ? 'answerStale' : 'answerTaken');
      this.#forgetRevoke(revoke);
    }
    this.#advance(key);
  }

  #forgetRevoke(revoke: SentRevoke): void {
    this.#revokes.delete(revoke.revokeId);
    if (revoke.reclaim) this.#reclaims--;
    const queue = this.#queues.get(revoke.key);
    if (queue !== undefined) queue.revokes = queue.revokes.filter((r) => r !== revoke);
  }

  #receiveRequest(member: Member, epoch: number, item: RequestItem): void {
    const key = objectKey(item.class, item.object);
    if (!this.#ownership.owns(key)) {
      if (epoch > this.#ownership.epoch && this.#early.length < this.#settings.earlyRequestsMax) {
        this.#fired('requestEarly');
        this.#early.push({ member, item });
      } else {
        this.#fired('requestRefusedEpoch');
        this.#refuse(member, item.requestId, 'staleEpoch', []);
      }
      return;
    }
    if (member.requests.has(item.requestId) || item.parts.some((p) => !modeExists(item.class, p.mode))) {
      this.#fired('requestInvalid');
      this.#refuse(member, item.requestId, 'invalidArgument', []);
      return;
    }
    // Many writers need a metanode that gathers; until one does, the mode is known and refused.
    if (item.parts.some((p) => p.mode === TokenMode.sharedWrite)) {
      this.#refuse(member, item.requestId, 'notSupported', []);
      return;
    }
    this.#enqueue(member, key, item);
  }

  #enqueue(member: Member, key: ObjectKey, item: RequestItem): void {
    const arrivedAtMs = this.#nowMs;
    const request: QueuedRequest = {
      requestId: item.requestId,
      member,
      key,
      parts: item.parts,
      nowait: item.nowait,
      deadlineAtMs: item.deadlineMs === 0 ? Number.POSITIVE_INFINITY : arrivedAtMs + item.deadlineMs,
      arrivedAtMs,
      waiting: true,
    };
    const queue = this.#queues.get(key);
    // The usual case makes no line: nobody waits, nobody conflicts.
    if (queue === undefined && this.#ownership.trusts(key)) {
      const bounds = this.#bounds(request, undefined);
      if (bounds !== null) {
        this.#fired('grantAtOnce');
        this.#grant(request, bounds);
        return;
      }
    }
    if (request.nowait) {
      const free = queue !== undefined && this.#ownership.trusts(key) && !this.#aheadOf(queue).blocks(request);
      const bounds = free ? this.#bounds(request, queue) : null;
      if (bounds !== null) this.#grant(request, bounds);
      else {
        this.#fired('requestRefusedNowait');
        this.#refuse(member, request.requestId, 'tokenRefused', this.#blockers(request));
      }
      return;
    }
    member.requests.set(request.requestId, request);
    this.#deadlines.push(request);
    if (queue === undefined) this.#queues.set(key, { requests: [request], revokes: [] });
    else queue.requests.push(request);
    this.#advance(key);
  }

  #receiveCancel(member: Member, requestId: number): void {
    const request = member.requests.get(requestId);
    if (request !== undefined) {
      this.#fired('requestCancelled');
      this.#refuse(member, requestId, 'aborted', []);
      this.#removeRequest(request);
      this.#advance(request.key);
      return;
    }
    const early = this.#early.findIndex((e) => e.member === member && e.item.requestId === requestId);
    if (early >= 0) {
      this.#early.splice(early, 1);
      this.#refuse(member, requestId, 'aborted', []);
      return;
    }
    // Its grant or refusal is on the way: nothing to do.
    this.#fired('cancelTooLate');
  }

  // ---- the waiting line

  #removeRequest(request: QueuedRequest): void {
    request.waiting = false;
    this.#deadlines.ended(request);
    request.member.requests.delete(request.requestId);
    const queue = this.#queues.get(request.key);
    if (queue !== undefined) queue.requests = queue.requests.filter((r) => r !== request);
  }

  /** Grants what can be granted, in order; asks holders for what the first of each conflicting range waits for. */
  #advance(key: ObjectKey): void {
    const queue = this.#queues.get(key);
    if (queue === undefined) return;
    if (this.#ownership.trusts(key)) {
      const ahead = new Ahead();
      for (const request of queue.requests.slice()) {
        if (this.overtakingForbidden() && ahead.blocks(request)) {
          this.#fired('requestWaitsInLine');
          ahead.add(request);
          continue;
        }
        const bounds = this.#bounds(request, queue);
        if (bounds !== null) {
          this.#fired('grantAfterWait');
          this.#removeRequest(request);
          this.#grant(request, bounds);
        } else {
          this.#revokeFor(request, queue);
          ahead.add(request);
        }
      }
    } else if (queue.requests.length > 0) this.#fired('requestWaitsForClaims');
    if (queue.requests.length === 0 && queue.revokes.length === 0) this.#queues.delete(key);
  }

  /** Overridden by a mutation in the tests. */
  protected overtakingForbidden(): boolean {
    return true;
  }

  #aheadOf(queue: ObjectQueue): Ahead {
    const ahead = new Ahead();
    for (const request of queue.requests) ahead.add(request);
    return ahead;
  }

  /** Overridden by a mutation in the tests. */
  protected standsAgainst(wanted: TokenMode, held: TokenMode): boolean {
    return conflicts(wanted, held);
  }

  /**
   * For each part the largest range that contains the required one, lies in the desired one, and conflicts neither with a
   * holder nor with anybody who waits. Null when a holder conflicts with what is required.
   */
  #bounds(request: QueuedRequest, queue: ObjectQueue | undefined): ByteRange[] | null {
    const bounds: ByteRange[] = [];
    for (const part of request.parts) {
      const within = this.#boundsOfPart(request, part, queue);
      if (within === null) return null;
      bounds.push(within);
    }
    return bounds;
  }

  #boundsOfPart(request: QueuedRequest, part: RequestPart, queue: ObjectQueue | undefined): ByteRange | null {
    const { required, desired } = part;
    let left = desired.start;
    let right = desired.end;
    const hits = this.#hits;
    hits.length = 0;
    this.#table.collect(request.key, left, right, hits);
    for (let i = 0; i < hits.length; i += HIT_STRIDE) {
      if (hits[i] === request.member.index) continue;
      if (!this.standsAgainst(part.mode, hits[i + 1]! as TokenMode)) continue;
      const start = hits[i + 2]!;
      const end = hits[i + 3]!;
      if (end <= required.start) left = Math.max(left, end);
      else if (start >= required.end) right = Math.min(right, start);
      else return null;
    }
    if (queue !== undefined) {
      for (const other of queue.requests) {
        if (other === request || other.member === request.member) continue;
        for (const theirs of other.parts) {
          if (!conflicts(part.mode, theirs.mode)) continue;
          // Those who wait for our required range itself came later: they will ask us for it.
          if (theirs.required.end <= required.start) left = Math.max(left, theirs.required.end);
          else if (theirs.required.start >= required.end) right = Math.min(right, theirs.required.start);
          else {
            if (theirs.required.start < required.start) left = required.start;
            if (theirs.required.end > required.end) right = required.end;
          }
        }
      }
    }
    return range(left, right);
  }

  #grant(request: QueuedRequest, bounds: readonly ByteRange[]): void {
    const { member, key } = request;
    const seq = ++this.#seq;
    const parts: GrantedRange[] = [];
    for (let i = 0; i < request.parts.length; i++) {
      const part = request.parts[i]!;
      const within = bounds[i]!;
      if (within.start > part.desired.start || within.end < part.desired.end) this.#fired('grantNarrowed');
      this.#table.assign(key, member.index, within.start, within.end, part.mode, seq, member.seenSeq);
      parts.push({ mode: part.mode, range: within });
    }
    const [tokenClass, object] = [classOfKey(key), objectOfKey(key)];
    this.#tell(member, { kind: 'grant', requestId: request.requestId, seq, class: tokenClass, object, parts });
  }

  /** Asks every holder in the way for exactly the conflict, unless it has been asked already. */
  #revokeFor(request: QueuedRequest, queue: ObjectQueue): void {
    this.#fired('requestWaitsForHolder');
    for (const part of request.parts) {
      const { required } = part;
      const hits: number[] = [];
      this.#table.collect(request.key, required.start, required.end, hits);
      const wanted = new Map<MemberIndex, { start: number; end: number; keep: TokenMode }>();
      for (let i = 0; i < hits.length; i += HIT_STRIDE) {
        const holder = hits[i]!;
        const held = hits[i + 1]! as TokenMode;
        if (holder === request.member.index || !conflicts(part.mode, held)) continue;
        // A closed member answers no more: its tokens fall when it has been fenced and recovered.
        if (this.#members.at(holder).state !== 'live') continue;
        const [start, end, seq] = [hits[i + 2]!, hits[i + 3]!, hits[i + 4]!];
        const keep = keepBeside(part.mode, held);
        const asked = queue.revokes.some(
          (r) =>
            r.member === holder &&
            r.range.start <= start &&
            end <= r.range.end &&
            r.upToSeq >= seq &&
            !conflicts(part.mode, r.keep),
        );
        if (asked) {
          this.#fired('revokeSharesOutstanding');
          continue;
        }
        const ask = wanted.get(holder);
        if (ask === undefined) wanted.set(holder, { start, end, keep });
        else {
          ask.start = Math.min(ask.start, start);
          ask.end = Math.max(ask.end, end);
          if (keep < ask.keep) ask.keep = keep;
        }
      }
      for (const [holder, ask] of wanted) {
        this.#fired('revokeSent');
        this.#sendRevoke(request.key, queue, holder, range(ask.start, ask.end), part.desired, ask.keep, request);
      }
    }
  }

  #sendRevoke(
    key: ObjectKey,
    queue: ObjectQueue,
    holder: MemberIndex,
    required: ByteRange,
    desired: ByteRange,
    keep: TokenMode,
    request: QueuedRequest | null,
  ): void {
    const revoke: SentRevoke = {
      revokeId: ++this.#lastRevokeId,
      key,
      member: holder,
      range: required,
      keep,
      upToSeq: this.#seq,
      sentAtMs: this.#nowMs,
      reclaim: request === null,
    };
    queue.revokes.push(revoke);
    this.#revokes.set(revoke.revokeId, revoke);
    if (revoke.reclaim) this.#reclaims++;
    this.#tell(this.#members.at(holder), {
      kind: 'revoke',
      revokeId: revoke.revokeId,
      class: classOfKey(key),
      object: objectOfKey(key),
      required,
      desired,
      keep,
      requester: request?.member.identity.nodeId ?? nodeId(0),
      upToSeq: revoke.upToSeq,
    });
  }

  #refuse(member: Member, requestId: number, reason: Reason, blockers: readonly Blocker[]): void {
    this.#tell(member, { kind: 'refusal', requestId, reason, epoch: this.#ownership.epoch, blockers });
  }

  /** T7: who is in the way, of what, and for how long. */
  #blockers(request: QueuedRequest): Blocker[] {
    const blockers: Blocker[] = [];
    const name = (member: Member, mode: TokenMode, at: ByteRange, sinceMs: number): void => {
      if (blockers.length < BLOCKERS_MAX) blockers.push({ node: member.identity.nodeId, mode, range: at, sinceMs });
    };
    const queue = this.#queues.get(request.key);
    for (const part of request.parts) {
      if (!this.#ownership.trusts(request.key)) {
        for (const member of this.#ownership.waitFor) {
          name(member, TokenMode.none, part.required, this.#nowMs - request.arrivedAtMs);
        }
      }
      const hits: number[] = [];
      this.#table.collect(request.key, part.required.start, part.required.end, hits);
      for (let i = 0; i < hits.length; i += HIT_STRIDE) {
        const mode = hits[i + 1]! as TokenMode;
        if (hits[i] === request.member.index || !conflicts(part.mode, mode)) continue;
        const at = range(hits[i + 2]!, hits[i + 3]!);
        const sent = queue?.revokes.find((r) => r.member === hits[i] && overlaps(r.range, at));
        name(this.#members.at(hits[i]!), mode, at, this.#nowMs - (sent?.sentAtMs ?? request.arrivedAtMs));
      }
      for (const other of queue?.requests ?? []) {
        if (other === request) break;
        for (const theirs of other.parts) {
          if (!conflicts(part.mode, theirs.mode) || !overlaps(theirs.required, part.required)) continue;
          name(other.member, theirs.mode, theirs.required, this.#nowMs - other.arrivedAtMs);
        }
      }
    }
    return blockers;
  }

  #refuseOverdue(): void {
    for (let due = this.#deadlines.popDue(this.#nowMs); due !== undefined; due = this.#deadlines.popDue(this.#nowMs)) {
      this.#fired('requestRefusedDeadline');
      this.#refuse(due.member, due.requestId, 'tokenDeadline', this.#blockers(due));
      this.#removeRequest(due);
      this.#advance(due.key);
    }
  }

  /** Over the bound: asks holders for whole objects back, going round the table, until enough is on its way. */
  #reclaim(): void {
    const excess = this.#table.size - this.#settings.rangesMax + Math.ceil(this.#settings.rangesMax / 16);
    let want = Math.min(excess - this.#reclaims, RECLAIMS_PER_STEP_MAX);
    let looked = 0;
    while (want > 0 && looked++ < 4 * RECLAIMS_PER_STEP_MAX) {
      this.#reclaimCursor ??= this.#table.keys();
      const next = this.#reclaimCursor.next();
      if (next.done === true) {
        this.#reclaimCursor = null;
        if (looked > this.#table.objectCount) return;
        continue;
      }
      const key = next.value;
      if (this.#queues.has(key)) continue;
      const queue: ObjectQueue = { requests: [], revokes: [] };
      for (const [holder, at] of this.#holdersOf(key)) {
        if (this.#members.at(holder).state !== 'live') continue;
        this.#fired('reclaimSent');
        this.#sendRevoke(key, queue, holder, at, at, TokenMode.none, null);
        want--;
      }
      if (queue.revokes.length > 0) this.#queues.set(key, queue);
    }
  }

  #holdersOf(key: ObjectKey): Map<MemberIndex, ByteRange> {
    const hits: number[] = [];
    this.#table.collect(key, 0, Number.MAX_SAFE_INTEGER, hits);
    const holders = new Map<MemberIndex, ByteRange>();
    for (let i = 0; i < hits.length; i += HIT_STRIDE) {
      const known = holders.get(hits[i]!);
      const [start, end] = [hits[i + 2]!, hits[i + 3]!];
      holders.set(hits[i]!, range(Math.min(known?.start ?? start, start), Math.max(known?.end ?? end, end)));
    }
    return holders;
  }

  // ---- members

  /** Whoever speaks as a new life has ended the older ones; they stay closed until they are said to have fallen. */
  #meet(identity: MemberIdentity): Member | undefined {
    const known = this.#members.find(identity);
    if (known !== undefined) {
      const lives = this.#members.lives(identity.nodeId);
      return lives[lives.length - 1] === known ? known : undefined;
    }
    const member = this.#members.meet(identity);
    if (member === undefined) return undefined;
    this.#fired('memberMet');
    for (const life of this.#members.lives(identity.nodeId)) if (life !== member) this.#close(life);
    return member;
  }

  #dropRequestsOf(member: Member): ObjectKey[] {
    const keys: ObjectKey[] = [];
    for (const request of member.requests.values()) {
      const revoking = (this.#queues.get(request.key)?.revokes.length ?? 0) > 0;
      if (revoking) this.#fired('requesterFallsMidRevoke');
      keys.push(request.key);
    }
    for (const request of [...member.requests.values()]) this.#removeRequest(request);
    this.#early = this.#early.filter((e) => e.member !== member);
    member.claims = [];
    return keys;
  }

  /** No longer in the view, or fenced with a log to replay: it asks nothing, and what it holds is closed to everyone. */
  #close(member: Member): void {
    if (member.state !== 'live') return;
    this.#fired('memberClosed');
    member.state = 'closed';
    for (const key of this.#dropRequestsOf(member)) this.#advance(key);
  }

  /** Fenced for good: tokens and requests fall, revocations sent to it count as answered. */
  #fall(members: readonly Member[]): void {
    const keys = new Set<ObjectKey>();
    for (const member of members) {
      this.#fired('memberFallen');
      for (const key of this.#dropRequestsOf(member)) keys.add(key);
      for (const revoke of [...this.#revokes.values()]) {
        if (revoke.member !== member.index) continue;
        this.#fired('holderFallsMidRevoke');
        this.#forgetRevoke(revoke);
        keys.add(revoke.key);
      }
      for (const key of [...this.#table.keys()]) if (this.#table.dropFrom(key, member.index)) keys.add(key);
      this.#ownership.waitFor.delete(member);
    }
    for (const member of [...this.#ownership.waitFor]) if (member.answer !== null) this.#importAnswer(member);
    for (const key of keys) this.#advance(key);
    this.#settle();
  }

  // ---- views and takeover

  #enterView(view: TokenView): void {
    if (view.epoch <= this.#ownership.epoch) return;
    const changed = this.#ownership.enter(view);
    const present = new Set<Member>();
    for (const identity of view.nodes) {
      const member = this.#meet(identity);
      if (member === undefined) continue;
      member.inView = true;
      present.add(member);
    }
    for (const member of [...this.#members.standing()]) {
      if (member.inView && !present.has(member)) this.#close(member);
    }
    if (changed) this.#beginRebuild();
    for (const member of this.#ownership.waitFor) {
      if (member.state === 'live') this.#tell(member, { kind: 'ask', epoch: view.epoch });
    }
    this.#settle();
    const early = this.#early;
    this.#early = [];
    for (const { member, item } of early) this.#receiveRequest(member, view.epoch, item);
  }

  /** T8: forgets what it can't vouch for, and asks every node that may hold something of it. */
  #beginRebuild(): void {
    this.#fired('rebuildBegun');
    for (const [key, queue] of [...this.#queues]) {
      if (this.#ownership.trusts(key)) continue;
      for (const revoke of queue.revokes) {
        this.#revokes.delete(revoke.revokeId);
        if (revoke.reclaim) this.#reclaims--;
      }
      queue.revokes = [];
      if (!this.#ownership.owns(key)) {
        this.#fired('ownershipLost');
        for (const request of queue.requests.slice()) {
          this.#refuse(request.member, request.requestId, 'staleEpoch', []);
          this.#removeRequest(request);
        }
      }
      if (queue.requests.length === 0) this.#queues.delete(key);
    }
    for (const key of [...this.#table.keys()]) if (!this.#ownership.trusts(key)) this.#table.dropObject(key);
    this.#ownership.waitFor.clear();
    if (!this.#ownership.serves) return;
    for (const member of this.#members.standing()) {
      member.answer = null;
      this.#ownership.waitFor.add(member);
    }
  }

  #receiveClaims(member: Member, accepted: boolean): void {
    const claims = member.claims;
    member.claims = [];
    if (!accepted || !this.#ownership.waitFor.has(member)) {
      this.#fired('claimsOfOtherList');
      return;
    }
    member.answer = { claims, sinceMs: this.#nowMs, reported: false };
    this.#importAnswer(member);
    this.#settle();
  }

  /**
   * A claim that contradicts another member's: that one may be fenced already, and the grant made by a server that had heard
   * of it before us. So it waits until the other falls; nothing is granted meanwhile. If that takes too long, I1 is broken.
   */
  #importAnswer(member: Member): void {
    const { claims } = member.answer!;
    if (claims.some((claim) => this.#contradicted(member, claim) !== null)) {
      this.#fired('claimsWaitForFall');
      return;
    }
    for (const claim of claims) {
      const key = objectKey(claim.class, claim.object);
      // Where the table never lost its trust, it knows better: a grant may be on its way.
      if (!this.#ownership.owns(key) || this.#ownership.trusts(key)) continue;
      this.#fired('claimTaken');
      const seq = Math.min(claim.seq, this.#seq);
      const { start, end } = claim.range;
      this.#table.assign(key, member.index, start, end, claim.mode, seq, member.seenSeq);
    }
    member.answer = null;
    this.#ownership.waitFor.delete(member);
  }

  /** Who holds what the claim conflicts with, in words, or null. */
  #contradicted(member: Member, claim: ClaimItem): string | null {
    const key = objectKey(claim.class, claim.object);
    if (!this.#ownership.owns(key) || this.#ownership.trusts(key)) return null;
    const hits: number[] = [];
    this.#table.collect(key, claim.range.start, claim.range.end, hits);
    for (let i = 0; i < hits.length; i += HIT_STRIDE) {
      if (hits[i] === member.index || !conflicts(claim.mode, hits[i + 1]! as TokenMode)) continue;
      const { nodeId: other, incarnation } = this.#members.at(hits[i]!).identity;
      const what = `class ${claim.class} object ${claim.object} [${hits[i + 2]!}, ${hits[i + 3]!})`;
      return `node ${member.identity.nodeId} claims what node ${other} in life ${incarnation} holds: ${what}`;
    }
    return null;
  }

  #reportContradictions(): void {
    this.#contradictionDueMs = Number.POSITIVE_INFINITY;
    for (const member of this.#ownership.waitFor) {
      const { answer } = member;
      if (answer === null || answer.reported) continue;
      const dueMs = answer.sinceMs + this.#settings.contradictionMs;
      if (dueMs > this.#nowMs) {
        this.#contradictionDueMs = Math.min(this.#contradictionDueMs, dueMs);
        continue;
      }
      answer.reported = true;
      this.#fired('claimConflict');
      for (const claim of answer.claims) {
        const detail = this.#contradicted(member, claim);
        if (detail !== null) this.#violations.push({ type: 'violation', by: member.identity, detail });
      }
    }
  }

  #settle(): void {
    if (!this.#ownership.settleIfComplete()) return;
    this.#fired('rebuildDone');
    for (const key of [...this.#queues.keys()]) this.#advance(key);
  }

  // ---- for tools and tests

  /** Who waits, for what, and who is in the way (T7). */
  waiters(): Waiter[] {
    const all: Waiter[] = [];
    for (const queue of this.#queues.values()) {
      for (const request of queue.requests) {
        all.push({
          by: request.member.identity,
          requestId: request.requestId,
          class: classOfKey(request.key),
          object: objectOfKey(request.key),
          parts: request.parts,
          sinceMs: this.#nowMs - request.arrivedAtMs,
          blockers: this.#blockers(request),
        });
      }
    }
    return all;
  }

  /** Every range held, as (node, incarnation, class, object, mode, range); at most `limit` of them from `skip` on. */
  list(skip: number, limit: number): HeldRange[] {
    const held: HeldRange[] = [];
    let at = 0;
    for (const key of this.#table.keys()) {
      const hits: number[] = [];
      this.#table.collect(key, 0, Number.MAX_SAFE_INTEGER, hits);
      for (let i = 0; i < hits.length; i += HIT_STRIDE) {
        if (at++ < skip) continue;
        if (held.length === limit) return held;
        held.push({
          by: this.#members.at(hits[i]!).identity,
          class: classOfKey(key),
          object: objectOfKey(key),
          mode: hits[i + 1]! as TokenMode,
          range: range(hits[i + 2]!, hits[i + 3]!),
          seq: hits[i + 4]!,
        });
      }
    }
    return held;
  }
}

export interface Waiter {
  readonly by: MemberIdentity;
  readonly requestId: number;
  readonly class: TokenClass;
  readonly object: number;
  readonly parts: readonly RequestPart[];
  /** In milliseconds, up to the last step. */
  readonly sinceMs: number;
  readonly blockers: readonly Blocker[];
}

export interface HeldRange {
  readonly by: MemberIdentity;
  readonly class: TokenClass;
  readonly object: number;
  readonly mode: TokenMode;
  readonly range: ByteRange;
  readonly seq: number;
}
