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
import { type ByteRange, range } from '../common/byte-range.js';
import type { Epoch } from '../common/ids.js';
import { ClientRevocations } from './client-revocations.js';
import { type Link, NEVER } from './client-state.js';
import { objectText } from './file-system-scope.js';
import { listFingerprint, type ServerIdentity, sameServer, serverOf } from './placement.js';
import { STRIDE } from './range-map.js';
import { type StatusNote, TokenClass, type TokenMode, type TokenObject } from './token.js';
import type { ClientEffect, ClientEvent } from './token-client-events.js';
import type { ToClientItem, ToClientMessage } from './token-messages.js';

export type { TokenClientMachineOptions } from './client-state.js';

export class TokenClientMachine extends ClientRevocations {
  step(event: ClientEvent, nowMs: number): ClientEffect[] {
    this.nowMs = nowMs;
    if (!this.fenced) this.handle(event);
    else if (event.type === 'acquire') for (const op of event.ops) this.fail(this.enter(op), 'fenced', []);
    else if (event.type === 'release') this.effects.push({ type: 'released', releaseId: event.releaseId });
    return this.takeEffects(event.type === 'revokeDone' && event.more === true);
  }

  protected handle(event: ClientEvent): void {
    switch (event.type) {
      case 'view':
        this.enterView(event.epoch, event.servers);
        break;
      case 'message':
        this.receive(event.from, event.message);
        break;
      case 'acquire':
        for (const op of event.ops) {
          const waiting = this.enter(op);
          this.progress(waiting);
          if (waiting.done && waiting.next === op.groups.length) this.fired('pinnedAtOnce');
        }
        break;
      case 'abort': {
        const waiting = this.ops.get(event.opId);
        if (waiting !== undefined) {
          this.fired('aborted');
          this.fail(waiting, 'aborted', []);
        }
        break;
      }
      case 'revokeDone': {
        const revoking = this.revokes.get(event.handle);
        if (revoking?.phase === 'running') this.finishRevoke(revoking, event.notes);
        break;
      }
      case 'release':
        this.releaseRange(event.releaseId, this.objects[event.class]!.get(event.object), event.range);
        break;
      case 'drained':
        break;
      case 'suspend':
        this.fired('suspended');
        this.suspended = true;
        break;
      case 'resume':
        this.fired('resumed');
        this.suspended = false;
        for (const state of this.states()) this.runRevokes(state);
        this.retryAll();
        break;
      case 'fence':
        this.fence();
        return;
      case 'tick':
        break;
    }
    const drained = this.drained;
    this.drained = new Set();
    for (const state of drained) this.runRevokes(state);
    if (this.nowMs >= this.wakeDueMs) this.wake();
    if (this.pieces > this.settings.rangesMax) this.shrink();
  }

  protected receive(from: ServerIdentity, message: ToClientMessage): void {
    const link = message.toIncarnation === this.self.incarnation ? this.link(from) : undefined;
    if (link === undefined) {
      this.fired('messageFromOldLife');
      return;
    }
    for (const item of message.items) this.receiveItem(link, item);
  }

  protected receiveItem(link: Link, item: ToClientItem): void {
    switch (item.kind) {
      case 'grant':
        this.receiveGrant(link, item);
        return;
      case 'revoke':
        this.receiveRevoke(link, item);
        return;
      case 'refusal':
        this.receiveRefusal(link, item);
        return;
      case 'note':
        link.notes.push({ object: item.object, note: item.note });
        return;
      case 'ask':
        link.askedEpoch = item.epoch;
        this.answerAsk(link);
        return;
      case 'contradiction': {
        this.fired('contradicted');
        const what = `${objectText(item.class, item.object)} [${item.range.start}, ${item.range.end})`;
        this.effects.push({ type: 'broken', detail: `this node and node ${item.other} both hold ${what}` });
        return;
      }
    }
  }

  protected enterView(newEpoch: Epoch, servers: readonly ServerIdentity[]): void {
    if (newEpoch <= this.epoch) return;
    this.epoch = newEpoch;
    this.servers = servers;
    for (const state of this.states()) {
      const server = serverOf(servers, state.tokenClass, state.object);
      state.retryAtMs = Number.NEGATIVE_INFINITY;
      if (sameServer(server, state.server)) continue;
      this.fired('serverChanged');
      // What was asked of the old server will be asked of the new one; its grants on the way to us are void (T8).
      for (const request of state.requests) this.requests.delete(request.requestId);
      state.requests = [];
      // The new server counts from 1: what the old one granted goes below that, its order kept for revocations under way.
      const shift = this.highestSeq + 1;
      state.server = server;
      state.held.shiftSequences(shift);
      for (const revoking of state.revokes) {
        if (revoking.server !== null) this.fired('revokeOutlivesServer');
        revoking.server = null;
        revoking.upToSeq -= shift;
      }
    }
    for (const link of this.links.values()) this.answerAsk(link);
    this.retryAll();
  }

  /** T8: everything that we hold of this server's objects, then that this was all. */
  protected answerAsk(link: Link): void {
    if (link.askedEpoch === null) return;
    if (link.askedEpoch > this.epoch) {
      this.fired('askBeforeView');
      return;
    }
    this.fired('askAnswered');
    const { askedEpoch } = link;
    link.askedEpoch = null;
    for (const state of this.states()) {
      if (!sameServer(state.server, link.identity)) continue;
      const pieces = state.held.all();
      for (let i = 0; i < pieces.length; i += STRIDE) {
        const held = range(pieces[i]!, pieces[i + 1]!);
        const { tokenClass, object } = state;
        const mode = pieces[i + 2]! as TokenMode;
        this.tell(link, {
          kind: 'claim',
          class: tokenClass,
          object,
          mode,
          range: held,
          seq: Math.max(0, pieces[i + 3]!),
        });
      }
    }
    for (const [object, told] of this.told) {
      if (!sameServer(serverOf(this.servers, TokenClass.status, object), link.identity)) continue;
      for (const note of told.values()) this.tell(link, { kind: 'note', object, note });
    }
    const fingerprint = listFingerprint(this.servers);
    this.tell(link, { kind: 'claimEnd', epoch: this.epoch, askedEpoch, listFingerprint: fingerprint });
  }

  /** Deadlines, minimum holds and retries that are due; then when to wake next. */
  protected wake(): void {
    this.wakeDueMs = NEVER;
    for (const waiting of [...this.ops.values()]) {
      const atMs = waiting.op.deadlineAtMs + this.settings.deadlineGraceMs;
      if (atMs > this.nowMs) this.wakeAt(atMs);
      else if (!waiting.done) {
        this.fired('failedAtDeadline');
        const group = waiting.op.groups[Math.min(waiting.next, waiting.op.groups.length - 1)]!;
        const gone = this.objects[group.class]!.get(group.object)?.server === undefined;
        this.fail(waiting, this.suspended ? 'suspended' : gone ? 'tokenServerGone' : 'tokenDeadline', []);
      }
    }
    for (const request of [...this.requests.values()]) {
      const joiners = request.joiners.filter((w) => !w.done);
      if (joiners.length === 0) continue;
      if (request.joinUntilMs > this.nowMs) this.wakeAt(request.joinUntilMs);
      else {
        request.joiners.length = 0;
        for (const waiting of joiners) if (!waiting.done && !waiting.behindRevoke) this.progress(waiting);
      }
    }
    for (const revoking of [...this.revokes.values()]) {
      if (revoking.phase !== 'held') continue;
      if (revoking.beginsAtMs > this.nowMs) this.wakeAt(revoking.beginsAtMs);
      else {
        this.beginRevoke(revoking);
        this.runRevokes(revoking.object);
      }
    }
    for (const waiting of [...this.ops.values()]) {
      const state = waiting.waitsOn;
      if (state === null || state.retryAtMs === Number.NEGATIVE_INFINITY) continue;
      if (state.retryAtMs > this.nowMs) this.wakeAt(state.retryAtMs);
      else if (!waiting.done && !waiting.behindRevoke) this.progress(waiting);
    }
  }

  protected fence(): void {
    this.fired('fenced');
    this.fenced = true;
    for (const waiting of [...this.ops.values()]) this.fail(waiting, 'fenced', []);
    for (const releaseId of this.releases.keys()) this.effects.push({ type: 'released', releaseId });
    this.releases.clear();
    this.requests.clear();
    this.revokes.clear();
    this.drained.clear();
    this.told.clear();
    this.objects = this.objects.map(() => new Map());
    this.pieces = 0;
    // The messages that failing operations would send are pointless: the servers have dropped us.
    for (const link of this.touched) link.outbox = null;
    this.touched = [];
    this.wakeDueMs = NEVER;
  }

  /** What this node has told of sizes, and not seen in the inodes yet. */
  notes(): { readonly object: TokenObject; readonly note: StatusNote }[] {
    return [...this.told].flatMap(([object, notes]) => [...notes.values()].map((note) => ({ object, note })));
  }

  /** Everything held, with what is being used right now. */
  holdings(): Holding[] {
    const all: Holding[] = [];
    for (const state of this.states()) {
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
