/**
 * The lock server's shell: wires LockServerMachine to the fabric and a clock. Part of a token server, which tells it of views and of lives
 * that have fallen. Counters: `locks.server.<what>`, `locks.badMessages`.
 */
import type { Clock } from '../../common/clock.js';
import type { Counters } from '../../common/counters.js';
import { FsError } from '../../common/errors.js';
import type { Logger } from '../../common/logger.js';
import type { Fabric, IncomingMessage } from '../../fabric/fabric.js';
import { MessageType } from '../../protocol/message-types.js';
import { OrderedSender } from '../ordered-sender.js';
import type { ServerEvent } from '../token-server-events.js';
import { decodeLockToServer, encodeLockToClient } from './lock-messages.js';
import { type LockServerEvent, LockServerMachine } from './lock-server-machine.js';

export interface LockServerWiring {
  readonly fabric: Fabric;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
}

export class LockServer {
  readonly machine: LockServerMachine;
  readonly #wiring: LockServerWiring;
  readonly #sender: OrderedSender;
  readonly #events: LockServerEvent[] = [];
  #running = false;
  #closed = false;

  constructor(wiring: LockServerWiring) {
    const { fabric, clock, counters, logger } = wiring;
    this.#wiring = wiring;
    this.#sender = new OrderedSender(fabric, MessageType.lockToClient, clock, counters, logger);
    this.machine = new LockServerMachine({
      self: fabric.self,
      count: (what) => counters.add(`locks.server.${what}`),
    });
    fabric.handleMessages(MessageType.lockToServer, (message) => this.#receive(message));
  }

  /** What the token server hears of the cluster. */
  follow(event: ServerEvent): void {
    const releaseHeld = event.type === 'released';
    if (event.type === 'view' || event.type === 'holdClosed') this.#dispatch(event);
    else if (event.type === 'expelled' || releaseHeld) this.#dispatch({ ...event, type: 'fallen', releaseHeld });
  }

  close(): void {
    this.#closed = true;
    this.#sender.close();
  }

  #receive({ from, body }: IncomingMessage): void {
    const { counters, logger } = this.#wiring;
    // Those that are sent are counted among the tokens' too.
    counters.add('tokens.messagesIn');
    try {
      this.#dispatch({ type: 'message', from, message: decodeLockToServer(body) });
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'badFrame') throw error;
      counters.add('locks.badMessages');
      logger.warn({ node: from.nodeId, error: error.message }, 'lock message refused');
    }
  }

  /** Steps never nest. */
  #dispatch(event: LockServerEvent): void {
    this.#events.push(event);
    if (this.#running || this.#closed) return;
    this.#running = true;
    try {
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift())
        for (const { to, message } of this.machine.step(next, this.#wiring.clock.nowMs()))
          this.#sender.send(to.nodeId, encodeLockToClient(message));
    } finally {
      this.#running = false;
    }
  }
}
