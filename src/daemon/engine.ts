import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { NativeCacheMap } from '../cache/cache-map-native.js';
import { Stamps } from '../cache/stamps.js';
import type { Engine, EngineConfig } from '../client/engine-contract.js';
import { EtcdStore } from '../cluster/etcd-store.js';
import { FileSystemClaims } from '../cluster/file-system-claims.js';
import { membershipSettings } from '../cluster/membership.js';
import { MembershipRuntime } from '../cluster/membership-runtime.js';
import { FILE_SYSTEM_PREFIX, type FileSystemRecord, StoreKey } from '../cluster/records.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { NodeId } from '../common/ids.js';
import { type Logger, silentLogger } from '../common/logger.js';
import { systemRandom } from '../common/random.js';
import { Wakeful } from '../common/wakeful.js';
import { FabricNode } from '../fabric/fabric-node.js';
import { LadderTransport } from '../fabric/ladder-transport.js';
import { RungTest } from '../fabric/rung-test.js';
import { TcpTransport } from '../fabric/tcp-link.js';
import type { OpenVerbsPort } from '../fabric/verbs-port.js';
import type { FileSystem } from '../fs/file-system-api.js';
import { bootTimeMs, crc32c, crc32cSectors, createPagePool, mayStayAwake, stayAwake } from '../native/core.js';
import type { Checksums } from '../nsd/checksums.js';
import type { NsdStore } from '../nsd/nsd-store.js';
import { createFileSystem } from './create-file-system.js';
import { LazyFileSystem } from './lazy-file-system.js';
import { type FormatOptions, HoldfastNode, type NodeParts } from './node.js';
import { lifeState } from './node-recovery.js';
import { NsdServing, type TargetPort } from './nsd-serving.js';
import { NvmetTarget } from './nvmet-target.js';
import { type NsdConfig, type NsdPath, openStores, type WrapDevice } from './open-stores.js';
import { planPool } from './pool-plan.js';
import { followRdmaAddresses } from './rdma-addresses.js';
import { type RefusedNsd, RefusedNsds } from './refused-nsds.js';
import { systemClock } from './system-clock.js';

/**
 * A node's engine in the real world: TCP, etcd, devices, the native page pool and cache map. The daemon starts one with NSDs
 * and a token server, the library one without, in its worker.
 *
 * Owns everything it starts, and ends it in the opposite order. Fault model: a lost lease suspends, an expulsion or a broken
 * invariant ends the engine (F3, F7): it stops serving at once and says why.
 */
export interface NodeConfig {
  readonly clusterName: string;
  readonly etcd: readonly string[];
  readonly keyFile: string;
  /** Null: any free one; for library nodes. */
  readonly nodeId: NodeId | null;
  readonly name: string;
  /** Null: this node dials and is never dialled. Port 0: any free one. */
  readonly listen: { readonly host: string; readonly port: number } | null;
  /** Where the others dial, if it isn't where this node listens (a forwarded port). */
  readonly advertise?: { readonly host: string; readonly port: number };
  /** Without it: RDMA where there is some. */
  readonly rdma?: {
    readonly mode: 'auto' | 'off' | 'required';
    readonly device?: string | undefined;
    readonly address?: string | undefined;
    readonly port?: number | undefined;
  };
  readonly tokenServer: boolean;
  readonly pagePoolBytes: number;
  readonly leaseTtlMs: number;
  readonly nsds: readonly NsdConfig[];
  /** Null: the only file system of the cluster, whichever that is by then. */
  readonly fileSystem: string | null;
  readonly settings?: NodeParts['settings'];
  readonly logger?: Logger;
  /** Where this machine exports namespaces to other servers, and can shut them out. */
  readonly target?: TargetPort;
  /** Tests: the fault port of the storage. */
  readonly wrapDevice?: WrapDevice;
}

export interface NodeEngine extends Engine {
  readonly fileSystem: FileSystem;
  readonly membership: MembershipRuntime;
  readonly fabric: FabricNode;
  readonly ladder: LadderTransport;
  readonly rungTest: RungTest;
  readonly node: HoldfastNode;
  readonly metrics: Counters;
  readonly stores: readonly NsdStore[];
  /** Writes everything out and gives every token back; the next use mounts again. Before all nodes of a cluster are stopped. */
  unmount(): Promise<void>;
  /** mkfs over these NSDs, or over all that belong to no file system. @throws {FsError} exists, notFound, busy. */
  createFileSystem(name: string, nsdNames?: readonly string[], options?: FormatOptions): Promise<FileSystemRecord>;
  fileSystems(): Promise<{ name: string; record: FileSystemRecord }[]>;
  /** Of all nodes, whenever they were to start; refreshes their counters. */
  refusedNsds(): Promise<RefusedNsd[]>;
  /** Moves an NSD, by name, to another of its servers: this node, if none is named. See NsdServing.takeover. */
  takeover(nsdName: string, to: NodeId | null): Promise<void>;
}

const ENTRIES_MAX = 65_536;
const ETCD_CALL_MS_MIN = 1000;
const LEAVE_TIMEOUT_MS = 10_000;
/** How long a start that is given up waits for the store's answer, to give back what it got. */
const STOP_CLAIM_MS = 2000;
const TAKEOVER_TIMEOUT_MS = 60_000;
const IDENTITY_WAIT_LEASES = 3;

const checksums: Checksums = {
  sectors: (bytes, offsetBytes, sectorCount, out, outIndex) =>
    crc32cSectors(bytes, offsetBytes, sectorCount, out, outIndex),
  bytes: (bytes) => crc32c(bytes),
};

/**
 * @param stop Aborted: the start is given up, what it had begun is ended in good order.
 * @throws {FsError} aborted, when `stop` was in time.
 */
export async function startNode(config: NodeConfig, stop?: AbortSignal): Promise<NodeEngine> {
  const logger = config.logger ?? silentLogger;
  const counters = new Counters();
  const clock = systemClock;
  const undo: (() => Promise<void> | void)[] = [];
  const end = async (): Promise<void> => {
    for (let step = undo.pop(); step !== undefined; step = undo.pop()) {
      try {
        await step();
      } catch (error) {
        logger.error({ error: String(error) }, 'ending: a step failed');
      }
    }
  };

  let failure: FsError | null = null;
  const listeners: ((why: FsError) => void)[] = [];
  let node: HoldfastNode | null = null;
  /** Without NSDs there is nothing to end first, and in a library nobody who would: its tokens must not wait for the program's end. */
  let leaveAlone: (() => void) | null = null;
  let stopServing = (): void => undefined;
  let endStamps = (): void => undefined;
  const fail = (why: FsError): void => {
    if (failure !== null) return;
    failure = why;
    endStamps();
    const lost = node?.fence() ?? [];
    node?.stop();
    stopServing();
    logger.error({ why: why.message, lost }, 'the engine stops serving');
    for (const tell of listeners) tell(why);
    leaveAlone?.();
  };

  try {
    const clusterKey = await readKey(config.keyFile);
    const pool = createPagePool(config.pagePoolBytes);
    undo.push(() => pool.close());
    const plan = planPool(pool.lengthBytes, config.nsds.length);
    const map = NativeCacheMap.create(pool, ENTRIES_MAX, plan.slotCount);
    undo.push(() => map.dispose());
    const stamps = new Stamps();
    endStamps = () => stamps.end();
    undo.push(endStamps);
    const setLeaseDeadline = (deadlineMs: number): void => {
      map.setLeaseDeadline(deadlineMs);
      stamps.setLeaseDeadline(deadlineMs);
    };

    // Several calls fit into a lease, however long it is made for a slow machine.
    const callDeadlineMs = Math.max(ETCD_CALL_MS_MIN, Math.floor(config.leaseTtlMs / 5));
    const store = new EtcdStore({ endpoints: config.etcd, clusterName: config.clusterName, callDeadlineMs });
    undo.push(() => store.close());
    const claim = MembershipRuntime.claim({
      store,
      clock,
      clusterKey,
      nodeId: config.nodeId,
      full: config.listen !== null,
      identityWaitMs: config.leaseTtlMs * IDENTITY_WAIT_LEASES,
      newClusterId: randomUUID,
      name: config.name,
      settings: membershipSettings(config.leaseTtlMs),
      logger,
      listener: {
        lease: setLeaseDeadline,
        suspended: () => node?.suspend(),
        resumed: () => node?.resume(),
        fenced: fail,
      },
    });
    const membership = await unlessStopped(claim, stop, 'claim').catch(async (error: unknown) => {
      // The store may answer yet: what it gives is given back, or runs out with its lease.
      if (stop?.aborted === true)
        await withinMs(
          claim.then((late) => late.leave(LEAVE_TIMEOUT_MS)),
          STOP_CLAIM_MS,
        );
      throw error;
    });
    setLeaseDeadline(membership.leaseDeadlineMs);
    let answering: FabricNode | null = null;
    // Out of the view first, then silent: until then the others ask this node to shut out those that left before it.
    undo.push(async () => {
      answering?.leave();
      await membership.leave(LEAVE_TIMEOUT_MS, node?.hasLeftLog !== true);
      await answering?.close();
    });

    const rdma = config.rdma ?? { mode: 'auto' };
    const ladder = await LadderTransport.create({
      self: membership.self,
      clusterId: membership.clusterId,
      pool,
      clock,
      counters,
      logger,
      tcp: new TcpTransport(pool, counters),
      mode: rdma.mode,
      openPort: await rdmaPort(rdma.device ?? null),
      rdmaHost: rdma.address ?? null,
      rdmaPort: rdma.port ?? null,
    });
    const fabric = new FabricNode({
      self: membership.self,
      clusterId: membership.clusterId,
      clusterKey,
      clock,
      logger,
      counters,
      transport: ladder,
      pool,
      resolveAddress: async (id) => membership.view.nodes.get(id)?.address ?? null,
    });
    answering = fabric;
    const listening = config.listen === null ? null : await fabric.listen(config.listen);
    const address = listening === null ? null : { ...listening, ...config.advertise };
    let rdmaAddress = address?.rdma;
    ladder.onRdmaAddress = (rdma) => {
      rdmaAddress = rdma;
    };
    const rungTest = new RungTest(fabric, pool, plan.fabricScratch, clock);

    const refused = new RefusedNsds(store, membership.self.nodeId, counters, logger);
    const opened = await openStores(config.nsds, {
      onRefused: ({ name }, why) => refused.add(name, why),
      pool,
      plan,
      checksums,
      counters,
      clusterId: membership.clusterId,
      logger,
      ...(config.wrapDevice === undefined ? {} : { wrapDevice: config.wrapDevice }),
    });
    undo.push(() => opened.close());

    const fileSystems = async (): Promise<{ name: string; record: FileSystemRecord }[]> => {
      const { entries } = await store.list(FILE_SYSTEM_PREFIX);
      const found: { name: string; record: FileSystemRecord }[] = [];
      for (const { key } of entries) {
        const name = key.slice(FILE_SYSTEM_PREFIX.length);
        const record = await membership.fileSystem(name);
        if (record !== null && StoreKey.fileSystem(name) === key) found.push({ name, record });
      }
      return found;
    };

    const claims = new FileSystemClaims({
      store,
      self: membership.self,
      lease: () => membership.lease,
      isGone: ({ nodeId: id, incarnation }) => lifeState(membership.view, id, incarnation) === 'gone',
    });
    /** Of a making that failed: what says that it belongs to it belongs to nobody. */
    const wasNeverMade = async (fsUuid: string): Promise<boolean> =>
      (await claims.wasNeverMade(fsUuid)) && !(await fileSystems()).some(({ record }) => record.uuid === fsUuid);

    const made = new HoldfastNode(
      {
        fabric,
        membership,
        copyRecords: membership,
        pool,
        plan,
        map,
        stamps,
        clock,
        random: systemRandom,
        logger,
        counters,
        checksums,
        ...(mayStayAwake ? { wakeful: new Wakeful({ stayAwake, nowMs: bootTimeMs }) } : {}),
        stores: [],
        ...(config.settings === undefined ? {} : { settings: config.settings }),
        fileSystems: async () => (await fileSystems()).map(({ name, record }) => ({ name, ...record })),
        claims,
        onBroken: (error) => fail(FsError.from(error, 'engine')),
      },
      { tokenServer: config.tokenServer },
    );
    node = made;
    if (opened.paths.length === 0) leaveAlone = () => void membership.leave(LEAVE_TIMEOUT_MS, !made.hasLeftLog);
    undo.push(() => made.stop());

    const joined = membership.join({ address, tokenServer: config.tokenServer }, made.expulsionActions());
    await unlessStopped(joined, stop, 'join');
    undo.push(followRdmaAddresses({ membership, fabric, ladder, address, rdma: rdmaAddress }));
    for (const path of opened.paths) {
      const foreign = foreignness(path, membership.view.nsds.get(path.uuid)?.fsUuid ?? null);
      if (foreign === null || (await wasNeverMade(path.header.fsUuid!))) continue;
      await refused.add(path.header.name, foreign);
      throw foreign;
    }
    const serving = new NsdServing({
      membership,
      fabric,
      server: made.nsdServer,
      paths: opened.paths,
      target: config.target ?? new NvmetTarget(),
      clock,
      counters,
      logger,
    });
    stopServing = () => serving.stop();
    undo.push(() => serving.stop());
    undo.push(() => serving.leave(LEAVE_TIMEOUT_MS));
    await unlessStopped(serving.start(), stop, 'join');
    await refused.settle(config.nsds.map(({ name }) => name));
    // Which file system an NSD belongs to is decided in the store; its server writes it into the header.
    const claimStores = (): void => {
      for (const served of serving.stores) {
        const fsUuid = membership.view.nsds.get(served.uuid)?.fsUuid ?? null;
        const before = served.header.fsUuid;
        if (fsUuid === before) continue;
        const assign = async (): Promise<void> => {
          if (before === null || (await wasNeverMade(before))) await served.assignTo(fsUuid);
        };
        assign().catch((error: unknown) =>
          logger.error({ nsd: served.uuid, error: String(error) }, 'assigning failed'),
        );
      }
    };
    undo.push(membership.onChange(claimStores));
    claimStores();

    const lazy = new LazyFileSystem(async () => {
      const all = await fileSystems();
      const wanted = config.fileSystem === null ? all : all.filter(({ name }) => name === config.fileSystem);
      const found = wanted[0];
      if (found === undefined) {
        const detail = 'the cluster has no such file system; create one: holdfast fs create NAME';
        throw new FsError('notFound', { op: 'mount', object: config.fileSystem ?? undefined, detail });
      }
      if (wanted.length > 1) {
        const detail = `the cluster has several: ${wanted.map(({ name }) => name).join(', ')}; name one in the configuration`;
        throw new FsError('invalidArgument', { op: 'mount', detail });
      }
      return made.mount({ ...found.record, name: found.name });
    });
    const unmount = async (): Promise<void> => {
      lazy.forget();
      if (failure === null) await made.unmount();
    };
    undo.push(unmount);

    let ending: Promise<void> | null = null;
    return {
      fileSystem: lazy,
      mapIds: { poolId: pool.id, mapId: map.id },
      stamps: stamps.memory,
      membership,
      fabric,
      ladder,
      rungTest,
      node: made,
      metrics: counters,
      get stores() {
        return serving.stores;
      },
      takeover: (nsd, to) => takeover(serving, membership, nsd, to),
      counters: () => {
        made.tokens.gauges();
        made.tokenServer?.gauges();
        const usage = made.cache?.usage();
        for (const [name, value] of Object.entries(usage ?? {})) counters.set(`cache.${name}`, value);
        counters.set('fabric.messagesOut', fabric.traffic.messagesOut);
        counters.set('fabric.transfersOut', fabric.traffic.transfersOut);
        const hits = map.stats();
        counters.set('map.readHits', hits.readHits);
        counters.set('map.writeHits', hits.writeHits);
        counters.set('map.readBytes', hits.readBytes);
        counters.set('map.writeBytes', hits.writeBytes);
        return counters.snapshot();
      },
      fileSystems,
      unmount,
      refusedNsds: () => refused.list(),
      createFileSystem: (name, nsdNames, options) =>
        createFileSystem({ node: made, membership, claims, wasNeverMade }, name, nsdNames, options),
      close: () => {
        stamps.end();
        ending ??= end();
        return ending;
      },
      onFailure: (listener) => {
        if (failure !== null) listener(failure);
        else listeners.push(listener);
      },
    };
  } catch (error) {
    await end();
    throw error;
  }
}

/** The library's engine; what `connect()` runs in its worker. */
export function startEngine(config: EngineConfig): Promise<Engine> {
  return startNode({
    clusterName: config.cluster.name,
    etcd: config.cluster.etcd,
    keyFile: config.cluster.keyFile,
    nodeId: null,
    name: config.nodeName ?? `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`,
    listen: null,
    tokenServer: false,
    pagePoolBytes: config.pagePoolBytes ?? 256 * 2 ** 20,
    leaseTtlMs: 5000,
    nsds: [],
    fileSystem: config.fileSystem,
  });
}

/** node-rdma-cm is optional: a node without it starts, and says why it has no RDMA. */
async function rdmaPort(device: string | null): Promise<OpenVerbsPort> {
  try {
    const { openRdmaPort } = await import('../fabric/rdma-verbs.js');
    return (pool) => openRdmaPort(pool, { device });
  } catch (cause) {
    return () => {
      throw new FsError('nativeMissing', { op: 'fabric.rdma', detail: 'node-rdma-cm is not installed', cause });
    };
  }
}

/** What `work` gives, or an error as soon as nobody wants it any more; it goes on by itself then. */
async function unlessStopped<T>(work: Promise<T>, stop: AbortSignal | undefined, op: string): Promise<T> {
  if (stop === undefined) return work;
  let given = (): void => undefined;
  const stopped = new Promise<never>((_, reject) => {
    given = () => reject(new FsError('aborted', { op, detail: 'stopped while it was starting' }));
  });
  stop.addEventListener('abort', given);
  if (stop.aborted) given();
  // Whichever comes second is nobody's to hear of.
  stopped.catch(() => undefined);
  work.catch(() => undefined);
  try {
    return await Promise.race([stopped, work]);
  } finally {
    stop.removeEventListener('abort', given);
  }
}

/** Waits for `work`, but not for long, and whatever comes of it. */
async function withinMs(work: Promise<unknown>, ms: number): Promise<void> {
  let timer: { cancel(): void } | null = null;
  const late = new Promise<void>((resolve) => {
    timer = systemClock.after(ms, resolve);
  });
  await Promise.race([work.catch(() => undefined), late]);
  (timer as { cancel(): void } | null)?.cancel();
}

async function takeover(
  serving: NsdServing,
  membership: MembershipRuntime,
  nsdName: string,
  to: NodeId | null,
): Promise<void> {
  const record = [...membership.view.nsds.values()].find(({ name }) => name === nsdName);
  if (record === undefined)
    throw new FsError('notFound', { op: 'nsd.takeover', object: nsdName, detail: 'the cluster has no such NSD' });
  await serving.takeover(record.uuid, to ?? membership.self.nodeId, TAKEOVER_TIMEOUT_MS);
}

/** The cluster says which file system an NSD belongs to; a header that says another one was written elsewhere. */
function foreignness({ header, uuid }: NsdPath, fsUuid: string | null): FsError | null {
  if (fsUuid === null || header.fsUuid === null || header.fsUuid === fsUuid) return null;
  return new FsError('wrongNsd', {
    op: 'nsd.open',
    object: `nsd ${uuid}`,
    detail: `'${header.name}' belongs to file system ${header.fsUuid}, the cluster has it in ${fsUuid}`,
  });
}

async function readKey(keyFile: string): Promise<Buffer> {
  try {
    const key = await readFile(keyFile);
    if (key.length < 16) throw new Error('it is shorter than 16 bytes');
    return key;
  } catch (error) {
    throw new FsError('badConfiguration', {
      op: 'clusterKey',
      object: keyFile,
      detail: error instanceof Error ? error.message : String(error),
      cause: error,
    });
  }
}
