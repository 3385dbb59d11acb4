/** Names for what findings are about. Directories' are known from the check; files' are looked for, all at once. */
import { type InodeNumber, inodeNumber } from '../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { ROOT_DIRECTORY } from '../layout.js';
import { leafEntries, leafExists, leafFault } from '../leaf-format.js';
import type { DirectoryFacts } from './inode-facts.js';
import { directoryBlocks } from './names.js';
import type { Scan } from './scan.js';

/** How many are looked for: a report with more tells inode numbers. */
const FILES_MAX = 10_000;

export class PathFinder {
  readonly #scan: Scan;
  readonly #files = new Map<InodeNumber, { readonly directory: InodeNumber; readonly name: Uint8Array }>();

  private constructor(scan: Scan) {
    this.#scan = scan;
  }

  static async for(scan: Scan, wanted: Iterable<InodeNumber>): Promise<PathFinder> {
    const finder = new PathFinder(scan);
    const files = new Set<InodeNumber>();
    for (const ino of wanted)
      if (!scan.inodes.directories.has(ino) && ino > ROOT_DIRECTORY && files.size < FILES_MAX) files.add(ino);
    if (files.size > 0) for (const directory of scan.inodes.directories.values()) await finder.#look(directory, files);
    return finder;
  }

  async #look(directory: DirectoryFacts, wanted: ReadonlySet<InodeNumber>): Promise<void> {
    const { storage, fsId, checksums } = this.#scan;
    for (const { block, extent } of await directoryBlocks(this.#scan, directory.ino))
      await storage.each(extent, extent.count, (leaf, at) => {
        const index = block * SUB_BLOCKS_PER_BLOCK + at;
        if (leaf === null || leafFault(leaf, directory, index, fsId, checksums) !== null || !leafExists(leaf)) return;
        for (const { ino, name } of leafEntries(leaf))
          if (wanted.has(ino)) this.#files.set(ino, { directory: directory.ino, name });
      });
  }

  /** Null: nothing leads to it. */
  pathOf(ino: InodeNumber): string | null {
    const parts: string[] = [];
    const seen = new Set<InodeNumber>();
    let at = ino;
    while (at !== ROOT_DIRECTORY) {
      if (seen.has(at)) return null;
      seen.add(at);
      const naming = this.#namingOf(at);
      if (naming === null) return null;
      parts.unshift(Buffer.from(naming.name).toString('utf8'));
      at = naming.directory;
    }
    return `/${parts.join('/')}`;
  }

  #namingOf(ino: InodeNumber): { readonly directory: InodeNumber; readonly name: Uint8Array } | null {
    const directory = this.#scan.inodes.directories.get(ino);
    if (directory === undefined) return this.#files.get(ino) ?? null;
    return directory.namedIn === inodeNumber(0) ? null : { directory: directory.namedIn, name: directory.name };
  }
}
