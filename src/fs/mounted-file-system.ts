/** The FileSystem of one node's engine: paths in, operations out. Owns the background and the order of unmounting. */

import { constants } from 'node:fs';
import { WHOLE } from '../common/byte-range.js';
import type { Timer } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { checkOnline } from './check/online/online-check.js';
import type { OnlineOptions, OnlineReport } from './check/online/online-report.js';
import type {
  AttributeChanges,
  Attributes,
  Credentials,
  Deny,
  DirectoryEntry,
  FileSystem,
  FsStatistics,
  Located,
  OpenFile,
  OpenOptions,
  OpOptions,
  RenameOptions,
  StampedAttributes,
  XattrSetOptions,
} from './file-system-api.js';
import { FileType, isNameless } from './file-system-api.js';
import { InodeCalls } from './inode-calls.js';
import type { KernelCaches } from './kernel-caches.js';
import { ALLOCATION_MAP, INODE_MAP, LOG_TABLE, RENAME_LOCK } from './layout.js';
import { access, onPath, setInodeAttributes, statInode } from './operations/attributes.js';
import { link } from './operations/link.js';
import { locateInode } from './operations/locate.js';
import { mkdir, mknod, symlink } from './operations/make.js';
import { open, openInode } from './operations/open.js';
import { readDirectory } from './operations/read-directory.js';
import { rename } from './operations/rename.js';
import { sharedWrite } from './operations/shared-write.js';
import { remove } from './operations/unlink.js';
import { getXattr, listXattrs, setXattr } from './operations/xattr.js';
import { readLink, walkToExisting } from './path-walk.js';
import { ResyncAgent } from './resync.js';
import { settle } from './settle.js';
import type { SharedReply, SharedRequest } from './shared/shared-io.js';
import type { Shipment } from './space/shipment.js';
import type { Settled, Settling } from './space-peers.js';
import { tryStat } from './stamped-stat.js';
import { Statistics } from './statistics.js';
import type { Superblock } from './superblock.js';
import type { Volume } from './volume.js';

export interface MountedFileSystem extends FileSystem {
  /** For a mount: operations on inodes, and a say before what the kernel keeps stops being covered. */
  readonly inodes: InodeCalls;
  setKernel(kernel: KernelCaches | null): void;
  tryStat(path: string, follow: boolean, credentials: Credentials): StampedAttributes | null;
  /** A file by its inode: what a handle that outlives its daemon needs, after a rename too. @throws {FsError} staleHandle */
  openInode(ino: InodeNumber, generation: number, flags: number, credentials: Credentials): Promise<OpenFile>;
  readonly superblock: Superblock;
  /** Fenced (F3): nothing is written any more; the inodes whose changes are lost. The cache tells about data. */
  abandon(): InodeNumber[];
  /** Another node asks for what this one has freed. @throws {FsError} closed, fenced; what writing out gives. */
  settle(what: Settling): Promise<Settled>;
  /** Space that another node frees in a region of ours (S6). @throws {FsError} invalidArgument; what writing the log gives. */
  applyShipment(shipment: Shipment): Promise<'applied' | 'notMine'>;
  /** After a node's log has been redone: what it left unfinished is brought to an end, as far as nobody else is at it. */
  settleLeft(): Promise<void>;
  /** Another node reads or writes a shared file through this one. */
  serveShared(request: SharedRequest): Promise<SharedReply>;
  /** Looks at everything while it is in use, here and elsewhere (docs/check.md). One at a time; unmounting ends it. @throws {FsError} busy, aborted, closed, fenced */
  checkOnline(options?: OnlineOptions): Promise<OnlineReport>;
  /** Open files here that deny others something. */
  shareModes(): { ino: InodeNumber; deny: Deny; writes: boolean }[];
  /** For status pages. */
  usage(): { inodes: number; dirtyInodes: number; regionsHeld: number; extentsToFree: number; openFiles: number };
}

/** Size and times of a file that several nodes write to are written down seldom: it ends their writing side by side for a moment. */
const CONCURRENT_AGES = 6;

export class MountedFs implements MountedFileSystem {
  readonly #volume: Volume;
  readonly inodes: InodeCalls;
  readonly #statistics: Statistics;
  #timer: Timer | null = null;
  #working: Promise<void> | null = null;
  readonly #resync: ResyncAgent;
  /** The check that is under way. */
  #check: { readonly stop: AbortController; readonly ended: Promise<unknown> } | null = null;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.inodes = new InodeCalls(volume);
    this.#statistics = new Statistics(volume);
    this.#resync = new ResyncAgent(volume);
    this.#schedule();
  }

  setKernel(kernel: KernelCaches | null): void {
    this.#volume.kernel = kernel;
    this.#volume.cache.setLeaveHook(
      kernel === null ? null : (ino, range, keep) => kernel.dataLeaves(ino, range, keep === TokenMode.shared),
    );
  }

  get superblock(): Superblock {
    return this.#volume.superblock;
  }

  open(path: string, flags: number, mode: number, credentials: Credentials, options?: OpenOptions): Promise<OpenFile> {
    const body = () => open(this.#volume, path, flags, mode, credentials, options);
    return (flags & (constants.O_CREAT | constants.O_TRUNC)) === 0 && !isNameless(flags)
      ? body()
      : this.#volume.change(body, options);
  }
  openInode(ino: InodeNumber, generation: number, flags: number, credentials: Credentials): Promise<OpenFile> {
    return openInode(this.#volume, { ino, generation }, flags, credentials, undefined);
  }
  stat(path: string, credentials: Credentials, options?: OpOptions): Promise<Attributes> {
    return onPath(this.#volume, path, { op: 'stat', credentials, followLast: true, options }, (ref) =>
      statInode(this.#volume, ref, 'stat', options),
    );
  }
  lstat(path: string, credentials: Credentials, options?: OpOptions): Promise<Attributes> {
    return onPath(this.#volume, path, { op: 'lstat', credentials, followLast: false, options }, (ref) =>
      statInode(this.#volume, ref, 'lstat', options),
    );
  }
  tryStat(path: string, follow: boolean, credentials: Credentials): StampedAttributes | null {
    return tryStat(this.#volume, path, follow, credentials);
  }
  access(path: string, mode: number, credentials: Credentials, options?: OpOptions): Promise<void> {
    return access(this.#volume, path, mode, credentials, options);
  }
  mkdir(path: string, mode: number, credentials: Credentials, options?: OpOptions): Promise<void> {
    return this.#volume.change(() => mkdir(this.#volume, path, mode, credentials, options), options);
  }
  rmdir(path: string, credentials: Credentials, options?: OpOptions): Promise<void> {
    return this.#volume.change(() => remove(this.#volume, 'rmdir', path, credentials, options), options);
  }
  async unlink(path: string, credentials: Credentials, options?: OpOptions): Promise<void> {
    await this.#volume.frees.makeRoom();
    return this.#volume.change(() => remove(this.#volume, 'unlink', path, credentials, options), options);
  }
  mknod(
    path: string,
    type: FileType,
    mode: number,
    rdev: number,
    credentials: Credentials,
    options?: OpOptions,
  ): Promise<void> {
    return this.#volume.change(() => mknod(this.#volume, path, type, mode, rdev, credentials, options), options);
  }
  rename(from: string, to: string, credentials: Credentials, options?: RenameOptions): Promise<void> {
    return this.#volume.change(() => rename(this.#volume, from, to, credentials, options), options);
  }
  link(existing: string, path: string, credentials: Credentials, options?: OpOptions): Promise<void> {
    return this.#volume.change(() => link(this.#volume, existing, path, credentials, options), options);
  }
  symlink(target: string, path: string, credentials: Credentials, options?: OpOptions): Promise<void> {
    return this.#volume.change(() => symlink(this.#volume, target, path, credentials, options), options);
  }
  async readlink(path: string, credentials: Credentials, options?: OpOptions): Promise<string> {
    const op = 'readlink';
    const { target } = await walkToExisting(this.#volume, path, { op, credentials, followLast: false, options });
    if (target.type !== FileType.symlink)
      throw new FsError('invalidArgument', { op, object: path, detail: 'not a symbolic link' });
    return readLink(this.#volume, target, op, path, options);
  }
  async realpath(path: string, credentials: Credentials, options?: OpOptions): Promise<string> {
    const walked = await walkToExisting(this.#volume, path, { op: 'realpath', credentials, followLast: true, options });
    return `/${walked.names.join('/')}`;
  }
  readdir(path: string, credentials: Credentials, options?: OpOptions): Promise<DirectoryEntry[]> {
    return readDirectory(this.#volume, path, credentials, options);
  }
  setAttributes(
    path: string,
    changes: AttributeChanges,
    followLinks: boolean,
    credentials: Credentials,
    options?: OpOptions,
  ): Promise<Attributes> {
    const request = { op: 'setAttributes', credentials, followLast: followLinks, options };
    const set = () =>
      onPath(this.#volume, path, request, (ref) =>
        setInodeAttributes(this.#volume, ref, changes, credentials, path, options),
      );
    return this.#volume.change(set, options);
  }
  getXattr(
    path: string,
    followLinks: boolean,
    name: string,
    credentials: Credentials,
    options?: OpOptions,
  ): Promise<Uint8Array> {
    const request = { op: 'getxattr', credentials, followLast: followLinks, options };
    return onPath(this.#volume, path, request, (ref) => getXattr(this.#volume, ref, name, credentials, path, options));
  }
  listXattrs(path: string, followLinks: boolean, credentials: Credentials, options?: OpOptions): Promise<string[]> {
    const request = { op: 'listxattr', credentials, followLast: followLinks, options };
    return onPath(this.#volume, path, request, (ref) => listXattrs(this.#volume, ref, credentials, options));
  }
  setXattr(
    path: string,
    followLinks: boolean,
    name: string,
    value: Uint8Array | null,
    credentials: Credentials,
    options?: XattrSetOptions & OpOptions,
  ): Promise<void> {
    const request = { op: 'setxattr', credentials, followLast: followLinks, options };
    const set = () =>
      onPath(this.#volume, path, request, (ref) =>
        setXattr(this.#volume, ref, name, value, credentials, path, options),
      );
    return this.#volume.change(set, options);
  }
  async truncate(path: string, sizeBytes: number, credentials: Credentials, options?: OpOptions): Promise<void> {
    const file = await open(this.#volume, path, 1, 0, credentials, options).catch((error: unknown) => {
      // Here that says no more than that there is no size to be set.
      if (!FsError.is(error) || error.reason !== 'noDevice') throw error;
      throw new FsError('invalidArgument', { op: 'truncate', object: path, detail: 'not a file' });
    });
    try {
      await file.truncate(sizeBytes, options);
    } finally {
      await file.close();
    }
  }
  sharedWrite(path: string, on: boolean | undefined, credentials: Credentials, options?: OpOptions): Promise<boolean> {
    const set = () =>
      onPath(this.#volume, path, { op: 'sharedWrite', credentials, followLast: true, options }, (ref) =>
        sharedWrite(this.#volume, ref, on, path, credentials, options),
      );
    return on === undefined ? set() : this.#volume.change(set, options);
  }
  serveShared(request: SharedRequest): Promise<SharedReply> {
    this.#volume.checkNotFenced('sharedIo');
    return this.#volume.closed ? Promise.resolve(null) : this.#volume.shared.serve(request);
  }
  locate(
    path: string,
    offsetBytes: number,
    lengthBytes: number,
    credentials: Credentials,
    options?: OpOptions,
  ): Promise<Located> {
    const range = { offsetBytes, lengthBytes };
    return onPath(this.#volume, path, { op: 'locate', credentials, followLast: true, options }, (ref) =>
      locateInode(this.#volume, ref, range, path, credentials, options),
    );
  }
  async statfs(): Promise<FsStatistics> {
    this.#volume.checkOpen('statfs');
    return this.#statistics.read();
  }

  async settleLeft(): Promise<void> {
    this.#volume.checkOpen('settle');
    await this.#volume.claim?.settleLeft();
  }

  applyShipment(shipment: Shipment): Promise<'applied' | 'notMine'> {
    return this.#volume.shipments.apply(shipment);
  }

  settle(what: Settling): Promise<Settled> {
    return settle(this.#volume, what);
  }

  async checkOnline(options: OnlineOptions = {}): Promise<OnlineReport> {
    this.#volume.checkOpen('fs.check');
    if (this.#check !== null)
      throw new FsError('busy', { op: 'fs.check', detail: 'this node is at an online check of it already' });
    const stop = new AbortController();
    const { signal } = options;
    const callOff = () => stop.abort();
    signal?.addEventListener('abort', callOff, { once: true });
    if (signal?.aborted === true) stop.abort();
    const running = Promise.resolve().then(() => checkOnline(this.#volume, { ...options, signal: stop.signal }));
    this.#check = { stop, ended: running.catch(() => undefined) };
    try {
      return await running;
    } finally {
      this.#check = null;
      signal?.removeEventListener('abort', callOff);
    }
  }

  async sync(): Promise<void> {
    const { cache, inodes, log } = this.#volume;
    this.#volume.checkOpen('sync');
    await cache.flushAll();
    await inodes.concurrent.settle(Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY);
    await inodes.exposeAll();
    await log?.force();
  }

  /** In place, and out of the log. */
  async #writeEverything(): Promise<void> {
    const { cache, inodes, log } = this.#volume;
    await cache.flushAll();
    await inodes.writeOutAll();
    await cache.flushAll();
    await log?.checkpoint();
  }

  async unmount(): Promise<void> {
    const volume = this.#volume;
    if (volume.closed) return;
    for (const file of [...volume.openFiles])
      await file.close().catch((error: unknown) => {
        // Writes that are lost, perhaps: nobody waits for this close who could be told.
        volume.parts.logger.warn(
          { ino: file.ino, error: String(error) },
          'a file was open, and could not be closed cleanly',
        );
      });
    this.#check?.stop.abort();
    await this.#check?.ended;
    volume.closed = true;
    volume.parts.stamps?.allChanged();
    this.#timer?.cancel();
    if (this.#working !== null) await this.#working;
    await volume.shipments.idle();
    await volume.ahead.idle();
    await this.#resync.stop();
    await volume.inodes.concurrent.settle(Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY);
    // What those who left before us could not bring to an end.
    await volume.claim?.settleLeft();
    await volume.orphans.finish(volume.settings.regionTimeoutMs);
    // The first flush also tells of write-behind that failed earlier, and was mended long ago perhaps: what counts is the second.
    await this.#writeEverything().catch(() => this.#writeEverything());
    // What is in place at last gives space and numbers back, which is logged in turn.
    // Until there is nothing, or no way on: what can't be given back now (a map's sector is damaged) is for those who settle this log.
    for (let left = Number.POSITIVE_INFINITY; ; ) {
      await volume.frees.drain();
      await volume.numbers.close();
      await this.#writeEverything();
      const { returnedCount } = volume.numbers;
      if (returnedCount === 0 || returnedCount >= left) break;
      left = returnedCount;
    }
    await volume.claim?.close();
    await this.#giveBack();
    await volume.cache.close();
  }

  /** Regions and segments first: others may be waiting for them. */
  async #giveBack(): Promise<void> {
    const { tokens } = this.#volume.parts;
    for (const ino of [ALLOCATION_MAP, INODE_MAP, RENAME_LOCK, LOG_TABLE])
      await tokens.release(TokenClass.data, ino, WHOLE);
    const segments = new Set<number>([0, this.#volume.numbers.segment]);
    for (const inode of [...this.#volume.inodes.all()]) {
      segments.add(Math.floor(inode.ino / 4096));
      if (this.#volume.cache.get(inode.ino) !== undefined) await tokens.release(TokenClass.data, inode.ino, WHOLE);
    }
    for (const segment of segments) {
      await tokens.release(TokenClass.open, segment, WHOLE);
      await tokens.release(TokenClass.status, segment, WHOLE);
    }
  }

  abandon(): InodeNumber[] {
    const volume = this.#volume;
    volume.closed = true;
    volume.fenced = true;
    volume.parts.stamps?.allChanged();
    this.#check?.stop.abort();
    volume.orphans.stop();
    this.#timer?.cancel();
    void this.#resync.stop();
    volume.claim?.abandon(new FsError('fenced', { op: 'log', detail: 'this node was fenced' }));
    const lost: InodeNumber[] = [];
    for (const ino of volume.inodes.concurrent.lost()) lost.push(ino);
    for (const inode of volume.inodes.all()) {
      if (inode.dirty || (inode.concurrent && inode.concurrentChanges)) lost.push(inode.ino);
      inode.valid = false;
      inode.dirty = false;
    }
    return lost;
  }

  shareModes() {
    const found: { ino: InodeNumber; deny: Deny; writes: boolean }[] = [];
    for (const { ino, deny, flags } of this.#volume.openFiles)
      if (deny !== undefined) found.push({ ino, deny, writes: (flags & 3) !== constants.O_RDONLY });
    return found;
  }

  usage() {
    const { inodes, allocator, frees, openFiles } = this.#volume;
    let dirtyInodes = 0;
    for (const inode of inodes.all()) if (inode.dirty) dirtyInodes++;
    return {
      inodes: inodes.size,
      dirtyInodes,
      regionsHeld: allocator.regionsHeld,
      extentsToFree: frees.length,
      openFiles: openFiles.size,
    };
  }

  // Background

  #schedule(): void {
    const { clock, settings } = this.#volume;
    this.#timer = clock.after(settings.backgroundIntervalMs, () => {
      this.#working = this.#work()
        .catch((error: unknown) => {
          this.#volume.parts.logger.warn({ error: String(error) }, 'write-behind of inodes failed; tried again');
        })
        .finally(() => {
          this.#working = null;
          if (!this.#volume.closed) this.#schedule();
        });
    });
  }

  /** Old dirty inodes go out, what was freed goes back, what is not used is forgotten. */
  async #work(): Promise<void> {
    const { clock, settings, inodes, allocator, frees, numbers, log, sectors, accessTimes } = this.#volume;
    await inodes.writeOutOlderThan(clock.nowMs() - settings.inodeWriteBehindMs);
    if (frees.length > 0) await frees.drain();
    if (numbers.returnedCount > 0) await numbers.returnNumbers();
    await allocator.tellManager();
    await log?.force();
    if (sectors.oldestMs() <= clock.nowMs() - settings.inodeWriteBehindMs)
      await log?.checkpoint(settings.inodeWriteBehindMs);
    inodes.trim();
    this.#resync.look();
    await inodes.concurrent.settle(clock.nowMs() - CONCURRENT_AGES * settings.inodeWriteBehindMs);
    await accessTimes.settle(clock.nowMs() - settings.inodeWriteBehindMs);
  }
}
