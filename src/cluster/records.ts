import { z } from 'zod';
import {
  type Epoch,
  epoch,
  FILE_SYSTEM_NUMBER_MAX,
  type FileSystemNumber,
  fileSystemNumber,
  type Incarnation,
  incarnation,
  type NodeId,
  nodeId,
} from '../common/ids.js';
import type { CopyRecord, NodeRecord, NsdRecord } from './membership-api.js';

/**
 * What the cluster store holds: its keys, and the JSON behind each. Other versions and other hands write there too, so what
 * is read is checked before it is believed; unknown fields are kept out of what we use, and don't make a record bad.
 */
export const StoreKey = {
  /** ClusterRecord: written once, by the first node. */
  cluster: 'cluster',
  /** ViewRecord: who is in the cluster. Moved by compare-and-swap only. */
  view: 'view',
  /** AliveRecord, attached to the node's lease. */
  alive: (id: NodeId): string => `${ALIVE_PREFIX}${id}`,
  /** The last incarnation given to this node, as a decimal number. */
  incarnation: (id: NodeId): string => `incarnations/${id}`,
  nsd: (uuid: string): string => `${NSD_PREFIX}${uuid}`,
  fileSystem: (name: string): string => `${FILE_SYSTEM_PREFIX}${name}`,
  /** CopyRecords by NSD (S5). One key for all: of two NSDs that hold each other's copies, two nodes must not give up one each. */
  copies: 'copies',
  /** The number that the next file system gets, as a decimal number. */
  nextFileSystemNumber: 'nextFileSystemNumber',
} as const;
export const ALIVE_PREFIX = 'alive/';
export const NSD_PREFIX = 'nsds/';
export const FILE_SYSTEM_PREFIX = 'fs/';

/** First of the ids given to nodes that don't care (library nodes); smaller ones are for configurations. */
export const DYNAMIC_NODE_ID_MIN = 32_768;
export const NODE_ID_MAX = 65_535;

export interface ClusterRecord {
  readonly clusterId: string;
  /** SHA-256 over the cluster key, hex; tells a wrong key before the first handshake. */
  readonly keyHash: string;
  readonly createdMs: number;
}

/** A life that is out of the view and has not been cleaned up after: F1's steps behind the new epoch. */
export interface ExpellingRecord {
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
  /** The first epoch without it. */
  readonly epoch: Epoch;
  /** It left by itself, with nothing dirty. */
  readonly clean: boolean;
}

export interface ViewRecord {
  readonly epoch: Epoch;
  /** Ascending by id. */
  readonly nodes: readonly NodeRecord[];
  readonly tokenServers: readonly NodeId[];
  readonly expelling: readonly ExpellingRecord[];
}

/** Who owns a node's identity: the incarnation that holds the lease. */
export interface AliveRecord {
  readonly incarnation: Incarnation;
  /** Full nodes can drive an expulsion. */
  readonly full: boolean;
}

/** A file system, by name. `nsds`: UUIDs in the order of their index. */
export interface FileSystemRecord {
  readonly uuid: string;
  /** Tells its tokens from those of the cluster's other file systems. */
  readonly number: FileSystemNumber;
  readonly nsds: readonly string[];
  readonly createdMs: number;
}

const id = z.int().min(1).max(NODE_ID_MAX).transform(nodeId);
const life = z.int().min(1).transform(incarnation);
const count = z.int().min(0);
const epochNumber = z.int().min(0).transform(epoch);
const port = z.int().min(0).max(65_535);
const nodeSchema = z.object({
  nodeId: id,
  name: z.string(),
  incarnation: life,
  address: z
    .object({
      host: z.string(),
      port,
      // Absent in records of nodes without RDMA, and in older ones.
      rdma: z.object({ host: z.string(), port }).optional(),
    })
    .nullable(),
  tokenServer: z.boolean(),
});
const viewSchema = z.object({
  epoch: epochNumber,
  nodes: z.array(nodeSchema),
  tokenServers: z.array(id),
  expelling: z.array(z.object({ nodeId: id, incarnation: life, epoch: epochNumber, clean: z.boolean() })),
});
const aliveSchema = z.object({ incarnation: life, full: z.boolean() });
const targetSchema = z.object({ nodeId: id, subsystem: z.string().min(1).max(223) });
const nsdSchema = z.object({
  uuid: z.string(),
  name: z.string(),
  fsUuid: z.string().nullable(),
  failureGroup: count,
  servers: z.array(id),
  serving: id.nullable().default(null),
  moving: z.object({ from: id, to: id }).nullable().default(null),
  generation: count.default(0),
  targets: z.record(z.string().regex(/^[1-9][0-9]{0,4}$/), targetSchema).default({}),
  lengthBytes: count,
});
const fileSystemSchema = z.object({
  uuid: z.string(),
  // Absent in records of when a cluster had only one.
  number: z.int().min(0).max(FILE_SYSTEM_NUMBER_MAX).default(0).transform(fileSystemNumber),
  nsds: z.array(z.string()),
  createdMs: z.number(),
});
const copiesSchema = z.record(
  z.string(),
  z.object({ state: z.enum(['up', 'failing', 'stale', 'resync']), generation: count, sinceMs: z.number() }),
);
const clusterSchema = z.object({ clusterId: z.string(), keyHash: z.string(), createdMs: z.number() });

/** The record in `text`, or null when it is none. */
function parser<T>(schema: z.ZodType<T>): (text: string) => T | null {
  return (text) => {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      return null;
    }
    const result = schema.safeParse(value);
    return result.success ? result.data : null;
  };
}
export const parseView = parser<ViewRecord>(viewSchema);
export const parseAlive = parser<AliveRecord>(aliveSchema);
export const parseNsd = parser<NsdRecord>(nsdSchema);
export const parseFileSystem = parser<FileSystemRecord>(fileSystemSchema);
export const parseCopies = parser<Readonly<Record<string, CopyRecord>>>(copiesSchema);
export const parseCluster = parser<ClusterRecord>(clusterSchema);

export const EMPTY_VIEW: ViewRecord = { epoch: epoch(0), nodes: [], tokenServers: [], expelling: [] };

export const sameLife = (
  a: { readonly nodeId: NodeId; readonly incarnation: Incarnation },
  b: { readonly nodeId: NodeId; readonly incarnation: Incarnation },
): boolean => a.nodeId === b.nodeId && a.incarnation === b.incarnation;
export const lifeKey = (life: { readonly nodeId: NodeId; readonly incarnation: Incarnation }): string =>
  `${life.nodeId}/${life.incarnation}`;
