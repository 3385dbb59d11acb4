/** What a check keeps of every inode: a few numbers, for 256 inodes together. */
import type { InodeNumber } from '../../common/ids.js';
import { inodeNumber } from '../../common/ids.js';
import { FREE_INODE } from '../inode-format.js';
import { type Extent, INODES_PER_BLOCK, inodeBlockOf } from '../layout.js';

interface Chunk {
  /** Of this block of the inode file. */
  readonly home: Extent;
  readonly types: Uint8Array;
  readonly generations: Uint32Array;
  /** The link count that the inode says; and of files, how many names there are. */
  readonly links: Uint32Array;
  readonly names: Uint32Array;
}

export interface DirectoryFacts {
  readonly ino: InodeNumber;
  readonly generation: number;
  /** As its inode says. */
  readonly parent: InodeNumber;
  readonly seed: number;
  readonly depth: number;
  readonly entries: number;
  readonly sizeBytes: number;
  /** The directory that names it; 0: none so far. */
  namedIn: InodeNumber;
  name: Uint8Array;
  foundEntries: number;
  foundDirectories: number;
  foundDepth: number;
  /** Behind its last leaf. */
  foundBytes: number;
}

export class InodeFacts {
  readonly #chunks = new Map<number, Chunk>();
  readonly directories = new Map<InodeNumber, DirectoryFacts>();
  count = 0;

  addBlock(block: number, home: Extent): void {
    this.#chunks.set(block, {
      home,
      types: new Uint8Array(INODES_PER_BLOCK),
      generations: new Uint32Array(INODES_PER_BLOCK),
      links: new Uint32Array(INODES_PER_BLOCK),
      names: new Uint32Array(INODES_PER_BLOCK),
    });
  }
  /** Blocks of the inode file that there are, ascending. */
  blocks(): number[] {
    return [...this.#chunks.keys()].sort((a, b) => a - b);
  }
  set(ino: InodeNumber, type: number, generation: number, links: number): void {
    const chunk = this.#chunks.get(inodeBlockOf(ino))!;
    const slot = ino % INODES_PER_BLOCK;
    chunk.types[slot] = type;
    chunk.generations[slot] = generation;
    chunk.links[slot] = links;
    if (type !== FREE_INODE) this.count++;
  }
  /** Where its sector is; null: its block of the inode file is not there. */
  home(ino: InodeNumber): Extent | null {
    const chunk = this.#chunks.get(inodeBlockOf(ino));
    if (chunk === undefined) return null;
    const { nsd, sector } = chunk.home;
    return { nsd, sector: sector + (ino % INODES_PER_BLOCK), count: 1 };
  }
  /** 0: free, or not there. */
  type(ino: InodeNumber): number {
    return this.#chunks.get(inodeBlockOf(ino))?.types[ino % INODES_PER_BLOCK] ?? FREE_INODE;
  }
  /** Of free inodes too: of their last life. */
  generation(ino: InodeNumber): number {
    return this.#chunks.get(inodeBlockOf(ino))?.generations[ino % INODES_PER_BLOCK] ?? 0;
  }
  links(ino: InodeNumber): number {
    return this.#chunks.get(inodeBlockOf(ino))?.links[ino % INODES_PER_BLOCK] ?? 0;
  }
  names(ino: InodeNumber): number {
    return this.#chunks.get(inodeBlockOf(ino))?.names[ino % INODES_PER_BLOCK] ?? 0;
  }
  addName(ino: InodeNumber): void {
    const { names } = this.#chunks.get(inodeBlockOf(ino))!;
    names[ino % INODES_PER_BLOCK]!++;
  }

  /** In use, ascending. */
  *inUse(): Generator<InodeNumber> {
    for (const block of this.blocks()) {
      const { types } = this.#chunks.get(block)!;
      for (let slot = 0; slot < INODES_PER_BLOCK; slot++)
        if (types[slot] !== FREE_INODE) yield inodeNumber(block * INODES_PER_BLOCK + slot);
    }
  }
}
