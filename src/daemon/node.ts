import type { CacheMap } from '../cache/cache-map.js';
import { createPageCache } from '../cache/page-cache.js';
import type { PageCacheApi } from '../cache/page-cache-api.js';
import type { PageCacheSettings } from '../cache/page-cache-settings.js';
import type { Stamps } from '../cache/stamps.js';
import type { FileSystemClaims } from '../cluster/file-system-claims.js';
import type { ClusterView, Membership } from '../cluster/membership-api.js';
import type { ExpulsionActions } from '../cluster/membership-runtime.js';
import { WHOLE } from '../common/byte-range.js';
import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { type FileSystemNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Random } from '../common/random.js';
import type { Wakeful } from '../common/wakeful.js';
import type { Fabric, NodeIdentity } from '../fabric/fabric.js';
import { FileBacking } from '../fs/backing.js';
import { type CheckParts, type CheckReport, checkFileSystem, logOwners } from '../fs/check/check.js';
import type { OnlineOptions, OnlineReport } from '../fs/check/online/online-report.js';
import { type RepairReport, repairFileSystem } from '../fs/check/repair.js';
import type { Progress, ScanOptions } from '../fs/check/scan.js';
import type { MetadataCopies } from '../fs/layout.js';
import { blocksOf, createFileSystem } from '../fs/mkfs.js';
import { type MountedFileSystem, mountFileSystem } from '../fs/mount.js';
import type { FsSettings } from '../fs/settings.js';
import type { NsdDescription } from '../fs/superblock.js';
import { SegmentArena } from '../native/buffer-arena.js';
import type { PagePool } from '../native/page-pool.js';
import type { Checksums } from '../nsd/checksums.js';
import { ALWAYS_UP, type CopyStates } from '../nsd/copy-states.js';
import { withCopies } from '../nsd/mirrored-nsds.js';
import type { NsdClientApi } from '../nsd/nsd-api.js';
import { NsdClient } from '../nsd/nsd-client.js';
import { NsdServer } from '../nsd/nsd-server.js';
import type { NsdStore } from '../nsd/nsd-store.js';
import { MessageType } from '../protocol/message-types.js';
import { scopedTokens } from '../token-manager/file-system-scope.js';
import { LockClient } from '../token-manager/locks/lock-client.js';
import { scopedLocks } from '../token-manager/locks/lock-client-api.js';
import { TokenClass } from '../token-manager/token.js';
import { TokenClient } from '../token-manager/token-client.js';
import type { TokenClientSettings } from '../token-manager/token-client-events.js';
import type { Holding } from '../token-manager/token-client-machine.js';
import { encodeExpel } from '../token-manager/token-messages.js';
import { TokenServer } from '../token-manager/token-server.js';
import type { TokenServerSettings } from '../token-manager/token-server-events.js';
import { ClusterCopies, type CopyRecordStore } from './cluster-copies.js';
import { LockReports } from './lock-reports.js';
import { lifeState, NodeRecovery } from './node-recovery.js';
import type { PoolPlan } from './pool-plan.js';
import { RegionExchange } from './region-exchange.js';
import { SharedExchange } from './shared-exchange.js';
import { SpaceExchange } from './space-exchange.js';

/**
 * One node, put together: everything between the fabric and the file system. The daemon, the library's worker and the
 * simulator build the same; what differs (links, clock, store, devices, cache map) is handed in.
 *
 * Owns the order of starting and ending. Fault model: `suspend`, `resume` and `fence` come from the membership at any time;
 * after `fence` nothing is served and nothing is written any more (F3), and what was lost is handed out.
 */
export interface NodeParts {
  readonly fabric: Fabric;
  readonly membership: Membership;
  /** Absent: no copy is ever given up. */
  readonly copyRecords?: CopyRecordStore;
  readonly pool: PagePool;
  readonly plan: PoolPlan;
  readonly map: CacheMap;
  /** For threads of this process that remember answers. */
  readonly stamps?: Stamps | undefined;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly counters: Counters;
  readonly checksums: Checksums;
  /** Absent: processors sleep as they like. */
  readonly wakeful?: Wakeful;
  /** NSDs that this node serves, open. */
  readonly stores: readonly NsdStore[];
  readonly settings?: {
    readonly cache?: Partial<PageCacheSettings>;
    readonly fs?: Partial<FsSettings>;
    readonly tokens?: Partial<TokenClientSettings & { acquireTimeoutMs: number }>;
    readonly tokenServer?: Partial<TokenServerSettings>;
    readonly nsdTimeoutMs?: number;
    /** What a server gets before a request is sent again. */
    readonly nsdAttemptTimeoutMs?: number;
  };
  /** All file systems of the cluster: of each the log of a dead node is redone (F1). */
  readonly fileSystems: () => Promise<readonly FileSystemIdentity[]>;
  /** Who uses a file system as a whole; absent: nobody checks or repairs one. */
  readonly claims?: FileSystemClaims;
  /** An invariant is broken: stop serving (F7). */
  readonly onBroken: (error: unknown) => void;
}

/** A file system as the cluster store records it. */
export interface FormatOptions {
  /** Undefined: 2 where the NSDs are in two failure groups or more. */
  readonly metadataCopies?: MetadataCopies | undefined;
}

export interface FileSystemIdentity {
  readonly uuid: string;
  readonly name: string;
  readonly number: FileSystemNumber;
  /** UUIDs of its NSDs, by index. */
  readonly nsds: readonly string[];
}

/** Bytes that were written and had not reached the NSDs (F3). */
export interface LostRange {
  readonly ino: number;
  readonly start: number;
  readonly end: number;
}

interface Mounted {
  readonly release: () => Promise<void>;
  readonly identity: FileSystemIdentity;
  readonly cache: PageCacheApi;
  readonly fileSystem: MountedFileSystem;
}

const ACTION_TIMEOUT_MS = 10_000;
const UNMOUNT_FIRST = 'unmount it first';

export class HoldfastNode {
  readonly tokenServer: TokenServer | null;
  readonly tokens: TokenClient;
  readonly locks: LockClient;
  readonly nsdServer: NsdServer | null;
  readonly #parts: NodeParts;
  readonly #unsubscribe: () => void;
  readonly lockReports: LockReports;
  readonly #shared: SharedExchange;
  readonly #space: SpaceExchange;
  readonly #regions: RegionExchange;
  readonly #recovery: NodeRecovery;
  /** Metadata on its way, of the mounted file system and of recovery. */
  readonly #staging: SegmentArena;
  #mounted: Mounted | null = null;
  #hasLeftLog = false;
  /** The last mount or unmount: both use all of the map, the staging and the tokens, so they run one at a time. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: NodeParts, role: { readonly tokenServer: boolean }) {
    const { fabric, membership, pool, plan, clock, counters, logger, checksums, wakeful, settings } = parts;
    this.#parts = parts;
    this.#staging = new SegmentArena(plan.fsStaging);
    this.#recovery = new NodeRecovery({
      self: fabric.self.nodeId,
      storage: (identity) => this.#storage(identity).nsds,
      fileSystems: parts.fileSystems,
      membership,
      arena: this.#staging,
      pool,
      checksums,
      clock,
      counters,
      logger,
      mounted: () => this.#mounted?.fileSystem ?? null,
    });
    fabric.setEpoch(membership.view.epoch);
    // The fabric learns of a view before the tokens do: what they send belongs to the new epoch.
    this.#unsubscribe = membership.onChange((view, previous) => this.#viewChanged(view, previous));
    this.nsdServer =
      plan.serverStaging === null
        ? null
        : new NsdServer({
            fabric,
            pool,
            arena: new SegmentArena(plan.serverStaging),
            checksums,
            counters,
            logger,
            wakeful,
          });
    for (const store of parts.stores) this.nsdServer?.export(store, membership.view.epoch);
    if (this.nsdServer === null) {
      // Every full node is asked to fence; one that serves no NSD has nothing to drain.
      fabric.handleRequests(MessageType.nsdFence, () => new Uint8Array(0));
    }
    // Echo: what measures the way between two nodes asks for it.
    fabric.handleRequests(MessageType.ping, ({ body }) => body);
    this.tokenServer = role.tokenServer
      ? new TokenServer({
          fabric,
          membership,
          clock,
          counters,
          logger,
          ...(settings?.tokenServer === undefined ? {} : { settings: settings.tokenServer }),
          closed: membership.view.expelling,
        })
      : null;
    const mounted = () => {
      const present = this.#mounted;
      return present === null ? null : { uuid: present.identity.uuid, fileSystem: present.fileSystem };
    };
    const catchUp = async () => parts.copyRecords?.updateCopies(() => null);
    this.#space = new SpaceExchange({ fabric, membership, counters, logger, catchUp, mounted });
    const { tokenServer } = this;
    this.#shared = new SharedExchange({ fabric, membership, mounted });
    this.lockReports = new LockReports({ fabric, membership, locks: () => this.locks.machine, mounted });
    this.#regions = new RegionExchange({ fabric, membership, clock, counters, logger, tokenServer, mounted });
    this.tokens = new TokenClient({
      fabric,
      membership,
      clock,
      counters,
      logger,
      ...(settings?.tokens === undefined ? {} : { settings: settings.tokens }),
      onBroken: parts.onBroken,
    });
    this.locks = new LockClient({ fabric, membership, clock, counters, logger });
  }

  /** F1's steps on other nodes, for the membership when it drives an expulsion. */
  expulsionActions(): ExpulsionActions {
    const { fabric } = this.#parts;
    return {
      fence: async (server, target) => {
        const order = { node: target.nodeId, upTo: target.incarnation, epoch: target.epoch };
        if (server.nodeId === fabric.self.nodeId && this.nsdServer !== null) {
          await this.nsdServer.fence(order.node, order.upTo, order.epoch);
        } else {
          await this.nsdClient([]).fence(server.nodeId, order, { timeoutMs: ACTION_TIMEOUT_MS });
        }
      },
      tokensFall: async (server, target) => {
        // What it held stays closed until its logs have been redone (I6). Who left in order has nothing in them.
        if (!target.clean) await this.redoLogs(target);
        if (!server.tokenServer) return;
        const fate = { type: 'expelled', nodeId: target.nodeId, incarnation: target.incarnation } as const;
        await fabric
          .peer(server.nodeId)
          .request(MessageType.tokenExpel, encodeExpel(fate), { timeoutMs: ACTION_TIMEOUT_MS });
      },
    };
  }

  /** Of a life that every NSD server refuses; once, however often it is asked for. */
  redoLogs(life: NodeIdentity): Promise<void> {
    return this.#recovery.redo(life);
  }

  /** NSDs by index, wherever the membership says that they are served. */
  nsdClient(uuids: readonly string[]): NsdClient {
    const { fabric, membership, pool, checksums, clock, counters, wakeful, settings } = this.#parts;
    return new NsdClient({
      wakeful,
      fabric,
      pool,
      checksums,
      clock,
      counters,
      locate: (index: NsdIndex) => {
        const uuid = uuids[index];
        if (uuid === undefined) return null;
        const { nsds, nodes } = membership.view;
        const record = nsds.get(uuid);
        if (record === undefined) return { uuid, servers: [] };
        const { serving, generation } = record;
        const mayMove = record.servers.length > 1;
        return { uuid, servers: serving !== null && nodes.has(serving) ? [serving] : [], generation, mayMove };
      },
      localStore: (uuid: string) => this.nsdServer?.store(uuid),
      ...(settings?.nsdTimeoutMs === undefined ? {} : { timeoutMsDefault: settings.nsdTimeoutMs }),
      ...(settings?.nsdAttemptTimeoutMs === undefined ? {} : { attemptTimeoutMs: settings.nsdAttemptTimeoutMs }),
    });
  }

  /** The same with what stands about copies (S5). */
  #storage(identity: FileSystemIdentity): { readonly nsds: NsdClientApi; readonly states: CopyStates } {
    const { fabric, membership, copyRecords: records, clock, counters, logger } = this.#parts;
    const nsds = this.nsdClient(identity.nsds);
    const peers = this.#space.peers(identity.uuid, identity.number);
    const self = fabric.self.nodeId;
    const states =
      records === undefined
        ? ALWAYS_UP
        : new ClusterCopies({ self, uuids: identity.nsds, membership, records, peers, clock, counters, logger });
    return { nsds: withCopies({ nsds, states, counters, logger }), states };
  }

  /** Something that this life has logged may not be in place: the others have to redo its log when it leaves. */
  get hasLeftLog(): boolean {
    return this.#hasLeftLog;
  }

  get fileSystem(): MountedFileSystem | null {
    return this.#mounted?.fileSystem ?? null;
  }
  get cache(): PageCacheApi | null {
    return this.#mounted?.cache ?? null;
  }
  get mountedAs(): FileSystemIdentity | null {
    return this.#mounted?.identity ?? null;
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => undefined);
    return mine;
  }

  /** Behind an unmount that is under way. @throws {FsError} busy when another one is mounted; whatever reading the superblocks gives. */
  mount(identity: FileSystemIdentity): Promise<MountedFileSystem> {
    return this.#inTurn(() => this.#mount(identity));
  }

  async #mount(identity: FileSystemIdentity): Promise<MountedFileSystem> {
    if (this.#mounted !== null) {
      if (this.#mounted.identity.uuid === identity.uuid) return this.#mounted.fileSystem;
      throw new FsError('busy', {
        op: 'mount',
        object: identity.name,
        detail: `${this.#mounted.identity.name} is mounted`,
      });
    }
    const release = (await this.#parts.claims?.use(identity)) ?? (async () => undefined);
    try {
      this.#mounted = { release, ...(await this.#mountClaimed(identity)) };
    } catch (error) {
      // Why the mount failed is what counts. Tokens that are kept can be called back, a claim ends with this node's life.
      await this.#giveBackTokens().catch(() => undefined);
      await release().catch(() => undefined);
      throw error;
    }
    return this.#mounted.fileSystem;
  }

  async #mountClaimed(identity: FileSystemIdentity): Promise<Omit<Mounted, 'release'>> {
    const { fabric, pool, map, clock, random, logger, counters, checksums, settings } = this.#parts;
    const backing = new FileBacking();
    const tokens = scopedTokens(this.tokens, identity.number);
    const cache = createPageCache({
      map,
      pool,
      tokens,
      backing,
      clock,
      random,
      logger,
      counters,
      settings: settings?.cache ?? {},
    });
    const { nsds, states } = this.#storage(identity);
    const fileSystem = await mountFileSystem({
      nodeId: fabric.self.nodeId,
      incarnation: fabric.self.incarnation,
      epoch: () => fabric.epoch,
      tokens,
      locks: scopedLocks(this.locks, identity.number),
      cache,
      backing,
      nsds,
      copyStates: states,
      stamps: this.#parts.stamps,
      arena: this.#staging,
      pool,
      clock,
      random,
      logger,
      counters,
      checksums,
      settings: settings?.fs ?? {},
      peers: {
        ...this.#space.peers(identity.uuid, identity.number),
        ...this.#regions.peers(identity.uuid, identity.number),
      },
      owners: this.#shared.owners(identity.uuid, identity.number),
      servers: (uuid) => {
        const nsd = this.#parts.membership.view.nsds.get(uuid);
        return nsd === undefined ? null : { name: nsd.name, node: nsd.serving };
      },
      lives: { state: (id, life) => lifeState(this.#parts.membership.view, id, life) },
      fsUuid: identity.uuid,
      nsdUuids: identity.nsds,
    });
    return { identity, cache, fileSystem };
  }

  /** Everything written out, tokens given back. */
  unmount(): Promise<void> {
    return this.#inTurn(() => this.#unmount());
  }

  async #unmount(): Promise<void> {
    const mounted = this.#mounted;
    if (mounted === null) return;
    this.#mounted = null;
    try {
      await mounted.fileSystem.unmount();
    } catch (error) {
      // What couldn't be written is lost with this node, and said.
      const lost = this.#abandon(mounted);
      this.#keepTokens(mounted.identity);
      this.#parts.logger.error({ error: String(error), lost }, 'unmount failed');
      throw error;
    }
    await this.#giveBackTokens();
    await mounted.release();
  }

  /** Those too that the file system knows nothing of any more: of files and directories that it has forgotten. */
  async #giveBackTokens(): Promise<void> {
    const objects = new Map<string, Holding>();
    for (const held of this.tokens.machine.holdings()) objects.set(`${held.class} ${held.object}`, held);
    await Promise.all([...objects.values()].map((held) => this.tokens.release(held.class, held.object, WHOLE)));
  }

  /** What a check or a repair that is under way here has come to. */
  checking: Progress | null = null;

  /** Of a file system that nobody has mounted. @throws {FsError} busy */
  async check(identity: FileSystemIdentity): Promise<CheckReport> {
    try {
      return await this.#alone(identity, false, (storage, options) =>
        checkFileSystem(storage, identity.nsds.length, options),
      );
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'busy' || error.detail?.endsWith(UNMOUNT_FIRST) !== true) throw error;
      const detail = `${error.detail}, or check it as it is (--online)`;
      throw new FsError('busy', { op: 'fs.check', object: identity.name, detail, cause: error });
    }
  }

  /** While it is mounted, by this node too; which mounts it, if it has nothing mounted. @throws {FsError} busy, aborted, closed, fenced */
  async checkOnline(identity: FileSystemIdentity, options: OnlineOptions): Promise<OnlineReport> {
    const fileSystem = await this.mount(identity);
    let last: Progress | null = null;
    const onProgress = (progress: Progress): void => {
      last = progress;
      this.checking = progress;
      options.onProgress?.(progress);
    };
    try {
      return await fileSystem.checkOnline({ ...options, onProgress });
    } finally {
      if (this.checking === last) this.checking = null;
    }
  }

  /** The same, mending what can be. @throws {FsError} busy */
  repair(identity: FileSystemIdentity): Promise<RepairReport> {
    const { logger, counters } = this.#parts;
    return this.#alone(identity, true, (storage, options) =>
      repairFileSystem({ ...storage, logger, counters }, identity.nsds.length, options),
    );
  }

  #alone<T>(
    identity: FileSystemIdentity,
    repairs: boolean,
    body: (storage: CheckParts, options: ScanOptions) => Promise<T>,
  ): Promise<T> {
    return this.#inTurn(async () => {
      const { pool, checksums, membership, claims } = this.#parts;
      const mountedBy = (nodes: string): FsError =>
        new FsError('busy', {
          op: 'fs.check',
          object: identity.name,
          detail: `it is mounted by ${nodes}: ${UNMOUNT_FIRST}`,
        });
      if (this.#mounted?.identity.uuid === identity.uuid) throw mountedBy('this node');
      const storage = { nsds: this.#storage(identity).nsds, arena: this.#staging, pool, checksums };
      const claim = await claims?.takeAlone(identity, repairs);
      let begun = false;
      try {
        const owners = await logOwners(storage, identity.nsds.length);
        const here = owners.filter(
          ({ nodeId, incarnation }) => lifeState(membership.view, nodeId, incarnation) !== 'gone',
        );
        if (here.length > 0) throw mountedBy(`node ${here.map(({ nodeId }) => nodeId).join(', ')}`);
        begun = repairs;
        const report = await body(storage, { onProgress: (progress) => (this.checking = progress) });
        if (repairs) await claim?.done();
        else await claim?.giveUp();
        return report;
      } catch (error) {
        // A repair that was begun is brought to its end by the next: until then nobody mounts what it has left.
        if (!begun) await claim?.giveUp().catch(() => undefined);
        throw error;
      } finally {
        this.checking = null;
      }
    });
  }

  /** mkfs. The NSDs must be served by somebody, and be nobody's. */
  async format(
    identity: Omit<FileSystemIdentity, 'number'>,
    failureGroups: readonly number[],
    { metadataCopies }: FormatOptions = {},
  ): Promise<void> {
    const { fabric, pool, clock, random, checksums } = this.#parts;
    const nsdClient = this.nsdClient(identity.nsds);
    const nsds: NsdDescription[] = [];
    for (const [index, uuid] of identity.nsds.entries()) {
      const { dataSectorCount } = await nsdClient.info(nsdIndex(index));
      nsds.push({ uuid, blocks: blocksOf(dataSectorCount), failureGroup: failureGroups[index] ?? 0 });
    }
    await createFileSystem({
      nsds,
      fsUuid: identity.uuid,
      name: identity.name,
      nsdClient,
      arena: this.#staging,
      pool,
      checksums,
      clock,
      random,
      epoch: fabric.epoch,
      ...(metadataCopies === undefined ? {} : { metadataCopies }),
    });
  }

  /** Told before the tokens are. */
  onLease: { suspended(): void; resumed(): void } | null = null;

  suspend(): void {
    this.onLease?.suspended();
    this.tokens.suspend();
    this.locks.suspend();
  }
  resume(): void {
    this.tokens.resume();
    this.locks.resume();
    this.onLease?.resumed();
  }
  /** Expelled: everything is dropped; returns what had been written and was not on the NSDs (F3). */
  fence(): LostRange[] {
    this.tokens.fence();
    this.locks.fence();
    const mounted = this.#mounted;
    this.#mounted = null;
    return mounted === null ? [] : this.#abandon(mounted);
  }

  /**
   * What its log says is not all in place, what was synced among it (I8): until that log has been redone no token may leave. Who asks for one makes this node
   * fail, so that it leaves; mounting again redoes it too.
   */
  #keepTokens({ name, number }: FileSystemIdentity): void {
    const tokens = scopedTokens(this.tokens, number);
    const revoke = (): Promise<never> => {
      const detail = 'it could not write out what its log says';
      return Promise.reject(new FsError('closed', { op: 'token.revoke', object: `file system ${name}`, detail }));
    };
    for (const tokenClass of [TokenClass.data, TokenClass.status])
      tokens.setRevokeHandler(tokenClass, { revoke, working: () => null });
  }

  #abandon({ fileSystem, cache }: Mounted): LostRange[] {
    this.#hasLeftLog = true;
    fileSystem.abandon();
    const lost = cache.dropEverything();
    // Nothing is dirty any more: closing only stops the timers.
    cache.close().catch((error: unknown) => this.#parts.onBroken(error));
    return lost.map(({ ino, range }) => ({ ino, start: range.start, end: range.end }));
  }

  /** Stops serving, at once. The fabric, the stores and the membership are their makers' to close. */
  stop(): void {
    this.#unsubscribe();
    this.#recovery.stop();
    this.tokens.close();
    this.locks.close();
    this.tokenServer?.close();
    for (const store of this.#parts.stores) this.nsdServer?.unexport(store.uuid);
  }

  #viewChanged(view: ClusterView, previous: ClusterView): void {
    const { fabric } = this.#parts;
    fabric.setEpoch(view.epoch);
    for (const [id, before] of previous.nodes) {
      const now = view.nodes.get(id);
      if (id === fabric.self.nodeId) continue;
      if (now === undefined || now.incarnation > before.incarnation) fabric.forget(id, before.incarnation);
    }
    this.#letFall(view, previous);
    this.#recovery.viewChanged(view, previous);
  }

  /**
   * A life leaves `expelling` when every token server of the view has let its tokens fall. A server that joined in between met that
   * life in an older view, or was told of it when it started, but nobody asks it any more: it reads the fall from the view.
   */
  #letFall(view: ClusterView, previous: ClusterView): void {
    const stands = ({ nodeId, incarnation }: NodeIdentity): boolean =>
      view.nodes.get(nodeId)?.incarnation === incarnation ||
      view.expelling.some((life) => life.nodeId === nodeId && life.incarnation === incarnation);
    for (const life of [...previous.nodes.values(), ...previous.expelling])
      if (!stands(life)) this.tokenServer?.expelled(life.nodeId, life.incarnation);
  }
}
