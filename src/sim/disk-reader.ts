import { invariant } from '../common/assert.js';
import { type NsdIndex, nsdIndex } from '../common/ids.js';
import { BLOCK_BYTES, SECTOR_BYTES } from '../common/units.js';
import { readPointer } from '../fs/block-pointer.js';
import { DIRECT_POINTERS, decodeInode, FREE_INODE, type InodeFields, InodeFlag } from '../fs/inode-format.js';
import { INODE_FILE } from '../fs/layout.js';
import { decodeSuperblock, fsIdOf, type Superblock } from '../fs/superblock.js';
import type { Checksums } from '../nsd/checksums.js';
import { copiesOf } from '../nsd/copies.js';
import {
  decodeChecksumSector,
  ENTRIES_PER_CHECKSUM_SECTOR,
  geometryOfDevice,
  isLost,
  isSelfChecking,
  readsAsZeros,
  versionOf,
} from '../nsd/nsd-layout.js';
import { uuidToBytes } from '../protocol/nsd-messages.js';
import type { SimDisk } from './sim-disk.js';

/**
 * Reads files straight from the disks, past every cache and token: what is true whatever the nodes believe. Small files only (direct
 * pointers). Every sector's checksum is verified on the way.
 */
export class DiskReader {
  constructor(
    private readonly disks: readonly { readonly disk: SimDisk; readonly uuid: string }[],
    private readonly checksums: Checksums,
    /** Which copy is to be read. */
    private readonly choose: (copies: readonly NsdIndex[]) => NsdIndex,
  ) {}

  /** What the inode's sector says, and which version it is; null when there is no such inode. */
  inode(ino: number): { readonly sizeBytes: number; readonly version: number } | null {
    const superblock = decodeSuperblock(this.#sector(0, 0), this.checksums);
    const inode = this.#inode(superblock, ino);
    if (inode === null || inode.type === FREE_INODE) return null;
    return { sizeBytes: inode.sizeBytes, version: this.#version(superblock, ino) };
  }

  #version(superblock: Superblock, ino: number): number {
    const { inodeFile } = superblock;
    const file = this.#decode(superblock, INODE_FILE, inodeFile.nsd, inodeFile.sector + INODE_FILE);
    invariant(file !== null, 'the inode file has an inode');
    const place = this.#place(file, ino * SECTOR_BYTES);
    return place === null ? 0 : versionOf(this.#word(place.nsd, place.sector));
  }

  /** The file's bytes, as many as its size says or more; or null when there is no such inode. */
  file(ino: number, leastBytes = 0): Uint8Array | null {
    const superblock = decodeSuperblock(this.#sector(0, 0), this.checksums);
    const inode = this.#inode(superblock, ino);
    if (inode === null || inode.type === FREE_INODE) return null;
    const bytes = new Uint8Array(Math.max(inode.sizeBytes, leastBytes));
    if ((inode.flags & InodeFlag.inline) !== 0) {
      bytes.set(inode.area);
      return bytes;
    }
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
      const place = this.#place(inode, at);
      if (place === null) continue;
      bytes.set(this.#sector(place.nsd, place.sector).subarray(0, bytes.length - at), at);
    }
    return bytes;
  }

  #inode(superblock: Superblock, ino: number): InodeFields | null {
    const { inodeFile } = superblock;
    const file = this.#decode(superblock, INODE_FILE, inodeFile.nsd, inodeFile.sector + INODE_FILE);
    invariant(file !== null, 'the inode file has an inode');
    const place = this.#place(file, ino * SECTOR_BYTES);
    return place === null ? null : this.#decode(superblock, ino, place.nsd, place.sector);
  }

  #decode({ fsUuid, geometry }: Superblock, number: number, nsd: number, sector: number): InodeFields | null {
    const bytes = this.#sector(nsd, sector);
    return decodeInode(number as typeof INODE_FILE, bytes, fsIdOf(fsUuid), geometry, this.checksums);
  }

  #place(inode: InodeFields, offsetBytes: number): { nsd: number; sector: number } | null {
    const block = Math.floor(offsetBytes / BLOCK_BYTES);
    invariant(block < DIRECT_POINTERS, 'a file of the simulator has direct pointers only');
    if ((block + 1) * 16 > inode.area.length) return null;
    const pointer = readPointer(inode.area, block * 16);
    const sector = (offsetBytes - block * BLOCK_BYTES) / SECTOR_BYTES;
    return pointer === null || sector >= pointer.count ? null : { nsd: pointer.nsd, sector: pointer.sector + sector };
  }

  #word(home: number, sector: number): number {
    const nsd = this.choose(copiesOf(nsdIndex(home)));
    const { disk, uuid } = this.disks[nsd]!;
    const group = Math.floor(sector / ENTRIES_PER_CHECKSUM_SECTOR);
    const place = { nsd: uuidToBytes(uuid), index: group };
    const sums = decodeChecksumSector(place, this.checksums, disk.peek((1 + group) * SECTOR_BYTES), 0);
    return sums.entries[(sector - group * ENTRIES_PER_CHECKSUM_SECTOR) * 2 + 1]!;
  }

  /** @throws InvariantError when the bytes are not what their writer said they are. */
  #sector(home: number, sector: number): Uint8Array {
    const nsd = this.choose(copiesOf(nsdIndex(home)));
    const { disk, uuid } = this.disks[nsd]!;
    const geometry = geometryOfDevice(disk.lengthBytes);
    const group = Math.floor(sector / ENTRIES_PER_CHECKSUM_SECTOR);
    const place = { nsd: uuidToBytes(uuid), index: group };
    const sums = decodeChecksumSector(place, this.checksums, disk.peek((1 + group) * SECTOR_BYTES), 0);
    invariant(sums.lostPieces === 0, `checksum sector ${group} of NSD ${nsd} is readable`);
    const at = (sector - group * ENTRIES_PER_CHECKSUM_SECTOR) * 2;
    const word = sums.entries[at + 1]!;
    if (readsAsZeros(word)) return new Uint8Array(SECTOR_BYTES);
    const bytes = disk.peek((geometry.dataStart + sector) * SECTOR_BYTES);
    if (isSelfChecking(word)) return bytes;
    const crc = new Uint32Array(1);
    this.checksums.sectors(bytes, 0, 1, crc, 0);
    invariant(!isLost(word) && crc[0] === sums.entries[at], `sector ${sector} of NSD ${nsd} has its checksum`);
    return bytes;
  }
}
