/**
 * The token client's shell: TokenClientApi over TokenClientMachine, wired to the fabric, the membership and a clock.
 *
 * Owns: promises of operations, revoke handlers, the one timer. Operations that start in the same turn are one event, so
 * that their requests to a server share a message. Fault model: handlers that fail (a broken invariant: the token is not
 * given up, `onBroken` is told), undecodable messages (refused, counted).
 *
 * Counters: `tokens.client.<transition>` for each transition of the machine; `tokens.requestsSent`, `tokens.grants`,
 * `tokens.revokesServed`, `tokens.releases`, `tokens.refused` (by the server), `tokens.stale` (crossed or of an older life),
 * `tokens.messagesIn`, `tokens.messagesOut` (bodies, shared with the server on the same node), `tokens.badMessages`;
 * `tokens.askedAhead` (see TokenClientApi.ask), `tokens.violations` (another node holds what we hold, too: `onBroken` is told);
 * gauge `tokens.held` (ranges) is set by `gauges()`.
 */
import type { Membership } from '../cluster/membership-api.js';
import { InvariantError } from '../common/assert.js';
import type { ByteRange } from '../common/byte-range.js';
import type { Clock, Timer } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Fabric, IncomingMessage } from '../fabric/fabric.js';
import { MessageType } from '../protocol/message-types.js';
import { modeName, objectText } from './file-system-scope.js';
import { groupItems } from './group-items.js';
import { OrderedSender } from './ordered-sender.js';
import { segmentOf } from './placement.js';
import {
  type StatusNote,
  TokenClass,
  type TokenItem,
  type TokenMode,
  type TokenObject,
  type TokenPins,
} from './token.js';
import type { AcquireOptions, RevokeHandler, TokenClientApi } from './token-client-api.js';
import {
  type AcquireOp,
  CLIENT_FAULT_TRANSITIONS,
  CLIENT_RARE_TRANSITIONS,
  CLIENT_TRANSITIONS,
  type ClientEffect,
  type ClientEvent,
  type ClientTransition,
  TOKEN_CLIENT_DEFAULTS,
  type TokenClientSettings,
} from './token-client-events.js';
import { TokenClientMachine } from './token-client-machine.js';
import { decodeToClient, encodeToServer } from './token-messages.js';
import { tokenViewOf } from './token-view.js';

export interface TokenClientWiring {
  readonly fabric: Fabric;
  readonly membership: Membership;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly settings?: Partial<TokenClientSettings & TokenClientShellSettings>;
  /** A revoke handler failed, or a server found that I1 is broken here: the node must not go on (F7). */
  readonly onBroken?: (error: unknown) => void;
}
export interface TokenClientShellSettings {
  /** For operations that name none, in milliseconds. */
  readonly acquireTimeoutMs: number;
}

/** Transitions that count under a headline name too. */
const HEADLINES: Partial<Record<ClientTransition, string>> = {
  requestSent: 'tokens.requestsSent',
  pinnedAtGrant: 'tokens.grants',
  pinnedBehindRevoke: 'tokens.grants',
  grantKeptForLater: 'tokens.grants',
  grantForNobody: 'tokens.grants',
  revokeHandled: 'tokens.revokesServed',
  revokeOfNothing: 'tokens.revokesServed',
  revokeCrossedByGrant: 'tokens.stale',
  grantUnknown: 'tokens.stale',
  messageFromOldLife: 'tokens.stale',
  releasedByUs: 'tokens.releases',
  refusedDeadline: 'tokens.refused',
  refusedNowait: 'tokens.refused',
  refusedEpoch: 'tokens.refused',
  refusedInvalid: 'tokens.refused',
};

interface Served {
  readonly handle: number;
  readonly notes: readonly StatusNote[];
}

type RevokeEffect = ClientEffect & { type: 'revoke' };

/** While the lease is out and the membership hasn't noticed. */
const LEASE_LOOK_MS = 10;

const NO_PINS: TokenPins = { release: () => undefined };

export class TokenClient implements TokenClientApi {
  readonly machine: TokenClientMachine;
  readonly #wiring: TokenClientWiring;
  readonly #acquireTimeoutMs: number;
  readonly #sender: OrderedSender;
  readonly #handlers = new Map<TokenClass, RevokeHandler>();
  readonly #waiting = new Map<number, Deferred<TokenPins>>();
  readonly #releasing = new Map<number, Deferred<void>>();
  readonly #unsubscribe: () => void;
  readonly #events: ClientEvent[] = [];
  /** Operations of the present turn, not yet handed to the machine. */
  #fresh: AcquireOp[] = [];
  /** Revocations whose handlers are done, not yet answered. */
  #served: Served[] = [];
  #lastId = 0;
  /** As the membership says. */
  #suspended = false;
  /** As the clock says. */
  #leaseOut = false;
  #leaseTimer: Timer | null = null;
  #running = false;
  #closed = false;
  #timer: Timer | null = null;
  #timerAtMs = Number.POSITIVE_INFINITY;

  constructor(wiring: TokenClientWiring) {
    const { fabric, membership, clock, counters, logger } = wiring;
    this.#wiring = wiring;
    this.#acquireTimeoutMs = wiring.settings?.acquireTimeoutMs ?? 30_000;
    this.#sender = new OrderedSender(fabric, MessageType.tokenToServer, clock, counters, logger);
    const names = new Map<string, string>(
      [...CLIENT_TRANSITIONS, ...CLIENT_RARE_TRANSITIONS, ...CLIENT_FAULT_TRANSITIONS].map((t) => [
        t,
        `tokens.client.${t}`,
      ]),
    );
    this.machine = new TokenClientMachine({
      self: fabric.self,
      settings: { ...TOKEN_CLIENT_DEFAULTS, ...wiring.settings },
      fired: (transition) => {
        counters.add(names.get(transition)!);
        const headline = HEADLINES[transition];
        if (headline !== undefined) counters.add(headline);
      },
      working: (tokenClass, object) => this.#handlers.get(tokenClass)?.working(object) ?? null,
      writesConcurrently: (object, range) =>
        this.#handlers.get(TokenClass.status)?.writesConcurrently?.(object, range) ?? false,
      onDrained: () => this.#dispatch({ type: 'drained' }),
    });
    fabric.handleMessages(MessageType.tokenToClient, (message) => this.#receive(message));
    this.#unsubscribe = membership.onChange((view) => {
      const { epoch, servers } = tokenViewOf(view);
      this.#dispatch({ type: 'view', epoch, servers });
    });
    const { epoch, servers } = tokenViewOf(membership.view);
    this.#dispatch({ type: 'view', epoch, servers });
  }

  tryPin(items: readonly TokenItem[]): TokenPins | null {
    return this.#leaseHolds() ? this.machine.tryPin(items) : null;
  }

  async acquire(items: readonly TokenItem[], options?: AcquireOptions): Promise<TokenPins> {
    if (items.length === 0) return NO_PINS;
    const signal = options?.signal;
    if (signal?.aborted) throw new FsError('aborted', { op: 'token.acquire', cause: signal.reason });
    if (this.#closed) throw new FsError('closed', { op: 'token.acquire' });
    const at = this.tryPin(items);
    if (at !== null) return at;
    const opId = ++this.#lastId;
    const deadlineAtMs = this.#wiring.clock.nowMs() + (options?.timeoutMs ?? this.#acquireTimeoutMs);
    const op = { opId, groups: groupItems(items), deadlineAtMs, nowait: false, patient: options?.patient };
    const waiting = deferred<TokenPins>();
    this.#waiting.set(opId, waiting);
    if (this.#fresh.push(op) === 1) queueMicrotask(() => this.#start());
    if (signal === undefined) return waiting.promise;
    const abort = (): void => {
      this.#start();
      this.#dispatch({ type: 'abort', opId });
    };
    signal.addEventListener('abort', abort, { once: true });
    try {
      return await waiting.promise;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  ask(items: readonly TokenItem[]): void {
    if (this.#closed) return;
    const deadlineAtMs = this.#wiring.clock.nowMs() + this.#acquireTimeoutMs;
    for (const item of items) {
      const { class: tokenClass, object, required, mode } = item;
      const held = this.machine.heldRange(tokenClass, object, required.start, mode);
      if (held !== null && held.end >= required.end) continue;
      // Nobody waits for it: what comes of it is not told to anybody, and its pins are released at once.
      const op = { opId: ++this.#lastId, groups: groupItems([item]), deadlineAtMs, nowait: false };
      if (this.#fresh.push(op) === 1) queueMicrotask(() => this.#start());
      this.#wiring.counters.add('tokens.askedAhead');
    }
  }

  heldRange(tokenClass: TokenClass, object: TokenObject, offsetBytes: number, mode: TokenMode): ByteRange | null {
    return this.machine.heldRange(tokenClass, object, offsetBytes, mode);
  }

  heldMode(tokenClass: TokenClass, object: TokenObject, offsetBytes: number): TokenMode {
    return this.machine.heldMode(tokenClass, object, offsetBytes);
  }

  release(tokenClass: TokenClass, object: TokenObject, range: ByteRange): Promise<void> {
    if (this.#closed) return Promise.resolve();
    const releaseId = ++this.#lastId;
    const releasing = deferred<void>();
    this.#releasing.set(releaseId, releasing);
    this.#dispatch({ type: 'release', releaseId, class: tokenClass, object, range });
    return releasing.promise;
  }

  setRevokeHandler(tokenClass: TokenClass, handler: RevokeHandler): void {
    this.#handlers.set(tokenClass, handler);
  }

  /** F3: the lease is out. Nothing is pinned, begun or given up until `resume` or `fence`. */
  suspend(): void {
    this.#suspended = true;
    this.#dispatch({ type: 'suspend' });
  }
  resume(): void {
    this.#suspended = false;
    this.#dispatch({ type: 'resume' });
  }
  /** F3: everything is dropped; every operation fails with `fenced`, now and from now on. */
  fence(): void {
    this.#start();
    this.#dispatch({ type: 'fence' });
  }

  gauges(): void {
    this.#wiring.counters.set('tokens.held', this.machine.rangeCount);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#unsubscribe();
    this.#timer?.cancel();
    this.#leaseTimer?.cancel();
    this.#sender.close();
    for (const waiting of this.#waiting.values()) waiting.reject(new FsError('closed', { op: 'token.acquire' }));
    for (const releasing of this.#releasing.values()) releasing.resolve();
    this.#waiting.clear();
    this.#releasing.clear();
  }

  #start(): void {
    if (this.#fresh.length === 0) return;
    const ops = this.#fresh;
    this.#fresh = [];
    this.#dispatch({ type: 'acquire', ops });
  }

  #receive({ from, body }: IncomingMessage): void {
    const { counters, logger } = this.#wiring;
    counters.add('tokens.messagesIn');
    try {
      const message = decodeToClient(body);
      this.#dispatch({ type: 'message', from, message });
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'badFrame') throw error;
      counters.add('tokens.badMessages');
      logger.warn({ node: from.nodeId, error: error.message }, 'token message refused');
    }
  }

  /** Steps never nest: what happens while effects are carried out waits for its turn. */
  /**
   * A process that stood still (a long collection, a stopped machine) may do anything before it gets to the timer that would suspend
   * it; others may have been given its tokens by then. So nothing is pinned that the clock doesn't allow (I2).
   */
  #leaseHolds(): boolean {
    const { membership, clock } = this.#wiring;
    return membership.leaseDeadlineMs === undefined || clock.nowMs() < membership.leaseDeadlineMs;
  }

  /** Before a step: suspended as long as the lease is out, whether the membership has said so or not. */
  #followLease(): void {
    const out = !this.#leaseHolds();
    if (out === this.#leaseOut) return;
    this.#leaseOut = out;
    if (!this.#suspended) this.#events.unshift({ type: out ? 'suspend' : 'resume' });
  }

  #dispatch(event: ClientEvent): void {
    this.#events.push(event);
    if (this.#running || this.#closed) return;
    this.#running = true;
    let done = 0;
    try {
      this.#followLease();
      // Not shifted one by one: whoever gives everything back has a hundred thousand of them.
      for (let next = this.#events[0]; next !== undefined; next = this.#events[done]) {
        done++;
        const revokes: RevokeEffect[] = [];
        for (const effect of this.machine.step(next, this.#wiring.clock.nowMs()))
          if (effect.type === 'revoke') revokes.push(effect);
          else this.#carryOut(effect);
        for (const group of answeredTogether(revokes)) void this.#revoke(group);
      }
    } finally {
      this.#events.splice(0, done);
      this.#running = false;
    }
    this.#arm();
    if (this.#leaseOut && !this.#suspended) this.#lookAgain();
  }

  /** The membership will suspend us, or the lease is renewed and nobody else tells. */
  #lookAgain(): void {
    this.#leaseTimer ??= this.#wiring.clock.after(LEASE_LOOK_MS, () => {
      this.#leaseTimer = null;
      this.#dispatch({ type: 'tick' });
    });
  }

  #carryOut(effect: Exclude<ClientEffect, RevokeEffect>): void {
    switch (effect.type) {
      case 'send':
        this.#sender.send(effect.to.nodeId, encodeToServer(effect.message));
        return;
      case 'gathered':
        this.#handlers.get(TokenClass.status)?.gathered?.(effect.object, effect.range, effect.notes);
        return;
      case 'pinned': {
        const waiting = this.#waiting.get(effect.opId);
        this.#waiting.delete(effect.opId);
        if (waiting === undefined) effect.pins.release();
        else waiting.resolve(effect.pins);
        return;
      }
      case 'failed': {
        const waiting = this.#waiting.get(effect.opId);
        this.#waiting.delete(effect.opId);
        waiting?.reject(failure(effect));
        return;
      }
      case 'released': {
        const releasing = this.#releasing.get(effect.releaseId);
        this.#releasing.delete(effect.releaseId);
        releasing?.resolve();
        return;
      }
      case 'broken': {
        const { counters, logger, onBroken } = this.#wiring;
        counters.add('tokens.violations');
        logger.error({ detail: effect.detail }, 'tokens contradict each other: this node can not be believed');
        onBroken?.(new InvariantError(effect.detail));
        return;
      }
    }
  }

  async #revoke(group: readonly RevokeEffect[]): Promise<void> {
    const served = await Promise.all(group.map((effect) => this.#serve(effect)));
    group.forEach(({ handle }, index) => {
      const notes = served[index];
      if (notes != null && this.#served.push({ handle, notes }) === 1) queueMicrotask(() => this.#answer());
    });
  }

  /** What was made safe in one turn is answered in one message. */
  #answer(): void {
    const handles = this.#served;
    this.#served = [];
    const last = handles.pop()!;
    // Nothing can come between these: #dispatch takes events in their order.
    for (const served of handles) this.#events.push({ type: 'revokeDone', ...served, more: true });
    this.#dispatch({ type: 'revokeDone', ...last });
  }

  /** Null: it failed, and nothing is given up. */
  async #serve({ revocation }: RevokeEffect): Promise<readonly StatusNote[] | null> {
    try {
      return (await this.#handlers.get(revocation.class)?.revoke(revocation)) ?? [];
    } catch (error) {
      // What can't be made safe is not given up; the node can only be fenced.
      this.#wiring.logger.error({ revocation, error }, 'revoke handler failed');
      this.#wiring.counters.add('tokens.revokesBroken');
      this.#wiring.onBroken?.(error);
      return null;
    }
  }

  #arm(): void {
    const atMs = this.machine.nextWakeMs;
    if (this.#closed || atMs === this.#timerAtMs) return;
    this.#timer?.cancel();
    this.#timer = null;
    this.#timerAtMs = atMs;
    if (atMs === Number.POSITIVE_INFINITY) return;
    const { clock } = this.#wiring;
    this.#timer = clock.after(Math.max(0, atMs - clock.nowMs()), () => {
      this.#timerAtMs = Number.POSITIVE_INFINITY;
      this.#dispatch({ type: 'tick' });
    });
  }
}

/**
 * An inode's status and data, called back at once, are answered in one message. Their handlers run already, and wait for nothing but
 * flushes (T5), so neither answer can wait for ever for the other; whoever asked needs both.
 */
function answeredTogether(revokes: readonly RevokeEffect[]): RevokeEffect[][] {
  if (revokes.length < 2) return revokes.map((effect) => [effect]);
  const groups: RevokeEffect[][] = [];
  const ofStatus: { readonly object: TokenObject; readonly range: ByteRange; readonly group: RevokeEffect[] }[] = [];
  for (const effect of revokes) {
    const { class: tokenClass, object, range } = effect.revocation;
    if (tokenClass !== TokenClass.status) continue;
    const group = [effect];
    groups.push(group);
    ofStatus.push({ object, range, group });
  }
  for (const effect of revokes) {
    const { class: tokenClass, object } = effect.revocation;
    if (tokenClass === TokenClass.status) continue;
    const sector = object * SECTOR_BYTES;
    const segment = segmentOf(tokenClass, object);
    if (tokenClass !== TokenClass.data) {
      groups.push([effect]);
      continue;
    }
    const status = ofStatus.find((s) => s.object === segment && s.range.start <= sector && sector < s.range.end);
    if (status === undefined) groups.push([effect]);
    else status.group.push(effect);
  }
  return groups;
}

/** T7: says who blocks whom, and with what. */
function failure(effect: ClientEffect & { type: 'failed' }): FsError {
  const { reason, group, blockers } = effect;
  const wants = group.parts.map((p) => `${modeName(p.mode)} [${p.required.start}, ${p.required.end})`).join(', ');
  const object = `${objectText(group.class, group.object)}: ${wants}`;
  const held = blockers.map(
    (b) => `node ${b.node} has ${modeName(b.mode)} [${b.range.start}, ${b.range.end}) for ${Math.round(b.sinceMs)} ms`,
  );
  const detail = held.length === 0 ? undefined : `blocked: ${held.join('; ')}`;
  return new FsError(reason, { op: 'token.acquire', object, detail });
}
