import { describe, expect, it } from 'vitest';
import { type ByteRange, overlaps, range } from '../common/byte-range.js';
import { below, chance, SeededRandom } from '../common/random.js';
import { type DataEffect, type DataEvent, DataMachine, type HeldTokens } from './data-machine.js';
import { RangeSet } from './range-set.js';
import { type Answer, KernelFile, PAGE, ready, type Server, type Step, type Task } from './testing/kernel-file.js';

const pages = (first: number, end: number): ByteRange => range(first * PAGE, end * PAGE);
const WHOLE_FILE = pages(0, 8);
const held = (shared: ByteRange[], exclusive: ByteRange[] = []): HeldTokens => ({
  shared: [...new RangeSet([...shared, ...exclusive])],
  exclusive,
});
const all = held([WHOLE_FILE]);

describe('a revoke takes the kernel pages back (M2)', () => {
  const steps = (...events: DataEvent[]): { machine: DataMachine; effects: DataEffect[] } => {
    const machine = new DataMachine();
    let effects: DataEffect[] = [];
    for (const event of events) effects = machine.step(event);
    return { machine, effects };
  };
  const granted: DataEvent = { type: 'granted', held: all, wants: [] };
  const read = (id: number, of: ByteRange, cached = true): DataEvent => ({ type: 'read', id, range: of, cached });
  const served = (id: number): DataEvent => ({ type: 'served', id });
  const revoke = (of: ByteRange, keepShared = false): DataEvent => ({ type: 'revoke', id: 1, range: of, keepShared });

  it('nothing the kernel may hold: at once', () => {
    expect(steps(granted, revoke(WHOLE_FILE)).effects).toEqual([{ type: 'revoked', id: 1 }]);
  });

  it('what it may hold is notified, and only then the token leaves', () => {
    const { machine, effects } = steps(granted, read(7, pages(1, 3)), served(7), revoke(WHOLE_FILE));
    expect(effects).toEqual([{ type: 'notify', notification: 1, range: pages(1, 3) }]);
    expect(machine.step({ type: 'notified', notification: 1 })).toEqual([{ type: 'revoked', id: 1 }]);
    expect(machine.step({ type: 'released', id: 1, held: held([]) })).toEqual([]);
    expect([...machine.mayHold]).toEqual([]);
  });

  it('it is cut around READs that are parked: they own no valid page', () => {
    const { effects } = steps(
      { type: 'granted', held: held([pages(0, 4)]), wants: [] },
      read(7, pages(0, 4)),
      served(7),
      read(8, pages(2, 6)),
      revoke(pages(0, 4)),
    );
    expect(effects).toEqual([{ type: 'notify', notification: 1, range: pages(0, 2) }]);
  });

  it('a READ that arrives in its range while it runs is answered at once, and its pages are notified again', () => {
    const { machine, effects } = steps(
      granted,
      read(7, pages(0, 4)),
      served(7),
      revoke(WHOLE_FILE),
      read(8, pages(1, 2)),
    );
    expect(effects).toEqual([{ type: 'serve', id: 8 }]);
    expect(machine.step(served(8))).toEqual([]);
    expect(machine.step({ type: 'notified', notification: 1 })).toEqual([
      { type: 'notify', notification: 2, range: pages(1, 2) },
    ]);
    expect(machine.step({ type: 'notified', notification: 2 })).toEqual([{ type: 'revoked', id: 1 }]);
  });

  it('one that arrives where nothing is notified is parked, and asks for its token anew', () => {
    expect(steps(granted, read(7, pages(0, 1)), served(7), revoke(WHOLE_FILE), read(8, pages(5, 6))).effects).toEqual([
      { type: 'want', id: 8, range: pages(5, 6), exclusive: false },
    ]);
  });

  it('one that reaches beyond the token is refused: the kernel asks page by page', () => {
    expect(
      steps(
        { type: 'granted', held: held([pages(0, 4)]), wants: [] },
        read(7, pages(0, 4)),
        served(7),
        revoke(pages(0, 4)),
        read(8, pages(3, 6)),
      ).effects,
    ).toEqual([{ type: 'refuse', id: 8, error: 'again' }]);
  });

  it('a READ that is being served is waited for, and what it brought is notified', () => {
    const { machine, effects } = steps(granted, read(7, pages(0, 2)), revoke(WHOLE_FILE));
    expect(effects).toEqual([]);
    expect(machine.step(served(7))).toEqual([{ type: 'notify', notification: 1, range: pages(0, 2) }]);
    expect(machine.step({ type: 'notified', notification: 1 })).toEqual([{ type: 'revoked', id: 1 }]);
  });

  it('near the deadline, READs that would bring pages back fail', () => {
    expect(
      steps(granted, read(7, pages(0, 2)), served(7), revoke(WHOLE_FILE), { type: 'late', id: 1 }, read(8, pages(0, 1)))
        .effects,
    ).toEqual([{ type: 'refuse', id: 8, error: 'failed' }]);
  });

  it('a downgrade leaves the pages, unless a writable handle is open (M3)', () => {
    const exclusive: DataEvent = { type: 'granted', held: held([], [WHOLE_FILE]), wants: [] };
    const before: DataEvent[] = [exclusive, read(7, pages(0, 1)), served(7)];
    expect(steps(...before, revoke(WHOLE_FILE, true)).effects).toEqual([{ type: 'revoked', id: 1 }]);
    expect(steps(...before, { type: 'writableOpened', id: 5 }, revoke(WHOLE_FILE, true)).effects).toEqual([
      { type: 'notify', notification: 1, range: pages(0, 1) },
    ]);
  });

  it('a writable open waits until nothing is there under a shared token; then READs want exclusive ones (M3)', () => {
    const { machine, effects } = steps(granted, read(7, pages(0, 1)), served(7), { type: 'writableOpened', id: 5 });
    expect(effects).toEqual([{ type: 'notify', notification: 1, range: pages(0, 1) }]);
    expect(machine.step({ type: 'notified', notification: 1 })).toEqual([{ type: 'opened', id: 5 }]);
    expect(machine.step(read(8, pages(2, 3)))).toEqual([{ type: 'want', id: 8, range: pages(2, 3), exclusive: true }]);
    expect(machine.step(read(9, pages(2, 3), false))).toEqual([{ type: 'serve', id: 9 }]);
  });
});

describe('a local write (M1)', () => {
  const machineWith = (tokens: HeldTokens): DataMachine => {
    const machine = new DataMachine();
    machine.step({ type: 'granted', held: tokens, wants: [] });
    return machine;
  };
  const exclusive = held([], [WHOLE_FILE]);

  it('is applied when the kernel has none of its pages; cached reads of it wait that long, direct ones go on', () => {
    const machine = machineWith(exclusive);
    machine.step({ type: 'read', id: 7, range: pages(0, 4), cached: true });
    machine.step({ type: 'served', id: 7 });
    expect(machine.step({ type: 'write', id: 9, range: pages(1, 6) })).toEqual([
      { type: 'notify', notification: 1, range: pages(1, 4) },
    ]);
    expect(machine.step({ type: 'read', id: 10, range: pages(5, 6), cached: true })).toEqual([]);
    expect(machine.step({ type: 'read', id: 11, range: pages(0, 6), cached: false })).toEqual([
      { type: 'serve', id: 11 },
    ]);
    expect(machine.step({ type: 'notified', notification: 1 })).toEqual([{ type: 'apply', id: 9 }]);
    expect(machine.step({ type: 'applied', id: 9 })).toEqual([{ type: 'serve', id: 10 }]);
    expect([...machine.mayHold]).toEqual([pages(0, 1)]);
  });

  it('a READ that arrives where its notification runs is answered at once, with old bytes, and its page dropped again', () => {
    const machine = machineWith(exclusive);
    machine.step({ type: 'read', id: 7, range: pages(0, 4), cached: true });
    machine.step({ type: 'served', id: 7 });
    machine.step({ type: 'write', id: 9, range: pages(1, 3) });
    expect(machine.step({ type: 'read', id: 10, range: pages(1, 2), cached: true })).toEqual([
      { type: 'serve', id: 10 },
    ]);
    machine.step({ type: 'served', id: 10 });
    expect(machine.step({ type: 'notified', notification: 1 })).toEqual([
      { type: 'notify', notification: 2, range: pages(1, 2) },
    ]);
    expect(machine.step({ type: 'notified', notification: 2 })).toEqual([{ type: 'apply', id: 9 }]);
  });

  it('what is being read is waited for, and dropped too', () => {
    const machine = machineWith(exclusive);
    machine.step({ type: 'read', id: 7, range: pages(0, 4), cached: true });
    expect(machine.step({ type: 'write', id: 9, range: pages(1, 2) })).toEqual([]);
    expect(machine.step({ type: 'served', id: 7 })).toEqual([{ type: 'notify', notification: 1, range: pages(1, 2) }]);
    expect(machine.step({ type: 'notified', notification: 1 })).toEqual([{ type: 'apply', id: 9 }]);
  });

  it('no READ stays parked on its pages: one that reaches further is refused, the kernel asks page by page', () => {
    const machine = machineWith(held([], [pages(0, 4)]));
    expect(machine.step({ type: 'read', id: 7, range: pages(2, 6), cached: true })).toEqual([
      { type: 'want', id: 7, range: pages(2, 6), exclusive: false },
    ]);
    expect(machine.step({ type: 'write', id: 9, range: pages(3, 4) })).toEqual([
      { type: 'unwant', id: 7 },
      { type: 'refuse', id: 7, error: 'again' },
      { type: 'apply', id: 9 },
    ]);
  });

  it('laundered pages are taken under the outgoing token, and told lost without one (M3)', () => {
    const machine = machineWith(exclusive);
    machine.step({ type: 'read', id: 7, range: pages(0, 1), cached: true });
    machine.step({ type: 'served', id: 7 });
    machine.step({ type: 'revoke', id: 1, range: WHOLE_FILE, keepShared: false });
    expect(machine.step({ type: 'laundered', id: 8, range: pages(0, 1) })).toEqual([{ type: 'apply', id: 8 }]);
    machine.step({ type: 'notified', notification: 1 });
    machine.step({ type: 'released', id: 1, held: held([]) });
    expect(machine.step({ type: 'laundered', id: 9, range: pages(0, 1) })).toEqual([{ type: 'lost', id: 9 }]);
  });
});

/**
 * The machine between the model of the kernel and tokens that another node takes away and gives back, in any order that a seed chooses. Checked: every
 * read returns a value that was current at some time between its begin and its end (linearizability of each page), everybody comes to an end, and
 * no READ is parked in front of a write that has its token.
 */
class World implements Server {
  readonly random: SeededRandom;
  readonly kernel: KernelFile;
  readonly machine = new DataMachine();
  readonly tasks = new Set<{ task: Task<unknown>; waitsFor: Step; name: string }>();
  /** The version of each page's bytes, wherever they are: last store, write, or the other node's. */
  readonly truth: number[];
  /** What this node serves, and the other node reads after a flush. */
  readonly cache: number[];
  /** What somebody has seen or been told: nobody may see less afterwards. */
  readonly floor: number[];
  #next = 1;
  readonly #reads = new Map<
    number,
    { range: ByteRange; cached: boolean; pushes: boolean; answered: (answer: Answer) => void; parked: boolean }
  >();
  readonly #writes = new Map<number, { range: ByteRange; isWrite: boolean; done: () => void; apply: () => void }>();
  readonly #waiting = new Map<number, () => void>();
  shared = new RangeSet();
  exclusive = new RangeSet();
  remote: { range: ByteRange; exclusive: boolean } | null = null;
  readonly wants = new Map<number, { range: ByteRange; exclusive: boolean }>();
  readonly pinned = new Set<ByteRange>();
  writable = 0;

  constructor(
    seed: number,
    readonly count: number,
  ) {
    this.random = new SeededRandom(seed);
    this.kernel = new KernelFile(this.random, count, this);
    this.truth = new Array(count).fill(0);
    this.cache = new Array(count).fill(0);
    this.floor = new Array(count).fill(0);
  }

  spawn(name: string, task: Task<unknown>): void {
    this.tasks.add({ task, waitsFor: ready, name });
  }
  run(): void {
    while (this.tasks.size > 0) {
      const runnable = [...this.tasks].filter(({ waitsFor }) => waitsFor());
      if (runnable.length === 0) {
        throw new Error(`nobody can go on: ${[...this.tasks].map(({ name }) => name).join(', ')}`);
      }
      const one = runnable[below(this.random, runnable.length)]!;
      const { done, value } = one.task.next();
      if (done === true) this.tasks.delete(one);
      else one.waitsFor = value;
    }
  }
  *pause(): Task {
    while (chance(this.random, 0.6)) yield ready;
  }
  #pagesOf(of: ByteRange): number[] {
    const list: number[] = [];
    for (let page = of.start / PAGE; page < of.end / PAGE; page++) list.push(page);
    return list;
  }

  // What the kernel asks

  read(of: ByteRange, cached: boolean, answered: (answer: Answer) => void): void {
    const id = this.#next++;
    this.#reads.set(id, { range: of, cached, pushes: false, answered, parked: true });
    this.step({ type: 'read', id, range: of, cached });
  }
  /** Puts what a page holds into the kernel now and then, as long as no mapping may be changing it. */
  *pusher(rounds: number): Task {
    for (let i = 0; i < rounds; i++) {
      const page = below(this.random, this.count);
      const id = this.#next++;
      const of = pages(page, page + 1);
      let done = false;
      const answered = () => {
        done = true;
      };
      this.#reads.set(id, { range: of, cached: true, pushes: true, answered, parked: true });
      this.step({ type: 'push', id, range: of });
      yield () => done;
      yield* this.pause();
    }
  }
  write(of: ByteRange, answered: (version: number) => void): void {
    this.spawn('write', this.#writeWhenGranted(of, answered));
  }
  *#writeWhenGranted(of: ByteRange, answered: (version: number) => void): Task {
    const id = this.#next++;
    const isHeld = () => this.exclusive.covers(of) && !this.isLeaving(of);
    while (!isHeld()) {
      this.wants.set(id, { range: of, exclusive: true });
      yield () => isHeld() || !this.wants.has(id);
    }
    this.wants.delete(id);
    this.pinned.add(of);
    yield* this.pause();
    let version = 0;
    const done = this.#wait(id);
    this.#writes.set(id, {
      range: of,
      isWrite: true,
      done,
      apply: () => {
        version = this.#next++;
        for (const page of this.#pagesOf(of)) this.truth[page] = this.cache[page] = version;
      },
    });
    this.step({ type: 'write', id, range: of });
    yield () => !this.#waiting.has(id);
    this.pinned.delete(of);
    answered(version);
  }
  launder(page: number, version: number, answered: () => void): void {
    const id = this.#next++;
    this.#writes.set(id, {
      range: pages(page, page + 1),
      isWrite: false,
      done: answered,
      apply: () => {
        this.cache[page] = version;
      },
    });
    this.step({ type: 'laundered', id, range: pages(page, page + 1) });
  }
  store(page: number): number {
    const covered = this.exclusive.covers(pages(page, page + 1));
    if (!covered) throw new Error(`a store into page ${page}, which is not held exclusively (M3)`);
    const version = this.#next++;
    this.truth[page] = version;
    return version;
  }
  #wait(id: number): () => void {
    const done = () => this.#waiting.delete(id);
    this.#waiting.set(id, done);
    return done;
  }

  // The machine's effects

  step(event: DataEvent): void {
    const effects = this.machine.step(event);
    for (const effect of effects) this.#carryOut(effect);
    for (const write of this.#writes.values()) {
      for (const [id, parked] of this.#reads) {
        if (
          parked.parked &&
          parked.cached &&
          !parked.pushes &&
          this.wants.has(id) &&
          overlaps(write.range, parked.range)
        ) {
          throw new Error('a READ waits for a token in front of a write that has its own (M1)');
        }
      }
    }
  }
  #carryOut(effect: DataEffect): void {
    switch (effect.type) {
      case 'serve':
        this.#reads.get(effect.id)!.parked = false;
        this.spawn('serve', this.#serve(effect.id));
        break;
      case 'refuse': {
        const { answered } = this.#reads.get(effect.id)!;
        this.#reads.delete(effect.id);
        answered({ kind: 'error', again: effect.error === 'again' });
        break;
      }
      case 'want':
        this.wants.set(effect.id, { range: effect.range, exclusive: effect.exclusive });
        break;
      case 'unwant':
        this.wants.delete(effect.id);
        break;
      case 'apply': {
        this.spawn('apply', this.#apply(effect.id));
        break;
      }
      case 'notify':
        this.spawn('notify', this.#notify(effect.notification, effect.range));
        break;
      case 'lost':
        throw new Error('a laundered page without a token');
      default:
        this.#waiting.get(effect.id)!();
    }
  }
  *#apply(id: number): Task {
    const { isWrite, apply, done } = this.#writes.get(id)!;
    yield* this.pause();
    apply();
    yield* this.pause();
    this.#writes.delete(id);
    if (isWrite) this.step({ type: 'applied', id });
    done();
  }
  *#serve(id: number): Task {
    yield* this.pause();
    const { range: of, answered, pushes } = this.#reads.get(id)!;
    const versions = new Map(this.#pagesOf(of).map((page) => [page, this.cache[page]!]));
    yield* this.pause();
    if (pushes) for (const [page, version] of versions) yield* this.kernel.store(page, version);
    this.#reads.delete(id);
    answered({ kind: 'bytes', versions });
    this.step({ type: 'served', id });
  }
  *#notify(notification: number, of: ByteRange): Task {
    yield* this.pause();
    yield* this.kernel.invalidate(of.start / PAGE, (of.end - of.start) / PAGE);
    yield* this.pause();
    this.step({ type: 'notified', notification });
  }

  // Tokens

  #leaving: ByteRange | null = null;
  isLeaving(of: ByteRange): boolean {
    return this.#leaving !== null && overlaps(this.#leaving, of);
  }
  held(): HeldTokens {
    return { shared: [...this.shared], exclusive: [...this.exclusive] };
  }
  /** Grants what is wanted here as soon as nobody else has it. */
  *granter(until: () => boolean): Task {
    for (;;) {
      const free = (of: ByteRange, exclusive: boolean) =>
        !this.isLeaving(of) &&
        (this.remote === null || !overlaps(this.remote.range, of) || (!exclusive && !this.remote.exclusive));
      const next = () => [...this.wants].find(([, want]) => free(want.range, want.exclusive));
      yield () => next() !== undefined || until();
      const found = next();
      if (found === undefined) return;
      const [id, want] = found;
      this.shared.add(want.range);
      if (want.exclusive) this.exclusive.add(want.range);
      this.wants.delete(id);
      this.step({ type: 'granted', held: this.held(), wants: [id] });
      yield ready;
    }
  }
  /** The other node: takes a range, reads or writes it, gives it back. */
  *other(rounds: number): Task {
    for (let i = 0; i < rounds; i++) {
      yield* this.pause();
      const first = below(this.random, this.count);
      const of = pages(first, first + 1 + below(this.random, this.count - first));
      const exclusive = chance(this.random, 0.6);
      yield () => ![...this.pinned].some((pin) => overlaps(pin, of));
      const id = this.#next++;
      this.#leaving = of;
      this.#wait(id);
      this.step({ type: 'revoke', id, range: of, keepShared: !exclusive });
      yield () => !this.#waiting.has(id);
      yield* this.pause();
      this.exclusive.remove(of);
      if (exclusive) this.shared.remove(of);
      this.#leaving = null;
      this.remote = { range: of, exclusive };
      this.step({ type: 'released', id, held: this.held() });
      yield* this.pause();
      for (const page of this.#pagesOf(of)) {
        this.#saw(page, this.cache[page]!, this.floor[page]!, 'the other node');
        if (exclusive) this.truth[page] = this.cache[page] = this.floor[page] = this.#next++;
      }
      yield* this.pause();
      this.remote = null;
    }
  }

  // Programs

  #saw(page: number, version: number, floor: number, who: string): void {
    if (version < floor || version > this.truth[page]!) {
      throw new Error(
        `${who} sees version ${version} of page ${page}: before it ${floor} was seen, ${this.truth[page]} is the last`,
      );
    }
    this.floor[page] = Math.max(this.floor[page]!, version);
  }
  *cachedReader(rounds: number): Task {
    for (let i = 0; i < rounds; i++) {
      const page = below(this.random, this.count);
      const floor = this.floor[page]!;
      const version = yield* this.kernel.cachedRead(page);
      if (version === null) throw new Error('a cached read failed');
      this.#saw(page, version, floor, 'a cached reader');
      yield* this.pause();
    }
  }
  *directReader(rounds: number): Task {
    for (let i = 0; i < rounds; i++) {
      const first = below(this.random, this.count);
      const floors = [...this.floor];
      const versions = yield* this.kernel.directRead(first, 1 + below(this.random, this.count - first));
      if (versions === null) throw new Error('a direct read failed');
      for (const [page, version] of versions) this.#saw(page, version, floors[page]!, 'a direct reader');
      yield* this.pause();
    }
  }
  *writer(rounds: number, mapped: boolean): Task {
    const id = this.#next++;
    this.#wait(id);
    this.step({ type: 'writableOpened', id });
    yield () => !this.#waiting.has(id);
    for (let i = 0; i < rounds; i++) {
      const first = below(this.random, this.count);
      if (mapped && chance(this.random, 0.5)) {
        const version = yield* this.kernel.mappedStore(first);
        if (version === null) throw new Error('a fault failed');
        this.floor[first] = Math.max(this.floor[first]!, version);
      } else {
        const count = 1 + below(this.random, this.count - first);
        const version = yield* this.kernel.directWrite(first, count);
        for (let page = first; page < first + count; page++) this.floor[page] = Math.max(this.floor[page]!, version);
      }
      yield* this.pause();
    }
    yield* this.kernel.invalidate(0, this.count); // close writes mapped pages back
    this.step({ type: 'writableClosed' });
  }
}

describe('the machine between kernel and tokens', () => {
  const seeds = process.env['HOLDFAST_TEST_FULL'] === undefined ? 150 : 5000;
  const explore = (what: string, start: (world: World) => void) => {
    for (let seed = 1; seed <= seeds; seed++) {
      const world = new World(seed, 6);
      start(world);
      const programs = [...world.tasks];
      world.spawn(
        'granter',
        world.granter(() => !programs.some((program) => world.tasks.has(program))),
      );
      try {
        world.run();
        expect(world.machine.isIdle).toBe(true);
      } catch (error) {
        throw new Error(`${what}, seed ${seed}: ${(error as Error).message}`, { cause: error });
      }
    }
  };

  it('readers here, a writer elsewhere: nobody sees old bytes, all come to an end', () => {
    explore('readers', (world) => {
      world.spawn('cached', world.cachedReader(12));
      world.spawn('cached', world.cachedReader(12));
      world.spawn('direct', world.directReader(8));
      world.spawn('other', world.other(8));
    });
  });

  it('bytes that are put into its pages unasked', () => {
    explore('pushes', (world) => {
      world.spawn('cached', world.cachedReader(12));
      world.spawn('cached', world.cachedReader(8));
      world.spawn('pusher', world.pusher(8));
      world.spawn('other', world.other(8));
    });
  });

  it('readers and a writer here, and one elsewhere', () => {
    explore('writer', (world) => {
      world.spawn('cached', world.cachedReader(12));
      world.spawn('cached', world.cachedReader(12));
      world.spawn('direct', world.directReader(8));
      world.spawn('writer', world.writer(6, false));
      world.spawn('other', world.other(6));
    });
  });

  it('stores through a shared mapping, too', () => {
    explore('mapped', (world) => {
      world.spawn('cached', world.cachedReader(8));
      world.spawn('writer', world.writer(6, true));
      world.spawn('writer', world.writer(4, true));
      world.spawn('direct', world.directReader(4));
      world.spawn('other', world.other(6));
    });
  });
});
