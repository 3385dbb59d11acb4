import { invariant } from '../common/assert.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { isSectorVersion } from '../common/sector-version.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { type NsdLife, type SectorExtent, uuidToBytes } from '../protocol/nsd-messages.js';
import { ChecksumArea, type ChecksumGroup, forEachRun, setEntry, wordOf, zerosAmong } from './checksum-area.js';
import type { Checksums } from './checksums.js';
import { FlushLine } from './flush-line.js';
import { FreshHoles } from './fresh-holes.js';
import { HeaderPair, readHeaders } from './header-pair.js';
import { IntentArea } from './intent-area.js';
import type { Intent } from './intent-layout.js';
import { settleIntents } from './intent-recovery.js';
import type { BlockDevice } from './nsd-api.js';
import { formatNsd, type NsdFormatOptions } from './nsd-format.js';
import {
  ENTRIES_PER_CHECKSUM_SECTOR,
  geometryOf,
  holeWord,
  isLost,
  isSelfChecking,
  type NsdGeometry,
  type NsdHeader,
  nextVersion,
  readsAsZeros,
  SELF_CHECKING_WORD,
  takesVersion,
  versionOf,
} from './nsd-layout.js';
import { checkMemory, checkStaging, NSD_STAGING_BYTES_MIN } from './pool-memory.js';
import { SectorLocks } from './sector-locks.js';
import { settleAll } from './settle-all.js';

/**
 * One open NSD over a block device: data sectors with a checksum and a version each (S1). The layout is in nsd-layout.ts.
 *
 * Invariants
 * - A write resolves when its data and the checksum sectors that speak of it are on the device (not flushed).
 * - Two writes (or discards) of one sector follow each other; a read sees a sector before or after a write, with the checksum that
 *   belongs to it, never between.
 * - What a read returns has the checksum that was given when it was written, or is the zeros of a sector never written; of sectors that check
 *   themselves it is what the device has.
 *
 * Fault model: the device may fail, fall short, return other bytes than were written, and at a power cut lose or tear whatever
 * was not flushed. A write over what was there then leaves the sector as before or as after it, thanks to its intent (S1); only what is
 * torn in itself reports checksumMismatch, and so may the write of a sector that was zeros (unless it was said to be exposed) or whose intent is a log record. A write
 * that failed leaves the sector old or reporting checksumMismatch, whatever the device did.
 *
 * All memory is the page pool's. Nothing here retries; that is the client's, who knows the deadline.
 */
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
export { NSD_STAGING_BYTES_MIN };
export const CACHED_CHECKSUM_SECTORS_DEFAULT = 4096;

export interface NsdOpenOptions {
  /** To see what it is, while another server may be at work on it: nothing is changed, nor read or written before `recover`. */
  readonly lookOnly?: boolean;
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
  /** A durable log record holds the same bytes, and is the intent. */
  readonly logged?: boolean;
  /** What reads as zeros now is somebody's too: it gets an intent like what was written. */
  readonly exposed?: boolean;
  /** The sectors check themselves, as a log's do: no checksum and no version is kept for them, none is named. */
  readonly selfChecking?: boolean;
  /** These sectors are on the medium when it resolves, as after a flush; of other writes that says nothing. */
  readonly durable?: boolean;
}

/** An operation that also an NSD that was only looked at can do. */
const LOOKING = 'looking';
/** More of them are not remembered: a flush makes them durable. */
const FRESH_HOLES_MAX = 1024;

const DISCARD_SECTORS_AT_ONCE = 16 * ENTRIES_PER_CHECKSUM_SECTOR;

export class NsdStore {
  readonly #headers: HeaderPair;
  readonly geometry: NsdGeometry;
  readonly counters: Counters;
  readonly #area: ChecksumArea;
  readonly #locks = new SectorLocks();
  readonly #zeroCrc: number;
  #underWay = 0;
  #closed = false;
  #idle: (() => void) | null = null;
  readonly #line: FlushLine;
  readonly #intents: IntentArea;
  readonly #intentStaging: PoolSegment;
  #recovery: Promise<void> | null = null;
  #recovered = false;
  readonly #freshHoles = new FreshHoles();
  /** Sectors that check themselves, though no flush has covered yet that they do. */
  readonly #freshSelfChecking = new FreshHoles();

  private constructor(
    private readonly parts: NsdStoreParts,
    header: NsdHeader,
  ) {
    this.#headers = new HeaderPair(parts, header);
    this.geometry = geometryOf(header);
    this.counters = parts.counters ?? new Counters();
    // The first sector of the staging space is the headers', then come the intents'.
    const { staging, pool, checksums, device } = parts;
    const uuid = uuidToBytes(header.uuid);
    const intentBytes = SECTOR_BYTES * Math.min(16, Math.max(1, Math.floor(staging.lengthBytes / SECTOR_BYTES / 4)));
    const restAt = SECTOR_BYTES + intentBytes;
    this.#intentStaging = { offsetBytes: staging.offsetBytes + SECTOR_BYTES, lengthBytes: intentBytes };
    this.#line = new FlushLine(device, (number) => this.#flushed(number));
    this.#intents = new IntentArea({
      device,
      pool,
      checksums,
      counters: this.counters,
      line: this.#line,
      geometry: this.geometry,
      uuid,
      staging: this.#intentStaging,
    });
    pool.bytes.fill(0, staging.offsetBytes, staging.offsetBytes + SECTOR_BYTES);
    const zero = new Uint32Array(1);
    checksums.sectors(pool.bytes, staging.offsetBytes, 1, zero, 0);
    this.#zeroCrc = zero[0]!;
    this.#area = new ChecksumArea({
      device,
      pool,
      checksums,
      counters: this.counters,
      uuid,
      staging: { offsetBytes: staging.offsetBytes + restAt, lengthBytes: staging.lengthBytes - restAt },
      cachedSectorsMax: parts.cachedChecksumSectorsMax ?? CACHED_CHECKSUM_SECTORS_DEFAULT,
    });
  }

  /**
   * Makes an empty NSD of the device: every checksum sector is written (stale ones of an earlier life would be indistinguishable from
   * corrupt ones), headers last, so that a device half formatted is not an NSD.
   */
  static format(parts: NsdStoreParts, options: NsdFormatOptions): Promise<NsdHeader> {
    checkStaging(parts);
    return formatNsd(parts, options);
  }

  /** @throws {FsError} wrongNsd (no NSD, or another one, or another file system's), wrongFormat, deviceError. */
  static async open(parts: NsdStoreParts, options: NsdOpenOptions = {}): Promise<NsdStore> {
    checkStaging(parts);
    const header = await readHeaders(parts);
    const refuse = (detail: string): FsError =>
      new FsError('wrongNsd', { op: 'nsd.open', object: `nsd ${header.uuid}`, detail });
    if (options.uuid !== undefined && options.uuid !== header.uuid)
      throw refuse(`the device holds another NSD than ${options.uuid}`);
    if (options.fsUuid !== undefined && options.fsUuid !== header.fsUuid)
      throw refuse(
        header.fsUuid === null ? 'belongs to no file system' : `belongs to another file system, ${header.fsUuid}`,
      );
    const store = new NsdStore(parts, header);
    if (options.lookOnly === true) store.#headers.looked();
    else await store.recover();
    return store;
  }

  /**
   * Settles what an earlier life has left half written (S1); from then on the NSD can be read and written. No other server may be at work on
   * it. Again: nothing, or another try.
   */
  recover(): Promise<void> {
    this.#recovery ??= this.#counted(async () => {
      await this.#headers.readAgain();
      await settleIntents({
        ...this.parts,
        counters: this.counters,
        geometry: this.geometry,
        area: this.#area,
        intents: this.#intents,
        flush: () => this.#line.flush(),
        staging: this.#intentStaging,
      });
      await this.#headers.beginLife();
      this.#recovered = true;
    }, LOOKING).catch((error: unknown) => {
      this.#recovery = null;
      throw error;
    });
    return this.#recovery;
  }

  get header(): NsdHeader {
    return this.#headers.header;
  }
  get uuid(): string {
    return this.#headers.header.uuid;
  }
  /** Whose unflushed writes there are, and since which life none can have been lost. */
  get life(): NsdLife {
    return this.#headers.header;
  }
  get dataSectorCount(): number {
    return this.#headers.header.dataSectorCount;
  }
  /** Of the device below. */
  get lengthBytes(): number {
    return this.parts.device.lengthBytes;
  }

  /** Gives the NSD to a file system, or with null frees it. Durable when it resolves. */
  assignTo(fsUuid: string | null): Promise<void> {
    return this.#counted(() => this.#headers.change({ fsUuid }), LOOKING);
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
        if (readsAsZeros(word) || isSelfChecking(word)) continue;
        if (!isLost(word) && crcs[place] === entries[at + 2 * i]) continue;
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
      if (what.selfChecking === true) return this.#writeSelfChecking(sector, memory, what);
      const sectorCount = this.#checkRange('nsd.write', sector, memory);
      const { crcs, versions, index = 0 } = what;
      this.#checkStates(sector, index + sectorCount, crcs, versions);
      const end = sector + sectorCount;
      const lock = await this.#locks.acquire(sector, end, true);
      try {
        const groups = await this.#area.hold(sector, end);
        try {
          if (versions !== undefined) this.#checkVersions(groups, sector, end, versions, index);
          const atOnce = this.#intents.atOnceMax;
          for (let at = sector; at < end; at += atOnce)
            await this.#write(
              groups,
              at,
              Math.min(end, at + atOnce),
              memory.offsetBytes + (at - sector) * SECTOR_BYTES,
              {
                ...what,
                index: index + at - sector,
              },
            );
        } finally {
          this.#area.drop(groups);
        }
        this.counters.add('nsd.writtenSectors', sectorCount);
      } finally {
        this.#locks.release(lock);
      }
      if (what.durable === true) await this.#line.flush();
    });
  }

  /** Once the NSD knows of them, a write of such sectors is one write of the device, durable in itself where that is asked for. */
  async #writeSelfChecking(sector: number, memory: PoolSegment, what: SectorWrite): Promise<void> {
    const sectorCount = this.#checkRange('nsd.write', sector, memory);
    const end = sector + sectorCount;
    const durable = what.durable === true;
    let known = true;
    const lock = await this.#locks.acquire(sector, end, true);
    try {
      const groups = await this.#area.hold(sector, end);
      try {
        forEachRun(groups, sector, end, (entries, at, count) => {
          for (let i = 0; i < count; i++) known &&= isSelfChecking(entries[at + 2 * i + 1]!);
        });
        const write = (): Promise<void> => this.parts.device.write(this.#deviceOffset(sector), memory, durable);
        if (known) await write();
        else
          await this.#change(groups, write, () => {
            for (let at = sector; at < end; at++) setEntry(groups, at, 0, SELF_CHECKING_WORD);
            return groups;
          });
      } finally {
        this.#area.drop(groups);
      }
      this.counters.add('nsd.writtenSectors', sectorCount);
      if (!known) this.#freshSelfChecking.add(sector, end, this.#line.begun);
      // After a power cut they would not be known, and read as what they were before.
      else if (durable) known = !this.#freshSelfChecking.overlaps(sector, end);
    } finally {
      this.#locks.release(lock);
    }
    if (!known && (durable || this.#freshSelfChecking.size > FRESH_HOLES_MAX)) await this.#line.flush();
  }

  /** Intents, if any are needed, then data, then entries. */
  async #write(
    groups: readonly ChecksumGroup[],
    start: number,
    end: number,
    offsetBytes: number,
    { crcs, versions, versionsOut, logged, exposed, index }: SectorWrite & { readonly index: number },
  ): Promise<void> {
    const words = new Uint32Array(end - start);
    const intents: Intent[] = [];
    forEachRun(groups, start, end, (entries, at, count, before) => {
      for (let i = 0; i < count; i++) {
        const [oldCrc, oldWord] = [entries[at + 2 * i]!, entries[at + 2 * i + 1]!];
        const place = before + i;
        const newWord = versions?.[index + place] ?? nextVersion(oldWord);
        words[place] = newWord;
        if (logged !== true && this.#needsIntent(start + place, oldWord, exposed === true))
          intents.push({ sector: start + place, oldCrc, oldWord, newCrc: crcs[index + place]!, newWord });
      }
    });
    const ticket = intents.length === 0 ? null : await this.#intents.announce(intents);
    try {
      const memory = { offsetBytes, lengthBytes: (end - start) * SECTOR_BYTES };
      await this.#change(
        groups,
        () => this.parts.device.write(this.#deviceOffset(start), memory),
        () => {
          forEachRun(groups, start, end, (entries, at, count, before) => {
            for (let i = 0; i < count; i++) {
              entries[at + 2 * i] = crcs[index + before + i]!;
              entries[at + 2 * i + 1] = words[before + i]!;
            }
          });
          versionsOut?.set(words, index);
          return groups;
        },
      );
    } finally {
      if (ticket !== null) this.#intents.ended(ticket);
    }
  }

  /** Whether a flush may have made durable what is there now, so that half a write would hurt it. What is lost can't be hurt. */
  #needsIntent(sector: number, word: number, exposed: boolean): boolean {
    if (!readsAsZeros(word)) return !isLost(word);
    return exposed || (word !== 0 && this.#freshHoles.overlaps(sector, sector + 1));
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
    groups: readonly ChecksumGroup[],
    onDevice: () => Promise<void>,
    inMemory: () => readonly ChecksumGroup[],
  ): Promise<void> {
    const sequence = this.#area.beginData(groups);
    let committed: Promise<void>;
    try {
      await onDevice();
      committed = this.#area.commit(inMemory());
    } finally {
      this.#area.endData(groups, sequence);
    }
    await committed;
  }

  /** Resolves when everything that was written before is durable. */
  flush(): Promise<void> {
    return this.#counted(async () => {
      await this.#line.flush();
      this.counters.add('nsd.flushes');
    }, LOOKING);
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
      const groups = await this.#area.hold(start, end);
      try {
        await this.#change(
          groups,
          async () => undefined,
          () => {
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
      } finally {
        this.#area.drop(groups);
      }
      this.counters.add('nsd.discardedSectors', end - start);
      this.#freshHoles.add(start, end, this.#line.begun);
    } finally {
      this.#locks.release(lock);
    }
    if (this.#freshHoles.size > FRESH_HOLES_MAX) await this.#line.flush();
  }

  #flushed(number: number): void {
    this.#intents.flushed(number);
    this.#freshSelfChecking.takeCovered(number);
    // The last flush of all gives nothing back.
    if (this.#closed) return;
    for (const { start, end } of this.#freshHoles.takeCovered(number))
      for (let at = start; at < end; at += DISCARD_SECTORS_AT_ONCE)
        this.#trim(at, Math.min(end, at + DISCARD_SECTORS_AT_ONCE)).catch(() =>
          // Giving the space back is a favour; a device that can't (or fails to) leaves the sectors zero all the same.
          this.counters.add('nsd.deviceDiscardsFailed'),
        );
  }

  /** After a flush has covered that they are holes: the bytes are nobody's now, whatever the device makes of them. */
  #trim(start: number, end: number): Promise<void> {
    return this.#counted(async () => {
      const lock = await this.#locks.acquire(start, end, true);
      try {
        // Written and discarded again meanwhile: the bytes are needed again, until the next flush.
        if (this.#freshHoles.overlaps(start, end)) return;
        const groups = await this.#area.hold(start, end);
        try {
          for (let at = start; at < end; ) {
            let runEnd = at;
            while (runEnd < end && readsAsZeros(wordOf(groups, runEnd))) runEnd++;
            if (runEnd > at) await this.parts.device.discard(this.#deviceOffset(at), (runEnd - at) * SECTOR_BYTES);
            at = runEnd + 1;
          }
        } finally {
          this.#area.drop(groups);
        }
      } finally {
        this.#locks.release(lock);
      }
    });
  }

  /** Waits for what is under way, flushes, says in the header that this life ended in good order, closes the device. A second call does nothing. */
  async close(onFlushFailed: (error: unknown) => void = () => undefined): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#underWay > 0)
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    if (this.#recovered)
      try {
        await this.#line.flush();
        await this.#headers.change({ ended: true });
      } catch (error) {
        // Then the next life says that something may have been lost.
        this.counters.add('nsd.endsFailed');
        onFlushFailed(error);
      }
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

  async #counted<T>(operation: () => Promise<T>, alsoWhen?: typeof LOOKING): Promise<T> {
    invariant(this.#recovered || alsoWhen === LOOKING, 'an NSD was used before it was recovered');
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
