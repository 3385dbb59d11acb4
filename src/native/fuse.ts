import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { FsError } from '../common/errors.js';

/**
 * The typed face of native/fuse: the descriptor of a mount, requests read into fixed memory by threads of its own, answers,
 * notifications, and what the reader answers by itself. Knows no token. docs/mount.md says how it works.
 *
 * Sessions are opaque; requests are named by ids that are never used twice. A call for a request that was answered does nothing
 * but say so; arguments that don't fit throw TypeError, as does any call for a closed session.
 */
export interface FuseSessionRef {
  readonly __fuseSession: unique symbol;
}

/** The kinds of events: the first of an event's four numbers. */
export const FuseEvent = {
  /** slot id, where the request begins in the slots' memory, its length */
  request: 0,
  /** slot id: whoever waits for its answer was told to give up */
  interrupt: 1,
  /** node id: the kernel doesn't know it any more */
  forgotten: 2,
  /** notification, errno or 0 */
  notified: 3,
  /** minor version, INIT's flags, its second word of flags */
  agreed: 4,
  /** errno: no more requests come on a device */
  ended: 5,
} as const;
/** Numbers per event. */
export const FUSE_EVENT_NUMBERS = 4;

/** What `answer` returns for an id that isn't out; otherwise 0 or the kernel's errno. */
export const FUSE_NOT_YOURS = -1;

export interface FuseNativeCounters {
  readonly unknown: number;
  readonly badLength: number;
  readonly staleNode: number;
  readonly attributeHits: number;
  readonly lookupHits: number;
  readonly interrupts: number;
  readonly interruptsEarly: number;
  readonly resent: number;
  readonly answers: number;
  readonly answersRefused: number;
  readonly refused: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
  readonly nodes: number;
  readonly slotsFree: number;
  readonly notificationsPending: number;
  /** By opcode. */
  readonly requests: readonly number[];
}

export interface FuseAddon {
  readonly constants: Readonly<Record<string, number>>;
  /** What the reader says of a request's bytes: 0 fits, 1 unknown opcode, 2 bad length. */
  checkRequest(bytes: Uint8Array): 0 | 1 | 2;
  /** A descriptor, or a negative errno. */
  openDevice(): number;
  closeDescriptor(fd: number): number;
  /** mount(2) for an opened device; `flags` are MS_*, `options` begin with a comma. Resolves with 0 or an errno. */
  mount(fd: number, source: string, target: string, type: string, flags: number, options: string): Promise<number>;
  /** umount2(2), never through a symbolic link; `flags` are MNT_*. */
  unmount(target: string, flags: number): Promise<number>;
  /** The kernel's directory of connections, where nobody has mounted it yet. */
  mountControl(): Promise<number>;
  /** A new ledger's descriptor. */
  createLedger(slots: number, nodes: number, handles: number): number;
  /**
   * Descriptors are duplicated. `settings`: small slots, large slots, bytes of a write, of read-ahead, requests in the background, notifier
   * threads, queued notifications, attributes, names. Events come as a count of those in `events`, valid until the call returns.
   */
  createSession(
    devices: readonly number[],
    ledger: number,
    settings: Float64Array,
    events: Float64Array,
    pool: ArrayBuffer,
    onEvents: (count: number) => void,
    onClosed: () => void,
  ): FuseSessionRef;
  slotMemory(session: FuseSessionRef): ArrayBuffer;
  ledgerMemory(session: FuseSessionRef): ArrayBuffer;
  start(session: FuseSessionRef): void;
  /** A further reader with a clone of the descriptor: 0 or an errno. */
  addReader(session: FuseSessionRef): number;
  /** The session's own, to be handed to another process while it lives. */
  descriptors(session: FuseSessionRef): number[];
  answer(session: FuseSessionRef, id: number, errno: number, body: Uint8Array, lengthBytes: number): number;
  /** `segments`: pairs of offset and length in the pool. */
  answerPool(session: FuseSessionRef, id: number, segments: Float64Array): number;
  /** False when the queue is full. */
  notify(session: FuseSessionRef, id: number, code: number, payload: Uint8Array): boolean;
  /** Everything is answered with an errno from now on (0: as before), FLUSH and RELEASE with success. */
  refuse(session: FuseSessionRef, errno: number): void;
  /** Refuses, then ends; onClosed follows. */
  close(session: FuseSessionRef): void;
  nodeRoot(session: FuseSessionRef, inode: number, generation: number): void;
  /** A node id, 0 when every place is taken. */
  nodeAdd(session: FuseSessionRef, inode: number, generation: number): number;
  nodeLookedUp(session: FuseSessionRef, node: number, count: number): boolean;
  nodeRemove(session: FuseSessionRef, node: number): boolean;
  /** `attributes`: the body of an answer to GETATTR, then the time of birth: seconds (64 bits), nanoseconds, nothing. */
  putAttributes(session: FuseSessionRef, node: number, attributes: Uint8Array): boolean;
  /** `child` 0: there is none of that name. */
  putName(session: FuseSessionRef, directory: number, name: Uint8Array, child: number, validSeconds: number): boolean;
  /** When these return, no answer made of what they took is still to be sent. */
  takeBack(session: FuseSessionRef, node: number): void;
  takeBackAttributes(session: FuseSessionRef, node: number): void;
  takeBackName(session: FuseSessionRef, directory: number, name: Uint8Array): void;
  setLeaseDeadline(session: FuseSessionRef, deadlineMs: number): void;
  counters(session: FuseSessionRef): FuseNativeCounters;
}

let loaded: FuseAddon | undefined;

/** @throws {FsError} nativeMissing, with what to do about it. */
export function loadFuseAddon(): FuseAddon {
  loaded ??= load();
  return loaded;
}

function load(): FuseAddon {
  const here = path.dirname(fileURLToPath(import.meta.url));
  const build = process.env['HOLDFAST_NATIVE'] === 'asan' ? 'build-asan' : 'build';
  // From src/native when run by a test runner, from dist/src/native when built.
  const candidates = ['../..', '../../..'].map((up) =>
    path.resolve(here, up, 'native/fuse', build, 'Release/fuse.node'),
  );
  const found = candidates.find((file) => existsSync(file));
  if (found === undefined) {
    throw new FsError('nativeMissing', {
      op: 'load',
      object: 'native/fuse',
      detail: `the mount's addon is not built (looked for ${candidates.join(' and ')}); run: npm run build:native`,
    });
  }
  try {
    return createRequire(import.meta.url)(found) as FuseAddon;
  } catch (cause) {
    throw new FsError('nativeMissing', {
      op: 'load',
      object: found,
      detail: `the mount's addon does not load (${cause instanceof Error ? cause.message : String(cause)}); rebuild it: npm run build:native`,
      cause,
    });
  }
}
