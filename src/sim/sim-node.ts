import type { EntryId } from '../cache/cache-map.js';
import { CachedFileOps } from '../cache/cached-file.js';
import { Stamps } from '../cache/stamps.js';
import { RememberedStats } from '../client/remembered-stats.js';
import { membershipSettings } from '../cluster/membership.js';
import type { NsdRecord } from '../cluster/membership-api.js';
import { type ExpulsionActions, MembershipRuntime } from '../cluster/membership-runtime.js';
import { sleep } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Incarnation, NodeId } from '../common/ids.js';
import { chance, SeededRandom } from '../common/random.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { type FileSystemIdentity, HoldfastNode } from '../daemon/node.js';
import type { PoolPlan } from '../daemon/pool-plan.js';
import { FabricNode } from '../fabric/fabric-node.js';
import type { MemoryTransport } from '../fabric/memory-link.js';
import type { FileSystem, OpenFile } from '../fs/file-system-api.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { checksumsJs } from '../nsd/checksum-js.js';
import { NsdStore } from '../nsd/nsd-store.js';
import { INODES_PER_SEGMENT, TokenClass, TokenMode } from '../token-manager/token.js';
import { GatedStore } from './gated-store.js';
import { GatedTransport } from './gated-transport.js';
import { lateShipments } from './late-shipments.js';
import { NodeGate } from './node-gate.js';
import { LEASE_TTL_MS } from './seed-plan.js';
import { StoreDoor } from './store-door.js';
import { TappedFabric } from './tapped-fabric.js';
import { WatchedCacheMap } from './watched-map.js';
import type { World } from './world.js';

/**
 * One life of one node of the world: the real node between simulated edges, all of which pass its gate.
 *
 * Fault model: `kill` ends it between two events, without a word to anybody; what its target has begun ends there (StoreDoor).
 */
export class SimNode {
  readonly gate: NodeGate;
  readonly map: WatchedCacheMap;
  readonly stamps = new Stamps();
  /** What the applications' threads remember, also while the engine stands still. */
  readonly remembered: RememberedStats;
  readonly pool: PagePool;
  readonly counters = new Counters();
  readonly plan: PoolPlan;
  readonly doors: StoreDoor[] = [];
  readonly files = new Map<string, OpenFile>();
  /** Lives that this node's NSD server has shut out. */
  readonly fencedOthers = new Map<NodeId, Incarnation>();
  membership!: MembershipRuntime;
  fabric!: TappedFabric;
  transport!: GatedTransport;
  node!: HoldfastNode;
  fileSystem: FileSystem | null = null;
  state: 'booting' | 'up' | 'dead' | 'fenced' | 'left' = 'booting';
  /** F1 has got to the point at which its tokens may fall. */
  outOfTheWay = false;
  suspended = false;
  joinedEpoch = 0;
  /** Inodes whose status token it held exclusively when it was fenced, or null while it hasn't been. */
  writableWhenFenced: number[] | null = null;
  readonly #world: World;
  readonly #store: GatedStore;
  #memoryTransport: MemoryTransport | null = null;

  /** When this life's driver gives up waiting for an answer: a stream of its own. */
  readonly #impatience: SeededRandom;

  constructor(
    world: World,
    readonly id: NodeId,
    readonly random: SeededRandom,
  ) {
    this.#world = world;
    this.#impatience = new SeededRandom(world.plan.seed + 7919 * (id + 64 * world.lives.length));
    const { scheduler, plan } = world;
    this.gate = new NodeGate(scheduler, (error) => world.broken(error, `node ${id}`));
    this.plan = poolPlan(plan.slotCount, world.disksOf(id).length);
    this.pool = heapPagePool(poolBytes(this.plan));
    this.map = world.planted.makeMap?.(world, this) ?? new WatchedCacheMap(this.pool, scheduler, 64, plan.slotCount);
    this.remembered = new RememberedStats(this.stamps, () => scheduler.nowMs());
    this.#store = new GatedStore(world.connectStore(id), this.gate, () => world.faults.leaseAsked());
  }

  get incarnation(): Incarnation {
    return this.membership.self.incarnation;
  }
  get connection() {
    return this.#store.connection;
  }
  get name(): string {
    return this.membership === undefined ? `${this.id}` : `${this.id}.${this.incarnation}`;
  }
  /** Runs, and is no ghost. */
  get serves(): boolean {
    return this.state === 'up' && !this.gate.paused;
  }

  /** Takes an identity, joins, and serves; the file system is mounted separately. */
  async boot(): Promise<void> {
    const world = this.#world;
    const { gate, counters, pool, map } = this;
    const logger = world.trace.logger(
      () => this.id,
      (message, fields) => world.logged(this, message, fields),
    );
    const clusterKey = Buffer.from('the key of the simulated cluster');
    this.membership = await MembershipRuntime.claim({
      store: this.#store,
      clock: gate,
      clusterKey,
      nodeId: this.id,
      full: true,
      identityWaitMs: 120_000,
      newClusterId: () => 'simulated',
      name: `n${this.id}`,
      settings: membershipSettings(LEASE_TTL_MS),
      logger,
      listener: {
        lease: (deadlineMs) => {
          map.setLeaseDeadline(deadlineMs);
          this.stamps.setLeaseDeadline(deadlineMs);
        },
        suspended: () => {
          this.suspended = true;
          this.node?.suspend();
        },
        resumed: () => {
          this.suspended = false;
          this.node?.resume();
        },
        fenced: () => this.#fenced(),
      },
    });
    map.setLeaseDeadline(this.membership.leaseDeadlineMs);
    this.stamps.setLeaseDeadline(this.membership.leaseDeadlineMs);
    world.trace.add(this.id, 0, `life ${this.name} begins`);
    this.#memoryTransport = world.network.transport(`n${this.id}`, pool);
    this.transport = new GatedTransport(this.#memoryTransport, gate);
    const inner = new FabricNode({
      self: this.membership.self,
      clusterId: this.membership.clusterId,
      clusterKey,
      clock: gate,
      logger,
      counters,
      transport: this.transport,
      pool,
      resolveAddress: async (id) => this.membership.view.nodes.get(id)?.address ?? null,
      randomBytes: (count) => Uint8Array.from({ length: count }, () => Math.floor(this.random.next() * 256)),
      // What is broken must not take the world down: it is told, and ends the run in order.
      defer: (run) =>
        queueMicrotask(() => {
          if (gate.dead) return;
          try {
            run();
          } catch (error) {
            world.broken(error, `node ${this.id}`);
          }
        }),
    });
    const taps = [
      world.tap(this),
      lateShipments(this, world.plan.seed + 104_729 * (this.id + 64 * world.lives.length)),
    ];
    const planted = world.planted.tap?.(world, this);
    if (planted !== undefined) taps.push(planted);
    this.fabric = new TappedFabric(inner, taps);
    await inner.listen({ host: `n${this.id}`, port: 1 });
    await this.#openStores();
    this.node = new HoldfastNode(
      {
        fabric: this.fabric,
        membership: this.membership,
        copyRecords: world.planted.copyRecords?.(world, this) ?? this.membership,
        pool,
        plan: this.plan,
        map,
        stamps: this.stamps,
        clock: gate,
        random: this.random.fork(),
        logger,
        counters,
        checksums: checksumsJs,
        stores: this.doors.map((door) => door.store),
        settings: world.nodeSettings,
        fileSystems: async () => [world.identity],
        onBroken: (error) => world.broken(error, `node ${this.id}`),
      },
      { tokenServer: this.id <= world.plan.tokenServers },
    );
    if (this.suspended) this.node.suspend();
    this.#watchFence();
    world.checks.watch(this);
    world.planted.alterNode?.(world, this);
    await this.membership.join(
      { address: { host: `n${this.id}`, port: 1 }, tokenServer: this.id <= world.plan.tokenServers },
      this.#actions(),
    );
    this.joinedEpoch = this.membership.view.epoch;
    for (const { store } of this.doors)
      await this.membership.updateNsd(store.uuid, () => ({
        uuid: store.uuid,
        name: store.header.name,
        fsUuid: null,
        failureGroup: this.id,
        servers: [this.id],
        serving: this.id,
        moving: null,
        generation: 1,
        targets: {},
        lengthBytes: store.lengthBytes,
      }));
  }

  async #openStores(): Promise<void> {
    for (const [index, { disk, uuid }] of this.#world.disksOf(this.id).entries()) {
      const parts = {
        device: disk.open(this.pool),
        pool: this.pool,
        checksums: checksumsJs,
        staging: this.plan.storeStaging[index]!,
        counters: this.counters,
      };
      const options = { uuid, clusterId: 'simulated', failureGroup: this.id, name: `disk of node ${this.id}` };
      if (!this.#world.formatted.has(uuid)) await this.gate.pass(NsdStore.format(parts, options));
      this.#world.formatted.add(uuid);
      const say = (text: string): void => this.#world.trace.add(this.id, 0, text);
      this.doors.push(new StoreDoor(await this.gate.pass(NsdStore.open(parts, { uuid })), this.gate, say));
    }
  }

  /** Every NSD has a server, as far as this node knows: superblock and maps may be on any of them. */
  async disksServed({ nsds }: FileSystemIdentity): Promise<void> {
    while (nsds.some((uuid) => !this.#isServed(uuid))) await sleep(this.gate, 20);
  }

  async mount(identity: FileSystemIdentity): Promise<void> {
    await this.disksServed(identity);
    this.fileSystem = await this.node.mount(identity);
  }
  #isServed(uuid: string): boolean {
    const { nsds, nodes } = this.membership.view;
    return (nsds.get(uuid)?.servers ?? []).some((server) => nodes.has(server));
  }

  #actions(): ExpulsionActions {
    const world = this.#world;
    const real = this.node.expulsionActions();
    const actions = world.planted.alterActions?.(world, this, real) ?? real;
    return {
      fence: (server, target) => actions.fence(server, target),
      tokensFall: async (server, target) => {
        if (!target.clean) await this.gate.pass(this.node.redoLogs(target));
        await this.gate.pass(world.beforeTokensFall(target));
        const done = actions.tokensFall(server, target);
        if (!chance(this.#impatience, 0.03)) return done;
        // The answer takes longer than the driver waits for it: the server has heard all the same, and hears again.
        done.catch(() => undefined);
        await sleep(this.gate, 0.01);
        throw new FsError('deadlinePassed', { op: 'token.expel', detail: 'no answer in time' });
      },
    };
  }

  #watchFence(): void {
    const server = this.node.nsdServer;
    if (server === null) return;
    const fence = server.fence.bind(server);
    server.fence = async (node, upTo, epoch) => {
      await fence(node, upTo, epoch);
      this.fencedOthers.set(node, upTo);
    };
  }

  #fenced(): void {
    const world = this.#world;
    world.trace.add(this.id, 0, `life ${this.name} learns that it was expelled`);
    if (this.node !== undefined) {
      this.writableWhenFenced = this.writableInodes();
      this.node.fence();
      this.node.stop();
    }
    if (this.state === 'left') return;
    this.state = 'fenced';
    world.lifeEnded(this);
  }

  /** What this node's writes beside others have made of a file's size. */
  readonly shared = (ino: number): number => {
    const segment = Math.floor(ino / INODES_PER_SEGMENT);
    const mode = this.node.tokens.machine.heldMode(TokenClass.status, segment, ino * SECTOR_BYTES);
    const cached = this.cached(ino);
    // With the token granted and the inode not read yet, the size is of before.
    if (mode !== TokenMode.concurrentWrite || cached?.file.sizeIsFloor !== true) return 0;
    return cached.state.sizeBytes;
  };

  /** Hot files whose status token is held exclusively or shared for writing: only of those anything can be lost. */
  writableInodes(): number[] {
    if (this.writableWhenFenced !== null) return this.writableWhenFenced;
    const world = this.#world;
    return world.hotInodes().filter((ino) => world.checks.mayWrite(this, ino));
  }

  /** Between two events: no memory, no word. */
  kill(): void {
    if (this.state === 'dead') return;
    this.#world.trace.add(this.id, 0, `life ${this.name} is dead`);
    this.state = 'dead';
    this.gate.kill();
    this.#memoryTransport?.crash();
    void this.connection.close();
    for (const door of this.doors) void door.shut();
  }

  /** Its NSDs are served by nobody, though it lives. */
  nsdAway(): Promise<void> {
    for (const { store } of this.doors) this.node.nsdServer?.unexport(store.uuid);
    return this.#serve(null);
  }
  nsdBack(): Promise<void> {
    if (this.state !== 'up') return Promise.resolve();
    for (const { store } of this.doors) this.node.nsdServer?.export(store, this.membership.view.epoch);
    return this.#serve(this.id);
  }
  /** The store hears of it as soon as it can, unless this life is over by then. */
  async #serve(serving: NodeId | null): Promise<void> {
    const change = (record: NsdRecord | null): NsdRecord | null =>
      record && { ...record, serving, generation: record.generation + 1 };
    for (const { store } of this.doors)
      while (this.state === 'up')
        try {
          await this.membership.updateNsd(store.uuid, change);
          break;
        } catch (error) {
          if (this.state === 'up' && !(FsError.is(error) && error.retry === 'same')) throw error;
          await sleep(this.#world.scheduler, 20);
        }
  }

  async unmount(): Promise<void> {
    await this.node.unmount();
    this.fileSystem = null;
  }

  /** Everything given back; the others hear of it. */
  async leave(): Promise<void> {
    this.state = 'left';
    await this.membership.leave(10_000, !this.node.hasLeftLog);
    this.node.stop();
    await this.fabric.close();
    for (const door of this.doors) await door.shut();
    this.gate.kill();
    await this.connection.close();
  }

  entryOf(path: string): EntryId | null {
    return this.files.get(path)?.entry ?? null;
  }

  cached(ino: number): CachedFileOps | null {
    const file = this.node.cache?.get(ino as Parameters<NonNullable<HoldfastNode['cache']>['get']>[0]);
    return file instanceof CachedFileOps ? file : null;
  }
}

const STAGING_BYTES = 2 << 20;

function poolPlan(slotCount: number, storeCount: number): PoolPlan {
  let at = slotCount * PAGE_BYTES;
  const take = (lengthBytes: number) => {
    const segment = { offsetBytes: at, lengthBytes };
    at += lengthBytes;
    return segment;
  };
  return {
    slotCount,
    fsStaging: take(STAGING_BYTES),
    // Nobody measures in virtual time.
    fabricScratch: take(0),
    serverStaging: storeCount === 0 ? null : take(2 * STAGING_BYTES),
    storeStaging: Array.from({ length: storeCount }, () => take(16 * SECTOR_BYTES)),
  };
}
function poolBytes({ slotCount, fsStaging, serverStaging, storeStaging }: PoolPlan): number {
  const staging = [fsStaging, ...(serverStaging === null ? [] : [serverStaging]), ...storeStaging];
  return slotCount * PAGE_BYTES + staging.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
}
