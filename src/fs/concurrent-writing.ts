/**
 * Several nodes writing one file side by side, under concurrent-write status tokens.
 *
 * In that time nobody changes the inode: pointers are what they were when it began, each node knows the size as a lower bound (its own writes grow it
 * in memory), and its own times. A node that gives the token up writes its data out durably and tells the token server the size and times it has come to (a
 * note); who has the status exclusively next gets all notes with the grant and takes them into the inode, before anything else happens to it. What
 * needs more than that (space, the true size, attributes) is done with exclusive status, which ends the sharing for a moment.
 *
 * Invariants: an inode that is written concurrently is clean, and as its sector says but for what a note will tell; a note that was told is remembered
 * until the inode is seen shared or exclusively. A note counts only for the version of the sector that it was made on. Needs no token, but for `settle`.
 * Fault model: what a node wrote and had not synced is lost with it, the size with the data. The tail behind the size that survives is then in doubt
 * (file-tail.ts): so whoever comes to exclusive status looks at the epoch anew.
 */
import { FsError } from '../common/errors.js';
import { type InodeNumber, inodeNumber } from '../common/ids.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import { meet } from '../token-manager/compatibility.js';
import { joinNotes } from '../token-manager/status-notes.js';
import { INODES_PER_SEGMENT, type StatusNote, TokenClass, TokenMode } from '../token-manager/token.js';
import { loadPointers } from './block-map.js';
import { isReserved, reserve } from './file-space.js';
import { FileType } from './file-system-api.js';
import { FILE_BYTES_MAX } from './indirect-format.js';
import type { Inode } from './inode.js';
import { FREE_INODE } from './inode-format.js';
import { holdBack } from './inode-image.js';
import { segmentOf } from './layout.js';
import { keyOf } from './log/logged-sectors.js';
import { pinInodes } from './pinning.js';
import { flushWritten } from './unflushed.js';
import type { Volume } from './volume.js';

/** Reserved in front of a writer that others write beside: so that it doesn't end the sharing for every block. */
const AHEAD_BYTES_MIN = 4 * BLOCK_BYTES;
const AHEAD_BYTES_MAX = 64 * BLOCK_BYTES;
/** And not more than one part of so many of the file system: what is not used stays with the file for a while. */
const AHEAD_SHARE = 128;
/** Inodes with notes told or changes made in a round of the background. */
const SETTLED_AT_ONCE = 64;

const later = (a: bigint, b: bigint): bigint => (a > b ? a : b);

/** Whether there is space behind its size that a node may have written to. */
const mayHideBytes = (inode: Inode): boolean =>
  inode.type === FileType.regular && !inode.isInline && inode.allocatedSubBlocks > 0;

/** Whether a node may have died since the inode's sector was written that had written behind the size. */
export const tailInDoubt = (volume: Volume, inode: Inode): boolean =>
  mayHideBytes(inode) && inode.tailEpoch !== volume.parts.epoch();

export class ConcurrentWriting {
  readonly #volume: Volume;
  /** That came with a grant, of inodes that are not in memory. */
  readonly #untaken = new Map<InodeNumber, StatusNote>();
  /** Of which this node told a note, with the time: until their status is seen to be shared or exclusive. */
  readonly #told = new Map<InodeNumber, number>();
  /** Revocations that are being served: [first, end) of inode numbers. */
  readonly #giving = new Set<{ readonly first: number; readonly end: number }>();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  #heldMode(ino: InodeNumber): TokenMode {
    return this.#volume.parts.tokens.heldMode(TokenClass.status, segmentOf(ino), ino * SECTOR_BYTES);
  }

  /** Whether what this node wrote may be known to nobody who would write it down: the next sync takes care of it. */
  isTold(ino: InodeNumber): boolean {
    return this.#told.has(ino);
  }

  // Coming and going

  /** In the turn in which an inode has been read under its token. */
  installed(inode: Inode): void {
    const mode = this.#heldMode(inode.ino);
    this.#setConcurrent(inode, mode === TokenMode.concurrentWrite);
    if (mode !== TokenMode.concurrentWrite) this.#told.delete(inode.ino);
    if (mode !== TokenMode.exclusive) return;
    const note = this.#untaken.get(inode.ino);
    this.#untaken.delete(inode.ino);
    if (note !== undefined) this.#takeIn(inode, note);
  }

  #setConcurrent(inode: Inode, concurrent: boolean): void {
    if (concurrent) this.#volume.counters.add('fs.concurrentWrites');
    inode.concurrent = concurrent;
    inode.concurrentChanges = false;
    inode.concurrentBytes = inode.sizeBytes;
    (inode.file ?? this.#volume.cache.get(inode.ino))?.setSizeIsFloor(concurrent);
  }

  /** Of a regular file that is open here for writing, with space of its own: then beside others, too. */
  mayWriteConcurrently(ino: InodeNumber): boolean {
    const inode = this.#volume.inodes.peek(ino);
    if (inode?.valid !== true || inode.writers === 0) return false;
    return inode.holdsDataBack && inode.nlink > 0 && !inode.isInline && !inode.tailDoubtful;
  }

  /** Exclusive status has been written out, and is concurrent-write from here on. */
  cameDown(inode: Inode): void {
    this.#setConcurrent(inode, true);
  }

  /** TokenClientApi: exclusive from here on. */
  gathered(
    segment: number,
    range: { readonly start: number; readonly end: number },
    notes: readonly StatusNote[],
  ): void {
    const base = segment * INODES_PER_SEGMENT;
    const noted = new Map<InodeNumber, StatusNote>();
    for (const note of notes) noted.set(inodeNumber(note.offsetBytes / SECTOR_BYTES), note);
    const first = Math.max(base, Math.floor(range.start / SECTOR_BYTES));
    const end = Math.min(base + INODES_PER_SEGMENT, Math.ceil(range.end / SECTOR_BYTES));
    for (let number = first; number < end; number++) {
      const ino = inodeNumber(number);
      const inode = this.#volume.inodes.peek(ino);
      const note = noted.get(ino);
      if (inode?.valid !== true || this.#isGiving(ino)) {
        if (note !== undefined) this.#keep(ino, note);
      } else if (inode.concurrent || note !== undefined) this.#comeUp(inode, note);
    }
  }

  /** With status pinned: a grant that crossed a revocation may have brought more than was seen at the time, and notes with it. */
  settled(inode: Inode): Inode {
    const note = this.#untaken.get(inode.ino);
    if (!inode.concurrent && note === undefined) return inode;
    if (this.#heldMode(inode.ino) !== TokenMode.exclusive) return inode;
    this.#untaken.delete(inode.ino);
    this.#comeUp(inode, note);
    return inode;
  }

  #comeUp(inode: Inode, note: StatusNote | undefined): void {
    const { ino, file } = inode;
    // No hit grows it meanwhile; whoever comes with the token publishes again.
    file?.setStatusMode(TokenMode.none);
    this.#volume.inodes.refresh(inode);
    const own = inode.concurrentChanges ? this.#noteOf(inode) : undefined;
    if (inode.concurrent) this.#setConcurrent(inode, false);
    this.#told.delete(ino);
    const both = own !== undefined && note !== undefined ? joinNotes(own, note) : (own ?? note);
    if (both !== undefined) this.#takeIn(inode, both);
    // What another writer left behind the end when it died has not been looked at by anybody.
    inode.tailDoubtful ||= tailInDoubt(this.#volume, inode);
  }

  /** Before anything else is logged about it: from here on the log can't tell of the inode without telling of this. */
  #takeIn(inode: Inode, note: StatusNote): void {
    const { inodes, sectors } = this.#volume;
    if (inode.type === FREE_INODE || sectors.version(keyOf(inode.home)) !== note.version || inode.unexposed) return;
    inode.file?.setStatusMode(TokenMode.none);
    inode.sizeBytes = Math.max(inode.sizeBytes, note.sizeBytes);
    inode.mtimeNs = note.mtimeNs;
    inode.ctimeNs = later(inode.ctimeNs, note.ctimeNs);
    inode.image = null;
    holdBack(this.#volume, inode);
    inodes.markDirty(inode, true);
    inode.pushState();
    this.#volume.counters.add('fs.concurrentSizesTaken');
  }

  #noteOf({ ino, home, sizeBytes, mtimeNs, ctimeNs }: Inode): StatusNote {
    const version = this.#volume.sectors.version(keyOf(home));
    return { offsetBytes: ino * SECTOR_BYTES, version, sizeBytes, mtimeNs, ctimeNs };
  }

  #keep(ino: InodeNumber, note: StatusNote): void {
    const before = this.#untaken.get(ino);
    this.#untaken.set(ino, before === undefined ? note : joinNotes(before, note));
  }

  // Revocations

  #isGiving(ino: number): boolean {
    for (const { first, end } of this.#giving) if (first <= ino && ino < end) return true;
    return false;
  }
  giving(first: number, end: number): { end: () => void } {
    const range = { first, end };
    this.#giving.add(range);
    return { end: () => void this.#giving.delete(range) };
  }

  /** In a range of which something stays: what came with the grant has to be in the inodes first. */
  untaken(first: number, end: number): InodeNumber[] {
    return [...this.#untaken.keys()].filter((ino) => first <= ino && ino < end);
  }

  /** Its data is on the NSDs, durably: what a note tells may be written down by anybody. */
  async flush(inode: Inode): Promise<void> {
    const { cache, inodes } = this.#volume;
    do await (inode.file ?? cache.get(inode.ino))?.flush();
    while (!(await flushWritten(this.#volume, [inode], 'exposure')));
    inodes.refresh(inode);
  }

  /** Whether the inode stays in memory when at most `keep` is left of its token. */
  stays(inode: Inode, keep: TokenMode): boolean {
    return meet(this.#heldMode(inode.ino), keep) !== TokenMode.none;
  }

  /** In the turn in which they leave memory: what the token server is to know. */
  notesOf(leaving: readonly Inode[], first: number, end: number, keep: TokenMode): StatusNote[] {
    const notes: StatusNote[] = [];
    for (const inode of leaving) {
      if (!inode.concurrent || !inode.concurrentChanges) continue;
      const note = this.#noteOf(inode);
      notes.push(note);
      this.#told.set(inode.ino, this.#volume.clock.nowMs());
      // A newer grant has come meanwhile, and this note was not with it.
      if (this.#heldMode(inode.ino) === TokenMode.exclusive) this.#keep(inode.ino, note);
      inode.concurrentChanges = false;
    }
    if (keep !== TokenMode.none) return notes;
    for (const ino of this.untaken(first, end)) {
      notes.push(this.#untaken.get(ino)!);
      if (this.#heldMode(ino) !== TokenMode.exclusive) this.#untaken.delete(ino);
    }
    return notes;
  }

  // Writing

  /**
   * With its status pinned, concurrent-write or better: whether a write to the range changes nothing but data, size and times. Pointers stay as they are
   * until the pins are released.
   */
  async mayWrite(inode: Inode, range: { readonly start: number; readonly end: number }): Promise<boolean> {
    if (!inode.concurrent || !inode.holdsDataBack || inode.isInline || inode.tailDoubtful || inode.settling > 0)
      return false;
    for (let block = Math.floor(range.start / BLOCK_BYTES); block * BLOCK_BYTES < range.end; block++)
      await loadPointers(this.#volume, inode, block);
    return isReserved(inode, range);
  }

  /** After a write that had to have the status exclusively, though others write to the file: space for the next ones. */
  async reserveAhead(inode: Inode, end: number): Promise<void> {
    if (inode.isInline) return;
    const goesOn = inode.aheadEnd > 0 && Math.abs(end - inode.aheadEnd) <= 2 * BLOCK_BYTES;
    const blocks = this.#volume.geometry.nsdBlocks.reduce((sum, count) => sum + count, 0);
    const most = Math.min(AHEAD_BYTES_MAX, Math.floor(blocks / AHEAD_SHARE) * BLOCK_BYTES);
    inode.aheadBytes = Math.min(most, goesOn ? 2 * inode.aheadBytes : AHEAD_BYTES_MIN);
    const wanted = { start: end, end: Math.min(FILE_BYTES_MAX, end + inode.aheadBytes) };
    if (wanted.start >= wanted.end) return;
    inode.aheadEnd = wanted.end;
    try {
      await reserve(this.#volume, inode, wanted);
    } catch (error) {
      // The writer has what it needs.
      if (!FsError.is(error) || error.reason !== 'noSpace') throw error;
    }
  }

  // Settling

  /**
   * Size and times of what this node wrote beside others come into the inodes: those changed since before `ms` on the clock, this node's own among
   * them. The log is not forced.
   */
  async settle(ms: number, limit = SETTLED_AT_ONCE): Promise<void> {
    const due: InodeNumber[] = [];
    for (const [ino, toldAtMs] of this.#told) if (toldAtMs <= ms) due.push(ino);
    for (const inode of this.#volume.inodes.all()) {
      if (!inode.concurrent) continue;
      this.#volume.inodes.refresh(inode);
      if (inode.concurrentChanges && inode.concurrentSinceMs <= ms) due.push(inode.ino);
    }
    for (const ino of due.slice(0, limit)) await this.settleInode(ino);
  }

  async settleInode(ino: InodeNumber): Promise<void> {
    const pins = await pinInodes(this.#volume, [{ ino, status: TokenMode.shared }], undefined);
    try {
      await this.#volume.inodes.load(ino);
      // Seen shared or exclusively: whoever had it exclusively has it in place, or it is here and will be.
      this.#told.delete(ino);
    } finally {
      pins.release();
    }
  }

  /** Fenced: what nobody will write down. */
  lost(): InodeNumber[] {
    return [...this.#told.keys()];
  }
}
