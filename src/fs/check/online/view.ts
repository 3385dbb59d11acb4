/**
 * Metadata of a mounted file system as one look at some of its objects sees it: both copies of each sector, as they are in place, and what this node's log
 * says beyond that. Changes nothing, and nobody's cache.
 *
 * Of other nodes' changes it sees what is in place: with shared tokens of the objects pinned that is everything, since whoever held them exclusively has
 * written out before (T6). This node's own operations go on beside it, under the same tokens; a transaction of theirs is one synchronous step, so a look is of one
 * moment if no sector that it has read has changed by its end (`isOfOneMoment`), and is repeated otherwise.
 */
import type { NsdIndex } from '../../../common/ids.js';
import { isVersionBefore } from '../../../common/sector-version.js';
import { SECTOR_BYTES } from '../../../common/units.js';
import type { Extent } from '../../layout.js';
import { keyOf, type SectorKey } from '../../log/logged-sectors.js';
import { getU32, sealSector } from '../../sector.js';
import type { Volume } from '../../volume.js';
import { type CheckStorage, type ComparedSector, READ_RUN, type SectorReader, type Uneven } from '../check-storage.js';

/** How often a sector is read anew that this node is just writing. */
const READS_MAX = 8;

interface Seen {
  readonly version: number;
  /** The seal of what was seen; null: it could not be read. */
  readonly seal: number | null;
}

export class View implements SectorReader {
  readonly #volume: Volume;
  readonly #storage: CheckStorage;
  readonly #pace: (sectors: number) => Promise<void>;
  readonly #seen = new Map<SectorKey, Seen>();
  #changed = false;
  /** Sectors whose copies are not the same while nobody writes them here. */
  readonly uneven = new Map<SectorKey, Uneven>();

  constructor(volume: Volume, storage: CheckStorage, pace: (sectors: number) => Promise<void>) {
    this.#volume = volume;
    this.#storage = storage;
    this.#pace = pace;
  }

  /** At most READ_RUN at once. */
  async read(extent: Extent): Promise<(Uint8Array | null)[]> {
    await this.#pace(extent.count);
    const places = Array.from({ length: extent.count }, (_, at) => ({ nsd: extent.nsd, sector: extent.sector + at }));
    const before = places.map((place) => this.#written(keyOf(place)));
    const found = await this.#storage.compare(extent);
    const bytes: (Uint8Array | null)[] = [];
    for (const [at, place] of places.entries()) bytes.push(await this.#settled(place, found[at]!, before[at]!));
    return bytes;
  }

  async readOne(nsd: NsdIndex, sector: number): Promise<Uint8Array | null> {
    return (await this.read({ nsd, sector, count: 1 }))[0]!;
  }

  async each(home: Extent, count: number, use: (sector: Uint8Array | null, index: number) => void): Promise<void> {
    for (let at = 0; at < count; at += READ_RUN) {
      const run = Math.min(READ_RUN, count - at);
      const sectors = await this.read({ nsd: home.nsd, sector: home.sector + at, count: run });
      for (const [i, sector] of sectors.entries()) use(sector, at + i);
    }
  }

  /** Where this node's writes of it have got to; -1: one is under way. */
  #written(key: SectorKey): number {
    const { sectors } = this.#volume;
    return sectors.isWriting(key) ? -1 : (sectors.versionOf(key) ?? 0);
  }

  /** What a sector says, when this node was not just writing it while it was read. */
  async #settled(
    place: { readonly nsd: NsdIndex; readonly sector: number },
    first: ComparedSector,
    writtenBefore: number,
  ): Promise<Uint8Array | null> {
    const { sectors } = this.#volume;
    const key = keyOf(place);
    let found = first;
    let before = writtenBefore;
    for (let reads = 1; ; reads++) {
      // The two copies are not read at once: a write may have begun and ended in between.
      const inFlux = before === -1 || this.#written(key) !== before;
      const isDoubtful = inFlux && (found.uneven !== null || found.bytes === null);
      const isBehind = found.bytes !== null && isVersionBefore(found.version, sectors.versionOf(key) ?? found.version);
      const image = this.#image(key, found.version);
      if (!isDoubtful && (image !== null || !isBehind)) return this.#take(key, found, image ?? found.bytes);
      if (reads === READS_MAX) {
        this.#changed = true;
        return this.#take(key, found, image ?? found.bytes);
      }
      await sectors.writeEnded(key);
      before = this.#written(key);
      found = (await this.#storage.compare({ ...place, count: 1 }))[0]!;
    }
  }

  #take(key: SectorKey, { version, uneven }: ComparedSector, bytes: Uint8Array | null): Uint8Array | null {
    if (uneven !== null) this.uneven.set(key, uneven);
    const seen = { version, seal: sealOf(bytes) };
    const before = this.#seen.get(key);
    if (before !== undefined && before.seal !== seen.seal) this.#changed = true;
    this.#seen.set(key, seen);
    return bytes;
  }

  /** What this node's log says of it, where its NSD doesn't say so yet. */
  #image(key: SectorKey, version: number): Uint8Array | null {
    const { sectors, checksums } = this.#volume;
    const image = sectors.latest(key) ?? sectors.newest(key, version);
    if (image === undefined) return null;
    const sector = new Uint8Array(SECTOR_BYTES);
    sector.set(image);
    sealSector(sector, checksums);
    return sector;
  }

  /** Synchronous: what was read is what there is, in this very turn, as far as this node changes it. */
  isOfOneMoment(): boolean {
    if (this.#changed) return false;
    const { sectors } = this.#volume;
    for (const [key, { version, seal }] of this.#seen) {
      const image = this.#image(key, version);
      if (image !== null) {
        if (sealOf(image) !== seal) return false;
      } else if (seal !== null && isVersionBefore(version, sectors.versionOf(key) ?? version)) return false;
    }
    return true;
  }
}

const sealOf = (bytes: Uint8Array | null): number | null => (bytes === null ? null : getU32(bytes, 4));
