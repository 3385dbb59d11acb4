import type { FsError } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';

/**
 * Whether an NSD has what was written to it, where that has another copy (S5).
 *
 * - up: it has everything; it is read and written.
 * - stale: writes have passed it over. Nobody reads it or writes to it.
 * - resync: it is being brought up to date: every write goes there again, nobody reads it yet.
 */
export type CopyState = 'up' | 'stale' | 'resync';

export interface CopyStates {
  stateOf(nsd: NsdIndex): CopyState;
  /** This node serves it itself: reads are nearest there. */
  isNear(nsd: NsdIndex): boolean;
  /**
   * A write, flush or discard has not reached this NSD, `cause` says why, and has reached the other copy of all it was about. When this resolves it
   * is stale for everyone, durably, and nobody reads it. @throws {FsError} when that can't be: the other copy may be the stale one.
   */
  missed(nsd: NsdIndex, cause: FsError): Promise<void>;
  /** A copy that is being resynchronised has refused a write, because its own version is of later: whoever resynchronises must look again. */
  refused(nsd: NsdIndex): Promise<void>;
}

/** Nobody could be told. */
export const ALWAYS_UP: CopyStates = {
  stateOf: () => 'up',
  isNear: () => false,
  missed: (_, cause) => Promise.reject(cause),
  refused: async () => undefined,
};
