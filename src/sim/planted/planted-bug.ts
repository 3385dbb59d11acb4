import type { ExpulsionActions } from '../../cluster/membership-runtime.js';
import type { CopyRecordStore } from '../../daemon/cluster-copies.js';
import { type FaultKind, planSeed } from '../seed-plan.js';
import type { SimNode } from '../sim-node.js';
import type { FabricTap } from '../tapped-fabric.js';
import type { WatchedCacheMap } from '../watched-map.js';
import type { World } from '../world.js';

/**
 * A bug put into every node of a world, at the seams where the world puts the node together; production code knows nothing of it. The
 * simulator has to find it.
 */
export interface PlantedBug {
  readonly name: string;
  /** What is wrong, in a sentence. */
  readonly what: string;
  /** It can show only where one of these faults comes about: a search passes over the other seeds. */
  readonly needs?: readonly FaultKind[];
  /** The one that found it last, where the first seeds don't: a quick search begins with it. Stale when worlds have changed, which costs time and nothing else. */
  readonly likelySeed?: number;
  makeMap?(world: World, life: SimNode): WatchedCacheMap;
  tap?(world: World, life: SimNode): FabricTap;
  /** What the node changes of what stands about copies. */
  copyRecords?(world: World, life: SimNode): CopyRecordStore;
  /** After the node is made, before it joins. */
  alterNode?(world: World, life: SimNode): void;
  alterActions?(world: World, life: SimNode, real: ExpulsionActions): ExpulsionActions;
}

export const NOTHING_PLANTED: PlantedBug = { name: 'nothing', what: 'The nodes as they are.' };

/** The first seeds that may show it. */
export function* seedsFor({ needs, likelySeed }: PlantedBug, quick: boolean): Generator<number> {
  if (quick && likelySeed !== undefined) yield likelySeed;
  for (let seed = 1; ; seed++)
    if (quick && seed === likelySeed) continue;
    else if (needs === undefined || planSeed(seed).faults.some(({ kind }) => needs.includes(kind))) yield seed;
}
