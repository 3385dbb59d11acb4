import { constants } from 'node:fs';
import type { CopyRecord } from '../cluster/membership-api.js';
import { MemoryStore } from '../cluster/memory-store.js';
import { type ExpellingRecord, parseCopies, parseView, StoreKey, sameLife } from '../cluster/records.js';
import { InvariantError } from '../common/assert.js';
import { sleep } from '../common/clock.js';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { fileSystemNumber, type NodeId, type NsdIndex, nodeId, nsdIndex } from '../common/ids.js';
import { SeededRandom } from '../common/random.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import type { FileSystemIdentity, NodeParts } from '../daemon/node.js';
import { MemoryNetwork } from '../fabric/memory-link.js';
import { ROOT } from '../fs/file-system-api.js';
import { checksumsJs } from '../nsd/checksum-js.js';
import { sectorFates } from '../nsd/device-record.js';
import { Checks } from './checks.js';
import {
  type DirectoryInput,
  type DirectoryOutput,
  type DirectoryState,
  directoryModel,
  directoryText,
} from './directory-model.js';
import { DiskReader } from './disk-reader.js';
import { Faults } from './faults.js';
import { stampedBytes } from './file-model.js';
import { History } from './history.js';
import { fileText, HotFile } from './hot-file.js';
import type { PlantedBug } from './planted/planted-bug.js';
import { Scheduler } from './scheduler.js';
import type { SeedPlan } from './seed-plan.js';
import { SimDisk } from './sim-disk.js';
import { SimNode } from './sim-node.js';
import type { FabricTap } from './tapped-fabric.js';
import { TokenTraffic } from './token-traffic.js';
import { Trace } from './trace.js';
import { type Violation, ViolationError } from './violation.js';
import { overlay, sizeLeft } from './what-is-left.js';
import { Workload } from './workload.js';

/**
 * A whole cluster in one process, decided by one seed: real nodes on a simulated network, clock, store and disks.
 *
 * Owns the course of a run: boot, work under faults, healing, the last look, unmounting, and what is then compared. Owns the nodes'
 * lives one after the other, and what is told of a life when its tokens fall.
 * Invariant: nothing in it asks the real clock, a real random source or the operating system for anything.
 */
export const NAMES_DIRECTORY = '/names';
const STEPS_MAX = 3_000_000;
/** I12: an operation that takes longer than anything it may wait for has been forgotten. */
const OPERATION_MS_MAX = 80_000;
const HEALED_MS_MAX = 60_000;
/** By copies of metadata: while one of two is away, what is freed there stays out of use. */
const DISK_BYTES = 14 * 2 ** 20;

const lifeName = ({ nodeId, incarnation }: { nodeId: number; incarnation: number }): string =>
  `${nodeId}.${incarnation}`;

export class World {
  readonly scheduler = new Scheduler();
  readonly trace: Trace;
  readonly network: MemoryNetwork;
  readonly store: MemoryStore;
  readonly disks: { readonly disk: SimDisk; readonly uuid: string; readonly server: NodeId }[] = [];
  readonly formatted = new Set<string>();
  readonly nodes = new Map<NodeId, SimNode>();
  readonly lives: SimNode[] = [];
  readonly checks: Checks;
  readonly faults: Faults;
  readonly workload: Workload;
  readonly hot: HotFile[];
  /** Files whose inodes are neighbours, in their order: who looks at them in that order reads ahead. */
  readonly neighbours: readonly string[];
  readonly names: History<DirectoryState, DirectoryInput, DirectoryOutput>;
  readonly identity: FileSystemIdentity;
  readonly violations: Violation[] = [];
  /** Everything that ever ended in an error, by reason: for the report. */
  readonly errors = new Map<string, number>();
  /** No fault is left: from here on nothing may fail. */
  healed = false;
  #ending = false;
  /** What stands about copies, by the NSDs' UUIDs, as the store has it. */
  #copies: Readonly<Record<string, CopyRecord>> = {};
  /** Lives in the view, as the store has it. */
  #members = new Set<string>();
  #expelling: readonly ExpellingRecord[] = [];
  #moment = 0;
  readonly #random: { readonly nodes: SeededRandom; readonly store: SeededRandom; readonly cuts: SeededRandom };
  readonly #traffic: TokenTraffic;
  readonly #ends = new Map<SimNode, () => void>();
  /** Lives that ended in a power cut of all, until the tokens of the last of them fall. */
  readonly #cutOff = new Set<SimNode>();

  constructor(
    readonly plan: SeedPlan,
    readonly planted: PlantedBug,
  ) {
    const random = new SeededRandom(plan.seed);
    const forks = { network: random.fork(), disks: random.fork(), faults: random.fork(), workload: random.fork() };
    this.#random = { nodes: random.fork(), store: random.fork(), cuts: new SeededRandom(plan.seed + 6_000_011) };
    this.trace = new Trace(() => this.scheduler.nowMs());
    this.network = new MemoryNetwork(this.scheduler);
    this.store = new MemoryStore(this.scheduler, { callDeadlineMs: 400 });
    for (let id = 1; id <= plan.nsdCount; id++)
      this.disks.push({
        disk: new SimDisk(DISK_BYTES * plan.metadataCopies, this.scheduler, forks.disks.fork()),
        uuid: `00000000-0000-4000-8000-00000000000${id}`,
        server: nodeId(id),
      });
    const uuid = '10000000-0000-4000-8000-000000000000';
    this.identity = { uuid, name: 'simulated', number: fileSystemNumber(0), nsds: this.disks.map((disk) => disk.uuid) };
    this.checks = new Checks((violation) => this.report(violation));
    const moment = (): number => ++this.#moment;
    const nowMs = (): number => this.scheduler.nowMs();
    this.neighbours = plan.inodeRun === 1 ? Array.from({ length: 8 }, (_, i) => `/neighbour-${i}`) : [];
    this.hot = plan.files.map((layout, index) => new HotFile(`/hot${index}`, layout, moment, nowMs));
    this.names = new History('the directory', directoryModel, moment, nowMs);
    this.faults = new Faults(this, forks.faults, forks.network);
    this.workload = new Workload(this, forks.workload);
    this.#traffic = new TokenTraffic(this.trace, this.faults);
  }

  get nodeSettings(): NonNullable<NodeParts['settings']> {
    const { minHoldMs, clientRangesMax, serverRangesMax, acquireTimeoutMs, nsdAttemptTimeoutMs, inodeRun } = this.plan;
    return {
      ...(nsdAttemptTimeoutMs === null ? {} : { nsdAttemptTimeoutMs }),
      cache: {
        writeBehindAgeMs: 40,
        writeBehindTickMs: 15,
        readAheadMaxBytes: 16 * PAGE_BYTES,
        prepareBytes: 4 * PAGE_BYTES,
        workingIdleMs: 60,
        writeRetryMs: 30,
      },
      fs: { inodeWriteBehindMs: 80, backgroundIntervalMs: 60, inodesCachedMax: 16, inodeRun, regionTimeoutMs: 2000 },
      tokens: { minHoldMs, rangesMax: clientRangesMax, acquireTimeoutMs },
      tokenServer: { rangesMax: serverRangesMax },
    };
  }

  hotInodes(): number[] {
    return this.hot.map((file) => file.ino);
  }
  disksOf(id: NodeId) {
    return this.disks.filter((disk) => disk.server === id);
  }
  connectStore(_id: NodeId) {
    return this.store.connect(() => 0.1 + 0.4 * this.#random.store.next());
  }
  tap(life: SimNode): FabricTap {
    return this.#traffic.tap(life);
  }
  /** Nodes that take part now. */
  get up(): SimNode[] {
    return [...this.nodes.values()].filter((life) => life.state === 'up');
  }
  get allUp(): boolean {
    // One that was expelled may not know yet.
    const fine = (life: SimNode): boolean => life.serves && !life.suspended && this.#members.has(life.name);
    return this.up.length === this.plan.nodeCount && this.up.every(fine);
  }

  report(violation: Violation): void {
    this.trace.add(0, violation.ino, `VIOLATION ${violation.check}: ${violation.text}`);
    this.violations.push(violation);
  }

  /** Something was thrown where nobody expects it. */
  broken(error: unknown, where: string): void {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.report({ check: error instanceof InvariantError ? 'invariant' : 'thrown', ino: 0, text: `${where}: ${text}` });
  }

  /** An error-level line of a node's log: some of them say that something is broken. */
  logged(life: SimNode, message: string, fields: object): void {
    const serious = [
      'revoke handler failed',
      'fabric: a message handler threw',
      'a node claims what another one holds',
      'sub-blocks to be freed are free already',
    ];
    if (serious.includes(message))
      this.report({ check: 'log', ino: 0, text: `${life.name}: ${message} ${String(Object.values(fields))}` });
  }

  /** Of all lives together. */
  counters(): Record<string, number> {
    const total: Record<string, number> = {};
    for (const life of this.lives)
      for (const [name, value] of Object.entries(life.counters.snapshot())) total[name] = (total[name] ?? 0) + value;
    return total;
  }

  noteError(error: unknown): void {
    const reason = FsError.is(error) ? error.reason : String(error);
    this.errors.set(reason, (this.errors.get(reason) ?? 0) + 1);
  }

  /** @throws ViolationError the first thing that is wrong; whatever a step of the run itself throws. */
  async run(): Promise<void> {
    await this.scheduler.run(this.#course(), {
      stepsMax: STEPS_MAX,
      check: () => {
        this.checks.run();
        this.throwViolation();
      },
    });
    this.throwViolation();
  }
  throwViolation(): void {
    const [first] = this.violations;
    if (first !== undefined) throw new ViolationError(first);
  }

  async #course(): Promise<void> {
    await this.#begin();
    void this.#watchDeadlines();
    await Promise.all([this.faults.run(), this.workload.quotaDone()]);
    await this.#heal();
    await this.#lastLook();
    await this.#end();
    this.#judge();
  }

  async #begin(): Promise<void> {
    this.#watchExpulsions();
    for (let id = 1; id <= this.plan.nodeCount; id++) await this.#newLife(nodeId(id)).boot();
    const lives = [...this.nodes.values()];
    const [first] = lives;
    if (first === undefined) return;
    await first.disksServed(this.identity);
    const groups = this.disks.map(({ server }) => Number(server));
    await first.node.format(this.identity, groups, { metadataCopies: this.plan.metadataCopies });
    for (const life of lives) await life.mount(this.identity);
    if (this.plan.kind === 'metadata') await first.fileSystem!.mkdir(NAMES_DIRECTORY, 0o755, ROOT);
    for (const [index, file] of this.hot.entries()) await this.#create(lives[index % lives.length]!, file);
    for (const path of this.neighbours) {
      const file = await lives[0]!.fileSystem!.open(path, constants.O_CREAT | constants.O_RDWR, 0o644, ROOT);
      await file.sync(false);
      await file.close();
    }
    for (const life of lives) await this.#start(life);
    for (const life of lives) void this.#keepAlive(life);
  }

  async #create(life: SimNode, file: HotFile): Promise<void> {
    const open = await life.fileSystem!.open(
      file.path,
      constants.O_RDWR | constants.O_CREAT | constants.O_EXCL,
      0o644,
      ROOT,
    );
    const { baseBytes, cellBytes } = file.layout;
    file.ino = open.ino;
    await open.truncate(baseBytes);
    const stamp = this.workload.nextStamp();
    await open.write(baseBytes, stampedBytes(file.layout, stamp, 6));
    await open.truncate(baseBytes + 6 * cellBytes);
    await open.sync(false);
    await open.close();
    file.history.happened(`${life.name} makes it`, { op: 'write', from: 0, to: 6, stamp }, []);
    file.seenSize = 6;
  }

  // ---- lives

  /** Where no token server is left in the view nobody is asked to let tokens fall: the store tells that it is over. */
  #watchExpulsions(): void {
    this.store
      .connect(() => 0)
      .watch(
        StoreKey.copies,
        0,
        ({ key, value }) => {
          if (key === StoreKey.copies) this.#copies = parseCopies(value) ?? {};
        },
        () => undefined,
      );
    this.store
      .connect(() => 0)
      .watch(
        StoreKey.view,
        0,
        ({ value }) => {
          const view = parseView(value);
          const expelling = view?.expelling ?? [];
          this.#members = new Set(view?.nodes.map(lifeName));
          const before = this.#expelling;
          this.#expelling = expelling;
          for (const target of before)
            if (!expelling.some((entry) => sameLife(entry, target))) void this.beforeTokensFall(target);
        },
        () => undefined,
      );
  }

  #newLife(id: NodeId): SimNode {
    const life = new SimNode(this, id, this.#random.nodes.fork());
    this.nodes.set(id, life);
    this.lives.push(life);
    return life;
  }

  async #start(life: SimNode): Promise<void> {
    for (const file of this.hot)
      life.files.set(file.path, await life.fileSystem!.open(file.path, constants.O_RDWR, 0, ROOT));
    life.state = 'up';
    this.trace.add(life.id, 0, `life ${life.name} is up`);
    this.workload.start(life);
  }

  /** One life after the other, as a supervisor would. */
  async #keepAlive(first: SimNode): Promise<void> {
    const { id } = first;
    const pauses = this.#random.nodes.fork();
    for (let life = first; ; ) {
      await this.#over(life);
      if (this.#ending) return;
      await sleep(this.scheduler, 20 + 400 * pauses.next());
      life.kill();
      for (const door of life.doors) await door.shut();
      life = this.#newLife(id);
      try {
        await Promise.race([this.#bring(life), this.#over(life)]);
      } catch (error) {
        this.trace.add(id, 0, `life ${life.name} did not come up: ${String(error)}`);
        this.noteError(error);
        if (!FsError.is(error) || error.reason === 'internal') this.broken(error, `boot of node ${id}`);
        life.state = 'fenced';
      }
    }
  }
  async #bring(life: SimNode): Promise<void> {
    await life.boot();
    if (this.faults.passesBy(life.id)) return life.leave();
    await life.mount(this.identity);
    await this.#start(life);
  }

  #over(life: SimNode): Promise<void> {
    if (life.state !== 'up' && life.state !== 'booting') return Promise.resolve();
    const over = deferred<void>();
    const before = this.#ends.get(life);
    this.#ends.set(life, () => {
      before?.();
      over.resolve();
    });
    return over.promise;
  }

  lifeEnded(life: SimNode): void {
    this.#ends.get(life)?.();
    this.#ends.delete(life);
  }

  kill(life: SimNode): void {
    life.kill();
    if (!this.#cutOff.has(life)) this.#noteNotes(life);
    this.lifeEnded(life);
  }

  /**
   * Sizes that it had told nobody but the token server that it was itself: its own unsynced writes, lost with it. It holds no token for them any more, so others go
   * on with what is left as soon as the token server has been taken over.
   */
  #noteNotes(life: SimNode): void {
    const told = life.node?.tokenServer?.machine.gathered() ?? [];
    if (told.length === 0) return;
    const others = this.up.filter((one) => !one.outOfTheWay);
    const disks = new DiskReader(this.disks, checksumsJs, (copies) => copies[0]!);
    for (const file of this.hot) {
      const notes = told.filter(({ note }) => note.offsetBytes === file.ino * SECTOR_BYTES);
      const inode = notes.length === 0 ? null : disks.inode(file.ino);
      if (inode === null) continue;
      const left = sizeLeft(file.ino, inode, others);
      if (!notes.some(({ note }) => note.version === inode.version && note.sizeBytes > left)) continue;
      const cells = this.#onDisk(file);
      file.history.happened(`notes of ${life.name}`, { op: 'reverted', cells }, []);
      this.trace.add(0, file.ino, `what ${life.name} had told itself alone is lost: ${cells.join()}`);
    }
  }

  /** Every machine at once; what no disk has flushed is there or not, sector by sector (torn ones are the crash explorer's). */
  powerCut(): void {
    for (const life of this.nodes.values()) {
      if (life.state === 'dead' || life.state === 'left') continue;
      this.#cutOff.add(life);
      this.kill(life);
    }
    for (const { disk } of this.disks) disk.powerCut(sectorFates(this.#random.cuts));
  }

  /**
   * F1 has come to the fall of a life's tokens. Every server must have shut it out by now (I5); its own disks do so here (S4). Then
   * what the disks hold is what its files are, for everybody.
   */
  async beforeTokensFall(target: ExpellingRecord): Promise<void> {
    const name = lifeName(target);
    const life = this.lives.find((one) => one.membership !== undefined && one.name === name);
    if (life === undefined || life.outOfTheWay) return;
    for (const other of this.up) {
      if (
        !this.#members.has(other.name) ||
        other.node.nsdServer === null ||
        other.joinedEpoch >= target.epoch ||
        other.id === target.nodeId
      )
        continue;
      if ((other.fencedOthers.get(target.nodeId) ?? 0) >= target.incarnation) continue;
      this.report({ check: 'I5', ino: 0, text: `tokens of ${name} fall before ${other.name} has shut it out` });
    }
    // A token server lets everything fall that the node held up to that life.
    for (const older of this.#expelling)
      if (older.nodeId === target.nodeId && older.incarnation < target.incarnation)
        this.report({
          check: 'I6',
          ino: 0,
          text: `with the tokens of ${name} those of ${lifeName(older)} fall, before its log has been redone`,
        });
    for (const door of life.doors) await door.shut();
    if (life.outOfTheWay) return;
    life.outOfTheWay = true;
    this.checks.forget(life);
    this.trace.add(0, 0, `tokens of ${name} fall`);
    if (!target.clean && life.state !== 'dead' && life.map.leaseDeadlineMs > this.scheduler.nowMs())
      this.report({ check: 'I2', ino: 0, text: `tokens of ${name} fall while its hits go on under a lease` });
    if (!target.clean) this.#noteLosses(life);
  }

  /** What a power cut of all has left is every file's content, once all logs have been redone; nobody has a token until then. */
  #noteCut(lives: readonly SimNode[]): void {
    for (const file of this.hot) {
      const cells = this.#onDisk(file);
      for (const { name } of lives) {
        const lost = file.lostOf(name, cells, true);
        if (lost !== null) this.report({ check: 'I8', ino: file.ino, text: lost });
      }
      for (const { name } of lives) file.history.endLife(name);
      file.history.happened('power cut', { op: 'reverted', cells }, []);
      this.trace.add(0, file.ino, `the power cut has left ${cells.join()}`);
    }
    for (const { name } of lives) this.names.endLife(name);
  }

  #noteLosses(life: SimNode): void {
    if (this.#cutOff.has(life)) {
      if ([...this.#cutOff].every((one) => one.outOfTheWay)) {
        this.#noteCut([...this.#cutOff]);
        this.#cutOff.clear();
      }
      return;
    }
    const written = life.writableInodes();
    for (const file of this.hot) {
      if (written.includes(file.ino)) {
        const cells = this.#onDisk(file);
        const lost = file.lostOf(life.name, cells);
        if (lost !== null) this.report({ check: 'I8', ino: file.ino, text: lost });
        file.history.endLife(life.name);
        file.history.happened(`loss of ${life.name}`, { op: 'reverted', cells }, []);
        this.trace.add(0, file.ino, `what ${life.name} had not written is lost: ${cells.join()}`);
      } else file.history.endLife(life.name);
    }
    this.names.endLife(life.name);
  }

  #onDisk(file: HotFile, from: 'first' | 'last' = 'first'): number[] {
    const disks = new DiskReader(this.disks, checksumsJs, (copies) => {
      const up = copies.filter((nsd) => this.#copyState(nsd) === 'up');
      return (from === 'first' ? up[0] : up.at(-1)) ?? copies[0]!;
    });
    const inode = disks.inode(file.ino);
    if (inode === null) return [-1];
    const others = this.up.filter((one) => !one.outOfTheWay);
    const bytes = disks.file(file.ino, sizeLeft(file.ino, inode, others))!;
    overlay(file.ino, bytes, others);
    return file.cellsOf(bytes);
  }

  #copyState(nsd: NsdIndex): string {
    return this.#copies[this.disks[nsd]!.uuid]?.state ?? 'up';
  }
  get copiesUp(): boolean {
    return this.disks.every((_, index) => this.#copyState(nsdIndex(index)) === 'up');
  }

  // ---- the end

  async #heal(): Promise<void> {
    await this.faults.heal();
    const giveUpMs = this.scheduler.nowMs() + HEALED_MS_MAX;
    while (!this.allUp || !this.copiesUp) {
      if (this.scheduler.nowMs() > giveUpMs) {
        const missing = [...this.nodes.values()].filter((life) => !life.serves || life.suspended);
        const text = missing
          .map((life) => `${life.name} is ${life.state}${life.suspended ? ', suspended' : ''}`)
          .join('; ');
        const copies = this.disks.map((_, index) => this.#copyState(nsdIndex(index))).join();
        this.report({ check: 'I12', ino: 0, text: `nodes or copies do not come back: ${text}; copies: ${copies}` });
      }
      await sleep(this.scheduler, 20);
    }
    this.trace.add(0, 0, 'everything is healed');
    await this.workload.stop();
    this.healed = true;
  }

  async #watchDeadlines(): Promise<void> {
    while (!this.#ending) {
      await sleep(this.scheduler, 500);
      for (const history of [...this.hot.map((file) => file.history), this.names])
        for (const { client, input, calledMs, life } of history.open) {
          if (this.scheduler.nowMs() - calledMs < OPERATION_MS_MAX) continue;
          if (this.lives.some((one) => one.state === 'dead' && one.name === life)) continue;
          this.report({
            check: 'I12',
            ino: 0,
            text: `${history.name}: ${client} waits for ever: ${JSON.stringify(input)}`,
          });
        }
    }
  }

  /** Every node reads everything, then nobody has anything left. */
  async #lastLook(): Promise<void> {
    for (const life of this.up) for (const file of this.hot) await this.workload.look(life, file);
    if (this.plan.kind === 'metadata') for (const life of this.up) await this.workload.names.look(life);
  }

  async #end(): Promise<void> {
    this.#ending = true;
    const lives = this.up;
    for (const life of lives) for (const file of life.files.values()) await file.close();
    await Promise.all(lives.map((life) => life.unmount()));
    for (const life of lives) this.checks.checkIdle(life);
    for (const file of this.hot)
      file.history.happened('the disks', { op: 'read', from: 0, to: 1000 }, this.#onDisk(file));
    for (const life of lives) await life.leave();
    for (const file of this.hot) {
      const [one, other] = [this.#onDisk(file), this.#onDisk(file, 'last')];
      if (one.join() === other.join()) continue;
      const text = `${file.path} is ${one.join()} by one copy of its metadata, ${other.join()} by the other`;
      this.report({ check: 'I11', ino: file.ino, text });
    }
  }

  #judge(): void {
    for (const file of this.hot) {
      const text = file.history.verdict(fileText);
      if (text !== null) this.report({ check: 'linearizability', ino: file.ino, text });
    }
    const text = this.names.verdict(directoryText);
    if (text !== null) this.report({ check: 'linearizability', ino: 0, text });
  }
}
