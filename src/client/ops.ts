import { inodeNumber } from '../common/ids.js';
import type { AllocateMode, Attributes, Deny, Located } from '../fs/file-system-api.js';
import { FileType } from '../fs/file-system-api.js';

/**
 * Every operation a client asks of an engine, as it crosses a thread or a socket. One table for all transports.
 *
 * Invariants: arguments and results are plain JSON (nanosecond times as decimal strings), so that one encoding serves a
 * MessagePort and a socket; bulk bytes are never in them but travel beside, as the payload. Numbers are the wire's and never
 * reused. `idempotent` says what may be executed twice when nobody knows whether the first time happened.
 */
export interface WireAttributes
  extends Omit<Attributes, 'ino' | 'atimeNs' | 'mtimeNs' | 'ctimeNs' | 'birthtimeNs' | 'type'> {
  readonly ino: number;
  readonly type: number;
  readonly atimeNs: string;
  readonly mtimeNs: string;
  readonly ctimeNs: string;
  readonly birthtimeNs: string;
}

/** Ids: -1 leaves one as it is. Times: 'now', or nanoseconds. */
export interface WireChanges {
  readonly mode?: number | undefined;
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  readonly atimeNs?: string | undefined;
  readonly mtimeNs?: string | undefined;
}

/** Whose: the process's (fcntl), the handle's (open file descriptions), or the handle's on the whole file (flock). */
export type LockKind = 'process' | 'handle' | 'flock';
export const LOCK_KINDS: readonly LockKind[] = ['process', 'handle', 'flock'];

export const ALLOCATE_MODES: readonly AllocateMode[] = [
  'allocate',
  'punchHole',
  'zeroRange',
  'collapseRange',
  'insertRange',
];
export const DENIES: readonly Deny[] = ['read', 'write', 'readwrite'];

export type HintKind = 'willNeed' | 'dontNeed' | 'sequential' | 'random' | 'normal';
/** Beside a program's own: the library says how far its hits have come. */
export type WireHintKind = HintKind | 'passed' | 'accessed';
export const HINT_KINDS: readonly HintKind[] = ['willNeed', 'dontNeed', 'sequential', 'random', 'normal'];
export const WIRE_HINT_KINDS: readonly WireHintKind[] = [...HINT_KINDS, 'passed', 'accessed'];

export interface OpenResult {
  /** The session's number of the open file, from 1. */
  readonly handle: number;
  readonly ino: number;
  /** Asked for with `identify`; else 0. */
  readonly generation: number;
  /** For hits through the cache map, or null. */
  readonly entry: number | null;
  readonly flags: number;
  /** The first read by a hit is to be told (`accessed`). */
  readonly atimeDue: boolean;
}

interface PathArgs {
  readonly path: string;
}
interface HandleArgs {
  readonly handle: number;
}
type Nothing = Record<string, never>;

/** Offsets, lengths and sizes are bytes. */
export interface OpTable {
  open: {
    args: PathArgs & {
      readonly flags: number;
      readonly mode: number;
      readonly identify?: boolean | undefined;
      readonly deny?: Deny | undefined;
      readonly busyTimeoutMs?: number | undefined;
    };
    result: OpenResult;
  };
  close: { args: HandleArgs; result: Nothing };
  /** The bytes are the payload: fewer than asked for at the end of file. */
  read: { args: HandleArgs & { readonly offset: number; readonly length: number }; result: Nothing };
  /** A read without the bytes: whoever shares the cache map copies them by a hit. The result is how many there are. */
  bring: {
    args: HandleArgs & { readonly offset: number; readonly length: number };
    result: { readonly length: number };
  };
  /** `offset` null appends. */
  write: {
    args: HandleArgs & { readonly offset: number | null };
    result: { readonly offset: number; readonly length: number };
  };
  truncateHandle: { args: HandleArgs & { readonly size: number }; result: Nothing };
  allocate: {
    args: HandleArgs & {
      readonly mode: AllocateMode;
      readonly offset: number;
      readonly length: number;
      readonly keepSize: boolean;
    };
    result: Nothing;
  };
  /** To another handle of the session, or the same one. */
  copyRange: {
    args: HandleArgs & {
      readonly offset: number;
      readonly to: number;
      readonly toOffset: number;
      readonly length: number;
    };
    result: { readonly length: number };
  };
  linkHandle: { args: HandleArgs & { readonly to: string }; result: Nothing };
  seek: {
    args: HandleArgs & { readonly offset: number; readonly what: 'data' | 'hole' };
    result: { readonly offset: number };
  };
  statHandle: { args: HandleArgs; result: WireAttributes };
  setAttributesHandle: { args: HandleArgs & { readonly changes: WireChanges }; result: WireAttributes };
  sync: { args: HandleArgs & { readonly dataOnly: boolean }; result: Nothing };
  hint: {
    args: HandleArgs & { readonly kind: WireHintKind; readonly offset: number; readonly length: number };
    result: Nothing;
  };
  /** A handle of a session that the engine has forgotten, back under its old number: the same inode, or ESTALE. */
  reopen: {
    args: HandleArgs & PathArgs & { readonly ino: number; readonly generation: number; readonly flags: number };
    result: { readonly entry: number | null };
  };
  /** open, read to the end, close: when the file is not larger than `limit`, else `complete` is false and no bytes come. */
  readFile: {
    args: PathArgs & { readonly flags: number; readonly limit: number };
    result: { readonly complete: boolean };
  };
  /** open, write the payload, change attributes and sync if asked, close. */
  writeFile: {
    args: PathArgs & {
      readonly flags: number;
      readonly mode: number;
      readonly sync: boolean;
      readonly changes?: WireChanges | undefined;
    };
    result: Nothing;
  };
  /** `stamped`: of who shares memory with the engine; with the answer come stamps, when it may be remembered (src/cache/stamps.ts). */
  stat: {
    args: PathArgs & { readonly follow: boolean; readonly stamped?: boolean | undefined };
    result: WireAttributes & { readonly stamps?: readonly number[] | undefined };
  };
  access: { args: PathArgs & { readonly mode: number }; result: Nothing };
  mkdir: {
    args: PathArgs & { readonly mode: number; readonly recursive: boolean };
    /** The first directory created, as node's mkdir tells; null when nothing was. */
    result: { readonly first: string | null };
  };
  rmdir: { args: PathArgs; result: Nothing };
  unlink: { args: PathArgs; result: Nothing };
  /** `type`: FileType; `rdev` of devices. */
  mknod: { args: PathArgs & { readonly type: number; readonly mode: number; readonly rdev: number }; result: Nothing };
  rename: {
    args: {
      readonly from: string;
      readonly to: string;
      readonly noReplace?: boolean | undefined;
      readonly exchange?: boolean | undefined;
    };
    result: Nothing;
  };
  link: { args: { readonly from: string; readonly to: string }; result: Nothing };
  symlink: { args: PathArgs & { readonly target: string }; result: Nothing };
  readlink: { args: PathArgs; result: { readonly target: string } };
  realpath: { args: PathArgs; result: { readonly path: string } };
  /** The payload is packed entries (`packEntries`); `cursor` not null: more from `next` on by readdirMore. */
  readdir: { args: PathArgs; result: { readonly cursor: number | null; readonly next: number } };
  readdirMore: {
    args: { readonly cursor: number; readonly from: number };
    result: { readonly cursor: number | null; readonly next: number };
  };
  setAttributes: {
    args: PathArgs & { readonly changes: WireChanges; readonly follow: boolean };
    result: WireAttributes;
  };
  truncate: { args: PathArgs & { readonly size: number }; result: Nothing };
  statfs: {
    args: PathArgs;
    result: {
      readonly blockBytes: number;
      readonly subBlockBytes: number;
      readonly totalBytes: number;
      readonly freeBytes: number;
      readonly totalInodes: number;
      readonly freeInodes: number;
      readonly nameBytesMax: number;
    };
  };
  /** `on` absent: only tells. */
  sharedWrite: {
    args: PathArgs & { readonly on?: boolean | undefined };
    result: { readonly on: boolean };
  };
  locate: { args: PathArgs & { readonly offset: number; readonly length: number }; result: Located };
  /** `mode` as node's copyFile: COPYFILE_EXCL and the two FICLONE bits. */
  copyFile: { args: { readonly from: string; readonly to: string; readonly mode: number }; result: Nothing };
  /** The value is the payload. */
  getXattr: { args: XattrTarget & { readonly name: string }; result: Nothing };
  listXattrs: { args: XattrTarget; result: { readonly names: readonly string[] } };
  setXattr: {
    args: XattrTarget & {
      readonly name: string;
      readonly create?: boolean | undefined;
      readonly replace?: boolean | undefined;
    };
    result: Nothing;
  };
  removeXattr: { args: XattrTarget & { readonly name: string }; result: Nothing };
  /** `length` 0: to the end of the file; of flock offset and length mean nothing. */
  lock: {
    args: HandleArgs & {
      readonly kind: LockKind;
      readonly type: 'read' | 'write';
      readonly offset: number;
      readonly length: number;
      readonly wait: boolean;
      readonly timeoutMs?: number | undefined;
      readonly pid: number;
    };
    result: Nothing;
  };
  unlock: {
    args: HandleArgs & { readonly kind: LockKind; readonly offset: number; readonly length: number };
    result: Nothing;
  };
  /** Whose lock stands against such a one. */
  getLock: {
    args: HandleArgs & {
      readonly kind: LockKind;
      readonly type: 'read' | 'write';
      readonly offset: number;
      readonly length: number;
    };
    result: {
      readonly lock: {
        readonly type: 'read' | 'write';
        readonly offset: number;
        readonly length: number;
        readonly pid: number;
        readonly node: number;
      } | null;
    };
  };
  /** Everything dirty on the engine's node, durable. */
  syncAll: { args: Nothing; result: Nothing };
  counters: { args: Nothing; result: Record<string, number> };
}

/** Extended attributes: of what a path names, or of an open file. */
export interface XattrTarget {
  readonly path?: string | undefined;
  readonly follow?: boolean | undefined;
  readonly handle?: number | undefined;
}

export type OpName = keyof OpTable;
export type OpArgs<K extends OpName> = OpTable[K]['args'];
export type OpResult<K extends OpName> = OpTable[K]['result'];

export interface Reply<K extends OpName = OpName> {
  readonly result: OpResult<K>;
  readonly payload?: Uint8Array | undefined;
}

interface OpProperties {
  readonly number: number;
  /** always: twice is as good as once. never: only the reply cache can tell. positioned: when the write has an offset. */
  readonly idempotent: 'always' | 'never' | 'positioned';
}
const op = (number: number, idempotent: OpProperties['idempotent'] = 'always'): OpProperties => ({
  number,
  idempotent,
});

export const OPS: { readonly [K in OpName]: OpProperties } = {
  open: op(1, 'never'),
  close: op(2),
  read: op(3),
  write: op(4, 'positioned'),
  truncateHandle: op(5),
  statHandle: op(6),
  setAttributesHandle: op(7),
  sync: op(8),
  hint: op(9),
  reopen: op(10),
  readFile: op(11),
  writeFile: op(12, 'never'),
  stat: op(13),
  access: op(14),
  mkdir: op(15, 'never'),
  rmdir: op(16, 'never'),
  unlink: op(17, 'never'),
  rename: op(18, 'never'),
  link: op(19, 'never'),
  symlink: op(20, 'never'),
  readlink: op(21),
  realpath: op(22),
  readdir: op(23),
  readdirMore: op(24),
  setAttributes: op(25),
  truncate: op(26),
  statfs: op(27),
  copyFile: op(28, 'never'),
  syncAll: op(29),
  counters: op(30),
  bring: op(31),
  lock: op(60, 'never'),
  unlock: op(61),
  getLock: op(62),
  allocate: op(40),
  seek: op(41),
  linkHandle: op(42, 'never'),
  copyRange: op(43),
  locate: op(44),
  sharedWrite: op(45),
  mknod: op(32, 'never'),
  getXattr: op(33),
  listXattrs: op(34),
  setXattr: op(35, 'never'),
  removeXattr: op(36, 'never'),
};

const byNumber = new Map<number, OpName>((Object.keys(OPS) as OpName[]).map((name) => [OPS[name].number, name]));
export const opFromNumber = (number: number): OpName | undefined => byNumber.get(number);

/** Whether a call may be sent again to an engine that doesn't know whether it was executed. */
export function mayRepeat<K extends OpName>(name: K, args: OpArgs<K>): boolean {
  const { idempotent } = OPS[name];
  if (idempotent !== 'positioned') return idempotent === 'always';
  return (args as OpArgs<'write'>).offset !== null;
}

/** What changes something: done again later, it would undo what somebody else did in between. */
const CHANGING: ReadonlySet<OpName> = new Set<OpName>([
  'write',
  'truncateHandle',
  'truncate',
  'allocate',
  'copyRange',
  'setAttributesHandle',
  'setAttributes',
]);
/** Whether the engine keeps the outcome until the client has it: so that within a session it is done once (F6). */
export const mustKeep = <K extends OpName>(name: K, args: OpArgs<K>): boolean =>
  CHANGING.has(name) || !mayRepeat(name, args);

export function attributesToWire(a: Attributes): WireAttributes {
  return {
    ino: a.ino,
    generation: a.generation,
    type: a.type,
    mode: a.mode,
    nlink: a.nlink,
    uid: a.uid,
    gid: a.gid,
    rdev: a.rdev,
    sizeBytes: a.sizeBytes,
    allocatedBytes: a.allocatedBytes,
    atimeNs: a.atimeNs.toString(),
    mtimeNs: a.mtimeNs.toString(),
    ctimeNs: a.ctimeNs.toString(),
    birthtimeNs: a.birthtimeNs.toString(),
  };
}

const FILE_TYPES = new Set<number>(Object.values(FileType));
/** @throws {RangeError | SyntaxError} when what came off the wire is no attributes. */
export function attributesFromWire(w: WireAttributes): Attributes {
  if (!FILE_TYPES.has(w.type)) throw new RangeError(`no file type: ${w.type}`);
  return {
    ...w,
    ino: inodeNumber(w.ino),
    type: w.type as FileType,
    atimeNs: BigInt(w.atimeNs),
    mtimeNs: BigInt(w.mtimeNs),
    ctimeNs: BigInt(w.ctimeNs),
    birthtimeNs: BigInt(w.birthtimeNs),
  };
}
