import type { Epoch, Incarnation, NodeId } from '../common/ids.js';

/** A node as the store records it. */
export interface NodeRecord {
  readonly nodeId: NodeId;
  readonly name: string;
  readonly incarnation: Incarnation;
  /** Null for a library node, which dials but is never dialled. */
  readonly address: { readonly host: string; readonly port: number } | null;
  /** Full nodes may serve tokens and NSDs. */
  readonly tokenServer: boolean;
}

/** An NSD and the nodes that have a path to it, in order of preference. */
export interface NsdRecord {
  readonly uuid: string;
  readonly name: string;
  readonly fsUuid: string | null;
  readonly failureGroup: number;
  readonly servers: readonly NodeId[];
  readonly lengthBytes: number;
}

/** One consistent view of the cluster; a new object for every change. */
export interface ClusterView {
  readonly clusterId: string;
  readonly epoch: Epoch;
  readonly nodes: ReadonlyMap<NodeId, NodeRecord>;
  /** Over which token objects are hashed, ascending. Changes only with the epoch. */
  readonly tokenServers: readonly NodeId[];
  readonly nsds: ReadonlyMap<string, NsdRecord>;
  /** Lives that are out of the view and not yet cleaned up after. One that is in neither list has fallen everywhere. */
  readonly expelling: readonly { readonly nodeId: NodeId; readonly incarnation: Incarnation }[];
}

export interface Membership {
  readonly view: ClusterView;
  /** Until when this node's lease lasts, on the Clock; absent where there is none. */
  readonly leaseDeadlineMs?: number;
  onChange(listener: (view: ClusterView, previous: ClusterView) => void): () => void;
}
