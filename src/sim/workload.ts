import { sleep } from '../common/clock.js';
import { FsError, type Reason } from '../common/errors.js';
import { below, chance, pick, SeededRandom } from '../common/random.js';
import { PAGE_BYTES } from '../common/units.js';
import { CELLS_MAX, cellsOf, cellsOfSize, type FileInput, runsOf, stampedBytes } from './file-model.js';
import type { FilePending, HotFile } from './hot-file.js';
import { NamesWorkload } from './names-workload.js';
import type { SimNode } from './sim-node.js';
import type { World } from './world.js';

/**
 * What the applications do: several clients per node, each one operation at a time, on a few files that everybody uses; and on each node a
 * thread that only hits, also while the engine stands still. Owns stamps, the count of operations, and what is told to histories.
 *
 * Fault model: an operation may fail for the reasons in `EXPECTED`, as long as something is wrong; it may then have happened or not.
 */
const EXPECTED: ReadonlySet<Reason> = new Set<Reason>([
  'fenced',
  'suspended',
  'closed',
  'nsdUnavailable',
  'deadlinePassed',
  'unreachable',
  'connectionLost',
  'staleEpoch',
  'tokenServerGone',
  // Its own disks, when the target has shut it out.
  'deviceError',
]);

export class Workload {
  readonly names: NamesWorkload;
  ended = 0;
  hits = 0;
  #stamp = 0;
  #begun = 0;
  #stopping = false;
  #failures = 0;
  readonly #clients = new Map<SimNode, number>();
  readonly #leaving = new Set<SimNode>();

  constructor(
    private readonly world: World,
    private readonly random: SeededRandom,
  ) {
    this.names = new NamesWorkload(world, this);
  }

  nextStamp(): number {
    return ++this.#stamp;
  }

  start(life: SimNode): void {
    const { clientsPerNode, kind } = this.world.plan;
    this.#clients.set(life, 0);
    for (let i = 1; i <= clientsPerNode; i++) {
      const random = this.random.fork();
      const names = kind === 'metadata' && i === 1;
      this.#run(life, () => this.#client(life, `${life.name}/${i}`, random, names));
    }
    const random = this.random.fork();
    this.#run(life, () => this.#hitter(life, random));
    if (kind === 'metadata') this.#run(life, () => this.#recaller(life));
  }

  #run(life: SimNode, client: () => Promise<void>): void {
    this.#clients.set(life, (this.#clients.get(life) ?? 0) + 1);
    client().then(
      () => this.#clients.set(life, (this.#clients.get(life) ?? 1) - 1),
      (error: unknown) => this.world.broken(error, `a client of ${life.name}`),
    );
  }

  /** Enough has been done; clients go on until the faults are over too. */
  async quotaDone(): Promise<void> {
    while (this.ended < this.world.plan.operations) await sleep(this.world.scheduler, 2);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    for (const life of this.world.up) await this.stopLife(life);
  }

  /** Resolves when nothing of this life is under way any more. */
  async stopLife(life: SimNode): Promise<void> {
    this.#leaving.add(life);
    while ((this.#clients.get(life) ?? 0) > 0 && life.state === 'up') await sleep(this.world.scheduler, 2);
  }

  #goesOn(life: SimNode): boolean {
    return life.state === 'up' && !this.#stopping && !this.#leaving.has(life);
  }

  async #client(life: SimNode, name: string, random: SeededRandom, names: boolean): Promise<void> {
    const { thinkMs, operations, regions } = this.world.plan;
    for (;;) {
      // Beyond the quota it is waited for faults only: slower, so that histories stay short.
      await sleep(life.gate, thinkMs * 2 * random.next() + (this.#begun > operations ? 60 : 0));
      if (!this.#goesOn(life)) return;
      this.#begun++;
      const failures = this.#failures;
      if (names && chance(random, 0.8)) await this.names.step(life, name, random);
      else if (regions) await this.#stepInRegion(life, name, random);
      else await this.#step(life, name, random);
      this.ended++;
      // Whoever got an error does not try again at once: a history full of unknown outcomes says nothing.
      if (this.#failures > failures) await sleep(life.gate, 100 + 400 * random.next());
    }
  }

  async #step(life: SimNode, client: string, random: SeededRandom): Promise<void> {
    const file = pick(random, this.world.hot);
    const what = random.next();
    const hit = chance(random, 0.5);
    const from = below(random, Math.min(CELLS_MAX - 1, file.seenSize + 3));
    const to = Math.min(CELLS_MAX, from + 1 + below(random, 3));
    if (what < 0.36) await this.#read(life, client, file, from, to, hit);
    else if (what < 0.66) await this.#write(life, client, file, from, to, hit);
    else if (what < 0.74) await this.#append(life, client, file, 1 + below(random, 2), hit);
    else if (what < 0.79) await this.#truncate(life, client, file, below(random, CELLS_MAX));
    else if (what < 0.9) await this.#stat(life, client, file);
    else if (what < 0.97) await this.#sync(life, file, chance(random, 0.4));
    else this.#hint(life, file, from, to, random);
  }

  /** Many writes to where nobody else writes, which conflict in size and times only; and now and then somebody who wants to know the size, or cuts the file. */
  async #stepInRegion(life: SimNode, client: string, random: SeededRandom): Promise<void> {
    const file = pick(random, this.world.hot);
    const what = random.next();
    const hit = chance(random, 0.5);
    const cells = Math.floor(CELLS_MAX / this.world.plan.nodeCount);
    const start = (life.id - 1) * cells;
    const from = start + below(random, cells);
    const to = Math.min(start + cells, from + 1 + below(random, 2));
    if (what < 0.6) await this.#write(life, client, file, from, to, hit);
    else if (what < 0.66) await this.#read(life, client, file, from, to, hit);
    else if (what < 0.82) await this.#stat(life, client, file);
    else if (what < 0.93) await this.#sync(life, file, chance(random, 0.4));
    else if (what < 0.97) await this.#truncate(life, client, file, below(random, CELLS_MAX));
    else this.#hint(life, file, from, to, random);
  }

  // ---- operations, each by hit if it can be, as the library does it

  async #read(life: SimNode, client: string, file: HotFile, from: number, to: number, hit: boolean): Promise<void> {
    if (hit && this.#readHit(life, `${client} hit`, file, from, to)) return;
    const { layout } = file;
    const target = new Uint8Array((to - from) * layout.cellBytes);
    await this.#operation(life, client, file, { op: 'read', from, to }, async () => {
      const length = await this.#open(life, file).read(layout.baseBytes + from * layout.cellBytes, target);
      return this.#cells(life, file, from, target.subarray(0, length));
    });
  }

  #cells(life: SimNode, file: HotFile, from: number, bytes: Uint8Array): number[] {
    const { layout } = file;
    const cells = cellsOf(layout, bytes);
    if (cells.some((cell) => cell < 0)) {
      const start = layout.baseBytes + from * layout.cellBytes;
      this.world.trace.add(life.id, file.ino, `a read found ${runsOf(start, bytes)}`);
    }
    return cells;
  }

  async #write(life: SimNode, client: string, file: HotFile, from: number, to: number, hit: boolean): Promise<void> {
    if (hit && this.#writeHit(life, `${client} hit`, file, from, to)) return;
    const { layout } = file;
    const stamp = this.nextStamp();
    const bytes = stampedBytes(layout, stamp, to - from);
    const done = await this.#operation(life, client, file, { op: 'write', from, to, stamp }, async () => {
      await this.#open(life, file).write(layout.baseBytes + from * layout.cellBytes, bytes);
      return [];
    });
    if (done) file.seenSize = Math.max(file.seenSize, to);
  }

  async #append(life: SimNode, client: string, file: HotFile, count: number, hit: boolean): Promise<void> {
    if (file.seenSize + count > CELLS_MAX - 2) return this.#truncate(life, client, file, count);
    if (hit && this.#appendHit(life, `${client} hit`, file, count)) return;
    const { layout } = file;
    const stamp = this.nextStamp();
    const bytes = stampedBytes(layout, stamp, count);
    await this.#operation(life, client, file, { op: 'append', count, stamp }, async () => {
      const { offsetBytes } = await this.#open(life, file).write(null, bytes);
      file.seenSize = Math.max(file.seenSize, Math.floor(cellsOfSize(layout, offsetBytes)) + count);
      return [cellsOfSize(layout, offsetBytes)];
    });
  }

  async #truncate(life: SimNode, client: string, file: HotFile, size: number): Promise<void> {
    const { layout } = file;
    const done = await this.#operation(life, client, file, { op: 'truncate', size }, async () => {
      await this.#open(life, file).truncate(layout.baseBytes + size * layout.cellBytes);
      return [];
    });
    if (done) file.seenSize = size;
  }

  async #stat(life: SimNode, client: string, file: HotFile): Promise<void> {
    await this.#operation(life, client, file, { op: 'stat' }, async () => {
      const size = cellsOfSize(file.layout, (await this.#open(life, file).stat()).sizeBytes);
      file.seenSize = Math.max(0, Math.min(CELLS_MAX, Math.floor(size)));
      return [size];
    });
  }

  async #sync(life: SimNode, file: HotFile, dataOnly: boolean): Promise<void> {
    const pending = file.history.begin(life.name, life.name, { op: 'stat' });
    // Only then an fsync has something to promise.
    const dirty = life.cached(file.ino)?.dirty === true;
    try {
      await this.#open(life, file).sync(dataOnly);
      if (pending.done === null) {
        file.synced(life.name, pending.calledAt);
        if (dirty) this.world.faults.syncDone(life);
      }
    } catch (error) {
      this.#failed(life, file, error, 'sync');
    }
    // It is in the history for its deadline only.
    file.history.forget(pending);
  }

  #hint(life: SimNode, file: HotFile, from: number, to: number, random: SeededRandom): void {
    const { baseBytes, cellBytes } = file.layout;
    const kind = pick(random, ['willNeed', 'dontNeed', 'sequential', 'random', 'normal'] as const);
    this.#open(life, file).hint(kind, baseBytes + from * cellBytes, (to - from) * cellBytes);
  }

  // ---- hits

  #readHit(life: SimNode, client: string, file: HotFile, from: number, to: number): boolean {
    const entry = life.entryOf(file.path);
    if (entry === null) return false;
    const { layout } = file;
    const target = new Uint8Array((to - from) * layout.cellBytes);
    const pending = file.history.begin(client, life.name, { op: 'read', from, to });
    const length = life.map.read(entry, layout.baseBytes + from * layout.cellBytes, target);
    if (length < 0) file.history.forget(pending);
    else this.#tell(life, file, pending, this.#cells(life, file, from, target.subarray(0, length)));
    return this.#hit(length);
  }

  #writeHit(life: SimNode, client: string, file: HotFile, from: number, to: number): boolean {
    const entry = life.entryOf(file.path);
    if (entry === null) return false;
    const { layout } = file;
    const stamp = this.nextStamp();
    const bytes = stampedBytes(layout, stamp, to - from);
    const pending = file.history.begin(client, life.name, { op: 'write', from, to, stamp });
    const length = life.map.write(entry, layout.baseBytes + from * layout.cellBytes, bytes, life.gate.wallNs());
    if (length < 0) file.history.forget(pending);
    else {
      this.#tell(life, file, pending, []);
      const start = layout.baseBytes + from * layout.cellBytes;
      this.world.checks.wroteByHit(life, file.ino, { start, end: start + length });
    }
    return this.#hit(length);
  }

  #appendHit(life: SimNode, client: string, file: HotFile, count: number): boolean {
    const entry = life.entryOf(file.path);
    if (entry === null) return false;
    const { layout } = file;
    const stamp = this.nextStamp();
    const bytes = stampedBytes(layout, stamp, count);
    const pending = file.history.begin(client, life.name, { op: 'append', count, stamp });
    const length = life.map.write(entry, -1, bytes, life.gate.wallNs());
    if (length < 0) file.history.forget(pending);
    else {
      const end = life.map.sizeNow(entry);
      this.#tell(life, file, pending, [cellsOfSize(layout, end) - count]);
      this.world.checks.wroteByHit(life, file.ino, { start: end - length, end });
    }
    return this.#hit(length);
  }

  #hit(result: number): boolean {
    if (result >= 0) this.hits++;
    return result >= 0;
  }

  /** An application's thread that never waits for the engine. */
  async #hitter(life: SimNode, random: SeededRandom): Promise<void> {
    const { scheduler, hot, plan } = this.world;
    while (life.state === 'up') {
      await sleep(scheduler, 4 * plan.thinkMs * (0.2 + random.next()) + (this.#begun > plan.operations ? 100 : 0));
      if (!this.#goesOn(life)) return;
      const file = pick(random, hot);
      const from = below(random, Math.max(1, Math.min(CELLS_MAX, file.seenSize)));
      const to = from + 1;
      const client = `${life.name}/thread`;
      if (chance(random, 0.2)) await this.#burst(life, client, file, this.#cellUnderWay(life, file) ?? from, random);
      else if (chance(random, 0.6)) this.#readHit(life, client, file, from, to);
      else if (chance(random, 0.8)) this.#writeHit(life, client, file, from, to);
      else if (file.seenSize < CELLS_MAX - 2) this.#appendHit(life, client, file, 1);
    }
  }

  /** One that is on its way to a device at this moment: what a thread writes there has to wait for it (S2). */
  #cellUnderWay(life: SimNode, file: HotFile): number | null {
    const { baseBytes, cellBytes } = file.layout;
    for (const page of life.cached(file.ino)?.file.dirtyPages ?? []) {
      if (page.writing === null) continue;
      const cell = Math.max(0, Math.ceil((page.index * PAGE_BYTES - baseBytes) / cellBytes));
      if (cell < Math.min(CELLS_MAX, file.seenSize)) return cell;
    }
    return null;
  }

  /** An application's thread that asks for what it remembers of names, and never waits for the engine. A stream of its own. */
  async #recaller(life: SimNode): Promise<void> {
    const random = new SeededRandom(this.world.plan.seed + 15_485_863 * (life.id + 64 * this.world.lives.length));
    while (life.state === 'up') {
      const idleMs = this.#begun > this.world.plan.operations ? 100 : 0;
      await sleep(this.world.scheduler, 4 * this.world.plan.thinkMs * (0.2 + random.next()) + idleMs);
      if (!this.#goesOn(life)) return;
      this.names.recall(life, random);
    }
  }

  /** The same cell again and again, faster than a device takes it: also while it is being written out. */
  async #burst(life: SimNode, client: string, file: HotFile, cell: number, random: SeededRandom): Promise<void> {
    const { scheduler } = this.world;
    for (let count = 3 + below(random, 6); count > 0; count--) {
      if (!this.#goesOn(life)) return;
      this.#writeHit(life, client, file, cell, cell + 1);
      await sleep(scheduler, 12 * random.next());
    }
  }

  // ---- outcomes

  #open(life: SimNode, file: HotFile) {
    const open = life.files.get(file.path);
    if (open === undefined) throw new FsError('closed', { op: 'sim', object: file.path });
    return open;
  }

  #tell(life: SimNode, file: HotFile, pending: FilePending, output: readonly number[]): void {
    this.world.trace.add(life.id, file.ino, `${pending.client}: ${JSON.stringify(pending.input)} -> ${output.join()}`);
    file.history.end(pending, output);
  }

  /** @returns whether it succeeded. */
  async #operation(
    life: SimNode,
    client: string,
    file: HotFile,
    input: FileInput,
    perform: () => Promise<readonly number[]>,
  ): Promise<boolean> {
    const pending = file.history.begin(client, life.name, input);
    this.world.trace.add(life.id, file.ino, `${client}: begins ${JSON.stringify(input)}`);
    try {
      const output = await perform();
      if (pending.done === null) this.#tell(life, file, pending, output);
      return true;
    } catch (error) {
      this.#failed(life, file, error, input.op);
      if (pending.done !== null) return false;
      if (input.op === 'read' || input.op === 'stat') file.history.forget(pending);
      else file.history.unknown(pending);
      return false;
    }
  }

  #failed(life: SimNode, file: HotFile, error: unknown, op: string): void {
    this.world.trace.add(life.id, file.ino, `${op} of ${life.name} failed: ${String(error)}`);
    this.checkError(life, file.ino, error, op);
  }

  checkError(life: SimNode, ino: number, error: unknown, op: string): void {
    this.world.noteError(error);
    this.#failures++;
    if (!FsError.is(error) || error.reason === 'internal') {
      this.world.broken(error, `${op} of ${life.name}`);
      return;
    }
    const fault = this.world.healed ? 'although nothing is wrong any more' : 'for no reason that there is';
    if (this.world.healed || !EXPECTED.has(error.reason))
      this.world.report({ check: 'I12', ino, text: `${op} of ${life.name} failed ${fault}: ${error.message}` });
  }

  /** The last look of a node: everything, and it may not fail. */
  async look(life: SimNode, file: HotFile): Promise<void> {
    await this.#stat(life, `${life.name} at last`, file);
    await this.#read(life, `${life.name} at last`, file, 0, CELLS_MAX + 4, false);
  }
}
