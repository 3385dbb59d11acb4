import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type ByteRange, overlaps, WHOLE } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { below, chance, SeededRandom } from '../common/random.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { pattern, type TestCache, TestFile, testCache } from './testing.js';

/**
 * Random operations, several at a time, on a pool of a few pages with a slow and failing backing store, against an array of bytes.
 *
 * The array changes in the very turn in which the cache says that bytes were copied. So a hit must see exactly the array, and a read
 * through the engine one of the states that the array had while it ran: that is atomicity, and I2 and I3 in one.
 */
const FILE_PAGES = 10;
const FILE_BYTES = FILE_PAGES * PAGE_BYTES;

type Command =
  | { kind: 'read' | 'write' | 'change' | 'hitRead' | 'hitWrite'; at: number; length: number }
  | { kind: 'flush' | 'revoke' | 'downgrade' | 'willNeed' | 'dontNeed'; at: number; length: number }
  | { kind: 'append' | 'hitAppend'; length: number }
  | { kind: 'truncate'; at: number }
  | { kind: 'wait'; ms: number };

class Model {
  readonly bytes = new Uint8Array(FILE_BYTES);
  size = 0;
  /** Left half written by an error: not compared until it is written again. */
  readonly unknown: ByteRange[] = [];
  readonly #watchers = new Set<{ range: ByteRange; states: Uint8Array[]; spoilt: boolean }>();

  change(range: ByteRange, apply: () => void): void {
    apply();
    for (const watcher of this.#watchers)
      if (overlaps(watcher.range, range)) watcher.states.push(this.slice(watcher.range));
  }
  slice({ start, end }: ByteRange): Uint8Array {
    return this.bytes.slice(start, end);
  }
  put(offset: number, source: Uint8Array): void {
    this.change({ start: offset, end: offset + source.length }, () => {
      this.bytes.set(source, offset);
      this.size = Math.max(this.size, offset + source.length);
    });
  }
  isUnknown(range: ByteRange): boolean {
    return this.unknown.some((u) => overlaps(u, range));
  }
  /** A write in pieces that may fail half way: what it covers is not compared until it has succeeded. */
  risk(range: ByteRange): () => void {
    this.unknown.push(range);
    for (const watcher of this.#watchers) if (overlaps(watcher.range, range)) watcher.spoilt = true;
    return () => {
      this.unknown.splice(this.unknown.indexOf(range), 1);
    };
  }
  watch(range: ByteRange): { states: Uint8Array[]; spoilt: boolean; end: () => void } {
    const watcher = {
      range,
      states: [this.slice(range)],
      spoilt: this.isUnknown(range),
      end: (): void => {
        this.#watchers.delete(watcher);
      },
    };
    this.#watchers.add(watcher);
    return watcher;
  }
}

class Run {
  readonly model = new Model();
  readonly t: TestCache;
  readonly file: TestFile;
  readonly #random: SeededRandom;
  readonly #pending = new Set<Promise<void>>();
  #failures: number;
  #seed = 1;

  constructor(seed: number, failures: number, entries: number) {
    this.#random = new SeededRandom(seed);
    this.#failures = failures;
    this.t = testCache({
      pages: 8 + below(this.#random, 8),
      fileBytes: 4 * FILE_BYTES,
      entries,
      settings: {
        dirtyPagesMax: 4,
        pieceBytes: 2 * PAGE_BYTES,
        prepareBytes: 4 * PAGE_BYTES,
        metadataPages: 1,
        sparePages: 1,
      },
    });
    const device = async (): Promise<void> => {
      if (chance(this.#random, 0.7))
        await new Promise<void>((resolve) => this.t.clock.after(below(this.#random, 20), resolve));
      if (chance(this.#random, this.#failures)) throw new FsError('deviceError', { op: 'test' });
    };
    this.t.backing.beforeRead = device;
    this.t.backing.beforeWrite = device;
    const content = pattern(chance(this.#random, 0.5) ? 6 * PAGE_BYTES + 100 : 0, 99);
    this.model.put(0, content);
    this.file = TestFile.open(this.t, 5, content);
    this.t.tokens.strict = chance(this.#random, 0.5);
  }

  async step(command: Command): Promise<void> {
    while (this.#pending.size >= 4) await this.t.clock.until(Promise.race(this.#pending));
    switch (command.kind) {
      case 'read':
        return this.#start(this.#read(command.at, command.length));
      case 'write':
        return this.#start(this.#write(command.at, command.length));
      case 'append':
        return this.#start(this.#write(this.model.size, Math.min(command.length, FILE_BYTES - this.model.size)));
      case 'change':
        return this.#start(this.#change(command.at, command.length));
      case 'hitRead':
        return this.#hitRead(command.at, command.length);
      case 'hitWrite':
        return this.#hitWrite(command.at, command.length);
      case 'hitAppend':
        return this.#hitWrite(-1, command.length);
      case 'flush':
        return this.#start(this.file.file.flush(rangeOf(command)).catch(expectedError));
      case 'willNeed':
      case 'dontNeed':
        return this.file.file.hint(command.kind, rangeOf(command));
      case 'revoke':
      case 'downgrade':
        return this.#start(this.#revoke(command));
      case 'truncate':
        await this.#drain();
        return this.#truncate(command.at);
      case 'wait':
        return this.t.clock.advance(command.ms);
    }
  }

  /** Everything ends, everything is on the devices, nothing is left in the cache. */
  async finish(): Promise<void> {
    this.#failures = 0;
    await this.#drain();
    const { t, file, model } = this;
    // A failure in the background may be reported late; its pages have been written all the same.
    for (let round = 0; round < 3; round++) await t.clock.until(file.file.flush().catch(expectedError));
    await t.clock.until(file.file.flush());
    expect(file.file.dirty).toBe(false);
    expect(file.size).toBe(model.size);
    for (let at = 0; at < model.size; at += 3 * PAGE_BYTES) {
      const end = Math.min(model.size, at + 3 * PAGE_BYTES);
      if (model.isUnknown({ start: at, end })) continue;
      expectSame(
        await t.clock.until(file.read(at, end - at)),
        model.slice({ start: at, end }),
        `read at the end, ${at}`,
      );
    }
    await t.clock.until(t.tokens.revoke(5, WHOLE));
    await t.clock.settle();
    expect(t.cache.usage()).toMatchObject({ pagesUsed: 0, dirtyPages: 0 });
    const disk = t.backing.bytesOf(file.ino);
    if (model.unknown.length === 0) expectSame(disk.slice(0, model.size), model.bytes.slice(0, model.size), 'disk');
    const behind = disk.subarray(model.size, Math.ceil(model.size / SECTOR_BYTES) * SECTOR_BYTES);
    if (model.unknown.length === 0) expect(behind.every((byte) => byte === 0)).toBe(true);
    expect(t.backing.readsInFlight + t.backing.writesInFlight).toBe(0);
  }

  #start(operation: Promise<void>): Promise<void> {
    const pending = operation.finally(() => this.#pending.delete(pending));
    this.#pending.add(pending);
    pending.catch(() => undefined);
    return this.t.clock.advance(0).then(() => undefined);
  }
  async #drain(): Promise<void> {
    const failures = this.#failures;
    this.#failures = 0;
    await this.t.clock.until(Promise.all(this.#pending));
    this.#failures = failures;
  }

  async #read(at: number, length: number): Promise<void> {
    const end = Math.min(at + length, this.model.size);
    if (at >= end) return;
    const watch = this.model.watch({ start: at, end });
    try {
      const bytes = await this.file.read(at, length);
      if (watch.spoilt) return;
      const seen = watch.states.some((state) => Buffer.compare(state.subarray(0, bytes.length), bytes) === 0);
      if (!seen) expectSame(bytes, watch.states.at(-1)!.subarray(0, bytes.length), `read ${at} +${length}`);
    } catch (error) {
      expectedError(error);
    } finally {
      watch.end();
    }
  }

  async #write(at: number, length: number): Promise<void> {
    const source = pattern(Math.min(length, FILE_BYTES - at), this.#seed++);
    if (source.length === 0) return;
    const range = { start: at, end: at + source.length };
    const succeeded = this.#failures > 0 && source.length > PAGE_BYTES ? this.model.risk(range) : () => undefined;
    try {
      await this.file.write(at, source, () => this.model.put(at, source));
      succeeded();
    } catch (error) {
      expectedError(error);
    }
  }

  async #change(at: number, length: number): Promise<void> {
    const end = Math.min(at + length, this.model.size, (Math.floor(at / PAGE_BYTES) + 1) * PAGE_BYTES);
    if (at >= end) return;
    const range = { start: at, end };
    await this.t.backing.reserve(this.file.ino, range);
    try {
      await this.file.pinned(range, TokenMode.exclusive, () =>
        this.file.file.withBytes(range, 'exclusive', (view) => {
          const bytes = view.bytes(at, end - at);
          for (let i = 0; i < bytes.length; i++) bytes[i] = bytes[i]! ^ 0x55;
          view.changed(at, end - at);
          this.model.change(range, () => {
            for (let i = at; i < end; i++) this.model.bytes[i] = this.model.bytes[i]! ^ 0x55;
          });
        }),
      );
    } catch (error) {
      expectedError(error);
    }
  }

  #hitRead(at: number, length: number): void {
    const bytes = this.file.hitRead(at, length);
    if (typeof bytes === 'number') return;
    const end = Math.max(at, Math.min(at + length, this.model.size));
    if (!this.model.isUnknown({ start: at, end }))
      expectSame(bytes, this.model.slice({ start: at, end }), `hit ${at} +${length}`);
  }
  #hitWrite(at: number, length: number): void {
    const offset = at < 0 ? this.model.size : at;
    const source = pattern(Math.max(0, Math.min(length, FILE_BYTES - offset)), this.#seed++);
    if (source.length > 0 && this.file.hitWrite(at, source) > 0) this.model.put(offset, source);
  }

  async #revoke(command: { kind: string; at: number; length: number }): Promise<void> {
    const { start, end } = rangeOf(command);
    if (command.kind === 'downgrade') return this.t.tokens.revoke(5, { start, end }, TokenMode.shared);
    // Another node writes what it has taken, in place.
    const disk = this.t.backing.bytesOf(this.file.ino);
    const elsewhere = pattern(end - start, this.#seed++);
    const changes = chance(this.#random, 0.5);
    await this.t.tokens.revoke(5, { start, end }, TokenMode.none, () => {
      const to = Math.min(end, this.model.size);
      expect(this.file.hitRead(start, 1) instanceof Uint8Array && start < to).toBe(false);
      if (!this.model.isUnknown({ start, end }) && start < to)
        expectSame(
          disk.slice(start, to),
          this.model.slice({ start, end: to }),
          'I3: on the devices when the token left',
        );
      if (!changes || start >= to) return;
      disk.set(elsewhere.subarray(0, to - start), start);
      this.model.change({ start, end: to }, () => this.model.bytes.set(elsewhere.subarray(0, to - start), start));
    });
  }

  /** A truncation that fails half way is for the file system to finish; here it doesn't fail. */
  async #truncate(size: number): Promise<void> {
    const failures = this.#failures;
    this.#failures = 0;
    await this.t.clock.until(this.file.truncate(size));
    this.#failures = failures;
    this.model.change({ start: 0, end: FILE_BYTES }, () => {
      this.model.bytes.fill(0, size);
      this.model.size = size;
    });
  }
}

const rangeOf = ({ at, length }: { at: number; length: number }): ByteRange => ({
  start: Math.floor(at / SECTOR_BYTES) * SECTOR_BYTES,
  end: Math.ceil((at + length) / SECTOR_BYTES) * SECTOR_BYTES,
});

function expectedError(error: unknown): void {
  if (!FsError.is(error) || (error.code !== 'EIO' && error.code !== 'ETIMEDOUT')) throw error;
}
function expectSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (Buffer.compare(actual, expected) === 0) return;
  let at = 0;
  while (actual[at] === expected[at]) at++;
  expect(`byte ${at} of ${actual.length} is ${actual[at]}`, what).toBe(
    `byte ${at} of ${expected.length} is ${expected[at]}`,
  );
}

const offset = fc.oneof(
  fc.nat(FILE_BYTES - 1),
  fc.nat(FILE_PAGES * 4 - 1).map((sector) => sector * SECTOR_BYTES),
  fc.nat(2 * SECTOR_BYTES),
);
const length = fc.oneof(
  fc.integer({ min: 1, max: 300 }),
  fc.integer({ min: 1, max: 2 * PAGE_BYTES }),
  fc.integer({ min: 1, max: 12 }).map((sectors) => sectors * SECTOR_BYTES),
  fc.integer({ min: 1, max: FILE_BYTES }),
);
const positioned = (kind: Extract<Command, { at: number; length: number }>['kind']): fc.Arbitrary<Command> =>
  fc.record({ kind: fc.constant(kind), at: offset, length });
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 4, arbitrary: positioned('read') },
  { weight: 5, arbitrary: positioned('write') },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('append' as const), length }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('hitAppend' as const), length }) },
  { weight: 2, arbitrary: positioned('change') },
  { weight: 5, arbitrary: positioned('hitRead') },
  { weight: 5, arbitrary: positioned('hitWrite') },
  { weight: 1, arbitrary: positioned('flush') },
  { weight: 2, arbitrary: positioned('revoke') },
  { weight: 1, arbitrary: positioned('downgrade') },
  { weight: 1, arbitrary: positioned('willNeed') },
  { weight: 1, arbitrary: positioned('dontNeed') },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('truncate' as const), at: fc.nat(FILE_BYTES) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('wait' as const), ms: fc.oneof(fc.nat(30), fc.nat(8000)) }) },
);

/** More runs, and others: HOLDFAST_MODEL_RUNS, HOLDFAST_MODEL_SEED. */
const RUNS = Number(process.env['HOLDFAST_MODEL_RUNS'] ?? 150);
const SEED = Number(process.env['HOLDFAST_MODEL_SEED'] ?? 20240917);

describe('the page cache against an array of bytes', () => {
  for (const { name, failures, entries } of [
    { name: 'with devices that work', failures: 0, entries: 4 },
    { name: 'with devices that fail now and then', failures: 0.1, entries: 4 },
  ]) {
    it(`is the same under random operations, hits, revokes and truncations, ${name}`, async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.array(command, { minLength: 5, maxLength: 80, size: 'max' }),
          fc.nat(),
          async (commands, seed) => {
            const run = new Run(seed, failures, entries);
            for (const next of commands) await run.step(next);
            await run.finish();
          },
        ),
        { numRuns: RUNS, seed: SEED, interruptAfterTimeLimit: 50_000 },
      );
    });
  }
});
