/**
 * What goes into and comes out of the token server's machine, its settings and the names of its transitions.
 */
import type { Epoch, Incarnation, NodeId } from '../common/ids.js';
import type { ServerIdentity } from './placement.js';
import type { ToClientMessage, ToServerMessage } from './token-messages.js';

/** A node in one of its lives. */
export type MemberIdentity = ServerIdentity;

/** One view of the cluster, as tokens need it. */
export interface TokenView {
  readonly epoch: Epoch;
  /** Ascending by node. */
  readonly servers: readonly ServerIdentity[];
  readonly nodes: readonly MemberIdentity[];
  /** Lives that left the view but have not fallen: still to be fenced, or their logs to be replayed. */
  readonly closed?: readonly MemberIdentity[];
}

export type ServerEvent =
  | { readonly type: 'view'; readonly view: TokenView }
  | { readonly type: 'message'; readonly from: MemberIdentity; readonly message: ToServerMessage }
  /** Fenced: this life of the node and older ones can't do anything any more. Their tokens and requests fall. */
  | { readonly type: 'expelled'; readonly nodeId: NodeId; readonly incarnation: Incarnation }
  /** Fenced, but its log is still to be replayed: its requests fall, its tokens stay closed until `released` (I6). */
  | { readonly type: 'holdClosed'; readonly nodeId: NodeId; readonly incarnation: Incarnation }
  | { readonly type: 'released'; readonly nodeId: NodeId; readonly incarnation: Incarnation }
  /** Time has passed: `nextWakeMs` is reached. */
  | { readonly type: 'tick' };

/**
 * Effects of one step, in this order: messages, one per destination, by the order in which the destinations were first
 * written to; then violations. Everything in a message is already true in the machine's state.
 */
export type ServerEffect =
  | { readonly type: 'send'; readonly to: MemberIdentity; readonly message: ToClientMessage }
  /** A node claims what another one, not fallen after `contradictionMs`, holds: I1 is broken. Nothing is granted meanwhile. */
  | { readonly type: 'violation'; readonly by: MemberIdentity; readonly detail: string };

export interface TokenServerSettings {
  /** Ranges in the table before it asks holders to give some back. A soft bound: no request waits or fails for it (32 bytes each). */
  readonly rangesMax: number;
  /** Requests kept that were made under a later view than ours; beyond it they are refused as staleEpoch. */
  readonly earlyRequestsMax: number;
  /** How long claims may contradict each other before it is reported as a violation, in milliseconds: well beyond a lease. */
  readonly contradictionMs: number;
}
export const TOKEN_SERVER_DEFAULTS: TokenServerSettings = {
  rangesMax: 1_000_000,
  earlyRequestsMax: 10_000,
  contradictionMs: 60_000,
};

/** Every transition of the machine under peers that keep the protocol; the simulator fails if one never fires. */
export const SERVER_TRANSITIONS = [
  'grantAtOnce',
  'grantAfterWait',
  'grantNarrowed',
  'requestWaitsForHolder',
  'requestWaitsInLine',
  'requestWaitsForClaims',
  'requestEarly',
  'requestRefusedNowait',
  'requestRefusedDeadline',
  'requestRefusedEpoch',
  'requestCancelled',
  'cancelTooLate',
  'revokeSent',
  'revokeSharesOutstanding',
  'reclaimSent',
  'answerTaken',
  'answerStale',
  'answerUnknown',
  'releaseTaken',
  'releaseStale',
  'memberMet',
  'memberClosed',
  'memberFallen',
  'messageFromOldLife',
  'messageToOldLife',
  'requesterFallsMidRevoke',
  'holderFallsMidRevoke',
  'rebuildBegun',
  'claimTaken',
  'claimsOfOtherList',
  'rebuildDone',
  'ownershipLost',
] as const;
/** Needs a node to die between two servers' hearing of a third thing: scenarios show it, random runs seldom do. */
export const SERVER_RARE_TRANSITIONS = ['claimsWaitForFall', 'requestRefusedInUse', 'noteTaken'] as const;
/** Fire only when a peer breaks the protocol. */
export const SERVER_FAULT_TRANSITIONS = ['requestInvalid', 'claimConflict', 'sequenceFromFuture'] as const;
export type ServerTransition =
  | (typeof SERVER_TRANSITIONS)[number]
  | (typeof SERVER_RARE_TRANSITIONS)[number]
  | (typeof SERVER_FAULT_TRANSITIONS)[number];
