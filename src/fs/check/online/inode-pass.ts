/**
 * The first pass: every inode that is in place, by itself. Gathers what the later passes compare: types, generations, link counts, directories, and
 * which space is pointed to.
 */
import { type InodeNumber, inodeNumber } from '../../../common/ids.js';
import { TokenMode } from '../../../token-manager/token.js';
import { FileType } from '../../file-system-api.js';
import { decodeInode, FREE_INODE, type InodeFields } from '../../inode-format.js';
import { type Extent, FIRST_USER_INODE, INODE_FILE, INODES_PER_BLOCK } from '../../layout.js';
import type { Volume } from '../../volume.js';
import { READ_RUN } from '../check-storage.js';
import { ClaimedSpace } from '../claimed-space.js';
import { InodeFacts } from '../inode-facts.js';
import { walkPointers } from '../pointer-walk.js';
import { lookAtInode } from './look-at-inode.js';
import type { OnlineContext } from './online-context.js';
import type { View } from './view.js';

export interface DirectorySeen {
  readonly parent: InodeNumber;
  readonly generation: number;
}

export class InodePass {
  readonly inodes = new InodeFacts();
  readonly space: ClaimedSpace;
  readonly directories = new Map<InodeNumber, DirectorySeen>();
  /** Nothing is said about what names them. */
  readonly damaged = new Set<InodeNumber>();
  regularFiles = 0;

  constructor(readonly context: OnlineContext) {
    this.space = new ClaimedSpace(context.volume.geometry);
  }

  async run(): Promise<void> {
    const { context } = this;
    const blocks = await inodeBlocks(context);
    for (const [done, { block, home }] of blocks.entries()) {
      context.progress({ phase: 'inodes', done, total: blocks.length });
      this.inodes.addBlock(block, home);
      for (let at = 0; at < home.count; at += READ_RUN) {
        const first = block * INODES_PER_BLOCK + at;
        const run = { nsd: home.nsd, sector: home.sector + at, count: Math.min(READ_RUN, home.count - at) };
        const view = context.view();
        const sectors = await view.read(run);
        const uneven = new Set([...view.uneven.values()].map(({ sector }) => sector));
        for (const [i, sector] of sectors.entries()) {
          const ino = inodeNumber(first + i);
          if (ino !== 0) await this.#look(ino, sector, uneven.has(run.sector + i));
        }
      }
    }
  }

  async #look(ino: InodeNumber, sector: Uint8Array | null, isUneven: boolean): Promise<void> {
    const { context } = this;
    const { volume, options } = context;
    const look = { volume, data: options.data === true, claim: (extent: Extent) => this.space.claim(extent) };
    const view = context.view();
    const { fields, generation, faults } = await lookAtInode({ ...look, view }, ino, sector);
    this.#note(ino, fields, generation);
    if (faults.length === 0 && !isUneven && view.uneven.size === 0) return;
    if (fields === null && faults.length > 0) this.damaged.add(ino);
    await context.confirm({ inodes: [{ ino }] }, async (under) => {
      const home = volume.inodes.locate(ino);
      const now = await lookAtInode(
        { ...look, view: under },
        ino,
        home ? await under.readOne(home.nsd, home.sector) : null,
      );
      if (now.fields !== null || now.faults.length === 0) {
        this.damaged.delete(ino);
        this.#note(ino, now.fields, now.generation);
      }
      return now.faults;
    });
  }

  #note(ino: InodeNumber, fields: InodeFields | null, generation: number): void {
    const before = this.inodes.type(ino);
    if (fields === null) {
      if (before === FREE_INODE) this.inodes.set(ino, FREE_INODE, generation, 0);
      return;
    }
    if (before !== FREE_INODE) this.inodes.count--;
    this.inodes.set(ino, fields.type, fields.generation, fields.nlink);
    if (fields.type === FileType.regular && ino >= FIRST_USER_INODE) this.regularFiles++;
    if (fields.type === FileType.directory)
      this.directories.set(ino, { parent: fields.parent, generation: fields.generation });
  }
}

function inodeFileFields({ fsId, geometry, checksums }: Volume, sector: Uint8Array | null): InodeFields | null {
  try {
    const fields = sector === null ? null : decodeInode(INODE_FILE, sector, fsId, geometry, checksums);
    return fields?.type === FileType.regular ? fields : null;
  } catch {
    // The walk of the inodes comes past it, and says so.
    return null;
  }
}

/** Blocks of the inode file as they are now, in order. */
export async function inodeBlocks(
  context: OnlineContext,
): Promise<{ readonly block: number; readonly home: Extent }[]> {
  const { volume } = context;
  const blocks = new Map<number, Extent>();
  const read = async (view: View) => {
    blocks.clear();
    const { nsd, sector } = volume.superblock.inodeFile;
    const own = await view.readOne(nsd, sector + INODE_FILE);
    const { fsId, geometry, checksums } = volume;
    // Its inode is looked at among the others, and reported there; what this node knows of it leads to them.
    const fields = inodeFileFields(volume, own) ?? volume.inodes.inodeFile;
    await walkPointers({ storage: view, fsId, geometry, checksums }, INODE_FILE, fields, {
      block: (block, home) => void blocks.set(block, home),
      indirect: () => undefined,
      broken: () => undefined,
    });
  };
  await context.holding({ inodes: [{ ino: INODE_FILE }] }, TokenMode.shared, () =>
    context.inOneMoment(async (view) => {
      await read(view);
      return [];
    }),
  );
  return [...blocks].map(([block, home]) => ({ block, home })).sort((a, b) => a.block - b.block);
}
