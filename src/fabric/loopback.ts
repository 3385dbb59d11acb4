import type { Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import { epoch as asEpoch } from '../common/ids.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { TransferStatus } from '../protocol/frame.js';
import type { MessageType } from '../protocol/message-types.js';
import {
  type IncomingMessage,
  MESSAGE_BODY_BYTES_MAX,
  type Peer,
  type RemoteWindow,
  type RequestOptions,
} from './fabric.js';
import { copySegments, slice } from './segments.js';
import type { SessionHost } from './session.js';
import { decodeError, encodeError, transferError } from './wire-errors.js';

/**
 * The node itself as a peer: the same promises as a remote one, kept in memory. Everything goes through one queue that is
 * worked off at the end of the turn, so handlers never run inside send or request, and transfers and messages keep their
 * order. Errors are taken through their wire form, so that a caller can't tell the difference.
 */
interface SelfWindow {
  readonly segments: readonly PoolSegment[];
  readonly lengthBytes: number;
  readonly access: 'read' | 'write';
}

export class LoopbackPeer implements Peer {
  readonly connected = true;
  readonly #host: SessionHost;
  readonly #pool: PagePool;
  readonly #windows = new Map<string, SelfWindow>();
  readonly #pending = new Set<(error: FsError) => void>();
  #queue: (() => void)[] = [];
  #scheduled = false;
  #closed: FsError | null = null;
  #nextWindow = 1;

  constructor(host: SessionHost, pool: PagePool) {
    this.#host = host;
    this.#pool = pool;
  }

  get nodeId() {
    return this.#host.self.nodeId;
  }

  openWindow(segments: readonly PoolSegment[], access: 'read' | 'write'): RemoteWindow {
    const name = new Uint8Array(16);
    new DataView(name.buffer).setFloat64(0, this.#nextWindow++, true);
    const lengthBytes = segments.reduce((sum, segment) => sum + segment.lengthBytes, 0);
    this.#windows.set(nameOf(name), { segments: [...segments], lengthBytes, access });
    return name;
  }

  closeWindow(window: RemoteWindow): void {
    this.#windows.delete(nameOf(window));
  }

  close(error: FsError): void {
    this.#closed = error;
    this.#queue = [];
    this.#windows.clear();
    for (const reject of [...this.#pending]) reject(error);
    this.#pending.clear();
  }

  send(type: MessageType, body: Uint8Array): void {
    const error = this.#refusal('fabric.send', body);
    if (error !== null) throw error;
    const copy = body.slice();
    const epoch = asEpoch(this.#host.epoch);
    this.#enqueue(() => {
      const handler = this.#host.messageHandlers[type];
      if (handler === undefined) this.#host.counters.add('fabric.refusedType');
      else handler({ from: this.#host.self, epoch, body: copy, peer: this });
    });
  }

  request(type: MessageType, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    const error = this.#refusal('fabric.request', body);
    if (error !== null) return Promise.reject(error);
    const signal = options.signal;
    const aborted = () => new FsError('aborted', { op: 'fabric.request', cause: signal?.reason });
    if (signal?.aborted) return Promise.reject(aborted());
    const copy = body.slice();
    const epoch = asEpoch(this.#host.epoch);
    return new Promise((resolve, reject) => {
      const timer: Timer = this.#host.clock.after(options.timeoutMs, () =>
        fail(new FsError('deadlinePassed', { op: 'fabric.request', object: `node ${this.nodeId}` })),
      );
      const onAbort = () => fail(aborted());
      const settled = () => {
        timer.cancel();
        signal?.removeEventListener('abort', onAbort);
        this.#pending.delete(fail);
      };
      const fail = (reason: FsError) => {
        settled();
        reject(reason);
      };
      this.#pending.add(fail);
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#enqueue(() => {
        void this.#execute(type, { from: this.#host.self, epoch, body: copy, peer: this }).then(
          (reply) => {
            settled();
            resolve(reply.slice());
          },
          (thrown: unknown) => fail(decodeError(encodeError(FsError.from(thrown, 'fabric.request')))),
        );
      });
    });
  }

  async #execute(type: MessageType, message: IncomingMessage): Promise<Uint8Array> {
    const handler = this.#host.requestHandlers[type];
    if (handler === undefined) {
      this.#host.counters.add('fabric.refusedType');
      throw new FsError('notSupported', { op: 'fabric.request', detail: `no handler for message type ${type}` });
    }
    const reply = await handler(message);
    if (reply.length > MESSAGE_BODY_BYTES_MAX) {
      throw new FsError('tooLarge', { op: 'fabric.reply', detail: `a reply of ${reply.length} bytes` });
    }
    return reply;
  }

  writeRemote(window: RemoteWindow, windowOffsetBytes: number, local: readonly PoolSegment[]): Promise<void> {
    return this.#transfer(true, window, windowOffsetBytes, [...local]);
  }

  readRemote(window: RemoteWindow, windowOffsetBytes: number, local: readonly PoolSegment[]): Promise<void> {
    return this.#transfer(false, window, windowOffsetBytes, [...local]);
  }

  #transfer(writing: boolean, name: RemoteWindow, offsetBytes: number, local: PoolSegment[]): Promise<void> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    return new Promise((resolve, reject) => {
      this.#pending.add(reject);
      this.#enqueue(() => {
        this.#pending.delete(reject);
        const window = this.#windows.get(nameOf(name));
        const lengthBytes = local.reduce((sum, segment) => sum + segment.lengthBytes, 0);
        if (window === undefined) return reject(transferError(TransferStatus.windowUnknown, writing));
        if (window.access !== (writing ? 'write' : 'read')) {
          return reject(transferError(TransferStatus.windowDenied, writing));
        }
        if (offsetBytes + lengthBytes > window.lengthBytes) {
          return reject(transferError(TransferStatus.outOfBounds, writing));
        }
        const remote = slice(window.segments, offsetBytes, lengthBytes);
        if (writing) copySegments(this.#pool.bytes, local, this.#pool.bytes, remote);
        else copySegments(this.#pool.bytes, remote, this.#pool.bytes, local);
        resolve();
      });
    });
  }

  #refusal(op: string, body: Uint8Array): FsError | null {
    if (this.#closed !== null) return this.#closed;
    if (body.length > MESSAGE_BODY_BYTES_MAX) {
      return new FsError('tooLarge', { op, detail: `a body of ${body.length} bytes` });
    }
    if (this.#queue.length < this.#host.limits.queueMessagesMax) return null;
    this.#host.counters.add('fabric.queueFull');
    return new FsError('queueFull', { op, detail: 'too much queued to this node itself' });
  }

  #enqueue(run: () => void): void {
    this.#queue.push(run);
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#host.defer(() => this.#drain());
  }

  #drain(): void {
    this.#scheduled = false;
    // What handlers add runs in a later turn, as it would from another node.
    const queue = this.#queue;
    this.#queue = [];
    for (let i = 0; i < queue.length; i++) {
      if (this.#closed !== null) return;
      try {
        queue[i]!();
      } catch (error) {
        this.#host.counters.add('fabric.handlerErrors');
        this.#host.logger.error({ error }, 'fabric: a message handler threw');
        if ((error as Error).name === 'InvariantError') {
          this.#host.defer(() => {
            throw error;
          });
        }
      }
    }
  }
}

const nameOf = (window: RemoteWindow): string => Buffer.from(window).toString('hex');
