/**
 * Who points to what, for all NSDs: a bit for what is pointed to, and one for what is pointed to more than once. Who the two are is looked for when
 * there is such a sub-block (shared-space.ts): to keep an owner for each would take 32 times the memory.
 */
import type { NsdIndex } from '../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { copiesOf } from '../../nsd/copies.js';
import { allNsds, type Extent, type Geometry, RESERVED_BLOCKS } from '../layout.js';
import { Bitmap } from './bitmap.js';

export class ClaimedSpace {
  readonly #claimed: readonly Bitmap[];
  readonly #shared: readonly Map<number, true>[];
  /** Sub-blocks that are pointed to, each counted once. */
  usedSubBlocks = 0;
  sharedSubBlocks = 0;

  constructor(geometry: Geometry) {
    this.#claimed = geometry.nsdBlocks.map((blocks) => new Bitmap(blocks * SUB_BLOCKS_PER_BLOCK));
    this.#shared = geometry.nsdBlocks.map(() => new Map());
    for (const nsd of allNsds(geometry)) this.claim({ nsd, sector: 0, count: RESERVED_BLOCKS * SUB_BLOCKS_PER_BLOCK });
  }

  /** Every copy of it. */
  claim(extent: Extent): void {
    for (const nsd of copiesOf(extent.nsd)) this.#claimOn(nsd, extent);
  }
  #claimOn(nsd: NsdIndex, { sector, count }: Extent): void {
    const claimed = this.#claimed[nsd]!;
    const shared = this.#shared[nsd]!;
    for (let at = sector; at < sector + count; at++) {
      if (!claimed.has(at)) {
        claimed.add(at);
        this.usedSubBlocks++;
      } else if (!shared.has(at)) {
        shared.set(at, true);
        this.sharedSubBlocks++;
      }
    }
  }

  /** Of one NSD. */
  has(nsd: NsdIndex, sector: number): boolean {
    return this.#claimed[nsd]!.has(sector);
  }
  isShared({ nsd, sector, count }: Extent): boolean {
    for (const copy of copiesOf(nsd)) {
      const shared = this.#shared[copy]!;
      if (shared.size === 0) continue;
      for (let at = sector; at < sector + count; at++) if (shared.has(at)) return true;
    }
    return false;
  }
  /** The bits of one NSD, as the allocation map has them. */
  bits(nsd: NsdIndex): Uint8Array {
    return this.#claimed[nsd]!.bytes;
  }
}
