import type { Counters } from '../common/counters.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { type ChecksumArea, entryOf, setEntry } from './checksum-area.js';
import type { Checksums } from './checksums.js';
import type { IntentArea, IntentChain } from './intent-area.js';
import type { Intent } from './intent-layout.js';
import type { BlockDevice } from './nsd-api.js';
import {
  ENTRIES_PER_CHECKSUM_SECTOR,
  isLost,
  isSelfChecking,
  type NsdGeometry,
  readsAsZeros,
  takesVersion,
} from './nsd-layout.js';
import { settleAll } from './settle-all.js';

/**
 * What the opening of an NSD does with the intents that it finds (S1): of each sector that was being written over, exactly one of the states that they
 * name, old or new, is accepted, by what its bytes turn out to be. Neither stays a checksum mismatch and is counted.
 *
 * Any number of times, also after dying in the midst of it: the intents count until all that was decided has been flushed.
 */
export interface Entry {
  readonly crc: number;
  readonly word: number;
}

/**
 * The entry that a sector gets; null: it keeps the one it has.
 * Of several intents the newest may be there before the data of an older write is: what no flush has covered comes in any order. So what any of them speaks of
 * is looked for, from the newest back.
 * @param intents of the sector, the oldest first
 * @param found checksum of the bytes that are there
 */
export function decide(
  intents: readonly Intent[],
  entry: Entry,
  found: number,
): { entry: Entry | null; torn: boolean } {
  const keep = { entry: null, torn: false };
  const newest = intents.at(-1)!;
  // Written or discarded since: the intents are of the past.
  if (!takesVersion(entry.word, newest.newWord)) return keep;
  for (const intent of intents.toReversed()) {
    if (found === intent.newCrc) return { entry: { crc: intent.newCrc, word: intent.newWord }, torn: false };
    if (readsAsZeros(intent.oldWord)) {
      // What was a hole needs no bytes to be one again. But behind an older intent these may be what is left of bytes that a flush has covered.
      if (intent !== newest && !readsAsZeros(entry.word)) break;
      return { entry: { crc: 0, word: intent.oldWord }, torn: false };
    }
    if (found === intent.oldCrc) return { entry: { crc: intent.oldCrc, word: intent.oldWord }, torn: false };
  }
  if (readsAsZeros(entry.word)) return { entry: { crc: newest.newCrc, word: newest.newWord }, torn: true };
  if (isSelfChecking(entry.word)) return { entry: null, torn: true };
  return isLost(entry.word) || found !== entry.crc ? { entry: null, torn: true } : keep;
}

export async function settleIntents(parts: {
  readonly device: BlockDevice;
  readonly pool: PagePool;
  readonly checksums: Checksums;
  readonly counters: Counters;
  readonly geometry: NsdGeometry;
  readonly area: ChecksumArea;
  readonly intents: IntentArea;
  readonly flush: () => Promise<void>;
  /** Whole sectors; nobody else's meanwhile. */
  readonly staging: PoolSegment;
}): Promise<void> {
  const { intents, flush, staging } = parts;
  const found = await intents.load();
  const atOnce = staging.lengthBytes / SECTOR_BYTES;
  for (let first = 0; first < found.length; ) {
    const group = Math.floor(found[first]!.sector / ENTRIES_PER_CHECKSUM_SECTOR);
    let end = first + 1;
    while (end - first < atOnce && end < found.length) {
      if (Math.floor(found[end]!.sector / ENTRIES_PER_CHECKSUM_SECTOR) !== group) break;
      end++;
    }
    await settleSome(parts, found.slice(first, end));
    first = end;
  }
  // Also without any: whatever an earlier life of this node has left unflushed is what is built on from here.
  await flush();
  if (found.length > 0) await intents.forget();
}

async function settleSome(parts: Parameters<typeof settleIntents>[0], some: readonly IntentChain[]): Promise<void> {
  const { device, pool, checksums, counters, geometry, area, staging } = parts;
  const place = (i: number): PoolSegment => ({
    offsetBytes: staging.offsetBytes + i * SECTOR_BYTES,
    lengthBytes: SECTOR_BYTES,
  });
  await settleAll(some.map(({ sector }, i) => device.read((geometry.dataStart + sector) * SECTOR_BYTES, place(i))));
  const crcs = new Uint32Array(some.length);
  checksums.sectors(pool.bytes, staging.offsetBytes, some.length, crcs, 0);
  const groups = await area.hold(some[0]!.sector, some.at(-1)!.sector + 1);
  try {
    const sequence = area.beginData(groups);
    let changed = false;
    for (const [i, { sector, intents }] of some.entries()) {
      const before = entryOf(groups, sector);
      const { entry, torn } = decide(intents, before, crcs[i]!);
      if (torn) counters.add('nsd.intentsTorn');
      if (entry === null || (entry.crc === before.crc && entry.word === before.word)) continue;
      setEntry(groups, sector, entry.crc, entry.word);
      counters.add('nsd.intentsSettled');
      changed = true;
    }
    const committed = changed ? area.commit(groups) : Promise.resolve();
    area.endData(groups, sequence);
    await committed;
  } finally {
    area.drop(groups);
  }
}
