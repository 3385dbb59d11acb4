import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from 'node:worker_threads';
import type { CacheMap } from '../cache/cache-map.js';
import { NativeCacheMap } from '../cache/cache-map-native.js';
import { Stamps } from '../cache/stamps.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { errorFromRecord, FsError } from '../common/errors.js';
import { Wakeful } from '../common/wakeful.js';
import type { Credentials } from '../fs/file-system-api.js';
import { bootTimeMs, mayStayAwake, stayAwake } from '../native/core.js';
import { MessageBatch } from './message-batch.js';
import type { OpArgs, OpName, OpResult, Reply } from './ops.js';
import { RememberedStats } from './remembered-stats.js';
import { closedError, FailureState, type Session } from './session.js';
import { processCredentials } from './socket-session.js';
import { newHealth, SyncWaiter } from './sync-reply.js';
import { type FromWorker, type Host, type ToWorker, transferOf, type WorkerData } from './worker-protocol.js';

/**
 * The application's end of the library's worker: asynchronous calls over a port, synchronous ones over shared memory, hits in
 * the cache map that the engine shares.
 *
 * Invariants: the worker keeps the process alive only while a call is in flight; when the program has nothing more to do, the
 * engine is closed in good order before the process ends. Fault model: the worker may die or say that it can't go on; then every call
 * and every handle fails with why, and the application lives on (F7).
 */
export interface WorkerSessionOptions {
  readonly credentials?: Credentials | undefined;
  /** The longest a synchronous miss waits, in ms. */
  readonly syncDeadlineMs?: number | undefined;
  /** How long close() waits for the engine to leave the cluster, in ms. */
  readonly closeDeadlineMs?: number | undefined;
  /** The worker's program and its node options: for tests, which run from sources. */
  readonly entry?: URL | undefined;
  readonly execArgv?: string[] | undefined;
}

const IN_FLIGHT_MAX = 1024;
const DEFAULT_SYNC_DEADLINE_MS = 60_000;
const DEFAULT_CLOSE_DEADLINE_MS = 30_000;

interface Call {
  readonly id: number;
  readonly op: OpName;
  readonly args: OpArgs<OpName>;
  readonly payload: Uint8Array | undefined;
  readonly done: Deferred<Reply>;
  abandoned: boolean;
}

/** Sessions to close when the program has run out of work. */
const open = new Set<WorkerSession>();
function closeAll(): void {
  for (const session of open) session.close().catch(() => undefined);
}

export class WorkerSession implements Session {
  map: CacheMap | null = null;
  transferBytesMax = 0;
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #out: MessageBatch<ToWorker>;
  readonly #state = new FailureState();
  readonly #waiter: SyncWaiter;
  readonly #calls = new Map<number, Call>();
  readonly #waiting: Call[] = [];
  readonly #ready = deferred<void>();
  readonly #ended = deferred<void>();
  readonly #closeDeadlineMs: number;
  readonly #wakeful = mayStayAwake ? new Wakeful({ stayAwake, nowMs: bootTimeMs }) : null;
  #remembered: RememberedStats | null = null;
  #nextId = 1;
  #closing: Promise<void> | null = null;

  private constructor(host: Host, options: WorkerSessionOptions) {
    const { port1, port2 } = new MessageChannel();
    const health = newHealth();
    const credentials = options.credentials ?? processCredentials();
    const workerData: WorkerData = { host, credentials, port: port2, health };
    const entry = options.entry ?? new URL('./worker.js', import.meta.url);
    this.#worker = new Worker(entry, {
      workerData,
      transferList: [port2],
      name: 'holdfast',
      // What an operation makes is short-lived: a larger nursery halves the time spent on collecting it.
      resourceLimits: { maxYoungGenerationSizeMb: 96 },
      ...(options.execArgv === undefined ? {} : { execArgv: options.execArgv }),
    });
    this.#port = port1;
    this.#out = new MessageBatch(port1);
    this.#waiter = new SyncWaiter(health, options.syncDeadlineMs ?? DEFAULT_SYNC_DEADLINE_MS);
    this.#closeDeadlineMs = options.closeDeadlineMs ?? DEFAULT_CLOSE_DEADLINE_MS;
    port1.on('message', (messages: FromWorker[]) => {
      this.#out.expect(messages.length);
      for (const message of messages) this.#message(message);
    });
    this.#worker.on('error', (error) => this.#fail(FsError.from(error, 'engine')));
    this.#worker.on('exit', (code) => {
      // The thread's end may overtake what it said last.
      for (let last = receiveMessageOnPort(port1); last !== undefined; last = receiveMessageOnPort(port1))
        for (const message of last.message as FromWorker[]) this.#message(message);
      this.#fail(new FsError('internal', { op: 'engine', detail: `the engine's thread ended with code ${code}` }));
      this.#ended.resolve();
    });
  }

  /** @throws {FsError} why the engine could not start. */
  static async start(host: Host, options: WorkerSessionOptions = {}): Promise<WorkerSession> {
    const session = new WorkerSession(host, options);
    try {
      await session.#ready.promise;
    } catch (error) {
      await session.#worker.terminate();
      throw error;
    }
    // From here on only calls in flight keep the process alive.
    session.#worker.unref();
    session.#port.unref();
    if (open.size === 0) process.on('beforeExit', closeAll);
    open.add(session);
    return session;
  }

  get failure(): FsError | null {
    return this.#state.failure;
  }
  get remembered(): RememberedStats | null {
    return this.#state.failure === null && this.#closing === null ? this.#remembered : null;
  }
  onFailure(listener: (why: FsError) => void): () => void {
    return this.#state.onFailure(listener);
  }

  #message(message: FromWorker): void {
    switch (message.kind) {
      case 'ready':
        this.transferBytesMax = message.transferBytesMax;
        try {
          if (message.mapId !== null) this.map = NativeCacheMap.open(message.mapId);
          if (message.stamps !== undefined)
            this.#remembered = new RememberedStats(new Stamps(message.stamps), bootTimeMs);
          this.#ready.resolve();
        } catch (error) {
          this.#ready.reject(FsError.from(error, 'connect'));
        }
        break;
      case 'reply': {
        const call = this.#take(message.id);
        if (call?.abandoned === true && call.op === 'open')
          this.notify('close', { handle: (message.result as OpResult<'open'>).handle });
        call?.done.resolve({ result: message.result, payload: message.payload });
        break;
      }
      case 'error':
        this.#take(message.id)?.done.reject(errorFromRecord(message.error));
        break;
      case 'failed':
        this.#fail(errorFromRecord(message.error));
        break;
      case 'closed':
        if (message.error === undefined) this.#ended.resolve();
        else this.#ended.reject(errorFromRecord(message.error));
        break;
    }
  }

  #fail(why: FsError): void {
    this.#ready.reject(why);
    this.#state.fail(why);
    for (const call of [...this.#calls.values(), ...this.#waiting.splice(0)]) call.done.reject(why);
    this.#calls.clear();
    this.#port.unref();
    this.#forget();
  }

  #forget(): void {
    open.delete(this);
    if (open.size === 0) process.off('beforeExit', closeAll);
  }

  call<K extends OpName>(op: K, args: OpArgs<K>, payload?: Uint8Array, signal?: AbortSignal): Promise<Reply<K>> {
    if (this.#state.failure !== null) return Promise.reject(this.#state.failure);
    if (this.#closing !== null) return Promise.reject(closedError(op));
    if (signal?.aborted === true) return Promise.reject(new FsError('aborted', { op }));
    const call: Call = { id: this.#nextId++, op, args, payload, done: deferred<Reply>(), abandoned: false };
    if (signal !== undefined) this.#abortable(call, signal);
    if (this.#calls.size >= IN_FLIGHT_MAX) this.#waiting.push(call);
    else this.#send(call);
    return call.done.promise as Promise<Reply<K>>;
  }

  #send(call: Call): void {
    if (this.#calls.size === 0) this.#port.ref();
    this.#calls.set(call.id, call);
    // What is to be durable is, as a rule, all that the program waits for. (The addon is there where a map is.)
    if (call.op === 'sync' && this.map !== null) this.#wakeful?.during(call.done.promise);
    const { id, op, args, payload } = call;
    this.#post({ kind: 'call', id, op, args, payload }, payload);
  }

  #post(message: ToWorker, payload?: Uint8Array): void {
    this.#out.post(message, transferOf(payload, false));
  }

  #take(id: number): Call | undefined {
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    while (this.#waiting.length > 0 && this.#calls.size < IN_FLIGHT_MAX) this.#send(this.#waiting.shift()!);
    if (this.#calls.size === 0) this.#port.unref();
    return call;
  }

  #abortable(call: Call, signal: AbortSignal): void {
    const abort = (): void => {
      call.abandoned = true;
      const at = this.#waiting.indexOf(call);
      if (at >= 0) this.#waiting.splice(at, 1);
      else this.#post({ kind: 'cancel', id: call.id });
      call.done.reject(new FsError('aborted', { op: call.op }));
    };
    signal.addEventListener('abort', abort, { once: true });
    const forget = (): void => signal.removeEventListener('abort', abort);
    call.done.promise.then(forget, forget);
  }

  callSync<K extends OpName>(op: K, args: OpArgs<K>, replyBytesMax: number, payload?: Uint8Array): Reply<K> {
    if (this.#state.failure !== null) throw this.#state.failure;
    if (this.#closing !== null) throw closedError(op);
    const reply = this.#waiter.prepare(replyBytesMax);
    this.#post({ kind: 'sync', op, args, payload, reply }, payload);
    // This thread stands still now, or goes on for long.
    this.#out.flush();
    return this.#waiter.wait(op) as Reply<K>;
  }

  notify<K extends OpName>(op: K, args: OpArgs<K>): void {
    if (this.#state.failure !== null || this.#closing !== null) return;
    this.#post({ kind: 'notify', op, args });
    this.#out.flush();
  }

  /** Lets calls in flight end; then the engine flushes and leaves the cluster, within the deadline. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const deadline = deferred<'late'>();
    const timer = setTimeout(() => deadline.resolve('late'), this.#closeDeadlineMs);
    try {
      const running = [...this.#calls.values(), ...this.#waiting].map((call) => call.done.promise);
      await Promise.race([Promise.allSettled(running), deadline.promise]);
      if (this.#state.failure !== null) return;
      this.#port.ref();
      this.#post({ kind: 'close' });
      const ended = await Promise.race([this.#ended.promise, deadline.promise]);
      if (ended !== 'late') return;
      const detail = `the engine did not leave the cluster within ${this.#closeDeadlineMs} ms`;
      throw new FsError('deadlinePassed', { op: 'close', detail });
    } finally {
      clearTimeout(timer);
      this.#fail(closedError('call'));
      await this.#dispose();
    }
  }

  async #dispose(): Promise<void> {
    this.#forget();
    this.#port.close();
    await this.#worker.terminate();
    if (this.map instanceof NativeCacheMap) this.map.dispose();
    this.map = null;
  }
}
