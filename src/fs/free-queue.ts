/**
 * Sub-blocks on their way back to the allocation map.
 *
 * An extent comes here after the record that gives it up was logged, and after the last transfer to or from it has ended. Then, in this
 * order: the log is forced as far as that record (S6), discarded on its NSD, durably (so that a free sub-block reads as zeros, and an unwritten part of a
 * block that is allocated later never shows what somebody else had there), then its bits are cleared by whoever holds the region (space/shipments.ts). Until then
 * nobody can allocate it. What a dying node has in this queue is in limbo in its log: recovery frees it.
 */
import { allCopiesOf } from '../nsd/copies.js';
import { durably } from './durable.js';
import type { Inode } from './inode.js';
import type { Extent } from './layout.js';
import { Mutex } from './mutex.js';
import { byRegion, clearBits, inRegion, nsdsOf, withRegion } from './space/region-change.js';
import type { Shipment } from './space/shipment.js';
import type { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

export const DISCARD_EXTENTS_MAX = 256;

export class FreeQueue {
  readonly #volume: Volume;
  #extents: Extent[] = [];
  /** The transaction that gave up the last of them. */
  #sequence = 0;
  readonly #draining = new Mutex();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  get length(): number {
    return this.#extents.length + this.#volume.shipments.length;
  }

  /** `sequence`: the transaction since which no record needs them any more; it is durable before they are thrown away (S6). */
  add(extents: readonly Extent[], sequence = 0): void {
    for (const extent of extents) this.#extents.push(extent);
    this.#sequence = Math.max(this.#sequence, sequence);
  }

  /** Of an inode, when the last transfer to or from it has ended; who waited for that with its tokens would hold up whoever asks for them. */
  addOf(inode: Inode, extents: readonly Extent[], sequence: number): void {
    if (extents.length > 0) void inode.transfersEnded().then(() => this.add(extents, sequence));
  }

  /** Before an operation that will free more, with nothing pinned: keeps the queue bounded. */
  async makeRoom(): Promise<void> {
    if (this.#extents.length >= this.#volume.settings.freeQueueMax) await this.drain();
  }

  /**
   * Gives back what waits: what is in a region that this node holds at once, what is in another node's by shipping it there, what is in nobody's by taking the
   * region. What can't be given back in time stays in the queue, or in doubt (shipments.ts); it is tried again.
   */
  async drain(): Promise<number> {
    return this.#draining.run(async () => {
      const { shipments } = this.#volume;
      let freed = await shipments.retry();
      if (this.#extents.length > 0) await this.#volume.log?.force(this.#sequence);
      const extents = this.#extents;
      this.#extents = [];
      // Each group is of one region, changed in one moment, so a group is freed wholly or not at all.
      const elsewhere: { readonly region: number; readonly extents: readonly Extent[] }[] = [];
      for (const [region, some] of byRegion(this.#volume, extents))
        await this.#attempt(some, async () => {
          await this.#volume.sectors.writesEnded(some);
          await this.#discard(some);
          if (this.#wasPassedOver(some)) {
            freed += (await this.#clear(region, some, this.#volume.settings.regionTimeoutMs)) ?? 0;
            return;
          }
          const here = await this.#clear(region, some, null);
          if (here === null) elsewhere.push({ region, extents: some });
          else freed += here;
        });
      const holders = await shipments.holdersOf(elsewhere.map(({ region }) => region));
      const shipped = [];
      for (const { region, extents: some } of elsewhere) {
        const holder = holders.get(region);
        if (holder !== undefined) shipped.push({ region, extents: some, holder });
        else
          await this.#attempt(some, async () => {
            freed += (await this.#clear(region, some, this.#volume.settings.regionTimeoutMs)) ?? 0;
          });
      }
      const sent = await shipments.send(shipped);
      this.#extents.push(...sent.left);
      return freed + sent.freed;
    });
  }

  async #attempt(extents: readonly Extent[], body: () => Promise<void>): Promise<void> {
    try {
      await body();
    } catch (error) {
      this.#extents.push(...extents);
      this.#volume.counters.add('fs.freesDelayed', extents.length);
      this.#volume.parts.logger.warn({ error: String(error) }, 'freed space could not be given back yet');
    }
  }

  /** Before "no space" is said: whatever this node has freed goes back now. True when that made room. */
  async reclaim(): Promise<boolean> {
    await this.#volume.orphans.attempted(this.#volume.settings.regionTimeoutMs);
    await this.#volume.inodes.writeOutFreeing();
    return this.length > 0 && (await this.drain()) > 0;
  }

  /** Space that a node which is gone had in limbo in a region. `also`: what belongs into the same transaction. */
  async giveBack(
    region: number,
    extents: readonly Extent[],
    also: (transaction: MetadataTransaction) => void,
  ): Promise<void> {
    await this.#discard(extents);
    await this.#clear(region, extents, this.#volume.settings.regionTimeoutMs, also);
  }

  /**
   * A copy is stale, and discards pass it over. Whoever brings it up to date discards what is free there, region by region: so what is not discarded
   * becomes free under the region's token, before that or after.
   */
  #wasPassedOver(extents: readonly Extent[]): boolean {
    const { copyStates } = this.#volume;
    return [...allCopiesOf(extents.map(({ nsd }) => nsd))].some((copy) => copyStates.stateOf(copy) !== 'up');
  }

  /** Nothing is given back while `body` runs. It waits for nothing that waits for space. */
  heldBack<T>(body: () => Promise<T>): Promise<T> {
    return this.#draining.run(body);
  }

  /** The same for what it had shipped, and of which nobody knows whether it has arrived. */
  async giveBackShipped(shipment: Shipment, also: (transaction: MetadataTransaction) => void): Promise<void> {
    await this.#volume.shipments.settle(shipment, () => this.#discard(shipment.extents), also);
  }

  async #discard(extents: readonly Extent[]): Promise<void> {
    const { nsds } = this.#volume.parts;
    await durably(nsds, [...new Set(extents.map(({ nsd }) => nsd))], 'freed', async () => {
      for (let at = 0; at < extents.length; at += DISCARD_EXTENTS_MAX) {
        const some = extents.slice(at, at + DISCARD_EXTENTS_MAX);
        await nsds.discard(some.map(({ nsd, sector, count }) => ({ nsd, sector, sectorCount: count })));
      }
    });
  }

  /** Null: the region isn't held here, and not waited for. */
  async #clear(
    region: number,
    extents: readonly Extent[],
    timeoutMs: number | null,
    also?: (transaction: MetadataTransaction) => void,
  ): Promise<number | null> {
    const volume = this.#volume;
    return withRegion(volume, region, timeoutMs, async () => {
      if (this.#wasPassedOver(extents)) await this.#discard(extents);
      return inRegion(volume, region, nsdsOf(extents), (sectorOf, transaction) => {
        transaction.settled(extents);
        also?.(transaction);
        return clearBits(volume, sectorOf, extents);
      });
    });
  }
}
