/**
 * The lock client's shell: promises over LockClientMachine, wired to the fabric, the membership and a clock. Counters:
 * `locks.<what>` (`locks.requests`: messages' worth of asking; what is decided here alone costs none), `locks.badMessages`.
 */
import type { Membership } from '../../cluster/membership-api.js';
import type { Clock, Timer } from '../../common/clock.js';
import type { Counters } from '../../common/counters.js';
import { type Deferred, deferred } from '../../common/deferred.js';
import { FsError } from '../../common/errors.js';
import type { Logger } from '../../common/logger.js';
import type { Fabric, IncomingMessage } from '../../fabric/fabric.js';
import { MessageType } from '../../protocol/message-types.js';
import { objectText } from '../file-system-scope.js';
import { OrderedSender } from '../ordered-sender.js';
import { TokenClass } from '../token.js';
import { tokenViewOf } from '../token-view.js';
import type { LockClientApi, LockOptions, LockWanted } from './lock-client-api.js';
import type { LockClientEffect, LockClientEvent, LockOp } from './lock-client-events.js';
import { LockClientMachine } from './lock-client-machine.js';
import { decodeLockToClient, encodeLockToServer } from './lock-messages.js';
import { type Lock, type LockOwner, LockType } from './lock-table.js';

const TIMEOUT_MS = 30_000;
/** While the lease is out and the membership hasn't noticed. */
const LEASE_LOOK_MS = 10;

export interface LockClientWiring {
  readonly fabric: Fabric;
  readonly membership: Membership;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
}

export class LockClient implements LockClientApi {
  readonly machine: LockClientMachine;
  readonly #wiring: LockClientWiring;
  readonly #sender: OrderedSender;
  readonly #waiting = new Map<number, { readonly op: LockOp; readonly ended: Deferred<Lock | null> }>();
  readonly #events: LockClientEvent[] = [];
  readonly #unsubscribe: () => void;
  #lastId = 0;
  #lastOwner = 0;
  #suspended = false;
  #leaseOut = false;
  #running = false;
  #closed = false;
  #timer: Timer | null = null;
  #timerAtMs = Number.POSITIVE_INFINITY;

  constructor(wiring: LockClientWiring) {
    const { fabric, membership, clock, counters, logger } = wiring;
    this.#wiring = wiring;
    this.#sender = new OrderedSender(fabric, MessageType.lockToServer, clock, counters, logger);
    this.machine = new LockClientMachine({ self: fabric.self, count: (what) => counters.add(`locks.${what}`) });
    fabric.handleMessages(MessageType.lockToClient, (message) => this.#receive(message));
    this.#unsubscribe = membership.onChange((view) => this.#view(tokenViewOf(view)));
    this.#view(tokenViewOf(membership.view));
  }

  #view({ epoch, servers }: ReturnType<typeof tokenViewOf>): void {
    this.#dispatch({ type: 'view', epoch, servers });
  }

  newOwner(pid: number, isProcess: boolean): LockOwner {
    const { nodeId: node, incarnation } = this.#wiring.fabric.self;
    return { node, incarnation, id: ++this.#lastOwner, pid, isProcess };
  }

  async lock(wanted: LockWanted, type: LockType, wait: boolean, options?: LockOptions): Promise<void> {
    await this.#do('lock', wanted, type, wait, options);
  }
  async unlock(wanted: LockWanted, options?: LockOptions): Promise<void> {
    await this.#do('unlock', wanted, LockType.write, false, options);
  }
  test(wanted: LockWanted, type: LockType, options?: LockOptions): Promise<Lock | null> {
    return this.#do('test', wanted, type, false, options);
  }

  async #do(
    kind: LockOp['kind'],
    wanted: LockWanted,
    type: LockType,
    wait: boolean,
    options: LockOptions | undefined,
  ): Promise<Lock | null> {
    const signal = options?.signal;
    if (signal?.aborted) throw new FsError('aborted', { op: kind, cause: signal.reason });
    if (this.#closed) throw new FsError('closed', { op: kind });
    const opId = ++this.#lastId;
    const { object, space, owner, at } = wanted;
    const timeoutMs = options?.timeoutMs ?? (wait ? Number.POSITIVE_INFINITY : TIMEOUT_MS);
    const deadlineAtMs = this.#wiring.clock.nowMs() + timeoutMs;
    const op: LockOp = { opId, kind, object, space, owner, type, at, wait, deadlineAtMs };
    const ended = deferred<Lock | null>();
    this.#waiting.set(opId, { op, ended });
    this.#dispatch({ type: 'op', op });
    if (signal === undefined) return ended.promise;
    const abort = (): void => this.#dispatch({ type: 'abort', opId });
    signal.addEventListener('abort', abort, { once: true });
    try {
      return await ended.promise;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  /** F3, as the token client has them. */
  suspend(): void {
    this.#suspended = true;
    this.#dispatch({ type: 'suspend' });
  }
  resume(): void {
    this.#suspended = false;
    this.#dispatch({ type: 'resume' });
  }
  fence(): void {
    this.#dispatch({ type: 'fence' });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#unsubscribe();
    this.#timer?.cancel();
    this.#sender.close();
    for (const { op, ended } of this.#waiting.values()) ended.reject(new FsError('closed', { op: op.kind }));
    this.#waiting.clear();
  }

  #receive({ from, body }: IncomingMessage): void {
    const { counters, logger } = this.#wiring;
    // Those that are sent are counted among the tokens' too.
    counters.add('tokens.messagesIn');
    try {
      this.#dispatch({ type: 'message', from, message: decodeLockToClient(body) });
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'badFrame') throw error;
      counters.add('locks.badMessages');
      logger.warn({ node: from.nodeId, error: error.message }, 'lock message refused');
    }
  }

  /** Nothing is decided that the clock doesn't allow, whether the membership has noticed or not (I2). */
  #followLease(): void {
    const { membership, clock } = this.#wiring;
    const out = membership.leaseDeadlineMs !== undefined && clock.nowMs() >= membership.leaseDeadlineMs;
    if (out === this.#leaseOut) return;
    this.#leaseOut = out;
    if (!this.#suspended) this.#events.unshift({ type: out ? 'suspend' : 'resume' });
  }

  /** Steps never nest. */
  #dispatch(event: LockClientEvent): void {
    this.#events.push(event);
    if (this.#running || this.#closed) return;
    this.#running = true;
    try {
      this.#followLease();
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift())
        for (const effect of this.machine.step(next, this.#wiring.clock.nowMs())) this.#carryOut(effect);
    } finally {
      this.#running = false;
    }
    this.#arm();
  }

  #carryOut(effect: LockClientEffect): void {
    if (effect.type === 'send') {
      this.#sender.send(effect.to.nodeId, encodeLockToServer(effect.message));
      return;
    }
    const waiting = this.#waiting.get(effect.opId);
    this.#waiting.delete(effect.opId);
    if (effect.type === 'done') waiting?.ended.resolve(effect.blocker);
    else waiting?.ended.reject(failure(waiting.op, effect));
  }

  #arm(): void {
    const { clock } = this.#wiring;
    const lookMs = this.#leaseOut && !this.#suspended ? clock.nowMs() + LEASE_LOOK_MS : Number.POSITIVE_INFINITY;
    const atMs = Math.min(this.machine.nextWakeMs, lookMs);
    if (this.#closed || atMs === this.#timerAtMs) return;
    this.#timer?.cancel();
    this.#timer = null;
    this.#timerAtMs = atMs;
    if (atMs === Number.POSITIVE_INFINITY) return;
    this.#timer = clock.after(Math.max(0, atMs - clock.nowMs()), () => {
      this.#timerAtMs = Number.POSITIVE_INFINITY;
      this.#dispatch({ type: 'tick' });
    });
  }
}

function failure(op: LockOp, { reason, blocker }: LockClientEffect & { readonly type: 'failed' }): FsError {
  const end = op.at.end === Number.MAX_SAFE_INTEGER ? 'end' : op.at.end;
  const object = `${objectText(TokenClass.lock, op.object)} [${op.at.start}, ${end})`;
  const detail =
    blocker === null ? undefined : `process ${blocker.owner.pid} on node ${blocker.owner.node} has a lock there`;
  return new FsError(reason, { op: op.kind, object, detail });
}
