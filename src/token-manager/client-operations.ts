/**
 * Operations of this node that want tokens: pinned group by group in the total order (T4), at their grants (T3), or failed.
 *
 * Invariants: an operation waits on the object of its first group that is not pinned; for overlapping ranges of an object one
 * request is outstanding (T2); every operation is pinned or fails (I12). Who is about to ask for what a request under way desires too
 * waits for that one's grant: once per operation and object, for a bounded time, then it asks by itself.
 */
import { type ByteRange, contains, overlaps } from '../common/byte-range.js';
import type { Reason } from '../common/errors.js';
import { type ObjectState, PinSet, type SentRequest, type WaitingOp } from './client-object.js';
import { ClientState, NEVER } from './client-state.js';
import { covers } from './compatibility.js';
import { TokenClass, TokenMode } from './token.js';
import type { AcquireOp, TokenGroup } from './token-client-events.js';
import type { Blocker, RequestPart } from './token-messages.js';

export abstract class ClientOperations extends ClientState {
  protected enter(op: AcquireOp): WaitingOp {
    const waiting = { op, pins: new PinSet(), next: 0, waitsOn: null, behindRevoke: false, done: false, joined: null };
    this.ops.set(op.opId, waiting);
    this.wakeAt(op.deadlineAtMs + this.settings.deadlineGraceMs);
    return waiting;
  }

  /** Pins what is there, group by group; asks for everything that is missing; waits for the first of it. */
  protected progress(waiting: WaitingOp): void {
    const { groups } = waiting.op;
    this.stopWaiting(waiting);
    waiting.behindRevoke = false;
    if (this.suspended) return;
    for (; waiting.next < groups.length; waiting.next++) {
      const group = groups[waiting.next]!;
      const state = this.objects[group.class]!.get(group.object);
      if (state === undefined || !state.coversParts(group.parts)) break;
      const revoked = group.parts.some((p) => state.beingRevoked(p.required.start, p.required.end, p.mode));
      if (revoked) break;
      this.pinGroup(waiting, state, group);
    }
    if (waiting.next === groups.length) {
      this.complete(waiting);
      return;
    }
    const group = groups[waiting.next]!;
    const state = this.state(group.class, group.object);
    if (this.isPrompt(waiting, group) && state.heldUp(group.parts)) {
      this.fired('refusedInUse');
      this.fail(waiting, 'tokenRefused', []);
      return;
    }
    this.waitOn(waiting, state);
    for (let i = waiting.next; i < groups.length; i++) this.ask(waiting, i);
  }

  /** An open file may stay open for hours: whoever finds one in its way is told so, unless it said that it would wait. */
  protected isPrompt(waiting: WaitingOp, group: TokenGroup): boolean {
    return group.class === TokenClass.open && !waiting.op.patient;
  }

  protected pinGroup(waiting: WaitingOp, state: ObjectState, group: TokenGroup): void {
    state.used = true;
    for (const { required, mode } of group.parts) {
      waiting.pins.pins.push(this.pin(state, required.start, required.end, mode));
    }
  }

  protected complete(waiting: WaitingOp): void {
    waiting.done = true;
    this.ops.delete(waiting.op.opId);
    this.effects.push({ type: 'pinned', opId: waiting.op.opId, pins: waiting.pins });
  }

  protected waitOn(waiting: WaitingOp, state: ObjectState): void {
    waiting.waitsOn = state;
    state.waiters.push(waiting);
  }

  protected stopWaiting(waiting: WaitingOp): void {
    const state = waiting.waitsOn;
    if (state === null) return;
    state.waiters = state.waiters.filter((w) => w !== waiting);
    waiting.waitsOn = null;
  }

  /** Asks for group `index`, unless it is held, being revoked, or asked for already (T2). */
  protected ask(waiting: WaitingOp, index: number): void {
    const group = waiting.op.groups[index]!;
    const state = this.state(group.class, group.object);
    const isOverlapped = (r: ByteRange): boolean => group.parts.some((p) => overlaps(p.required, r));
    if (state.requests.some((r) => r.group.parts.some((p) => isOverlapped(p.required)))) {
      this.fired('waitsForOwnRequest');
      return;
    }
    if (group.parts.some((p) => state.beingRevoked(p.required.start, p.required.end, p.mode))) {
      this.fired('waitsForRevoke');
      return;
    }
    if (state.coversParts(group.parts) || this.joins(waiting, index, state)) return;
    const link = this.linkOf(state);
    if (link === undefined || state.retryAtMs > this.nowMs) {
      if (state.retryAtMs > this.nowMs) this.wakeAt(state.retryAtMs);
      this.fired('waitsForServer');
      return;
    }
    this.fired('requestSent');
    const { op } = waiting;
    const request: SentRequest = {
      requestId: ++this.lastRequestId,
      object: state,
      group,
      waiter: waiting,
      groupIndex: index,
      joiners: [],
      joinUntilMs: this.nowMs + this.settings.joinMs,
    };
    state.requests.push(request);
    this.requests.set(request.requestId, request);
    this.tell(link, {
      kind: 'request',
      requestId: request.requestId,
      class: group.class,
      object: group.object,
      parts: group.parts,
      nowait: op.nowait,
      prompt: this.isPrompt(waiting, group),
      deadlineMs: op.deadlineAtMs === NEVER ? 0 : Math.max(1, op.deadlineAtMs - this.nowMs),
    });
  }

  /**
   * Neighbours that are wanted side by side come with one grant. Nobody is held up by it for long: a request may wait for a holder that is
   * in nobody else's way, and what it is granted may be less than it desired.
   */
  private joins(waiting: WaitingOp, index: number, state: ObjectState): boolean {
    const { op } = waiting;
    const before = waiting.joined?.get(index);
    if (before !== undefined) {
      const isUnderWay = this.requests.get(before.requestId) === before;
      if (isUnderWay && before.joinUntilMs > this.nowMs) return true;
      this.fired(isUnderWay ? 'joinedTooLong' : 'joinedInVain');
      return false;
    }
    const { class: tokenClass, parts } = op.groups[index]!;
    // Of data, what is granted is often less than what is desired: several nodes are at work in the file.
    if (op.nowait || (tokenClass !== TokenClass.status && tokenClass !== TokenClass.open)) return false;
    const request = state.requests.find(
      (r) =>
        r.waiter !== null &&
        r.waiter.op.patient !== true &&
        r.joinUntilMs > this.nowMs &&
        parts.every((part) => r.group.parts.some((other) => brings(other, part))),
    );
    if (request === undefined) return false;
    this.fired('joinsRequest');
    waiting.joined ??= new Map();
    waiting.joined.set(index, request);
    request.joiners.push(waiting);
    this.wakeAt(request.joinUntilMs);
    return true;
  }

  protected endRequest(request: SentRequest): void {
    const state = request.object;
    this.requests.delete(request.requestId);
    state.requests = state.requests.filter((r) => r !== request);
  }

  /** Something changed for this object: its waiters look again, in order. */
  protected reconsider(state: ObjectState): void {
    for (const waiting of state.waiters.slice()) {
      if (waiting.done || waiting.waitsOn !== state) continue;
      if (waiting.behindRevoke) this.passRevokes(waiting, state);
      else {
        const before = waiting.next;
        this.progress(waiting);
        if (waiting.next > before) this.fired('pinnedAfterWait');
      }
    }
    this.forgetIfEmpty(state);
  }

  /** An operation pinned at its grant goes on once the revocations before that grant have ended. */
  protected passRevokes(waiting: WaitingOp, state: ObjectState): void {
    const blocked = waiting.pins.pins.some(
      (pin) => pin.object === state && state.beingRevoked(pin.start, pin.end, pin.mode, pin.serial),
    );
    if (blocked) {
      waiting.behindRevoke = true;
      return;
    }
    waiting.next++;
    this.progress(waiting);
  }

  protected fail(waiting: WaitingOp, reason: Reason, blockers: readonly Blocker[]): void {
    waiting.done = true;
    this.ops.delete(waiting.op.opId);
    this.stopWaiting(waiting);
    const group = waiting.op.groups[Math.min(waiting.next, waiting.op.groups.length - 1)]!;
    this.effects.push({ type: 'failed', opId: waiting.op.opId, reason, group, blockers });
    waiting.pins.release();
    for (const { class: tokenClass, object } of waiting.op.groups) {
      const state = this.objects[tokenClass]!.get(object);
      if (state === undefined) continue;
      for (const request of state.requests) {
        if (request.waiter !== waiting) continue;
        request.waiter = null;
        const link = this.linkOf(state);
        if (link !== undefined) this.tell(link, { kind: 'cancel', requestId: request.requestId });
      }
      this.forgetIfEmpty(state);
    }
  }

  protected retryAll(): void {
    for (const waiting of [...this.ops.values()]) {
      if (!waiting.done && !waiting.behindRevoke) this.progress(waiting);
    }
  }
}

/** Granted all that it desires, the one serves the other. Concurrent-write status is granted for one sector. */
const brings = ({ mode, desired }: RequestPart, part: RequestPart): boolean =>
  mode !== TokenMode.concurrentWrite && covers(mode, part.mode) && contains(desired, part.required);
