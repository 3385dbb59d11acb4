import { z } from 'zod';
import type { RungResult } from '../fabric/rung-test.js';
import type { CheckReport } from '../fs/check/check.js';
import type { OnlineReport } from '../fs/check/online/online-report.js';
import type { RepairReport } from '../fs/check/repair.js';
import type { Progress } from '../fs/check/scan.js';
import type { MountLine } from './mounts.js';
import type { RefusedNsd } from './refused-nsds.js';

/**
 * What tools ask of a daemon, and its answers. One table for server, client and tests: names, arguments, results. Answers are
 * plain JSON; times are milliseconds, sizes bytes, ranges half-open.
 */
export const ADMIN_METHODS = {
  status: z.strictObject({}),
  nodes: z.strictObject({}),
  nsds: z.strictObject({}),
  tokens: z.strictObject({ limit: z.int().min(1).max(1_000_000) }),
  /** Who has locked what of which files, and who waits. */
  locks: z.strictObject({}),
  createFileSystem: z.strictObject({
    name: z.string().regex(/^[A-Za-z0-9._-]{1,64}$/, 'a name of 1 to 64 letters, digits, dots, dashes or underscores'),
    /** Names; undefined: every NSD that belongs to no file system. */
    nsds: z.array(z.string()).min(1).max(1024).optional(),
    /** Undefined: 2 where the NSDs are in two failure groups or more. */
    metadataCopies: z.union([z.literal(1), z.literal(2)]).optional(),
  }),
  fileSystems: z.strictObject({}),
  /** Reads a whole file system that nobody has mounted, and says what does not fit together. */
  checkFileSystem: z.strictObject({ name: z.string() }),
  /** The same, and mends what can be mended. */
  repairFileSystem: z.strictObject({ name: z.string() }),
  /** Looks at everything while it is mounted and worked on; called off when who asks goes. */
  checkOnline: z.strictObject({
    name: z.string(),
    /** Damaged copies are written from the others; nothing else. */
    repair: z.boolean(),
    /** Files' bytes too. */
    data: z.boolean(),
    /** 0: as fast as it can. */
    readBytesPerS: z.int().min(0),
  }),
  /** How far a check or a repair has come that this daemon is at. */
  checkProgress: z.strictObject({}),
  /** The operator says that it is dead (F1). */
  expel: z.strictObject({ node: z.int().min(1).max(65_535) }),
  /** Moves an NSD to another of its servers; null: to the daemon that is asked. */
  nsdTakeover: z.strictObject({ nsd: z.string(), to: z.int().min(1).max(65_535).nullable() }),
  fabricTest: z.strictObject({ node: z.int().min(1).max(65_535) }),
  counters: z.strictObject({}),
  /** Shows a file system to all programs of the node, in a directory. */
  mount: z.strictObject({
    name: z.string(),
    /** A whole path, as the daemon sees it. */
    target: z.string().min(1).max(4095),
    readOnly: z.boolean(),
    noSuid: z.boolean(),
    noDevices: z.boolean(),
    noExecute: z.boolean(),
    noAccessTimes: z.boolean(),
    allowOther: z.boolean(),
  }),
  /** `lazy`: gone from the tree at once, wholly when its last user is; `force`: its users get errors. */
  umount: z.strictObject({ target: z.string().min(1).max(4095), lazy: z.boolean(), force: z.boolean() }),
  mounts: z.strictObject({}),
  /** Everything written out, every token given back: what each node does first when all of them are to be stopped. */
  unmount: z.strictObject({}),
} as const;

export type AdminMethod = keyof typeof ADMIN_METHODS;
export type AdminParams<M extends AdminMethod> = z.output<(typeof ADMIN_METHODS)[M]>;

export interface AdminResults {
  status: NodeStatus;
  nodes: NodeLine[];
  nsds: NsdLine[];
  tokens: TokenList;
  locks: LockList;
  createFileSystem: FileSystemInfo;
  fileSystems: FileSystemInfo[];
  checkFileSystem: CheckReport;
  repairFileSystem: RepairReport;
  checkOnline: OnlineReport;
  checkProgress: { readonly progress: Progress | null };
  expel: { readonly nodeId: number; readonly incarnation: number; readonly done: boolean };
  nsdTakeover: NsdLine;
  fabricTest: RungResult[];
  counters: Record<string, number>;
  mount: MountLine;
  umount: Record<string, never>;
  mounts: MountLine[];
  unmount: Record<string, never>;
}

/** The daemon's side: `AdminServer` calls it, `daemonAdmin` implements it over an engine. May throw FsError. */
export interface AdminApi {
  /** `signal`: nobody waits for the answer any more. */
  call<M extends AdminMethod>(method: M, params: AdminParams<M>, signal?: AbortSignal): Promise<AdminResults[M]>;
}

export interface NodeStatus {
  readonly clusterName: string;
  readonly clusterId: string;
  readonly nodeId: number;
  readonly name: string;
  readonly incarnation: number;
  readonly epoch: number;
  readonly phase: string;
  readonly suspended: boolean;
  /** Until the lease runs out; negative: since. */
  readonly leaseLeftMs: number;
  readonly uptimeMs: number;
  readonly pid: number;
  readonly socket: string;
  readonly nodes: number;
  readonly tokenServers: readonly number[];
  /** Nodes out of the view that are not yet cleaned up after. */
  readonly expelling: readonly number[];
  readonly fileSystem: string | null;
  /** NSDs that a node refused when it was to start, and has not served since. */
  readonly refusedNsds: readonly RefusedNsd[];
  /** NSDs that don't have everything that has another copy elsewhere, and what is being done about it. */
  readonly staleNsds: readonly { readonly nsd: string; readonly state: string }[];
  readonly residentBytes: number;
  readonly fabric: FabricStatus;
}

export interface FabricStatus {
  /** The RDMA device in use, or null. */
  readonly device: string | null;
  /** Why it is used, or why there is none. */
  readonly reason: string;
  readonly peers: readonly {
    readonly nodeId: number;
    readonly connected: boolean;
    /** 'rdma' or 'tcp'; null without a link. */
    readonly transport: string | null;
    readonly reason: string;
  }[];
}

export interface NodeLine {
  readonly nodeId: number;
  readonly name: string;
  readonly incarnation: number;
  /** host:port, or null for a library node. */
  readonly address: string | null;
  readonly tokenServer: boolean;
  readonly nsds: readonly string[];
  readonly self: boolean;
}

export interface NsdLine {
  readonly name: string;
  readonly uuid: string;
  readonly lengthBytes: number;
  readonly failureGroup: number;
  /** Name of its file system, its UUID when that has no name, or null. */
  readonly fileSystem: string | null;
  readonly servers: readonly number[];
  /** The one that serves it; null: nobody, for now. */
  readonly serving: number | null;
  readonly moving: { readonly from: number; readonly to: number } | null;
  /** Servers that are in the cluster now. */
  readonly serversUp: readonly number[];
  /** Whether it has everything that has another copy elsewhere (S5). */
  readonly copies: 'up' | 'failing' | 'stale' | 'resync';
  /** Since when, milliseconds since 1970; null: always. */
  readonly copiesSinceMs: number | null;
}

export interface TokenLine {
  readonly server: number;
  readonly node: number;
  /** Its name; `#` and its number when it has none. */
  readonly fileSystem: string;
  readonly class: string;
  /** An inode number; for status and open tokens a segment of 4096 inodes. */
  readonly object: number;
  readonly mode: string;
  readonly start: number;
  /** Null: to the end of the token space. */
  readonly end: number | null;
  readonly seq: number;
}
export interface LockLine {
  readonly node: number;
  readonly pid: number | null;
  readonly fileSystem: string | null;
  readonly inode: number;
  /** fcntl's, an open file description's, flock's; or a share mode. */
  readonly kind: 'process' | 'handle' | 'flock' | 'share';
  readonly state: 'held' | 'waiting';
  /** What it locks, or denies: read, write or readwrite. */
  readonly type: string;
  readonly start: number;
  /** Null: to the end of the file. */
  readonly end: number | null;
}
export interface LockList {
  readonly locks: readonly LockLine[];
  /** Nodes that did not answer. */
  readonly silent: readonly number[];
  /** Some have more than they told. */
  readonly more: boolean;
}
export interface TokenList {
  readonly tokens: readonly TokenLine[];
  /** There are more than were asked for. */
  readonly more: boolean;
}

export interface FileSystemInfo {
  readonly name: string;
  readonly uuid: string;
  readonly createdMs: number;
  readonly nsds: readonly string[];
  /** Of the mounted one, else null. */
  readonly usage: {
    readonly blockBytes: number;
    readonly totalBytes: number;
    readonly freeBytes: number;
    readonly totalInodes: number;
    readonly freeInodes: number;
  } | null;
}

/** Where tools reach the daemon whose clients use `socket`. */
export const adminSocketPath = (socket: string): string => `${socket}.admin`;
