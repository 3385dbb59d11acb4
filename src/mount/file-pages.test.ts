import { expect, test } from 'vitest';
import { type ByteRange, range, WHOLE } from '../common/byte-range.js';
import { deferred } from '../common/deferred.js';
import { FilePages, type Held, type PagesFile, type PagesPort } from './file-pages.js';

/** One file's pages over tokens that the test gives and takes. */
class World implements PagesFile {
  held: 'none' | 'shared' | 'exclusive' = 'none';
  readonly asked: { exclusive: boolean; grant: () => void; signal: AbortSignal }[] = [];
  readonly notified: { range: ByteRange; done: () => void }[] = [];
  readonly counted: string[] = [];
  lateness = 0;
  readonly timers: (() => void)[] = [];
  readonly pages: FilePages;
  constructor() {
    const port: PagesPort = {
      notify: (of) => new Promise((done) => this.notified.push({ range: of, done })),
      readTimeoutMs: 1000,
      lateMs: 1000,
      clock: {
        nowMs: () => 0,
        wallNs: () => 0n,
        after: (_, fire) => {
          this.timers.push(fire);
          return { cancel: () => this.timers.splice(this.timers.indexOf(fire), 1) };
        },
      },
      late: () => this.lateness++,
      counted: (what) => this.counted.push(what),
    };
    this.pages = new FilePages(port);
  }
  #has(exclusive: boolean): boolean {
    return this.held === 'exclusive' || (this.held === 'shared' && !exclusive);
  }
  tryHold(_: ByteRange, exclusive: boolean): Held | null {
    return this.#has(exclusive) ? { release: () => undefined } : null;
  }
  heldAround(_: number, exclusive: boolean): ByteRange | null {
    return this.#has(exclusive) ? WHOLE : null;
  }
  hold(_: ByteRange, exclusive: boolean, { signal }: { signal: AbortSignal }): Promise<Held> {
    const granted = deferred<Held>();
    signal.addEventListener('abort', () => granted.reject(new Error('aborted')));
    const grant = (): void => {
      this.held = exclusive ? 'exclusive' : 'shared';
      granted.resolve({ release: () => undefined });
    };
    this.asked.push({ exclusive, grant, signal });
    return granted.promise;
  }
  /** What becomes of a READ: 'served', or how it was refused. */
  read(of: ByteRange): Promise<string> {
    return new Promise((resolve) => {
      const serve = async (): Promise<void> => resolve('served');
      this.pages.read({ file: this, range: of, serve, refuse: resolve });
    });
  }
}
const page = range(0, 4096);

test('a READ under a token that is held is served at once; a revoke drops its page before the token leaves', async () => {
  const world = new World();
  world.held = 'shared';
  expect(world.pages.knowsNothing).toBe(true);
  expect(await world.read(page)).toBe('served');
  const leaving = world.pages.leaves(WHOLE, false);
  expect(world.notified.map((one) => one.range)).toEqual([page]);
  world.notified[0]!.done();
  (await leaving)();
  expect(world.pages.knowsNothing).toBe(true);
  expect(world.timers).toEqual([]);
});

test('one without a token asks for it, and is served when it comes', async () => {
  const world = new World();
  const read = world.read(page);
  expect(world.asked.map((one) => one.exclusive)).toEqual([false]);
  world.asked[0]!.grant();
  expect(await read).toBe('served');
});

test('with a writable handle open it asks for an exclusive one (M3)', async () => {
  const world = new World();
  await world.pages.writableOpened();
  world.held = 'shared';
  const read = world.read(page);
  expect(world.asked.map((one) => one.exclusive)).toEqual([true]);
  world.asked[0]!.grant();
  expect(await read).toBe('served');
  world.pages.writableClosed();
});

test('one that is given up takes its wish back', async () => {
  const world = new World();
  let outcome = '';
  const id = world.pages.read({
    file: world,
    range: page,
    serve: () => Promise.resolve(),
    refuse: (error) => {
      outcome = error;
    },
  });
  world.pages.giveUp(id);
  expect(outcome).toBe('interrupted');
  expect(world.asked[0]!.signal.aborted).toBe(true);
  expect(world.pages.knowsNothing).toBe(true);
});

test('a change waits until the kernel has none of it, and keeps READs waiting until it is done', async () => {
  const world = new World();
  world.held = 'exclusive';
  expect(await world.read(page)).toBe('served');
  const changing = world.pages.changing(page, WHOLE, false);
  world.notified[0]!.done();
  const end = await changing;
  let served = false;
  const read = world.read(page).then(() => {
    served = true;
  });
  expect(served).toBe(false);
  end();
  await read;
});

test('a cut by the kernel itself notifies nothing', async () => {
  const world = new World();
  world.held = 'exclusive';
  expect(await world.read(page)).toBe('served');
  const end = await world.pages.changing(WHOLE, WHOLE, true);
  end();
  expect(world.notified).toEqual([]);
});

test('a token that does not leave in time tells so', async () => {
  const world = new World();
  world.held = 'shared';
  await world.read(page);
  const leaving = world.pages.leaves(WHOLE, false);
  world.timers[0]!();
  expect(world.lateness).toBe(1);
  world.notified[0]!.done();
  (await leaving)();
});

test('a page of a mapping without its token is lost, and told so', async () => {
  const world = new World();
  const outcome = await new Promise((resolve) =>
    world.pages.laundered(
      page,
      () => resolve('applied'),
      () => resolve('lost'),
    ),
  );
  expect(outcome).toBe('lost');
  expect(world.counted).toEqual(['launderedLost']);
});
