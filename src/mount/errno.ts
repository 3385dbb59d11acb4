import { constants } from 'node:os';
import { FsError } from '../common/errors.js';

/** What a program is told of an error. */
const OF_LINUX: Readonly<Record<string, number>> = {
  // Not in node's table.
  EUCLEAN: 117,
  EREMOTEIO: 121,
  ESHUTDOWN: 108,
  EHOSTUNREACH: 113,
  ABORT_ERR: constants.errno.EINTR,
};
const ERRNO: Readonly<Record<string, number>> = constants.errno;

export function errnoOf(error: unknown): number {
  if (!FsError.is(error)) return constants.errno.EIO;
  return OF_LINUX[error.code] ?? ERRNO[error.code] ?? constants.errno.EIO;
}
