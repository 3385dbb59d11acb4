import { parentPort, workerData } from 'node:worker_threads';
import { Counters } from '../common/counters.js';
import { errorToRecord, FsError } from '../common/errors.js';
import { Cancel } from './cancel.js';
import { DEFAULT_LIMITS, Dispatcher } from './dispatcher.js';
import type { EngineModule } from './engine-contract.js';
import { MessageBatch } from './message-batch.js';
import type { OpArgs, OpName, Reply } from './ops.js';
import { SocketSession } from './socket-session.js';
import { answerSync, reportDeath } from './sync-reply.js';
import { type FromWorker, type Host, type ToWorker, transferOf, type WorkerData } from './worker-protocol.js';

/**
 * The library's worker: hosts the engine (or the socket of a proxied client) on an event loop of its own and serves the
 * application's thread over a port. It goes on while the application computes.
 *
 * Invariants: every request gets one answer; after `failed` or `closed` nothing is served. Fault model: an exception that
 * nobody caught ends this thread, after telling why in shared memory, for a thread that waits, and on the port.
 */
interface Executor {
  readonly mapId: number | null;
  readonly stamps: SharedArrayBuffer | undefined;
  readonly transferBytesMax: number;
  execute<K extends OpName>(cancel: Cancel, op: K, args: OpArgs<K>, payload?: Uint8Array): Promise<Reply<K>>;
  close(): Promise<void>;
}

const { host, credentials, port, health } = workerData as WorkerData;
const cancels = new Map<number, Cancel>();
let stopped = false;

/** Answers of one turn that go together. */
const ANSWERS_MAX = 256;
const answers = new MessageBatch<FromWorker>(port, ANSWERS_MAX);
const tell = (message: FromWorker, transfer: ArrayBuffer[] = []): void => answers.post(message, transfer);

/** The engine can't go on: everybody who waits, and who asks later, is told why. */
function fail(why: FsError): void {
  if (stopped) return;
  stopped = true;
  reportDeath(health, why);
  tell({ kind: 'failed', error: errorToRecord(why) });
  answers.flush();
}

async function startEngine({ modulePath, config }: Host & { kind: 'engine' }): Promise<Executor> {
  const module = (await import(modulePath)) as EngineModule;
  const engine = await module.startEngine(config);
  engine.onFailure(fail);
  // The application bounds what is in flight; here everything that it sent is taken on.
  const limits = { ...DEFAULT_LIMITS, inFlightMax: Number.POSITIVE_INFINITY };
  const counters = new Counters();
  const dispatcher = new Dispatcher(engine.fileSystem, counters, limits, () => ({
    ...engine.counters(),
    ...counters.snapshot(),
  }));
  const session = dispatcher.openSession(credentials);
  return {
    mapId: engine.mapIds?.mapId ?? null,
    stamps: engine.stamps,
    transferBytesMax: limits.readBytesMax,
    execute: (cancel, op, args, payload) => session.executeUntil(cancel, op, args, payload),
    close: async () => {
      await session.end();
      await engine.close();
    },
  };
}

async function startSocket(path: string, reconnectForMs: number | undefined): Promise<Executor> {
  const session = await SocketSession.open(path, { credentials, reconnectForMs });
  session.onFailure((why) => {
    if (why.reason !== 'closed') fail(why);
  });
  return {
    mapId: null,
    stamps: undefined,
    transferBytesMax: session.transferBytesMax,
    execute: (cancel, op, args, payload) => session.call(op, args, payload, cancel.signal),
    close: () => session.close(),
  };
}

async function call(executor: Executor, { id, op, args, payload }: ToWorker & { kind: 'call' }): Promise<void> {
  const cancel = new Cancel();
  cancels.set(id, cancel);
  try {
    const reply = await executor.execute(cancel, op, args, payload);
    const message: FromWorker = { kind: 'reply', id, result: reply.result, payload: reply.payload };
    tell(message, transferOf(reply.payload, true));
  } catch (error) {
    tell({ kind: 'error', id, error: errorToRecord(FsError.from(error, op)) });
  } finally {
    cancels.delete(id);
  }
}

async function sync(executor: Executor, { op, args, payload, reply }: ToWorker & { kind: 'sync' }): Promise<void> {
  try {
    answerSync(reply, await executor.execute(new Cancel(), op, args, payload));
  } catch (error) {
    answerSync(reply, FsError.from(error, op));
  }
}

async function close(executor: Executor): Promise<void> {
  let error: FsError | undefined;
  try {
    await executor.close();
  } catch (cause) {
    error = FsError.from(cause, 'close');
  }
  stopped = true;
  tell({ kind: 'closed', error: error === undefined ? undefined : errorToRecord(error) });
  answers.flush();
  port.close();
  parentPort?.close();
}

function take(executor: Executor, message: ToWorker): void {
  switch (message.kind) {
    case 'call':
      void call(executor, message);
      break;
    case 'sync':
      void sync(executor, message);
      break;
    case 'notify':
      executor.execute(new Cancel(), message.op, message.args).catch(() => undefined);
      break;
    case 'cancel':
      cancels.get(message.id)?.abort();
      break;
    case 'close':
      void close(executor);
      break;
  }
}

function serve(executor: Executor): void {
  port.on('message', (messages: ToWorker[]) => {
    for (const message of messages) take(executor, message);
  });
  tell({ kind: 'ready', mapId: executor.mapId, stamps: executor.stamps, transferBytesMax: executor.transferBytesMax });
}

process.on('uncaughtExceptionMonitor', (error) => fail(FsError.from(error, 'engine')));
process.on('exit', () => {
  if (!stopped) reportDeath(health, new FsError('internal', { op: 'engine', detail: 'the engine stopped' }));
});

try {
  const executor = await (host.kind === 'engine' ? startEngine(host) : startSocket(host.path, host.reconnectForMs));
  serve(executor);
} catch (error) {
  fail(FsError.from(error, 'connect'));
  port.close();
}
