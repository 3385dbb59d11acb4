import type {
  CasResult,
  ClusterStore,
  StoreChange,
  StoreEntry,
  StoreLease,
  StoreWatch,
} from '../cluster/cluster-store.js';
import type { MemoryConnection } from '../cluster/memory-store.js';
import type { NodeGate } from './node-gate.js';

/** A node's connection to the cluster store, its answers and changes noticed through the node's gate. */
export class GatedStore implements ClusterStore {
  constructor(
    readonly connection: MemoryConnection,
    private readonly gate: NodeGate,
    /** A lease is about to be asked for. */
    private readonly onLeaseAsked: () => void = () => undefined,
  ) {}

  get(key: string): Promise<StoreEntry | null> {
    return this.gate.pass(this.connection.get(key));
  }
  list(prefix: string): Promise<{ entries: StoreEntry[]; revision: number }> {
    return this.gate.pass(this.connection.list(prefix));
  }
  compareAndSwap(key: string, expectedRevision: number, value: string, lease?: StoreLease): Promise<CasResult> {
    return this.gate.pass(this.connection.compareAndSwap(key, expectedRevision, value, lease));
  }
  put(key: string, value: string, lease?: StoreLease): Promise<number> {
    return this.gate.pass(this.connection.put(key, value, lease));
  }
  delete(key: string, expectedRevision?: number): Promise<boolean> {
    return this.gate.pass(this.connection.delete(key, expectedRevision));
  }
  async grantLease(ttlMs: number): Promise<StoreLease> {
    this.onLeaseAsked();
    const lease = await this.gate.pass(this.connection.grantLease(ttlMs));
    return {
      id: lease.id,
      ttlMs: lease.ttlMs,
      renew: () => this.gate.pass(lease.renew()),
      revoke: () => this.gate.pass(lease.revoke()),
    };
  }
  watch(prefix: string, fromRevision: number, onChange: (change: StoreChange) => void, onGap: () => void): StoreWatch {
    return this.connection.watch(
      prefix,
      fromRevision,
      (change) => this.gate.enter(() => onChange(change)),
      () => this.gate.enter(onGap),
    );
  }
  close(): Promise<void> {
    return this.connection.close();
  }
}
