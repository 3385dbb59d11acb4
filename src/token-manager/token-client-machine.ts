/**
 * The token client: which ranges this node may use, who on it uses them, and how they are given up.
 *
 * Owns: per object what is held, pinned, asked for, called back, and who waits; per server the grants seen. Pure:
 * `(event, now) -> effects`; beside `step` only `tryPin`, a pin's `release` and queries, which yield no effects and are on
 * every operation's path. `working` (where an object is in use) is asked as a pure question.
 * Invariants: I2 (a pin lies in what is held, and what is pinned is not given up); T2 (one outstanding request per object and
 * overlapping range; every statement names the newest grant seen and tells what is true when it is made); T3 (an operation is
 * pinned in the step in which its grant arrives; after a revocation has begun nobody new gets in its way); T4 (groups are
 * pinned in the total order; a grant that comes early is held unpinned); T5 (a revocation waits for pins of operations and
 * older revocations only, never for a token); I12 (every operation ends).
 * Fault model: servers die, return as new lives, and hand objects over; their old messages are dropped. Grants cross
 * releases and revocations. A server that breaks the protocol is refused and counted.
 */
import { type ByteRange, contains, overlaps, range } from '../common/byte-range.js';
import type { Reason } from '../common/errors.js';
import { type Epoch, type NodeId, epoch as toEpoch } from '../common/ids.js';
import {
  type Blocker,
  type GrantItem,
  type RefusalItem,
  type RevokeItem,
  STATEMENT_RANGES_MAX,
  type ToClientItem,
  type ToClientMessage,
  type ToServerItem,
} from '../protocol/token-messages.js';
import {
  COVER_MASK,
  giveWay,
  ObjectState,
  Pin,
  PinSet,
  type Revoking,
  type SentRequest,
  type WaitingOp,
} from './client-object.js';
import { covers, join } from './compatibility.js';
import { listFingerprint, type ServerIdentity, sameServer, serverOf } from './placement.js';
import { type FlatPieces, NEVER_SETTLED, STRIDE } from './range-map.js';
import { TokenClass, type TokenItem, TokenMode, type TokenObject, type TokenPins } from './token.js';
import type {
  AcquireOp,
  ClientEffect,
  ClientEvent,
  ClientTransition,
  TokenClientSettings,
  TokenGroup,
} from './token-client-events.js';

export interface TokenClientMachineOptions {
  readonly self: ServerIdentity;
  readonly settings: TokenClientSettings;
  readonly fired: (transition: ClientTransition) => void;
  /** Where the object is in use now, or null: RevokeHandler.working. */
  readonly working: (tokenClass: TokenClass, object: TokenObject) => ByteRange | null;
  /** A pin was released that a revocation waits for: a `drained` event is due. May be called inside `step`. */
  readonly onDrained: () => void;
}

/** What we know of one life of a server. */
interface Link {
  readonly identity: ServerIdentity;
  seenSeq: number;
  /** An ask for an epoch that we have not reached. */
  askedEpoch: Epoch | null;
  outbox: ToServerItem[] | null;
}

const NEVER = Number.POSITIVE_INFINITY;

export class TokenClientMachine {
  readonly #self: ServerIdentity;
  readonly #settings: TokenClientSettings;
  readonly #fired: (transition: ClientTransition) => void;
  readonly #working: TokenClientMachineOptions['working'];
  readonly #onDrained: () => void;

  #epoch = toEpoch(0);
  #servers: readonly ServerIdentity[] = [];
  readonly #links = new Map<NodeId, Link>();
  /** By class, then object. */
  #objects: Map<TokenObject, ObjectState>[] = Object.values(TokenClass).map(() => new Map());
  readonly #ops = new Map<number, WaitingOp>();
  readonly #requests = new Map<number, SentRequest>();
  readonly #revokes = new Map<number, Revoking>();
  /** Revocations that are left of each of our own releases. */
  readonly #releases = new Map<number, number>();
  #drained = new Set<ObjectState>();
  #lastRequestId = 0;
  /** Seen from any server in any life. */
  #highestSeq = 0;
  #serial = 0;
  #pieces = 0;
  #shrinkCursor: Iterator<ObjectState> | null = null;
  #suspended = false;
  #fenced = false;

  #nowMs = 0;
  #nextWakeMs = NEVER;
  #touched: Link[] = [];
  #effects: ClientEffect[] = [];

  constructor(options: TokenClientMachineOptions) {
    this.#self = options.self;
    this.#settings = options.settings;
    this.#fired = options.fired;
    this.#working = options.working;
    this.#onDrained = options.onDrained;
  }

  // ---- the fast path

  /** All items held and in nobody's way: pinned. Else null, and nothing is. */
  tryPin(items: readonly TokenItem[]): TokenPins | null {
    if (this.#suspended || this.#fenced) return null;
    for (const item of items) {
      const state = this.#objects[item.class]!.get(item.object);
      if (state === undefined) return null;
      const { start, end } = item.required;
      if (!state.covered(start, end, item.mode)) return null;
      if (state.revokes.length > 0 && state.beingRevoked(start, end, item.mode)) return null;
    }
    if (items.length === 1) return this.#pinItem(items[0]!);
    const set = new PinSet();
    for (const item of items) set.pins.push(this.#pinItem(item));
    return set;
  }

  #pinItem(item: TokenItem): Pin {
    const state = this.#objects[item.class]!.get(item.object)!;
    state.used = true;
    return this.#pin(state, item.required.start, item.required.end, item.mode);
  }

  #pin(state: ObjectState, start: number, end: number, mode: TokenMode): Pin {
    const pin = new Pin(this, state, start, end, mode, ++this.#serial);
    state.addPin(pin);
    return pin;
  }

  /** Called by the pin. */
  unpin(pin: Pin): void {
    const state = pin.object;
    state.removePin(pin);
    if (state.revokes.length === 0 || this.#fenced) return;
    this.#drained.add(state);
    this.#onDrained();
  }

  /** See TokenClientApi. */
  heldRange(tokenClass: TokenClass, object: TokenObject, offsetBytes: number, mode: TokenMode): ByteRange | null {
    const state = this.#suspended || this.#fenced ? undefined : this.#objects[tokenClass]!.get(object);
    const span = state?.held.spanAround(offsetBytes, COVER_MASK[mode]!);
    if (state === undefined || span === null || span === undefined) return null;
    let { start, end } = span;
    for (const r of state.revokes) {
      if (r.phase === 'held' || covers(r.keep, mode)) continue;
      if (r.give.end <= offsetBytes) start = Math.max(start, r.give.end);
      else if (r.give.start > offsetBytes) end = Math.min(end, r.give.start);
      else return null;
    }
    return range(start, end);
  }

  /** When a `tick` is due, in milliseconds of the caller's clock; Infinity if never. */
  get nextWakeMs(): number {
    return this.#nextWakeMs;
  }
  get rangeCount(): number {
    return this.#pieces;
  }
  get waitingCount(): number {
    return this.#ops.size;
  }

  // ---- steps

  step(event: ClientEvent, nowMs: number): ClientEffect[] {
    this.#nowMs = nowMs;
    if (!this.#fenced) this.#handle(event);
    else if (event.type === 'acquire') for (const op of event.ops) this.#fail(this.#enter(op), 'fenced', []);
    else if (event.type === 'release') this.#effects.push({ type: 'released', releaseId: event.releaseId });
    return this.#takeEffects();
  }

  #handle(event: ClientEvent): void {
    switch (event.type) {
      case 'view':
        this.#enterView(event.epoch, event.servers);
        break;
      case 'message':
        this.#receive(event.from, event.message);
        break;
      case 'acquire':
        for (const op of event.ops) {
          const waiting = this.#enter(op);
          this.#progress(waiting);
          if (waiting.done) this.#fired('pinnedAtOnce');
        }
        break;
      case 'abort': {
        const waiting = this.#ops.get(event.opId);
        if (waiting !== undefined) {
          this.#fired('aborted');
          this.#fail(waiting, 'aborted', []);
        }
        break;
      }
      case 'revokeDone': {
        const revoking = this.#revokes.get(event.handle);
        if (revoking?.phase === 'running') this.#finishRevoke(revoking);
        break;
      }
      case 'release':
        this.#releaseRange(event.releaseId, this.#objects[event.class]!.get(event.object), event.range);
        break;
      case 'drained':
        break;
      case 'suspend':
        this.#fired('suspended');
        this.#suspended = true;
        break;
      case 'resume':
        this.#fired('resumed');
        this.#suspended = false;
        for (const state of this.#states()) this.#runRevokes(state);
        this.#retryAll();
        break;
      case 'fence':
        this.#fence();
        return;
      case 'tick':
        break;
    }
    const drained = this.#drained;
    this.#drained = new Set();
    for (const state of drained) this.#runRevokes(state);
    if (this.#nowMs >= this.#nextWakeMs) this.#wake();
    if (this.#pieces > this.#settings.rangesMax) this.#shrink();
  }

  #takeEffects(): ClientEffect[] {
    const effects = this.#effects;
    this.#effects = [];
    if (this.#touched.length === 0) return effects;
    const sends: ClientEffect[] = [];
    for (const link of this.#touched) {
      const items = link.outbox!;
      link.outbox = null;
      const { seenSeq, identity } = link;
      const message = { epoch: this.#epoch, toIncarnation: identity.incarnation, seenSeq, items };
      sends.push({ type: 'send', to: identity, message });
    }
    this.#touched = [];
    return effects.length === 0 ? sends : sends.concat(effects);
  }

  #tell(link: Link, item: ToServerItem): void {
    if (link.outbox === null) {
      link.outbox = [];
      this.#touched.push(link);
    }
    link.outbox.push(item);
  }

  *#states(): Generator<ObjectState> {
    for (const objects of this.#objects) yield* [...objects.values()];
  }

  #state(tokenClass: TokenClass, object: TokenObject): ObjectState {
    const objects = this.#objects[tokenClass]!;
    let state = objects.get(object);
    if (state === undefined) {
      state = new ObjectState(tokenClass, object);
      state.server = serverOf(this.#servers, tokenClass, object);
      objects.set(object, state);
    }
    return state;
  }

  #forgetIfEmpty(state: ObjectState): void {
    if (state.idle && state.held.size === 0) this.#objects[state.tokenClass]!.delete(state.object);
  }

  #link(identity: ServerIdentity): Link | undefined {
    const known = this.#links.get(identity.nodeId);
    if (known !== undefined && known.identity.incarnation >= identity.incarnation) {
      return known.identity.incarnation === identity.incarnation ? known : undefined;
    }
    const { nodeId, incarnation } = identity;
    const link: Link = { identity: { nodeId, incarnation }, seenSeq: 0, askedEpoch: null, outbox: null };
    this.#links.set(nodeId, link);
    return link;
  }

  /** Undefined while there is no server, or a newer life of it than our view knows has spoken. */
  #linkOf(state: ObjectState): Link | undefined {
    return state.server === undefined ? undefined : this.#link(state.server);
  }

  // ---- operations

  #enter(op: AcquireOp): WaitingOp {
    const waiting = { op, pins: new PinSet(), next: 0, waitsOn: null, behindRevoke: false, done: false };
    this.#ops.set(op.opId, waiting);
    this.#wakeAt(op.deadlineAtMs + this.#settings.deadlineGraceMs);
    return waiting;
  }

  /** Pins what is there, group by group; asks for everything that is missing; waits for the first of it. */
  #progress(waiting: WaitingOp): void {
    const { groups } = waiting.op;
    this.#stopWaiting(waiting);
    waiting.behindRevoke = false;
    if (this.#suspended) return;
    for (; waiting.next < groups.length; waiting.next++) {
      const group = groups[waiting.next]!;
      const state = this.#objects[group.class]!.get(group.object);
      if (state === undefined || !state.coversParts(group.parts)) break;
      const revoked = group.parts.some((p) => state.beingRevoked(p.required.start, p.required.end, p.mode));
      if (revoked) break;
      this.#pinGroup(waiting, state, group);
    }
    if (waiting.next === groups.length) {
      this.#complete(waiting);
      return;
    }
    const group = groups[waiting.next]!;
    this.#waitOn(waiting, this.#state(group.class, group.object));
    for (let i = waiting.next; i < groups.length; i++) this.#ask(waiting, i);
  }

  #pinGroup(waiting: WaitingOp, state: ObjectState, group: TokenGroup): void {
    state.used = true;
    for (const { required, mode } of group.parts) {
      waiting.pins.pins.push(this.#pin(state, required.start, required.end, mode));
    }
  }

  #complete(waiting: WaitingOp): void {
    waiting.done = true;
    this.#ops.delete(waiting.op.opId);
    this.#effects.push({ type: 'pinned', opId: waiting.op.opId, pins: waiting.pins });
  }

  #waitOn(waiting: WaitingOp, state: ObjectState): void {
    waiting.waitsOn = state;
    state.waiters.push(waiting);
  }

  #stopWaiting(waiting: WaitingOp): void {
    const state = waiting.waitsOn;
    if (state === null) return;
    state.waiters = state.waiters.filter((w) => w !== waiting);
    waiting.waitsOn = null;
  }

  /** Asks for group `index`, unless it is held, being revoked, or asked for already (T2). */
  #ask(waiting: WaitingOp, index: number): void {
    const group = waiting.op.groups[index]!;
    const state = this.#state(group.class, group.object);
    const isOverlapped = (r: ByteRange): boolean => group.parts.some((p) => overlaps(p.required, r));
    if (state.requests.some((r) => r.group.parts.some((p) => isOverlapped(p.required)))) {
      this.#fired('waitsForOwnRequest');
      return;
    }
    if (group.parts.some((p) => state.beingRevoked(p.required.start, p.required.end, p.mode))) {
      this.#fired('waitsForRevoke');
      return;
    }
    if (state.coversParts(group.parts)) return;
    const link = this.#linkOf(state);
    if (link === undefined || state.retryAtMs > this.#nowMs) {
      if (state.retryAtMs > this.#nowMs) this.#wakeAt(state.retryAtMs);
      this.#fired('waitsForServer');
      return;
    }
    this.#fired('requestSent');
    const { op } = waiting;
    const request: SentRequest = {
      requestId: ++this.#lastRequestId,
      object: state,
      group,
      waiter: waiting,
      groupIndex: index,
    };
    state.requests.push(request);
    this.#requests.set(request.requestId, request);
    this.#tell(link, {
      kind: 'request',
      requestId: request.requestId,
      class: group.class,
      object: group.object,
      parts: group.parts,
      nowait: op.nowait,
      deadlineMs: op.deadlineAtMs === NEVER ? 0 : Math.max(1, op.deadlineAtMs - this.#nowMs),
    });
  }

  #endRequest(request: SentRequest): void {
    const state = request.object;
    this.#requests.delete(request.requestId);
    state.requests = state.requests.filter((r) => r !== request);
  }

  /** Something changed for this object: its waiters look again, in order. */
  #reconsider(state: ObjectState): void {
    for (const waiting of state.waiters.slice()) {
      if (waiting.done || waiting.waitsOn !== state) continue;
      if (waiting.behindRevoke) this.#passRevokes(waiting, state);
      else {
        const before = waiting.next;
        this.#progress(waiting);
        if (waiting.next > before) this.#fired('pinnedAfterWait');
      }
    }
    this.#forgetIfEmpty(state);
  }

  /** An operation pinned at its grant goes on once the revocations before that grant have ended. */
  #passRevokes(waiting: WaitingOp, state: ObjectState): void {
    const blocked = waiting.pins.pins.some(
      (pin) => pin.object === state && state.beingRevoked(pin.start, pin.end, pin.mode, pin.serial),
    );
    if (blocked) {
      waiting.behindRevoke = true;
      return;
    }
    waiting.next++;
    this.#progress(waiting);
  }

  #fail(waiting: WaitingOp, reason: Reason, blockers: readonly Blocker[]): void {
    waiting.done = true;
    this.#ops.delete(waiting.op.opId);
    this.#stopWaiting(waiting);
    const group = waiting.op.groups[Math.min(waiting.next, waiting.op.groups.length - 1)]!;
    this.#effects.push({ type: 'failed', opId: waiting.op.opId, reason, group, blockers });
    waiting.pins.release();
    for (const { class: tokenClass, object } of waiting.op.groups) {
      const state = this.#objects[tokenClass]!.get(object);
      if (state === undefined) continue;
      for (const request of state.requests) {
        if (request.waiter !== waiting) continue;
        request.waiter = null;
        const link = this.#linkOf(state);
        if (link !== undefined) this.#tell(link, { kind: 'cancel', requestId: request.requestId });
      }
      this.#forgetIfEmpty(state);
    }
  }

  // ---- from a server

  #receive(from: ServerIdentity, message: ToClientMessage): void {
    const link = message.toIncarnation === this.#self.incarnation ? this.#link(from) : undefined;
    if (link === undefined) {
      this.#fired('messageFromOldLife');
      return;
    }
    for (const item of message.items) this.#receiveItem(link, item);
  }

  #receiveItem(link: Link, item: ToClientItem): void {
    switch (item.kind) {
      case 'grant':
        this.#receiveGrant(link, item);
        return;
      case 'revoke':
        this.#receiveRevoke(link, item);
        return;
      case 'refusal':
        this.#receiveRefusal(link, item);
        return;
      case 'ask':
        link.askedEpoch = item.epoch;
        this.#answerAsk(link);
        return;
    }
  }

  #receiveGrant(link: Link, item: GrantItem): void {
    if (item.seq <= link.seenSeq) {
      this.#fired('grantInvalid');
      return;
    }
    link.seenSeq = item.seq;
    this.#highestSeq = Math.max(this.#highestSeq, item.seq);
    const request = this.#requests.get(item.requestId);
    if (request === undefined || !sameServer(request.object.server, link.identity)) {
      this.#refuseGrant(link, item);
      return;
    }
    const { group, object: state } = request;
    const asAsked =
      item.class === group.class &&
      item.object === group.object &&
      item.parts.length === group.parts.length &&
      group.parts.every((p, i) => {
        const granted = item.parts[i]!;
        return granted.mode === p.mode && contains(granted.range, p.required) && contains(p.desired, granted.range);
      });
    this.#endRequest(request);
    if (!asAsked) {
      this.#fired('grantInvalid');
      this.#refuseGrant(link, item);
      if (request.waiter !== null) this.#fail(request.waiter, 'internal', []);
      this.#reconsider(state);
      return;
    }
    for (const part of item.parts) this.#hold(state, part.range, part.mode, item.seq);
    state.grantedAtMs = this.#nowMs;
    const waiting = request.waiter;
    if (waiting === null) this.#fired('grantForNobody');
    else if (
      waiting.waitsOn !== state ||
      waiting.next !== request.groupIndex ||
      waiting.behindRevoke ||
      this.#suspended
    ) {
      this.#fired('grantKeptForLater');
    } else {
      // Pinned in this very step, ahead of any revocation that follows the grant (T3).
      this.#pinGroup(waiting, state, group);
      this.#passRevokes(waiting, state);
      this.#fired(waiting.behindRevoke ? 'pinnedBehindRevoke' : 'pinnedAtGrant');
    }
    this.#reconsider(state);
  }

  #hold(state: ObjectState, at: ByteRange, mode: TokenMode, seq: number): void {
    const own: FlatPieces = [];
    state.held.collect(at.start, at.end, own);
    const list: FlatPieces = [];
    let reached = at.start;
    for (let i = 0; i < own.length; i += STRIDE) {
      if (own[i]! > reached) list.push(reached, own[i]!, mode, seq);
      list.push(own[i]!, own[i + 1]!, join(own[i + 2]! as TokenMode, mode), seq);
      reached = own[i + 1]!;
    }
    if (reached < at.end) list.push(reached, at.end, mode, seq);
    const before = state.held.size;
    // Future revocations mean everything up to here; only one that has come already tells old pieces from new.
    state.held.replace(at.start, at.end, list, state.revokes.length === 0 ? seq : NEVER_SETTLED);
    this.#pieces += state.held.size - before;
  }

  /** Of a request that we no longer know (voided when the object moved): what it gives is given back at once. */
  #refuseGrant(link: Link, item: GrantItem): void {
    const state = this.#objects[item.class]!.get(item.object);
    const server = state === undefined ? serverOf(this.#servers, item.class, item.object) : state.server;
    if (!sameServer(server, link.identity)) {
      this.#fired('itemFromOtherServer');
      return;
    }
    this.#fired('grantUnknown');
    const ranges: ByteRange[] = [];
    for (const part of item.parts) {
      const own: FlatPieces = [];
      state?.held.collect(part.range.start, part.range.end, own);
      let from = part.range.start;
      for (let i = 0; i < own.length; i += STRIDE) {
        if (from < own[i]!) ranges.push(range(from, own[i]!));
        from = own[i + 1]!;
      }
      if (from < part.range.end) ranges.push(range(from, part.range.end));
    }
    const { class: tokenClass, object } = item;
    for (let i = 0; i < ranges.length; i += STATEMENT_RANGES_MAX) {
      const some = ranges.slice(i, i + STATEMENT_RANGES_MAX);
      const mode = TokenMode.none;
      this.#tell(link, { kind: 'release', class: tokenClass, object, asOfSeq: link.seenSeq, mode, ranges: some });
    }
  }

  #receiveRefusal(link: Link, item: RefusalItem): void {
    const request = this.#requests.get(item.requestId);
    if (request === undefined || !sameServer(request.object.server, link.identity)) return;
    const { object: state, waiter } = request;
    this.#endRequest(request);
    switch (item.reason) {
      case 'staleEpoch':
        this.#fired('refusedEpoch');
        state.retryAtMs = this.#nowMs + this.#settings.retryMs;
        this.#wakeAt(state.retryAtMs);
        break;
      case 'aborted':
        this.#fired('cancelAcknowledged');
        break;
      case 'tokenDeadline':
        this.#fired('refusedDeadline');
        if (waiter !== null) this.#fail(waiter, 'tokenDeadline', item.blockers);
        break;
      case 'tokenRefused':
        this.#fired('refusedNowait');
        if (waiter !== null) this.#fail(waiter, 'tokenRefused', item.blockers);
        break;
      default:
        this.#fired('refusedInvalid');
        if (waiter !== null) this.#fail(waiter, item.reason, item.blockers);
    }
    this.#reconsider(state);
  }

  // ---- giving way

  #receiveRevoke(link: Link, item: RevokeItem): void {
    const state = this.#objects[item.class]!.get(item.object);
    const { revokeId, keep, required } = item;
    if (state === undefined || !sameServer(state.server, link.identity)) {
      // T2: who asks for what we don't know is answered. Of an object that moved we tell the old server nothing.
      this.#fired('revokeOfNothing');
      const server = state === undefined ? serverOf(this.#servers, item.class, item.object) : undefined;
      const ranges = sameServer(server, link.identity) ? [required] : [];
      const { class: tokenClass, object } = item;
      const asOfSeq = link.seenSeq;
      this.#tell(link, { kind: 'answer', revokeId, class: tokenClass, object, asOfSeq, mode: keep, ranges });
      return;
    }
    const heldUntilMs = state.held.size === 0 ? this.#nowMs : state.grantedAtMs + this.#settings.minHoldMs;
    const revoking: Revoking = {
      handle: ++this.#serial,
      object: state,
      server: link.identity,
      revokeId,
      releaseId: null,
      required,
      desired: item.desired,
      give: required,
      keep,
      upToSeq: item.upToSeq,
      phase: 'held',
      beginsAtMs: heldUntilMs,
    };
    state.revokes.push(revoking);
    this.#revokes.set(revoking.handle, revoking);
    if (heldUntilMs > this.#nowMs) {
      this.#fired('revokeWaitsForHold');
      this.#wakeAt(heldUntilMs);
      return;
    }
    this.#beginRevoke(revoking);
    this.#runRevokes(state);
  }

  /** From here on nobody new is pinned in what it gives. */
  #beginRevoke(revoking: Revoking): void {
    const state = revoking.object;
    this.#revokes.delete(revoking.handle);
    revoking.handle = ++this.#serial;
    this.#revokes.set(revoking.handle, revoking);
    const inTheWay = state.pins.filter((pin) => !covers(revoking.keep, pin.mode));
    const working = this.#working(state.tokenClass, state.object);
    revoking.give = giveWay(revoking.required, revoking.desired, working, inTheWay);
    if (!contains(revoking.required, revoking.give)) this.#fired('revokeGivesMore');
    revoking.phase = 'draining';
    state.revokes = [...state.revokes.filter((r) => r !== revoking), revoking];
  }

  /** Overridden by a mutation in the tests. */
  protected mustWaitForPins(state: ObjectState, revoking: Revoking): boolean {
    return state.pinnedAgainst(revoking);
  }

  /** Hands over to the handler what no pin and no older revocation stands in the way of. */
  #runRevokes(state: ObjectState): void {
    if (this.#suspended) return;
    for (const revoking of state.revokes.slice()) {
      if (revoking.phase !== 'draining') continue;
      const isOlder = (r: Revoking): boolean =>
        r.phase !== 'held' && r.handle < revoking.handle && overlaps(r.give, revoking.give);
      if (state.revokes.some(isOlder)) {
        this.#fired('revokeWaitsInLine');
        continue;
      }
      if (this.mustWaitForPins(state, revoking)) {
        this.#fired('revokeWaitsForPins');
        continue;
      }
      const affected = state.affected(revoking);
      if (affected === null) {
        this.#finishRevoke(revoking);
        // Finishing may have changed the list: once more from the start.
        this.#runRevokes(state);
        return;
      }
      revoking.phase = 'running';
      const revocation = { class: state.tokenClass, object: state.object, range: affected, keep: revoking.keep };
      this.#effects.push({ type: 'revoke', handle: revoking.handle, revocation });
    }
  }

  #finishRevoke(revoking: Revoking): void {
    const { object: state, keep } = revoking;
    if (revoking.phase === 'running') {
      this.#fired(state.affected(revoking) === null ? 'revokeCrossedByGrant' : 'revokeHandled');
      if (keep !== TokenMode.none) this.#fired('downgraded');
    } else this.#fired('revokeOfNothing');
    const link = this.#linkOf(state);
    const before = state.held.size;
    this.#revokes.delete(revoking.handle);
    state.revokes = state.revokes.filter((r) => r !== revoking);
    const stated = state.giveUp(revoking, state.revokes.length === 0 ? (link?.seenSeq ?? 0) : NEVER_SETTLED);
    this.#pieces += state.held.size - before;
    if (link !== undefined) {
      // A statement that leaves something out is still true; the server asks again for what it needs.
      const ranges = stated.slice(0, STATEMENT_RANGES_MAX);
      const { tokenClass, object } = state;
      const statement = { class: tokenClass, object, asOfSeq: link.seenSeq, mode: keep, ranges };
      if (sameServer(revoking.server ?? undefined, link.identity)) {
        this.#tell(link, { kind: 'answer', revokeId: revoking.revokeId, ...statement });
      } else if (ranges.length > 0) this.#tell(link, { kind: 'release', ...statement });
    }
    if (revoking.releaseId !== null) this.#endRelease(revoking.releaseId);
    this.#reconsider(state);
    this.#runRevokes(state);
  }

  #releaseRange(releaseId: number | null, state: ObjectState | undefined, within: ByteRange): void {
    const free = state?.free(within) ?? [];
    if (releaseId !== null) {
      this.#releases.set(releaseId, free.length + 1);
      this.#endRelease(releaseId);
    }
    if (state === undefined || free.length === 0) return;
    const upToSeq = this.#linkOf(state)?.seenSeq ?? 0;
    for (const give of free) {
      this.#fired('releasedByUs');
      const revoking: Revoking = {
        handle: ++this.#serial,
        object: state,
        server: null,
        revokeId: 0,
        releaseId,
        required: give,
        desired: give,
        give,
        keep: TokenMode.none,
        upToSeq,
        phase: 'draining',
        beginsAtMs: this.#nowMs,
      };
      state.revokes.push(revoking);
      this.#revokes.set(revoking.handle, revoking);
    }
    this.#runRevokes(state);
  }

  #endRelease(releaseId: number): void {
    const left = this.#releases.get(releaseId)! - 1;
    this.#releases.set(releaseId, left);
    if (left > 0) return;
    this.#releases.delete(releaseId);
    this.#effects.push({ type: 'released', releaseId });
  }

  /** Over the bound: objects that nobody used since the hand last passed are given back whole. */
  #shrink(): void {
    let excess = this.#pieces - this.#settings.rangesMax;
    for (let looked = 0; excess > 0 && looked < 256; looked++) {
      this.#shrinkCursor ??= this.#states();
      const next = this.#shrinkCursor.next();
      if (next.done === true) {
        this.#shrinkCursor = null;
        continue;
      }
      const state = next.value;
      if (state.used) state.used = false;
      else if (state.idle && state.held.size > 0 && this.#working(state.tokenClass, state.object) === null) {
        this.#fired('shrunk');
        excess -= state.held.size;
        this.#releaseRange(null, state, { start: 0, end: Number.MAX_SAFE_INTEGER });
      }
    }
  }

  // ---- views, time, lease

  #enterView(newEpoch: Epoch, servers: readonly ServerIdentity[]): void {
    if (newEpoch <= this.#epoch) return;
    this.#epoch = newEpoch;
    this.#servers = servers;
    for (const state of this.#states()) {
      const server = serverOf(servers, state.tokenClass, state.object);
      state.retryAtMs = Number.NEGATIVE_INFINITY;
      if (sameServer(server, state.server)) continue;
      this.#fired('serverChanged');
      // What was asked of the old server will be asked of the new one; its grants on the way to us are void (T8).
      for (const request of state.requests) this.#requests.delete(request.requestId);
      state.requests = [];
      // The new server counts from 1: what the old one granted goes below that, its order kept for revocations under way.
      const shift = this.#highestSeq + 1;
      state.server = server;
      state.held.shiftSequences(shift);
      for (const revoking of state.revokes) {
        if (revoking.server !== null) this.#fired('revokeOutlivesServer');
        revoking.server = null;
        revoking.upToSeq -= shift;
      }
    }
    for (const link of this.#links.values()) this.#answerAsk(link);
    this.#retryAll();
  }

  /** T8: everything that we hold of this server's objects, then that this was all. */
  #answerAsk(link: Link): void {
    if (link.askedEpoch === null) return;
    if (link.askedEpoch > this.#epoch) {
      this.#fired('askBeforeView');
      return;
    }
    this.#fired('askAnswered');
    const { askedEpoch } = link;
    link.askedEpoch = null;
    for (const state of this.#states()) {
      if (!sameServer(state.server, link.identity)) continue;
      const pieces = state.held.all();
      for (let i = 0; i < pieces.length; i += STRIDE) {
        const held = range(pieces[i]!, pieces[i + 1]!);
        const { tokenClass, object } = state;
        const mode = pieces[i + 2]! as TokenMode;
        this.#tell(link, {
          kind: 'claim',
          class: tokenClass,
          object,
          mode,
          range: held,
          seq: Math.max(0, pieces[i + 3]!),
        });
      }
    }
    const fingerprint = listFingerprint(this.#servers);
    this.#tell(link, { kind: 'claimEnd', epoch: this.#epoch, askedEpoch, listFingerprint: fingerprint });
  }

  #retryAll(): void {
    for (const waiting of [...this.#ops.values()]) {
      if (!waiting.done && !waiting.behindRevoke) this.#progress(waiting);
    }
  }

  #wakeAt(atMs: number): void {
    if (atMs < this.#nextWakeMs) this.#nextWakeMs = atMs;
  }

  /** Deadlines, minimum holds and retries that are due; then when to wake next. */
  #wake(): void {
    this.#nextWakeMs = NEVER;
    for (const waiting of [...this.#ops.values()]) {
      const atMs = waiting.op.deadlineAtMs + this.#settings.deadlineGraceMs;
      if (atMs > this.#nowMs) this.#wakeAt(atMs);
      else if (!waiting.done) {
        this.#fired('failedAtDeadline');
        const group = waiting.op.groups[Math.min(waiting.next, waiting.op.groups.length - 1)]!;
        const gone = this.#objects[group.class]!.get(group.object)?.server === undefined;
        this.#fail(waiting, this.#suspended ? 'suspended' : gone ? 'tokenServerGone' : 'tokenDeadline', []);
      }
    }
    for (const revoking of [...this.#revokes.values()]) {
      if (revoking.phase !== 'held') continue;
      if (revoking.beginsAtMs > this.#nowMs) this.#wakeAt(revoking.beginsAtMs);
      else {
        this.#beginRevoke(revoking);
        this.#runRevokes(revoking.object);
      }
    }
    for (const waiting of [...this.#ops.values()]) {
      const state = waiting.waitsOn;
      if (state === null || state.retryAtMs === Number.NEGATIVE_INFINITY) continue;
      if (state.retryAtMs > this.#nowMs) this.#wakeAt(state.retryAtMs);
      else if (!waiting.done && !waiting.behindRevoke) this.#progress(waiting);
    }
  }

  #fence(): void {
    this.#fired('fenced');
    this.#fenced = true;
    for (const waiting of [...this.#ops.values()]) this.#fail(waiting, 'fenced', []);
    for (const releaseId of this.#releases.keys()) this.#effects.push({ type: 'released', releaseId });
    this.#releases.clear();
    this.#requests.clear();
    this.#revokes.clear();
    this.#drained.clear();
    this.#objects = this.#objects.map(() => new Map());
    this.#pieces = 0;
    // The messages that failing operations would send are pointless: the servers have dropped us.
    for (const link of this.#touched) link.outbox = null;
    this.#touched = [];
    this.#nextWakeMs = NEVER;
  }

  // ---- for tools and tests

  /** Everything held, with what is being used right now. */
  holdings(): Holding[] {
    const all: Holding[] = [];
    for (const state of this.#states()) {
      const pieces = state.held.all();
      for (let i = 0; i < pieces.length; i += STRIDE) {
        const { tokenClass, object } = state;
        const mode = pieces[i + 2]! as TokenMode;
        all.push({ class: tokenClass, object, mode, range: range(pieces[i]!, pieces[i + 1]!), pinned: false });
      }
      for (const pin of state.pins) {
        const { tokenClass, object } = state;
        all.push({ class: tokenClass, object, mode: pin.mode, range: range(pin.start, pin.end), pinned: true });
      }
    }
    return all;
  }
}

export interface Holding {
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly mode: TokenMode;
  readonly range: ByteRange;
  readonly pinned: boolean;
}
