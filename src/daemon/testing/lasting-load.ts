import { expect } from 'vitest';
import type { FileSystemClient } from '../../client/file-system-client.js';
import { type Deferred, deferred } from '../../common/deferred.js';
import { FsError } from '../../common/errors.js';
import { below, type Random } from '../../common/random.js';

const NAMES_MAX = 60;
const PROMISED_MAX = 40;
const DIRECTORIES_MAX = 20;

/**
 * Metadata and data on names of its own, by one client until it is over, by another one after that. Of its files some are synced, and left alone from then on;
 * what it has is bounded: the oldest goes.
 */
export class LastingLoad {
  /** What was synced, and what is in it. */
  readonly promised = new Map<string, Buffer>();
  #names: string[] = [];
  #directories: string[] = [];
  /** Whether these are there nobody knows. */
  #doubtful: string[] = [];
  #made = 0;
  #waiting: { readonly at: number; readonly reached: Deferred<void> } | null = null;
  /** Operations that ended with an error that is forgiven. */
  failures = 0;

  constructor(
    private readonly prefix: string,
    private readonly random: Random,
    /** Errors that an operation may end with; then nothing is promised of what it was about. */
    private readonly isForgiven: (error: unknown) => boolean = () => false,
  ) {}

  /** What fails when it is over failed because of that, and what was not synced may be gone. */
  async run(client: FileSystemClient, isOver: () => boolean): Promise<void> {
    try {
      await this.#run(client, isOver);
    } finally {
      this.#doubt();
    }
  }

  /** It has begun so many more operations. */
  async more(count: number): Promise<void> {
    const reached = deferred<void>();
    this.#waiting = { at: this.#made + count, reached };
    await reached.promise;
  }

  #doubt(): void {
    this.#doubtful.push(...this.#names, ...this.#directories);
    this.#names = [];
    this.#directories = [];
  }

  async #run(client: FileSystemClient, isOver: () => boolean): Promise<void> {
    while (!isOver()) {
      const name = `${this.prefix}-${this.#made++}`;
      if (this.#waiting !== null && this.#made >= this.#waiting.at) this.#waiting.reached.resolve();
      try {
        await this.#tidy(client);
        await this.#step(client, name);
      } catch (error) {
        this.#doubt();
        if (!this.promised.has(name)) this.#doubtful.push(name);
        if (isOver()) return;
        if (!this.isForgiven(error)) throw error;
        this.failures++;
      }
    }
  }

  /** Before each step: what is too much goes, and what may be left of one that failed. */
  async #tidy(client: FileSystemClient): Promise<void> {
    const doubtful = this.#doubtful.at(-1);
    if (doubtful !== undefined) {
      await client.rm(doubtful, { force: true, recursive: true });
      this.#doubtful.pop();
    }
    if (this.promised.size > PROMISED_MAX) {
      const oldest = this.promised.keys().next().value!;
      this.promised.delete(oldest);
      this.#doubtful.push(oldest);
    }
    if (this.#names.length > NAMES_MAX) this.#doubtful.push(this.#names.shift()!);
    if (this.#directories.length > DIRECTORIES_MAX) this.#doubtful.push(this.#directories.shift()!);
  }

  async #step(client: FileSystemClient, name: string): Promise<void> {
    const { random } = this;
    const names = this.#names;
    const any = (): string => names[below(random, names.length)]!;
    switch (names.length < 4 ? 0 : below(random, 8)) {
      case 0:
      case 1:
      case 2: {
        const bytes = Buffer.alloc(1 + below(random, [200, 9_000, 300_000][below(random, 3)]!), this.#made % 251);
        const synced = below(random, 3) === 0;
        const file = await client.open(name, 'w+');
        try {
          await file.write(bytes, 0, bytes.length, 0);
          if (synced) await file.sync();
        } catch (error) {
          await file.close().catch(() => undefined);
          throw error;
        }
        if (synced) this.promised.set(name, bytes);
        else names.push(name);
        await file.close();
        return;
      }
      case 3:
        return client.truncate(any(), below(random, 20_000));
      case 4: {
        const at = below(random, names.length);
        this.#doubtful.unshift(names[at]!);
        await client.rename(names[at]!, name);
        this.#doubtful.shift();
        names[at] = name;
        return;
      }
      case 5:
        await client.link(any(), name);
        names.push(name);
        return;
      case 6: {
        const gone = names.splice(below(random, names.length), 1)[0]!;
        this.#doubtful.push(gone);
        await client.unlink(gone);
        this.#doubtful.pop();
        return;
      }
      case 7:
        await client.mkdir(name);
        this.#directories.push(name);
    }
  }

  /** Every byte of what is still promised when it has been read. `step`: around each wait. */
  async check(
    client: FileSystemClient,
    when: string,
    step: <T>(doing: Promise<T>) => Promise<T> = (doing) => doing,
  ): Promise<void> {
    for (const [name, bytes] of [...this.promised]) {
      // Its turn to go may have come meanwhile.
      const found = await step(client.readFile(name)).catch((error: unknown) => {
        if (this.promised.has(name)) throw error;
        return null;
      });
      if (found !== null && this.promised.has(name)) expect(found.equals(bytes), `${name} ${when}`).toBe(true);
    }
  }
}

/** EIO while nobody serves an NSD (F1); and what the storage has lost and a node had no longer, which it tells (I10). */
export function isStorageGone(error: unknown): boolean {
  const { cause } = error as Error;
  return FsError.is(cause) && (cause.reason === 'nsdUnavailable' || cause.reason === 'writesLost');
}
