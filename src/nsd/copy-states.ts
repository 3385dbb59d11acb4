import type { FsError } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';

/**
 * Whether an NSD has what was written to it, where that has another copy (S5).
 *
 * - up: it has everything; it is read and written.
 * - failing: a write could not reach it. Nobody reads it any more; no write passes it over until everybody knows that.
 * - stale: everybody knows. Writes pass it over.
 * - resync: it is being brought up to date: every write goes there again, nobody reads it yet.
 */
export type CopyState = 'up' | 'failing' | 'stale' | 'resync';

export interface CopyStates {
  stateOf(nsd: NsdIndex): CopyState;
  /** This node serves it itself: reads are nearest there. */
  isNear(nsd: NsdIndex): boolean;
  /**
   * A write, flush or discard has not reached this NSD, `cause` says why, and has reached the other copy of all it was about. Afterwards it is stale,
   * for everyone and durably; or, 'again', there is a way to it once more. @throws {FsError} when neither: the other copy may be the stale one.
   */
  missed(nsd: NsdIndex, cause: FsError): Promise<'stale' | 'again'>;
  /** A copy that is being resynchronised has refused a write, because its own version is of later: whoever resynchronises must look again. */
  refused(nsd: NsdIndex): Promise<void>;

  // For whoever resynchronises.

  /** There is a way to it. */
  isReachable(nsd: NsdIndex): boolean;
  /**
   * Every node writes to it again when this resolves, and what any node had begun before has ended. Null: it is not stale, or somebody doesn't answer.
   * The number is for `endResync`.
   */
  beginResync(nsd: NsdIndex): Promise<number | null>;
  /** It has everything, if nothing has gone wrong since `beginResync`. */
  endResync(nsd: NsdIndex, generation: number): Promise<boolean>;
  /** Called after changes of what the others say; returns how to end that. */
  onChange(listener: () => void): () => void;
}

/** Nobody could be told. */
export const ALWAYS_UP: CopyStates = {
  stateOf: () => 'up',
  isNear: () => false,
  missed: (_, cause) => Promise.reject(cause),
  refused: async () => undefined,
  isReachable: () => true,
  beginResync: async () => null,
  endResync: async () => false,
  onChange: () => () => undefined,
};
