/**
 * Space that another node has freed is on its way for a while: its inode has to be written without the pointers, then the space is
 * discarded, then its bits are cleared. Before a node says that the file system is full, and when it counts what is free, it asks the
 * others to bring that to an end ("settle"). What is asked for needs nobody's tokens but those of regions and segments, which nobody
 * keeps while waiting for a file; so a settling node never waits for whoever asked it, and whoever asks waits for a deadline at most.
 */
export const Settling = {
  /** What the node has freed becomes free for everybody. */
  space: 0,
  /** And inode numbers too, those included that it has in stock. */
  numbers: 1,
  /** What it has freed becomes free, and its maps go to the devices: for whoever counts there. */
  counts: 2,
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
}

export const NO_PEERS: SpacePeers = { settle: async () => ({ mark: '', unusedNumbers: 0 }) };
