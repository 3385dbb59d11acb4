/**
 * The file system below the page cache: which sectors of which NSD a file's pages are.
 *
 * Metadata that lives in the cache (directories, the two maps) is sealed here, just before it goes to a device, and verified here, when it
 * comes from one: nothing above ever sees an unverified sector.
 * Takes no token. An inode that is not valid any more (read-ahead that outlived its status token) is refused with `busy`.
 */

import type { BackingStore, FilePiece, FileWrite } from '../cache/backing-store.js';
import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import type { SectorIo } from '../nsd/nsd-api.js';
import { TokenMode } from '../token-manager/token.js';
import { doubtTail } from './being-cut.js';
import { findPointer, loadPointers } from './block-map.js';
import { readData } from './data-reader.js';
import { placeLogged, writeData } from './data-writer.js';
import { isReserved, reserve } from './file-space.js';
import type { Inode } from './inode.js';
import { AREA_BYTES } from './inode-format.js';
import { holdBack, isExposed } from './inode-image.js';
import { JoinedWrites } from './joined-write.js';
import { ALLOCATION_MAP, INODE_MAP } from './layout.js';
import { leafFault } from './leaf-format.js';
import { keyOf, type SectorWrite } from './log/logged-sectors.js';
import { regionFault, segmentFault } from './map-formats.js';
import { withSettledState } from './publishing.js';
import { corrupt, getU32, sealSector } from './sector.js';
import { type FileIo, flushWritten } from './unflushed.js';
import type { Volume } from './volume.js';

export class FileBacking implements BackingStore {
  #volume: Volume | null = null;

  /** Before the first call: the cache is made before the file system can be. */
  bind(volume: Volume): void {
    this.#volume = volume;
  }
  get #bound(): Volume {
    if (this.#volume === null) throw new FsError('internal', { op: 'cache', detail: 'nothing is mounted yet' });
    return this.#volume;
  }

  async #inode(ino: InodeNumber, op: string): Promise<Inode> {
    const volume = this.#bound;
    const inode = volume.systemFiles.get(ino) ?? (await volume.inodes.getOrReload(ino));
    if (inode !== undefined) return inode;
    volume.checkNotFenced(op, ino);
    throw new FsError('busy', { op, object: `inode ${ino}`, detail: 'its status token is not held any more' });
  }

  /** As after a death there: whoever writes next, on any node, makes zeros first (file-tail.ts). Fenced: nothing of it is anywhere. */
  leftBehindEnd(ino: InodeNumber): void {
    const volume = this.#bound;
    const inode = volume.inodes.peek(ino);
    if (!inode?.valid || !inode.holdsDataBack) return;
    // Beside others the inode is not this node's to change: it knows by itself, until one node has it alone.
    if (inode.concurrent) inode.tailDoubtful = true;
    else
      withSettledState(volume, inode, () => {
        holdBack(volume, inode);
        doubtTail(inode);
        volume.inodes.markDirty(inode, true);
      });
  }

  async read(ino: InodeNumber, pieces: readonly FilePiece[], signal?: AbortSignal): Promise<void> {
    const inode = await this.#inode(ino, 'read');
    await inode.transfer(async () => {
      const metadata = isMetadata(inode);
      const ios = await this.#map(inode, pieces, 'read', metadata);
      if (!metadata) {
        await readData(this.#bound, inode, ios, signal);
        return;
      }
      if (ios.length > 0) await this.#bound.readMetadata(ios, signal);
      this.#verify(inode, pieces);
      for (const io of ios) this.#learn(io);
    });
  }

  async write(ino: InodeNumber, pieces: readonly FilePiece[]): Promise<void> {
    const inode = await this.#inode(ino, 'write');
    await inode.transfer(async () => {
      if (inode.isInline) {
        this.#writeInline(inode, pieces);
        return;
      }
      const metadata = isMetadata(inode);
      const ios = await this.#map(inode, pieces, 'write', metadata);
      if (metadata) await this.#writeMetadata(pieces, ios);
      else await writeData(this.#bound, inode, pieces, ios);
    });
  }

  /**
   * What needs nothing but its bytes brought to their places goes in one write, from this turn on: regular files whose blocks are known, with nothing of
   * any file in the log. So none of them waits for anything that another one of them stands in the way of.
   */
  writeTogether(writes: readonly FileWrite[]): Promise<void>[] {
    const joined = new JoinedWrites(this.#bound);
    const results = writes.map(({ ino, pieces }) => {
      const inode = this.#bound.inodes.get(ino);
      if (inode === undefined || !joined.takes(inode)) return this.write(ino, pieces);
      let ios: FileIo[] | number;
      try {
        ios = this.#tryMap(inode, pieces, 'write', false);
      } catch (error) {
        return Promise.reject(error);
      }
      return typeof ios === 'number' ? this.write(ino, pieces) : joined.add(inode, ios);
    });
    joined.start();
    return results;
  }

  lost(ino: InodeNumber, { start, end }: ByteRange, cause: FsError): void {
    const volume = this.#bound;
    const detail = `bytes ${start} to ${end} were written beside damaged ones`;
    volume.counters.add('fs.writesLost');
    volume.inodes
      .peek(ino)
      ?.noteLost(new FsError('writesLost', { op: 'fsync', object: `inode ${ino}`, detail, cause }));
  }

  async makeDurable(ino: InodeNumber, range: ByteRange): Promise<boolean> {
    const volume = this.#bound;
    await placeLogged(volume, ino, range);
    const keys = volume.sectors.undurable(ino, range);
    if (keys.length > 0) await volume.log?.makeDurable(keys);
    const inode = volume.inodes.get(ino);
    return inode === undefined || flushWritten(volume, [inode], 'dataHandOver');
  }

  #learn({ nsd, sector, versions }: SectorIo): void {
    versions?.forEach((version, index) => {
      this.#bound.wasRead({ nsd, sector: sector + index, count: 1 }, version);
    });
  }

  /** L1: what is written in place is in the log, durably. The pages are stable until this ends. */
  async #writeMetadata(pieces: readonly FilePiece[], ios: readonly FileIo[]): Promise<void> {
    const { log, sectors, parts } = this.#bound;
    if (ios.length === 0) return;
    // The log may be at it: what was lost it writes again from its own images.
    for (let busy = this.#busy(ios); busy !== undefined; busy = this.#busy(ios)) await busy;
    const writes: SectorWrite[] = [];
    let last = 0;
    for (const { nsd, sector, versions } of ios)
      for (let index = 0; index < (versions?.length ?? 0); index++) {
        const write = sectors.beginWrite({ nsd, sector: sector + index });
        versions![index] = write.version;
        last = Math.max(last, write.dirty?.last ?? 0);
        writes.push(write);
      }
    let succeeded = false;
    try {
      this.#seal(pieces);
      await log?.force(last);
      // Their records are their intents (S1), where there are some.
      const logged = writes.every(({ dirty }) => dirty !== null);
      await parts.nsds.write(logged ? ios.map((io) => ({ ...io, logged: true })) : ios);
      succeeded = true;
    } finally {
      for (const write of writes) sectors.endWrite(write, succeeded);
    }
  }

  #busy(ios: readonly FileIo[]): Promise<void> | undefined {
    for (const { nsd, sector, memory } of ios)
      for (let at = 0; at < memory.lengthBytes / SECTOR_BYTES; at++) {
        const ended = this.#bound.sectors.writeEnded(keyOf({ nsd, sector: sector + at }));
        if (ended !== undefined) return ended;
      }
    return undefined;
  }

  async reserve(ino: InodeNumber, range: ByteRange, options?: { readonly ahead: boolean }): Promise<void> {
    const volume = this.#bound;
    if (volume.systemFiles.has(ino)) return;
    if (options?.ahead !== true) return reserve(volume, await this.#inode(ino, 'reserve'), range);
    const leave = volume.log?.tryEnter('inner');
    if (leave === null) throw new FsError('busy', { op: 'reserve', object: `inode ${ino}`, detail: 'the log is full' });
    // Pointers change under the exclusive status token only: without it they could change after it has left.
    const pins = volume.parts.tokens.tryPin([volume.inodes.statusItem(ino, TokenMode.exclusive)]);
    try {
      if (pins === null)
        throw new FsError('busy', { op: 'reserve', object: `inode ${ino}`, detail: 'its status token is not at hand' });
      await reserve(volume, await this.#inode(ino, 'reserve'), range);
    } finally {
      pins?.release();
      leave?.();
    }
  }

  isReserved(ino: InodeNumber, range: ByteRange): boolean {
    if (this.#bound.systemFiles.has(ino)) return true;
    const inode = this.#bound.inodes.get(ino);
    return inode !== undefined && isReserved(inode, range);
  }

  async #map(inode: Inode, pieces: readonly FilePiece[], op: 'read' | 'write', versioned: boolean): Promise<FileIo[]> {
    for (;;) {
      const ios = this.#tryMap(inode, pieces, op, versioned);
      if (typeof ios !== 'number') return ios;
      await loadPointers(this.#bound, inode, ios);
    }
  }

  /** Pieces cut at block boundaries and turned into sectors; reads of holes are answered with zeros at once. A number: the block whose pointer is to be loaded. */
  #tryMap(inode: Inode, pieces: readonly FilePiece[], op: 'read' | 'write', versioned: boolean): FileIo[] | number {
    const { bytes } = this.#bound.parts.pool;
    const ios: FileIo[] = [];
    if (inode.isInline) {
      for (const { offsetBytes, lengthBytes, poolOffsetBytes } of pieces) {
        bytes.fill(0, poolOffsetBytes, poolOffsetBytes + lengthBytes);
        const inline = inode.area.subarray(0, inode.sizeBytes).subarray(offsetBytes, offsetBytes + lengthBytes);
        bytes.set(inline, poolOffsetBytes);
      }
      return ios;
    }
    for (const piece of pieces) {
      const end = piece.offsetBytes + piece.lengthBytes;
      for (let at = piece.offsetBytes; at < end; ) {
        const block = Math.floor(at / BLOCK_BYTES);
        const pointer = findPointer(inode, block);
        if (pointer === undefined) return block;
        const blockStart = block * BLOCK_BYTES;
        const blockEnd = Math.min(end, blockStart + BLOCK_BYTES);
        const presentEnd = Math.min(blockEnd, blockStart + (pointer?.count ?? 0) * SECTOR_BYTES);
        const poolAt = piece.poolOffsetBytes + (at - piece.offsetBytes);
        if (pointer && at < presentEnd) {
          const extent = {
            nsd: pointer.nsd,
            sector: pointer.sector + (at - blockStart) / SECTOR_BYTES,
            count: (presentEnd - at) / SECTOR_BYTES,
          };
          ios.push({
            nsd: extent.nsd,
            sector: extent.sector,
            memory: { offsetBytes: poolAt, lengthBytes: presentEnd - at },
            fileOffsetBytes: at,
            ...(versioned ? { versions: new Uint32Array(extent.count) } : {}),
            ...(op === 'write' && inode.holdsDataBack && isExposed(inode, at, extent)
              ? { exposed: true as const }
              : {}),
          });
        }
        const holeStart = Math.max(at, presentEnd);
        if (holeStart < blockEnd) {
          if (op === 'read') bytes.fill(0, poolAt + (holeStart - at), poolAt + (blockEnd - at));
          else this.#checkBehindEnd(inode, holeStart);
        }
        at = blockEnd;
      }
    }
    return ios;
  }

  /** Dirty sectors without space are those that a truncation has just cut off; anything else would be lost silently. */
  #checkBehindEnd(inode: Inode, offsetBytes: number): void {
    if (offsetBytes >= Math.ceil(inode.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES) return;
    throw new FsError('internal', {
      op: 'write',
      object: `inode ${inode.ino}`,
      detail: `no space was reserved for offset ${offsetBytes}`,
    });
  }

  #writeInline(inode: Inode, pieces: readonly FilePiece[]): void {
    this.#bound.inodes.refresh(inode);
    holdBack(this.#bound, inode);
    const area = new Uint8Array(Math.min(inode.sizeBytes, AREA_BYTES));
    area.set(inode.area.subarray(0, area.length));
    for (const { offsetBytes, lengthBytes, poolOffsetBytes } of pieces) {
      if (offsetBytes >= area.length) continue;
      const length = Math.min(lengthBytes, area.length - offsetBytes);
      area.set(this.#bound.parts.pool.bytes.subarray(poolOffsetBytes, poolOffsetBytes + length), offsetBytes);
    }
    inode.area = area;
    this.#bound.inodes.markDirty(inode, true);
  }

  #sectors(pieces: readonly FilePiece[], use: (sector: Uint8Array, index: number) => void): void {
    const { bytes } = this.#bound.parts.pool;
    for (const { offsetBytes, lengthBytes, poolOffsetBytes } of pieces)
      for (let at = 0; at < lengthBytes; at += SECTOR_BYTES) {
        const start = poolOffsetBytes + at;
        use(bytes.subarray(start, start + SECTOR_BYTES), (offsetBytes + at) / SECTOR_BYTES);
      }
  }

  #seal(pieces: readonly FilePiece[]): void {
    this.#sectors(pieces, (sector) => {
      if (getU32(sector, 0) !== 0) sealSector(sector, this.#bound.checksums);
    });
  }

  #verify(inode: Inode, pieces: readonly FilePiece[]): void {
    const { fsId, checksums, geometry } = this.#bound;
    this.#sectors(pieces, (sector, index) => {
      if (inode.ino === ALLOCATION_MAP) {
        if (index >= geometry.regionCount * geometry.nsdCount) return;
        const fault = regionFault(sector, index, geometry, fsId, checksums);
        if (fault !== null) throw corrupt('read', `allocation map sector ${index}`, fault);
      } else if (inode.ino === INODE_MAP) {
        if (index >= geometry.segmentCount) return;
        const fault = segmentFault(sector, index, fsId, checksums);
        if (fault !== null) throw corrupt('read', `inode map segment ${index}`, fault);
      } else {
        const fault = leafFault(sector, inode, index, fsId, checksums);
        if (fault !== null) throw corrupt('read', `directory ${inode.ino} leaf ${index}`, fault);
      }
    });
  }
}

const isMetadata = (inode: Inode): boolean =>
  inode.isDirectory || inode.ino === ALLOCATION_MAP || inode.ino === INODE_MAP;
