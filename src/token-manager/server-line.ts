/**
 * The token server's waiting line: who is granted what, who is called back, who is refused.
 *
 * Invariants: I1 and T3 (see request-queue.ts): a grant conflicts with no holder and overtakes nobody; T1: it is as large as
 * the desired range, other holders and those who wait allow; a holder is asked once for exactly the conflict.
 */
import { type ByteRange, overlaps, range } from '../common/byte-range.js';
import { conflicts, keepBeside } from './compatibility.js';
import { classOfKey, HIT_STRIDE, type MemberIndex, type ObjectKey, objectOfKey } from './holder-table.js';
import type { Member } from './members.js';
import { Ahead, type ObjectQueue, type QueuedRequest, type SentRevoke } from './request-queue.js';
import { ServerState } from './server-state.js';
import { isBySegment, TokenClass, TokenMode } from './token.js';
import { BLOCKERS_MAX, type Blocker, type GrantedRange, type RequestPart } from './token-messages.js';

/** Ranges asked back in one step when the table is over its bound. */
const RECLAIMS_PER_STEP_MAX = 256;

export abstract class ServerLine extends ServerState {
  protected removeRequest(request: QueuedRequest): void {
    request.waiting = false;
    this.deadlines.ended(request);
    request.member.requests.delete(request.requestId);
    const queue = this.queues.get(request.key);
    if (queue !== undefined) queue.requests = queue.requests.filter((r) => r !== request);
  }

  /** Grants what can be granted, in order; asks holders for what the first of each conflicting range waits for. */
  protected advance(key: ObjectKey): void {
    const queue = this.queues.get(key);
    if (queue === undefined) return;
    if (this.ownership.trusts(key)) {
      const ahead = new Ahead();
      const patient = new Ahead();
      for (const request of queue.requests.slice()) {
        if (request.prompt && patient.blocks(request)) {
          this.refuseAsInUse(request);
          continue;
        }
        if (this.overtakingForbidden() && ahead.blocks(request)) {
          this.fired('requestWaitsInLine');
          ahead.add(request);
          if (!request.prompt) patient.add(request);
          continue;
        }
        const bounds = this.bounds(request, queue);
        if (bounds !== null) {
          this.fired('grantAfterWait');
          this.removeRequest(request);
          this.grant(request, bounds);
        } else {
          this.revokeFor(request, queue);
          ahead.add(request);
          if (!request.prompt) patient.add(request);
        }
      }
    } else if (queue.requests.length > 0) this.fired('requestWaitsForClaims');
    if (queue.requests.length === 0 && queue.revokes.length === 0) this.queues.delete(key);
  }

  /** A holder was asked for what prompt requests want, and has kept it: somebody has the file open. */
  protected refuseInUse(revoke: SentRevoke): void {
    for (const request of this.queues.get(revoke.key)?.requests.slice() ?? []) {
      if (!request.prompt || request.member.index === revoke.member) continue;
      const keeps = request.parts.some((part) => {
        const { required } = part;
        const mode = this.wantedMode(request, part);
        const hits: number[] = [];
        this.table.collect(revoke.key, required.start, required.end, hits);
        for (let i = 0; i < hits.length; i += HIT_STRIDE) {
          const isMeant = hits[i] === revoke.member && hits[i + 4]! <= revoke.upToSeq;
          const isAsked = hits[i + 2]! < revoke.range.end && revoke.range.start < hits[i + 3]!;
          if (isMeant && isAsked && conflicts(mode, hits[i + 1]! as TokenMode)) return true;
        }
        return false;
      });
      if (keeps) this.refuseAsInUse(request);
    }
  }

  private refuseAsInUse(request: QueuedRequest): void {
    this.fired('requestRefusedInUse');
    this.refuse(request.member, request.requestId, 'tokenRefused', this.blockers(request));
    this.removeRequest(request);
  }

  /** Overridden by a mutation in the tests. */
  protected overtakingForbidden(): boolean {
    return true;
  }

  protected aheadOf(queue: ObjectQueue): Ahead {
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
  protected bounds(request: QueuedRequest, queue: ObjectQueue | undefined): ByteRange[] | null {
    const bounds: ByteRange[] = [];
    for (const part of request.parts) {
      const within = this.boundsOfPart(request, part, queue);
      if (within === null) return null;
      bounds.push(within);
    }
    return bounds;
  }

  /**
   * Shared and concurrent-write on one node are exclusive: whoever holds one and asks for the other asks for that. So does whoever asks for status
   * shared while there are notes of it: they are to be brought into the inode first.
   */
  protected wantedMode({ key, member }: QueuedRequest, { mode, required }: RequestPart): TokenMode {
    if (mode === TokenMode.exclusive || !isBySegment(classOfKey(key))) return mode;
    const hits: number[] = [];
    this.table.collect(key, required.start, required.end, hits);
    for (let i = 0; i < hits.length; i += HIT_STRIDE) {
      const held = hits[i + 1]! as TokenMode;
      if (hits[i] === member.index && held !== TokenMode.exclusive && conflicts(mode, held)) return TokenMode.exclusive;
    }
    if (mode !== TokenMode.shared || classOfKey(key) !== TokenClass.status) return mode;
    return this.notes.any(key, required) ? TokenMode.exclusive : mode;
  }

  /**
   * What a part is granted in, when nobody stands against it. Whoever wants to share status for writing and is alone with it gets it exclusively.
   */
  protected grantedMode(request: QueuedRequest, part: RequestPart, queue: ObjectQueue | undefined): TokenMode {
    const { key, member } = request;
    const { required } = part;
    const mode = this.wantedMode(request, part);
    if (mode !== TokenMode.concurrentWrite || classOfKey(key) !== TokenClass.status) return mode;
    const hits: number[] = [];
    this.table.collect(key, required.start, required.end, hits);
    for (let i = 0; i < hits.length; i += HIT_STRIDE) if (hits[i] !== member.index) return mode;
    const others = queue?.requests.some(
      (r) => r !== request && r.member !== member && r.parts.some((p) => overlaps(p.required, required)),
    );
    return others ? mode : TokenMode.exclusive;
  }

  protected boundsOfPart(request: QueuedRequest, part: RequestPart, queue: ObjectQueue | undefined): ByteRange | null {
    const { required } = part;
    const mode = this.grantedMode(request, part, queue);
    // Neighbours are neither shared for writing by the way, nor shared as long as there are notes of them.
    const isStatus = classOfKey(request.key) === TokenClass.status;
    const narrow =
      isStatus && (mode === TokenMode.concurrentWrite || (mode !== part.mode && part.mode === TokenMode.shared));
    let desired = narrow ? required : part.desired;
    if (isStatus && mode === TokenMode.shared) desired = this.notes.clip(request.key, required, desired);
    let left = desired.start;
    let right = desired.end;
    const hits = this.hits;
    hits.length = 0;
    this.table.collect(request.key, left, right, hits);
    for (let i = 0; i < hits.length; i += HIT_STRIDE) {
      const held = hits[i + 1]! as TokenMode;
      const start = hits[i + 2]!;
      const end = hits[i + 3]!;
      if (hits[i] === request.member.index) {
        // What it has of the other kind is not made exclusive by the way.
        if (held === TokenMode.exclusive || !conflicts(part.mode, held)) continue;
        if (end <= required.start) left = Math.max(left, end);
        else if (start >= required.end) right = Math.min(right, start);
        else {
          left = Math.max(left, required.start);
          right = Math.min(right, required.end);
        }
        continue;
      }
      if (!this.standsAgainst(mode, held)) continue;
      if (end <= required.start) left = Math.max(left, end);
      else if (start >= required.end) right = Math.min(right, start);
      else return null;
    }
    if (queue !== undefined) {
      for (const other of queue.requests) {
        if (other === request || other.member === request.member) continue;
        for (const theirs of other.parts) {
          if (!conflicts(mode, theirs.mode)) continue;
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

  protected grant(request: QueuedRequest, bounds: readonly ByteRange[]): void {
    const { member, key } = request;
    const seq = ++this.seq;
    const [tokenClass, object] = [classOfKey(key), objectOfKey(key)];
    const queue = this.queues.get(key);
    // All of them first: what one part brings makes no other one stronger.
    const modes = request.parts.map((part) =>
      tokenClass === TokenClass.status ? this.grantedMode(request, part, queue) : part.mode,
    );
    const parts: GrantedRange[] = [];
    for (let i = 0; i < request.parts.length; i++) {
      const part = request.parts[i]!;
      const within = bounds[i]!;
      const mode = modes[i]!;
      if (within.start > part.desired.start || within.end < part.desired.end) this.fired('grantNarrowed');
      this.table.assign(key, member.index, within.start, within.end, mode, seq, member.seenSeq);
      parts.push({ mode, range: within });
      if (tokenClass === TokenClass.status && mode === TokenMode.exclusive)
        for (const note of this.notes.in(key, within)) this.tell(member, { kind: 'note', object, note });
    }
    this.tell(member, { kind: 'grant', requestId: request.requestId, seq, class: tokenClass, object, parts });
  }

  /** Asks every holder in the way for exactly the conflict, unless it has been asked already. */
  protected revokeFor(request: QueuedRequest, queue: ObjectQueue): void {
    this.fired('requestWaitsForHolder');
    for (const part of request.parts) {
      const { required } = part;
      const mode = this.wantedMode(request, part);
      const hits: number[] = [];
      this.table.collect(request.key, required.start, required.end, hits);
      const wanted = new Map<MemberIndex, { start: number; end: number; keep: TokenMode }>();
      for (let i = 0; i < hits.length; i += HIT_STRIDE) {
        const holder = hits[i]!;
        const held = hits[i + 1]! as TokenMode;
        if (holder === request.member.index || !conflicts(mode, held)) continue;
        // A closed member answers no more: its tokens fall when it has been fenced and recovered.
        if (this.members.at(holder).state !== 'live') continue;
        const [start, end, seq] = [hits[i + 2]!, hits[i + 3]!, hits[i + 4]!];
        const keep = keepBeside(mode, held);
        const asked = queue.revokes.some(
          (r) =>
            r.member === holder &&
            r.range.start <= start &&
            end <= r.range.end &&
            r.upToSeq >= seq &&
            !conflicts(mode, r.keep) &&
            // One that waits for files to be closed tells a prompt request nothing.
            (r.prompt || !request.prompt),
        );
        if (asked) {
          this.fired('revokeSharesOutstanding');
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
        this.fired('revokeSent');
        this.sendRevoke(request.key, queue, holder, range(ask.start, ask.end), part.desired, ask.keep, request);
      }
    }
  }

  /** T7: who is in the way, of what, and for how long. */
  protected blockers(request: QueuedRequest): Blocker[] {
    const blockers: Blocker[] = [];
    const name = (member: Member, mode: TokenMode, at: ByteRange, sinceMs: number): void => {
      if (blockers.length < BLOCKERS_MAX) blockers.push({ node: member.identity.nodeId, mode, range: at, sinceMs });
    };
    const queue = this.queues.get(request.key);
    for (const part of request.parts) {
      if (!this.ownership.trusts(request.key)) {
        for (const member of this.ownership.waitFor) {
          name(member, TokenMode.none, part.required, this.nowMs - request.arrivedAtMs);
        }
      }
      const hits: number[] = [];
      this.table.collect(request.key, part.required.start, part.required.end, hits);
      for (let i = 0; i < hits.length; i += HIT_STRIDE) {
        const mode = hits[i + 1]! as TokenMode;
        if (hits[i] === request.member.index || !conflicts(part.mode, mode)) continue;
        const at = range(hits[i + 2]!, hits[i + 3]!);
        const sent = queue?.revokes.find((r) => r.member === hits[i] && overlaps(r.range, at));
        name(this.members.at(hits[i]!), mode, at, this.nowMs - (sent?.sentAtMs ?? request.arrivedAtMs));
      }
      for (const other of queue?.requests ?? []) {
        if (other === request) break;
        for (const theirs of other.parts) {
          if (!conflicts(part.mode, theirs.mode) || !overlaps(theirs.required, part.required)) continue;
          name(other.member, theirs.mode, theirs.required, this.nowMs - other.arrivedAtMs);
        }
      }
    }
    return blockers;
  }

  protected refuseOverdue(): void {
    for (let due = this.deadlines.popDue(this.nowMs); due !== undefined; due = this.deadlines.popDue(this.nowMs)) {
      this.fired('requestRefusedDeadline');
      this.refuse(due.member, due.requestId, 'tokenDeadline', this.blockers(due));
      this.removeRequest(due);
      this.advance(due.key);
    }
  }

  /** Over the bound: asks holders for whole objects back, going round the table, until enough is on its way. */
  protected reclaim(): void {
    const excess = this.table.size - this.settings.rangesMax + Math.ceil(this.settings.rangesMax / 16);
    let want = Math.min(excess - this.reclaims, RECLAIMS_PER_STEP_MAX);
    let looked = 0;
    while (want > 0 && looked++ < 4 * RECLAIMS_PER_STEP_MAX) {
      this.reclaimCursor ??= this.table.keys();
      const next = this.reclaimCursor.next();
      if (next.done === true) {
        this.reclaimCursor = null;
        if (looked > this.table.objectCount) return;
        continue;
      }
      const key = next.value;
      // Who has files open keeps their tokens, and whole segments would wait for them.
      if (this.queues.has(key) || classOfKey(key) === TokenClass.open) continue;
      const queue: ObjectQueue = { requests: [], revokes: [] };
      for (const [holder, at] of this.holdersOf(key)) {
        if (this.members.at(holder).state !== 'live') continue;
        this.fired('reclaimSent');
        this.sendRevoke(key, queue, holder, at, at, TokenMode.none, null);
        want--;
      }
      if (queue.revokes.length > 0) this.queues.set(key, queue);
    }
  }

  protected holdersOf(key: ObjectKey): Map<MemberIndex, ByteRange> {
    const hits: number[] = [];
    this.table.collect(key, 0, Number.MAX_SAFE_INTEGER, hits);
    const holders = new Map<MemberIndex, ByteRange>();
    for (let i = 0; i < hits.length; i += HIT_STRIDE) {
      const known = holders.get(hits[i]!);
      const [start, end] = [hits[i + 2]!, hits[i + 3]!];
      holders.set(hits[i]!, range(Math.min(known?.start ?? start, start), Math.max(known?.end ?? end, end)));
    }
    return holders;
  }
}
