import type { Engine, EngineConfig } from '../../client/engine-contract.js';
import { startNode } from '../engine.js';

/** The library's engine with a short lease, and without writing out by age: what is dirty stays dirty until somebody asks. */
export const SHORT_LEASE_MS = 1500;

export function startEngine(config: EngineConfig): Promise<Engine> {
  return startNode({
    clusterName: config.cluster.name,
    etcd: config.cluster.etcd,
    keyFile: config.cluster.keyFile,
    nodeId: null,
    name: config.nodeName ?? `library-${process.pid}`,
    listen: null,
    tokenServer: false,
    pagePoolBytes: config.pagePoolBytes ?? 32 << 20,
    leaseTtlMs: SHORT_LEASE_MS,
    nsds: [],
    fileSystem: config.fileSystem,
    settings: { cache: { writeBehindAgeMs: 3_600_000 }, fs: { inodeWriteBehindMs: 3_600_000 } },
  });
}
