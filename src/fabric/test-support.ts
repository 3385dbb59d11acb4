import { performance } from 'node:perf_hooks';
import type { Clock } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { incarnation, nodeId } from '../common/ids.js';
import { type Logger, silentLogger } from '../common/logger.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { FabricNode, type FabricNodeOptions } from './fabric-node.js';
import type { Transport, TransportAddress } from './link.js';
import { TcpTransport } from './tcp-link.js';

/** What the tests and the benchmark of the fabric share. */

export const realClock: Clock = {
  nowMs: () => performance.now(),
  wallNs: () => BigInt(Date.now()) * 1_000_000n,
  after(delayMs, fire) {
    const timer = setTimeout(fire, Math.ceil(delayMs));
    return { cancel: () => clearTimeout(timer) };
  },
};

/** Time that moves when told to: every timer due is run in order, promises in between. */
export class VirtualClock implements Clock {
  #nowMs = 0;
  #order = 0;
  readonly #timers = new Map<number, { atMs: number; fire: () => void }>();

  nowMs(): number {
    return this.#nowMs;
  }
  wallNs(): bigint {
    return BigInt(Math.round(this.#nowMs * 1e6));
  }
  after(delayMs: number, fire: () => void) {
    const id = this.#order++;
    this.#timers.set(id, { atMs: this.#nowMs + Math.max(0, delayMs), fire });
    return { cancel: () => this.#timers.delete(id) };
  }
  /** Runs until `done`, or until nothing is left to run, or the limit of virtual time is reached. */
  async run(untilMs: number, done: () => boolean = () => false): Promise<void> {
    await settle();
    while (!done()) {
      let next: { id: number; atMs: number; fire: () => void } | null = null;
      for (const [id, timer] of this.#timers) {
        if (next === null || timer.atMs < next.atMs) next = { id, ...timer };
      }
      if (next === null || next.atMs > untilMs) break;
      this.#timers.delete(next.id);
      this.#nowMs = next.atMs;
      next.fire();
      await settle();
    }
    if (!done() && this.#nowMs < untilMs) this.#nowMs = untilMs;
  }
}

/** Lets promises and ticks that are due run. */
export const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** The error that a promise is rejected with; it must be one of ours. */
export async function failure(promise: Promise<unknown>): Promise<FsError> {
  try {
    await promise;
  } catch (error) {
    if (FsError.is(error)) return error;
    throw error;
  }
  throw new Error('it succeeded');
}

export const TEST_KEY = Buffer.from('the key of the test cluster, 32 b');

export interface TestNode {
  readonly fabric: FabricNode;
  readonly counters: Counters;
  readonly pool: PagePool;
}

export interface TestNodeOptions extends Partial<Omit<FabricNodeOptions, 'self' | 'transport' | 'pool'>> {
  readonly node: number;
  readonly incarnation?: number;
  readonly pool?: PagePool;
  readonly transport?: (pool: PagePool, counters: Counters) => Transport;
  /** Read when needed: tests fill it in as nodes begin to listen. */
  readonly addresses?: Map<number, TransportAddress>;
  readonly logger?: Logger;
}

export function testNode(options: TestNodeOptions): TestNode {
  const { node, incarnation: life, pool: given, transport, addresses, ...rest } = options;
  const pool = given ?? heapPagePool(4 << 20);
  const counters = new Counters();
  const fabric = new FabricNode({
    clusterId: 'test-cluster',
    clusterKey: TEST_KEY,
    clock: realClock,
    logger: silentLogger,
    counters,
    resolveAddress: async (id) => addresses?.get(id) ?? null,
    ...rest,
    self: { nodeId: nodeId(node), incarnation: incarnation(life ?? 1) },
    transport: transport?.(pool, counters) ?? new TcpTransport(pool),
    pool,
  });
  return { fabric, counters, pool };
}
