/** Reading the table of logs and whole logs, by whoever recovers. Takes no token: the caller knows that nobody writes there. */
import { FsError } from '../../common/errors.js';
import { SECTOR_BYTES } from '../../common/units.js';
import type { BufferArena, PagePool } from '../../native/page-pool.js';
import type { Checksums } from '../../nsd/checksums.js';
import type { NsdClientApi } from '../../nsd/nsd-api.js';
import { findPointer } from '../block-map.js';
import { Inode } from '../inode.js';
import { decodeInode } from '../inode-format.js';
import { type Extent, type Geometry, LOG_TABLE } from '../layout.js';
import { corrupt, sealSector } from '../sector.js';
import { type ScannedLog, scanLog } from './log-sectors.js';
import { LogSpace } from './log-space.js';
import { decodeDescriptor, encodeDescriptor, LOG_SLOTS, type LogDescriptor } from './log-table.js';

export interface LogStorage {
  readonly nsds: NsdClientApi;
  readonly pool: PagePool;
  readonly arena: BufferArena;
  readonly checksums: Checksums;
}

/** A file system whose logs are looked at. */
export interface LogVolume extends LogStorage {
  readonly fsId: bigint;
  readonly geometry: Geometry;
  /** Where inode 1's block 0 is: the system inodes are in it. */
  readonly inodeFile: Extent;
}

/** Sectors read or written at once. */
export const LOG_RUN = 64;

export async function withSectors<T>(
  { arena, pool }: LogStorage,
  count: number,
  body: (bytes: Uint8Array, offsetBytes: number) => Promise<T>,
): Promise<T> {
  const memory = await arena.allocate(count * SECTOR_BYTES);
  try {
    const { offsetBytes } = memory;
    return await body(pool.bytes.subarray(offsetBytes, offsetBytes + count * SECTOR_BYTES), offsetBytes);
  } finally {
    arena.free(memory);
  }
}

const readRun = (storage: LogStorage, { nsd, sector, count }: Extent): Promise<Uint8Array> =>
  withSectors(storage, count, async (bytes, offsetBytes) => {
    await storage.nsds.read([{ nsd, sector, memory: { offsetBytes, lengthBytes: count * SECTOR_BYTES } }]);
    return bytes.slice();
  });

/** Where the table lies: it was laid out by mkfs and never moves. */
export async function findLogTable(volume: LogVolume): Promise<Extent> {
  const { nsd, sector } = volume.inodeFile;
  const bytes = await readRun(volume, { nsd, sector: sector + LOG_TABLE, count: 1 });
  const fields = decodeInode(LOG_TABLE, bytes, volume.fsId, volume.geometry, volume.checksums);
  const inode = new Inode(LOG_TABLE);
  if (fields !== null) inode.assign(fields);
  const pointer = fields === null ? null : findPointer(inode, 0);
  if (!pointer) throw corrupt('mount', `inode ${LOG_TABLE}`, 'the table of logs is missing');
  return { nsd: pointer.nsd, sector: pointer.sector, count: pointer.count };
}

export async function readDescriptor(volume: LogVolume, table: Extent, slot: number): Promise<LogDescriptor> {
  const bytes = await readRun(volume, { nsd: table.nsd, sector: table.sector + slot, count: 1 });
  return decodeDescriptor(bytes, slot, volume.fsId, volume.geometry, volume.checksums);
}

/** All of them; one that can't be believed is null. */
export async function readDescriptors(volume: LogVolume, table: Extent): Promise<(LogDescriptor | null)[]> {
  const found: (LogDescriptor | null)[] = [];
  for (let at = 0; at < LOG_SLOTS; at += LOG_RUN) {
    const bytes = await readRun(volume, { nsd: table.nsd, sector: table.sector + at, count: LOG_RUN });
    for (let i = 0; i < LOG_RUN; i++) {
      const sector = bytes.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
      try {
        found.push(decodeDescriptor(sector, at + i, volume.fsId, volume.geometry, volume.checksums));
      } catch (error) {
        if (!FsError.is(error)) throw error;
        found.push(null);
      }
    }
  }
  return found;
}

/** Durable when it resolves. */
export async function writeDescriptor(volume: LogVolume, table: Extent, descriptor: LogDescriptor): Promise<void> {
  await withSectors(volume, 1, async (bytes, offsetBytes) => {
    bytes.set(encodeDescriptor(descriptor, volume.fsId, 1));
    sealSector(bytes, volume.checksums);
    const memory = { offsetBytes, lengthBytes: SECTOR_BYTES };
    await volume.nsds.write([{ nsd: table.nsd, sector: table.sector + descriptor.slot, memory }]);
  });
  await volume.nsds.flush([table.nsd]);
}

/** A whole log, from its descriptor's tail on. A sector that one copy can't give is taken from another. */
export async function readLog(volume: LogVolume, descriptor: LogDescriptor): Promise<ScannedLog> {
  const { slot, generation, pieceSectors, copies, tail } = descriptor;
  const space = new LogSpace(pieceSectors, copies);
  const sectors: (Uint8Array | null)[] = [];
  for (let at = 0; at < space.capacitySectors; at += LOG_RUN)
    sectors.push(...(await readPlaces(volume, space, at, Math.min(LOG_RUN, space.capacitySectors - at))));
  const identity = { fsId: volume.fsId, slot, generation };
  return scanLog(tail, space.capacitySectors, identity, volume.checksums, (n) => sectors[n % sectors.length] ?? null);
}

async function readPlaces(
  volume: LogVolume,
  space: LogSpace,
  first: number,
  count: number,
): Promise<(Uint8Array | null)[]> {
  const found: (Uint8Array | null)[] = Array.from({ length: count }, () => null);
  for (let copy = 0; copy < space.copies.length && found.includes(null); copy++)
    for (const { nsd, sector, at, count: length } of space.runsOfCopy(copy, first, count)) {
      const take = (bytes: Uint8Array, from: number): void => {
        for (let i = 0; i * SECTOR_BYTES < bytes.length; i++)
          found[from + i] ??= bytes.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
      };
      try {
        take(await readRun(volume, { nsd, sector, count: length }), at);
      } catch (error) {
        if (!FsError.is(error) || error.reason !== 'checksumMismatch') throw error;
        // A torn end: sector by sector, what can be had.
        for (let i = 0; i < length; i++) {
          try {
            take(await readRun(volume, { nsd, sector: sector + i, count: 1 }), at + i);
          } catch (one) {
            if (!FsError.is(one) || one.reason !== 'checksumMismatch') throw one;
          }
        }
      }
    }
  return found;
}
