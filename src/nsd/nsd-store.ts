import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { isSectorVersion } from '../common/sector-version.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { type SectorExtent, uuidToBytes } from '../protocol/nsd-messages.js';
import { ChecksumArea, type ChecksumGroup, forEachRun, setEntry, wordOf } from './checksum-area.js';
import type { Checksums } from './checksums.js';
import type { BlockDevice } from './nsd-api.js';
import {
  decodeHeader,
  ENTRIES_PER_CHECKSUM_SECTOR,
  encodeChecksumSector,
  encodeHeader,
  geometryOf,
  geometryOfDevice,
  type HeaderVerdict,
  holeWord,
  isLost,
  type NsdGeometry,
  type NsdHeader,
  newEntries,
  nextVersion,
  readsAsZeros,
  takesVersion,
  versionOf,
} from './nsd-layout.js';
import { SectorLocks } from './sector-locks.js';

/**
 * One open NSD over a block device: data sectors with a checksum and a version each (S1). The layout is in nsd-layout.ts.
 *
 * Invariants
 * - A write resolves when its data and the checksum sectors that speak of it are on the device (not flushed).
 * - Two writes (or discards) of one sector follow each other; a read sees a sector before or after a write, with the checksum that
 *   belongs to it, never between.
 * - What a read returns has the checksum that was given when it was written, or is the zeros of a sector never written.
 *
 * Fault model: the device may fail, fall short, return other bytes than were written, and at a power cut lose or tear whatever
 * was not flushed. Every sector then reads as before the write, as after it, or as checksumMismatch. A write that failed leaves the sector old or
 * reporting checksumMismatch, whatever the device did; the same for power cuts between data and checksum: S1's intents, which
 * turn that into old or new, come with the log, and go in front of the device write in `write`.
 *
 * All memory is the page pool's. Nothing here retries; that is the client's, who knows the deadline.
 */
export interface NsdFormatOptions {
  readonly uuid: string;
  readonly fsUuid?: string | null;
  readonly clusterId: string;
  readonly failureGroup: number;
  readonly name: string;
}

/** What a store works with. */
export interface NsdStoreParts {
  readonly device: BlockDevice;
  readonly pool: PagePool;
  readonly checksums: Checksums;
  /** A piece of the pool that is the store's until it is closed: at least NSD_STAGING_BYTES_MIN, a multiple of a sector. */
  readonly staging: PoolSegment;
  readonly counters?: Counters;
  /** Checksum sectors kept in memory; each covers 504 data sectors (about 2 MiB). */
  readonly cachedChecksumSectorsMax?: number;
}
export const NSD_STAGING_BYTES_MIN = 4 * SECTOR_BYTES;
export const CACHED_CHECKSUM_SECTORS_DEFAULT = 4096;

export interface NsdOpenOptions {
  /** Refused with wrongNsd if the device holds another one. */
  readonly uuid?: string;
  /** Refused with wrongNsd if it belongs to another file system, or to none; null: it must belong to none. */
  readonly fsUuid?: string | null;
}

/** Checksums and versions of sectors, filled in by reads and writes; one element per sector. */
export interface SectorStates {
  readonly crcs: Uint32Array;
  readonly versions: Uint32Array;
}
export const newSectorStates = (sectorCount: number): SectorStates => ({
  crcs: new Uint32Array(sectorCount),
  versions: new Uint32Array(sectorCount),
});

/** One element per sector, the write's own from `index` on. */
export interface SectorWrite {
  /** Made by whoever wrote the bytes; taken as they are. */
  readonly crcs: Uint32Array;
  /** What the versions become; refused if any is of before the sector's last write. Left out: each counts up by one. */
  readonly versions?: Uint32Array | undefined;
  /** Gets the versions that the sectors have now. */
  readonly versionsOut?: Uint32Array | undefined;
  readonly index?: number;
}

const DISCARD_SECTORS_AT_ONCE = 16 * ENTRIES_PER_CHECKSUM_SECTOR;

export class NsdStore {
  #header: NsdHeader;
  readonly geometry: NsdGeometry;
  readonly counters: Counters;
  readonly #area: ChecksumArea;
  readonly #locks = new SectorLocks();
  readonly #zeroCrc: number;
  #underWay = 0;
  #closed = false;
  #idle: (() => void) | null = null;
  #headerWrite: Promise<void> = Promise.resolve();

  private constructor(
    private readonly parts: NsdStoreParts,
    header: NsdHeader,
  ) {
    this.#header = header;
    this.geometry = geometryOf(header);
    this.counters = parts.counters ?? new Counters();
    // The first sector of the staging space is the headers'.
    const { staging, pool, checksums } = parts;
    pool.bytes.fill(0, staging.offsetBytes, staging.offsetBytes + SECTOR_BYTES);
    const zero = new Uint32Array(1);
    checksums.sectors(pool.bytes, staging.offsetBytes, 1, zero, 0);
    this.#zeroCrc = zero[0]!;
    this.#area = new ChecksumArea({
      device: parts.device,
      pool,
      checksums,
      counters: this.counters,
      uuid: uuidToBytes(header.uuid),
      staging: { offsetBytes: staging.offsetBytes + SECTOR_BYTES, lengthBytes: staging.lengthBytes - SECTOR_BYTES },
      cachedSectorsMax: parts.cachedChecksumSectorsMax ?? CACHED_CHECKSUM_SECTORS_DEFAULT,
    });
  }

  /**
   * Makes an empty NSD of the device: every checksum sector is written (stale ones of an earlier life would be indistinguishable from
   * corrupt ones), headers last, so that a device half formatted is not an NSD.
   */
  static async format(parts: NsdStoreParts, options: NsdFormatOptions): Promise<NsdHeader> {
    const { device, pool, checksums } = parts;
    const staging = checkedStaging(parts);
    const { dataSectorCount, intentSectorCount } = geometryOfDevice(device.lengthBytes);
    const header: NsdHeader = {
      uuid: options.uuid,
      fsUuid: options.fsUuid ?? null,
      clusterId: options.clusterId,
      failureGroup: options.failureGroup,
      name: options.name,
      dataSectorCount,
      intentSectorCount,
      generation: 1,
    };
    const geometry = geometryOf(header);
    const first: PoolSegment = { offsetBytes: staging.offsetBytes, lengthBytes: SECTOR_BYTES };
    // Checks the options before anything is overwritten.
    encodeHeader(header, checksums, pool.bytes, first.offsetBytes);
    pool.bytes.fill(0, first.offsetBytes, first.offsetBytes + SECTOR_BYTES);
    await device.write(0, first);
    await device.write(geometry.headerCopy * SECTOR_BYTES, first);
    await device.flush();
    const nsd = uuidToBytes(header.uuid);
    const entries = newEntries();
    const sectorsAtOnce = Math.floor(staging.lengthBytes / SECTOR_BYTES);
    for (let index = 0; index < geometry.checksumSectorCount; index += sectorsAtOnce) {
      const count = Math.min(sectorsAtOnce, geometry.checksumSectorCount - index);
      for (let i = 0; i < count; i++) {
        const place = { nsd, index: index + i };
        encodeChecksumSector(place, entries, checksums, pool.bytes, staging.offsetBytes + i * SECTOR_BYTES);
      }
      const memory = { offsetBytes: staging.offsetBytes, lengthBytes: count * SECTOR_BYTES };
      await device.write((1 + index) * SECTOR_BYTES, memory);
    }
    await device.flush();
    await writeHeaders(parts, header);
    return header;
  }

  /** @throws {FsError} wrongNsd (no NSD, or another one, or another file system's), wrongFormat, deviceError. */
  static async open(parts: NsdStoreParts, options: NsdOpenOptions = {}): Promise<NsdStore> {
    checkedStaging(parts);
    const header = await readHeaders(parts);
    const refuse = (detail: string): FsError =>
      new FsError('wrongNsd', { op: 'nsd.open', object: `nsd ${header.uuid}`, detail });
    if (options.uuid !== undefined && options.uuid !== header.uuid)
      throw refuse(`the device holds another NSD than ${options.uuid}`);
    if (options.fsUuid !== undefined && options.fsUuid !== header.fsUuid)
      throw refuse(
        header.fsUuid === null ? 'belongs to no file system' : `belongs to another file system, ${header.fsUuid}`,
      );
    return new NsdStore(parts, header);
  }

  get header(): NsdHeader {
    return this.#header;
  }
  get uuid(): string {
    return this.#header.uuid;
  }
  get dataSectorCount(): number {
    return this.#header.dataSectorCount;
  }
  /** Of the device below. */
  get lengthBytes(): number {
    return this.parts.device.lengthBytes;
  }

  /** Gives the NSD to a file system, or with null frees it. Durable when it resolves. */
  assignTo(fsUuid: string | null): Promise<void> {
    const change = async (): Promise<void> => {
      const header = { ...this.#header, fsUuid, generation: this.#header.generation + 1 };
      await writeHeaders(this.parts, header);
      this.#header = header;
    };
    const done = this.#headerWrite.then(() => this.#counted(change));
    this.#headerWrite = done.catch(() => undefined);
    return done;
  }

  /**
   * Reads sectors from `sector` on into `memory`, as many as fit, and verifies them.
   * @param out gets checksum and version of each, from `outIndex` on.
   * @throws {FsError} checksumMismatch naming NSD and first bad sector, deviceError, shortIo, outOfRange
   */
  read(sector: number, memory: PoolSegment, out?: SectorStates, outIndex = 0): Promise<void> {
    return this.#counted(() => {
      const sectorCount = this.#checkRange('nsd.read', sector, memory);
      const states = out ?? newSectorStates(sectorCount);
      return this.#read(sector, sectorCount, memory, states, out === undefined ? 0 : outIndex);
    });
  }

  async #read(
    sector: number,
    sectorCount: number,
    memory: PoolSegment,
    out: SectorStates,
    outIndex: number,
  ): Promise<void> {
    const { device, pool, checksums } = this.parts;
    const end = sector + sectorCount;
    const lock = await this.#locks.acquire(sector, end, false);
    try {
      const groups = await this.#area.hold(sector, end);
      try {
        const reads: Promise<void>[] = [];
        const mixed = zerosAmong(groups, sector, end) > 0;
        for (let at = sector; at < end; ) {
          const zeros = mixed && readsAsZeros(wordOf(groups, at));
          let runEnd = mixed ? at + 1 : end;
          while (runEnd < end && readsAsZeros(wordOf(groups, runEnd)) === zeros) runEnd++;
          const offsetBytes = memory.offsetBytes + (at - sector) * SECTOR_BYTES;
          const lengthBytes = (runEnd - at) * SECTOR_BYTES;
          if (zeros) {
            pool.bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
            out.crcs.fill(this.#zeroCrc, outIndex + at - sector, outIndex + runEnd - sector);
          } else {
            const first = at;
            const count = runEnd - at;
            reads.push(
              device.read(this.#deviceOffset(first), { offsetBytes, lengthBytes }).then(() => {
                checksums.sectors(pool.bytes, offsetBytes, count, out.crcs, outIndex + first - sector);
              }),
            );
          }
          at = runEnd;
        }
        await settleAll(reads);
        this.#verify(groups, sector, sectorCount, out, outIndex);
        this.counters.add('nsd.readSectors', sectorCount);
      } finally {
        this.#area.drop(groups);
      }
    } finally {
      this.#locks.release(lock);
    }
  }

  #verify(
    groups: readonly ChecksumGroup[],
    sector: number,
    sectorCount: number,
    out: SectorStates,
    outIndex: number,
  ): void {
    const { crcs, versions } = out;
    let bad = -1;
    let mismatches = 0;
    forEachRun(groups, sector, sector + sectorCount, (entries, at, count, before) => {
      for (let i = 0; i < count; i++) {
        const word = entries[at + 2 * i + 1]!;
        const place = outIndex + before + i;
        versions[place] = versionOf(word);
        if (readsAsZeros(word) || (!isLost(word) && crcs[place] === entries[at + 2 * i])) continue;
        mismatches++;
        if (bad < 0) bad = before + i;
      }
    });
    if (mismatches > 0) this.counters.add('nsd.checksumMismatches', mismatches);
    if (bad < 0) return;
    const detail = isLost(wordOf(groups, sector + bad))
      ? 'its stored checksum is unreadable'
      : 'bytes on the device have another checksum than was stored with them';
    throw new FsError('checksumMismatch', { op: 'nsd.read', object: this.#name(sector + bad), detail });
  }

  /**
   * Writes sectors from `sector` on out of `memory`, whose bytes stay stable until it resolves (S2).
   * @throws {FsError} staleVersion (then nothing was written), deviceError, noSpace, outOfRange
   */
  write(sector: number, memory: PoolSegment, what: SectorWrite): Promise<void> {
    return this.#counted(async () => {
      const sectorCount = this.#checkRange('nsd.write', sector, memory);
      const { crcs, versions, versionsOut, index = 0 } = what;
      this.#checkStates(sector, index + sectorCount, crcs, versions);
      const end = sector + sectorCount;
      const lock = await this.#locks.acquire(sector, end, true);
      try {
        await this.#change(
          sector,
          end,
          (groups) => {
            if (versions !== undefined) this.#checkVersions(groups, sector, end, versions, index);
            return this.parts.device.write(this.#deviceOffset(sector), memory);
          },
          (groups) => {
            forEachRun(groups, sector, end, (entries, at, count, before) => {
              for (let i = 0; i < count; i++) {
                const place = index + before + i;
                const version = versions?.[place] ?? nextVersion(entries[at + 2 * i + 1]!);
                entries[at + 2 * i] = crcs[place]!;
                entries[at + 2 * i + 1] = version;
                if (versionsOut !== undefined) versionsOut[place] = version;
              }
            });
            return groups;
          },
        );
        this.counters.add('nsd.writtenSectors', sectorCount);
      } finally {
        this.#locks.release(lock);
      }
    });
  }

  /**
   * Whether a write to these extents with these versions would be taken now: for whoever cuts a request into several writes.
   * @throws {FsError} staleVersion
   */
  checkVersions(extents: readonly SectorExtent[], versions: Uint32Array): Promise<void> {
    return this.#look('nsd.write', extents, (groups, sector, end, index) => {
      this.#checkStates(sector, index + end - sector, versions, versions);
      this.#checkVersions(groups, sector, end, versions, index);
    });
  }
  /** Version words (nsd-layout.ts) of the extents' sectors, one after the other; no data is read. */
  versions(extents: readonly SectorExtent[], out: Uint32Array): Promise<void> {
    return this.#look('nsd.versions', extents, (groups, start, end, index) =>
      forEachRun(groups, start, end, (entries, at, count, before) => {
        for (let i = 0; i < count; i++) out[index + before + i] = entries[at + 2 * i + 1]!;
      }),
    );
  }

  /** Looks at entries, extent after extent (thousands of them are no more than a few checksum sectors), no write being between data and entry. */
  #look(
    op: string,
    extents: readonly SectorExtent[],
    use: (groups: readonly ChecksumGroup[], start: number, end: number, index: number) => void,
  ): Promise<void> {
    return this.#counted(async () => {
      let index = 0;
      for (const { sector, sectorCount } of extents) {
        if (!this.#inRange(sector, sectorCount)) throw this.#outOfRange(op, sector, sectorCount);
        const end = sector + sectorCount;
        const lock = await this.#locks.acquire(sector, end, false);
        try {
          const groups = await this.#area.hold(sector, end);
          try {
            use(groups, sector, end, index);
          } finally {
            this.#area.drop(groups);
          }
        } finally {
          this.#locks.release(lock);
        }
        index += sectorCount;
      }
    });
  }

  #checkVersions(
    groups: readonly ChecksumGroup[],
    sector: number,
    end: number,
    versions: Uint32Array,
    index: number,
  ): void {
    forEachRun(groups, sector, end, (entries, at, count, before) => {
      for (let i = 0; i < count; i++) {
        const word = entries[at + 2 * i + 1]!;
        const version = versions[index + before + i]!;
        if (!isSectorVersion(version))
          throw new FsError('invalidArgument', {
            op: 'nsd.write',
            object: this.#name(sector + before + i),
            detail: `no write has version ${version}`,
          });
        if (takesVersion(word, version)) continue;
        this.counters.add('nsd.staleVersions');
        throw new FsError('staleVersion', {
          op: 'nsd.write',
          object: this.#name(sector + before + i),
          detail: `version ${version} is of before the sector's ${readsAsZeros(word) ? 'hole' : 'bytes'} of version ${versionOf(word)}`,
        });
      }
    });
  }

  #checkStates(sector: number, need: number, crcs: Uint32Array, versions: Uint32Array | undefined): void {
    const enough = crcs.length >= need && (versions === undefined || versions.length >= need);
    if (enough) return;
    const detail = 'too few checksums or versions';
    throw new FsError('invalidArgument', { op: 'nsd.write', object: this.#name(sector), detail });
  }

  /** The device operation, then the entries (`inMemory` says in which groups), then their commit. Under the exclusive lock. */
  async #change(
    start: number,
    end: number,
    onDevice: (groups: readonly ChecksumGroup[]) => Promise<void>,
    inMemory: (groups: readonly ChecksumGroup[]) => readonly ChecksumGroup[],
  ): Promise<void> {
    const groups = await this.#area.hold(start, end);
    try {
      const sequence = this.#area.beginData(groups);
      let committed: Promise<void>;
      try {
        await onDevice(groups);
        committed = this.#area.commit(inMemory(groups));
      } finally {
        this.#area.endData(groups, sequence);
      }
      await committed;
    } finally {
      this.#area.drop(groups);
    }
  }

  /** Resolves when everything that was written before is durable. */
  flush(): Promise<void> {
    return this.#counted(async () => {
      await this.parts.device.flush();
      this.counters.add('nsd.flushes');
    });
  }

  /** The sectors read as zeros from now on. Like a write, not durable before a flush. */
  discard(sector: number, sectorCount: number): Promise<void> {
    return this.#counted(async () => {
      if (!this.#inRange(sector, sectorCount)) throw this.#outOfRange('nsd.discard', sector, sectorCount);
      const end = sector + sectorCount;
      for (let at = sector; at < end; at += DISCARD_SECTORS_AT_ONCE)
        await this.#discard(at, Math.min(end, at + DISCARD_SECTORS_AT_ONCE));
    });
  }

  async #discard(start: number, end: number): Promise<void> {
    const lock = await this.#locks.acquire(start, end, true);
    try {
      await this.#change(
        start,
        end,
        async () => undefined,
        (groups) => {
          const changed = new Set<number>();
          for (let at = start; at < end; at++) {
            const word = wordOf(groups, at);
            // What reads as zeros has nothing to forget.
            if (readsAsZeros(word)) continue;
            setEntry(groups, at, 0, holeWord(word));
            changed.add(Math.floor(at / ENTRIES_PER_CHECKSUM_SECTOR));
          }
          return groups.filter((group) => changed.has(group.index));
        },
      );
      this.counters.add('nsd.discardedSectors', end - start);
      // After the entries: the bytes are nobody's now, whatever the device makes of them.
      await this.parts.device
        .discard(this.#deviceOffset(start), (end - start) * SECTOR_BYTES)
        .catch((error: unknown) => {
          // Giving the space back is a favour; a device that can't (or fails to) leaves the sectors zero all the same.
          this.counters.add('nsd.deviceDiscardsFailed');
          if (!FsError.is(error)) throw error;
        });
    } finally {
      this.#locks.release(lock);
    }
  }

  /** Waits for what is under way, then closes the device. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#underWay > 0)
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    await this.parts.device.close();
  }

  #deviceOffset(sector: number): number {
    return (this.geometry.dataStart + sector) * SECTOR_BYTES;
  }
  #name(sector: number): string {
    return `nsd ${this.uuid} sector ${sector}`;
  }
  #inRange(sector: number, sectorCount: number): boolean {
    return (
      Number.isSafeInteger(sector) &&
      Number.isSafeInteger(sectorCount) &&
      sector >= 0 &&
      sectorCount >= 1 &&
      sector + sectorCount <= this.dataSectorCount
    );
  }
  #outOfRange(op: string, sector: number, sectorCount: number): FsError {
    const detail = `${sectorCount} sectors from ${sector} on are not among the ${this.dataSectorCount} there are`;
    return new FsError('outOfRange', { op, object: this.#name(sector), detail });
  }
  #checkRange(op: string, sector: number, memory: PoolSegment): number {
    checkMemory(op, memory, this.parts.pool);
    const sectorCount = memory.lengthBytes / SECTOR_BYTES;
    if (!this.#inRange(sector, sectorCount)) throw this.#outOfRange(op, sector, sectorCount);
    return sectorCount;
  }

  async #counted<T>(operation: () => Promise<T>): Promise<T> {
    if (this.#closed)
      throw new FsError('closed', { op: 'nsd', object: `nsd ${this.uuid}`, detail: 'the NSD is closed' });
    this.#underWay++;
    try {
      return await operation();
    } finally {
      this.#underWay--;
      if (this.#underWay === 0) this.#idle?.();
    }
  }
}

/** Whole sectors of the pool, at a sector's boundary. @throws {FsError} invalidArgument */
export function checkMemory(op: string, memory: PoolSegment, pool: PagePool): void {
  const { offsetBytes, lengthBytes } = memory;
  const whole = Number.isSafeInteger(offsetBytes) && Number.isSafeInteger(lengthBytes);
  const aligned = offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0;
  if (!whole || !aligned || offsetBytes < 0 || lengthBytes <= 0 || offsetBytes + lengthBytes > pool.lengthBytes)
    throw new FsError('invalidArgument', {
      op,
      detail: `memory of ${lengthBytes} bytes at ${offsetBytes} is not whole sectors of the page pool`,
    });
}

/** Waits for every one, then throws the first failure: memory may be reused only when nothing is in flight any more (S3). */
export async function settleAll(operations: readonly Promise<unknown>[]): Promise<void> {
  const results = await Promise.allSettled(operations);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

function checkedStaging(parts: NsdStoreParts): PoolSegment {
  checkMemory('nsd.open', parts.staging, parts.pool);
  if (parts.staging.lengthBytes < NSD_STAGING_BYTES_MIN)
    throw new FsError('invalidArgument', { op: 'nsd.open', detail: 'too little staging space for an NSD' });
  return parts.staging;
}

async function readHeaders(parts: NsdStoreParts): Promise<NsdHeader> {
  const { device, pool, checksums, staging } = parts;
  const memory: PoolSegment = { offsetBytes: staging.offsetBytes, lengthBytes: SECTOR_BYTES };
  const readAt = async (deviceSector: number): Promise<HeaderVerdict> => {
    try {
      await device.read(deviceSector * SECTOR_BYTES, memory);
    } catch (error) {
      failures.push(error);
      return { ok: false, kind: 'broken', why: error instanceof Error ? error.message : String(error) };
    }
    return decodeHeader(pool.bytes, memory.offsetBytes, device.lengthBytes, checksums);
  };
  const failures: unknown[] = [];
  if (device.lengthBytes < 2 * SECTOR_BYTES)
    throw new FsError('wrongNsd', { op: 'nsd.open', detail: 'the device is too small to hold an NSD' });
  const first = await readAt(0);
  // Where the copy is follows from the header; without one it can only be at the end.
  const lastSector = Math.floor(device.lengthBytes / SECTOR_BYTES) - 1;
  const copyAt = first.ok ? geometryOf(first.header).headerCopy : lastSector;
  const second = await readAt(copyAt);
  const valid = [first, second].filter((verdict) => verdict.ok).map((verdict) => verdict.header);
  const [a, b] = valid;
  if (a !== undefined && b !== undefined) {
    if (a.uuid !== b.uuid)
      throw new FsError('wrongNsd', {
        op: 'nsd.open',
        object: `nsd ${a.uuid}`,
        detail: `the header's copy is of nsd ${b.uuid}`,
      });
    return b.generation > a.generation ? b : a;
  }
  if (a !== undefined) {
    parts.counters?.add('nsd.headersBroken');
    // A copy found at the end of the device must be one that belongs there.
    if (!first.ok && geometryOf(a).headerCopy !== lastSector)
      throw new FsError('wrongNsd', {
        op: 'nsd.open',
        object: `nsd ${a.uuid}`,
        detail: "the header's copy is out of place",
      });
    return a;
  }
  const why = first.ok ? '' : first.why;
  const foreign = [first, second].some((verdict) => !verdict.ok && verdict.kind === 'foreign');
  if (failures.length === 2) throw failures[0];
  throw new FsError(foreign ? 'wrongFormat' : 'wrongNsd', {
    op: 'nsd.open',
    detail: foreign ? `an NSD this version can't read: ${why}` : `no NSD on the device: ${why}`,
    cause: failures[0],
  });
}

async function writeHeaders(parts: NsdStoreParts, header: NsdHeader): Promise<void> {
  const { device, pool, checksums, staging } = parts;
  const memory: PoolSegment = { offsetBytes: staging.offsetBytes, lengthBytes: SECTOR_BYTES };
  encodeHeader(header, checksums, pool.bytes, memory.offsetBytes);
  await device.write(geometryOf(header).headerCopy * SECTOR_BYTES, memory);
  await device.flush();
  await device.write(0, memory);
  await device.flush();
}

/** How many of the sectors [start, end) read as zeros. */
function zerosAmong(groups: readonly ChecksumGroup[], start: number, end: number): number {
  let zeros = 0;
  forEachRun(groups, start, end, (entries, at, count) => {
    for (let i = 0; i < count; i++) if (readsAsZeros(entries[at + 2 * i + 1]!)) zeros++;
  });
  return zeros;
}
