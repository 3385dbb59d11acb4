import type { NodeRecord } from '../cluster/membership-api.js';
import type { MembershipRuntime } from '../cluster/membership-runtime.js';
import type { FabricNode } from '../fabric/fabric-node.js';
import type { LadderTransport } from '../fabric/ladder-transport.js';

/**
 * RDMA devices that first appear while nodes run: this node's is made known in its membership record, and a peer whose record says
 * that it has one by now is tried over it. (A device that comes back is where it was, and found without a word.)
 */
export interface RdmaAddresses {
  readonly membership: MembershipRuntime;
  readonly fabric: FabricNode;
  readonly ladder: LadderTransport;
  /** As the node joined with it; null: it is never dialled. */
  readonly address: NodeRecord['address'];
  /** Where it listens for RDMA by now. */
  readonly rdma: { readonly host: string; readonly port: number } | undefined;
}

/** @returns what ends it. */
export function followRdmaAddresses({ membership, fabric, ladder, address, rdma }: RdmaAddresses): () => void {
  const makeKnown = (found: NonNullable<RdmaAddresses['rdma']>): void => {
    if (address !== null) membership.addressChanged({ ...address, rdma: found });
  };
  ladder.onRdmaAddress = makeKnown;
  if (rdma !== undefined && rdma !== address?.rdma) makeKnown(rdma);
  const unsubscribe = membership.onChange((view, previous) => {
    for (const { nodeId, address: now } of view.nodes.values()) {
      const before = previous.nodes.get(nodeId)?.address?.rdma;
      const isNew = now?.rdma !== undefined && (now.rdma.host !== before?.host || now.rdma.port !== before.port);
      if (isNew && nodeId !== membership.self.nodeId) fabric.lookForBetter(nodeId);
    }
  });
  return () => {
    unsubscribe();
    ladder.onRdmaAddress = null;
  };
}
