/**
 * An open file, directory included, on this node. Keeps its inode object in the table and its entry in the cache; the inode's fields
 * come and go with the status token. A handle whose inode was removed and reused elsewhere answers ESTALE.
 */
import { constants } from 'node:fs';
import type { EntryId } from '../cache/cache-map.js';
import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { TokenMode, type TokenPins } from '../token-manager/token.js';
import { isBeingCut } from './being-cut.js';
import { copyRange } from './copy-range.js';
import { readDirect, writeDirect } from './direct-io.js';
import { allocateRange, checkAllocation, stepsOf } from './file-allocate.js';
import { bringFile, type FileHandle, readFile, truncateFile, writeFile } from './file-io.js';
import { seekIn } from './file-seek.js';
import { cutSpace, hasTail } from './file-space.js';
import {
  type AllocateMode,
  type AllocateOptions,
  type AttributeChanges,
  type Attributes,
  type Credentials,
  type Deny,
  FileType,
  type OpenFile,
  type OpOptions,
  type XattrSetOptions,
} from './file-system-api.js';
import { heldAround, hold, readHeld, tryHold, writeHeld } from './held-io.js';
import type { Inode } from './inode.js';
import { InodeFlag } from './inode-format.js';
import { HandleLocks } from './locks/handle-locks.js';
import { isWantedAlone } from './open-tokens.js';
import { setInodeAttributes, statInode } from './operations/attributes.js';
import { addName } from './operations/link.js';
import { getXattr, listXattrs, setXattr } from './operations/xattr.js';
import { publishStatus } from './publishing.js';
import { SharedHandle } from './shared/shared-handle.js';
import type { SharedOwners } from './shared/shared-io.js';
import { syncFile } from './sync-file.js';
import type { Volume } from './volume.js';

const SYNC = constants.O_SYNC & ~constants.O_DSYNC;

export class FsOpenFile implements OpenFile {
  readonly ino;
  readonly locks: HandleLocks;
  readonly #volume: Volume;
  readonly #handle: FileHandle;
  readonly #type: FileType;
  readonly #open: TokenPins;
  readonly atimeDue: boolean;
  readonly #shared: SharedHandle;
  #closed = false;
  /** How many losses of writes this handle knows of. */
  #lostSeen: number;

  /** In the turn in which the inode was found or made, its status token pinned: from here on it is open. */
  constructor(
    volume: Volume,
    inode: Inode,
    readonly flags: number,
    credentials: Credentials,
    /** Its open token, until it is closed. */
    open: TokenPins,
    readonly deny?: Deny | undefined,
    owners: SharedOwners = volume.parts.owners,
  ) {
    if (deny !== undefined) volume.denying.set(inode.ino, (volume.denying.get(inode.ino) ?? 0) + 1);
    this.#open = open;
    this.#lostSeen = inode.lost?.seen() ?? 0;
    this.ino = inode.ino;
    this.#volume = volume;
    this.#type = inode.type as FileType;
    const movesAtime = (flags & constants.O_NOATIME) === 0;
    this.#handle = { ino: inode.ino, generation: inode.generation, inode, credentials, movesAtime };
    this.#shared = new SharedHandle(volume, inode, credentials, owners);
    this.atimeDue = movesAtime && volume.accessTimes.isDue(inode);
    this.locks = new HandleLocks(volume.parts.locks, inode.ino, { readable: this.#readable, writable: this.#writable });
    inode.openCount++;
    if (this.#writable) inode.writers++;
    volume.openFiles.add(this);
    if (this.#type === FileType.regular) volume.inodes.attach(inode);
    publishStatus(volume, inode.ino);
  }

  /** Synchronous and direct handles don't hit: their writes have more to do than to copy. */
  get entry(): EntryId | null {
    if (
      this.#type !== FileType.regular ||
      (this.flags & (constants.O_SYNC | constants.O_DSYNC | constants.O_DIRECT)) !== 0 ||
      this.#shared.isElsewhere
    )
      return null;
    return this.#handle.inode.file?.entry ?? null;
  }

  get #readable(): boolean {
    return (this.flags & 3) !== constants.O_WRONLY;
  }
  get #writable(): boolean {
    return (this.flags & 3) !== constants.O_RDONLY;
  }

  get #isDirect(): boolean {
    return (this.flags & constants.O_DIRECT) !== 0;
  }

  #check(op: string): void {
    this.#volume.checkOpen(op);
    if (this.#closed) throw new FsError('badHandle', { op, object: `inode ${this.ino}`, detail: 'closed' });
  }

  async read(offsetBytes: number, target: Uint8Array, options?: OpOptions): Promise<number> {
    this.#checkReadable();
    if (!this.#isDirect) {
      const count = await this.#shared.read(offsetBytes, target, options);
      if (count !== null) return count;
    }
    const read = this.#isDirect ? readDirect : readFile;
    return read(this.#volume, this.#handle, offsetBytes, target, options);
  }

  async bring(offsetBytes: number, lengthBytes: number, options?: OpOptions): Promise<number> {
    this.#checkReadable();
    return bringFile(this.#volume, this.#handle, offsetBytes, lengthBytes, options);
  }

  #checkReadable(op = 'read'): void {
    this.#check(op);
    const object = `inode ${this.ino}`;
    if (this.#type === FileType.directory) throw new FsError('isDirectory', { op, object });
    if (!this.#readable) throw new FsError('badHandle', { op, object, detail: 'write only' });
  }

  async write(
    offsetBytes: number | null,
    source: Uint8Array,
    options?: OpOptions,
  ): Promise<{ offsetBytes: number; lengthBytes: number }> {
    this.#checkWritable('write');
    const at = (this.flags & constants.O_APPEND) !== 0 ? null : offsetBytes;
    const elsewhere = this.#isDirect ? null : await this.#shared.write(at, source, options);
    const write = this.#isDirect ? writeDirect : writeFile;
    if (this.#volume.inodes.holdsMuch(this.#handle.inode)) await this.#volume.inodes.makeRoom(this.#handle.inode);
    const written =
      elsewhere ?? (await this.#volume.change(() => write(this.#volume, this.#handle, at, source, options), options));
    if ((this.flags & (constants.O_SYNC | constants.O_DSYNC)) !== 0)
      await this.sync((this.flags & SYNC) === 0, options);
    return written;
  }

  async truncate(sizeBytes: number, options?: OpOptions): Promise<void> {
    this.#checkWritable('truncate');
    await this.#volume.frees.makeRoom();
    await this.#volume.inodes.makeRoom(this.#handle.inode);
    await this.#volume.change(() => truncateFile(this.#volume, this.#handle, sizeBytes, options), options);
  }

  async allocate(
    mode: AllocateMode,
    offsetBytes: number,
    lengthBytes: number,
    options?: AllocateOptions,
  ): Promise<void> {
    checkAllocation(mode, offsetBytes, lengthBytes, `inode ${this.ino}`);
    this.#checkWritable('fallocate');
    for (const range of stepsOf(offsetBytes, lengthBytes)) {
      await this.#volume.frees.makeRoom();
      await this.#volume.inodes.makeRoom(this.#handle.inode);
      await this.#volume.change(() => allocateRange(this.#volume, this.#handle, mode, range, options), options);
    }
    if ((this.flags & (constants.O_SYNC | constants.O_DSYNC)) !== 0)
      await this.sync((this.flags & SYNC) === 0, options);
  }

  async seek(offsetBytes: number, what: 'data' | 'hole', options?: OpOptions): Promise<number> {
    this.#check('lseek');
    if (this.#type !== FileType.regular)
      throw new FsError('invalidArgument', { op: 'lseek', object: `inode ${this.ino}`, detail: 'not a file' });
    return seekIn(this.#volume, this.#handle, offsetBytes, what, options);
  }

  #checkWritable(op: string): void {
    this.#check(op);
    const object = `inode ${this.ino}`;
    if (!this.#writable)
      throw new FsError(op === 'truncate' ? 'invalidArgument' : 'badHandle', { op, object, detail: 'read only' });
    if (this.#type !== FileType.regular) throw new FsError('invalidArgument', { op, object, detail: 'not a file' });
  }

  async copyRange(
    offsetBytes: number,
    target: OpenFile,
    targetOffsetBytes: number,
    lengthBytes: number,
    options?: OpOptions,
  ): Promise<number> {
    const op = 'copy_file_range';
    this.#checkReadable(op);
    const object = `inode ${this.ino}`;
    if (!(target instanceof FsOpenFile) || target.#volume !== this.#volume)
      throw new FsError('crossesFileSystem', { op, object });
    if (target.#type === FileType.directory) throw new FsError('isDirectory', { op, object });
    target.#checkWritable(op);
    if ((target.flags & constants.O_APPEND) !== 0)
      throw new FsError('badHandle', { op, object, detail: 'to a handle that appends' });
    const volume = this.#volume;
    const copied = await copyRange(
      volume,
      this.#handle,
      offsetBytes,
      target.#handle,
      targetOffsetBytes,
      lengthBytes,
      options,
    );
    if (copied > 0 && (target.flags & (constants.O_SYNC | constants.O_DSYNC)) !== 0)
      await target.sync((target.flags & SYNC) === 0, options);
    return copied;
  }

  async link(path: string, credentials: Credentials, options?: OpOptions): Promise<void> {
    this.#check('link');
    const { ino, generation } = this.#handle;
    const target = { ino, generation, type: this.#type };
    await this.#volume.change(() => addName(this.#volume, target, `inode ${ino}`, path, credentials, options), options);
  }

  /** For a kernel that keeps what it reads (held-io.ts). */
  tryHold(range: ByteRange, exclusive: boolean): TokenPins | null {
    return this.#volume.closed ? null : tryHold(this.#volume, this.#handle, range, exclusive);
  }
  async hold(range: ByteRange, exclusive: boolean, options?: OpOptions): Promise<TokenPins> {
    this.#check('read');
    return hold(this.#volume, this.#handle, range, exclusive, options);
  }
  heldAround(offsetBytes: number, exclusive: boolean): ByteRange | null {
    return heldAround(this.#volume, this.ino, offsetBytes, exclusive);
  }
  async readHeld(offsetBytes: number, target: Uint8Array): Promise<number> {
    this.#volume.checkNotFenced('read', this.ino);
    return readHeld(this.#volume, this.#handle, offsetBytes, target);
  }
  async writeHeld(offsetBytes: number, source: Uint8Array): Promise<void> {
    this.#volume.checkNotFenced('write', this.ino);
    return writeHeld(this.#volume, this.#handle, offsetBytes, source);
  }
  get generation(): number {
    return this.#handle.generation;
  }

  async stat(options?: OpOptions): Promise<Attributes> {
    this.#check('stat');
    return statInode(this.#volume, this.#handle, 'stat', options);
  }

  async setAttributes(changes: AttributeChanges, credentials: Credentials, options?: OpOptions): Promise<Attributes> {
    this.#check('setAttributes');
    const set = () =>
      setInodeAttributes(this.#volume, this.#handle, changes, credentials, `inode ${this.ino}`, options);
    return this.#volume.change(set, options);
  }

  async getXattr(name: string, credentials: Credentials, options?: OpOptions): Promise<Uint8Array> {
    this.#check('getxattr');
    return getXattr(this.#volume, this.#handle, name, credentials, `inode ${this.ino}`, options);
  }
  async listXattrs(credentials: Credentials, options?: OpOptions): Promise<string[]> {
    this.#check('listxattr');
    return listXattrs(this.#volume, this.#handle, credentials, options);
  }
  async setXattr(
    name: string,
    value: Uint8Array | null,
    credentials: Credentials,
    options?: XattrSetOptions & OpOptions,
  ): Promise<void> {
    this.#check('setxattr');
    const set = () => setXattr(this.#volume, this.#handle, name, value, credentials, `inode ${this.ino}`, options);
    return this.#volume.change(set, options);
  }

  async sync(dataOnly: boolean, options?: OpOptions): Promise<void> {
    this.#check('sync');
    await this.#shared.sync(dataOnly, options);
    await syncFile(this.#volume, this.#handle.inode, dataOnly, options);
    this.#tellLost();
  }

  /** @throws {FsError} writesLost, once for each loss (I10) */
  #tellLost(): void {
    const told = this.#handle.inode.lost?.tell(this.#lostSeen);
    this.#lostSeen = told?.seen ?? 0;
    if (told?.error) throw told.error;
  }

  hint(
    kind: 'willNeed' | 'dontNeed' | 'sequential' | 'random' | 'normal' | 'passed' | 'accessed',
    offsetBytes: number,
    lengthBytes: number,
  ): void {
    if (kind === 'accessed') {
      if (this.#handle.movesAtime && this.#handle.inode.valid) this.#volume.accessTimes.noteRead(this.#handle.inode);
      return;
    }
    this.#handle.inode.file?.hint(kind, { start: offsetBytes, end: offsetBytes + lengthBytes });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    await this.leave();
    this.#tellLost();
  }

  /** Closed by somebody who has nobody to tell of losses: whoever opens the file next is told (I10). */
  async leave(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#close();
  }

  async #close(): Promise<void> {
    const { inode } = this.#handle;
    this.#volume.openFiles.delete(this);
    if (this.deny !== undefined) this.#denyNoMore();
    this.locks.closed = true;
    if (this.locks.used) await this.locks.close();
    const wanted = isWantedAlone(this.#volume, this.ino);
    inode.openCount--;
    if (this.#writable) inode.writers--;
    try {
      if (inode.openCount > 0) return;
      await this.#closeLast(inode);
    } finally {
      this.#open.release();
    }
    if (inode.openCount > 0) return;
    if (inode.orphan) await this.#volume.orphans.take(inode);
    // Whoever took its last name waits for us, unless it is gone; or we have seen that there is no name.
    else if (wanted || (inode.valid && inode.nlink === 0)) await this.#volume.orphans.offer(inode);
  }

  #denyNoMore(): void {
    const { denying } = this.#volume;
    const left = denying.get(this.ino)! - 1;
    if (left > 0) denying.set(this.ino, left);
    else denying.delete(this.ino);
  }

  async #closeLast(inode: Inode): Promise<void> {
    // No handle, no hits; what they did is merged.
    inode.file?.setStatusMode(TokenMode.none);
    this.#volume.inodes.refresh(inode);
    if (inode.valid && inode.nlink > 0 && this.#writable) await this.#trimTail(inode);
    if (inode.openCount > 0) {
      publishStatus(this.#volume, this.ino);
      return;
    }
    if (this.#type === FileType.regular) this.#volume.inodes.detach(inode);
    if (!inode.valid) this.#volume.inodes.drop(inode);
  }

  /** What was reserved for growth and not used goes back, if the tokens for that are at hand; it is no reason to ask anybody. */
  async #trimTail(inode: Inode): Promise<void> {
    const volume = this.#volume;
    // What is being cut is somebody's already.
    if ((inode.flags & InodeFlag.keepsSpace) !== 0 || isBeingCut(inode) || !hasTail(inode)) return;
    const file = volume.inodes.attach(inode);
    const end = Math.ceil(inode.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
    const pins = volume.parts.tokens.tryPin([
      volume.inodes.statusItem(this.ino, TokenMode.exclusive),
      file.dataItem({ start: end, end: RANGE_END }, TokenMode.exclusive),
    ]);
    if (pins === null) return;
    // Whoever opens it meanwhile gets no write hits before this is over.
    inode.settling++;
    try {
      await inode.contents.runExclusive(async () => {
        if (inode.openCount > 0 || !inode.valid) return;
        // Pages first, all of them: one prepared for a sequential writer would stay writable without space behind it.
        await file.discard({ start: end, end: RANGE_END });
        // Of more than one transaction takes the rest stays for the next time.
        await cutSpace(volume, inode, inode.sizeBytes);
      });
    } finally {
      inode.settling--;
      pins.release();
    }
  }
}
