import type { Epoch, Incarnation, NodeId } from '../common/ids.js';
import type { PoolSegment } from '../native/page-pool.js';
import type { MessageType } from '../protocol/message-types.js';

/**
 * What carries messages and one-sided transfers between nodes. Written for RDMA: memory is registered once (the page pool),
 * a peer gets a window on named segments for one request, moves bytes by one-sided read and write, then answers with a
 * message. TCP and the simulator are other links under the same session.
 *
 * Guarantees, as long as both incarnations live (a broken connection is replaced underneath):
 * - `send`: reliable, in order, exactly once, per (sender, receiver). The queue is bounded.
 * - `request`: executed at most once; answered, or failed at its deadline. Requests and one-way messages of one sender
 *   start their handlers in the order in which they were sent.
 * - A message sent after `writeRemote` on the same peer has resolved is delivered after those bytes have landed.
 * - Messages to oneself take the same path in memory, asynchronously.
 */
export interface Fabric {
  readonly self: NodeIdentity;
  /** Stamped on every message; moves up only. */
  readonly epoch: Epoch;
  setEpoch(epoch: Epoch): void;
  /** Any node of the cluster, connected or not; the same object for the same id. */
  peer(node: NodeId): Peer;
  /** One handler per type. What it throws becomes the requester's error. */
  handleRequests(type: MessageType, handler: RequestHandler): void;
  handleMessages(type: MessageType, handler: MessageHandler): void;
  /** Called when a peer's incarnation is first met, replaced by a newer one, or closed for good by `forget`. */
  onPeerChange(listener: (peer: NodeIdentity, change: 'met' | 'replaced' | 'forgotten') => void): void;
  /** Refuses this incarnation (and older ones) from now on; its pending requests fail with `fenced`. */
  forget(node: NodeId, upTo: Incarnation): void;
  /** Opens segments of our pool to one peer, for one request. At most 1 MiB + 64 segments of scatter per window. */
  expose(peer: NodeId, segments: readonly PoolSegment[], access: 'read' | 'write'): Window;
  close(): Promise<void>;
}

export interface NodeIdentity {
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
}

/** How a peer names our window on the wire, with the keys where there are some; opaque to everyone but the links. */
export type RemoteWindow = Uint8Array;
export const REMOTE_WINDOW_BYTES_MAX = 2048;

export interface Window {
  readonly remote: RemoteWindow;
  readonly lengthBytes: number;
  /**
   * Invalidates the window. When the promise resolves no transfer can land in (or read from) the segments any more (S3);
   * only then may they be reused.
   */
  close(): Promise<void>;
}

export interface RequestOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

export interface Peer {
  readonly nodeId: NodeId;
  readonly connected: boolean;
  /**
   * @param body at most MESSAGE_BODY_BYTES_MAX; the fabric copies it before it returns.
   * @throws {FsError} the handler's own error; deadlinePassed, fenced, aborted, queueFull, closed.
   */
  request(type: MessageType, body: Uint8Array, options: RequestOptions): Promise<Uint8Array>;
  send(type: MessageType, body: Uint8Array): void;
  /** One-sided: our segments' bytes into the peer's window from `windowOffsetBytes` on. Resolves when they have landed. */
  writeRemote(
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): Promise<void>;
  /** One-sided: bytes of the peer's window into our segments. */
  readRemote(
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): Promise<void>;
}

export interface TransferOptions {
  /**
   * Whoever uses the bytes verifies them by a checksum that came another way, after they have landed (S1): the link need not make one
   * of its own for the way. Where they land is guarded all the same.
   */
  readonly verifiedByUser?: boolean;
  /**
   * Of a write: from this call on a message to the peer arrives behind the bytes, unless the connection breaks before they have landed, when it
   * may be ahead of them. So only for bytes that whoever reads the message verifies. Not called where that is so only when they have
   * landed. Comes from inside the fabric: note it, no more.
   */
  readonly onOrdered?: () => void;
}

export interface IncomingMessage {
  readonly from: NodeIdentity;
  readonly epoch: Epoch;
  /** Valid during the handler's synchronous part; copy what must outlive it. */
  readonly body: Uint8Array;
  readonly peer: Peer;
}
export type MessageHandler = (message: IncomingMessage) => void;
export type RequestHandler = (message: IncomingMessage) => Uint8Array | Promise<Uint8Array>;

export const MESSAGE_BODY_BYTES_MAX = 256 * 1024;
export const WINDOW_BYTES_MAX = 8 * 1024 * 1024;
