/** Nodes that work in a file system while something else looks at it: files and directories come, go, grow, are cut, renamed and linked. */
import { constants } from 'node:fs';
import { FsError } from '../../../common/errors.js';
import { below, SeededRandom } from '../../../common/random.js';
import { type FileSystem, ROOT } from '../../file-system-api.js';
import { turns } from '../../testing.js';

const { O_CREAT, O_RDWR } = constants;
const NAMES = 12;
const TURNS_BETWEEN = 10;

export class TestLoad {
  operations = 0;
  #stopped = false;
  readonly #running: Promise<void>[];

  /** `mayFail`: what an operation may end with beside what follows from two nodes' working in one place. */
  constructor(
    nodes: readonly FileSystem[],
    directories: readonly string[],
    seed: number,
    private readonly mayFail: (error: FsError) => boolean = () => false,
  ) {
    this.#running = nodes.map((fs, i) => this.#work(fs, directories, new SeededRandom(seed + i)));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#running);
  }

  async #work(fs: FileSystem, directories: readonly string[], random: SeededRandom): Promise<void> {
    const roll = (count: number): number => below(random, count);
    const name = (): string => `${directories[roll(directories.length)]}/file-${roll(NAMES)}`;
    const directory = (): string => `${directories[roll(directories.length)]}/directory-${roll(4)}`;
    const write = async (path: string, offsetBytes: number, lengthBytes: number): Promise<void> => {
      const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
      try {
        await file.write(offsetBytes, Buffer.alloc(lengthBytes, 7));
        if (roll(4) === 0) await file.sync(false);
      } finally {
        await file.close();
      }
    };
    const kinds: (() => Promise<unknown>)[] = [
      () => write(name(), 0, 10),
      () => write(name(), roll(30_000), 5000),
      () => write(name(), roll(4) << 20, 2000),
      () => fs.unlink(name(), ROOT),
      () => fs.rename(name(), name(), ROOT),
      () => fs.link(name(), name(), ROOT),
      () => fs.truncate(name(), roll(20_000), ROOT),
      () => fs.mkdir(directory(), 0o755, ROOT),
      () => fs.rmdir(directory(), ROOT),
      () => fs.rename(directory(), directory(), ROOT),
      () => fs.symlink('target', name(), ROOT),
      () => fs.setXattr(name(), false, 'user.x', Buffer.alloc(roll(2) === 0 ? 10 : 5000, 1), ROOT),
      () => fs.readdir(directories[0]!, ROOT),
    ];
    while (!this.#stopped) {
      try {
        await kinds[roll(kinds.length)]!();
      } catch (error) {
        if (!FsError.is(error) || !(EXPECTED.has(error.reason) || this.mayFail(error))) throw error;
      }
      this.operations++;
      // Others get on, too.
      for (let i = 0; i < TURNS_BETWEEN; i++) await turns();
    }
  }
}

const EXPECTED: ReadonlySet<string> = new Set([
  'notFound',
  'exists',
  'notEmpty',
  'isDirectory',
  'notDirectory',
  'staleHandle',
  'invalidArgument',
  'notPermitted',
  'tooManyLinks',
  'notSupported',
]);
