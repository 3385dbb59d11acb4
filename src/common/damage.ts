/** What is said of a sector that can't be believed: others of its kind are gone on with. */
import { FsError } from './errors.js';

/** It doesn't verify, or its bytes don't have the checksum that is kept for them. An NSD that is away or fails is something else. */
export const isDamage = (error: unknown): error is FsError =>
  FsError.is(error) && (error.reason === 'corrupt' || error.reason === 'checksumMismatch');
