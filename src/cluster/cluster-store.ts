/**
 * The cluster's small, strongly consistent memory: membership, epochs, configuration. etcd in the daemon, a map in the
 * simulator. Every call ends: answered, or an FsError storeUnavailable / deadlinePassed at its deadline.
 */
export interface ClusterStore {
  get(key: string): Promise<StoreEntry | null>;
  list(prefix: string): Promise<{ entries: StoreEntry[]; revision: number }>;
  /** Writes if the key's revision is still `expectedRevision` (0: the key must not exist). Attached to the lease if one is named. */
  compareAndSwap(key: string, expectedRevision: number, value: string, lease?: StoreLease): Promise<CasResult>;
  put(key: string, value: string, lease?: StoreLease): Promise<number>;
  /** expectedRevision undefined: unconditionally. */
  delete(key: string, expectedRevision?: number): Promise<boolean>;
  grantLease(ttlMs: number): Promise<StoreLease>;
  /** Every change behind `fromRevision` (exclusive), in order. Reconnects by itself; `onGap` when changes were missed: list again. */
  watch(prefix: string, fromRevision: number, onChange: (change: StoreChange) => void, onGap: () => void): StoreWatch;
  close(): Promise<void>;
}

export interface StoreEntry {
  readonly key: string;
  readonly value: string;
  readonly revision: number;
}
export type CasResult = { readonly ok: true; readonly revision: number } | { readonly ok: false };
export type StoreChange = {
  readonly type: 'put' | 'delete';
  readonly key: string;
  readonly value: string;
  readonly revision: number;
};
export interface StoreLease {
  readonly id: string;
  readonly ttlMs: number;
  /** One renewal. Rejects when the lease is gone or the store didn't answer in time. */
  renew(): Promise<void>;
  revoke(): Promise<void>;
}
export interface StoreWatch {
  close(): void;
}
