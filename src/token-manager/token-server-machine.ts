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
import { type ByteRange, range } from '../common/byte-range.js';
import { modeExists } from './compatibility.js';
import { classOfKey, HIT_STRIDE, type ObjectKey, objectKey, objectOfKey } from './holder-table.js';
import type { Member } from './members.js';
import type { QueuedRequest } from './request-queue.js';
import { ServerTakeover } from './server-takeover.js';
import { type StatusNote, TokenClass, TokenMode } from './token.js';
import type {
  AnswerItem,
  Blocker,
  NoteItem,
  RequestItem,
  RequestPart,
  Statement,
  ToServerItem,
  ToServerMessage,
} from './token-messages.js';
import type { MemberIdentity, ServerEffect, ServerEvent } from './token-server-events.js';

export type { TokenServerOptions } from './server-state.js';

export class TokenServerMachine extends ServerTakeover {
  step(event: ServerEvent, nowMs: number): ServerEffect[] {
    this.nowMs = nowMs;
    switch (event.type) {
      case 'view':
        this.enterView(event.view);
        this.receiveEarly();
        break;
      case 'message':
        this.receive(event.from, event.message);
        break;
      case 'expelled':
        this.fall(this.members.fall(event.nodeId, event.incarnation, false));
        break;
      case 'released':
        this.fall(this.members.fall(event.nodeId, event.incarnation, true));
        break;
      case 'holdClosed':
        this.holdClosed({ nodeId: event.nodeId, incarnation: event.incarnation });
        break;
      case 'tick':
        break;
    }
    this.refuseOverdue();
    if (this.ownership.waitFor.size > 0) this.reportContradictions();
    if (this.table.size > this.settings.rangesMax) this.reclaim();
    return this.takeEffects();
  }

  protected receive(from: MemberIdentity, message: ToServerMessage): void {
    if (message.toIncarnation !== this.ownership.self.incarnation) {
      this.fired('messageToOldLife');
      return;
    }
    const member = this.meet(from);
    if (member === undefined || member.state !== 'live') {
      this.fired('messageFromOldLife');
      return;
    }
    if (message.seenSeq > this.seq) {
      this.fired('sequenceFromFuture');
      return;
    }
    for (const item of message.items) this.receiveItem(member, message, item);
    member.seenSeq = Math.max(member.seenSeq, message.seenSeq);
  }

  protected receiveItem(member: Member, message: ToServerMessage, item: ToServerItem): void {
    switch (item.kind) {
      case 'request':
        this.receiveRequest(member, message.epoch, item);
        return;
      case 'cancel':
        this.receiveCancel(member, item.requestId);
        return;
      case 'release': {
        const key = objectKey(item.class, item.object);
        const stale = this.applyStatement(member, item);
        this.fired(stale ? 'releaseStale' : 'releaseTaken');
        this.advance(key);
        return;
      }
      case 'answer':
        this.receiveAnswer(member, item);
        return;
      case 'claim':
        member.claims.push(item);
        return;
      case 'note':
        this.receiveNote(member, item);
        return;
      case 'claimEnd':
        this.receiveClaims(member, this.ownership.accepts(item));
        return;
    }
  }

  /** Whose object it is may have changed since: then it is told again, to the one who asks for claims. */
  protected receiveNote(member: Member, { object, note }: NoteItem): void {
    const key = objectKey(TokenClass.status, object);
    if (!this.ownership.owns(key)) return;
    this.fired('noteTaken');
    this.notes.told(key, member.index, note);
  }

  /** T2: only what was granted up to the sequence that the statement names is changed. Returns whether some was newer. */
  protected applyStatement(member: Member, statement: Statement): boolean {
    const key = objectKey(statement.class, statement.object);
    const asOf = this.asOfSeq(statement);
    let stale = false;
    for (const r of statement.ranges) {
      if (statement.class === TokenClass.status && statement.mode !== TokenMode.exclusive)
        this.settleNotes(member, key, r, asOf);
      const result = this.table.lower(key, member.index, r.start, r.end, statement.mode, asOf, member.seenSeq);
      stale ||= result.stale;
    }
    return stale;
  }

  private settleNotes(member: Member, key: ObjectKey, stated: ByteRange, asOf: number): void {
    this.notes.stated(key, member.index, stated, (offset) => {
      const hits: number[] = [];
      this.table.collect(key, offset, offset + 1, hits);
      for (let i = 0; i < hits.length; i += HIT_STRIDE)
        if (hits[i] === member.index && hits[i + 1] === TokenMode.exclusive && hits[i + 4]! <= asOf) return true;
      return false;
    });
  }

  /** Overridden by a mutation in the tests. */
  protected asOfSeq(statement: Statement): number {
    return statement.asOfSeq;
  }

  protected receiveAnswer(member: Member, item: AnswerItem): void {
    const revoke = this.revokes.get(item.revokeId);
    const stale = this.applyStatement(member, item);
    const key = objectKey(item.class, item.object);
    if (revoke === undefined || revoke.member !== member.index || revoke.key !== key) {
      // Of before a takeover, or for a requester's object that moved: the statement still counts.
      this.fired('answerUnknown');
    } else {
      this.fired(stale ? 'answerStale' : 'answerTaken');
      this.forgetRevoke(revoke);
      if (revoke.prompt) this.refuseInUse(revoke);
    }
    this.advance(key);
  }

  protected receiveRequest(member: Member, epoch: number, item: RequestItem): void {
    const key = objectKey(item.class, item.object);
    // Asked under a later view, or by a life that only a later view has: in between the object may have been another server's,
    // who can't know what we grant. It waits until we have seen what the sender has.
    const isEarly = epoch > this.ownership.epoch || !member.inView;
    if (isEarly || !this.ownership.owns(key)) {
      if (isEarly && this.early.length < this.settings.earlyRequestsMax) {
        this.fired('requestEarly');
        this.early.push({ member, epoch, item });
      } else {
        this.fired('requestRefusedEpoch');
        this.refuse(member, item.requestId, 'staleEpoch', []);
      }
      return;
    }
    if (member.requests.has(item.requestId) || item.parts.some((p) => !modeExists(item.class, p.mode))) {
      this.fired('requestInvalid');
      this.refuse(member, item.requestId, 'invalidArgument', []);
      return;
    }
    this.enqueue(member, key, item);
  }

  protected enqueue(member: Member, key: ObjectKey, item: RequestItem): void {
    const arrivedAtMs = this.nowMs;
    const request: QueuedRequest = {
      requestId: item.requestId,
      member,
      key,
      parts: item.parts,
      nowait: item.nowait,
      prompt: item.prompt,
      deadlineAtMs: item.deadlineMs === 0 ? Number.POSITIVE_INFINITY : arrivedAtMs + item.deadlineMs,
      arrivedAtMs,
      waiting: true,
    };
    const queue = this.queues.get(key);
    // The usual case makes no line: nobody waits, nobody conflicts.
    if (queue === undefined && this.ownership.trusts(key)) {
      const bounds = this.bounds(request, undefined);
      if (bounds !== null) {
        this.fired('grantAtOnce');
        this.grant(request, bounds);
        return;
      }
    }
    if (request.nowait) {
      const free = queue !== undefined && this.ownership.trusts(key) && !this.aheadOf(queue).blocks(request);
      const bounds = free ? this.bounds(request, queue) : null;
      if (bounds !== null) this.grant(request, bounds);
      else {
        this.fired('requestRefusedNowait');
        this.refuse(member, request.requestId, 'tokenRefused', this.blockers(request));
      }
      return;
    }
    member.requests.set(request.requestId, request);
    this.deadlines.push(request);
    if (queue === undefined) this.queues.set(key, { requests: [request], revokes: [] });
    else queue.requests.push(request);
    this.advance(key);
  }

  /** What came before its view. */
  protected receiveEarly(): void {
    const early = this.early;
    this.early = [];
    for (const { member, epoch, item } of early) this.receiveRequest(member, epoch, item);
  }

  protected receiveCancel(member: Member, requestId: number): void {
    const request = member.requests.get(requestId);
    if (request !== undefined) {
      this.fired('requestCancelled');
      this.refuse(member, requestId, 'aborted', []);
      this.removeRequest(request);
      this.advance(request.key);
      return;
    }
    const early = this.early.findIndex((e) => e.member === member && e.item.requestId === requestId);
    if (early >= 0) {
      this.early.splice(early, 1);
      this.refuse(member, requestId, 'aborted', []);
      return;
    }
    // Its grant or refusal is on the way: nothing to do.
    this.fired('cancelTooLate');
  }

  /** Who waits, for what, and who is in the way (T7). */
  waiters(): Waiter[] {
    const all: Waiter[] = [];
    for (const queue of this.queues.values()) {
      for (const request of queue.requests) {
        all.push({
          by: request.member.identity,
          requestId: request.requestId,
          class: classOfKey(request.key),
          object: objectOfKey(request.key),
          parts: request.parts,
          sinceMs: this.nowMs - request.arrivedAtMs,
          blockers: this.blockers(request),
        });
      }
    }
    return all;
  }

  /** Who holds what of an object; null: it is another server's, or not all of it is known yet (T8). */
  holdersOfObject(tokenClass: TokenClass, object: number): Pick<HeldRange, 'by' | 'mode' | 'range'>[] | null {
    const key = objectKey(tokenClass, object);
    if (!this.ownership.trusts(key)) return null;
    const hits: number[] = [];
    this.table.collect(key, 0, Number.MAX_SAFE_INTEGER, hits);
    const held = [];
    for (let i = 0; i < hits.length; i += HIT_STRIDE)
      held.push({
        by: this.members.at(hits[i]!).identity,
        mode: hits[i + 1]! as TokenMode,
        range: range(hits[i + 2]!, hits[i + 3]!),
      });
    return held;
  }

  /** What has been told of sizes and is in no inode yet, as far as this server knows. */
  gathered(): { readonly object: number; readonly note: StatusNote }[] {
    return this.notes.all().map(({ key, note }) => ({ object: objectOfKey(key), note }));
  }

  /** Every range held, as (node, incarnation, class, object, mode, range); at most `limit` of them from `skip` on. */
  list(skip: number, limit: number): HeldRange[] {
    const held: HeldRange[] = [];
    let at = 0;
    for (const key of this.table.keys()) {
      const hits: number[] = [];
      this.table.collect(key, 0, Number.MAX_SAFE_INTEGER, hits);
      for (let i = 0; i < hits.length; i += HIT_STRIDE) {
        if (at++ < skip) continue;
        if (held.length === limit) return held;
        held.push({
          by: this.members.at(hits[i]!).identity,
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
