import { below, chance, pick, SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import { type CellLayout, LAYOUTS } from './file-model.js';

/**
 * What a seed decides before its world begins: how large it is, what is done in it, what goes wrong and when.
 *
 * Three kinds. `data`: operations on existing files, and everything may go wrong, expulsions in the midst of revocations above all.
 * `metadata`: names are made, moved and removed as well; nobody is expelled, since there is no log yet that would mend the tree.
 * `servers`: the list of token servers changes under the load, cleanly. Whatever the kind, in some seeds the nodes write side by side (`regions`).
 */
export type SeedKind = 'data' | 'metadata' | 'servers';

export type FaultKind =
  | 'cut'
  | 'slowLink'
  | 'partition'
  | 'storeOutage'
  | 'storeCut'
  | 'slowDisk'
  | 'pause'
  | 'kill'
  | 'killHolder'
  | 'killRequester'
  | 'killServer'
  | 'killSynced'
  | 'zombie'
  | 'lateWrites'
  | 'stuckDisk'
  | 'resend'
  | 'leave'
  | 'flap'
  | 'powerCut'
  | 'copyAway';

export interface FaultPlan {
  readonly kind: FaultKind;
  /** Begins when so many operations have ended. */
  readonly atOperation: number;
  readonly forMs: number;
}

export interface SeedPlan {
  readonly seed: number;
  readonly kind: SeedKind;
  readonly nodeCount: number;
  /** Nodes 1 to this serve tokens. */
  readonly tokenServers: number;
  /** Nodes 1 to this serve an NSD each. */
  readonly nsdCount: number;
  /** Of metadata and logs. */
  readonly metadataCopies: 1 | 2;
  readonly operations: number;
  readonly clientsPerNode: number;
  /** Each node writes to a region of its own of each file, and all ask for its size. */
  readonly regions: boolean;
  readonly files: readonly CellLayout[];
  readonly faults: readonly FaultPlan[];
  readonly slotCount: number;
  readonly thinkMs: number;
  readonly minHoldMs: number;
  /** Inodes asked for at once. One in every other seed with names, so that few files are enough for somebody to go on from one run to the next. */
  readonly inodeRun: number;
  /** Ranges that token client and server keep before they shrink. */
  readonly clientRangesMax: number;
  readonly serverRangesMax: number;
  readonly acquireTimeoutMs: number;
  /** What an NSD's server gets before a request is sent again; null: as in the daemon, longer than anything here takes. */
  readonly nsdAttemptTimeoutMs: number | null;
}

export const LEASE_TTL_MS = 1500;
const OPERATIONS = 520;
/** Of so many seeds one loses the power of all its machines. */
const POWER_CUT_EVERY = 6;
/** In one of so many seeds nodes write side by side, in regions of their own. */
const REGIONS_EVERY = 9;
/** And one has two copies of its metadata, of which one goes away for longer than it is waited for (S5). */
const COPIES_EVERY = 16;
const COPIES_AT = 9;
/** As long as an operation may wait for a token, whatever else goes wrong. */
export const ACQUIRE_TIMEOUT_MS = 20_000;

const HARMLESS: readonly FaultKind[] = ['cut', 'slowLink', 'partition', 'slowDisk', 'pause', 'storeOutage'];
const EXPELLING: readonly FaultKind[] = [
  'killHolder',
  'killRequester',
  'killHolder',
  'killRequester',
  'killSynced',
  'kill',
  'killServer',
  'zombie',
  'storeCut',
  'lateWrites',
  'stuckDisk',
  'stuckDisk',
];

export function planSeed(seed: number): SeedPlan {
  const random = new SeededRandom(seed * 2 + 1);
  const kind: SeedKind = seed % 4 === 0 ? 'metadata' : seed % 10 === 7 ? 'servers' : 'data';
  const nodeCount = chance(random, 0.6) ? 3 : 4 + below(random, 2);
  const tokenServers = pick(random, [1, 2, 2, nodeCount]);
  const faults: FaultPlan[] = [];
  const add = (fault: FaultKind, forMs: number): void => {
    faults.push({ kind: fault, atOperation: 20 + below(random, OPERATIONS - 60), forMs });
  };
  if (kind === 'data')
    for (let i = 1 + below(random, 2); i > 0; i--) add(pick(random, EXPELLING), durationOf('kill', random));
  if (kind === 'servers')
    for (let i = 1 + below(random, 2); i > 0; i--)
      add(chance(random, 0.4) ? 'flap' : 'leave', 50 + 400 * random.next());
  for (let i = 2 + below(random, 3); i > 0; i--) {
    const fault = pick(random, HARMLESS);
    add(fault, durationOf(fault, random));
  }
  // Drawn apart, so that the seeds without it are what they were.
  const apart = new SeededRandom(seed * 2 + 2_000_003);
  const resends = seed % 5 === 3;
  if (resends)
    for (let i = 1 + below(apart, 2); i > 0; i--)
      faults.push({ kind: 'resend', atOperation: 20 + below(apart, OPERATIONS - 60), forMs: 50 + 400 * apart.next() });
  // All machines at once, also drawn apart.
  if (kind === 'data' && seed % POWER_CUT_EVERY === 1) {
    const cuts = new SeededRandom(seed * 2 + 4_000_037);
    for (let i = 1 + below(cuts, 2); i > 0; i--)
      faults.push({ kind: 'powerCut', atOperation: 20 + below(cuts, OPERATIONS - 60), forMs: 0 });
  }
  const regions = seed % REGIONS_EVERY === 5;
  const metadataCopies = kind === 'data' && seed % COPIES_EVERY === COPIES_AT ? 2 : 1;
  if (metadataCopies === 2) {
    const away = new SeededRandom(seed * 2 + 8_000_009);
    for (let i = 1 + below(away, 2); i > 0; i--)
      faults.push({
        kind: 'copyAway',
        atOperation: 20 + below(away, OPERATIONS - 160),
        forMs: 3400 + 2600 * away.next(),
      });
  }
  faults.sort((a, b) => a.atOperation - b.atOperation);
  return {
    seed,
    kind,
    nodeCount,
    tokenServers,
    nsdCount: pick(random, [2, 3]),
    metadataCopies,
    operations: OPERATIONS,
    clientsPerNode: nodeCount === 3 ? 3 : 2,
    regions,
    files: Array.from({ length: 2 + below(random, 2) }, () => {
      const layout = pick(random, LAYOUTS);
      // What is in its inode is written by one node at a time.
      return regions && layout.cellBytes < SECTOR_BYTES ? LAYOUTS[0]! : layout;
    }),
    faults,
    slotCount: pick(random, [40, 48, 64, 96]),
    thinkMs: pick(random, [1, 3, 8]),
    minHoldMs: chance(random, 0.3) ? 2 * random.next() : 0,
    inodeRun: seed % 8 === 4 ? 1 : 64,
    clientRangesMax: chance(random, 0.15) ? 12 : 250_000,
    serverRangesMax: chance(random, 0.15) ? 24 : 1_000_000,
    acquireTimeoutMs: ACQUIRE_TIMEOUT_MS,
    nsdAttemptTimeoutMs: resends ? 6 + 20 * apart.next() : null,
  };
}

function durationOf(fault: FaultKind, random: SeededRandom): number {
  const share = random.next();
  switch (fault) {
    // Up to a little beyond the lease: some nodes are suspended, nobody is expelled.
    case 'storeOutage':
      return 100 + 2200 * share;
    case 'pause':
      return 20 + 1100 * share * share;
    case 'partition':
      return 20 + 1500 * share;
    default:
      return 50 + 500 * share;
  }
}
