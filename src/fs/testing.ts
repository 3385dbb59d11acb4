/**
 * What the tests of the file system stand on: NSDs in memory, tokens that are granted by an arbiter in the same process and can be
 * revoked on command, the real page cache over the twin of the cache map. Several nodes can mount the same NSDs. Not the simulator: no
 * message is lost here and nobody dies.
 */

import { TwinCacheMap } from '../cache/cache-map-twin.js';
import { createPageCache, type PageCacheSettings } from '../cache/page-cache.js';
import type { PageCacheApi } from '../cache/page-cache-api.js';
import type { Stamps } from '../cache/stamps.js';
import type { Clock, Timer } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { epoch, incarnation, type NsdIndex, nodeId } from '../common/ids.js';
import { type Logger, silentLogger } from '../common/logger.js';
import { SeededRandom } from '../common/random.js';
import { BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { SegmentArena } from '../native/buffer-arena.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { checksumsJs } from '../nsd/checksum-js.js';
import type { CopyState, CopyStates } from '../nsd/copy-states.js';
import { withCopies } from '../nsd/mirrored-nsds.js';
import type {
  NsdClientApi,
  NsdExtent,
  NsdFlushOptions,
  NsdWriteOptions,
  SectorIo,
  SectorVersions,
} from '../nsd/nsd-api.js';
import { holeWord, nextVersion, readsAsZeros, takesVersion, versionOf } from '../nsd/nsd-layout.js';
import { FileBacking } from './backing.js';
import { type CheckParts, type CheckReport, checkFileSystem } from './check/check.js';
import type { LogStorage } from './log/log-reader.js';
import { type CreateFileSystemOptions, createFileSystem } from './mkfs.js';
import { type MountedFileSystem, mountFileSystem } from './mount.js';
import { type Recovered, recoverLife } from './recovery.js';
import type { FsSettings } from './settings.js';
import type { SharedOwners, SharedReply, SharedRequest } from './shared/shared-io.js';
import { type SettledPeers, Settling } from './space-peers.js';
import { fsIdOf } from './superblock.js';
import { TestLockServer, TestLocks } from './testing-locks.js';
import { TestSpace } from './testing-space.js';
import { TestArbiter, TestTokens } from './testing-tokens.js';

export { TestArbiter, TestTokens } from './testing-tokens.js';

export const testChecksums = checksumsJs;

/** Time that tests move; until then it stands still. */
export class TestClock implements Clock {
  #nowMs = 1000;
  #timers: { atMs: number; fire: () => void }[] = [];
  #wall = 1_700_000_000_000_000_000n;

  nowMs(): number {
    return this.#nowMs;
  }
  /** Never twice the same, so that tests see which of two times is later. */
  wallNs(): bigint {
    this.#wall += 1000n;
    return this.#wall;
  }
  after(delayMs: number, fire: () => void): Timer {
    const timer = { atMs: this.#nowMs + delayMs, fire };
    this.#timers.push(timer);
    return { cancel: () => void (this.#timers = this.#timers.filter((other) => other !== timer)) };
  }
  async advance(ms: number): Promise<void> {
    const end = this.#nowMs + ms;
    for (;;) {
      const due = this.#timers.filter((timer) => timer.atMs <= end).sort((a, b) => a.atMs - b.atMs)[0];
      if (due === undefined) break;
      this.#timers = this.#timers.filter((timer) => timer !== due);
      this.#nowMs = Math.max(this.#nowMs, due.atMs);
      due.fire();
      await turns();
    }
    this.#nowMs = end;
    await turns();
  }
}

/** Lets everything run that needs no time. */
export const turns = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** NSDs in memory, with the version words of nsd-layout.ts. Never written and discarded sectors are zeros; a write whose bytes change under way is an error of the caller (S2). */
export class RamNsds implements NsdClientApi {
  readonly #devices: Map<number, Uint8Array>[];
  readonly #pools: PagePool;
  readonly #shared: {
    reads: number;
    writes: number;
    failing: ((op: string, io: SectorIo) => boolean) | null;
    readonly torn: Set<string>;
    readonly words: readonly Map<number, number>[];
    readonly away: Set<NsdIndex>;
  };

  constructor(
    readonly blocks: readonly number[],
    pool: PagePool,
    other?: RamNsds,
  ) {
    this.#devices = other?.devices ?? blocks.map(() => new Map<number, Uint8Array>());
    this.#pools = pool;
    this.#shared = other?.shared ?? {
      reads: 0,
      writes: 0,
      failing: null,
      torn: new Set(),
      words: blocks.map(() => new Map()),
      away: new Set(),
    };
  }
  get devices(): Map<number, Uint8Array>[] {
    return this.#devices;
  }
  get shared() {
    return this.#shared;
  }
  /** The same NSDs through another node's pool. */
  from(pool: PagePool): RamNsds {
    return new RamNsds(this.blocks, pool, this);
  }
  failWhen(failing: ((op: string, io: SectorIo) => boolean) | null): void {
    this.#shared.failing = failing;
  }
  /** A power cut has torn it: until it is written again, reading it is a mismatch. */
  tear(nsd: NsdIndex, sector: number): void {
    this.#shared.torn.add(`${nsd}/${sector}`);
  }
  sector(nsd: NsdIndex, sector: number): Uint8Array {
    return this.#devices[nsd]?.get(sector) ?? new Uint8Array(SECTOR_BYTES);
  }
  setSector(nsd: NsdIndex, sector: number, bytes: Uint8Array): void {
    this.#devices[nsd]!.set(sector, bytes.slice());
  }

  #cut = false;
  /** The node that uses it is gone: what it does reaches nothing and is never answered. */
  cut(): void {
    this.#cut = true;
  }
  #deaf: ((io: SectorIo) => boolean) | null = null;
  /** The node that uses it is dying: of what it writes from here on, this reaches nothing; nobody says so. */
  deafen(deaf: (io: SectorIo) => boolean): void {
    this.#deaf = deaf;
  }
  #alive(): Promise<void> {
    return this.#cut ? new Promise(() => undefined) : turns();
  }

  #check(op: string, io: SectorIo): void {
    const blocks = this.blocks[io.nsd];
    const sectors = io.memory.lengthBytes / SECTOR_BYTES;
    if (blocks === undefined || !Number.isInteger(sectors) || io.sector < 0 || io.sector + sectors > blocks * 256)
      throw new FsError('outOfRange', {
        op,
        object: `nsd ${io.nsd} sector ${io.sector}`,
        detail: `${sectors} sectors`,
      });
    this.#checkWay(op, io.nsd);
    if (this.#shared.failing?.(op, io))
      throw new FsError('deviceError', { op, object: `nsd ${io.nsd} sector ${io.sector}` });
  }
  /** NSDs to which there is no way now. */
  get away(): Set<NsdIndex> {
    return this.#shared.away;
  }
  #checkWay(op: string, nsd: NsdIndex): void {
    if (this.#shared.away.has(nsd))
      throw new FsError('nsdUnavailable', { op, object: `nsd ${nsd}`, detail: 'no server has a path to it' });
  }
  #slices(io: SectorIo): [number, Uint8Array][] {
    const slices: [number, Uint8Array][] = [];
    for (let at = 0; at < io.memory.lengthBytes; at += SECTOR_BYTES) {
      const start = io.memory.offsetBytes + at;
      slices.push([io.sector + at / SECTOR_BYTES, this.#pools.bytes.subarray(start, start + SECTOR_BYTES)]);
    }
    return slices;
  }

  async read(ios: readonly SectorIo[]): Promise<void> {
    this.#shared.reads++;
    await this.#alive();
    for (const io of ios) {
      this.#check('nsd.read', io);
      for (const [sector, bytes] of this.#slices(io)) {
        if (this.#shared.torn.has(`${io.nsd}/${sector}`))
          throw new FsError('checksumMismatch', { op: 'nsd.read', object: `nsd ${io.nsd} sector ${sector}` });
        const stored = this.#devices[io.nsd]!.get(sector);
        if (stored === undefined) bytes.fill(0);
        else bytes.set(stored);
      }
      io.versions?.forEach((_, i, versions) => {
        versions[i] = versionOf(this.#word(io.nsd, io.sector + i));
      });
    }
  }
  #word(nsd: NsdIndex, sector: number): number {
    return this.#shared.words[nsd]!.get(sector) ?? 0;
  }
  async write(ios: readonly SectorIo[], options?: NsdWriteOptions): Promise<void> {
    this.#shared.writes++;
    if (options?.flush !== undefined) this.flushes.push([...new Set(ios.map(({ nsd }) => nsd))]);
    const before = ios.flatMap((io) => {
      if (this.#deaf?.(io)) return [];
      this.#check('nsd.write', io);
      return this.#slices(io).map(([sector, bytes], i) => {
        const version = io.versions?.[i];
        return { nsd: io.nsd, sector, bytes, copy: bytes.slice(), version };
      });
    });
    await this.#alive();
    for (const { nsd, sector, version } of before)
      if (version !== undefined && !takesVersion(this.#word(nsd, sector), version))
        throw new FsError('staleVersion', { op: 'nsd.write', object: `nsd ${nsd} sector ${sector}` });
    for (const { nsd, sector, bytes, copy, version } of before) {
      if (Buffer.compare(bytes, copy) !== 0)
        throw new Error(`nsd ${nsd} sector ${sector} changed while it was written`);
      this.put(nsd, sector, copy, version ?? nextVersion(this.#word(nsd, sector)));
    }
  }
  /** A sector's bytes, none of them for zeros, and its version word. */
  protected put(nsd: NsdIndex, sector: number, bytes: Uint8Array | undefined, word: number): void {
    if (bytes === undefined) this.#devices[nsd]!.delete(sector);
    else this.#devices[nsd]!.set(sector, bytes);
    this.#shared.torn.delete(`${nsd}/${sector}`);
    this.#shared.words[nsd]!.set(sector, word);
  }
  async versions(extents: readonly NsdExtent[]): Promise<SectorVersions> {
    await this.#alive();
    for (const { nsd } of extents) this.#checkWay('nsd.versions', nsd);
    const words = extents.flatMap(({ nsd, sector, sectorCount }) =>
      Array.from({ length: sectorCount }, (_, i) => this.#word(nsd, sector + i)),
    );
    return {
      versions: Uint32Array.from(words, versionOf),
      zeros: Uint8Array.from(words, (word) => +readsAsZeros(word)),
    };
  }
  /** Of this node, each call's; those that go with a write, too. */
  readonly flushes: (readonly NsdIndex[])[] = [];
  async flush(nsds: readonly NsdIndex[], _options?: NsdFlushOptions): Promise<void> {
    this.flushes.push(nsds);
    await this.#alive();
    for (const nsd of nsds) this.#checkWay('nsd.flush', nsd);
  }
  /** Memory loses nothing. */
  lossesOf(_nsd: NsdIndex): number {
    return 0;
  }
  async discard(extents: readonly NsdExtent[]): Promise<void> {
    await this.#alive();
    for (const { nsd } of extents) this.#checkWay('nsd.discard', nsd);
    for (const { nsd, sector, sectorCount } of extents) {
      const device = this.#devices[nsd]!;
      const forget = (at: number): void => {
        const word = this.#word(nsd, at);
        if (device.has(at) || !readsAsZeros(word))
          this.put(nsd, at, undefined, readsAsZeros(word) ? word : holeWord(word));
      };
      if (sectorCount > device.size) {
        for (const key of [...device.keys()]) if (key >= sector && key < sector + sectorCount) forget(key);
      } else for (let at = sector; at < sector + sectorCount; at++) forget(at);
    }
  }
}

/** What stands about copies, known to every node at once. Two NSDs hold each other's copies, whichever they are. */
export class TestCopies {
  readonly #states = new Map<NsdIndex, { state: CopyState; generation: number }>();
  readonly #listeners = new Set<() => void>();
  readonly marks: NsdIndex[] = [];

  constructor(readonly away: ReadonlySet<NsdIndex>) {}

  stateOf(nsd: NsdIndex): CopyState {
    return this.#states.get(nsd)?.state ?? 'up';
  }
  /** Somebody has come or gone. */
  changed(): void {
    for (const listener of [...this.#listeners]) listener();
  }

  forNode(settleOthers: () => Promise<void>): CopyStates {
    const set = (nsd: NsdIndex, state: CopyState): number => {
      const generation = (this.#states.get(nsd)?.generation ?? 0) + 1;
      this.#states.set(nsd, { state, generation });
      return generation;
    };
    return {
      stateOf: (nsd) => this.stateOf(nsd),
      isNear: () => false,
      isReachable: (nsd) => !this.away.has(nsd),
      missed: async (nsd, cause) => {
        if ([...this.#states].some(([other, { state }]) => other !== nsd && state !== 'up')) throw cause;
        if (this.stateOf(nsd) !== 'stale') {
          set(nsd, 'stale');
          this.marks.push(nsd);
        }
        return 'stale';
      },
      refused: async (nsd) => void (this.stateOf(nsd) === 'resync' && set(nsd, 'resync')),
      beginResync: async (nsd) => {
        if (this.stateOf(nsd) === 'up') return null;
        const generation = set(nsd, 'resync');
        await settleOthers();
        return generation;
      },
      endResync: async (nsd, generation) => {
        const done = this.stateOf(nsd) === 'resync' && this.#states.get(nsd)?.generation === generation;
        if (done) this.#states.delete(nsd);
        return done;
      },
      onChange: (listener) => {
        this.#listeners.add(listener);
        return () => this.#listeners.delete(listener);
      },
    };
  }
}

export interface TestNode {
  readonly fs: MountedFileSystem;
  readonly tokens: TestTokens;
  readonly locks: TestLocks;
  readonly cache: PageCacheApi;
  readonly backing: FileBacking;
  readonly map: TwinCacheMap;
  readonly counters: Counters;
  readonly pool: PagePool;
  readonly nsds: RamNsds;
  readonly life: { readonly nodeId: number; readonly incarnation: number };
}

export interface TestVolumeOptions {
  /** Blocks (MiB) of each NSD. */
  readonly blocks?: readonly number[];
  readonly mkfs?: Partial<
    Pick<
      CreateFileSystemOptions,
      'regionBlocks' | 'segmentCount' | 'expectedNodes' | 'rootMode' | 'logBytes' | 'metadataCopies'
    >
  >;
  readonly settings?: Partial<FsSettings>;
  readonly cacheSettings?: Partial<PageCacheSettings>;
  readonly poolPages?: number;
  readonly seed?: number;
  readonly logger?: Logger;
  /** NSDs of another kind. */
  readonly nsds?: (blocks: readonly number[], pool: PagePool) => RamNsds;
}

const STAGING_BYTES = 4 * BLOCK_BYTES;
export const TEST_FS_UUID = '6f1d2c3b-0a19-4857-8e6d-5c4b3a291807';

/** A formatted file system that nodes can mount. */
export class TestVolume {
  readonly clock = new TestClock();
  readonly arbiter = new TestArbiter();
  readonly lockServer = new TestLockServer();
  readonly space = new TestSpace(() => this.clock.nowMs());
  readonly nsds: RamNsds;
  readonly copies: TestCopies;
  epoch = epoch(1);
  readonly #mounted = new Map<number, MountedFileSystem>();
  /** By node: the life that is there. */
  readonly #lives = new Map<number, number>();
  #lastLife = 0;
  readonly #options: TestVolumeOptions;

  private constructor(options: TestVolumeOptions, nsds: RamNsds) {
    this.#options = options;
    this.nsds = nsds;
    this.copies = new TestCopies(nsds.away);
  }

  static async create(options: TestVolumeOptions = {}): Promise<TestVolume> {
    const blocks = options.blocks ?? [64, 64];
    const pool = heapPagePool(STAGING_BYTES);
    const nsds = options.nsds?.(blocks, pool) ?? new RamNsds(blocks, pool);
    const volume = new TestVolume(options, nsds);
    await createFileSystem({
      nsds: blocks.map((count, index) => ({
        uuid: `00000000-0000-4000-8000-${String(index + 1).padStart(12, '0')}`,
        blocks: count,
        failureGroup: index,
      })),
      fsUuid: TEST_FS_UUID,
      name: 'test',
      nsdClient: nsds,
      arena: new SegmentArena({ offsetBytes: 0, lengthBytes: STAGING_BYTES }),
      pool,
      checksums: testChecksums,
      clock: volume.clock,
      random: new SeededRandom(options.seed ?? 1),
      metadataCopies: 1,
      ...options.mkfs,
    });
    return volume;
  }

  /**
   * It answers nothing any more and takes what it had in memory with it: nothing of it reaches an NSD from here on. Then F1: its log is redone, and
   * what it held falls, in a new epoch; somebody who is there settles what it left unfinished.
   */
  async bury(node: TestNode): Promise<void> {
    node.nsds.cut();
    node.tokens.die();
    this.lockServer.bury(node.locks);
    this.epoch = epoch(this.epoch + 1);
    await this.recover(node);
    this.arbiter.clients.splice(this.arbiter.clients.indexOf(node.tokens), 1);
    node.tokens.fall();
    this.space.leaves(node.fs);
    for (const [number, fs] of this.#mounted) {
      if (fs !== node.fs) continue;
      this.#mounted.delete(number);
      this.#lives.delete(number);
    }
    await [...this.#mounted.values()][0]?.settleLeft();
  }

  /** All of them at once, with their tokens and whoever knew of them; what they left is for the next mount. */
  powerOff(nodes: readonly TestNode[]): void {
    for (const node of nodes) {
      node.nsds.cut();
      node.tokens.die();
      this.lockServer.bury(node.locks);
      this.arbiter.clients.splice(this.arbiter.clients.indexOf(node.tokens), 1);
      this.space.leaves(node.fs);
    }
    this.#mounted.clear();
    this.#lives.clear();
    this.epoch = epoch(this.epoch + 1);
  }

  /** Its log is redone. */
  async recover({ fs, life }: Pick<TestNode, 'fs' | 'life'>): Promise<Recovered> {
    const pool = heapPagePool(STAGING_BYTES);
    const { superblock } = fs;
    return recoverLife(
      {
        nsds: withCopies({ nsds: this.nsds.from(pool), states: this.copyStates(null) }),
        pool,
        arena: new SegmentArena({ offsetBytes: 0, lengthBytes: STAGING_BYTES }),
        checksums: testChecksums,
        fsId: fsIdOf(superblock.fsUuid),
        geometry: superblock.geometry,
        inodeFile: superblock.inodeFile,
        logger: this.#options.logger ?? silentLogger,
        counters: new Counters(),
      },
      life,
    );
  }

  copyStates(node: number | null): CopyStates {
    return this.copies.forNode(async () => {
      for (const [other, fs] of this.#mounted) if (other !== node) await fs.settle(Settling.changes);
    });
  }

  /** For whoever looks at the NSDs past every node. */
  storage(): LogStorage {
    const pool = heapPagePool(STAGING_BYTES);
    const arena = new SegmentArena({ offsetBytes: 0, lengthBytes: STAGING_BYTES });
    return {
      nsds: withCopies({ nsds: this.nsds.from(pool), states: this.copyStates(null) }),
      pool,
      arena,
      checksums: testChecksums,
    };
  }

  /** Of node numbers that are used twice the last one counts. */
  async #settle(asking: number, what: Settling): Promise<SettledPeers> {
    const marks: string[] = [];
    let unusedNumbers = 0;
    for (const [node, fs] of this.#mounted) {
      if (node === asking) continue;
      try {
        const settled = await fs.settle(what);
        marks.push(`${node}:${settled.freedSubBlocks}`);
        unusedNumbers += settled.unusedNumbers;
      } catch (error) {
        if (!FsError.is(error) || error.reason !== 'closed') return { mark: null, unusedNumbers };
      }
    }
    return { mark: marks.join(), unusedNumbers };
  }

  /** The node that serves shared files for all; null: each for itself. */
  sharedOwner: number | null = null;
  #owners(self: number): SharedOwners {
    return {
      ownerOf: () => {
        const owner = this.sharedOwner;
        const life = owner === null ? undefined : this.#lives.get(owner);
        if (owner === null || life === undefined || owner === self) return null;
        return { nodeId: nodeId(owner), incarnation: incarnation(life) };
      },
      isThere: (owner) => this.#lives.get(owner.nodeId) === owner.incarnation,
      ask: async (owner, request) => {
        await turns();
        const fs = this.#mounted.get(owner.nodeId);
        if (fs !== undefined && this.#lives.get(owner.nodeId) !== owner.incarnation) return null;
        if (fs === undefined) throw new FsError('fenced', { op: 'sharedIo', object: `node ${owner.nodeId}` });
        return this.onShared === null ? fs.serveShared(request) : this.onShared(fs, request);
      },
    };
  }
  /** Stands between the nodes and the owner. */
  onShared: ((owner: MountedFileSystem, request: SharedRequest) => Promise<SharedReply>) | null = null;

  async mount(node = 1, nodeSettings: Partial<FsSettings> = {}, stamps?: Stamps): Promise<TestNode> {
    const life = ++this.#lastLife;
    this.#lives.set(node, life);
    const poolPages = this.#options.poolPages ?? 2048;
    const pool = heapPagePool(poolPages * PAGE_BYTES + STAGING_BYTES);
    const arena = new SegmentArena({ offsetBytes: poolPages * PAGE_BYTES, lengthBytes: STAGING_BYTES });
    const nsds = this.nsds.from(pool);
    const tokens = new TestTokens(this.arbiter);
    const locks = new TestLocks(this.lockServer, node, life);
    const counters = new Counters();
    const random = new SeededRandom((this.#options.seed ?? 1) + node);
    const logger = this.#options.logger ?? silentLogger;
    const { clock } = this;
    const backing = new FileBacking();
    const map = new TwinCacheMap(pool, clock, 4096, poolPages);
    map.setLeaseDeadline(Number.MAX_SAFE_INTEGER);
    const cache = createPageCache({
      map,
      pool,
      tokens,
      backing,
      clock,
      random,
      logger,
      counters,
      settings: this.#options.cacheSettings,
    });
    const fs = await mountFileSystem({
      nodeId: nodeId(node),
      incarnation: incarnation(life),
      epoch: () => this.epoch,
      tokens,
      locks,
      cache,
      backing,
      nsds,
      arena,
      pool,
      clock,
      random,
      logger,
      counters,
      checksums: testChecksums,
      settings: { ...this.#options.settings, ...nodeSettings },
      peers: { settle: (what) => this.#settle(node, what), ...this.space.peers(node) },
      owners: this.#owners(node),
      lives: { state: (id, life) => (this.#lives.get(id) === life ? 'here' : 'gone') },
      copyStates: this.copyStates(node),
      stamps,
    });
    this.#mounted.set(node, fs);
    this.space.joins(node, fs, tokens);
    return { fs, tokens, locks, cache, backing, map, counters, pool, nsds, life: { nodeId: node, incarnation: life } };
  }
}

/** What a check or a repair stands on, beside every node. */
export function checkParts(volume: Pick<TestVolume, 'nsds'>): CheckParts {
  const pool = heapPagePool(STAGING_BYTES);
  const arena = new SegmentArena({ offsetBytes: 0, lengthBytes: STAGING_BYTES });
  return { nsds: volume.nsds.from(pool), arena, pool, checksums: testChecksums };
}

/** A check of everything on the NSDs; all nodes have unmounted. */
export const checkVolume = (volume: Pick<TestVolume, 'nsds'>): Promise<CheckReport> =>
  checkFileSystem(checkParts(volume));
