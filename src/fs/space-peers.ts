/**
 * Space that another node has freed is on its way for a while: its inode has to be written without the pointers, then the space is
 * discarded, then its bits are cleared. Before a node says that the file system is full, and when it counts what is free, it asks the
 * others to bring that to an end ("settle"). What is asked for needs nobody's tokens but those of regions and segments, which nobody
 * keeps while waiting for a file; so a settling node never waits for whoever asked it, and whoever asks waits for a deadline at most.
 */
import type { NodeId } from '../common/ids.js';
import type { RegionAnswer, RegionAsk, Shipment, ShipmentAnswer } from './space/shipment.js';

export const Settling = {
  /** What the node has freed becomes free for everybody. */
  space: 0,
  /** And inode numbers too, those included that it has in stock. */
  numbers: 1,
  /** What it has freed becomes free, and its maps go to the devices: for whoever counts there. */
  counts: 2,
  /** The node knows what stands about copies by now (S5). Answered also by those that have not mounted it. */
  copies: 3,
  /** And the changes that it had begun before it knew have ended; what its log still needs of before is in place. */
  changes: 4,
} as const;
export type Settling = (typeof Settling)[keyof typeof Settling];

/** One node's answer. */
export interface Settled {
  /** Sub-blocks that this node has cleared in the allocation map in its life: as long as nobody's has moved, what was full is full. */
  readonly freedSubBlocks: number;
  /** Inode numbers that it has in stock: marked as used, and free. */
  readonly unusedNumbers: number;
}

export interface SettledPeers {
  /** The same as an earlier one: nobody has freed anything in between. Null: somebody didn't answer, or not in time. */
  readonly mark: string | null;
  readonly unusedNumbers: number;
}

/** The other nodes that have this file system mounted. */
export interface SpacePeers {
  /** Never rejects; ends at the deadline, whoever answers. */
  settle(what: Settling, timeoutMs: number): Promise<SettledPeers>;
  /** Asks the allocation manager (space/region-machine.ts). Never rejects; null: no answer in time, or nothing was wanted. */
  region(ask: RegionAsk, timeoutMs: number): Promise<RegionAnswer | null>;
  /** Who holds these regions, by their order; null for nobody. Never rejects; null: no answer in time. */
  holders(
    ask: { readonly regionBytes: number; readonly regions: readonly number[] },
    timeoutMs: number,
  ): Promise<readonly (NodeId | null)[] | null>;
  /** Sends space to be freed to a region's holder. Never rejects. */
  ship(to: NodeId, shipment: Shipment, timeoutMs: number): Promise<ShipmentAnswer>;
}

export const NO_PEERS: SpacePeers = {
  settle: async () => ({ mark: '', unusedNumbers: 0 }),
  region: async () => null,
  holders: async () => null,
  ship: async () => 'notMine',
};
