/**
 * The one error type. `reason` comes from the table below, numbered by module; `code` (errno) and the retry class are
 * derived from it here and nowhere else.
 */
type Retry = 'no' | 'same' | 'reopen';
interface ReasonEntry {
  readonly number: number;
  readonly code: string;
  /** no: the answer stays; same: the same request may succeed later; reopen: the handle is gone, a new one may work. */
  readonly retry: Retry;
}

const entry = (number: number, code: string, retry: Retry = 'no'): ReasonEntry => ({ number, code, retry });

export const REASONS = {
  // 1xx arguments and names
  invalidArgument: entry(100, 'EINVAL'),
  notFound: entry(101, 'ENOENT'),
  exists: entry(102, 'EEXIST'),
  notDirectory: entry(103, 'ENOTDIR'),
  isDirectory: entry(104, 'EISDIR'),
  notEmpty: entry(105, 'ENOTEMPTY'),
  nameTooLong: entry(106, 'ENAMETOOLONG'),
  tooManyLinks: entry(107, 'ELOOP'),
  badHandle: entry(108, 'EBADF'),
  accessDenied: entry(109, 'EACCES'),
  notPermitted: entry(110, 'EPERM'),
  readOnly: entry(111, 'EROFS'),
  fileTooBig: entry(112, 'EFBIG'),
  linkCountLimit: entry(113, 'EMLINK'),
  crossesFileSystem: entry(114, 'EXDEV'),
  notSupported: entry(115, 'ENOTSUP'),
  tooManyOpenFiles: entry(116, 'EMFILE'),
  busy: entry(117, 'EBUSY', 'same'),
  aborted: entry(118, 'ABORT_ERR'),
  noDevice: entry(119, 'ENXIO'),
  noAttribute: entry(120, 'ENODATA'),
  attributeTooBig: entry(121, 'E2BIG'),
  attributeNameTooLong: entry(122, 'ERANGE'),
  /** SEEK_DATA and SEEK_HOLE behind the last of it. */
  noData: entry(123, 'ENXIO'),
  // 2xx fabric
  unreachable: entry(200, 'EHOSTUNREACH', 'same'),
  connectionLost: entry(201, 'ECONNRESET', 'same'),
  deadlinePassed: entry(202, 'ETIMEDOUT', 'same'),
  badFrame: entry(203, 'EPROTO'),
  badChecksum: entry(204, 'EBADMSG'),
  wrongVersion: entry(205, 'EPROTONOSUPPORT'),
  wrongCluster: entry(206, 'ECONNREFUSED'),
  wrongKey: entry(207, 'EACCES'),
  tooLarge: entry(208, 'EMSGSIZE'),
  queueFull: entry(209, 'EAGAIN', 'same'),
  closed: entry(210, 'ESHUTDOWN'),
  wrongKeyWindow: entry(211, 'EACCES'),
  remoteFailure: entry(212, 'EREMOTEIO'),
  // 3xx cluster
  staleEpoch: entry(300, 'ESTALE', 'same'),
  fenced: entry(301, 'ESTALE', 'reopen'),
  suspended: entry(302, 'ETIMEDOUT', 'same'),
  storeUnavailable: entry(303, 'EHOSTUNREACH', 'same'),
  identityTaken: entry(304, 'EADDRINUSE'),
  badConfiguration: entry(305, 'EINVAL'),
  // 4xx tokens
  tokenDeadline: entry(400, 'ETIMEDOUT', 'same'),
  tokenRefused: entry(401, 'EAGAIN', 'same'),
  tokenServerGone: entry(402, 'EHOSTUNREACH', 'same'),
  /** fcntl's and flock's, without waiting. */
  lockHeld: entry(410, 'EAGAIN', 'same'),
  deadlock: entry(411, 'EDEADLK', 'same'),
  noLocks: entry(412, 'ENOLCK', 'same'),
  // 5xx storage
  deviceError: entry(500, 'EIO'),
  shortIo: entry(501, 'EIO'),
  checksumMismatch: entry(502, 'EIO'),
  wrongNsd: entry(503, 'EIO'),
  nsdUnavailable: entry(504, 'EIO', 'same'),
  outOfRange: entry(505, 'EINVAL'),
  noSpace: entry(506, 'ENOSPC'),
  noInodes: entry(507, 'ENOSPC'),
  /** A write named a version that is of before the sector's last write (L2). */
  staleVersion: entry(508, 'ESTALE'),
  // 6xx file system
  corrupt: entry(600, 'EUCLEAN'),
  wrongFormat: entry(601, 'EUCLEAN'),
  staleHandle: entry(602, 'ESTALE', 'reopen'),
  writesLost: entry(603, 'EIO'),
  // 7xx this process
  nativeMissing: entry(700, 'ERR_DLOPEN_FAILED'),
  internal: entry(701, 'EIO'),
} as const satisfies Record<string, ReasonEntry>;

export type Reason = keyof typeof REASONS;

const byNumber = new Map<number, Reason>(
  (Object.entries(REASONS) as [Reason, ReasonEntry][]).map(([reason, e]) => [e.number, reason]),
);
export const reasonNumber = (reason: Reason): number => REASONS[reason].number;
export const reasonFromNumber = (value: number): Reason => byNumber.get(value) ?? 'internal';

export interface FsErrorDetails {
  /** The operation that failed, in the field's words: 'open', 'nsd.read', 'token.acquire'. */
  readonly op: string;
  /** What it was done to: a path, `inode 17`, `nsd UUID sector 12`. */
  readonly object?: string | undefined;
  /** What is wrong, as a clause. */
  readonly detail?: string | undefined;
  readonly cause?: unknown;
}

const FS_ERROR = Symbol.for('holdfast.FsError');

export class FsError extends Error {
  override readonly name: string = 'FsError';
  readonly code: string;
  readonly retry: Retry;
  readonly op: string;
  readonly object: string | undefined;
  readonly detail: string | undefined;
  /** What node:fs calls these, so that programs written for it find them. */
  readonly syscall: string;
  readonly path: string | undefined;
  readonly errno: number | undefined;
  readonly [FS_ERROR] = true;

  constructor(
    readonly reason: Reason,
    details: FsErrorDetails,
  ) {
    const { code, retry } = REASONS[reason];
    const what = details.detail ?? reason;
    super(`${code}: ${what}, ${details.op}${details.object === undefined ? '' : ` '${details.object}'`}`, {
      cause: details.cause,
    });
    this.code = code;
    this.retry = retry;
    this.op = details.op;
    this.object = details.object;
    this.detail = details.detail;
    this.syscall = details.op;
    this.path = details.object;
    this.errno = undefined;
  }

  static is(error: unknown): error is FsError {
    return typeof error === 'object' && error !== null && FS_ERROR in error;
  }

  /** Anything that was thrown, as an FsError: its own kind unchanged, everything else as `internal` with the cause kept. */
  static from(error: unknown, op: string, object?: string): FsError {
    if (FsError.is(error)) return error;
    const detail = error instanceof Error ? error.message : String(error);
    return new FsError('internal', { op, object, detail, cause: error });
  }
}

/** How an FsError crosses a wire or a thread. */
export interface FsErrorRecord {
  readonly reason: number;
  readonly op: string;
  readonly object?: string;
  readonly detail?: string;
}
export function errorToRecord(error: FsError): FsErrorRecord {
  const causeText = error.cause instanceof Error && error.detail === undefined ? error.cause.message : undefined;
  const detail = error.detail ?? causeText;
  return {
    reason: reasonNumber(error.reason),
    op: error.op,
    ...(error.object === undefined ? {} : { object: error.object }),
    ...(detail === undefined ? {} : { detail }),
  };
}
export function errorFromRecord(record: FsErrorRecord): FsError {
  return new FsError(reasonFromNumber(record.reason), { op: record.op, object: record.object, detail: record.detail });
}
