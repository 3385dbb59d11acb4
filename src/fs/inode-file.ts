/**
 * The inode file: where inodes lie, and how there get to be more of them.
 *
 * Invariant: its blocks never move and never go, so pointers in memory stay right without a token; what may be missing is what another
 * node added since, and that is read again under inode 1's own status token. It grows a block at a time, written before a number in
 * the block is handed out.
 */
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { findPointer, loadPointers, preparePointer, setPointer } from './block-map.js';
import { blockPointer } from './block-pointer.js';
import { FileType } from './file-system-api.js';
import { Inode } from './inode.js';
import { decodeInode } from './inode-format.js';
import type { InodeTable } from './inode-table.js';
import { INODE_FILE, INODES_PER_BLOCK, inodeBlockOf, segmentOf } from './layout.js';
import { Mutex } from './mutex.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

export class InodeFile {
  readonly #volume: Volume;
  readonly #table: InodeTable;
  readonly #growing = new Mutex();
  /** `valid` while its status token is held. */
  readonly inode = new Inode(INODE_FILE);

  constructor(volume: Volume, table: InodeTable) {
    this.#volume = volume;
    this.#table = table;
  }

  /** Reads the inode file's own inode, from where the superblock says. */
  async start(): Promise<void> {
    const { nsd, sector } = this.#volume.superblock.inodeFile;
    this.inode.home = { nsd, sector: sector + INODE_FILE };
    await this.#read();
    // Read without a token: good for its pointers, no more.
    this.inode.valid = false;
  }

  /** The same as `locate`, after a device read if need be; takes no token. */
  async locateLoaded(ino: InodeNumber): Promise<Inode['home'] | null> {
    if (this.locate(ino) === undefined) await loadPointers(this.#volume, this.inode, inodeBlockOf(ino));
    return this.locate(ino) ?? null;
  }

  /** Null: its block of the inode file doesn't exist; undefined: not known here, `find` asks. */
  locate(ino: InodeNumber): Inode['home'] | null | undefined {
    const pointer = findPointer(this.inode, inodeBlockOf(ino));
    return pointer ? { nsd: pointer.nsd, sector: pointer.sector + (ino % INODES_PER_BLOCK) } : pointer;
  }

  /**
   * To be called with nothing pinned, before the status token of an inode never met is asked for: it may need the inode
   * file's own status token, which comes before all others in the order.
   */
  async find(ino: InodeNumber): Promise<Inode['home'] | null> {
    const block = inodeBlockOf(ino);
    if (!(ino >= 1 && segmentOf(ino) < this.#volume.geometry.segmentCount)) return null;
    const known = await this.locateLoaded(ino);
    if (known) return known;
    await this.#growing.run(async () => {
      const pins = await this.#volume.pin([this.#table.statusItem(INODE_FILE, TokenMode.shared)], undefined);
      try {
        if (!this.inode.valid) await this.#read();
        await loadPointers(this.#volume, this.inode, block);
      } finally {
        pins.release();
      }
    });
    return this.locate(ino) ?? null;
  }

  /** The blocks of the inode file that these numbers lie in exist afterwards, written so that others find them. */
  async ensureMapped(inos: readonly InodeNumber[]): Promise<Inode['home'][]> {
    const missing = new Set<number>();
    for (const ino of inos)
      if (!missing.has(inodeBlockOf(ino)) && !this.locate(ino) && (await this.find(ino)) === null)
        missing.add(inodeBlockOf(ino));
    if (missing.size > 0) await this.#growing.run(() => this.#grow(missing));
    const homes: Inode['home'][] = [];
    for (const ino of inos) {
      const home = this.locate(ino) ?? (await this.find(ino));
      if (home === null)
        throw new FsError('internal', {
          op: 'create',
          object: `inode ${ino}`,
          detail: 'has no place in the inode file',
        });
      homes.push(home);
    }
    return homes;
  }

  async #grow(blocks: ReadonlySet<number>): Promise<void> {
    const pins = await this.#volume.pin([this.#table.statusItem(INODE_FILE, TokenMode.exclusive)], undefined);
    try {
      if (!this.inode.valid) await this.#read();
      try {
        for (const block of blocks) await this.#volume.innerChange(() => this.#growBy(block));
      } finally {
        // Before anybody can hear of a number in it: another node finds the block as soon as it asks.
        if (this.inode.dirty) await this.#table.writeOut([this.inode]);
      }
    } finally {
      pins.release();
    }
  }

  async #growBy(block: number): Promise<void> {
    const file = this.inode;
    await loadPointers(this.#volume, file, block);
    if (findPointer(file, block)) return;
    const extent = await this.#volume.allocator.allocateMetadata(INODE_FILE, block, INODES_PER_BLOCK);
    const transaction = new MetadataTransaction(this.#volume);
    transaction.inode(file);
    try {
      await preparePointer(this.#volume, file, block);
    } catch (error) {
      this.#volume.frees.add([extent]);
      transaction.commit();
      throw error;
    }
    setPointer(file, block, blockPointer(extent, this.#volume.parts.epoch()));
    file.sizeBytes = Math.max(file.sizeBytes, (block + 1) * INODES_PER_BLOCK * SECTOR_BYTES);
    file.reserved.push(extent);
    transaction.commit();
    this.#volume.counters.add('fs.inodeBlocksAdded');
  }

  async #read(): Promise<void> {
    const { nsd, sector } = this.inode.home;
    const fields = await this.#volume.readSectors(nsd, sector, 1, (bytes, versions) => {
      this.#volume.wasRead({ nsd, sector, count: 1 }, versions[0]!);
      return decodeInode(INODE_FILE, bytes, this.#volume.fsId, this.#volume.geometry, this.#volume.checksums);
    });
    if (fields === null || fields.type !== FileType.regular)
      throw new FsError('corrupt', { op: 'mount', object: 'inode 1', detail: 'is not the inode file' });
    this.inode.assign(fields);
    this.inode.valid = true;
  }
}
