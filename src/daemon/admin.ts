import type { FileSystemRecord } from '../cluster/records.js';
import { sleep } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import { type NodeId, nodeId } from '../common/ids.js';
import { RANGE_END } from '../common/units.js';
import { MessageType } from '../protocol/message-types.js';
import { className, modeName, placeOf } from '../token-manager/file-system-scope.js';
import { LOCK_END } from '../token-manager/locks/lock-table.js';
import { TokenClass } from '../token-manager/token.js';
import { decodeListReply, encodeListRequest, LIST_ENTRIES_MAX } from '../token-manager/token-messages.js';
import type {
  AdminApi,
  AdminMethod,
  AdminParams,
  AdminResults,
  FileSystemInfo,
  LockLine,
  LockList,
  NodeLine,
  NodeStatus,
  NsdLine,
  TokenLine,
  TokenList,
} from './admin-api.js';
import type { DaemonConfig } from './config-schema.js';
import type { NodeEngine } from './engine.js';
import type { Mounts } from './mounts.js';
import type { FileSystemIdentity } from './node.js';
import { lifeState } from './node-recovery.js';
import { systemClock } from './system-clock.js';

/** The admin calls, answered from a running engine. Owns nothing; everything it says is of the moment it was asked. */
const TOKEN_LIST_TIMEOUT_MS = 5000;
const EXPEL_WAIT_MS = 60_000;
const EXPEL_LOOK_MS = 50;

type Handlers = {
  readonly [M in AdminMethod]: (params: AdminParams<M>, signal: AbortSignal | undefined) => Promise<AdminResults[M]>;
};

export function daemonAdmin(engine: NodeEngine, config: DaemonConfig, mounts: Mounts): AdminApi {
  const startedMs = performance.now();
  const handlers: Handlers = {
    status: async () => status(engine, config, performance.now() - startedMs),
    nodes: async () => nodes(engine),
    nsds: () => nsds(engine),
    tokens: ({ limit }) => tokens(engine, limit),
    locks: () => lockList(engine),
    createFileSystem: async ({ name, nsds: wanted, metadataCopies }) =>
      describe(engine, name, await engine.createFileSystem(name, wanted, { metadataCopies })),
    fileSystems: async () => {
      const found = await engine.fileSystems();
      return Promise.all(found.map(({ name, record }) => describe(engine, name, record)));
    },
    checkFileSystem: async ({ name }) => engine.node.check(await identityOf(engine, name)),
    repairFileSystem: async ({ name }) => engine.node.repair(await identityOf(engine, name)),
    checkOnline: async ({ name, ...options }, signal) =>
      engine.node.checkOnline(await identityOf(engine, name), { ...options, signal }),
    checkProgress: async () => ({ progress: engine.node.checking }),
    expel: ({ node }) => expel(engine, nodeId(node)),
    nsdTakeover: async ({ nsd, to }) => {
      await engine.takeover(nsd, to === null ? null : nodeId(to));
      const line = (await nsds(engine)).find(({ name }) => name === nsd);
      if (line === undefined) throw new FsError('notFound', { op: 'nsd.takeover', object: nsd, detail: 'it has gone' });
      return line;
    },
    fabricTest: ({ node }) => fabricTest(engine, node),
    counters: async () => {
      await engine.refusedNsds();
      return engine.counters();
    },
    mount: ({ name, target, ...options }) => mounts.mount({ name, target, options }),
    umount: async ({ target, lazy, force }) => {
      await mounts.unmount(target, { lazy, force });
      return {};
    },
    mounts: async () => mounts.list(),
    unmount: async () => {
      await mounts.close();
      await engine.unmount();
      return {};
    },
  };
  return { call: (method, params, signal) => handlers[method](params, signal) };
}

export async function identityOf(engine: NodeEngine, name: string, op = 'fs.check'): Promise<FileSystemIdentity> {
  const found = (await engine.fileSystems()).find((one) => one.name === name);
  if (found === undefined) throw new FsError('notFound', { op, object: name, detail: 'no such file system' });
  return { ...found.record, name };
}

/** Waits until it has been cleaned up after: fenced everywhere, its log redone, its tokens fallen. */
async function expel(engine: NodeEngine, node: NodeId): Promise<AdminResults['expel']> {
  const { membership } = engine;
  const life = await membership.expel(node);
  const deadlineMs = systemClock.nowMs() + EXPEL_WAIT_MS;
  while (lifeState(membership.view, life.nodeId, life.incarnation) !== 'gone' && systemClock.nowMs() < deadlineMs)
    await sleep(systemClock, EXPEL_LOOK_MS);
  const done = lifeState(membership.view, life.nodeId, life.incarnation) === 'gone';
  return { nodeId: life.nodeId, incarnation: life.incarnation, done };
}

async function status(engine: NodeEngine, config: DaemonConfig, uptimeMs: number): Promise<NodeStatus> {
  const refused = await engine.refusedNsds();
  const { membership } = engine;
  const { view, self } = membership;
  return {
    clusterName: config.clusterName,
    clusterId: view.clusterId,
    nodeId: self.nodeId,
    name: config.name,
    incarnation: self.incarnation,
    epoch: view.epoch,
    phase: membership.phase,
    suspended: membership.suspended,
    leaseLeftMs: Math.round(membership.leaseDeadlineMs - systemClock.nowMs()),
    uptimeMs: Math.round(uptimeMs),
    pid: process.pid,
    socket: config.socket,
    nodes: view.nodes.size,
    tokenServers: view.tokenServers,
    expelling: membership.expelling.map((entry) => entry.nodeId),
    fileSystem: engine.node.mountedAs?.name ?? null,
    refusedNsds: refused.filter(({ standing }) => standing),
    staleNsds: [...view.copies]
      .filter(([, { state }]) => state !== 'up')
      .map(([uuid, { state }]) => ({ nsd: view.nsds.get(uuid)?.name ?? uuid, state })),
    residentBytes: process.memoryUsage.rss(),
    fabric: {
      device: engine.ladder.local.device,
      reason: engine.ladder.local.reason,
      peers: engine.fabric.peers(),
    },
  };
}

async function fabricTest({ membership, rungTest }: NodeEngine, node: number): Promise<AdminResults['fabricTest']> {
  if (!membership.view.nodes.has(nodeId(node))) {
    throw new FsError('notFound', { op: 'fabric test', object: `node ${node}`, detail: 'there is no such node' });
  }
  return rungTest.run(node, ['rdma', 'tcp']);
}

function nodes({ membership }: NodeEngine): NodeLine[] {
  const { view, self } = membership;
  return [...view.nodes.values()].map((node) => ({
    nodeId: node.nodeId,
    name: node.name,
    incarnation: node.incarnation,
    address: node.address === null ? null : `${node.address.host}:${node.address.port}`,
    tokenServer: node.tokenServer,
    nsds: [...view.nsds.values()].filter((nsd) => nsd.servers.includes(node.nodeId)).map((nsd) => nsd.name),
    self: node.nodeId === self.nodeId,
  }));
}

async function nsds(engine: NodeEngine): Promise<NsdLine[]> {
  const { view } = engine.membership;
  const names = new Map((await engine.fileSystems()).map(({ name, record }) => [record.uuid, name]));
  return [...view.nsds.values()]
    .map((nsd) => ({
      name: nsd.name,
      uuid: nsd.uuid,
      lengthBytes: nsd.lengthBytes,
      failureGroup: nsd.failureGroup,
      fileSystem: nsd.fsUuid === null ? null : (names.get(nsd.fsUuid) ?? nsd.fsUuid),
      servers: nsd.servers,
      serving: nsd.serving,
      moving: nsd.moving,
      serversUp: nsd.servers.filter((server) => view.nodes.has(server)),
      copies: view.copies.get(nsd.uuid)?.state ?? 'up',
      copiesSinceMs: view.copies.get(nsd.uuid)?.sinceMs ?? null,
    }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** From every token server in turn, a page at a time, until there are enough. */
async function tokens(engine: NodeEngine, limit: number): Promise<TokenList> {
  const { membership, fabric } = engine;
  const names = new Map((await engine.fileSystems()).map(({ name, record }) => [record.number as number, name]));
  const found: TokenLine[] = [];
  for (const server of membership.view.tokenServers) {
    for (let skip = 0; ; ) {
      const wanted = Math.min(LIST_ENTRIES_MAX, limit + 1 - found.length);
      if (wanted <= 0) return { tokens: found.slice(0, limit), more: true };
      const page = await listPage(fabric, names, server, skip, wanted);
      found.push(...page);
      skip += page.length;
      if (page.length < wanted) break;
    }
  }
  return { tokens: found.slice(0, limit), more: found.length > limit };
}

export async function lockList(engine: NodeEngine): Promise<LockList> {
  const names = new Map((await engine.fileSystems()).map(({ name, record }) => [record.number as number, name]));
  const answers = await engine.node.lockReports.all();
  const found: LockLine[] = [];
  for (const { node, report } of answers)
    for (const { kind, object, exclusive, deny, start, end, pid, process } of report?.locks ?? []) {
      const isShare = kind === 'share';
      const { fileSystem, id } = isShare ? { fileSystem: null, id: object } : placeOf(TokenClass.lock, object);
      const isFlock = kind === 'flockHeld' || kind === 'flockWaiting';
      found.push({
        node,
        pid: isShare ? null : pid,
        fileSystem: fileSystem === null ? null : (names.get(fileSystem) ?? `#${fileSystem}`),
        inode: id,
        kind: isShare ? 'share' : isFlock ? 'flock' : process ? 'process' : 'handle',
        state: kind === 'waiting' || kind === 'flockWaiting' ? 'waiting' : 'held',
        type: isShare ? `denies ${deny}` : exclusive ? 'write' : 'read',
        start,
        end: isShare || end >= LOCK_END ? null : end,
      });
    }
  const silent = answers.filter(({ report }) => report === null).map(({ node }) => node);
  return { locks: found, silent, more: answers.some(({ report }) => report?.more === true) };
}

async function listPage(
  fabric: NodeEngine['fabric'],
  fileSystemNames: ReadonlyMap<number, string>,
  server: NodeId,
  skip: number,
  limit: number,
): Promise<TokenLine[]> {
  const options = { timeoutMs: TOKEN_LIST_TIMEOUT_MS };
  const body = await fabric
    .peer(nodeId(server))
    .request(MessageType.tokenList, encodeListRequest(skip, limit), options);
  return decodeListReply(body).map((held) => {
    const { fileSystem, id } = placeOf(held.class, held.object);
    return {
      server,
      node: held.by.nodeId,
      fileSystem: fileSystemNames.get(fileSystem) ?? `#${fileSystem}`,
      class: className(held.class),
      object: id,
      mode: modeName(held.mode),
      start: held.range.start,
      end: held.range.end >= RANGE_END ? null : held.range.end,
      seq: held.seq,
    };
  });
}

async function describe(engine: NodeEngine, name: string, record: FileSystemRecord): Promise<FileSystemInfo> {
  const { view } = engine.membership;
  let usage: FileSystemInfo['usage'] = null;
  const mounted = engine.node.mountedAs;
  if (mounted === null || mounted.uuid === record.uuid) {
    try {
      const { blockBytes, totalBytes, freeBytes, totalInodes, freeInodes } = await engine.fileSystem.statfs();
      usage = { blockBytes, totalBytes, freeBytes, totalInodes, freeInodes };
    } catch (error) {
      // Another one is configured here, or its NSDs are away: what the store knows is still true.
      if (!FsError.is(error)) throw error;
    }
  }
  const nsdNames = record.nsds.map((uuid) => view.nsds.get(uuid)?.name ?? uuid);
  return { name, uuid: record.uuid, createdMs: record.createdMs, nsds: nsdNames, usage };
}
