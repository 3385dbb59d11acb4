/**
 * Inodes in memory, and the status class of tokens on this node.
 *
 * Owns: which inodes are valid (their status token is held), reading them in runs of neighbours, serving status revokes. Where they lie is
 * inode-file.ts, writing them out inode-writer.ts.
 * Invariant: a revoke is answered when every inode of its range is clean on the devices, with its data (decision 4 in
 * docs/architecture.md); serving it asks for no token.
 * Fault model: sectors that don't decode are reported for the inode that was asked for, and ignored for its neighbours. A revoke whose
 * writes fail waits until they succeed.
 */

import type { CachedFile } from '../cache/page-cache-api.js';
import { WHOLE } from '../common/byte-range.js';
import { sleep } from '../common/clock.js';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { inodeNumber, nsdIndex } from '../common/ids.js';
import { RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { covers } from '../token-manager/compatibility.js';
import {
  INODES_PER_SEGMENT,
  type Revocation,
  type StatusNote,
  TokenClass,
  type TokenItem,
  TokenMode,
} from '../token-manager/token.js';
import { allPointers } from './block-map.js';
import { ConcurrentWriting, tailInDoubt } from './concurrent-writing.js';
import { Inode } from './inode.js';
import { InodeFile } from './inode-file.js';
import { decodeInode, directoryFault, FREE_INODE, type InodeFields } from './inode-format.js';
import { holdBack } from './inode-image.js';
import { InodeWriter, indirectHomes } from './inode-writer.js';
import { FIRST_USER_INODE, INODE_FILE, segmentOf } from './layout.js';
import { keyOf, type SectorKey } from './log/logged-sectors.js';
import { corrupt } from './sector.js';
import type { Volume } from './volume.js';
import { loadXattrBlock } from './xattrs.js';

/** Inodes read at once around the one that is wanted. */
export const READ_RUN = 16;
/** Read at once ahead of use. */
const AHEAD_RUN = 64;
/** Between attempts to write out what a revoke waits for; doubles. */
const REVOKE_RETRY_MIN_MS = 20;
const REVOKE_RETRY_MAX_MS = 2_000;

export const staleError = ({ ino }: Inode, op: string): FsError =>
  new FsError('staleHandle', { op, object: `inode ${ino}`, detail: 'has been removed' });

interface RunRead {
  readonly first: number;
  readonly end: number;
  /** Something in the run was written, created or given up since the read began: what it brings may be old. */
  stale: boolean;
  /** Resolves when it has ended, however. */
  readonly ended: Promise<void>;
}

export class InodeTable {
  readonly #volume: Volume;
  readonly #inodes = new Map<InodeNumber, Inode>();
  readonly #reads = new Set<RunRead>();
  readonly #file: InodeFile;
  readonly #writer: InodeWriter;
  /** Files that other nodes write to side by side with this one. */
  readonly concurrent: ConcurrentWriting;
  #round = 0;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#writer = new InodeWriter(volume, this);
    this.concurrent = new ConcurrentWriting(volume);
    this.#file = new InodeFile(volume, this);
    volume.parts.tokens.setRevokeHandler(TokenClass.status, {
      revoke: (revocation) => this.#revoke(revocation),
      working: () => null,
      writesConcurrently: (_object, range) =>
        range.end - range.start === SECTOR_BYTES &&
        this.concurrent.mayWriteConcurrently(inodeNumber(range.start / SECTOR_BYTES)),
      gathered: (object, range, notes) => this.concurrent.gathered(object, range, notes),
    });
  }

  start(): Promise<void> {
    return this.#file.start();
  }

  get size(): number {
    return this.#inodes.size;
  }
  all(): IterableIterator<Inode> {
    return this.#inodes.values();
  }

  /** The inode when its fields may be believed, else undefined: load it, with its status token pinned. */
  get(ino: InodeNumber): Inode | undefined {
    const inode = this.#inodes.get(ino);
    if (!inode?.valid || inode.needsXattrBlock) return undefined;
    inode.usedRound = this.#round;
    return inode;
  }

  /** In memory, whether its fields may be believed or not. */
  peek(ino: InodeNumber): Inode | undefined {
    return this.#inodes.get(ino);
  }

  /** `get`, for who has its status pinned. */
  getPinned(ino: InodeNumber): Inode | undefined {
    const inode = this.get(ino);
    return inode === undefined ? undefined : this.concurrent.settled(inode);
  }

  /**
   * For the page cache's calls, which come from operations that have the status token pinned, and from read-ahead, which has
   * not: the inode, unless its token is gone. An inode that only fell out of memory is read again.
   */
  async getOrReload(ino: InodeNumber): Promise<Inode | undefined> {
    const present = this.get(ino);
    if (present !== undefined) return present;
    const pins = this.#volume.parts.tokens.tryPin([this.statusItem(ino, TokenMode.shared)]);
    if (pins === null) return undefined;
    try {
      return await this.load(ino);
    } finally {
      pins.release();
    }
  }

  /** The token request for one inode. `wide`: the whole segment, for a node that creates in it. */
  statusItem(ino: InodeNumber, mode: TokenMode, wide = false): TokenItem {
    const start = ino * SECTOR_BYTES;
    const required = { start, end: start + SECTOR_BYTES };
    const run = wide ? INODES_PER_SEGMENT : ino < 16 ? 1 : this.#volume.settings.inodeRun;
    const first = Math.floor(ino / run) * run;
    const desired = { start: first * SECTOR_BYTES, end: (first + run) * SECTOR_BYTES };
    return { class: TokenClass.status, object: segmentOf(ino), mode, required, desired };
  }

  /** With the status token pinned (shared at least). A free or never written inode has type FREE_INODE. */
  async load(ino: InodeNumber): Promise<Inode> {
    for (;;) {
      const present = this.getPinned(ino);
      if (present !== undefined) return present;
      const incomplete = this.#inodes.get(ino);
      if (incomplete?.valid) {
        await loadXattrBlock(this.#volume, incomplete);
        continue;
      }
      const under = this.#beingRead(ino);
      if (under === undefined) await this.#readRun(ino);
      else await under.ended;
    }
  }

  /** A read that may bring it: those who go through neighbours side by side read a run once. */
  #beingRead(ino: InodeNumber): RunRead | undefined {
    for (const run of this.#reads) if (run.first <= ino && ino < run.end && !run.stale) return run;
    return undefined;
  }

  /** A number from InodeNumbers becomes an inode, in memory; exclusive status pinned. The caller fills it in and commits. */
  create(ino: InodeNumber, home: Inode['home']): Inode {
    let inode = this.#inodes.get(ino);
    if (inode !== undefined && inode.openCount > 0) inode = this.#replace(inode);
    if (inode === undefined) {
      inode = this.#make(ino);
    }
    inode.home = home;
    inode.forgetRoots();
    inode.valid = true;
    inode.usedRound = this.#round;
    this.#spoilReads(ino);
    return inode;
  }

  #make(ino: InodeNumber): Inode {
    const inode = new Inode(ino);
    inode.keeper = this;
    this.#inodes.set(ino, inode);
    return inode;
  }

  /** Another thread may remember what it knows of it. */
  #moved(inode: Inode): void {
    this.#volume.parts.stamps?.changed(inode.ino);
  }

  holdBack(inode: Inode): void {
    this.#moved(inode);
    holdBack(this.#volume, inode);
  }

  miscounted({ ino }: Inode): void {
    this.#volume.counters.add('fs.subBlocksMiscounted');
    this.#volume.parts.logger.error({ ino }, 'an inode has more sub-blocks than it says (fs check --repair)');
  }

  markDirty(inode: Inode, core: boolean): void {
    if (!inode.dirty) inode.dirtySinceMs = this.#volume.clock.nowMs();
    inode.dirty = true;
    inode.dirtyCore ||= core;
    this.#moved(inode);
  }

  /** What hits did to an attached file, merged into its inode, and remembered as dirty. */
  refresh(inode: Inode): void {
    if (!inode.stateAhead) return;
    if (inode.concurrent) {
      if (inode.mergeState() === 'nothing' || inode.concurrentChanges) return;
      inode.concurrentChanges = true;
      inode.concurrentSinceMs = this.#volume.clock.nowMs();
      return;
    }
    const merged = inode.mergeState(() => holdBack(this.#volume, inode));
    if (merged !== 'nothing') this.markDirty(inode, merged === 'size');
  }

  /** The page cache's side of an inode; attached as long as it is open, directories as long as they are in the table. */
  attach(inode: Inode): CachedFile {
    if (inode.file !== null) return inode.file;
    if (inode.replaced) throw staleError(inode, 'open');
    this.#moved(inode);
    const { sizeBytes, mtimeNs, ctimeNs } = inode;
    inode.file = this.#volume.cache.attach(inode.ino, { sizeBytes, mtimeNs, ctimeNs });
    inode.seenChanges = inode.file.state.changes;
    inode.file.setSizeIsFloor(inode.valid && inode.concurrent);
    if (inode.valid) inode.pushState();
    return inode.file;
  }
  detach(inode: Inode): void {
    if (inode.file === null) return;
    this.refresh(inode);
    inode.file.setStatusMode(TokenMode.none);
    inode.file.detach();
    inode.file = null;
  }

  /** Whether the cache holds something of the inode that the devices don't. */
  hasDirtyData(inode: Inode): boolean {
    return (inode.file ?? this.#volume.cache.get(inode.ino))?.dirty ?? false;
  }

  /** Everything of them comes to its place, data first. */
  writeOut(inodes: Iterable<Inode>): Promise<void> {
    return this.#writer.writeOut(inodes);
  }
  /** So much of it is held back that one transaction should expose it before there is more. */
  holdsMuch(inode: Inode): boolean {
    const { stepExtentsMax, stepIndirectsMax } = this.#volume;
    return (
      inode.reserved.length + inode.pendingFrees.length >= stepExtentsMax || inode.dirtyIndirects >= stepIndirectsMax
    );
  }
  /** Before an operation that will hold back more, with nothing pinned: keeps what one transaction exposes bounded. */
  async makeRoom(inode: Inode): Promise<void> {
    if (this.holdsMuch(inode)) await this.#writer.expose([inode]);
  }

  /** Their data comes to its place durably, and what exposes it to the log, not yet durably. */
  expose(inodes: Iterable<Inode>): Promise<void> {
    return this.#writer.expose(inodes);
  }
  /** Those whose write-out gives space or numbers back. */
  writeOutFreeing(): Promise<void> {
    const freeing: Inode[] = [];
    for (const inode of this.#inodes.values())
      if (inode.dirty && (inode.pendingFrees.length > 0 || (inode.type === FREE_INODE && inode.openCount === 0)))
        freeing.push(inode);
    return this.#writer.writeOut(freeing);
  }
  async exposeAll(): Promise<void> {
    const due: Inode[] = [];
    for (const inode of this.#inodes.values()) {
      if (!inode.valid) continue;
      this.refresh(inode);
      if (inode.unexposed || inode.hasUnflushed) due.push(inode);
    }
    await this.#writer.expose(due);
  }
  async writeOutAll(): Promise<void> {
    await this.writeOutOlderThan(Number.POSITIVE_INFINITY);
  }
  /** Dirty since before `ms` on the clock. */
  async writeOutOlderThan(ms: number): Promise<void> {
    const due: Inode[] = [];
    for (const inode of this.#inodes.values()) {
      if (!inode.valid) continue;
      this.refresh(inode);
      if (inode.dirty && inode.dirtySinceMs <= ms) due.push(inode);
    }
    await this.#writer.writeOut(due);
  }

  /** Written as free, or not worth its memory: out of the table. */
  drop(inode: Inode): void {
    inode.valid = false;
    inode.image = null;
    this.#spoilReads(inode.ino);
    // The number's present life goes on from where this one was.
    if (!inode.replaced) this.#forgetVersions(inode);
    if (inode.openCount > 0) return;
    this.detach(inode);
    if (!inode.replaced) this.#inodes.delete(inode.ino);
  }

  /** Nobody knows what others do to its sectors from here on. */
  #forgetVersions(inode: Inode): void {
    const { sectors, logged } = this.#volume;
    sectors.forget(keyOf(inode.home));
    logged.forget(logged.keysIn(inode.ino, WHOLE));
    const { blocks, indirects } = allPointers(inode);
    for (const home of indirects) sectors.forget(keyOf(home));
    if (!inode.isDirectory) return;
    for (const { pointer } of blocks)
      for (let at = 0; at < pointer.count; at++)
        sectors.forget(keyOf({ nsd: pointer.nsd, sector: pointer.sector + at }));
  }

  /** The same of numbers that are nobody's yet: whoever makes a copy good writes them too. */
  #forgetNumbers(first: number, end: number): void {
    for (let number = Math.max(first, FIRST_USER_INODE); number < end; number++) {
      const home = this.#file.locate(inodeNumber(number));
      if (home) this.#volume.sectors.forget(keyOf(home));
    }
  }

  /** Clean inodes that nobody used for three rounds, the longest in the table first, until there are few enough. */
  trim(): void {
    this.#round++;
    let excess = this.#inodes.size - this.#volume.settings.inodesCachedMax;
    if (excess <= 0) return;
    for (const inode of this.#inodes.values()) {
      if (excess <= 0) return;
      if (inode.concurrent || inode.dirty || inode.openCount > 0 || inode.writing !== null || inode.structureBusy)
        continue;
      if (this.#writer.isDue(inode)) continue;
      if (indirectHomes(inode).some((home) => this.#volume.sectors.isUndurable(keyOf(home)))) continue;
      if (this.#round - inode.usedRound < 3) continue;
      this.drop(inode);
      excess--;
    }
  }

  // Where inodes are

  /** Pointers of the inode file as this node knows them: right, and of what others have added lately some may be missing. */
  get inodeFile(): Pick<Inode, 'area' | 'flags' | 'generation'> {
    return this.#file.inode;
  }
  locate(ino: InodeNumber): Inode['home'] | null | undefined {
    return this.#file.locate(ino);
  }
  find(ino: InodeNumber): Promise<Inode['home'] | null> {
    return this.#file.find(ino);
  }
  ensureMapped(inos: readonly InodeNumber[]): Promise<Inode['home'][]> {
    return this.#file.ensureMapped(inos);
  }

  #decode(ino: InodeNumber, sector: Uint8Array): InodeFields | null {
    const fields = decodeInode(ino, sector, this.#volume.fsId, this.#volume.geometry, this.#volume.checksums);
    if (fields === null) return null;
    const fault = directoryFault(fields.type, { sizeBytes: fields.sizeBytes, depth: fields.directoryDepth });
    if (fault !== null) throw corrupt('inode.read', `inode ${ino}`, fault);
    return fields;
  }

  // Reading

  /**
   * Brings what is held and not in memory, from `first` on, whose status is pinned. @returns whether the last one is in use, and was to be had.
   */
  async readAhead(first: InodeNumber, end: number): Promise<boolean> {
    for (let at: number = first; at < end; ) {
      const ino = inodeNumber(at);
      const under = this.#beingRead(ino);
      if (under !== undefined) await under.ended;
      else if (this.#inodes.get(ino)?.valid !== true) {
        if ((await this.#file.locateLoaded(ino)) === null || !(await this.#readRun(ino, 'ahead'))) return false;
        at = (Math.floor(at / AHEAD_RUN) + 1) * AHEAD_RUN;
        continue;
      }
      at++;
    }
    return this.#inodes.get(inodeNumber(end - 1))?.valid === true;
  }

  /** `alone`: not its neighbours. `ahead`: it isn't pinned, and not read unless it is held. @returns whether it was read. */
  async #readRun(ino: InodeNumber, how: 'run' | 'alone' | 'ahead' = 'run'): Promise<boolean> {
    // Usually known: then the run is entered in the turn in which nobody else was found reading it.
    const home = this.#file.locate(ino) ?? (await this.#file.locateLoaded(ino));
    if (!home) throw new FsError('staleHandle', { op: 'inode.read', object: `inode ${ino}`, detail: 'does not exist' });
    const held = this.#volume.parts.tokens.heldRange(
      TokenClass.status,
      segmentOf(ino),
      ino * SECTOR_BYTES,
      TokenMode.shared,
    );
    if (how === 'ahead' && held === null) return false;
    const length = how === 'ahead' ? AHEAD_RUN : READ_RUN;
    const aligned = Math.floor(ino / length) * length;
    // Pinned but being revoked: the token client does not show it as held; the pinned one alone is safe.
    const narrow = held === null || how === 'alone';
    const first = narrow ? ino : Math.max(aligned, Math.ceil(held.start / SECTOR_BYTES));
    const end = narrow ? ino + 1 : Math.min(aligned + length, Math.floor(held.end / SECTOR_BYTES));
    const ended = deferred<void>();
    const run: RunRead = { first, end, stale: false, ended: ended.promise };
    this.#reads.add(run);
    try {
      const read = await this.#volume.readSectors(
        home.nsd,
        home.sector - (ino - first),
        end - first,
        (bytes, versions) => (run.stale ? null : { fields: this.#decodeRun(ino, run, bytes), versions }),
      );
      if (read === null || run.stale) return false;
      for (const [number, value] of read.fields)
        this.#install(inodeNumber(number), value, read.versions[number - first]!, home, ino);
      this.#volume.counters.add('fs.inodeReads');
      return true;
    } catch (error) {
      // One that can't be read takes none of its neighbours along.
      if (narrow || how === 'ahead' || !FsError.is(error) || error.reason !== 'checksumMismatch') throw error;
      this.#reads.delete(run);
      return await this.#readRun(ino, 'alone');
    } finally {
      this.#reads.delete(run);
      ended.resolve();
    }
  }

  #decodeRun(wanted: InodeNumber, run: RunRead, bytes: Uint8Array): Map<number, InodeFields | null> {
    const decoded = new Map<number, InodeFields | null>();
    for (let number = run.first; number < run.end; number++) {
      const sector = bytes.subarray((number - run.first) * SECTOR_BYTES, (number - run.first + 1) * SECTOR_BYTES);
      try {
        const fields = this.#decode(inodeNumber(number), sector);
        // Free neighbours are not worth the memory.
        if (number === wanted || (fields !== null && fields.type !== FREE_INODE)) decoded.set(number, fields);
      } catch (error) {
        if (number === wanted) throw error;
      }
    }
    return decoded;
  }

  #install(
    ino: InodeNumber,
    fields: InodeFields | null,
    version: number,
    near: Inode['home'],
    wanted: InodeNumber,
  ): void {
    if (ino === INODE_FILE) return;
    let inode = this.#inodes.get(ino);
    if (inode?.valid) return;
    const isOther = fields !== null && inode !== undefined && fields.generation !== inode.generation;
    if (inode !== undefined && isOther && inode.openCount > 0) inode = this.#replace(inode);
    if (inode === undefined) {
      inode = this.#make(ino);
    }
    if (fields === null) inode.type = FREE_INODE;
    else inode.assign(fields);
    inode.home = { nsd: nsdIndex(near.nsd), sector: near.sector + (ino - wanted) };
    this.#volume.sectors.learn(keyOf(inode.home), version);
    inode.tailDoubtful = tailInDoubt(this.#volume, inode);
    inode.valid = true;
    inode.pushState();
    this.concurrent.installed(inode);
  }

  /**
   * The number has another life. Handles of the one before keep its object and are stale from now on; its entry in the cache map goes,
   * or their hits would be at the other file's bytes.
   */
  #replace(inode: Inode): undefined {
    inode.valid = false;
    inode.replaced = true;
    this.detach(inode);
    this.#inodes.delete(inode.ino);
  }

  /** An inode in a run that is being read changed: the read begins anew. */
  #spoilReads(ino: InodeNumber): void {
    for (const run of this.#reads) if (run.first <= ino && ino < run.end) run.stale = true;
  }
  wasWritten(ino: InodeNumber): void {
    this.#spoilReads(ino);
  }

  // Revokes

  async #revoke(revocation: Revocation): Promise<readonly StatusNote[]> {
    const { object, range } = revocation;
    const base = object * INODES_PER_SEGMENT;
    const first = Math.max(base, Math.floor(range.start / SECTOR_BYTES));
    const end = Math.min(base + INODES_PER_SEGMENT, Math.ceil(Math.min(range.end, RANGE_END) / SECTOR_BYTES));
    const leaving = this.#volume.kernel?.statusLeaves(first, end, revocation.keep === TokenMode.shared) ?? null;
    const left = leaving === null ? null : await leaving;
    const giving = this.concurrent.giving(first, end);
    try {
      return await this.#giveUp(revocation, first, end);
    } finally {
      giving.end();
      left?.();
    }
  }

  async #giveUp(revocation: Revocation, first: number, end: number): Promise<readonly StatusNote[]> {
    const { keep } = revocation;
    const concerned: Inode[] = [];
    if (!covers(keep, TokenMode.shared)) this.#volume.parts.stamps?.changedRun(first, end);
    for (const run of this.#reads) if (run.first < end && first < run.end) run.stale = true;
    for (let number = first; number < end; number++) {
      const inode = number === INODE_FILE ? this.#file.inode : this.#inodes.get(inodeNumber(number));
      if (inode?.valid) concerned.push(inode);
    }
    for (const inode of concerned) {
      const stays = keep === TokenMode.shared && this.concurrent.stays(inode, keep);
      inode.file?.setStatusMode(stays ? TokenMode.shared : TokenMode.none);
    }
    await this.#clean(revocation, first, end, concerned);
    const leaving = concerned.filter((inode) => keep === TokenMode.none || !this.concurrent.stays(inode, keep));
    // Read-ahead may still be using the pointers; it needs no token and ends by itself.
    for (const inode of leaving) await inode.transfersEnded();
    const notes = this.concurrent.notesOf(leaving, first, end, keep);
    for (const inode of leaving) {
      if (inode === this.#file.inode) inode.valid = false;
      else this.drop(inode);
    }
    if (keep === TokenMode.none) this.#forgetNumbers(first, end);
    if (keep === TokenMode.concurrentWrite)
      for (const inode of concerned) if (inode.valid) this.concurrent.cameDown(inode);
    if (keep === TokenMode.none) this.#volume.counters.add('fs.statusRevokes');
    return notes;
  }

  /** Nothing new can become dirty now; what is dirty goes out, with its data first. */
  async #clean(revocation: Revocation, first: number, end: number, concerned: Inode[]): Promise<void> {
    let retryMs = REVOKE_RETRY_MIN_MS;
    for (;;) {
      try {
        if (revocation.keep !== TokenMode.none)
          for (const ino of this.concurrent.untaken(first, end)) {
            const inode = await this.load(ino);
            if (!concerned.includes(inode)) concerned.push(inode);
          }
        for (const inode of concerned) this.refresh(inode);
        // Not valid any more: this node was fenced meanwhile, and what was dirty is lost.
        const unclean = concerned.filter(
          (inode) => inode.valid && (inode.writing !== null || this.#writer.isDue(inode)),
        );
        if (unclean.length > 0) {
          await Promise.all(unclean.filter((inode) => inode.concurrent).map((inode) => this.concurrent.flush(inode)));
          await this.#writer.writeOut(unclean.filter((inode) => !inode.concurrent));
        } else if (!(await this.#makeDurable(first, end, concerned))) return;
      } catch (error) {
        if (this.#volume.fenced) return;
        const { object, range } = revocation;
        // Without the writes the token can't leave: tried until they succeed, or this node is fenced and drops everything.
        this.#volume.parts.logger.warn(
          { object, range, error: String(error) },
          'a status revoke waits: write-out fails',
        );
        await sleep(this.#volume.clock, retryMs);
        retryMs = Math.min(2 * retryMs, REVOKE_RETRY_MAX_MS);
      }
    }
  }

  /**
   * What was written in place of these numbers, for inodes that are not in memory any more, too. False: there was nothing to be done, and so nothing to be
   * waited for.
   */
  async #makeDurable(first: number, end: number, concerned: readonly Inode[]): Promise<boolean> {
    const { sectors, log } = this.#volume;
    const keys: SectorKey[] = [];
    for (let number = first; number < end; number++) {
      const home = this.#file.locate(inodeNumber(number));
      if (home) keys.push(keyOf(home));
    }
    for (const inode of concerned) if (inode.valid) for (const home of indirectHomes(inode)) keys.push(keyOf(home));
    const waiting = keys.filter((key) => sectors.isUndurable(key));
    if (waiting.length === 0 || log === null) return false;
    await log.makeDurable(waiting);
    return true;
  }
}
