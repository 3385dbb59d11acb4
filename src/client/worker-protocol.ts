import type { MessagePort } from 'node:worker_threads';
import type { FsErrorRecord } from '../common/errors.js';
import type { Credentials } from '../fs/file-system-api.js';
import type { EngineConfig } from './engine-contract.js';
import type { OpArgs, OpName, OpResult } from './ops.js';

/** What the application's thread and the library's worker tell each other. Payloads are transferred, never shared. */
export type Host =
  /** A node of the cluster: the module's startEngine. */
  | { readonly kind: 'engine'; readonly modulePath: string; readonly config: EngineConfig }
  /** A proxied client whose socket the worker minds, so that the application's thread can wait for it. */
  | { readonly kind: 'socket'; readonly path: string; readonly reconnectForMs: number | undefined };

export interface WorkerData {
  readonly host: Host;
  readonly credentials: Credentials;
  readonly port: MessagePort;
  /** See health.ts. */
  readonly health: SharedArrayBuffer;
}

export type ToWorker =
  | { kind: 'call'; id: number; op: OpName; args: OpArgs<OpName>; payload: Uint8Array | undefined }
  | { kind: 'sync'; op: OpName; args: OpArgs<OpName>; payload: Uint8Array | undefined; reply: SharedArrayBuffer }
  | { kind: 'notify'; op: OpName; args: OpArgs<OpName> }
  | { kind: 'cancel'; id: number }
  | { kind: 'close' };

export type FromWorker =
  | { kind: 'ready'; mapId: number | null; stamps: SharedArrayBuffer | undefined; transferBytesMax: number }
  | { kind: 'reply'; id: number; result: OpResult<OpName>; payload: Uint8Array | undefined }
  | { kind: 'error'; id: number; error: FsErrorRecord }
  /** Nothing works any more. Before `ready`: it never did. */
  | { kind: 'failed'; error: FsErrorRecord }
  | { kind: 'closed'; error: FsErrorRecord | undefined };

const TRANSFER_BYTES_MIN = 4096;

/** Large buffers move instead of being copied; only those that nobody else has a view of. */
export function transferOf(payload: Uint8Array | undefined, exclusive: boolean): ArrayBuffer[] {
  if (payload === undefined || payload.byteLength < TRANSFER_BYTES_MIN) return [];
  const { buffer } = payload;
  const whole = payload.byteLength === buffer.byteLength;
  return buffer instanceof ArrayBuffer && (exclusive || whole) ? [buffer] : [];
}
