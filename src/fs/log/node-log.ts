/**
 * A node's log, at work: carries out what the log's machine says, and brings what is logged to its place.
 *
 * Owns the log's space on the NSDs while the file system is mounted, the staging it is written from, the loose ends of this node.
 * Fault model: a write of the log that fails is tried again for ever, after pauses; every failure is told to those who wait for it to be durable at
 * that moment. Those who wait for room wait until their deadline, and are told the last failure as its cause. So nobody waits without a bound (I12).
 * Needs no token, ever (T5).
 */
import { WaitQueue } from '../../cache/wait-queue.js';
import { type Clock, sleep } from '../../common/clock.js';
import type { Counters } from '../../common/counters.js';
import { type Deferred, deferred } from '../../common/deferred.js';
import { FsError } from '../../common/errors.js';
import type { InodeNumber, NsdIndex } from '../../common/ids.js';
import type { Logger } from '../../common/logger.js';
import { SECTOR_BYTES } from '../../common/units.js';
import type { BufferArena, PagePool, PoolSegment } from '../../native/page-pool.js';
import type { Checksums } from '../../nsd/checksums.js';
import type { NsdClientApi, SectorIo } from '../../nsd/nsd-api.js';
import { type Flush, writeDurably } from '../durable.js';
import { Mutex } from '../mutex.js';
import { sealSector } from '../sector.js';
import { type LogEffect, type LogEvent, LogMachine } from './log-machine.js';
import { STEP_EXTENTS_MIN, TransactionWriter } from './log-records.js';
import { encodeGroup, type LogGroup, type LogIdentity, sectorsFor } from './log-sectors.js';
import type { LogSpace } from './log-space.js';
import { type DirtySector, type LoggedSectors, nsdOf, type SectorKey, type SectorWrite } from './logged-sectors.js';
import { EXTENT_BYTES, type LooseEnd, LooseEnds } from './loose-ends.js';

export interface NodeLogParts {
  readonly sectors: LoggedSectors;
  readonly settings: { readonly transactionBytesMax: number };
  readonly nsds: NsdClientApi;
  readonly pool: PagePool;
  readonly arena: BufferArena;
  readonly checksums: Checksums;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly counters: Counters;
}

/** What the log needs of the file system around it. */
export interface LogHost {
  /** Makes the pages of a range of a metadata file clean, in place. */
  flushPages(ino: InodeNumber, range: { readonly start: number; readonly end: number }): Promise<void>;
  /** What this node has in limbo goes to its file, or back to the map, as far as that can be done now. */
  settleLimbo(): Promise<void>;
  /** The tail and head in the log's descriptor, durable when it resolves. */
  announceTail(tail: number): Promise<void>;
}

const GROUP_SECTORS_MAX = 64;
const STAGING_SECTORS = 256 + 2;
const RETRY_MIN_MS = 20;
const RETRY_MAX_MS = 2_000;
/** Sectors written in place by one request. */
const RUN_MAX = 64;
/** Sectors in pages that a checkpoint has written by one call. */
const PAGES_AT_ONCE = 64;
/** A checkpoint that finds new changes beside it may leave some of what is old. */
const RENEWALS_MAX = 10;
/** From this share of the log's space on it is emptied. */
const CHECKPOINT_AT = 0.5;
/** How much of it operations may use, and how much what is done inside them; the rest is for emptying it. */
const OPERATIONS_SHARE = 0.7;
const INNER_SHARE = 0.85;
const SHARES: Readonly<Record<EnterKind, number>> = { operation: OPERATIONS_SHARE, inner: INNER_SHARE };
/** Of limbo in a snapshot, before operations wait until there is less. */
const LIMBO_SHARE = 0.1;
/** Of a snapshot that has more there are several transactions. */
const SNAPSHOT_PART_BYTES = 64 * 1024;
/** Heads of the records of one synchronous write. */
const DATA_OVERHEAD_BYTES = 2048;
export type EnterKind = 'operation' | 'inner';
/** How long room is waited for, by whoever says nothing else. */
const ENTER_TIMEOUT_MS = 30_000;
const ENTERING_MAX = 4096;
export interface EnterOptions {
  readonly lengthBytes?: number | undefined;
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}
const ENTER_SECTORS: Readonly<Record<EnterKind, number>> = { operation: 8, inner: 4 };

export class NodeLog {
  readonly sectors: LoggedSectors;
  readonly ends = new LooseEnds();
  /** Where transactions are made, each in one turn. */
  readonly writer = new TransactionWriter();
  readonly #parts: NodeLogParts;
  readonly #space: LogSpace;
  readonly #identity: LogIdentity;
  readonly #host: LogHost;
  readonly #machine: LogMachine;
  readonly #staging: PoolSegment;
  readonly #checkpointing = new Mutex();
  #waiters: { readonly sequence: number; readonly done: Deferred<void> }[] = [];
  /** Inner work goes before operations. */
  readonly #entering: Readonly<Record<EnterKind, WaitQueue<() => void>>>;
  /** Why the log could not be written, or emptied, the last time; null: it could. */
  readonly #failures: { write: FsError | null; checkpoint: FsError | null } = { write: null, checkpoint: null };
  /** Those who have entered since the last time that somebody waited for all who had; and those whose rounds are not over. */
  #round: { count: number; ended: Deferred<void> | null } = { count: 0, ended: null };
  readonly #rounds = new Set<Promise<void>>();
  /** Sectors for which somebody has entered. */
  #entered = 0;
  /** The transactions of the last snapshot of the loose ends: recovery needs them, or earlier ones. */
  #snapshot = { first: 1, last: 1 };
  #stopped: FsError | null = null;
  #group: Promise<void> = Promise.resolve();
  #emptying = false;
  #settlingLimbo = false;

  /** `head`: where it goes on. The log is this node's, and recovered. */
  static async open(
    parts: NodeLogParts,
    space: LogSpace,
    identity: LogIdentity,
    head: number,
    host: LogHost,
  ): Promise<NodeLog> {
    const staging = await parts.arena.allocate(Math.min(STAGING_SECTORS, space.capacitySectors) * SECTOR_BYTES);
    return new NodeLog(parts, space, identity, head, host, staging);
  }

  private constructor(
    parts: NodeLogParts,
    space: LogSpace,
    identity: LogIdentity,
    head: number,
    host: LogHost,
    staging: PoolSegment,
  ) {
    this.#parts = parts;
    this.sectors = parts.sectors;
    this.#space = space;
    this.#identity = identity;
    this.#host = host;
    this.#staging = staging;
    this.#machine = new LogMachine(
      {
        capacitySectors: space.capacitySectors,
        groupSectorsMax: Math.max(1, Math.min(GROUP_SECTORS_MAX, Math.floor(space.capacitySectors / 8))),
      },
      head,
    );
    const queue = (kind: EnterKind): WaitQueue<() => void> =>
      new WaitQueue({
        clock: parts.clock,
        what: 'room in the log',
        op: 'log.enter',
        object: `log ${identity.slot}`,
        waitersMax: ENTERING_MAX,
        deadlineMs: ENTER_TIMEOUT_MS,
        tryTake: (sectors) => (this.#mayEnter(kind) ? this.#takeSectors(sectors, SHARES[kind]) : null),
        onWait: () => {
          parts.counters.add('log.waitsForRoom');
          this.#empty();
        },
        causeOfDelay: () => this.#failures.write ?? this.#failures.checkpoint ?? undefined,
      });
    this.#entering = { operation: queue('operation'), inner: queue('inner') };
  }

  /** The transaction appended last. */
  get appendedSequence(): number {
    return this.#machine.appended;
  }
  /** The first sector that is not written. */
  get headSector(): number {
    return this.#machine.head;
  }
  /** From here on recovery reads it. */
  get tailSector(): number {
    return this.#machine.tail;
  }
  /** Extents in one transaction, which is to fit into the log many times over. */
  get stepExtentsMax(): number {
    return Math.max(STEP_EXTENTS_MIN, Math.floor((this.#space.capacitySectors * SECTOR_BYTES) / (64 * EXTENT_BYTES)));
  }
  get stepIndirectsMax(): number {
    return Math.max(4, Math.floor(this.#space.capacitySectors / 64));
  }
  get usedShare(): number {
    return this.#machine.usedSectors / this.#space.capacitySectors;
  }

  /** What is in the writer is one transaction. Durable when `force` of its number has resolved. `ends`: those in it, in their order. */
  append(ends: readonly LooseEnd[]): number {
    const bytes = this.writer.finish(this.#parts.settings.transactionBytesMax);
    for (const end of ends) this.ends.apply(end);
    this.#parts.counters.add('log.transactions');
    this.#parts.counters.add('log.bytes', bytes.length);
    this.#dispatch({ type: 'append', bytes });
    const sequence = this.#machine.appended;
    this.sectors.appended(sequence);
    if (this.usedShare > CHECKPOINT_AT) this.#empty();
    else if (this.#someoneWaits && ends.length > 0 && !this.#hasManyEnds()) this.#admit();
    return sequence;
  }

  /** Resolves when everything up to this transaction is durable. @throws {FsError} what writing the log gave; it is being tried again. */
  force(sequence = this.#machine.appended): Promise<void> {
    if (sequence <= this.#machine.durable) return Promise.resolve();
    if (this.#stopped !== null) return Promise.reject(this.#stopped);
    const done = deferred<void>();
    this.#waiters.push({ sequence, done });
    this.#dispatch({ type: 'force', sequence });
    return done.promise;
  }

  /**
   * Before something is going to be logged: room for it, until `leave`. What is logged without having entered could fill the log with records
   * that nothing can be put in place for before they are durable, which they can't become in a full log.
   * Kinds: *operations* wait first, for what they may need inside (*inner* work: giving space back, taking numbers, exposing data), which waits for
   * nothing but the devices.
   */
  tryEnter(kind: EnterKind, lengthBytes = 0): (() => void) | null {
    if (kind === 'operation' && this.#entering.operation.length > 0) return null;
    return this.#mayEnter(kind) ? this.#takeSectors(this.#sectorsOf(kind, lengthBytes), SHARES[kind]) : null;
  }

  get #someoneWaits(): boolean {
    return this.#entering.inner.length + this.#entering.operation.length > 0;
  }
  #mayEnter(kind: EnterKind): boolean {
    return kind === 'inner' || (this.#entering.inner.length === 0 && !this.#hasManyEnds());
  }

  /** A snapshot of what is in limbo has to fit into what is kept for emptying the log. */
  #hasManyEnds(): boolean {
    return this.ends.limboBytes > LIMBO_SHARE * this.#space.capacitySectors * SECTOR_BYTES;
  }

  /**
   * Nothing has been changed when it fails.
   * @throws {FsError} deadlinePassed, with what writing or emptying the log gave last; aborted; queueFull; fenced, closed
   */
  async enter(kind: EnterKind, { lengthBytes, timeoutMs, signal }: EnterOptions = {}): Promise<() => void> {
    const leave = this.tryEnter(kind, lengthBytes);
    if (leave !== null) return leave;
    if (this.#stopped !== null) throw this.#stopped;
    return this.#entering[kind].take(this.#sectorsOf(kind, lengthBytes), signal, timeoutMs);
  }

  /** For so many bytes of data, if there is room for them beside what operations need; nothing waits for that. */
  tryEnterFor(lengthBytes: number): (() => void) | null {
    const sectors = sectorsFor(lengthBytes + DATA_OVERHEAD_BYTES);
    if (this.#someoneWaits || sectors > this.#space.capacitySectors / 32) return null;
    return this.#takeSectors(sectors, OPERATIONS_SHARE);
  }

  #sectorsOf(kind: EnterKind, lengthBytes = 0): number {
    const { capacitySectors } = this.#space;
    const usual = Math.max(1, Math.min(ENTER_SECTORS[kind], Math.floor(capacitySectors / 32)));
    return Math.max(usual, Math.min(sectorsFor(lengthBytes), Math.floor(capacitySectors / 4)));
  }

  #takeSectors(sectors: number, share: number): (() => void) | null {
    const { capacitySectors } = this.#space;
    if (this.#machine.usedSectors + this.#entered + sectors > share * capacitySectors) return null;
    this.#entered += sectors;
    const round = this.#round;
    round.count++;
    let left = false;
    return () => {
      if (left) return;
      left = true;
      this.#entered -= sectors;
      round.count--;
      if (round.count === 0) round.ended?.resolve();
      this.#admit();
    };
  }

  /** Whoever has entered by now has left. */
  async operationsEnded(): Promise<void> {
    const round = this.#round;
    this.#round = { count: 0, ended: null };
    if (round.count > 0) {
      round.ended = deferred();
      this.#rounds.add(round.ended.promise);
      void round.ended.promise.then(() => this.#rounds.delete(round.ended!.promise));
    }
    await Promise.all(this.#rounds);
  }

  /** In their order, inner work before operations. */
  #admit(): void {
    this.#entering.inner.pump();
    this.#entering.operation.pump();
    if (this.#someoneWaits) this.#empty();
  }

  /** Expelled, or closed: nothing is written any more. */
  stop(error: FsError): void {
    this.#stopped = error;
    for (const { done } of this.#waiters.splice(0)) done.reject(error);
    for (const queue of Object.values(this.#entering)) queue.rejectAll(error);
  }

  /** After the last checkpoint. */
  async close(): Promise<void> {
    await this.#group;
    this.stop(new FsError('closed', { op: 'log', detail: 'the file system is not mounted any more' }));
    this.#parts.arena.free(this.#staging);
  }

  // The log's own writes

  #dispatch(event: LogEvent): void {
    for (const effect of this.#machine.step(event)) this.#carryOut(effect);
  }

  #carryOut(effect: LogEffect): void {
    switch (effect.type) {
      case 'write':
        this.#group = this.#write(effect.group);
        break;
      case 'durable': {
        const waiters = this.#waiters;
        this.#waiters = waiters.filter(({ sequence }) => sequence > effect.sequence);
        for (const { sequence, done } of waiters) if (sequence <= effect.sequence) done.resolve();
        break;
      }
      case 'full':
        this.#parts.counters.add('log.full');
        this.#empty();
        break;
    }
  }

  async #write(group: LogGroup): Promise<void> {
    let retryMs = RETRY_MIN_MS;
    for (;;) {
      if (this.#stopped !== null) return;
      try {
        await this.#writeOnce(group);
        this.#failures.write = null;
        break;
      } catch (error) {
        this.#parts.counters.add('log.writesFailed');
        const failure = FsError.from(error, 'log.write', `log ${this.#identity.slot}`);
        this.#failures.write = failure;
        this.#parts.logger.warn({ error: failure.message }, 'the log could not be written; tried again');
        for (const { done } of this.#waiters.splice(0)) done.reject(failure);
        await sleep(this.#parts.clock, retryMs);
        retryMs = Math.min(2 * retryMs, RETRY_MAX_MS);
      }
    }
    this.#dispatch({ type: 'written' });
  }

  async #writeOnce(group: LogGroup): Promise<void> {
    const { nsds, pool, checksums, counters } = this.#parts;
    const { offsetBytes } = this.#staging;
    const lengthBytes = group.sectorCount * SECTOR_BYTES;
    encodeGroup(group, this.#identity, checksums, pool.bytes.subarray(offsetBytes, offsetBytes + lengthBytes));
    const ios: SectorIo[] = [];
    for (const { nsd, sector, at, count } of this.#space.runs(group.first, group.sectorCount))
      ios.push({
        nsd,
        sector,
        memory: { offsetBytes: offsetBytes + at * SECTOR_BYTES, lengthBytes: count * SECTOR_BYTES },
        // One that is torn ends the log, and was never acknowledged (S1).
        selfChecking: true,
      });
    await writeDurably(nsds, ios, 'log');
    counters.add('log.groups');
    counters.add('log.sectors', group.sectorCount);
  }

  // In place

  /** Writes sectors of the log's own images in place; their records first. Neighbours go together. */
  async writeInPlace(wanted: Iterable<SectorKey>): Promise<void> {
    const keys = [...wanted].sort((a, b) => a - b);
    for (const key of keys) while (this.sectors.isWriting(key)) await this.sectors.writeEnded(key);
    for (let at = 0; at < keys.length; ) {
      let end = at + 1;
      while (end < keys.length && end - at < RUN_MAX && keys[end] === keys[end - 1]! + 1) end++;
      const memory = await this.#parts.arena.allocate((end - at) * SECTOR_BYTES);
      try {
        // Others may have begun, or done it, while this waited: a run is what is still to be written, as it is in this turn.
        let from = at;
        while (from < end && !this.#isDue(keys[from]!)) from++;
        let to = from;
        while (to < end && this.#isDue(keys[to]!)) to++;
        if (from < to) await this.#writeRun(keys.slice(from, to), memory);
        at = Math.max(to, from);
      } finally {
        this.#parts.arena.free(memory);
      }
    }
  }

  #isDue(key: SectorKey): boolean {
    const dirty = this.sectors.dirty(key);
    return dirty !== undefined && isByImage(dirty) && !this.sectors.isWriting(key);
  }

  async #writeRun(keys: readonly SectorKey[], memory: PoolSegment): Promise<void> {
    const { nsds, pool, checksums, counters } = this.#parts;
    const writes: SectorWrite[] = [];
    let succeeded = false;
    try {
      let last = 0;
      keys.forEach((key, index) => {
        const dirty = this.sectors.dirty(key)!;
        const at = memory.offsetBytes + index * SECTOR_BYTES;
        const sector = pool.bytes.subarray(at, at + SECTOR_BYTES);
        sector.fill(0, dirty.image.length);
        sector.set(dirty.image);
        if (dirty.place.raw !== true) sealSector(sector, checksums);
        last = Math.max(last, dirty.last);
        writes.push(this.sectors.beginWrite(dirty.place));
      });
      await this.force(last);
      const { nsd, sector } = writes[0]!.place;
      const io = { offsetBytes: memory.offsetBytes, lengthBytes: keys.length * SECTOR_BYTES };
      const versions = Uint32Array.from(writes, ({ version }) => version);
      // Its records, a full image among them, are its intent.
      await nsds.write([{ nsd, sector, memory: io, versions, logged: true }]);
      succeeded = true;
      counters.add('log.sectorsInPlace', keys.length);
    } finally {
      for (const write of writes) this.sectors.endWrite(write, succeeded);
    }
  }

  // Space

  #empty(): void {
    if (this.#hasManyEnds()) this.#settleLimbo();
    if (this.#emptying || this.#stopped !== null) return;
    this.#emptying = true;
    void this.checkpoint()
      .then(() => {
        this.#failures.checkpoint = null;
      })
      .catch((error: unknown) => {
        this.#failures.checkpoint = FsError.from(error, 'log.empty', `log ${this.#identity.slot}`);
        this.#parts.logger.warn({ error: String(error) }, 'the log could not be emptied yet');
        return sleep(this.#parts.clock, RETRY_MIN_MS);
      })
      .finally(() => {
        this.#emptying = false;
        if (this.#stopped === null) this.#admit();
      });
  }

  /** Beside emptying, which it may have to wait for. */
  #settleLimbo(): void {
    if (this.#settlingLimbo || this.#stopped !== null) return;
    this.#settlingLimbo = true;
    this.#parts.counters.add('log.limboSettled');
    void this.#host
      .settleLimbo()
      .catch((error: unknown) => {
        this.#parts.logger.warn({ error: String(error) }, 'what is in limbo could not be settled yet');
      })
      .then(() => (this.#hasManyEnds() ? sleep(this.#parts.clock, RETRY_MIN_MS) : undefined))
      .finally(() => {
        this.#settlingLimbo = false;
        if (this.#stopped === null) this.#admit();
      });
  }

  /** Everything that was logged before `ageMs` ago comes to its place, and its space in the log is free again. */
  checkpoint(ageMs = 0, anew = false): Promise<void> {
    return this.#checkpointing.run(async () => {
      const dueMs = this.#parts.clock.nowMs() - ageMs;
      const due = [...this.sectors.all()].filter(({ sinceMs }) => sinceMs <= dueMs);
      await this.writeInPlace(due.filter(isByImage).map(({ key }) => key));
      const pages = new Map<InodeNumber, { start: number; end: number }[]>();
      for (const { place, byImage } of due) {
        if (place.paged === undefined || byImage) continue;
        const { ino, offsetBytes } = place.paged;
        const list = pages.get(ino) ?? [];
        list.push({ start: offsetBytes, end: offsetBytes + SECTOR_BYTES });
        pages.set(ino, list);
      }
      for (const [ino, ranges] of pages) await this.#flushPages(ino, ranges);
      await this.#flushInPlace();
      await this.#trim(anew);
      this.#parts.counters.add('log.checkpoints');
    });
  }

  /** Many of a file's sectors in a few calls: what else is dirty between them comes along. A part of the file at a time, so that its users get on. */
  async #flushPages(
    ino: InodeNumber,
    ranges: readonly { readonly start: number; readonly end: number }[],
  ): Promise<void> {
    const sorted = [...ranges].sort((a, b) => a.start - b.start);
    for (let at = 0; at < sorted.length; at += PAGES_AT_ONCE) {
      const some = sorted.slice(at, at + PAGES_AT_ONCE);
      await this.#host.flushPages(ino, { start: some[0]!.start, end: some.at(-1)!.end });
    }
  }

  /** Recovery needs nothing any more that was written before this began. @throws {FsError} busy */
  async renew(): Promise<void> {
    const head = this.headSector;
    for (let i = 0; this.tailSector < head; i++) {
      if (i === RENEWALS_MAX)
        throw new FsError('busy', { op: 'log', detail: 'new changes keep what is old in the log' });
      await this.checkpoint(0, true);
    }
  }

  /** What is in place is durable there afterwards. */
  async #flushInPlace(): Promise<void> {
    for (;;) {
      const nsds = this.sectors.unflushedNsds();
      if (nsds.size === 0) return;
      await this.writeInPlace(await this.#flush(nsds, 'tail'));
    }
  }

  /**
   * The same for some sectors only, which have been written in place: before somebody else may read them, who would find what was there before if their
   * NSD lost them afterwards.
   */
  async makeDurable(wanted: Iterable<SectorKey>): Promise<void> {
    const keys = [...wanted];
    for (;;) {
      await this.writeInPlace(keys.filter((key) => this.#isDue(key) || this.sectors.isOnItsWay(key)));
      const nsds = new Set<NsdIndex>();
      for (const key of keys) if (this.sectors.isUnflushed(key)) nsds.add(nsdOf(key));
      if (nsds.size === 0) return;
      await this.writeInPlace(await this.#flush(nsds, 'handOver'));
    }
  }

  /** Returns what was lost before the flush, and is to be written in place again. */
  async #flush(nsds: ReadonlySet<NsdIndex>, why: Flush): Promise<SectorKey[]> {
    const sectors = this.sectors.unflushedOn(nsds);
    await this.#parts.nsds.flush([...nsds], { why });
    const lost = this.sectors.flushed(sectors);
    if (lost.length > 0) this.#parts.counters.add('log.sectorsLost', lost.length);
    return lost;
  }

  /** In one turn: its transactions follow each other, and nothing changes meanwhile. */
  #appendSnapshot(): { readonly first: number; readonly last: number } {
    const first = this.appendedSequence + 1;
    const lengthBytes = Math.min(this.#parts.settings.transactionBytesMax, SNAPSHOT_PART_BYTES);
    for (const part of this.ends.snapshot(lengthBytes)) {
      for (const change of part) this.writer.record(change);
      this.append([]);
    }
    return { first, last: this.appendedSequence };
  }

  async #trim(anew: boolean): Promise<void> {
    if (anew || !this.ends.empty || this.#snapshot.last < this.#machine.appended) {
      this.#snapshot = this.#appendSnapshot();
      await this.force(this.#snapshot.last);
    }
    const before = this.#machine.tail;
    this.#dispatch({ type: 'trim', needed: Math.min(this.sectors.needed(), this.#snapshot.first) });
    const { tail } = this.#machine;
    if (tail === before) return;
    await this.#host.announceTail(tail);
    this.#dispatch({ type: 'tailAnnounced', tail });
  }
}

/** The log's image is what is written in place, not a page. */
const isByImage = ({ place, byImage }: DirtySector): boolean => place.paged === undefined || byImage === true;
