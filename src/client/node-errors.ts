import { constants } from 'node:os';
import { getSystemErrorMap, inspect } from 'node:util';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';

/**
 * Errors as node:fs throws them, so that programs written for it find what they look for: `code`, negative `errno`, `syscall`,
 * `path`, `dest`, and for wrong arguments TypeError and RangeError with node's codes and words. What Holdfast knows beyond
 * that (reason, retry, detail) is on the same object: a NodeFsError is an FsError.
 */
const numbers = new Map<string, { errno: number; message: string }>();
for (const [errno, [code, message]] of getSystemErrorMap()) numbers.set(code, { errno, message });
/** Linux errnos that libuv has no name for. */
for (const [code, errno, message] of [
  ['ESTALE', constants.errno.ESTALE, 'stale file handle'],
  ['EDQUOT', constants.errno.EDQUOT, 'disk quota exceeded'],
  ['EUCLEAN', 117, 'structure needs cleaning'],
  ['EREMOTEIO', 121, 'remote I/O error'],
  ['EBADMSG', constants.errno.EBADMSG, 'bad message'],
  ['EDEADLK', constants.errno.EDEADLK, 'resource deadlock avoided'],
  ['ENOLCK', constants.errno.ENOLCK, 'no locks available'],
] as const)
  if (!numbers.has(code)) numbers.set(code, { errno: -errno, message });

/** Reasons of which the errno alone tells enough (1xx: arguments and names); others bring their detail along. */
const PLAIN_CODES = new Set([
  'ENOENT',
  'EEXIST',
  'ENOTDIR',
  'EISDIR',
  'ENOTEMPTY',
  'EACCES',
  'EPERM',
  'EBADF',
  'ELOOP',
]);

export class NodeFsError extends FsError {
  override readonly name = 'Error';
  override readonly syscall: string;
  override readonly path: string | undefined;
  override readonly errno: number | undefined;
  readonly dest?: string;

  constructor(cause: FsError, syscall: string, path?: string, dest?: string) {
    super(cause.reason, { op: cause.op, object: cause.object, detail: cause.detail, cause });
    const known = numbers.get(cause.code);
    const where = path === undefined ? '' : ` '${path}'${dest === undefined ? '' : ` -> '${dest}'`}`;
    const below = cause.object === undefined || cause.object === path ? '' : `, ${cause.object}`;
    const detail = PLAIN_CODES.has(cause.code) || cause.detail === undefined ? '' : ` (${cause.detail}${below})`;
    this.message = `${cause.code}: ${known?.message ?? cause.reason}, ${syscall}${where}${detail}`;
    this.syscall = syscall;
    this.errno = known?.errno;
    this.path = path;
    if (path === undefined) delete (this as { path?: string }).path;
    if (dest !== undefined) this.dest = dest;
    Error.captureStackTrace(this, NodeFsError);
  }
}

/** As node's: code ABORT_ERR, the signal's reason as cause. */
export class AbortError extends Error {
  override readonly name = 'AbortError';
  readonly code = 'ABORT_ERR';
  constructor(reason?: unknown) {
    super('The operation was aborted', reason === undefined ? undefined : { cause: reason });
  }
}

/** What the API throws for anything the engine or a transport threw. */
export function toNodeError(
  error: unknown,
  syscall: string,
  path?: string,
  dest?: string,
  signal?: AbortSignal,
): Error {
  if (error instanceof AbortError || error instanceof NodeFsError) return error;
  const known = FsError.from(error, syscall);
  if (known.reason === 'aborted') return new AbortError(signal?.reason);
  return new NodeFsError(known, syscall, path, dest);
}

export function checkAborted(signal: AbortSignal | undefined | null): void {
  if (signal?.aborted === true) throw new AbortError(signal.reason);
}

/** What this process's clients refused before it reached an engine, by code: `client.refused.ERR_OUT_OF_RANGE`. */
export const refusals = new Counters();
const refused = (code: string): string => {
  refusals.add(`client.refused.${code}`);
  return code;
};

class CodedTypeError extends TypeError {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}
class CodedRangeError extends RangeError {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}
class CodedError extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

function received(value: unknown): string {
  if (value === null || value === undefined) return `Received ${value}`;
  if (typeof value === 'function') return `Received function ${value.name}`;
  if (typeof value === 'object') {
    const name: unknown = value.constructor?.name;
    return typeof name === 'string' && name !== ''
      ? `Received an instance of ${name}`
      : `Received ${inspect(value, { depth: -1 })}`;
  }
  const shown = inspect(value, { colors: false });
  return `Received type ${typeof value} (${shown.length > 28 ? `${shown.slice(0, 25)}...` : shown})`;
}

const argument = (name: string): string => (name.includes('.') ? `"${name}" property` : `"${name}" argument`);

/** `expected` as node words it: 'of type string or an instance of Buffer or URL'. */
export const invalidArgType = (name: string, expected: string, value: unknown): TypeError =>
  new CodedTypeError(refused('ERR_INVALID_ARG_TYPE'), `The ${argument(name)} must be ${expected}. ${received(value)}`);

export function invalidArgValue(name: string, value: unknown, why = 'is invalid'): TypeError {
  const shown = inspect(value);
  const short = shown.length > 128 ? `${shown.slice(0, 128)}...` : shown;
  const what = name.includes('.') ? 'property' : 'argument';
  return new CodedTypeError(refused('ERR_INVALID_ARG_VALUE'), `The ${what} '${name}' ${why}. Received ${short}`);
}

export function outOfRange(name: string, range: string, value: unknown): RangeError {
  let shown = typeof value === 'bigint' ? `${value}n` : inspect(value);
  if (typeof value === 'number' && Number.isInteger(value) && Math.abs(value) > 2 ** 32)
    shown = value.toString().replace(/\B(?=(\d{3})+$)/g, '_');
  return new CodedRangeError(
    refused('ERR_OUT_OF_RANGE'),
    `The value of "${name}" is out of range. It must be ${range}. Received ${shown}`,
  );
}

export const invalidState = (message: string): Error =>
  new CodedError(refused('ERR_INVALID_STATE'), `Invalid state: ${message}`);
export const codedError = (code: string, message: string): Error => new CodedError(code, message);

/** What node says of any use of a closed FileHandle. */
export function fileClosed(syscall: string): Error {
  return Object.assign(new Error('file closed'), { code: refused('EBADF'), syscall });
}

/** ENAMETOOLONG of a path that no engine need see. */
export function pathTooLong(syscall: string, path: string): Error {
  refused('ENAMETOOLONG');
  return new NodeFsError(new FsError('nameTooLong', { op: syscall }), syscall, path);
}
