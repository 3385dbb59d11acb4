import { constants } from 'node:fs';
import { FsError } from '../common/errors.js';
import { pick, type SeededRandom } from '../common/random.js';
import { type FileSystem, ROOT } from '../fs/file-system-api.js';
import { type DirectoryInput, listingOf } from './directory-model.js';
import type { SimNode } from './sim-node.js';
import type { Workload } from './workload.js';
import { NAMES_DIRECTORY, type World } from './world.js';

/** Names in one directory, made, moved and removed from all nodes at once. */
const NAMES = ['a', 'b', 'c', 'd'] as const;
/** Answers, not failures. */
const ANSWERS = new Set(['ENOENT', 'EEXIST']);

export class NamesWorkload {
  /** Inode of each client's own file. */
  readonly #owned = new Map<string, string>();
  #changed = 0;

  constructor(
    private readonly world: World,
    private readonly workload: Workload,
  ) {}

  async step(life: SimNode, client: string, random: SeededRandom): Promise<void> {
    const name = pick(random, NAMES);
    const to = pick(random, NAMES);
    const what = random.next();
    const input: DirectoryInput =
      what < 0.3
        ? { op: 'create', name }
        : what < 0.5
          ? { op: 'unlink', name }
          : what < 0.65
            ? { op: 'rename', name, to }
            : what < 0.72
              ? { op: 'link', name, ino: await this.#own(life, client) }
              : what < 0.9
                ? { op: 'look', name }
                : { op: 'list' };
    await this.#operation(life, client, input);
  }

  /** A file that one client has for itself, under a name outside of the directory. */
  async #own(life: SimNode, client: string): Promise<string> {
    const known = this.#owned.get(client);
    if (known !== undefined || life.fileSystem === null) return known ?? '';
    const path = `/own-of-${client.replace('/', '-')}`;
    const file = await life.fileSystem.open(path, constants.O_CREAT | constants.O_EXCL | constants.O_RDWR, 0o644, ROOT);
    const ino = String(file.ino);
    await file.close();
    await life.fileSystem.rename(path, `/own-${ino}`, ROOT);
    this.#owned.set(client, ino);
    return ino;
  }

  /** As the library does it: what is remembered, then what is at hand in one turn, then by the walk. */
  async #inodeOf(life: SimNode, fs: FileSystem, path: string): Promise<number> {
    const known = life.remembered.get(path, true);
    if (known !== undefined) return known.attributes.ino;
    const found = fs.tryStat?.(path, true, ROOT) ?? null;
    if (found === null) return (await fs.stat(path, ROOT)).ino;
    if (found.stamps !== null) life.remembered.put(path, found.attributes, found.stamps);
    return found.attributes.ino;
  }

  /** One after the other, so that what others have read ahead of them is called back. */
  async #changeNeighbour(fs: FileSystem): Promise<void> {
    const { neighbours } = this.world;
    if (neighbours.length === 0) return;
    const path = neighbours[this.#changed++ % neighbours.length]!;
    await fs.setAttributes(path, { mode: 0o600 + (this.#changed % 8) }, true, ROOT);
  }

  /** By a thread that never waits for the engine, and goes on when that stands still. */
  recall(life: SimNode, random: SeededRandom): void {
    const { names, trace } = this.world;
    const input: DirectoryInput = { op: 'look', name: pick(random, NAMES) };
    const client = `${life.name}/recalls`;
    const pending = names.begin(client, life.name, input);
    const known = life.remembered.get(`${NAMES_DIRECTORY}/${input.name}`, true);
    if (known === undefined) {
      names.forget(pending);
      return;
    }
    trace.add(life.id, 0, `${client}: ${JSON.stringify(input)} -> ${known.attributes.ino}`);
    if (pending.done === null) names.end(pending, String(known.attributes.ino));
  }

  look(life: SimNode): Promise<void> {
    return this.#operation(life, `${life.name} at last`, { op: 'list' });
  }

  async #operation(life: SimNode, client: string, input: DirectoryInput): Promise<void> {
    const { names, trace } = this.world;
    const pending = names.begin(client, life.name, input);
    trace.add(life.id, 0, `${client}: begins ${JSON.stringify(input)}`);
    try {
      const output = await this.#perform(life, input);
      trace.add(life.id, 0, `${client}: ${JSON.stringify(input)} -> ${output}`);
      if (pending.done === null) names.end(pending, output);
    } catch (error) {
      trace.add(life.id, 0, `${client}: ${JSON.stringify(input)} failed: ${String(error)}`);
      this.workload.checkError(life, 0, error, input.op);
      names.forget(pending);
    }
  }

  async #perform(life: SimNode, input: DirectoryInput): Promise<string> {
    const fs = life.fileSystem;
    if (fs === null) throw new FsError('closed', { op: 'sim' });
    const path = (name: string): string => `${NAMES_DIRECTORY}/${name}`;
    try {
      switch (input.op) {
        case 'create': {
          const flags = constants.O_CREAT | constants.O_EXCL | constants.O_RDWR;
          const file = await fs.open(path(input.name), flags, 0o644, ROOT);
          const { ino } = file;
          await file.close();
          return String(ino);
        }
        case 'look': {
          return String(await this.#inodeOf(life, fs, path(input.name)));
        }
        case 'list': {
          const entries = await fs.readdir(NAMES_DIRECTORY, ROOT);
          for (const listed of this.world.neighbours) await this.#inodeOf(life, fs, listed);
          return listingOf(entries);
        }
        case 'unlink':
          await this.#changeNeighbour(fs);
          await fs.unlink(path(input.name), ROOT);
          return 'ok';
        case 'rename':
          await fs.rename(path(input.name), path(input.to), ROOT);
          return 'ok';
        case 'link':
          await fs.link(`/own-${input.ino}`, path(input.name), ROOT);
          return 'ok';
      }
    } catch (error) {
      if (FsError.is(error) && ANSWERS.has(error.code)) return error.code;
      throw error;
    }
  }
}
