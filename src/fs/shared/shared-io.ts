/** Reads and writes of a file that was declared shared-write, as they go from a node that has it open to the one that owns it. */
import type { Incarnation, InodeNumber, NodeId } from '../../common/ids.js';
import type { SharedReply, SharedRequest } from '../../protocol/shared-io-messages.js';

export {
  SHARED_BYTES_MAX,
  SHARED_GROUPS_MAX,
  type SharedReply,
  type SharedRequest,
} from '../../protocol/shared-io-messages.js';

export interface Owner {
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
}
/** The other nodes, for files that are served through their owners. */
export interface SharedOwners {
  /** Null: this node is it, or nobody. */
  ownerOf(ino: InodeNumber): Owner | null;
  /** Whether that life is still one of the cluster's: if not, nothing of it happens any more. */
  isThere(owner: Owner): boolean;
  /** @throws {FsError} the owner's own error, or the fabric's: then nobody knows whether it was done. */
  ask(owner: Owner, request: SharedRequest, signal: AbortSignal | undefined): Promise<SharedReply>;
}
export const NO_OWNERS: SharedOwners = {
  ownerOf: () => null,
  isThere: () => false,
  ask: () => Promise.resolve(null),
};
