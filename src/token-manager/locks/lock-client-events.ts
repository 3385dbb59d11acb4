/** What goes into and comes out of the lock client's machine, and what it keeps of a file. */
import type { ByteRange } from '../../common/byte-range.js';
import type { Reason } from '../../common/errors.js';
import type { Epoch } from '../../common/ids.js';
import type { ServerIdentity } from '../placement.js';
import type { LockMessage, LockToClientItem, LockToServerItem } from './lock-messages.js';
import type { FileLocks, Lock, LockOwner, LockSpace, LockType } from './lock-table.js';

export interface LockOp {
  /** Chosen by the shell; never reused. */
  readonly opId: number;
  readonly kind: 'lock' | 'test' | 'unlock';
  readonly object: number;
  readonly space: LockSpace;
  readonly owner: LockOwner;
  /** Of an unlock: any. */
  readonly type: LockType;
  readonly at: ByteRange;
  readonly wait: boolean;
  /** On the caller's clock; Infinity is none. */
  readonly deadlineAtMs: number;
}
export type LockClientEvent =
  | { readonly type: 'view'; readonly epoch: Epoch; readonly servers: readonly ServerIdentity[] }
  | { readonly type: 'message'; readonly from: ServerIdentity; readonly message: LockMessage<LockToClientItem> }
  | { readonly type: 'op'; readonly op: LockOp }
  | { readonly type: 'abort'; readonly opId: number }
  | { readonly type: 'suspend' }
  | { readonly type: 'resume' }
  | { readonly type: 'fence' }
  | { readonly type: 'tick' };
export type LockClientEffect =
  | { readonly type: 'send'; readonly to: ServerIdentity; readonly message: LockMessage<LockToServerItem> }
  /** Granted, or what a test found. */
  | { readonly type: 'done'; readonly opId: number; readonly blocker: Lock | null }
  | { readonly type: 'failed'; readonly opId: number; readonly reason: Reason; readonly blocker: Lock | null };

export interface LockClientOptions {
  readonly self: ServerIdentity;
  readonly count: (what: string) => void;
  /** Files delegated without a lock before the longest unused are given back. */
  readonly idleFilesMax?: number;
}

export interface Request {
  readonly file: FileState;
  readonly owner: LockOwner;
  readonly space: LockSpace;
  readonly at: ByteRange;
  /** Null: the undoing of one that was given up. */
  readonly op: LockOp | null;
  readonly pieces: readonly { readonly start: number; readonly end: number; readonly type: LockType }[];
  readonly sinceMs: number;
  requestId: number;
  sent: boolean;
  /** The server has said that it waits. */
  queued: boolean;
  /** Nobody waits for it any more. */
  abandoned: boolean;
}
export interface LocalWait {
  readonly op: LockOp;
  readonly sinceMs: number;
}
export interface FileState {
  readonly object: number;
  readonly locks: FileLocks;
  server: ServerIdentity | undefined;
  /** The epoch in which it became the server, as far as we know. */
  since: Epoch;
  /** This node decides: it has the lock token. */
  alone: boolean;
  /** In the order of sending. */
  requests: Request[];
  /** While alone. */
  waiting: LocalWait[];
  /** Behind an operation of the same owner that was given up. */
  behind: LockOp[];
}
