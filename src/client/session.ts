import type { CacheMap } from '../cache/cache-map.js';
import { FsError } from '../common/errors.js';
import type { DispatcherSession } from './dispatcher.js';
import type { OpArgs, OpName, Reply } from './ops.js';
import type { RememberedStats } from './remembered-stats.js';

/**
 * A client's way to an engine: the one interface that the API is written against. Three transports: direct (same thread),
 * worker (the library), socket (a proxied client).
 *
 * Invariants: a payload handed to `call` belongs to the session from then on (the caller made a copy, so that its own buffer
 * may change while it waits); every call ends, with a result or an FsError; after `failure` is set nothing succeeds any more.
 */
export interface Session {
  /** For hits on this thread; null where there are none (proxied clients). */
  readonly map: CacheMap | null;
  /** What this thread was told and may tell again without asking; absent where the engine shares no memory. */
  readonly remembered?: RememberedStats | null;
  /** The longest read or write that is one operation of the engine, atomic against others. Longer ones are cut. */
  readonly transferBytesMax: number;
  /** Why nothing works any more (F7), or null. */
  readonly failure: FsError | null;
  call<K extends OpName>(op: K, args: OpArgs<K>, payload?: Uint8Array, signal?: AbortSignal): Promise<Reply<K>>;
  /**
   * Blocks the calling thread until the engine has answered, at most until the session's deadline.
   * @throws {FsError} notSupported where the engine is on this very thread.
   */
  callSync<K extends OpName>(op: K, args: OpArgs<K>, replyBytesMax: number, payload?: Uint8Array): Reply<K>;
  /** One-way and without promise; lost when the engine is. For hints. */
  notify<K extends OpName>(op: K, args: OpArgs<K>): void;
  /** Called once, with why, when the session fails for good. Returns how to stop listening. */
  onFailure(listener: (why: FsError) => void): () => void;
  close(): Promise<void>;
}

/** What all sessions share: the reason of failure and who wants to know. */
export class FailureState {
  failure: FsError | null = null;
  readonly #listeners = new Set<(why: FsError) => void>();

  onFailure(listener: (why: FsError) => void): () => void {
    if (this.failure !== null) listener(this.failure);
    else this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The first reason stays. */
  fail(why: FsError): void {
    if (this.failure !== null) return;
    this.failure = why;
    for (const listener of this.#listeners) listener(why);
    this.#listeners.clear();
  }
}

export const closedError = (op: string): FsError => new FsError('closed', { op, detail: 'the client is closed' });

/** The engine on the caller's own thread: the simulator, the daemon's own tools, tests. */
export class DirectSession implements Session {
  readonly transferBytesMax = 1 << 30;
  readonly #state = new FailureState();

  constructor(
    readonly dispatcher: DispatcherSession,
    readonly map: CacheMap | null = null,
  ) {}

  get failure(): FsError | null {
    return this.#state.failure;
  }

  async call<K extends OpName>(op: K, args: OpArgs<K>, payload?: Uint8Array, signal?: AbortSignal): Promise<Reply<K>> {
    if (this.#state.failure !== null) throw this.#state.failure;
    return this.dispatcher.execute(op, args, payload, signal);
  }

  callSync<K extends OpName>(op: K, _args: OpArgs<K>, _replyBytesMax: number, _payload?: Uint8Array): Reply<K> {
    const detail = 'the engine runs on this thread, so only a hit can be synchronous';
    throw this.#state.failure ?? new FsError('notSupported', { op, detail });
  }

  notify<K extends OpName>(op: K, args: OpArgs<K>): void {
    this.call(op, args).catch(() => undefined);
  }

  onFailure(listener: (why: FsError) => void): () => void {
    return this.#state.onFailure(listener);
  }

  /** The engine said that it can't go on. */
  fail(why: FsError): void {
    this.#state.fail(why);
  }

  async close(): Promise<void> {
    this.#state.fail(closedError('call'));
    await this.dispatcher.end();
  }
}
