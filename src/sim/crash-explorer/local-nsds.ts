import type { NsdIndex } from '../../common/ids.js';
import { SECTOR_BYTES } from '../../common/units.js';
import type { PagePool } from '../../native/page-pool.js';
import type { Checksums } from '../../nsd/checksums.js';
import type { NsdClientApi, NsdExtent, NsdWriteOptions, SectorIo, SectorVersions } from '../../nsd/nsd-api.js';
import { isLost, readsAsZeros, versionOf } from '../../nsd/nsd-layout.js';
import { type NsdStore, newSectorStates } from '../../nsd/nsd-store.js';

/**
 * The NSDs of a file system that has them all in its own process: what an NSD's client does when it is the server itself, without the ways between.
 * Fault model: the devices'. Nothing is tried again.
 */
export class LocalNsds implements NsdClientApi {
  constructor(
    private readonly stores: readonly NsdStore[],
    private readonly pool: PagePool,
    private readonly checksums: Checksums,
  ) {}

  #store(nsd: NsdIndex): NsdStore {
    return this.stores[nsd]!;
  }

  async read(ios: readonly SectorIo[]): Promise<void> {
    await Promise.all(
      ios.map(async ({ nsd, sector, memory, versions }) => {
        const states = newSectorStates(memory.lengthBytes / SECTOR_BYTES);
        await this.#store(nsd).read(sector, memory, states);
        versions?.set(states.versions);
      }),
    );
  }

  async write(ios: readonly SectorIo[], options: NsdWriteOptions = {}): Promise<void> {
    const durable = options.flush !== undefined;
    await Promise.all(
      ios.map(({ nsd, sector, memory, versions, logged, exposed, selfChecking }) => {
        const { crcs } = newSectorStates(memory.lengthBytes / SECTOR_BYTES);
        this.checksums.sectors(this.pool.bytes, memory.offsetBytes, crcs.length, crcs, 0);
        return this.#store(nsd).write(sector, memory, {
          crcs,
          versions,
          logged: logged === true,
          exposed: exposed === true,
          selfChecking: selfChecking === true,
          durable,
        });
      }),
    );
  }

  async flush(nsds: readonly NsdIndex[]): Promise<void> {
    await Promise.all([...new Set(nsds)].map((nsd) => this.#store(nsd).flush()));
  }

  async discard(extents: readonly NsdExtent[]): Promise<void> {
    for (const { nsd, sector, sectorCount } of extents) await this.#store(nsd).discard(sector, sectorCount);
  }

  async versions(extents: readonly NsdExtent[]): Promise<SectorVersions> {
    const words: number[] = [];
    for (const { nsd, sector, sectorCount } of extents) {
      const some = new Uint32Array(sectorCount);
      await this.#store(nsd).versions([{ sector, sectorCount }], some);
      words.push(...some);
    }
    return {
      versions: Uint32Array.from(words, (word) => (isLost(word) ? 0 : versionOf(word))),
      zeros: Uint8Array.from(words, (word) => (readsAsZeros(word) ? 1 : 0)),
    };
  }

  /** Whoever has its disks in its own machine dies with them. */
  lossesOf(): number {
    return 0;
  }
}
