/**
 * The second pass: every directory, and for each name the inode that it names. Counts the names of each inode, for the third.
 */
import type { InodeNumber } from '../../../common/ids.js';
import { FIRST_USER_INODE } from '../../layout.js';
import type { NamedEntry } from '../../leaf-format.js';
import type { InodePass } from './inode-pass.js';
import { findAgain, lookAtDirectory, readInode, textOf } from './look-at-directory.js';
import type { Fault } from './look-at-inode.js';
import type { OnlineContext } from './online-context.js';

interface Doubtful {
  readonly entry: NamedEntry;
  readonly leaf: number;
}

export class NamePass {
  /** Of directories: where they are named, as far as this pass has seen. */
  readonly namedIn = new Map<InodeNumber, { readonly directory: InodeNumber; readonly name: Uint8Array }>();

  constructor(
    readonly context: OnlineContext,
    readonly first: InodePass,
  ) {}

  async run(): Promise<void> {
    const { context, first } = this;
    let done = 0;
    for (const ino of first.directories.keys()) {
      if (done % 64 === 0) context.progress({ phase: 'directories', done, total: first.directories.size });
      done++;
      await this.#directory(ino);
    }
  }

  async #directory(ino: InodeNumber): Promise<void> {
    const { context } = this;
    const { volume } = context;
    const doubtful: Doubtful[] = [];
    await context.find(ino);
    const view = context.view();
    const faults = await lookAtDirectory(view, volume, ino, (entry, leaf) => {
      if (!this.#count(ino, entry) && doubtful.length < DOUBTFUL_MAX) doubtful.push({ entry, leaf });
    });
    if (faults.length > 0 || view.uneven.size > 0)
      await context.confirm({ inodes: [{ ino, names: true }] }, (under) => lookAtDirectory(under, volume, ino));
    for (const { entry, leaf } of doubtful) await this.#entry(ino, entry, leaf);
  }

  /** False: it does not name what the first pass has seen there. */
  #count(directory: InodeNumber, { ino, generation, type, name }: NamedEntry): boolean {
    const { inodes, damaged, directories } = this.first;
    if (damaged.has(ino)) return true;
    if (ino < FIRST_USER_INODE || inodes.type(ino) !== type || inodes.generation(ino) !== generation) return false;
    inodes.addName(ino);
    if (directories.has(ino)) this.namedIn.set(ino, { directory, name });
    return true;
  }

  /** Most of these are younger than the first pass. */
  async #entry(directory: InodeNumber, entry: NamedEntry, leaf: number): Promise<void> {
    const { context } = this;
    const { volume } = context;
    const { ino } = entry;
    const object = `name '${textOf(entry)}' in directory ${directory}`;
    const fault = (kind: Fault['kind'], detail: string): Fault[] => [{ kind, object, ino: directory, detail }];
    const isThere = (await context.find(ino)) !== null && ino >= FIRST_USER_INODE;
    if (context.unreached.has(ino)) return context.notChecked('unreached', 1);
    const about = [{ ino: directory, names: true }, ...(isThere ? [{ ino }] : [])];
    await context.find(directory);
    const target = async (view: Parameters<typeof readInode>[0], wanted: NamedEntry): Promise<Fault[]> => {
      const fields = isThere ? await readInode(view, volume, ino) : null;
      if (fields === null || fields.type === 0 || fields.generation !== wanted.generation)
        return fault('entryDangling', `names inode ${ino} of generation ${wanted.generation}, which is not there`);
      return fields.type === wanted.type ? [] : fault('entryType', `has type ${wanted.type}, its inode ${fields.type}`);
    };
    // What came since the first pass is in place by now, or known to this node.
    if ((await target(context.view(), entry)).length === 0) return;
    await context.confirm({ inodes: about }, async (view) => {
      const now = await findAgain(view, volume, directory, entry.name, leaf);
      return now === null || now.ino !== ino ? [] : target(view, now);
    });
  }
}

/** Of one directory: more of them say no more. */
const DOUBTFUL_MAX = 100_000;
