import type { FsError } from '../common/errors.js';
import type { PoolSegment } from '../native/page-pool.js';
import type { TransferStatus } from '../protocol/frame.js';
import type { NodeIdentity, RemoteWindow, TransferOptions } from './fabric.js';

/**
 * A link is one connection between two nodes, whatever carries it. First it exchanges handshake records; after
 * `startFrames` it carries frames, in order, and one-sided transfers. It fails as a whole: `onClosed` comes once, after
 * which nothing more is delivered. What outlives a connection (order across breaks, retries, deadlines) is the session's.
 *
 * Contract for implementations:
 * - Nothing is called back from inside a call into the link.
 * - Frames handed to `send` arrive in that order or the link closes; the bytes are free again when `send` returns.
 * - Transfers may be overtaken by frames, at the borders of chunks. `onTransferDone` with `landed` for a write comes when
 *   the bytes are in the peer's window, so whatever is sent after it arrives after them.
 * - When `cancel` or `close` has returned, the local segments of the transfers concerned are neither read nor written.
 */
export interface Link {
  /** For logs: who dialled, addresses. */
  readonly name: string;
  readonly closed: boolean;
  /** What carries it; absent where there is no choice. */
  readonly kind?: TransportKind;
  /** What was said while the connection was made: the handshake's proofs cover it, so that connection and proof are one. */
  readonly channelBinding?: Uint8Array;
  /** Who the peer said to be while it was made; null or absent where nobody says so then. */
  readonly claimed?: NodeIdentity | null;
  /** Set before the first callback can come, replaced when the session takes the link over. */
  events: LinkEvents;
  sendRecord(record: Uint8Array): void;
  startFrames(peerNode: number): void;
  /** Whole frames in bytes[start, end), encoded but for the checksum, which the link may write into them. */
  send(bytes: Uint8Array, start: number, end: number): void;
  /** Begins a transfer under an id that is unique on this link; moves on `flush`. */
  write(
    transfer: number,
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): void;
  read(
    transfer: number,
    window: RemoteWindow,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    options?: TransferOptions,
  ): void;
  flush(): void;
  cancel(transfer: number): void;
  /** At once and silently: no onClosed follows. */
  close(): void;
}

export interface LinkEvents {
  onRecord(record: Uint8Array): void;
  /** Valid until it returns. */
  onFrames(batch: FrameBatch): void;
  onTransferDone(transfer: number, status: TransferStatus): void;
  onClosed(error: FsError, counter: string): void;
}

/** Whole frames that passed their checksum, named by where they begin. The object is reused by the link. */
export interface FrameBatch {
  bytes: Uint8Array;
  view: DataView;
  offsets: Uint32Array;
  count: number;
}

export type TransportKind = 'rdma' | 'tcp';

export interface TransportAddress {
  readonly host: string;
  readonly port: number;
  /** Where the same node listens for RDMA connections, if it does. */
  readonly rdma?: { readonly host: string; readonly port: number } | undefined;
}

/** For whom a link is dialled, and over what, if that matters. */
export interface DialOptions {
  readonly peerNode?: number;
  readonly transport?: TransportKind | undefined;
}

/** Makes links, and owns the windows that peers reach through any of them. */
export interface Transport {
  /** Port 0 takes any. Resolves to the address in use. @throws {FsError} invalidArgument, identityTaken (in use). */
  listen(address: TransportAddress, accept: (link: Link) => void): Promise<TransportAddress>;
  /** @throws {FsError} unreachable. Aborting leaves nothing behind. */
  dial(address: TransportAddress, signal: AbortSignal, options?: DialOptions): Promise<Link>;
  openWindow(peerNode: number, segments: readonly PoolSegment[], access: 'read' | 'write'): RemoteWindow;
  /** When the promise resolves nothing can land in, or be read from, the window (S3). */
  closeWindow(window: RemoteWindow): Promise<void>;
  /** Everything, at once: listeners, links, windows. */
  close(): void;
  /** Set by the fabric: a better link to this peer than the present one may be had by dialling again. */
  onBetter?: ((peerNode: number) => void) | null;
  /** Why the link with this peer is of this kind. */
  describe?(peerNode: number, kind: TransportKind | null): string;
}

export const HANDSHAKE_RECORD_BYTES = 128;
export const WINDOW_SEGMENTS_MAX = 2048;
