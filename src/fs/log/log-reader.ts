/** Reading the table of logs and whole logs, by whoever recovers. Takes no token: the caller knows that nobody writes there. */
import { FsError } from '../../common/errors.js';
import { SECTOR_BYTES } from '../../common/units.js';
import type { BufferArena, PagePool } from '../../native/page-pool.js';
import type { Checksums } from '../../nsd/checksums.js';
import { isCopyAway, isCopyLost, readableCopies } from '../../nsd/mirrored-nsds.js';
import type { NsdClientApi, SectorIo } from '../../nsd/nsd-api.js';
import { settleAll } from '../../nsd/settle-all.js';
import { findPointer } from '../block-map.js';
import { writeDurably } from '../durable.js';
import { Inode } from '../inode.js';
import { decodeInode } from '../inode-format.js';
import { type Extent, type Geometry, LOG_TABLE } from '../layout.js';
import { corrupt, sealSector } from '../sector.js';
import { isLogSector, LogScan, type ScannedLog } from './log-sectors.js';
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
/** Read side by side. */
const RUNS_AT_ONCE = 8;

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

/**
 * All of them; one that can't be believed is null, as is one that can't be read: a power cut may have torn it where another log's record
 * says what it is (the count of what was settled), which redo mends.
 */
export async function readDescriptors(volume: LogVolume, table: Extent): Promise<(LogDescriptor | null)[]> {
  const found: (LogDescriptor | null)[] = [];
  for (let at = 0; at < LOG_SLOTS; at += LOG_RUN) {
    try {
      found.push(...(await readRunOfDescriptors(volume, table, at, LOG_RUN)));
    } catch (error) {
      if (!isMismatch(error)) throw error;
      for (let slot = at; slot < at + LOG_RUN; slot++)
        found.push(
          ...(await readRunOfDescriptors(volume, table, slot, 1).catch((one: unknown) => {
            if (!isMismatch(one)) throw one;
            return [null];
          })),
        );
    }
  }
  return found;
}

/**
 * When all that can be redone has been, which mends those that were torn. One that is still damaged may be of a log that has not been redone: going on
 * without it could lose what was acknowledged, silently. @throws {FsError} corrupt
 */
export function checkDescriptors(descriptors: readonly (LogDescriptor | null)[]): void {
  const slot = descriptors.indexOf(null);
  if (slot < 0) return;
  const detail =
    'its descriptor is damaged: whether what its node had logged is in place is not known (fs check --repair)';
  throw corrupt('log.open', `log ${slot}`, detail);
}

const isMismatch = (error: unknown): boolean => FsError.is(error) && error.reason === 'checksumMismatch';

function readRunOfDescriptors(
  volume: LogVolume,
  table: Extent,
  first: number,
  count: number,
): Promise<(LogDescriptor | null)[]> {
  return withSectors(volume, count, async (bytes, offsetBytes) => {
    const memory = { offsetBytes, lengthBytes: bytes.length };
    await volume.nsds.read([{ nsd: table.nsd, sector: table.sector + first, memory }]);
    return Array.from({ length: count }, (_, i) => {
      const sector = bytes.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
      try {
        return decodeDescriptor(sector, first + i, volume.fsId, volume.geometry, volume.checksums);
      } catch (error) {
        if (!FsError.is(error)) throw error;
        return null;
      }
    });
  });
}

/**
 * Durable when it resolves. `version`: that it is to get.
 * @throws {FsError} staleVersion, if somebody has written it later
 */
export async function writeDescriptor(
  volume: LogVolume,
  table: Extent,
  descriptor: LogDescriptor,
  version?: number,
): Promise<void> {
  await withSectors(volume, 1, async (bytes, offsetBytes) => {
    bytes.set(encodeDescriptor(descriptor, volume.fsId, 1));
    sealSector(bytes, volume.checksums);
    const memory = { offsetBytes, lengthBytes: SECTOR_BYTES };
    const versions = version === undefined ? {} : { versions: Uint32Array.of(version) };
    const io = { nsd: table.nsd, sector: table.sector + descriptor.slot, memory, ...versions };
    await writeDurably(volume.nsds, [io], 'logState');
  });
}

/**
 * The space of a new log becomes zeros, and the NSDs learn that its sectors check themselves. Zeros, since nobody else says any more what is in them, and
 * what a file had there may look like a log. To be flushed before the log is used.
 */
export async function clearLog(storage: LogStorage, pieces: readonly Extent[]): Promise<void> {
  await withSectors(storage, LOG_RUN, async (bytes, offsetBytes) => {
    bytes.fill(0);
    for (const { nsd, sector, count } of pieces) {
      const ios: SectorIo[] = [];
      for (let at = 0; at < count; at += LOG_RUN) {
        const lengthBytes = Math.min(LOG_RUN, count - at) * SECTOR_BYTES;
        ios.push({ nsd, sector: sector + at, memory: { offsetBytes, lengthBytes }, selfChecking: true });
      }
      await storage.nsds.write(ios);
    }
  });
}

export interface ReadLog extends ScannedLog {
  /** A copy that is up to date could not be asked: it may have more of the last group than the other, or none of it. */
  readonly isCopyMissing: boolean;
}

/** A whole log, from its descriptor's tail on. Each sector is taken from a copy that has it: of a group that was cut off one may have more than the other. */
export async function readLog(volume: LogVolume, descriptor: LogDescriptor): Promise<ReadLog> {
  const { slot, generation, pieceSectors, pieces, tail } = descriptor;
  const space = new LogSpace(pieceSectors, pieces);
  const capacity = space.capacitySectors;
  const { checksums, geometry, fsId } = volume;
  const scan = new LogScan({ from: tail, capacity, identity: { fsId, slot, generation }, checksums, geometry });
  const runs = space.runs(tail, capacity, LOG_RUN);
  // What has come is looked at while the next are on their way.
  const underWay: Promise<ReadPlaces>[] = [];
  let isCopyMissing = false;
  try {
    for (let begun = 0; begun < runs.length || underWay.length > 0; ) {
      while (begun < runs.length && underWay.length < RUNS_AT_ONCE) {
        const reading = readPlaces(volume, runs[begun++]!);
        // Who waits for it later gets to know.
        reading.catch(() => undefined);
        underWay.push(reading);
      }
      const read = await underWay[0]!;
      underWay.shift();
      try {
        for (const place of read.places) scan.take(place);
        isCopyMissing ||= read.isCopyMissing;
      } finally {
        read.free();
      }
    }
  } finally {
    for (const left of await Promise.allSettled(underWay)) if (left.status === 'fulfilled') left.value.free();
  }
  return { ...scan.finish(), isCopyMissing };
}

/** What was read becomes what every copy has; to be flushed before anybody goes by it: whoever reads it next may have only one of them (L3). */
export async function evenOut(volume: LogVolume, descriptor: LogDescriptor, uneven: readonly number[]): Promise<void> {
  const { slot, generation, pieceSectors, pieces } = descriptor;
  const space = new LogSpace(pieceSectors, pieces);
  const identity = { fsId: volume.fsId, slot, generation };
  for (const n of uneven) {
    const run = space.runs(n, 1)[0]!;
    const { places, free } = await readPlaces(volume, run);
    try {
      const good = places[0]!.find((sector) => sector !== null && isLogSector(sector, n, identity, volume.checksums));
      if (good == null) throw corrupt('log.read', `log ${slot}`, `sector ${n} is not there any more`);
      const memory = { offsetBytes: good.byteOffset - volume.pool.bytes.byteOffset, lengthBytes: SECTOR_BYTES };
      await volume.nsds.write([{ nsd: run.nsd, sector: run.sector, memory, selfChecking: true }]);
    } finally {
      free();
    }
  }
}

interface ReadPlaces {
  /** By place: what each copy that can be reached says, null where it can't say. Views of staging space. */
  readonly places: readonly (readonly (Uint8Array | null)[])[];
  readonly isCopyMissing: boolean;
  /** Once: they are of no use any more. */
  free(): void;
}

async function readPlaces(volume: LogVolume, { nsd, sector, count }: Extent): Promise<ReadPlaces> {
  const { arena, nsds } = volume;
  const copies = readableCopies(nsds, nsd);
  const gone = new FsError('nsdUnavailable', { op: 'log.read', object: `nsd ${nsd}`, detail: 'no copy is up to date' });
  if (copies.length === 0) throw gone;
  const memory = await arena.allocate(copies.length * count * SECTOR_BYTES);
  try {
    const away: FsError[] = [];
    const reads = copies.map((copy, index) =>
      readCopy(volume, { nsd: copy, sector, count }, memory.offsetBytes + index * count * SECTOR_BYTES).catch(
        (error: unknown) => {
          if (!isCopyLost(error)) throw error;
          away.push(error);
          return null;
        },
      ),
    );
    await settleAll(reads);
    const reached = (await Promise.all(reads)).filter((copy) => copy !== null);
    if (reached.length === 0) throw away[0] ?? gone;
    const places = Array.from({ length: count }, (_, index) => reached.map((copy) => copy[index]!));
    return { places, isCopyMissing: away.some(isCopyAway), free: () => arena.free(memory) };
  } catch (error) {
    arena.free(memory);
    throw error;
  }
}

async function readCopy(
  { nsds, pool }: LogVolume,
  { nsd, sector, count }: Extent,
  offsetBytes: number,
): Promise<(Uint8Array | null)[]> {
  const bytes = Array.from({ length: count }, (_, i) =>
    pool.bytes.subarray(offsetBytes + i * SECTOR_BYTES, offsetBytes + (i + 1) * SECTOR_BYTES),
  );
  try {
    await nsds.read([{ nsd, sector, memory: { offsetBytes, lengthBytes: count * SECTOR_BYTES } }]);
    return bytes;
  } catch (error) {
    if (!isMismatch(error)) throw error;
  }
  // A torn end: sector by sector, what can be had.
  const found: (Uint8Array | null)[] = [];
  for (let i = 0; i < count; i++)
    try {
      const memory = { offsetBytes: offsetBytes + i * SECTOR_BYTES, lengthBytes: SECTOR_BYTES };
      await nsds.read([{ nsd, sector: sector + i, memory }]);
      found.push(bytes[i]!);
    } catch (error) {
      if (!isMismatch(error)) throw error;
      found.push(null);
    }
  return found;
}
