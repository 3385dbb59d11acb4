/** This node's part of settling: what it has freed, and what it has in stock, becomes free on the devices. See space-peers.ts. */
import { MirroredNsds } from '../nsd/mirrored-nsds.js';
import { ALLOCATION_MAP, INODE_MAP } from './layout.js';
import { type Settled, Settling } from './space-peers.js';
import type { Volume } from './volume.js';

export async function settle(volume: Volume, what: Settling): Promise<Settled> {
  const { frees, numbers, orphans, counters, settings } = volume;
  if (what === Settling.copies || what === Settling.changes) {
    if (what === Settling.changes) await endChanges(volume);
    return { freedSubBlocks: 0, unusedNumbers: 0 };
  }
  volume.checkOpen('settle');
  await orphans.attempted(settings.regionTimeoutMs);
  await frees.reclaim();
  if (what === Settling.numbers) await numbers.surrender();
  if (what === Settling.counts) {
    await numbers.returnNumbers();
    for (const map of [ALLOCATION_MAP, INODE_MAP]) {
      const file = volume.mapFile(map);
      if (file.dirty) await file.flush();
    }
  }
  counters.add('fs.settled');
  return { freedSubBlocks: counters.get('fs.subBlocksFreed'), unusedNumbers: numbers.unusedCount };
}

/**
 * What goes to the NSDs by what this node knew of copies before has ended; and nothing in its log that recovery would need is of before: it may have
 * passed over a copy that is written again by now.
 */
async function endChanges({ parts, log, claim }: Volume): Promise<void> {
  await log?.operationsEnded();
  if (parts.nsds instanceof MirroredNsds) await parts.nsds.changesEnded();
  await log?.renew();
  await claim?.sayAgain();
}
