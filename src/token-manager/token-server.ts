/**
 * The token server's shell: wires TokenServerMachine to the fabric, the membership and a clock. Every node that may serve
 * tokens runs one; it grants nothing while the view doesn't list it.
 *
 * Counters: `tokens.server.<transition>` for each transition of the machine (grants are grantAtOnce + grantAfterWait);
 * `tokens.messagesIn`, `tokens.messagesOut` (bodies), `tokens.badMessages` (refused by the decoder), `tokens.messagesHeldBack`
 * and `tokens.messagesDropped` (peer's queue full; peer gone), `tokens.violations`; gauges `tokens.server.ranges`,
 * `tokens.server.waiting` are set by `gauges()`.
 */

import type { Membership } from '../cluster/membership-api.js';
import type { Clock, Timer } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Incarnation, NodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Fabric, IncomingMessage } from '../fabric/fabric.js';
import { MessageType } from '../protocol/message-types.js';
import { LockServer } from './locks/lock-server.js';
import { OrderedSender } from './ordered-sender.js';
import { decodeExpel, decodeListRequest, decodeToServer, encodeListReply, encodeToClient } from './token-messages.js';
import {
  type MemberIdentity,
  SERVER_FAULT_TRANSITIONS,
  SERVER_RARE_TRANSITIONS,
  SERVER_TRANSITIONS,
  type ServerEvent,
  TOKEN_SERVER_DEFAULTS,
  type TokenServerSettings,
} from './token-server-events.js';
import { TokenServerMachine } from './token-server-machine.js';
import { tokenViewOf } from './token-view.js';

export interface TokenServerWiring {
  readonly fabric: Fabric;
  readonly membership: Membership;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly settings?: Partial<TokenServerSettings>;
  /** When this server starts: lives that left the view, but are still to be fenced, or their logs to be replayed (I6). */
  readonly closed?: readonly MemberIdentity[];
}

export class TokenServer {
  readonly machine: TokenServerMachine;
  /** Who may lock what of files, for the same objects. */
  readonly locks: LockServer;
  readonly #wiring: TokenServerWiring;
  readonly #sender: OrderedSender;
  readonly #events: ServerEvent[] = [];
  readonly #unsubscribe: () => void;
  #running = false;
  #closed = false;
  #timer: Timer | null = null;
  #timerAtMs = Number.POSITIVE_INFINITY;

  constructor(wiring: TokenServerWiring) {
    const { fabric, membership, clock, counters, logger } = wiring;
    this.#wiring = wiring;
    this.#sender = new OrderedSender(fabric, MessageType.tokenToClient, clock, counters, logger);
    const names = new Map<string, string>(
      [...SERVER_TRANSITIONS, ...SERVER_RARE_TRANSITIONS, ...SERVER_FAULT_TRANSITIONS].map((t) => [
        t,
        `tokens.server.${t}`,
      ]),
    );
    this.machine = new TokenServerMachine({
      self: fabric.self,
      settings: { ...TOKEN_SERVER_DEFAULTS, ...wiring.settings },
      fired: (transition) => counters.add(names.get(transition)!),
    });
    this.locks = new LockServer({ fabric, clock, counters, logger });
    fabric.handleMessages(MessageType.tokenToServer, (message) => this.#receive(message));
    fabric.handleRequests(MessageType.tokenList, ({ body }) => {
      const { skip, limit } = decodeListRequest(body);
      return encodeListReply(this.machine.list(skip, limit));
    });
    fabric.handleRequests(MessageType.tokenExpel, ({ body }) => {
      this.#dispatch(decodeExpel(body));
      return new Uint8Array(0);
    });
    this.#unsubscribe = membership.onChange((view) => this.#dispatch({ type: 'view', view: tokenViewOf(view) }));
    this.#dispatch({ type: 'view', view: { ...tokenViewOf(membership.view), closed: wiring.closed ?? [] } });
  }

  /** Only after fencing (F1): this life of the node, and older ones, hold nothing any more. */
  expelled(nodeId: NodeId, incarnation: Incarnation): void {
    this.#dispatch({ type: 'expelled', nodeId, incarnation });
  }
  /** Fenced, log not yet replayed: its tokens stay closed until `released` (I6). */
  holdClosed(nodeId: NodeId, incarnation: Incarnation): void {
    this.#dispatch({ type: 'holdClosed', nodeId, incarnation });
  }
  released(nodeId: NodeId, incarnation: Incarnation): void {
    this.#dispatch({ type: 'released', nodeId, incarnation });
  }

  gauges(): void {
    this.#wiring.counters.set('tokens.server.ranges', this.machine.rangeCount);
    this.#wiring.counters.set('tokens.server.waiting', this.machine.waitingCount);
  }

  close(): void {
    this.#closed = true;
    this.#unsubscribe();
    this.#timer?.cancel();
    this.#sender.close();
    this.locks.close();
  }

  #receive({ from, body }: IncomingMessage): void {
    const { counters, logger } = this.#wiring;
    counters.add('tokens.messagesIn');
    try {
      const message = decodeToServer(body);
      this.#dispatch({ type: 'message', from, message });
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'badFrame') throw error;
      counters.add('tokens.badMessages');
      logger.warn({ node: from.nodeId, error: error.message }, 'token message refused');
    }
  }

  /** Steps never nest: what arrives while effects are carried out waits for its turn. */
  #dispatch(event: ServerEvent): void {
    if (!this.#closed) this.locks.follow(event);
    this.#events.push(event);
    if (this.#running || this.#closed) return;
    this.#running = true;
    try {
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) this.#carryOut(next);
    } finally {
      this.#running = false;
    }
    this.#arm();
  }

  #carryOut(event: ServerEvent): void {
    const { clock, counters, logger } = this.#wiring;
    for (const effect of this.machine.step(event, clock.nowMs())) {
      if (effect.type === 'send') this.#sender.send(effect.to.nodeId, encodeToClient(effect.message));
      else {
        counters.add('tokens.violations');
        logger.error({ node: effect.by.nodeId, detail: effect.detail }, 'a node claims what another one holds');
      }
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
