import type { FsError } from '../common/errors.js';
import type { FileSystem } from '../fs/file-system-api.js';

/**
 * What the library needs of a node's engine: a module that exports `startEngine`. The library runs it in a worker, so the
 * configuration is plain data, and everything but the shared memory behind `mapIds` stays on the engine's thread.
 */
export interface EngineConfig {
  readonly cluster: {
    /** Endpoints of etcd: 'http://127.0.0.1:2379'. */
    readonly etcd: readonly string[];
    readonly name: string;
    /** File with the cluster key. */
    readonly keyFile: string;
  };
  readonly fileSystem: string;
  /** Default: host name, process id and a random suffix. */
  readonly nodeName?: string | undefined;
  readonly pagePoolBytes?: number | undefined;
}

export interface Engine {
  readonly fileSystem: FileSystem;
  /** By which the application's threads open the page pool and the cache map; null: no hits, everything goes to the engine. */
  readonly mapIds: { readonly poolId: number; readonly mapId: number } | null;
  /** By which they know whether answers that they remember are still right (src/cache/stamps.ts); absent: they remember none. */
  readonly stamps?: SharedArrayBuffer;
  counters(): Record<string, number>;
  /** Flushes, gives tokens back, leaves the cluster. */
  close(): Promise<void>;
  /** Called at most once, when the engine can't go on (fenced for good, a broken invariant). It has stopped serving by then. */
  onFailure(listener: (why: FsError) => void): void;
}

export type StartEngine = (config: EngineConfig) => Promise<Engine>;
export interface EngineModule {
  readonly startEngine: StartEngine;
}
