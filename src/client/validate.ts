import { constants } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { FsError } from '../common/errors.js';
import { FileType, UNCHANGED_ID } from '../fs/file-system-api.js';
import { invalidArgType, invalidArgValue, NodeFsError, outOfRange, pathTooLong } from './node-errors.js';
import type { WireChanges } from './ops.js';

/** Arguments, checked and brought to one form, with node's errors for what is wrong. */
export type PathLike = string | Buffer | Uint8Array | URL;
export type Mode = number | string;
/** Seconds or a Date as node has it; beyond it a bigint of nanoseconds, 'now' (the engine's time of the change) and 'omit' (stays as it is). */
export type TimeLike = number | string | Date | bigint;

const PATH_BYTES_MAX = 4096;
const UINT32_MAX = 0xffffffff;
const XATTR_NAME_BYTES_MAX = 255;

/** A path as given (errors quote it) and as the engine takes it. */
export interface CheckedPath {
  readonly given: string;
  /** Absolute; a relative path starts at the root. */
  readonly absolute: string;
}

const strictUtf8 = new TextDecoder('utf-8', { fatal: true });

/** @throws {TypeError} ERR_INVALID_ARG_TYPE, ERR_INVALID_ARG_VALUE; ENAMETOOLONG above 4096 bytes, ENOENT when empty. */
export function checkPath(path: unknown, name: string, syscall: string): CheckedPath {
  let given: string;
  if (typeof path === 'string') given = path;
  else if (path instanceof URL) given = fileURLToPath(path);
  else if (path instanceof Uint8Array) {
    try {
      given = strictUtf8.decode(path);
    } catch {
      throw invalidArgValue(name, path, 'must be UTF-8, as names in Holdfast are');
    }
  } else throw invalidArgType(name, 'of type string or an instance of Buffer or URL', path);
  if (given.includes('\0'))
    throw invalidArgValue(name, path, 'must be a string, Uint8Array, or URL without null bytes');
  if (given === '') throw new NodeFsError(new FsError('notFound', { op: syscall }), syscall, given);
  const absolute = given.startsWith('/') ? given : `/${given}`;
  if (absolute.length * 3 > PATH_BYTES_MAX && Buffer.byteLength(absolute) > PATH_BYTES_MAX)
    throw pathTooLong(syscall, given);
  return { given, absolute };
}

const FLAGS: Readonly<Record<string, number>> = (() => {
  const { O_RDONLY, O_WRONLY, O_RDWR, O_SYNC, O_TRUNC, O_CREAT, O_EXCL, O_APPEND } = constants;
  const table: Record<string, number> = { r: O_RDONLY, 'r+': O_RDWR };
  const both = (a: string, b: string, flags: number): void => {
    table[a] = flags;
    table[b] = flags;
  };
  both('rs', 'sr', O_RDONLY | O_SYNC);
  both('rs+', 'sr+', O_RDWR | O_SYNC);
  table['w'] = O_TRUNC | O_CREAT | O_WRONLY;
  both('wx', 'xw', O_TRUNC | O_CREAT | O_WRONLY | O_EXCL);
  table['w+'] = O_TRUNC | O_CREAT | O_RDWR;
  both('wx+', 'xw+', O_TRUNC | O_CREAT | O_RDWR | O_EXCL);
  table['a'] = O_APPEND | O_CREAT | O_WRONLY;
  both('ax', 'xa', O_APPEND | O_CREAT | O_WRONLY | O_EXCL);
  both('as', 'sa', O_APPEND | O_CREAT | O_WRONLY | O_SYNC);
  table['a+'] = O_APPEND | O_CREAT | O_RDWR;
  both('ax+', 'xa+', O_APPEND | O_CREAT | O_RDWR | O_EXCL);
  both('as+', 'sa+', O_APPEND | O_CREAT | O_RDWR | O_SYNC);
  return table;
})();

export function checkFlags(flags: unknown): number {
  if (typeof flags === 'number') {
    checkInteger(flags, 'flags', -(2 ** 31), 2 ** 31 - 1);
    return flags;
  }
  if (flags === null || flags === undefined) return constants.O_RDONLY;
  const known = typeof flags === 'string' ? FLAGS[flags] : undefined;
  if (known === undefined) throw invalidArgValue('flags', flags);
  return known;
}

export function checkMode(mode: unknown, name: string, fallback?: number): number {
  let value = mode ?? fallback;
  if (typeof value === 'string') {
    if (!/^[0-7]+$/.test(value))
      throw invalidArgValue(name, value, 'must be a 32-bit unsigned integer or an octal string');
    value = Number.parseInt(value, 8);
  }
  checkInteger(value, name, 0, UINT32_MAX);
  return value & 0o7777;
}

export function checkInteger(
  value: unknown,
  name: string,
  min = Number.MIN_SAFE_INTEGER,
  max = Number.MAX_SAFE_INTEGER,
): asserts value is number {
  if (typeof value !== 'number') throw invalidArgType(name, 'of type number', value);
  if (!Number.isInteger(value)) throw outOfRange(name, 'an integer', value);
  if (value < min || value > max) throw outOfRange(name, `>= ${min} && <= ${max}`, value);
}

export function checkBoolean(value: unknown, name: string): asserts value is boolean {
  if (typeof value !== 'boolean') throw invalidArgType(name, 'of type boolean', value);
}

export function checkSignal(value: unknown): asserts value is AbortSignal | undefined | null {
  if (value !== undefined && value !== null && !(value instanceof AbortSignal))
    throw invalidArgType('options.signal', 'an instance of AbortSignal', value);
}

/** uid or gid; -1 leaves it as it is. */
export function checkOwner(value: unknown, name: string): number {
  checkInteger(value, name, -1, UINT32_MAX);
  return value === UINT32_MAX ? UNCHANGED_ID : value;
}

const FILE_TYPES: ReadonlyMap<number, FileType> = new Map([
  [0, FileType.regular],
  [constants.S_IFREG, FileType.regular],
  [constants.S_IFIFO, FileType.fifo],
  [constants.S_IFCHR, FileType.characterDevice],
  [constants.S_IFBLK, FileType.blockDevice],
  [constants.S_IFSOCK, FileType.socket],
  [constants.S_IFDIR, FileType.directory],
]);
/** What mknod takes: type bits and permission bits in one. */
export function checkNodeMode(mode: unknown): { type: FileType; mode: number } {
  checkInteger(mode, 'mode', 0, 0o177777);
  const type = FILE_TYPES.get(mode & constants.S_IFMT);
  if (type === undefined) throw invalidArgValue('mode', mode, 'must name a type of file that mknod makes');
  return { type, mode: mode & 0o7777 };
}

/** atime and mtime of a call as changes; null when both stay as they are. */
export function checkTimes(
  atime: TimeLike,
  mtime: TimeLike,
  names: readonly [string, string] = ['time', 'time'],
): WireChanges | null {
  const changes: { atimeNs?: string; mtimeNs?: string } = {};
  const text = (time: TimeLike, name: string): string => (time === 'now' ? time : checkTime(time, name).toString());
  if (atime !== 'omit') changes.atimeNs = text(atime, names[0]);
  if (mtime !== 'omit') changes.mtimeNs = text(mtime, names[1]);
  return atime === 'omit' && mtime === 'omit' ? null : changes;
}

/** node's toUnixTimestamp, in nanoseconds; a bigint is nanoseconds already. */
export function checkTime(time: unknown, name: string): bigint {
  let seconds: number;
  if (typeof time === 'bigint') {
    if (BigInt.asIntN(64, time) !== time) throw outOfRange(name, 'of 64 bits', time);
    return time;
  }
  if (typeof time === 'string' && time !== '' && Number.isFinite(Number(time))) seconds = Number(time);
  else if (typeof time === 'number' && Number.isFinite(time)) seconds = time < 0 ? Date.now() / 1000 : time;
  else if (time instanceof Date) return BigInt(time.getTime()) * 1_000_000n;
  else throw invalidArgType(name, 'an instance of Date or an Time in seconds', time);
  // Whole seconds apart, since a double has no room for both: 1.7e9 s in ns is beyond 2^53. Then to microseconds, as utimes has it.
  const whole = Math.floor(seconds);
  return BigInt(whole) * 1_000_000_000n + BigInt(Math.floor((seconds - whole) * 1e6 + 0.5)) * 1000n;
}

export function checkXattrName(name: unknown): string {
  if (typeof name !== 'string') throw invalidArgType('name', 'of type string', name);
  if (name.includes('\0')) throw invalidArgValue('name', name, 'must be a string without null bytes');
  if (Buffer.byteLength(name) > XATTR_NAME_BYTES_MAX) {
    const detail = `an attribute's name of ${Buffer.byteLength(name)} bytes`;
    throw new NodeFsError(new FsError('attributeNameTooLong', { op: 'xattr', detail }), 'xattr');
  }
  return name;
}
/** A copy: the caller's own may change while the call waits. */
export function checkXattrValue(value: unknown): Uint8Array {
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (!(value instanceof Uint8Array)) throw invalidArgType('value', 'of type string or an instance of Buffer', value);
  return Uint8Array.from(value);
}
export const toBuffer = (payload: Uint8Array | undefined): Buffer =>
  Buffer.from(payload?.buffer ?? new ArrayBuffer(0), payload?.byteOffset, payload?.byteLength);

/** Options that may be given as an encoding, as most of node:fs takes them. */
export function checkOptions<T extends { encoding?: BufferEncoding | 'buffer' | null | undefined }>(
  options: T | BufferEncoding | 'buffer' | null | undefined,
): Partial<T> {
  if (options === null || options === undefined || typeof options === 'function') return {};
  const object: Partial<T> = typeof options === 'string' ? ({ encoding: options } as unknown as T) : options;
  if (typeof object !== 'object') throw invalidArgType('options', 'of type string or an instance of Object', options);
  const { encoding } = object;
  if (encoding !== undefined && encoding !== null && encoding !== 'buffer' && !Buffer.isEncoding(encoding))
    throw invalidArgValue('encoding', encoding, 'is invalid encoding');
  if ('signal' in object) checkSignal(object.signal);
  return object;
}

/** A name or target in the encoding asked for. */
export function inEncoding(text: string, encoding: BufferEncoding | 'buffer' | null | undefined): string | Buffer {
  if (encoding === 'buffer') return Buffer.from(text);
  return encoding === undefined || encoding === null || encoding === 'utf8' || encoding === 'utf-8'
    ? text
    : Buffer.from(text).toString(encoding);
}
