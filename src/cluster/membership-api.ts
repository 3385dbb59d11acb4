import type { Epoch, Incarnation, NodeId } from '../common/ids.js';

/** A node as the store records it. */
export interface NodeRecord {
  readonly nodeId: NodeId;
  readonly name: string;
  readonly incarnation: Incarnation;
  /** Null for a library node, which dials but is never dialled. */
  readonly address: {
    readonly host: string;
    readonly port: number;
    /** Where it listens for RDMA connections, if it does. */
    readonly rdma?: { readonly host: string; readonly port: number } | undefined;
  } | null;
  /** Full nodes may serve tokens and NSDs. */
  readonly tokenServer: boolean;
}

/** Where the namespace behind a server's path can be shut to that server, whatever becomes of it (S4). */
export interface NsdTarget {
  /** The node on whose machine the target is. */
  readonly nodeId: NodeId;
  /** The NVMe qualified name of the subsystem that is this one server's. */
  readonly subsystem: string;
}

/** An NSD and the nodes that have a path to it, in order of preference. */
export interface NsdRecord {
  readonly uuid: string;
  readonly name: string;
  readonly fsUuid: string | null;
  readonly failureGroup: number;
  readonly servers: readonly NodeId[];
  /** The one that serves it (S4); null: nobody, for now. */
  readonly serving: NodeId | null;
  /** A takeover that has begun: `to` serves once `from` is known to be shut out. */
  readonly moving: { readonly from: NodeId; readonly to: NodeId } | null;
  /** Raised by every change of `serving` and `moving`. */
  readonly generation: number;
  /** By server; one without can be shut out by its own answer only. */
  readonly targets: Readonly<Record<string, NsdTarget>>;
  readonly lengthBytes: number;
}

/**
 * Whether an NSD has what was written to it where there is another copy (S5): *up* -> *failing* (nobody reads it any more; whoever marked it makes
 * sure that everybody knows) -> *stale* (writes pass it over) -> *resync* (they no longer do) -> *up*.
 */
export interface CopyRecord {
  readonly state: 'up' | 'failing' | 'stale' | 'resync';
  /** Raised by every change but the last one, to up; and when what is being resynchronised has to be looked at again. */
  readonly generation: number;
  /** Wall clock, for people. */
  readonly sinceMs: number;
}

/** One consistent view of the cluster; a new object for every change. */
export interface ClusterView {
  readonly clusterId: string;
  readonly epoch: Epoch;
  readonly nodes: ReadonlyMap<NodeId, NodeRecord>;
  /** Over which token objects are hashed, ascending. Changes only with the epoch. */
  readonly tokenServers: readonly NodeId[];
  readonly nsds: ReadonlyMap<string, NsdRecord>;
  /** By NSD; one that is not here is up. */
  readonly copies: ReadonlyMap<string, CopyRecord>;
  /** Lives that are out of the view and not yet cleaned up after. One that is in neither list has fallen everywhere. */
  readonly expelling: readonly { readonly nodeId: NodeId; readonly incarnation: Incarnation }[];
}

export interface Membership {
  readonly view: ClusterView;
  /** Until when this node's lease lasts, on the Clock; absent where there is none. */
  readonly leaseDeadlineMs?: number;
  onChange(listener: (view: ClusterView, previous: ClusterView) => void): () => void;
}
