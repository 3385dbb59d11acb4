/**
 * Frees shipped to whoever holds the region (S6): nobody's region is taken away to give something back to it.
 *
 * A node that frees (the *source*) discards the sub-blocks, then logs that they are on their way, as a shipment: extents of one region, with a
 * sequence, which is the place of that record in the source's log. When that is durable the shipment goes to the region's holder, who clears the bits
 * and notes the sequence in the region's first sector of the map, in one transaction of its own log, and answers when that is durable. Then the source logs that it has arrived.
 *
 * Invariants
 * - A shipment is applied once, whoever hears of it how often: the region's mark names the last one of each slot, and there is one at a time from
 *   a slot to a region. Places in a log never come again (log-claim.ts, recovery.ts), so a new one is always later than all before.
 * - What is on its way is marked as used until it is applied: nobody can allocate it. Once it is applied it may be in use again, so nothing but the
 *   region's mark says whether it is still to be freed; in doubt a shipment is sent again, or applied by the source itself under the region's token,
 *   and when the source is dead, by whoever settles its log (settlement.ts).
 * - Nobody who waits here has a token pinned that the holder may need (T5): regions are pinned while a device is waited for, and no longer.
 * Fault model: answers are lost, messages come late, twice, or when the region has moved; source, holder and manager die at any moment.
 */
import { FsError } from '../../common/errors.js';
import type { NodeId } from '../../common/ids.js';
import { type Extent, regionRange } from '../layout.js';
import { freedThrough, setFreedThrough } from '../map-formats.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';
import { clearBits, inRegion, MARKS_NSD, nsdsOf, withRegion } from './region-change.js';
import { HOLDERS_ASKED_MAX, SHIPMENT_EXTENTS_MAX, type Shipment, shipmentFault } from './shipment.js';

/** How often a holder that has it no more is replaced by a newer one before the source takes the region itself. */
const ATTEMPTS_MAX = 3;
/** Regions to which shipments are under way at a time. */
const AT_ONCE_MAX = 8;

interface Logged extends Shipment {
  /** The transaction that says that it is on its way. */
  readonly transaction: number;
}

export class Shipments {
  readonly #volume: Volume;
  /** By region: logged, and not known to have arrived. */
  readonly #pending = new Map<number, Logged>();
  readonly #applying = new Set<Promise<unknown>>();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  get length(): number {
    let count = 0;
    for (const { extents } of this.#pending.values()) count += extents.length;
    return count;
  }

  // The source

  /** Who holds these regions; where that can't be learned: nobody, and their tokens tell. */
  async holdersOf(regions: readonly number[]): Promise<ReadonlyMap<number, NodeId>> {
    const { parts, settings, geometry } = this.#volume;
    const regionBytes = regionRange(geometry, 0).end;
    const found = new Map<number, NodeId>();
    for (let at = 0; at < regions.length; at += HOLDERS_ASKED_MAX) {
      const some = regions.slice(at, at + HOLDERS_ASKED_MAX);
      const holders = await parts.peers.holders({ regionBytes, regions: some }, settings.managerTimeoutMs);
      if (holders === null) break;
      some.forEach((region, index) => {
        const holder = holders[index];
        if (holder !== null && holder !== undefined && holder !== parts.nodeId) found.set(region, holder);
      });
    }
    return found;
  }

  /** What may or may not have arrived is sent again. Returns how many sub-blocks are free for that. */
  async retry(): Promise<number> {
    let freed = 0;
    for (const shipment of [...this.#pending.values()]) freed += (await this.#deliver(shipment, null)) ?? 0;
    return freed;
  }

  /** Groups of discarded extents, each of one region, to its holder. `left` stays in limbo. */
  async send(
    groups: readonly { readonly region: number; readonly extents: readonly Extent[]; readonly holder: NodeId }[],
  ): Promise<{ readonly freed: number; readonly left: readonly Extent[] }> {
    let freed = 0;
    const left: Extent[] = [];
    const waiting = [...groups];
    const work = async (): Promise<void> => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
        const done = await this.#sendGroup(next.region, next.extents, next.holder);
        freed += done.freed;
        left.push(...done.left);
      }
    };
    await Promise.all(Array.from({ length: Math.min(AT_ONCE_MAX, waiting.length) }, work));
    return { freed, left };
  }

  async #sendGroup(
    region: number,
    extents: readonly Extent[],
    holder: NodeId,
  ): Promise<{ freed: number; left: readonly Extent[] }> {
    let freed = 0;
    let at = 0;
    try {
      const before = this.#pending.get(region);
      if (before !== undefined) {
        const done = await this.#deliver(before, holder);
        if (done === null) return { freed, left: extents };
        freed += done;
      }
      while (at < extents.length) {
        const some = extents.slice(at, at + SHIPMENT_EXTENTS_MAX);
        const shipment = await this.#log(region, some);
        at += some.length;
        const done = await this.#deliver(shipment, holder);
        if (done === null) break;
        freed += done;
      }
    } catch (error) {
      this.#volume.parts.logger.warn({ error: String(error) }, 'freed space could not be shipped yet');
    }
    return { freed, left: extents.slice(at) };
  }

  async #log(region: number, extents: readonly Extent[]): Promise<Logged> {
    const volume = this.#volume;
    const { log, claim } = volume;
    if (log === null || claim === null) throw new FsError('closed', { op: 'ship', detail: 'there is no log' });
    return volume.innerChange(() => {
      // From 1 on: a mark of 0 says that there was nothing. What is logged before the next place is one group with this.
      const sequence = log.headSector + 1;
      const transaction = new MetadataTransaction(volume);
      transaction.looseEnd({ kind: 'shipped', sequence, extents });
      const shipment = { region, slot: claim.slot, sequence, extents, transaction: transaction.commit() };
      this.#pending.set(region, shipment);
      volume.counters.add('fs.shipments');
      volume.counters.add('fs.extentsShipped', extents.length);
      return shipment;
    });
  }

  /** Null: it is in doubt as before. */
  async #deliver(shipment: Logged, holder: NodeId | null): Promise<number | null> {
    const volume = this.#volume;
    const { parts, settings, counters } = volume;
    try {
      await volume.log?.force(shipment.transaction);
      let next = holder;
      for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        const own = await this.#applyOwn(shipment, null);
        if (own !== null) return own;
        next ??= (await this.holdersOf([shipment.region])).get(shipment.region) ?? null;
        if (next === null) break;
        const answer = await parts.peers.ship(next, shipment, settings.peersTimeoutMs);
        if (answer === 'applied') {
          await volume.innerChange(() => this.#hasArrived(shipment));
          return sizeOf(shipment);
        }
        counters.add(answer === 'silent' ? 'fs.shipmentsSilent' : 'fs.shipmentsRefused');
        if (answer === 'silent') break;
        next = null;
      }
      counters.add('fs.shipmentsTaken');
      return await this.#applyOwn(shipment, settings.regionTimeoutMs);
    } catch (error) {
      counters.add('fs.freesDelayed', shipment.extents.length);
      parts.logger.warn({ error: String(error) }, 'shipped space is not known to have arrived; tried again');
      return null;
    }
  }

  /** From here on it is settled: what was shipped later can't be before it. */
  #arrived({ region, sequence, extents }: Logged, transaction: MetadataTransaction): void {
    transaction.looseEnd({ kind: 'arrived', sequence, extents });
    this.#pending.delete(region);
  }

  #hasArrived(shipment: Logged): void {
    const transaction = new MetadataTransaction(this.#volume);
    this.#arrived(shipment, transaction);
    transaction.commit();
  }

  /** Under the region's token; null: it isn't held here, and not waited for. */
  async #applyOwn(shipment: Logged, timeoutMs: number | null): Promise<number | null> {
    const volume = this.#volume;
    return withRegion(volume, shipment.region, timeoutMs, async () => {
      const freed = await applyOnce(volume, shipment, (transaction) => this.#arrived(shipment, transaction));
      if (freed === null) this.#hasArrived(shipment);
      return freed ?? sizeOf(shipment);
    });
  }

  // The holder

  /** @throws {FsError} invalidArgument: it is none; what writing the log gives, and it is in doubt. */
  apply(shipment: Shipment): Promise<'applied' | 'notMine'> {
    const applied = this.#apply(shipment);
    this.#applying.add(applied);
    const ended = (): void => void this.#applying.delete(applied);
    applied.then(ended, ended);
    return applied;
  }

  async #apply(shipment: Shipment): Promise<'applied' | 'notMine'> {
    const volume = this.#volume;
    const fault = shipmentFault(shipment, volume.geometry);
    if (fault !== null) throw new FsError('invalidArgument', { op: 'fs.ship', object: fault, detail: 'no shipment' });
    const { log, counters } = volume;
    if (volume.closed || volume.fenced || log === null || volume.claim === null) return 'notMine';
    const held = await withRegion(volume, shipment.region, null, async () => {
      const freed = await applyOnce(volume, shipment, () => undefined);
      counters.add(freed === null ? 'fs.shipmentsRepeated' : 'fs.shipmentsApplied');
      return true;
    });
    if (held === null) return 'notMine';
    // Also of one that was applied before: that may be on its way to the log still.
    await log.force();
    return 'applied';
  }

  /** Before the log is closed; none begins any more. */
  async idle(): Promise<void> {
    await Promise.allSettled([...this.#applying]);
  }

  // Settlement

  /**
   * Of a source that is gone: what has not been applied is freed, in one transaction with `also`. Nobody can apply it meanwhile or later: the
   * region's token is pinned here, and the mark says that it has been.
   */
  async settle(
    shipment: Shipment,
    discard: () => Promise<void>,
    also: (transaction: MetadataTransaction) => void,
  ): Promise<void> {
    const volume = this.#volume;
    await withRegion(volume, shipment.region, volume.settings.regionTimeoutMs, async () => {
      // Its source had done so; a power cut may have undone it.
      if (!(await isApplied(volume, shipment))) await discard();
      if ((await applyOnce(volume, shipment, also)) !== null) return;
      const transaction = new MetadataTransaction(volume);
      also(transaction);
      transaction.commit();
    });
  }
}

const sizeOf = ({ extents }: Shipment): number => extents.reduce((sum, { count }) => sum + count, 0);

/** With its region pinned. Null: it has been applied before, and nothing is done. */
function applyOnce(
  volume: Volume,
  { region, slot, sequence, extents }: Shipment,
  also: (transaction: MetadataTransaction) => void,
): Promise<number | null> {
  return inRegion(volume, region, [MARKS_NSD, ...nsdsOf(extents)], (sectorOf, transaction) => {
    const marks = sectorOf(MARKS_NSD);
    if (freedThrough(marks, slot) >= sequence) return null;
    setFreedThrough(marks, slot, sequence);
    also(transaction);
    return clearBits(volume, sectorOf, extents);
  });
}

async function isApplied(volume: Volume, { region, slot, sequence }: Shipment): Promise<boolean> {
  let applied = false;
  await inRegion(volume, region, [MARKS_NSD], (sectorOf) => {
    applied = freedThrough(sectorOf(MARKS_NSD), slot) >= sequence;
    return null;
  });
  return applied;
}
