/**
 * Sends token messages so that none is lost or overtaken when a peer's queue is full: what the fabric doesn't take is kept
 * and offered again, in order. Owns one backlog per node; a backlog goes when the peer has (fenced, closed).
 */
import type { Clock, Timer } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { NodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Fabric } from '../fabric/fabric.js';
import type { MessageType } from '../protocol/message-types.js';

const RETRY_MS = 5;

export class OrderedSender {
  readonly #backlogs = new Map<NodeId, Uint8Array[]>();
  #timer: Timer | null = null;

  constructor(
    private readonly fabric: Fabric,
    private readonly type: MessageType,
    private readonly clock: Clock,
    private readonly counters: Counters,
    private readonly logger: Logger,
  ) {}

  send(node: NodeId, bodies: readonly Uint8Array[]): void {
    const backlog = this.#backlogs.get(node);
    if (backlog !== undefined) {
      backlog.push(...bodies);
      return;
    }
    this.#offer(node, [...bodies]);
  }

  #offer(node: NodeId, bodies: Uint8Array[]): void {
    let sent = 0;
    try {
      const peer = this.fabric.peer(node);
      for (; sent < bodies.length; sent++) {
        peer.send(this.type, bodies[sent]!);
        this.counters.add('tokens.messagesOut');
      }
      this.#backlogs.delete(node);
    } catch (cause) {
      const error = FsError.from(cause, 'token.send', `node ${node}`);
      if (error.retry !== 'same') {
        // The peer is gone for good, and with it what it waited for.
        this.counters.add('tokens.messagesDropped', bodies.length - sent);
        this.logger.debug({ node, error: error.message }, 'token messages dropped');
        this.#backlogs.delete(node);
        return;
      }
      this.counters.add('tokens.messagesHeldBack');
      this.#backlogs.set(node, bodies.slice(sent));
      this.#timer ??= this.clock.after(RETRY_MS, () => this.#retry());
    }
  }

  #retry(): void {
    this.#timer = null;
    for (const [node, bodies] of [...this.#backlogs]) this.#offer(node, bodies);
  }

  close(): void {
    this.#timer?.cancel();
    this.#timer = null;
    this.#backlogs.clear();
  }
}
