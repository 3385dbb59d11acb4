/** The parts of one mounted file system on one node, as they see each other. Made by mount.ts, and nowhere else. */

import type { BackingStore } from '../cache/backing-store.js';
import type { CachedFile, PageCacheApi } from '../cache/page-cache-api.js';
import type { Stamps } from '../cache/stamps.js';
import type { ByteRange } from '../common/byte-range.js';
import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Epoch, Incarnation, InodeNumber, NodeId, NsdIndex } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Random } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { BufferArena, PagePool, PoolSegment } from '../native/page-pool.js';
import type { Checksums } from '../nsd/checksums.js';
import type { CopyStates } from '../nsd/copy-states.js';
import type { NsdClientApi, SectorIo } from '../nsd/nsd-api.js';
import type { LockClientApi } from '../token-manager/locks/lock-client-api.js';
import { compareItems, TokenClass, type TokenItem, TokenMode, type TokenPins } from '../token-manager/token.js';
import type { AcquireOptions, TokenClientApi } from '../token-manager/token-client-api.js';
import { AccessTimes } from './access-times.js';
import type { Allocator } from './allocator.js';
import type { OpenFile } from './file-system-api.js';
import type { FreeQueue } from './free-queue.js';
import type { Inode } from './inode.js';
import type { InodeAhead } from './inode-ahead.js';
import type { InodeNumbers } from './inode-numbers.js';
import type { InodeTable } from './inode-table.js';
import type { KernelCaches } from './kernel-caches.js';
import { allNsds, type Extent, type Geometry } from './layout.js';
import { LoggedData } from './log/logged-data.js';
import { keyOf, LoggedSectors } from './log/logged-sectors.js';
import type { EnterKind, EnterOptions, NodeLog } from './log/node-log.js';
import type { LogClaim } from './log-claim.js';
import type { Neighbours } from './neighbours.js';
import type { Orphans } from './orphans.js';
import { sealSector } from './sector.js';
import type { FsSettings } from './settings.js';
import type { SharedOwners } from './shared/shared-io.js';
import type { SharedService } from './shared/shared-service.js';
import type { Shipments } from './space/shipments.js';
import type { SpacePeers } from './space-peers.js';
import type { Superblock } from './superblock.js';

export interface VolumeParts {
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
  readonly epoch: () => Epoch;
  readonly tokens: TokenClientApi;
  readonly locks: LockClientApi;
  readonly nsds: NsdClientApi;
  readonly arena: BufferArena;
  readonly pool: PagePool;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly counters: Counters;
  readonly checksums: Checksums;
  readonly settings: FsSettings;
  readonly peers: SpacePeers;
  readonly lives: Lives;
  readonly servers: NsdServers;
  readonly owners: SharedOwners;
  /** `nsds` goes by them. */
  readonly copyStates: CopyStates;
  /** Null: nobody remembers answers. */
  readonly stamps: Stamps | null;
}

/**
 * Whether a life of a node is there. Of one that is being expelled others replay the log (F1); that of one that is gone is redone by who mounts
 * next.
 */
export type LifeState = 'here' | 'expelling' | 'gone';
export interface Lives {
  state(nodeId: number, incarnation: number): LifeState;
}
/** What an NSD is called and which node serves it, as the cluster knows it. */
export type NsdServers = (uuid: string) => { readonly name: string; readonly node: NodeId | null } | null;

/** Nobody else has it mounted. */
export const NOBODY_ELSE: Lives = { state: () => 'gone' };

/** What an NSD lost may be written again while it is being read. */
const READ_AGAIN_MAX = 3;
/** A quarter of a transaction. */
const STEP_INDIRECTS_MAX = 64;

export class Volume {
  cache!: PageCacheApi;
  /** What other nodes read and write through this one. */
  shared!: SharedService;
  /** For bytes that pass the cache by. */
  backing!: BackingStore;
  inodes!: InodeTable;
  allocator!: Allocator;
  frees!: FreeQueue;
  shipments!: Shipments;
  numbers!: InodeNumbers;
  neighbours!: Neighbours;
  ahead!: InodeAhead;
  readonly accessTimes: AccessTimes = new AccessTimes(this);
  /** Where it is mounted: what the kernel keeps of it. */
  kernel: KernelCaches | null = null;
  /** Inodes without names that this node is to free. */
  orphans!: Orphans;
  readonly sectors: LoggedSectors;
  readonly logged: LoggedData;
  /** Null until the node has its log, early in mounting: nothing is logged before. */
  log: NodeLog | null = null;
  claim: LogClaim | null = null;
  /** The two maps: their blocks never move, so they need no status token. */
  readonly systemFiles = new Map<InodeNumber, Inode>();
  readonly geometry: Geometry;
  /** Handles that have not been closed: unmounting closes them. */
  readonly openFiles = new Set<OpenFile>();
  /** How many of them deny something, by inode. */
  readonly denying = new Map<InodeNumber, number>();
  closed = false;
  /** This node was expelled (F3): closed for good, and what was not written is lost. */
  fenced = false;

  constructor(
    readonly parts: VolumeParts,
    readonly superblock: Superblock,
    readonly fsId: bigint,
  ) {
    this.geometry = superblock.geometry;
    this.sectors = new LoggedSectors((nsd) => parts.nsds.lossesOf(nsd));
    this.logged = new LoggedData(this.sectors);
  }

  get settings(): FsSettings {
    return this.parts.settings;
  }
  /** Extents that one transaction gives up at most. */
  get stepExtentsMax(): number {
    return Math.min(this.settings.stepExtentsMax, this.log?.stepExtentsMax ?? Number.POSITIVE_INFINITY);
  }
  /** Indirect blocks in one transaction, about: each may be logged whole. */
  get stepIndirectsMax(): number {
    return Math.min(STEP_INDIRECTS_MAX, this.log?.stepIndirectsMax ?? STEP_INDIRECTS_MAX);
  }
  get copyStates(): CopyStates {
    return this.parts.copyStates;
  }
  get clock(): Clock {
    return this.parts.clock;
  }
  get counters(): Counters {
    return this.parts.counters;
  }
  get checksums(): Checksums {
    return this.parts.checksums;
  }
  now(): bigint {
    return this.parts.clock.wallNs();
  }

  checkOpen(op: string): void {
    this.checkNotFenced(op);
    if (this.closed) throw new FsError('closed', { op, detail: 'the file system is not mounted any more' });
  }

  /** Also after waiting, by what would otherwise take an inode that is not valid for one that is clean. */
  checkNotFenced(op: string, ino?: InodeNumber): void {
    if (!this.fenced) return;
    const object = ino === undefined ? undefined : `inode ${ino}`;
    throw new FsError('fenced', { op, object, detail: 'this node was fenced, what it had not written is lost' });
  }

  /** An attached system file (allocation map, inode map). */
  mapFile(ino: InodeNumber): CachedFile {
    return this.systemFiles.get(ino)!.file!;
  }

  /**
   * Pins all items in the total order (T4), one request per token server when not all is held. Status items of inodes never
   * met get their place in the inode file looked up first: that may need the status token of the inode file itself.
   */
  async pin(items: TokenItem[], options: AcquireOptions | undefined): Promise<TokenPins> {
    if (items.length > 1) items.sort(compareItems);
    const pins = this.parts.tokens.tryPin(items);
    if (pins !== null) return pins;
    return this.parts.tokens.acquire(items, {
      timeoutMs: options?.timeoutMs,
      signal: options?.signal,
      patient: options?.patient,
    });
  }

  /** A data token on a system object, no more than named: regions and segments are handed over one by one. */
  dataItem(ino: InodeNumber, range: ByteRange, mode: TokenMode = TokenMode.exclusive): TokenItem {
    return { class: TokenClass.data, object: ino, mode, required: range, desired: range };
  }

  /**
   * An operation that changes metadata, or may: with room for it in the log. Nothing is pinned yet.
   * @throws {FsError} deadlinePassed with the reason why there is no room, aborted, queueFull
   */
  async change<T>(body: () => Promise<T>, options: AcquireOptions | undefined): Promise<T> {
    return this.#entered('operation', body, options);
  }
  /**
   * The same for what is done inside of operations, or beside them. It waits for devices only while it has entered. `lengthBytes`: where it logs much.
   * Fails like a device when there is no room in time; what must not fail (a revoke) is tried again by its owner, and nothing of it is lost meanwhile.
   */
  async innerChange<T>(body: () => Promise<T> | T, options?: EnterOptions): Promise<T> {
    return this.#entered('inner', body, options);
  }
  async #entered<T>(kind: EnterKind, body: () => Promise<T> | T, options: EnterOptions | undefined): Promise<T> {
    const { log } = this;
    const leave = log === null ? null : (log.tryEnter(kind, options?.lengthBytes) ?? (await log.enter(kind, options)));
    try {
      return await body();
    } finally {
      leave?.();
    }
  }

  /** Of what is cut in steps, with nothing pinned: others get on, the log doesn't fill, and the queue of what is to be freed stays bounded. */
  async betweenSteps(): Promise<void> {
    this.counters.add('fs.cutSteps');
    await this.log?.force();
    await this.frees.makeRoom();
  }

  /** Staging space in the pool for the time of `body`. Not to be waited for with another piece of staging in hand. */
  async withStaging<T>(lengthBytes: number, body: (bytes: Uint8Array, segment: PoolSegment) => Promise<T>): Promise<T> {
    const segment = await this.parts.arena.allocate(lengthBytes);
    try {
      return await body(
        this.parts.pool.bytes.subarray(segment.offsetBytes, segment.offsetBytes + lengthBytes),
        segment,
      );
    } finally {
      this.parts.arena.free(segment);
    }
  }

  /** Metadata, with its versions for the log. */
  async readSectors<T>(
    nsd: NsdIndex,
    sector: number,
    count: number,
    use: (bytes: Uint8Array, versions: Uint32Array) => T,
  ): Promise<T> {
    return this.withStaging(count * SECTOR_BYTES, async (bytes, memory) => {
      const versions = new Uint32Array(count);
      const io = { offsetBytes: memory.offsetBytes, lengthBytes: count * SECTOR_BYTES };
      await this.readMetadata([{ nsd, sector, memory: io, versions }]);
      return use(bytes, versions);
    });
  }

  /** The NSDs that a flush of everything has to reach: what is on one that is stale has its other copy, or fails for itself. */
  nsdsInUse(): NsdIndex[] {
    return allNsds(this.geometry).filter((nsd) => this.copyStates.stateOf(nsd) !== 'stale');
  }

  /**
   * With versions. What this node has written in place and an NSD has lost since is as it was written, though it may take until the next flush
   * before that is noticed and mended.
   */
  async readMetadata(ios: readonly SectorIo[], signal?: AbortSignal): Promise<void> {
    const { pool } = this.parts;
    await this.readAsWritten(ios, signal);
    for (const io of ios)
      for (const [index, key] of sectorKeys(io).entries()) {
        const image = this.sectors.newest(key, io.versions?.[index] ?? 0);
        if (image === undefined) continue;
        const at = io.memory.offsetBytes + index * SECTOR_BYTES;
        const sector = pool.bytes.subarray(at, at + SECTOR_BYTES);
        sector.fill(0).set(image);
        sealSector(sector, this.checksums);
      }
  }

  /** With versions, which say where the NSD has lost what this node still has; not torn by that, nor of before what this node has written again meanwhile. */
  async readAsWritten(ios: readonly SectorIo[], signal?: AbortSignal): Promise<void> {
    const { nsds } = this.parts;
    try {
      for (let again = 0; ; again++) {
        await nsds.read(ios, { signal });
        if (again === READ_AGAIN_MAX || !ios.some((io) => this.#isPast(io))) break;
      }
    } catch (error) {
      const keys = ios.flatMap(sectorKeys);
      const lost = FsError.is(error) && error.reason === 'checksumMismatch';
      if (!lost || this.log === null || !keys.some((key) => this.sectors.isUndurable(key))) throw error;
      // Torn by the loss, perhaps.
      await this.log.makeDurable(keys);
      await nsds.read(ios, { signal });
    }
  }

  #isPast(io: SectorIo): boolean {
    const { versions } = io;
    return versions !== undefined && sectorKeys(io).some((key, index) => this.sectors.isPast(key, versions[index]!));
  }

  wasRead(place: Extent, version: number): void {
    this.sectors.learn(keyOf(place), version);
  }

  /** Metadata sectors that are going to be changed without having been read: what the log must know of them. */
  async learnVersions(extents: readonly Extent[]): Promise<void> {
    if (extents.length === 0) return;
    const asked = extents.map(({ nsd, sector, count }) => ({ nsd, sector, sectorCount: count }));
    const { versions } = await this.parts.nsds.versions(asked);
    let index = 0;
    for (const { nsd, sector, count } of extents)
      for (let at = 0; at < count; at++) this.sectors.learn(keyOf({ nsd, sector: sector + at }), versions[index++]!);
  }
  async writeSectors(nsd: NsdIndex, sector: number, count: number, fill: (bytes: Uint8Array) => void): Promise<void> {
    await this.withStaging(count * SECTOR_BYTES, async (bytes, memory) => {
      fill(bytes);
      await this.parts.nsds.write([
        { nsd, sector, memory: { offsetBytes: memory.offsetBytes, lengthBytes: count * SECTOR_BYTES } },
      ]);
    });
  }
}

const sectorKeys = ({ nsd, sector, memory }: SectorIo): number[] =>
  Array.from({ length: memory.lengthBytes / SECTOR_BYTES }, (_, index) => keyOf({ nsd, sector: sector + index }));
