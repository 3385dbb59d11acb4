/**
 * The NSDs as a check reads and a repair writes them: sector by sector, where a sector that can't be read is an answer and not an error.
 *
 * Fault model: a sector whose bytes don't have their checksum is damage, and null; any other error (an NSD that is away) ends the check.
 */
import { FsError } from '../../common/errors.js';
import type { NsdIndex } from '../../common/ids.js';
import { isVersionBefore } from '../../common/sector-version.js';
import { SECTOR_BYTES } from '../../common/units.js';
import type { BufferArena, PagePool } from '../../native/page-pool.js';
import type { Checksums } from '../../nsd/checksums.js';
import { copiesOf } from '../../nsd/copies.js';
import { readableCopies, statesOf, withCopies } from '../../nsd/mirrored-nsds.js';
import type { NsdClientApi } from '../../nsd/nsd-api.js';
import { durably } from '../durable.js';
import type { Extent } from '../layout.js';
import { keyOf, type SectorKey } from '../log/logged-sectors.js';
import { isZero, sealSector } from '../sector.js';

export interface CheckParts {
  readonly nsds: NsdClientApi;
  readonly arena: BufferArena;
  readonly pool: PagePool;
  readonly checksums: Checksums;
}

export const READ_RUN = 64;

/** Sectors as a check sees them. Null: its bytes don't have the checksum that its NSD keeps for them. */
export interface SectorReader {
  readOne(nsd: NsdIndex, sector: number): Promise<Uint8Array | null>;
  /** In order, a run at a time. */
  each(home: Extent, count: number, use: (sector: Uint8Array | null, index: number) => void): Promise<void>;
}

/** Of two copies: the one to be believed, and the one that is to become as it. */
export interface Uneven {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly bytes: Uint8Array;
  readonly bad: NsdIndex;
  readonly why: string;
}

interface ReadSector {
  readonly bytes: Uint8Array | null;
  readonly version: number;
}
/** `uneven`: its copies are not the same. */
export interface ComparedSector extends ReadSector {
  readonly uneven: Uneven | null;
}

const UNREADABLE: ReadSector = { bytes: null, version: 0 };

export class CheckStorage implements SectorReader {
  /** For whatever writes: both copies, where there are two. */
  readonly mirror: NsdClientApi;
  /** For whatever reads and would mend on the way. */
  readonly readOnly: NsdClientApi;
  /** What was found where there are two copies. */
  readonly uneven = new Map<SectorKey, Uneven>();

  constructor(readonly parts: CheckParts) {
    const { nsds } = parts;
    this.mirror = withCopies({ nsds });
    this.readOnly = withCopies({ nsds: withoutWrites(nsds), states: statesOf(nsds) });
  }

  /** Copies, at most READ_RUN at once. Null: its bytes don't have the checksum that its NSD keeps for them. */
  async read(extent: Extent): Promise<(Uint8Array | null)[]> {
    return (await this.compare(extent)).map(({ bytes, uneven }) => {
      if (uneven !== null) this.uneven.set(keyOf(uneven), uneven);
      return bytes;
    });
  }

  /** The same with what there is to be said about the copies, of which nothing is remembered. */
  async compare({ nsd, sector, count }: Extent): Promise<ComparedSector[]> {
    // What is stale is nobody's to read (S5).
    const [first, second] = readableCopies(this.parts.nsds, nsd);
    if (first === undefined)
      throw new FsError('nsdUnavailable', { op: 'fs.check', object: `nsd ${nsd}`, detail: 'no copy is up to date' });
    const one = await this.#readCopy(first, sector, count);
    if (second === undefined) return one.map((found) => ({ ...found, uneven: null }));
    const other = await this.#readCopy(second, sector, count);
    return one.map((mine, i) => this.#choose(nsd, sector + i, [mine, other[i]!]));
  }

  async readOne(nsd: NsdIndex, sector: number): Promise<Uint8Array | null> {
    return (await this.read({ nsd, sector, count: 1 }))[0]!;
  }

  /** The one that can be read, that is sealed, that is of later; equal versions mean equal bytes. */
  #choose(nsd: NsdIndex, sector: number, copies: readonly [ReadSector, ReadSector]): ComparedSector {
    const [a, b] = copies;
    if (a.bytes === null && b.bytes === null) return { ...UNREADABLE, uneven: null };
    if (a.bytes !== null && b.bytes !== null && Buffer.compare(a.bytes, b.bytes) === 0) return { ...a, uneven: null };
    const rank = ({ bytes }: ReadSector): number => (bytes === null ? 0 : this.#isSound(bytes) ? 2 : 1);
    const better = rank(b) > rank(a) || (rank(b) === rank(a) && isVersionBefore(a.version, b.version)) ? 1 : 0;
    const bad = copiesOf(nsd)[1 - better]!;
    const good = copiesOf(nsd)[better]!;
    const bytes = copies[better].bytes!;
    const why =
      copies[1 - better]!.bytes === null
        ? `can not be read, its bytes do not have their checksum; its copy on NSD ${good} can`
        : `is not what its copy on NSD ${good} is`;
    return { bytes, version: copies[better].version, uneven: { nsd, sector, bytes, bad, why } };
  }

  /** Everything that has two copies carries a header with a checksum, or is zeros. */
  #isSound(bytes: Uint8Array): boolean {
    if (isZero(bytes)) return true;
    const copy = bytes.slice();
    sealSector(copy, this.parts.checksums);
    return Buffer.compare(copy.subarray(4, 8), bytes.subarray(4, 8)) === 0;
  }

  async #readCopy(nsd: NsdIndex, sector: number, count: number): Promise<ReadSector[]> {
    try {
      return await this.#read(nsd, sector, count);
    } catch (error) {
      if (!isDamage(error)) throw error;
      if (count === 1) return [UNREADABLE];
    }
    const found: ReadSector[] = [];
    for (let at = sector; at < sector + count; at++) found.push(...(await this.#readCopy(nsd, at, 1)));
    return found;
  }

  async #read(nsd: NsdIndex, sector: number, count: number): Promise<ReadSector[]> {
    const { arena, pool, nsds } = this.parts;
    const memory = await arena.allocate(count * SECTOR_BYTES);
    try {
      const io = { offsetBytes: memory.offsetBytes, lengthBytes: count * SECTOR_BYTES };
      const versions = new Uint32Array(count);
      await nsds.read([{ nsd, sector, memory: io, versions }]);
      const copy = pool.bytes.slice(io.offsetBytes, io.offsetBytes + io.lengthBytes);
      return Array.from({ length: count }, (_, i) => ({
        bytes: copy.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES),
        version: versions[i]!,
      }));
    } finally {
      arena.free(memory);
    }
  }

  /** In order, a run at a time. */
  async each(home: Extent, count: number, use: (sector: Uint8Array | null, index: number) => void): Promise<void> {
    for (let at = 0; at < count; at += READ_RUN) {
      const run = Math.min(READ_RUN, count - at);
      const sectors = await this.read({ nsd: home.nsd, sector: home.sector + at, count: run });
      for (const [i, sector] of sectors.entries()) use(sector, at + i);
    }
  }

  async write(nsd: NsdIndex, sector: number, bytes: Uint8Array): Promise<void> {
    const { arena, pool } = this.parts;
    const memory = await arena.allocate(SECTOR_BYTES);
    try {
      pool.bytes.set(bytes, memory.offsetBytes);
      await this.mirror.write([
        { nsd, sector, memory: { offsetBytes: memory.offsetBytes, lengthBytes: SECTOR_BYTES } },
      ]);
    } finally {
      arena.free(memory);
    }
  }
}

const isDamage = (error: unknown): boolean => FsError.is(error) && error.reason === 'checksumMismatch';

/** Metadata is sealed when it is written; a file's bytes, and what has a seal that is believed, are not. */
type HowWritten = 'sealed' | 'as it is';

interface EditedSector {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly bytes: Uint8Array;
  readonly how: HowWritten;
}

/**
 * What a repair is going to write. Nothing reaches an NSD before `commit`, which is durable when it resolves; what must be durable before
 * something else is committed before it.
 */
export class SectorEdits {
  readonly #storage: CheckStorage;
  readonly #edited = new Map<SectorKey, EditedSector>();
  #discards: Extent[] = [];
  sectorsWritten = 0;

  constructor(storage: CheckStorage) {
    this.#storage = storage;
  }

  /** As it will be; to be changed in place. Null: it can't be read, and nothing has been put there. */
  async open(nsd: NsdIndex, sector: number): Promise<Uint8Array | null> {
    const edited = this.#edited.get(keyOf({ nsd, sector }));
    if (edited !== undefined) return edited.bytes;
    const bytes = await this.#storage.readOne(nsd, sector);
    if (bytes !== null) this.put(nsd, sector, bytes);
    return bytes;
  }
  put(nsd: NsdIndex, sector: number, bytes: Uint8Array, how: HowWritten = 'sealed'): void {
    this.#edited.set(keyOf({ nsd, sector }), { nsd, sector, bytes, how });
  }
  /** Reads as zeros afterwards. */
  discard(extent: Extent): void {
    this.#discards.push(extent);
  }

  /** Discards first: what is freed is zeros before a map says that it is free. */
  async commit(): Promise<void> {
    const { mirror, parts, uneven } = this.#storage;
    const discards = this.#discards.map(({ nsd, sector, count }) => ({ nsd, sector, sectorCount: count }));
    await durably(mirror, [...new Set(discards.map(({ nsd }) => nsd))], 'repairZeros', async () => {
      if (discards.length > 0) await mirror.discard(discards);
    });
    this.#discards = [];
    const changed: EditedSector[] = [];
    for (const edited of this.#edited.values()) {
      const { nsd, sector, bytes, how } = edited;
      const before = await this.#storage.readOne(nsd, sector);
      if (how === 'sealed' && bytes.some((byte) => byte !== 0)) sealSector(bytes, parts.checksums);
      // Opened and not changed.
      const same = before !== null && Buffer.compare(before, bytes) === 0;
      if (!same || uneven.has(keyOf({ nsd, sector }))) changed.push(edited);
    }
    this.#edited.clear();
    await durably(mirror, [...new Set(changed.map(({ nsd }) => nsd))], 'repair', async () => {
      for (const { nsd, sector, bytes } of changed) await this.#storage.write(nsd, sector, bytes);
    });
    this.sectorsWritten += changed.length;
  }
}

/** Reading of two copies mends the one that is damaged: a check changes nothing. */
function withoutWrites(nsds: NsdClientApi): NsdClientApi {
  const refuse = (): Promise<never> =>
    Promise.reject(new FsError('readOnly', { op: 'fs.check', detail: 'a check writes nothing' }));
  return {
    read: (ios, options) => nsds.read(ios, options),
    versions: (extents, options) => nsds.versions(extents, options),
    lossesOf: (nsd) => nsds.lossesOf(nsd),
    write: refuse,
    flush: refuse,
    discard: refuse,
  };
}
