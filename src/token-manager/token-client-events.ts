/**
 * What goes into and comes out of the token client's machine, its settings and the names of its transitions.
 */
import type { ByteRange } from '../common/byte-range.js';
import type { Reason } from '../common/errors.js';
import type { Epoch } from '../common/ids.js';
import type { ServerIdentity } from './placement.js';
import type { Revocation, StatusNote, TokenClass, TokenObject, TokenPins } from './token.js';
import type { Blocker, RequestPart, ToClientMessage, ToServerMessage } from './token-messages.js';

/** The tokens of one object that an operation needs: asked for, granted and pinned together. Parts ascend and are disjoint. */
export interface TokenGroup {
  readonly class: TokenClass;
  readonly object: TokenObject;
  readonly parts: readonly RequestPart[];
}

/** An operation that waits for tokens. */
export interface AcquireOp {
  /** Chosen by the shell; never reused. */
  readonly opId: number;
  /** In the total order (T4), one per object: what `groupItems` makes. */
  readonly groups: readonly TokenGroup[];
  /** On the caller's clock; Infinity is none. */
  readonly deadlineAtMs: number;
  /** Refused at once instead of calling anybody back. */
  readonly nowait: boolean;
  /** Of open tokens: also waits for files to be closed, however long that takes. */
  readonly patient?: boolean | undefined;
}

export type ClientEvent =
  | { readonly type: 'view'; readonly epoch: Epoch; readonly servers: readonly ServerIdentity[] }
  | { readonly type: 'message'; readonly from: ServerIdentity; readonly message: ToClientMessage }
  /** Operations of one turn: their requests to one server travel together. */
  | { readonly type: 'acquire'; readonly ops: readonly AcquireOp[] }
  | { readonly type: 'abort'; readonly opId: number }
  /** The handler has flushed and invalidated what effect `revoke` with this handle named. */
  | {
      readonly type: 'revokeDone';
      readonly handle: number;
      /** Of status: see RevokeHandler. */
      readonly notes?: readonly StatusNote[] | undefined;
      /** Another one follows at once: what there is to send waits for it and travels with it. */
      readonly more?: boolean;
    }
  | {
      readonly type: 'release';
      readonly releaseId: number;
      readonly class: TokenClass;
      readonly object: TokenObject;
      readonly range: ByteRange;
    }
  /** Pins were released that a revocation waits for: `onDrained` was called. */
  | { readonly type: 'drained' }
  /** The lease is out (F3): nothing is used, started or given up until `resume` or `fence`. */
  | { readonly type: 'suspend' }
  | { readonly type: 'resume' }
  /** Everything is dropped, every operation fails; the machine is of no more use. */
  | { readonly type: 'fence' }
  | { readonly type: 'tick' };

/**
 * Effects of one step, in this order: messages, one per server, by the order in which the servers were first written to;
 * then what was gathered, then the others in the order in which they were decided.
 */
export type ClientEffect =
  | { readonly type: 'send'; readonly to: ServerIdentity; readonly message: ToServerMessage }
  /** Flush, invalidate, then `revokeDone`. No pin of an older operation is left in the range, and no new one gets in. */
  | { readonly type: 'revoke'; readonly handle: number; readonly revocation: Revocation }
  /** See RevokeHandler.gathered. */
  | {
      readonly type: 'gathered';
      readonly object: TokenObject;
      readonly range: ByteRange;
      readonly notes: readonly StatusNote[];
    }
  | { readonly type: 'pinned'; readonly opId: number; readonly pins: TokenPins }
  | {
      readonly type: 'failed';
      readonly opId: number;
      readonly reason: Reason;
      readonly group: TokenGroup;
      readonly blockers: readonly Blocker[];
    }
  | { readonly type: 'released'; readonly releaseId: number }
  /** I1 is broken, and this node is one of those concerned: what it caches may be wrong (F7). */
  | { readonly type: 'broken'; readonly detail: string };

export interface TokenClientSettings {
  /** A token is kept this long after its grant before a revocation of it begins, in milliseconds; pins are kept anyway. */
  readonly minHoldMs: number;
  /** How long after its deadline an operation still waits for the server's refusal, which names the blockers, in milliseconds. */
  readonly deadlineGraceMs: number;
  /** When to ask again what was refused as staleEpoch, if no view comes before, in milliseconds. */
  readonly retryMs: number;
  /** Ranges held before idle objects are given back, least recently used first. */
  readonly rangesMax: number;
  /** How long a request may keep others of this node waiting that its grant would serve too, in milliseconds; 0: each sends its own. */
  readonly joinMs: number;
}
export const TOKEN_CLIENT_DEFAULTS: TokenClientSettings = {
  minHoldMs: 0,
  deadlineGraceMs: 250,
  retryMs: 20,
  rangesMax: 250_000,
  joinMs: 100,
};

/** Every transition of the machine under peers that keep the protocol; the simulator fails if one never fires. */
export const CLIENT_TRANSITIONS = [
  'pinnedAtOnce',
  'pinnedAtGrant',
  'pinnedAfterWait',
  'pinnedBehindRevoke',
  'grantKeptForLater',
  'grantForNobody',
  'grantUnknown',
  'requestSent',
  'waitsForOwnRequest',
  'joinsRequest',
  'joinedInVain',
  'joinedTooLong',
  'waitsForRevoke',
  'waitsForServer',
  'revokeWaitsForPins',
  'revokeWaitsForHold',
  'revokeWaitsInLine',
  'revokeHandled',
  'revokeOfNothing',
  'revokeCrossedByGrant',
  'revokeGivesMore',
  'revokeOutlivesServer',
  'downgraded',
  'refusedDeadline',
  'refusedNowait',
  'refusedEpoch',
  'cancelAcknowledged',
  'failedAtDeadline',
  'aborted',
  'releasedByUs',
  'shrunk',
  'serverChanged',
  'askAnswered',
  'askBeforeView',
  'messageFromOldLife',
  'suspended',
  'resumed',
  'fenced',
] as const;
/** Need a file that is open while somebody else wants to be alone with it, or several writers of a file. */
export const CLIENT_RARE_TRANSITIONS = ['revokeOfOpenFile', 'refusedInUse', 'gathered'] as const;
/** Fire only when a server breaks the protocol. */
export const CLIENT_FAULT_TRANSITIONS = [
  'grantInvalid',
  'refusedInvalid',
  'itemFromOtherServer',
  'contradicted',
] as const;
export type ClientTransition =
  | (typeof CLIENT_TRANSITIONS)[number]
  | (typeof CLIENT_RARE_TRANSITIONS)[number]
  | (typeof CLIENT_FAULT_TRANSITIONS)[number];
