/** A set of sub-blocks, kept as a bitmap for each block that has any. Extents lie inside one block. */
import { invariant } from '../../common/assert.js';
import { nsdIndex } from '../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { type Extent, NSD_BLOCKS_MAX } from '../layout.js';

const WORDS = SUB_BLOCKS_PER_BLOCK / 32;

export class ExtentSet {
  readonly #blocks = new Map<number, Uint32Array>();
  #count = 0;
  #runs = 0;

  /** Sub-blocks in the set. */
  get count(): number {
    return this.#count;
  }

  /** Extents that it takes to say what is in it. */
  get runs(): number {
    return this.#runs;
  }

  add(extent: Extent): void {
    this.#change(extent, true);
  }
  remove(extent: Extent): void {
    this.#change(extent, false);
  }
  clear(): void {
    this.#blocks.clear();
    this.#count = 0;
    this.#runs = 0;
  }

  #change({ nsd, sector, count }: Extent, present: boolean): void {
    const first = sector % SUB_BLOCKS_PER_BLOCK;
    invariant(count >= 1 && first + count <= SUB_BLOCKS_PER_BLOCK, 'an extent lies inside one block');
    const key = nsd * NSD_BLOCKS_MAX + Math.floor(sector / SUB_BLOCKS_PER_BLOCK);
    let words = this.#blocks.get(key);
    if (words === undefined) {
      if (!present) return;
      words = new Uint32Array(WORDS);
      this.#blocks.set(key, words);
    }
    this.#runs -= runsIn(words);
    for (let bit = first; bit < first + count; bit++) {
      const mask = 1 << (bit & 31);
      const was = (words[bit >> 5]! & mask) !== 0;
      if (was === present) continue;
      words[bit >> 5]! ^= mask;
      this.#count += present ? 1 : -1;
    }
    this.#runs += runsIn(words);
    if (!present && words.every((word) => word === 0)) this.#blocks.delete(key);
  }

  /** In ascending order, each as long as it can be. */
  extents(): Extent[] {
    const found: Extent[] = [];
    for (const key of [...this.#blocks.keys()].sort((a, b) => a - b)) {
      const words = this.#blocks.get(key)!;
      const nsd = nsdIndex(Math.floor(key / NSD_BLOCKS_MAX));
      const base = (key % NSD_BLOCKS_MAX) * SUB_BLOCKS_PER_BLOCK;
      let from = -1;
      for (let bit = 0; bit <= SUB_BLOCKS_PER_BLOCK; bit++) {
        const set = bit < SUB_BLOCKS_PER_BLOCK && ((words[bit >> 5]! >>> (bit & 31)) & 1) === 1;
        if (set && from < 0) from = bit;
        if (!set && from >= 0) {
          found.push({ nsd, sector: base + from, count: bit - from });
          from = -1;
        }
      }
    }
    return found;
  }
}

/** Of set bits in a row: each begins where the bit before it isn't set. */
function runsIn(words: Uint32Array): number {
  let runs = 0;
  let before = 0;
  for (const word of words) {
    let begins = word & ~((word << 1) | before);
    for (; begins !== 0; begins &= begins - 1) runs++;
    before = word >>> 31;
  }
  return runs;
}
