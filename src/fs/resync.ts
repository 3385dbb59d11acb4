/**
 * Brings an NSD up to date that has missed writes (S5): every sector that has a copy there is compared with the other copy, and where they differ both are
 * written anew.
 *
 * Order: every node writes to the NSD again, and whatever any node had begun before it knew that has ended and is in place (`beginResync`); so what is
 * in place now names every sector that can differ, and what changes from here on changes on both copies. Then the walk. It compares without tokens,
 * since a difference that is only just being written is repaired for nothing; it repairs under the token that orders the writes of that sector, with
 * a version above both copies'. What is free on the NSD is discarded, region by region: discards have passed it over too. At last the NSD is flushed, and up
 * again, unless a write has missed it meanwhile: then all this begins anew.
 *
 * One node at a time does this: it holds a token. Dying in the midst, or in any other state, leaves an NSD that nobody reads, and the next one begins.
 * Fault model: sectors that can't be read from either copy are counted, reported and left.
 */
import { WHOLE } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, inodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import { copiesOf, isMirrored } from '../nsd/copies.js';
import { isCopyLost } from '../nsd/mirrored-nsds.js';
import { type TokenItem, TokenMode, type TokenPins } from '../token-manager/token.js';
import { durably } from './durable.js';
import { DISCARD_EXTENTS_MAX } from './free-queue.js';
import type { Inode } from './inode.js';
import { FREE_INODE } from './inode-format.js';
import {
  ALLOCATION_MAP,
  type Extent,
  FIRST_USER_INODE,
  INODE_MAP,
  LOG_TABLE,
  ROOT_DIRECTORY,
  regionRange,
  regionSectorRange,
  segmentRange,
} from './layout.js';
import { findLogTable, LOG_RUN, type LogVolume, readDescriptor } from './log/log-reader.js';
import { LogSpace } from './log/log-space.js';
import { LOG_SLOTS, LogState, slotRange } from './log/log-table.js';
import { keyOf } from './log/logged-sectors.js';
import { freeRuns } from './map-formats.js';
import { extentsOf, type MetadataOf, metadataOf } from './metadata-extents.js';
import { corrupt } from './sector.js';
import { settle } from './settle.js';
import { Settling } from './space-peers.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

/** Files that every node relies on, and that are repaired sector by sector. */
const NEEDED: readonly InodeNumber[] = [ALLOCATION_MAP, INODE_MAP, LOG_TABLE];

/** An extent of which a copy is on the NSD that is brought up to date. */
interface Pair {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly count: number;
}

export class Resync {
  readonly #volume: Volume;
  readonly #nsd: NsdIndex;

  constructor(volume: Volume, nsd: NsdIndex) {
    this.#volume = volume;
    this.#nsd = nsd;
  }

  /** False: another node is at it, or it can't be done now. */
  async run(): Promise<boolean> {
    const { copyStates: states, parts, counters, settings } = this.#volume;
    // Behind the slots of the table: whoever holds it resynchronises this NSD.
    const item = this.#volume.dataItem(LOG_TABLE, slotRange(LOG_SLOTS + this.#nsd));
    let pins: TokenPins;
    try {
      pins = await parts.tokens.acquire([item], { timeoutMs: settings.regionTimeoutMs });
    } catch (error) {
      if (FsError.is(error) && (error.reason === 'tokenDeadline' || error.reason === 'tokenRefused')) return false;
      throw error;
    }
    try {
      if (states.stateOf(this.#nsd) === 'up' || !states.isReachable(this.#nsd)) return false;
      const generation = await states.beginResync(this.#nsd);
      if (generation === null) return false;
      await settle(this.#volume, Settling.changes);
      parts.logger.warn({ nsd: this.#nsd }, 'a copy is being resynchronised');
      await durably(parts.nsds, [this.#nsd], 'resync', () => this.#walk());
      const done = await states.endResync(this.#nsd, generation);
      counters.add(done ? 'resync.done' : 'resync.again');
      if (done) parts.logger.warn({ nsd: this.#nsd }, 'a copy is up to date again');
      return done;
    } finally {
      pins.release();
    }
  }

  async #walk(): Promise<void> {
    await this.#freeSpace();
    await this.#logs();
    const volume = this.#volume;
    const storage = { ...volume.parts };
    for await (const found of metadataOf(storage, volume.superblock)) {
      this.#goOn();
      await this.#repair(found);
    }
  }

  #goOn(): void {
    this.#volume.checkOpen('resync');
    if (this.#volume.copyStates.stateOf(this.#nsd) !== 'resync')
      throw new FsError('nsdUnavailable', { op: 'resync', object: `nsd ${this.#nsd}`, detail: 'it is away again' });
  }

  // What is free

  /** Who frees or allocates there waits for its token. */
  async #freeSpace(): Promise<void> {
    const volume = this.#volume;
    const { geometry } = volume;
    for (let region = 0; region < geometry.regionCount; region++) {
      this.#goOn();
      await this.#pinned([volume.dataItem(ALLOCATION_MAP, regionRange(geometry, region))], async () => {
        const range = regionSectorRange(geometry, region, this.#nsd);
        const map = await volume
          .mapFile(ALLOCATION_MAP)
          .withBytes(range, 'shared', (view) => view.bytes(range.start, SECTOR_BYTES).slice());
        const first = region * geometry.regionBlocks * SUB_BLOCKS_PER_BLOCK;
        const extents = freeRuns(map, geometry.regionBlocks).map(({ from, count }) => ({
          nsd: this.#nsd,
          sector: first + from,
          sectorCount: count,
        }));
        for (let at = 0; at < extents.length; at += DISCARD_EXTENTS_MAX)
          await volume.parts.nsds.discard(extents.slice(at, at + DISCARD_EXTENTS_MAX));
      });
    }
  }

  // Logs

  /** Those of nodes that are here have been made good by their owners (settle.ts). Of the others what is still to be read is copied. */
  async #logs(): Promise<void> {
    const volume = this.#volume;
    const { nsds, pool, arena, checksums, lives } = volume.parts;
    const { fsId, geometry, superblock } = volume;
    const logs: LogVolume = { nsds, pool, arena, checksums, fsId, geometry, inodeFile: superblock.inodeFile };
    const table = await findLogTable(logs);
    for (let slot = 0; slot < LOG_SLOTS; slot++) {
      this.#goOn();
      const seen = await readDescriptor(logs, table, slot);
      const isHere = (owner: { nodeId: number; incarnation: number }): boolean =>
        (owner.nodeId === volume.parts.nodeId && owner.incarnation === volume.parts.incarnation) ||
        lives.state(owner.nodeId, owner.incarnation) === 'here';
      const inUse = (state: number): boolean => state === LogState.open || state === LogState.creating;
      if (inUse(seen.state) && isHere(seen.owner)) continue;
      const place = { nsd: table.nsd, sector: table.sector + slot, count: 1 };
      const wanted = seen.state === LogState.open || seen.state === LogState.replayed;
      if (!wanted && (await this.#differing(place)).length === 0) continue;
      await this.#pinned([volume.dataItem(LOG_TABLE, slotRange(slot))], async () => {
        const { state, owner, pieceSectors, pieces } = await readDescriptor(logs, table, slot);
        if (inUse(state) && isHere(owner)) return;
        for (const at of await this.#differing(place)) await this.#rewrite({ nsd: place.nsd, sector: at });
        if (state !== LogState.open && state !== LogState.replayed) return;
        const space = new LogSpace(pieceSectors, pieces);
        for (const { nsd, sector, count } of space.runs(0, space.capacitySectors))
          if (copiesOf(nsd).includes(this.#nsd)) await this.#copyLog({ nsd, sector, count });
      });
    }
  }

  /** Sectors of logs check themselves: the bytes are all there is to them. */
  async #copyLog({ nsd, sector, count }: Pair): Promise<void> {
    const { nsds } = this.#volume.parts;
    for (let at = 0; at < count; at++)
      await this.#volume.withStaging(SECTOR_BYTES, async (_, { offsetBytes }) => {
        const memory = { offsetBytes, lengthBytes: SECTOR_BYTES };
        try {
          await nsds.read([{ nsd: this.#other(nsd), sector: sector + at, memory }]);
        } catch (error) {
          // Where a log was cut off.
          if (FsError.is(error) && error.reason === 'checksumMismatch') return;
          throw error;
        }
        await nsds.write([{ nsd: this.#nsd, sector: sector + at, memory, selfChecking: true }]);
      });
  }

  // Metadata

  async #repair(found: MetadataOf): Promise<void> {
    const { ino, kind, extent } = found;
    // A copy whose maps are perhaps out of date must not come up.
    if (extent === null && NEEDED.includes(ino))
      throw corrupt('resync', `inode ${ino}`, 'what it has can not be followed (fs check --repair)');
    if (extent !== null && !copiesOf(extent.nsd).includes(this.#nsd)) return;
    const sectors = extent === null ? [] : await this.#differing(extent);
    if (extent !== null && sectors.length === 0) return;
    switch (kind) {
      case 'inodes':
        for (const sector of sectors)
          await this.#repairInode(inodeNumber(found.first + sector - extent!.sector), extent!.nsd, sector);
        return;
      case 'map':
        for (const sector of sectors) await this.#repairMap(ino, found.first + sector - extent!.sector);
        return;
      case 'table':
        // With the logs.
        return;
      case 'owned':
        if (ino < FIRST_USER_INODE && ino !== ROOT_DIRECTORY) {
          // It never moves.
          await this.#pinned([this.#status(ino)], async () => {
            for (const sector of sectors) await this.#rewrite({ nsd: extent!.nsd, sector });
          });
          return;
        }
        await this.#repairOwned(ino);
        return;
    }
  }

  #status(ino: InodeNumber): TokenItem {
    return this.#volume.inodes.statusItem(ino, TokenMode.exclusive);
  }

  #repairInode(ino: InodeNumber, nsd: NsdIndex, sector: number): Promise<void> {
    return this.#pinned([this.#status(ino)], () => this.#rewrite({ nsd, sector }));
  }

  async #repairMap(ino: InodeNumber, index: number): Promise<void> {
    const volume = this.#volume;
    const { geometry } = volume;
    const inode = volume.systemFiles.get(ino)!;
    const range =
      ino === ALLOCATION_MAP ? regionRange(geometry, Math.floor(index / geometry.nsdCount)) : segmentRange(index);
    const limit = ino === ALLOCATION_MAP ? geometry.regionCount * geometry.nsdCount : geometry.segmentCount;
    // Behind the map's end nothing is ever read.
    if (index >= limit) return;
    await this.#pinned([volume.dataItem(ino, range)], () => this.#touch(inode, index * SECTOR_BYTES));
  }

  /** All that belongs to an inode, as its pointers are now. Nothing that they name is given back meanwhile. */
  async #repairOwned(ino: InodeNumber): Promise<void> {
    const volume = this.#volume;
    await volume.inodes.find(ino);
    const data: TokenItem = volume.dataItem(ino, WHOLE);
    await this.#pinned([this.#status(ino), data], () =>
      volume.frees.heldBack(async () => {
        const inode = await volume.inodes.load(ino);
        if (inode.type === FREE_INODE) return;
        for (const { extent, paged } of await extentsOf(volume, inode)) {
          if (!copiesOf(extent.nsd).includes(this.#nsd)) continue;
          for (const sector of await this.#differing(extent)) {
            this.#goOn();
            if (paged === null) await this.#rewrite({ nsd: extent.nsd, sector });
            else await this.#touch(inode, (paged + sector - extent.sector) * SECTOR_BYTES);
          }
        }
      }),
    );
  }

  async #pinned(items: TokenItem[], body: () => Promise<void>): Promise<void> {
    const pins = await this.#volume.pin(items, { patient: true });
    try {
      await body();
    } finally {
      pins.release();
    }
  }

  #other(nsd: NsdIndex): NsdIndex {
    return copiesOf(nsd).find((copy) => copy !== this.#nsd)!;
  }

  /** Sectors of an extent whose copies are not the same. */
  async #differing({ nsd, sector, count }: Extent): Promise<number[]> {
    if (!isMirrored(nsd)) return [];
    const found: number[] = [];
    for (let at = 0; at < count; at += LOG_RUN) {
      const run = Math.min(LOG_RUN, count - at);
      const good = await this.#readCopy(this.#other(nsd), sector + at, run);
      const late = await this.#readCopy(this.#nsd, sector + at, run);
      for (let i = 0; i < run; i++) {
        const a = good[i]!;
        const b = late[i]!;
        const same = a !== null && b !== null && Buffer.compare(a.bytes, b.bytes) === 0;
        // Zeros that were never written have what version they have.
        if (!same || (a.version !== b.version && !a.bytes.every((byte) => byte === 0))) found.push(sector + at + i);
      }
    }
    if (found.length > 0) this.#volume.counters.add('resync.differing', found.length);
    return found;
  }

  async #readCopy(
    nsd: NsdIndex,
    sector: number,
    count: number,
  ): Promise<({ bytes: Uint8Array; version: number } | null)[]> {
    const read = (from: number, length: number) =>
      this.#volume.withStaging(length * SECTOR_BYTES, async (bytes, { offsetBytes }) => {
        const versions = new Uint32Array(length);
        const memory = { offsetBytes, lengthBytes: length * SECTOR_BYTES };
        await this.#volume.parts.nsds.read([{ nsd, sector: from, memory, versions }]);
        return Array.from({ length }, (_, i) => ({
          bytes: bytes.slice(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES),
          version: versions[i]!,
        }));
      });
    try {
      return await read(sector, count);
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'checksumMismatch') throw error;
    }
    const found: ({ bytes: Uint8Array; version: number } | null)[] = [];
    for (let at = sector; at < sector + count; at++)
      found.push(
        await read(at, 1).then(
          ([one]) => one!,
          (error: unknown) => {
            if (!FsError.is(error) || error.reason !== 'checksumMismatch') throw error;
            return null;
          },
        ),
      );
    return found;
  }

  /**
   * A sector that is no page's, on both copies anew, with the token that orders its writes. What is logged of it goes to its place, which are both; else
   * what its good copy has, at a version above both. No record is needed: whoever finds only one copy written finds it stale.
   */
  async #rewrite(place: { readonly nsd: NsdIndex; readonly sector: number }): Promise<void> {
    const { sectors, log, parts, counters } = this.#volume;
    const key = keyOf(place);
    await this.#volume.withStaging(SECTOR_BYTES, async (_, { offsetBytes }) => {
      for (;;) {
        this.#goOn();
        while (sectors.isWriting(key)) await sectors.writeEnded(key);
        if (sectors.latest(key) !== undefined) {
          await log?.writeInPlace([key]);
          return;
        }
        await this.#volume.learnVersions([{ ...place, count: 1 }]);
        const learned = sectors.versionOf(key);
        const memory = { offsetBytes, lengthBytes: SECTOR_BYTES };
        try {
          await parts.nsds.read([{ ...place, memory }]);
        } catch (error) {
          if (!isCopyLost(error)) throw error;
          counters.add('resync.sectorsLost');
          parts.logger.error({ ...place, error: error.message }, 'neither copy of a sector can be read');
          return;
        }
        // Written by this node meanwhile: once more.
        if (sectors.isWriting(key) || sectors.latest(key) !== undefined || sectors.versionOf(key) !== learned) continue;
        const write = sectors.beginWrite(place);
        let succeeded = false;
        try {
          await parts.nsds.write([{ ...place, memory, versions: Uint32Array.of(write.version) }]);
          succeeded = true;
        } finally {
          sectors.endWrite(write, succeeded);
        }
        counters.add('resync.sectorsWritten');
        return;
      }
    });
  }

  /** A page's sector, as if it had changed: it is logged and written like every change of it. */
  async #touch(inode: Inode, offsetBytes: number): Promise<void> {
    const volume = this.#volume;
    const file = inode.file ?? volume.inodes.attach(inode);
    const range = { start: offsetBytes, end: offsetBytes + SECTOR_BYTES };
    const pointer = (await extentsOf(volume, inode)).find(
      ({ extent, paged }) =>
        paged !== null && paged * SECTOR_BYTES <= offsetBytes && offsetBytes < (paged + extent.count) * SECTOR_BYTES,
    );
    if (pointer === undefined) return;
    const sector = pointer.extent.sector + offsetBytes / SECTOR_BYTES - pointer.paged!;
    await volume.learnVersions([{ nsd: pointer.extent.nsd, sector, count: 1 }]);
    await volume.innerChange(() =>
      file.withBytes(range, 'exclusive', (view) => {
        const transaction = new MetadataTransaction(volume);
        transaction.sector(inode, offsetBytes, view.bytes(offsetBytes, SECTOR_BYTES));
        view.changed(offsetBytes, SECTOR_BYTES);
        transaction.commit();
      }),
    );
    await file.flush(range);
    volume.counters.add('resync.sectorsWritten');
  }
}

/** Looks after the NSDs of a mounted file system that are not up to date, when there is a way to them. */
export class ResyncAgent {
  readonly #volume: Volume;
  readonly #unsubscribe: () => void;
  #running: Promise<void> | null = null;
  #stopped = false;

  constructor(volume: Volume) {
    this.#volume = volume;
    this.#unsubscribe = volume.copyStates.onChange(() => this.look());
  }

  /** Also from time to time: what failed is tried again. */
  look(): void {
    if (this.#running !== null || this.#stopped || this.#volume.closed) return;
    const { geometry, copyStates } = this.#volume;
    const due: NsdIndex[] = [];
    for (let index = 0; index < geometry.nsdCount; index++)
      if (copyStates.stateOf(nsdIndex(index)) !== 'up' && copyStates.isReachable(nsdIndex(index)))
        due.push(nsdIndex(index));
    if (due.length === 0) return;
    this.#running = this.#run(due).finally(() => {
      this.#running = null;
    });
  }

  async #run(due: readonly NsdIndex[]): Promise<void> {
    for (const nsd of due) {
      try {
        await new Resync(this.#volume, nsd).run();
      } catch (error) {
        if (this.#stopped || this.#volume.closed) return;
        this.#volume.counters.add('resync.failed');
        this.#volume.parts.logger.warn({ nsd, error: String(error) }, 'a copy could not be resynchronised yet');
      }
    }
  }

  /** Before the file system goes: what is under way is given up, or ends. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#unsubscribe();
    await this.#running;
  }
}
