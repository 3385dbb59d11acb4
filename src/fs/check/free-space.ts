/** Space for what a repair has to write: where neither a pointer nor the allocation map says that something is there. */
import { FsError } from '../../common/errors.js';
import type { NsdIndex } from '../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { copiesOf, mirrored } from '../../nsd/copies.js';
import { secondsFor } from '../allocator.js';
import { ALLOCATION_MAP, allNsds, type Extent, type Geometry, RESERVED_BLOCKS } from '../layout.js';
import { BITMAPS_AT, regionFault } from '../map-formats.js';
import type { Scan } from './scan.js';

export class FreeSpace {
  readonly #scan: Scan;
  readonly #geometry: Geometry;
  /** By region sector. */
  readonly #maps = new Map<number, Uint8Array>();

  constructor(scan: Scan) {
    this.#scan = scan;
    this.#geometry = scan.geometry;
  }

  /** Inside one block, at the same place of as many NSDs as there are to be copies. @throws {FsError} noSpace */
  async take(count: number, copies: 1 | 2): Promise<Extent> {
    for (const first of allNsds(this.#geometry))
      for (const nsd of copies === 1
        ? [first]
        : secondsFor(this.#geometry, first).map((second) => mirrored(first, second))) {
        const blocks = Math.min(...copiesOf(nsd).map((copy) => this.#geometry.nsdBlocks[copy]!));
        for (let block = RESERVED_BLOCKS; block < blocks; block++) {
          const sector = await this.#runIn(nsd, block, count);
          if (sector === null) continue;
          const extent = { nsd, sector, count };
          this.#scan.claim(extent);
          return extent;
        }
      }
    throw new FsError('noSpace', { op: 'fs.repair', detail: `no ${count} sub-blocks in a row are free` });
  }

  async #runIn(nsd: NsdIndex, block: number, count: number): Promise<number | null> {
    const { regionBlocks, nsdCount } = this.#geometry;
    const used = new Uint8Array(SUB_BLOCKS_PER_BLOCK);
    for (const copy of copiesOf(nsd)) {
      const bits = await this.#mapBits(Math.floor(block / regionBlocks) * nsdCount + copy);
      for (let bit = 0; bit < SUB_BLOCKS_PER_BLOCK; bit++) {
        const inRegion = (block % regionBlocks) * SUB_BLOCKS_PER_BLOCK + bit;
        const marked = ((bits[inRegion >> 3]! >> (inRegion & 7)) & 1) === 1;
        if (marked || this.#scan.space.has(copy, block * SUB_BLOCKS_PER_BLOCK + bit)) used[bit] = 1;
      }
    }
    let run = 0;
    for (let bit = 0; bit < SUB_BLOCKS_PER_BLOCK; bit++) {
      run = used[bit] === 1 ? 0 : run + 1;
      if (run === count) return block * SUB_BLOCKS_PER_BLOCK + bit - count + 1;
    }
    return null;
  }

  async #mapBits(index: number): Promise<Uint8Array> {
    const known = this.#maps.get(index);
    if (known !== undefined) return known;
    const scan = this.#scan;
    let bits: Uint8Array = new Uint8Array(this.#geometry.regionBlocks * (SUB_BLOCKS_PER_BLOCK / 8)).fill(0xff);
    const home = scan.systemSector(ALLOCATION_MAP, index);
    const sector = home === null ? null : await scan.storage.readOne(home.nsd, home.sector);
    if (sector !== null && regionFault(sector, index, scan.geometry, scan.fsId, scan.checksums) === null)
      bits = sector.subarray(BITMAPS_AT, BITMAPS_AT + bits.length);
    this.#maps.set(index, bits);
    return bits;
  }
}
