/**
 * What nodes that are gone left unfinished (log/loose-ends.ts) is brought to an end by a node that has the file system mounted: space in limbo is
 * freed, and what was shipped if it has not arrived (S6), numbers go back, inodes without a name go.
 *
 * Each step is one transaction of this node's log together with the count of steps done, in the descriptor of the log that was left: so whoever dies
 * in the midst, a step is done once. The steps are the same for everybody who reads that log, in one order.
 */

import { sleep } from '../common/clock.js';
import { isDamage } from '../common/damage.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import type { TokenPins } from '../token-manager/token.js';
import { groupBy } from './group.js';
import { type Extent, LOG_TABLE, segmentOf } from './layout.js';
import { type LogVolume, readDescriptor, readDescriptors, readLog, writeDescriptor } from './log/log-reader.js';
import { encodeDescriptor, type LogDescriptor, LogState, slotRange } from './log/log-table.js';
import { keyOf, type SectorKey } from './log/logged-sectors.js';
import type { LooseEnds } from './log/loose-ends.js';
import { RedoPlan } from './log/redo-plan.js';
import { byRegion } from './space/region-change.js';
import type { Shipment } from './space/shipment.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

/** Between attempts to put down how far one has come; doubles. */
const PLACE_RETRY_MIN_MS = 20;
const PLACE_RETRY_MAX_MS = 2_000;

type Step =
  | { readonly kind: 'orphan'; readonly ino: InodeNumber; readonly generation: number }
  | { readonly kind: 'space'; readonly region: number; readonly extents: readonly Extent[] }
  | { readonly kind: 'shipped'; readonly shipment: Shipment }
  | { readonly kind: 'numbers'; readonly segment: number; readonly numbers: readonly InodeNumber[] };

/** Every log that has been replayed and not settled. Those that somebody else is at are left to it. */
export async function settleReplayed(volume: Volume, logs: LogVolume, table: Extent): Promise<number> {
  let settled = 0;
  for (const seen of await readDescriptors(logs, table)) {
    if (seen === null || seen.state !== LogState.replayed) continue;
    let pins: TokenPins;
    try {
      const item = volume.dataItem(LOG_TABLE, slotRange(seen.slot));
      pins = await volume.parts.tokens.acquire([item], { timeoutMs: volume.settings.regionTimeoutMs });
    } catch (error) {
      if (FsError.is(error) && error.retry === 'same') continue;
      throw error;
    }
    try {
      const descriptor = await readDescriptor(logs, table, seen.slot);
      if (descriptor.state !== LogState.replayed) continue;
      await settleOne(volume, logs, table, descriptor);
      settled++;
    } catch (error) {
      // What was left there is lost space until that is mended; everything else goes on.
      if (!isDamage(error)) throw error;
      volume.counters.add('recovery.settlingsDelayed');
      volume.parts.logger.error({ slot: seen.slot, error: error.message }, 'what a node left unfinished stays so');
    } finally {
      pins.release();
    }
  }
  return settled;
}

async function settleOne(volume: Volume, logs: LogVolume, table: Extent, left: LogDescriptor): Promise<void> {
  const scanned = await readLog(logs, left);
  const steps = stepsOf(volume, left.slot, new RedoPlan().add(scanned.records));
  const home = { nsd: table.nsd, sector: table.sector + left.slot };
  await volume.learnVersions([{ ...home, count: 1 }]);
  let descriptor = left;
  const done = (transaction: MetadataTransaction): void => {
    descriptor = { ...descriptor, settledEnds: descriptor.settledEnds + 1 };
    transaction.image(home, encodeDescriptor(descriptor, volume.fsId, 1));
  };
  try {
    for (const step of steps.slice(left.settledEnds)) await settleStep(volume, step, done);
  } finally {
    // Before its token leaves (L2), however far it has come, and before the plain write that follows: whoever goes on begins with what is in place.
    await placeDescriptor(volume, keyOf(home));
  }
  await writeDescriptor(logs, table, { ...descriptor, state: LogState.clean, tail: scanned.head, settledEnds: 0 });
  volume.counters.add('recovery.settled', steps.length);
}

/** What can't be done now is tried until it is, or until this node is out: then who redoes its log does it. */
async function placeDescriptor(volume: Volume, key: SectorKey): Promise<void> {
  for (let retryMs = PLACE_RETRY_MIN_MS; ; retryMs = Math.min(2 * retryMs, PLACE_RETRY_MAX_MS)) {
    const { log, fenced, clock, parts } = volume;
    if (log === null || fenced) return;
    try {
      await log.force();
      await log.makeDurable([key]);
      volume.sectors.forget(key);
      return;
    } catch (error) {
      if (FsError.is(error) && error.reason === 'closed') return;
      parts.logger.warn({ error: String(error) }, 'how far a settlement has come is not in place yet');
      await sleep(clock, retryMs);
    }
  }
}

function stepsOf(volume: Volume, slot: number, { limbo, shipped, numbers, orphans }: LooseEnds): Step[] {
  const steps: Step[] = [];
  for (const [ino, generation] of [...orphans].sort(([a], [b]) => a - b))
    steps.push({ kind: 'orphan', ino, generation });
  for (const [region, extents] of byRegion(volume, limbo.extents())) steps.push({ kind: 'space', region, extents });
  for (const [sequence, set] of [...shipped].sort(([a], [b]) => a - b))
    for (const [region, extents] of byRegion(volume, set.extents()))
      steps.push({ kind: 'shipped', shipment: { region, slot, sequence, extents } });
  for (const [segment, some] of groupBy(
    [...numbers].sort((a, b) => a - b),
    segmentOf,
  ))
    steps.push({ kind: 'numbers', segment, numbers: some });
  return steps;
}

async function settleStep(volume: Volume, step: Step, done: (transaction: MetadataTransaction) => void): Promise<void> {
  switch (step.kind) {
    case 'orphan': {
      // From here on it is this node's to free: somebody may have it open for as long as he likes.
      await volume.innerChange(() => {
        const transaction = new MetadataTransaction(volume);
        transaction.looseEnd({ kind: 'orphan', ino: step.ino, generation: step.generation });
        done(transaction);
        transaction.commit();
      });
      await volume.orphans.take(step);
      return;
    }
    case 'space':
      return volume.frees.giveBack(step.region, step.extents, done);
    case 'shipped':
      return volume.frees.giveBackShipped(step.shipment, done);
    case 'numbers':
      return volume.numbers.clear(step.segment, step.numbers, done);
  }
}
