import type { Engine, EngineConfig } from '../../client/engine-contract.js';
import { startNode } from '../engine.js';

/** The library's engine without writing out by age: what is dirty stays dirty until somebody asks, however slow the machine is. */
export function startUnhurried(config: EngineConfig, leaseTtlMs: number): Promise<Engine> {
  return startNode({
    clusterName: config.cluster.name,
    etcd: config.cluster.etcd,
    keyFile: config.cluster.keyFile,
    nodeId: null,
    name: config.nodeName ?? `library-${process.pid}`,
    listen: null,
    tokenServer: false,
    pagePoolBytes: config.pagePoolBytes ?? 32 << 20,
    leaseTtlMs,
    nsds: [],
    fileSystem: config.fileSystem,
    settings: { cache: { writeBehindAgeMs: 3_600_000 }, fs: { inodeWriteBehindMs: 3_600_000 } },
  });
}

export function startEngine(config: EngineConfig): Promise<Engine> {
  return startUnhurried(config, 30_000);
}
