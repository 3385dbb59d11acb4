/**
 * The third pass: inodes that have not as many names as they say, or are not where they say.
 *
 * Names are counted over a time, not in a moment. But whoever adds, takes or moves a name of an inode changes the inode with it (its ctime at least). So of an
 * inode that is the same before and after every directory has been looked at under its tokens, all names have been seen, each once: every directory that
 * there was is among those that were listed in between, and what is younger can name it only by changing it. What has changed is looked at again, a few times.
 */
import { type InodeNumber, inodeNumber } from '../../../common/ids.js';
import { SECTOR_BYTES } from '../../../common/units.js';
import { INODES_PER_SEGMENT, TokenClass, type TokenItem, TokenMode } from '../../../token-manager/token.js';
import { FileType } from '../../file-system-api.js';
import { decodeInode, FREE_INODE, type InodeFields } from '../../inode-format.js';
import { FIRST_USER_INODE, INODES_PER_BLOCK, RENAME_LOCK, ROOT_DIRECTORY } from '../../layout.js';
import type { NamedEntry } from '../../leaf-format.js';
import { READ_RUN } from '../check-storage.js';
import { type InodePass, inodeBlocks } from './inode-pass.js';
import { lookAtDirectory, readDirectory, readInode, textOf } from './look-at-directory.js';
import type { Fault } from './look-at-inode.js';
import type { NamePass } from './name-pass.js';
import type { OnlineContext } from './online-context.js';
import type { View } from './view.js';

const ROUNDS_MAX = 4;
/** Looked for in one round. */
const WANTED_MAX = 50_000;

interface Counted {
  readonly fields: InodeFields;
  /** In which directories it is named, once for each name; no more than NAMES_KEPT of them. */
  readonly names: { readonly directory: InodeNumber; readonly name: Uint8Array }[];
  count: number;
}
/** To be verified together, all of them pinned at once. */
const NAMES_KEPT = 64;

export class Census {
  /** Names may be in what is damaged. */
  #isHidden: boolean;

  constructor(
    readonly context: OnlineContext,
    readonly first: InodePass,
    readonly second: NamePass,
  ) {
    this.#isHidden = first.damaged.size > 0;
  }

  async run(): Promise<void> {
    const { context } = this;
    let wanted = this.#doubtful();
    for (let round = 0; round < ROUNDS_MAX && wanted.length > 0; round++) {
      context.progress({ phase: 'names of doubtful inodes', done: 0, total: wanted.length });
      const now = wanted.slice(0, WANTED_MAX);
      wanted = [...(await this.#round(now)), ...wanted.slice(WANTED_MAX)];
    }
    if (wanted.length > 0) context.notChecked('busy', wanted.length);
    await this.#loops();
  }

  #doubtful(): InodeNumber[] {
    const { inodes, damaged, directories } = this.first;
    const wanted: InodeNumber[] = [];
    for (const ino of inodes.inUse()) {
      if (ino < FIRST_USER_INODE || damaged.has(ino)) continue;
      const names = inodes.names(ino);
      const seen = directories.get(ino);
      const isFine =
        seen === undefined
          ? names === inodes.links(ino) && names > 0
          : names === 1 && this.second.namedIn.get(ino)?.directory === seen.parent;
      if (!isFine) wanted.push(ino);
    }
    return wanted;
  }

  /** Those that have changed meanwhile. */
  async #round(wanted: readonly InodeNumber[]): Promise<InodeNumber[]> {
    const counted = new Map<InodeNumber, Counted>();
    for (const ino of wanted) {
      const fields = await this.#current(ino);
      if (fields === null) continue;
      if (fields.nlink === 0 && this.first.inodes.names(ino) === 0) this.context.notChecked('nameless', 1);
      else counted.set(ino, { fields, names: [], count: 0 });
    }
    if (counted.size === 0) return [];
    await this.#countNames(counted);
    const changed: InodeNumber[] = [];
    for (const [ino, one] of counted) {
      const now = await this.#current(ino);
      if (now === null) continue;
      if (isSame(now, one.fields)) await this.#judge(ino, one);
      else changed.push(ino);
    }
    return changed;
  }

  /** Under its token; null: it is gone, another one's by now, or can't be looked at. */
  async #current(ino: InodeNumber): Promise<InodeFields | null> {
    const { context, first } = this;
    const objects = { inodes: [{ ino }] };
    let fields: InodeFields | null = null;
    await context.holding(objects, TokenMode.shared, () =>
      context.inOneMoment(async (view) => {
        fields = await readInode(view, context.volume, ino);
        return [];
      }),
    );
    const found = fields as InodeFields | null;
    return found === null || found.type === FREE_INODE || found.generation !== first.inodes.generation(ino)
      ? null
      : found;
  }

  async #countNames(counted: ReadonlyMap<InodeNumber, Counted>): Promise<void> {
    const { context } = this;
    const directories = await this.#directories();
    let done = 0;
    for (const directory of directories) {
      if (done % 64 === 0) context.progress({ phase: 'names of doubtful inodes', done, total: directories.length });
      done++;
      let here: NamedEntry[] = [];
      let isHidden = false;
      const look = async (view: View): Promise<readonly Fault[]> => {
        here = [];
        const faults = await lookAtDirectory(view, context.volume, directory, (entry) => {
          if (counted.get(entry.ino)?.fields.generation === entry.generation) here.push(entry);
        });
        isHidden = faults.some(hidesNames);
        return [];
      };
      const seen = await context.holding({ inodes: [{ ino: directory, names: true }] }, TokenMode.shared, () =>
        context.inOneMoment(look),
      );
      if (seen === null) return this.#giveUp(counted);
      this.#isHidden ||= isHidden;
      for (const { ino, name } of here) {
        const one = counted.get(ino)!;
        one.count++;
        if (one.names.length < NAMES_KEPT) one.names.push({ directory, name });
      }
    }
  }

  /** A directory could not be looked at: nothing can be said. */
  #giveUp(counted: ReadonlyMap<InodeNumber, Counted>): void {
    this.context.notChecked('busy', counted.size);
    (counted as Map<InodeNumber, Counted>).clear();
  }

  /** All that there are, of those that nobody has written yet too. */
  async #directories(): Promise<InodeNumber[]> {
    const { context } = this;
    const { fsId, geometry, checksums } = context.volume;
    const found = new Set<InodeNumber>();
    for (const { block, home } of await inodeBlocks(context)) {
      const first = block * INODES_PER_BLOCK;
      for (let at = 0; at < home.count; at += READ_RUN) {
        const run = { nsd: home.nsd, sector: home.sector + at, count: Math.min(READ_RUN, home.count - at) };
        const here = new Set<InodeNumber>();
        await context.holding({ items: [runItem(first + at, run.count)] }, TokenMode.shared, () =>
          context.inOneMoment(async (view) => {
            here.clear();
            for (const [i, sector] of (await view.read(run)).entries()) {
              const ino = inodeNumber(first + at + i);
              if (sector === null || ino === 0) continue;
              try {
                if (decodeInode(ino, sector, fsId, geometry, checksums)?.type === FileType.directory) here.add(ino);
              } catch {
                // Said of the inode.
              }
            }
            return [];
          }),
        );
        for (const ino of here) found.add(ino);
      }
    }
    return [...found].sort((a, b) => a - b);
  }

  /** All its names that can be read have been counted. Once more what there is, with everything pinned that it hangs on. */
  async #judge(ino: InodeNumber, { fields, names, count }: Counted): Promise<void> {
    const { context } = this;
    const isDirectory = fields.type === FileType.directory;
    const parents = new Set(names.map(({ directory }) => directory));
    if (isDirectory) {
      if (count === 1 && parents.has(fields.parent)) return;
      parents.add(fields.parent);
    } else if (count === fields.nlink) {
      if (count === 0) context.notChecked('nameless', 1);
      return;
    }
    if (this.#isHidden && (isDirectory ? count === 0 : count < fields.nlink)) {
      context.notChecked('hidden', 1);
      return;
    }
    const objects = { inodes: [{ ino }, ...[...parents].map((parent) => ({ ino: parent, names: true }))] };
    await context.confirm(objects, async (view) => {
      const now = await readInode(view, context.volume, ino);
      if (now === null || !isSame(now, fields)) return [];
      const found: { readonly directory: InodeNumber; readonly name: string }[] = [];
      for (const directory of parents)
        await lookAtDirectory(view, context.volume, directory, (entry) => {
          if (entry.ino === ino && entry.generation === now.generation) found.push({ directory, name: textOf(entry) });
        });
      // More than can be kept have been counted.
      const total = names.length < count ? count : found.length;
      return isDirectory ? directoryFaults(ino, now, found) : fileFaults(ino, now, total);
    });
  }

  // Loops

  /** With the rename lock nobody moves directories; what the passes saw of a loop is looked at again, one directory at a time. */
  async #loops(): Promise<void> {
    const { context } = this;
    const { namedIn } = this.second;
    const seenIn = new Map<InodeNumber, InodeNumber>();
    for (const start of namedIn.keys()) {
      let at: InodeNumber | undefined = start;
      while (at !== undefined && at !== ROOT_DIRECTORY && !seenIn.has(at)) {
        seenIn.set(at, start);
        at = namedIn.get(at)?.directory;
      }
      if (at === undefined || at === ROOT_DIRECTORY || seenIn.get(at) !== start) continue;
      const loop: InodeNumber[] = [at];
      for (let next = namedIn.get(at)!.directory; next !== at; next = namedIn.get(next)!.directory) loop.push(next);
      const lock = context.volume.dataItem(RENAME_LOCK, { start: 0, end: SECTOR_BYTES });
      context.suspicions++;
      const stands = await context.holding({ items: [lock] }, TokenMode.shared, async () => {
        for (const ino of loop) if (!(await this.#isNamedIn(ino, namedIn.get(ino)!.directory))) return false;
        return true;
      });
      if (stands !== true) continue;
      const cut = inodeNumber(Math.min(...loop));
      const detail = `is below itself: directories ${loop.sort((a, b) => a - b).join(', ')} name each other`;
      context.report({ kind: 'directoryLoop', object: `inode ${cut}`, ino: cut, detail });
    }
  }

  async #isNamedIn(ino: InodeNumber, directory: InodeNumber): Promise<boolean> {
    const { context } = this;
    let isNamed = false;
    await context.holding({ inodes: [{ ino }, { ino: directory, names: true }] }, TokenMode.shared, () =>
      context.inOneMoment(async (view) => {
        isNamed = false;
        const now = await readDirectory(view, context.volume, ino);
        await lookAtDirectory(view, context.volume, directory, (entry) => {
          if (now !== null && entry.ino === ino && entry.generation === now.generation) isNamed = true;
        });
        return [];
      }),
    );
    return isNamed;
  }
}

const hidesNames = ({ kind }: Fault): boolean => kind === 'leafDamaged' || kind === 'indirectDamaged';

/** Nothing that a change of its names would have changed: of a directory ctime moves with what is in it, too. */
function isSame(a: InodeFields, b: InodeFields): boolean {
  if (a.generation !== b.generation || a.type !== b.type) return false;
  return a.type === FileType.directory
    ? a.parent === b.parent && a.nlink > 0 === b.nlink > 0
    : a.nlink === b.nlink && a.ctimeNs === b.ctimeNs;
}

/** Status of a run of inodes in one segment. */
const runItem = (first: number, count: number): TokenItem => {
  const range = { start: first * SECTOR_BYTES, end: (first + count) * SECTOR_BYTES };
  const object = Math.floor(first / INODES_PER_SEGMENT);
  return { class: TokenClass.status, object, mode: TokenMode.shared, required: range, desired: range };
};

function fileFaults(ino: InodeNumber, { nlink }: InodeFields, names: number): Fault[] {
  if (names === nlink) return [];
  const object = `inode ${ino}`;
  return names === 0
    ? [{ kind: 'fileDetached', object, ino, detail: `has no name, and ${nlink} links` }]
    : [{ kind: 'linkCount', object, ino, detail: `has ${names} names and ${nlink} links` }];
}

function directoryFaults(
  ino: InodeNumber,
  { parent }: InodeFields,
  found: readonly { readonly directory: InodeNumber; readonly name: string }[],
): Fault[] {
  const object = `inode ${ino}`;
  if (found.length === 0)
    return [{ kind: 'directoryDetached', object, ino, detail: 'is a directory that nothing names' }];
  const faults: Fault[] = [];
  const own = found.filter(({ directory }) => directory === parent);
  if (own.length === 0)
    faults.push({
      kind: 'parentWrong',
      object,
      ino,
      detail: `is named in directory ${found[0]!.directory}, and says that its parent is ${parent}`,
    });
  // The one that the directory itself speaks of stays.
  const stays = own[0] ?? found[0]!;
  for (const { directory, name } of found)
    if (directory !== stays.directory || name !== stays.name)
      faults.push({
        kind: 'directoryTwice',
        object: `name '${name}' in directory ${directory}`,
        ino: directory,
        detail: `is a second name of directory ${ino}`,
      });
  return faults;
}
