/**
 * An inode in memory.
 *
 * Invariants
 * - `valid` exactly while this node holds its status token (shared at least): only then are the fields believed.
 * - Dirty data, dirty pointers or dirty fields => this node holds the exclusive status token.
 * - One object per inode number and generation, and life of the table entry: what must outlive the status token while a file is open (open
 *   count, the cached file, locks between operations of this node) is kept here, the fields are read again.
 */

import type { CachedFile } from '../cache/page-cache-api.js';
import { deferred } from '../common/deferred.js';
import type { FsError } from '../common/errors.js';
import type { InodeNumber, NsdIndex } from '../common/ids.js';
import { inodeNumber, nsdIndex } from '../common/ids.js';
import { SUB_BLOCK_BYTES } from '../common/units.js';
import type { Acl } from './acl.js';
import type { BlockPointer } from './block-pointer.js';
import { type Attributes, FileType } from './file-system-api.js';
import { EMPTY_AREA, FREE_INODE, INDIRECT_LEVELS, type InodeFields, InodeFlag } from './inode-format.js';
import { type Extent, FIRST_USER_INODE } from './layout.js';
import { LostWrites } from './lost-writes.js';
import { Mutex, SharedMutex } from './mutex.js';
import { Unflushed } from './unflushed.js';
import { aclInBlock, type XattrEntry, type XattrSpace } from './xattr-format.js';

/** An indirect block in memory; `sector` is its image, sealed at write-out. */
export interface IndirectNode {
  readonly level: number;
  readonly firstBlock: number;
  readonly home: BlockPointer;
  readonly sector: Uint8Array;
  dirty: boolean;
  readonly children: Map<number, IndirectNode>;
}

interface AttributeSpace {
  readonly taken: Extent[];
  readonly given: Extent[];
}
const NO_ROOTS: readonly null[] = Array.from({ length: INDIRECT_LEVELS }, () => null);

export class Inode implements InodeFields {
  type: FileType | typeof FREE_INODE = FREE_INODE;
  mode = 0;
  uid = 0;
  gid = 0;
  nlink = 0;
  sizeBytes = 0;
  atimeNs = 0n;
  mtimeNs = 0n;
  ctimeNs = 0n;
  birthtimeNs = 0n;
  rdev = 0;
  flags = 0;
  placementClass = 0;
  generation = 0;
  allocatedSubBlocks = 0;
  parent: InodeNumber = inodeNumber(0);
  directoryDepth = 0;
  directorySeed = 0;
  directoryEntries = 0;
  projectId = 0;
  tailEpoch = 0;
  kept: Uint8Array = EMPTY_AREA;
  area: Uint8Array = EMPTY_AREA;
  /** The attributes in the block that `kept` names, while they are known; and lists of permissions, decoded. */
  xattrBlock: XattrEntry[] | null = null;
  acls: Map<XattrSpace, Acl | null> | null = null;

  /** When it was read here, while `atimeNs` doesn't say so yet (access-times.ts). */
  readAtNs: bigint | null = null;

  /** Its sector as the log, or its NSD, has it, while something of it is held back. */
  image: Uint8Array | null = null;
  /** Size, pointers or inline bytes are ahead of what the log may say (L1): the next write-out exposes them. */
  unexposed = false;
  /** Counted up with each change of them. */
  heldChanges = 0;
  /** Told before pointers change, and that there were more sub-blocks than its count says; null: nobody logs them. */
  keeper: { holdBack(inode: Inode): void; miscounted(inode: Inode): void } | null = null;
  /** Space that was allocated for it and that no logged pointer names. */
  reserved: Extent[] = [];
  /** The same, on its way to the log (inode-writer.ts). */
  exposing: readonly Extent[] = [];
  /** Indirect blocks that are ahead of what the log has, at most: those that were cut off since are counted too. */
  dirtyIndirects = 0;

  valid = false;
  /**
   * Somebody may have died since its sector was written, who had written behind the size that the sector says: those bytes are made zeros
   * before anything here is written (file-tail.ts). Only regular files.
   */
  tailDoubtful = false;
  /** Its status is held concurrent-write (concurrent-writing.ts): size is a lower bound, nothing of the inode is changed but by notes. */
  concurrent = false;
  /** Size or times have changed here since it began, and when they did first. */
  concurrentChanges = false;
  concurrentSinceMs = 0;
  /** The size as the inode's sector says it. */
  concurrentBytes = 0;
  /** Handles of this node that may write to it. */
  writers = 0;
  /** How much was reserved in front of a writer beside others, and up to where. */
  aheadBytes = 0;
  aheadEnd = 0;
  /** Something must be written; `dirtyCore`: more than times (fdatasync asks). */
  dirty = false;
  dirtyCore = false;
  dirtySinceMs = 0;
  /** While it is synced: so many bytes of its data may still go into the log first. */
  syncBytesLeft = 0;
  syncing = 0;
  /** Set while a write-out of this inode runs: the next one waits for it, or an older image could land last. */
  writing: Promise<void> | null = null;

  /** The page cache's side, while attached. */
  file: CachedFile | null = null;
  /** What of `file.state.changes` has been merged into the fields. */
  seenChanges = 0;
  openCount = 0;
  /** Operations that change the size, or rely on it, in several turns: no write hit meanwhile, whoever publishes. */
  settling = 0;
  /** The number has another life, with an object of its own; this one is kept by handles that are stale. */
  replaced = false;
  /** This node took its last name while it was open here: the last close frees it. */
  orphan = false;
  /** Opened here without a name (O_TMPFILE): it may still get one. */
  linkable = false;
  /** The table's round in which it was last asked for. */
  usedRound = 0;
  /** Where its sector is; set before it is ever valid. */
  home: { readonly nsd: NsdIndex; readonly sector: number } = { nsd: nsdIndex(0), sector: 0 };
  /** No longer pointed to by the fields; free once a write-out of them is done. */
  pendingFrees: Extent[] = [];
  /** What this node wrote of the file since the last flush. What others wrote was flushed before its tokens came here. */
  get unflushed(): Unflushed {
    this.#unflushed ??= new Unflushed();
    return this.#unflushed;
  }
  get hasUnflushed(): boolean {
    return this.#unflushed?.any ?? false;
  }
  /** What this node wrote of it and the storage has lost. */
  noteLost(error: FsError): void {
    this.#lost ??= new LostWrites();
    this.#lost.add(error);
  }
  get lost(): LostWrites | null {
    return this.#lost;
  }

  /** Growth, moves and cuts of its blocks, one at a time. */
  get structure(): Mutex {
    this.#structure ??= new Mutex();
    return this.#structure;
  }
  get structureBusy(): boolean {
    return this.#structure?.busy ?? false;
  }
  /** Writes share, truncation owns. */
  get contents(): SharedMutex {
    this.#contents ??= new SharedMutex();
    return this.#contents;
  }
  /** Appends of this node, one at a time: each begins where the last ended. */
  get appends(): Mutex {
    this.#appends ??= new Mutex();
    return this.#appends;
  }
  /** Of directories: see Directory.advance. */
  get directoryGate(): Mutex {
    this.#directoryGate ??= new Mutex();
    return this.#directoryGate;
  }
  /** Of its data, not through the log: under way, and ever begun. */
  get writesInPlace(): { running: number; begun: number } {
    this.#writesInPlace ??= { running: 0, begun: 0 };
    return this.#writesInPlace;
  }
  /** Of its attributes' block: what the transaction that is being made takes, and what it gives up. */
  get attributeSpace(): AttributeSpace {
    this.#attributeSpace ??= { taken: [], given: [] };
    return this.#attributeSpace;
  }
  /** Null: there is nothing of the kind. */
  get movedAttributeSpace(): AttributeSpace | null {
    return this.#attributeSpace;
  }
  /** Indirect blocks in memory, below the area's last entries. */
  get roots(): readonly (IndirectNode | null)[] {
    return this.#roots ?? NO_ROOTS;
  }
  setRoot(index: number, node: IndirectNode | null): void {
    this.#roots ??= [...NO_ROOTS];
    this.#roots[index] = node;
  }
  forgetRoots(): void {
    this.#roots = null;
  }

  // Made when first needed: most inodes in memory have nothing on its way, and a node may have a hundred thousand of them.
  #structure: Mutex | null = null;
  #contents: SharedMutex | null = null;
  #appends: Mutex | null = null;
  #directoryGate: Mutex | null = null;
  #writesInPlace: { running: number; begun: number } | null = null;
  #attributeSpace: AttributeSpace | null = null;
  #roots: (IndirectNode | null)[] | null = null;
  #transfers: Set<Promise<void>> | null = null;
  #unflushed: Unflushed | null = null;
  #lost: LostWrites | null = null;
  #gate: Promise<void> | null = null;

  constructor(readonly ino: InodeNumber) {}

  get isDirectory(): boolean {
    return this.type === FileType.directory;
  }
  get isInline(): boolean {
    return (this.flags & InodeFlag.inline) !== 0;
  }

  /** Who may do what is not known before its block of attributes has been read. */
  get needsXattrBlock(): boolean {
    return this.xattrBlock === null && aclInBlock(this.kept);
  }
  /** Regular files: their data is written beside the log. Everything else of an inode is metadata, and logged at once. */
  get holdsDataBack(): boolean {
    return this.type === FileType.regular && this.ino >= FIRST_USER_INODE;
  }

  assign(fields: InodeFields): void {
    Object.assign(this, fields);
    this.xattrBlock = null;
    this.acls = null;
    this.readAtNs = null;
    this.forgetRoots();
    this.image = null;
    this.unexposed = false;
    this.reserved = [];
    this.exposing = [];
    this.dirtyIndirects = 0;
    this.tailDoubtful = false;
  }

  /** Device transfers of the file's bytes pass here, so that a move of a fragment can wait for them and hold up new ones. */
  async transfer(body: () => Promise<void>): Promise<void> {
    while (this.#gate !== null) await this.#gate;
    const running = body();
    this.#transfers ??= new Set();
    this.#transfers.add(running);
    try {
      await running;
    } finally {
      this.#transfers.delete(running);
    }
  }

  /** A transfer that came now would wait. */
  get transfersHeldUp(): boolean {
    return this.#gate !== null;
  }

  /** Resolves when every transfer that runs now has ended, well or not. */
  async transfersEnded(): Promise<void> {
    if (this.#transfers !== null && this.#transfers.size > 0) await Promise.allSettled([...this.#transfers]);
  }

  /** No transfer runs while `body` does. It may wait for devices, never for a token. */
  async withoutTransfers<T>(body: () => Promise<T>): Promise<T> {
    while (this.#gate !== null) await this.#gate;
    const gate = deferred<void>();
    this.#gate = gate.promise;
    try {
      await this.transfersEnded();
      return await body();
    } finally {
      this.#gate = null;
      gate.resolve();
    }
  }

  /** Whether writes did something to size or times that is not in the fields. */
  get stateAhead(): boolean {
    return this.file !== null && this.valid && this.file.state.changes !== this.seenChanges;
  }

  /**
   * Takes over what writes did to size and times. Two in the same moment may have done nothing: then nothing of the inode is held back (`before`), as
   * nobody would ever write it out.
   */
  mergeState(before: () => void = () => undefined): 'nothing' | 'times' | 'size' {
    if (this.file === null || !this.stateAhead) return 'nothing';
    const state = this.file.state;
    this.seenChanges = state.changes;
    const grown = state.sizeBytes !== this.sizeBytes;
    if (!grown && state.mtimeNs === this.mtimeNs && state.ctimeNs === this.ctimeNs) return 'nothing';
    before();
    this.sizeBytes = state.sizeBytes;
    this.mtimeNs = state.mtimeNs;
    this.ctimeNs = state.ctimeNs;
    return grown ? 'size' : 'times';
  }

  /** Tells the cache map what the fields say. No write hit may run: the status mode published is below exclusive. */
  pushState(): void {
    if (this.file === null) return;
    this.file.setState({ sizeBytes: this.sizeBytes, mtimeNs: this.mtimeNs, ctimeNs: this.ctimeNs });
    this.seenChanges = this.file.state.changes;
  }

  attributes(): Attributes {
    return {
      ino: this.ino,
      generation: this.generation,
      type: this.type as FileType,
      mode: this.mode,
      nlink: this.nlink,
      uid: this.uid,
      gid: this.gid,
      rdev: this.rdev,
      sizeBytes: this.sizeBytes,
      allocatedBytes: this.allocatedSubBlocks * SUB_BLOCK_BYTES,
      atimeNs: this.readAtNs ?? this.atimeNs,
      mtimeNs: this.mtimeNs,
      ctimeNs: this.ctimeNs,
      birthtimeNs: this.birthtimeNs,
    };
  }
}
