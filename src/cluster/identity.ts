import { createHash } from 'node:crypto';
import { type Clock, sleep } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import { type Incarnation, incarnation, type NodeId, nodeId } from '../common/ids.js';
import type { ClusterStore, StoreLease } from './cluster-store.js';
import {
  ALIVE_PREFIX,
  type AliveRecord,
  type ClusterRecord,
  DYNAMIC_NODE_ID_MIN,
  NODE_ID_MAX,
  parseCluster,
  parseView,
  StoreKey,
} from './records.js';

/**
 * How a node comes by its identity: cluster id (made by the first node), a node id, an incarnation that was never used
 * before, and the lease that says it lives.
 *
 * Invariants: an incarnation is counted up before it is used, so a failure in between wastes a number and nothing else; at
 * most one life holds `alive/<id>` at a time. Fault model: any call may fail or end unknown; then claiming fails as a whole
 * and what was taken runs out with its lease.
 */
export interface ClaimOptions {
  readonly store: ClusterStore;
  readonly clock: Clock;
  /** The cluster's shared secret; only a hash of it goes to the store. */
  readonly clusterKey: Uint8Array;
  /** Null: any free one from DYNAMIC_NODE_ID_MIN on. */
  readonly nodeId: NodeId | null;
  readonly full: boolean;
  readonly ttlMs: number;
  /** How long to wait for an earlier life's lease to run out. 0: refuse at once. */
  readonly identityWaitMs: number;
  readonly newClusterId: () => string;
}

export interface Claim {
  readonly clusterId: string;
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
  readonly lease: StoreLease;
  /** When the lease was asked for. */
  readonly sentAtMs: number;
}

const POLL_MS = 200;
const ATTEMPTS_MAX = 100;

export const clusterKeyHash = (key: Uint8Array): string =>
  createHash('sha256').update('holdfast cluster key\0').update(key).digest('hex');

/** @throws {FsError} wrongKey, identityTaken, storeUnavailable, deadlinePassed. */
export async function claimIdentity(options: ClaimOptions): Promise<Claim> {
  const { store, clock } = options;
  const clusterId = await enterCluster(options);
  const giveUpMs = clock.nowMs() + options.identityWaitMs;
  for (let attempt = 0; attempt < ATTEMPTS_MAX; ) {
    const id = options.nodeId ?? (await freeNodeId(store));
    if ((await store.get(StoreKey.alive(id))) !== null) {
      if (clock.nowMs() >= giveUpMs) throw identityTaken(id);
      await sleep(clock, POLL_MS);
      continue;
    }
    attempt++;
    const life = await nextIncarnation(store, id);
    const sentAtMs = clock.nowMs();
    const lease = await store.grantLease(options.ttlMs);
    if (await takeAlive(store, id, life, options.full, lease))
      return { clusterId, nodeId: id, incarnation: life, lease, sentAtMs };
  }
  throw identityTaken(options.nodeId ?? nodeId(DYNAMIC_NODE_ID_MIN));
}

/** Creates `alive/<id>` under the lease; gives the lease back when somebody was faster. */
export async function takeAlive(
  store: ClusterStore,
  id: NodeId,
  life: Incarnation,
  full: boolean,
  lease: StoreLease,
): Promise<boolean> {
  const record: AliveRecord = { incarnation: life, full };
  try {
    if ((await store.compareAndSwap(StoreKey.alive(id), 0, JSON.stringify(record), lease)).ok) return true;
  } catch (error) {
    // It may have been taken: without its lease it is nobody's.
    await lease.revoke().catch(() => undefined);
    throw error;
  }
  await lease.revoke().catch(() => undefined);
  return false;
}

async function enterCluster({ store, clock, clusterKey, newClusterId }: ClaimOptions): Promise<string> {
  const keyHash = clusterKeyHash(clusterKey);
  let entry = await store.get(StoreKey.cluster);
  if (entry === null) {
    const createdMs = Number(clock.wallNs() / 1_000_000n);
    const made: ClusterRecord = { clusterId: newClusterId(), keyHash, createdMs };
    await store.compareAndSwap(StoreKey.cluster, 0, JSON.stringify(made));
    entry = await store.get(StoreKey.cluster);
  }
  const record = entry === null ? null : parseCluster(entry.value);
  if (record === null)
    throw new FsError('badConfiguration', { op: 'join', object: StoreKey.cluster, detail: 'no cluster record there' });
  if (record.keyHash !== keyHash)
    throw new FsError('wrongKey', { op: 'join', object: record.clusterId, detail: 'the cluster has another key' });
  return record.clusterId;
}

async function nextIncarnation(store: ClusterStore, id: NodeId): Promise<Incarnation> {
  const key = StoreKey.incarnation(id);
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const entry = await store.get(key);
    const last = entry === null ? 0 : Number(entry.value);
    if (!Number.isSafeInteger(last) || last < 0)
      throw new FsError('badConfiguration', { op: 'join', object: key, detail: `no incarnation: ${entry?.value}` });
    if ((await store.compareAndSwap(key, entry?.revision ?? 0, String(last + 1))).ok) return incarnation(last + 1);
  }
  throw identityTaken(id);
}

async function freeNodeId(store: ClusterStore): Promise<NodeId> {
  const { entries } = await store.list(ALIVE_PREFIX);
  const used = new Set(entries.map((entry) => Number(entry.key.slice(ALIVE_PREFIX.length))));
  const view = await store.get(StoreKey.view);
  const record = view === null ? null : parseView(view.value);
  for (const life of [...(record?.nodes ?? []), ...(record?.expelling ?? [])]) used.add(life.nodeId);
  for (let id = DYNAMIC_NODE_ID_MIN; id <= NODE_ID_MAX; id++) if (!used.has(id)) return nodeId(id);
  throw new FsError('identityTaken', { op: 'join', detail: 'every dynamic node id is in use' });
}

const identityTaken = (id: NodeId): FsError =>
  new FsError('identityTaken', { op: 'join', object: `node ${id}`, detail: 'a node with this id is alive' });
