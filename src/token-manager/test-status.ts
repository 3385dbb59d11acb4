/**
 * For tests: what nodes do with status tokens, as far as sizes go. Every sector of a status object is an inode with a size on a disk that everybody
 * sees; nodes raise sizes, exclusively or beside one another, and tell what the token protocol wants them to tell.
 *
 * Judged (I13): whoever has pinned an inode's status shared or exclusively knows every size that a node that is still alive has written.
 * Fault model: what only dead nodes knew may be lost.
 */
import type { ByteRange } from '../common/byte-range.js';
import { SECTOR_BYTES } from '../common/units.js';
import { meet } from './compatibility.js';
import { joinNotes } from './status-notes.js';
import { type StatusNote, type TokenItem, TokenMode, type TokenObject } from './token.js';

interface OnDisk {
  version: number;
  size: number;
}
interface InMemory {
  version: number;
  size: number;
  /** Changed beside others: a note is due. */
  shared: boolean;
  /** Changed exclusively: to be written. */
  dirty: boolean;
}

const keyOf = (object: TokenObject, sector: number): string => `${object}/${sector}`;
const sectorsOf = ({ start, end }: ByteRange, sectors: number): number[] => {
  const found: number[] = [];
  for (let sector = Math.floor(start / SECTOR_BYTES); sector * SECTOR_BYTES < end && sector < sectors; sector++)
    found.push(sector);
  return found;
};

/** What all nodes see. */
export class StatusDisk {
  readonly #inodes = new Map<string, OnDisk>();
  readonly nodes = new Set<StatusNode>();
  lastSize = 0;

  at(key: string): OnDisk {
    let inode = this.#inodes.get(key);
    if (inode === undefined) {
      inode = { version: 1, size: 0 };
      this.#inodes.set(key, inode);
    }
    return inode;
  }
}

/** One life of a node. */
export class StatusNode {
  readonly #disk: StatusDisk;
  readonly #sectors: number;
  readonly #heldMode: (object: TokenObject, offset: number) => TokenMode;
  readonly #inodes = new Map<string, InMemory>();
  /** Came with a grant and is in no inode in memory yet. */
  readonly #pending = new Map<string, StatusNote>();
  readonly #giving: { readonly object: TokenObject; readonly range: ByteRange }[] = [];
  readonly written = new Map<string, number>();

  constructor(disk: StatusDisk, sectors: number, heldMode: (object: TokenObject, offset: number) => TokenMode) {
    this.#disk = disk;
    this.#sectors = sectors;
    this.#heldMode = heldMode;
    disk.nodes.add(this);
  }

  die(): void {
    this.#disk.nodes.delete(this);
  }

  /** @returns what is wrong, or null. */
  pinned({ object, required, mode }: TokenItem): string | null {
    for (const sector of sectorsOf(required, this.#sectors)) {
      const key = keyOf(object, sector);
      const inode = this.#load(object, sector);
      const held = this.#heldMode(object, sector * SECTOR_BYTES);
      if (held === TokenMode.exclusive) this.#settle(key, inode);
      if (held !== TokenMode.concurrentWrite) {
        let least = 0;
        for (const node of this.#disk.nodes) least = Math.max(least, node.written.get(key) ?? 0);
        if (inode.size < least) return `status ${key} shows size ${inode.size}, and ${least} was written`;
      }
      if (mode === TokenMode.shared) continue;
      inode.size = ++this.#disk.lastSize;
      this.written.set(key, inode.size);
      if (held === TokenMode.concurrentWrite) inode.shared = true;
      else inode.dirty = true;
    }
    return null;
  }

  #load(object: TokenObject, sector: number): InMemory {
    const key = keyOf(object, sector);
    const known = this.#inodes.get(key);
    if (known !== undefined) return known;
    const { version, size } = this.#disk.at(key);
    const inode = { version, size, shared: false, dirty: false };
    this.#inodes.set(key, inode);
    if (this.#heldMode(object, sector * SECTOR_BYTES) === TokenMode.exclusive) {
      const note = this.#pending.get(key);
      this.#pending.delete(key);
      if (note !== undefined) this.#takeIn(inode, note);
    }
    return inode;
  }
  /** A grant that crossed a revocation has come to an inode in memory, and notes with it. */
  #settle(key: string, inode: InMemory): void {
    const note = this.#pending.get(key);
    this.#pending.delete(key);
    inode.dirty ||= inode.shared;
    inode.shared = false;
    if (note !== undefined) this.#takeIn(inode, note);
  }
  #takeIn(inode: InMemory, note: StatusNote): void {
    if (note.version !== inode.version || note.sizeBytes <= inode.size) return;
    inode.size = note.sizeBytes;
    inode.dirty = true;
  }

  gathered(object: TokenObject, range: ByteRange, notes: readonly StatusNote[]): void {
    for (const sector of sectorsOf(range, this.#sectors)) {
      const offset = sector * SECTOR_BYTES;
      const key = keyOf(object, sector);
      const note = notes.find(({ offsetBytes }) => offsetBytes === offset);
      const inode = this.#inodes.get(key);
      const giving = this.#giving.some(
        (one) => one.object === object && one.range.start <= offset && offset < one.range.end,
      );
      if (inode === undefined || giving) {
        if (note !== undefined) this.#keep(key, note);
        continue;
      }
      inode.dirty ||= inode.shared;
      inode.shared = false;
      if (note !== undefined) this.#takeIn(inode, note);
    }
  }
  #keep(key: string, note: StatusNote): void {
    const before = this.#pending.get(key);
    this.#pending.set(key, before === undefined ? note : joinNotes(before, note));
  }

  begins(object: TokenObject, range: ByteRange): void {
    this.#giving.push({ object, range });
  }
  /** What the handler of a revocation does and says. */
  ends(object: TokenObject, range: ByteRange, keep: TokenMode): StatusNote[] {
    this.#giving.splice(
      this.#giving.findIndex((one) => one.object === object && one.range === range),
      1,
    );
    const notes: StatusNote[] = [];
    for (const sector of sectorsOf(range, this.#sectors)) {
      const offsetBytes = sector * SECTOR_BYTES;
      const key = keyOf(object, sector);
      if (meet(this.#heldMode(object, offsetBytes), keep) !== TokenMode.none && this.#pending.has(key))
        this.#load(object, sector);
      const pending = this.#pending.get(key);
      const inode = this.#inodes.get(key);
      if (inode?.dirty) {
        const disk = this.#disk.at(key);
        disk.version++;
        disk.size = inode.size;
        inode.version = disk.version;
        inode.dirty = false;
      }
      if (inode?.shared) {
        const note = { offsetBytes, version: inode.version, sizeBytes: inode.size, mtimeNs: 0n, ctimeNs: 0n };
        notes.push(note);
        // A newer grant has come meanwhile.
        if (this.#heldMode(object, offsetBytes) === TokenMode.exclusive) this.#keep(key, note);
        inode.shared = false;
      } else if (pending !== undefined) {
        notes.push(pending);
        if (this.#heldMode(object, offsetBytes) !== TokenMode.exclusive) this.#pending.delete(key);
      }
      if (meet(this.#heldMode(object, offsetBytes), keep) === TokenMode.none) this.#inodes.delete(key);
    }
    return notes;
  }
}
