import { randomBytes, timingSafeEqual } from 'node:crypto';
import { chmod, lstat, unlink } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { isMainThread } from 'node:worker_threads';
import { z } from 'zod';
import { Counters } from '../common/counters.js';
import { errorToRecord, FsError } from '../common/errors.js';
import { type Logger, silentLogger } from '../common/logger.js';
import type { Credentials, FileSystem } from '../fs/file-system-api.js';
import { Cancel } from './cancel.js';
import { Dispatcher, type DispatcherLimits, type DispatcherSession } from './dispatcher.js';
import { FrameWriter } from './frame-writer.js';
import { FRAME_BYTES_MAX, FRAME_HEADER_BYTES, type Frame, FrameDecoder, FrameKind } from './frames.js';
import { OP_SCHEMAS } from './op-schemas.js';
import { mustKeep, type OpArgs, type OpName, opFromNumber } from './ops.js';
import { type Outcome, ReplyCache } from './reply-cache.js';

/**
 * A daemon's socket for proxied clients: a listening unix socket (mode 0600), and for each client a session that outlives its
 * connection for a while, so that handles are durable and a call that was under way is executed once.
 *
 * Invariants: a session has at most one connection, the newest; every call that was started is answered to the connection that
 * is there when it ends, or kept for the next. Fault model: whoever connects may send anything; the first bad frame ends the
 * connection (counted), never the session of somebody else, never the process. A session's id is random and its secret.
 */
export interface ServeOptions {
  readonly logger?: Logger;
  readonly counters?: Counters;
  /** What clients get from the op `counters`. */
  readonly report?: () => Record<string, number>;
  /** Decides who a client is from what it claims; the default believes it: whoever can open the socket is its owner or root. */
  readonly authorize?: (claimed: Credentials) => Credentials;
  /** How long a session waits for its client to return. */
  readonly sessionGraceMs?: number;
  /** From connecting to the hello, and from the first byte of a frame to its last. */
  readonly frameDeadlineMs?: number;
  readonly sessionsMax?: number;
  /** Of them that have not said hello yet are some; what comes beyond is closed at once. Twice `sessionsMax`. */
  readonly connectionsMax?: number;
  readonly inFlightMax?: number;
}

export interface SocketServer {
  readonly path: string;
  readonly counters: Counters;
  readonly dispatcher: Dispatcher;
  close(): Promise<void>;
}

/** Above this, of requests being executed or answers not yet taken, a connection is not read from. */
const BUFFERED_BYTES_MAX = 64 << 20;
/** What a client gets to take in the last frame. */
const LAST_WORDS_MS = 1000;

const helloSchema = z.strictObject({
  session: z.string().regex(/^[0-9a-f]{32}$/),
  resume: z.boolean(),
  credentials: z.strictObject({
    uid: z.int().min(0).max(0xfffffffe),
    gid: z.int().min(0).max(0xfffffffe),
    groups: z.array(z.int().min(0).max(0xfffffffe)).max(65_536),
    umask: z.int().min(0).max(0o777),
    realUid: z.int().min(0).max(0xfffffffe).optional(),
    realGid: z.int().min(0).max(0xfffffffe).optional(),
  }),
});

const takenSchema = z.array(z.int().min(0)).max(4096);

interface DurableSession {
  readonly id: Buffer;
  readonly session: DispatcherSession;
  readonly replies: ReplyCache;
  readonly cancels: Map<number, Cancel>;
  connection: Connection | null;
  expiry: NodeJS.Timeout | null;
}

class SocketService {
  readonly sessions = new Map<string, DurableSession>();
  readonly connections = new Set<Connection>();
  closing = false;
  /** Of this daemon: a client that finds another one knows that what the last one had not written is lost. */
  readonly life = randomBytes(16).toString('hex');

  constructor(
    readonly dispatcher: Dispatcher,
    readonly counters: Counters,
    readonly options: Required<Omit<ServeOptions, 'counters' | 'report' | 'connectionsMax'>>,
  ) {}

  /** The session that the hello means: the one it had, or a new one. */
  attach(hello: z.infer<typeof helloSchema>, connection: Connection): { session: DurableSession; resumed: boolean } {
    const known = this.sessions.get(hello.session);
    const id = Buffer.from(hello.session, 'hex');
    if (known !== undefined) {
      if (!hello.resume || !timingSafeEqual(known.id, id))
        throw new FsError('identityTaken', { op: 'hello', detail: 'the session is in use' });
      if (known.expiry !== null) clearTimeout(known.expiry);
      known.expiry = null;
      // The client knows better than we do that the old connection is gone.
      known.connection?.drop();
      known.connection = connection;
      this.counters.add('socket.sessionsResumed');
      return { session: known, resumed: true };
    }
    if (this.sessions.size >= this.options.sessionsMax)
      throw new FsError('queueFull', { op: 'hello', detail: `${this.options.sessionsMax} sessions are open` });
    const session: DurableSession = {
      id,
      session: this.dispatcher.openSession(this.options.authorize(hello.credentials)),
      replies: new ReplyCache(this.options.inFlightMax * 2),
      cancels: new Map(),
      connection,
      expiry: null,
    };
    this.sessions.set(hello.session, session);
    this.counters.add('socket.sessions');
    return { session, resumed: false };
  }

  /** The connection broke: the session waits for its client. */
  detach(durable: DurableSession, connection: Connection): void {
    if (durable.connection !== connection) return;
    durable.connection = null;
    if (this.closing) return;
    durable.expiry = setTimeout(() => {
      this.counters.add('socket.sessionsExpired');
      void this.end(durable);
    }, this.options.sessionGraceMs);
    durable.expiry.unref();
  }

  async end(durable: DurableSession): Promise<void> {
    if (durable.expiry !== null) clearTimeout(durable.expiry);
    this.sessions.delete(durable.id.toString('hex'));
    await durable.session.end();
  }

  /** What clients wrote is made durable, and they are told so: the next daemon can't know what this one had promised. */
  async close(): Promise<void> {
    this.closing = true;
    for (const connection of this.connections) connection.hush();
    await Promise.all(
      [...this.sessions.values()].map(async (durable) => {
        const { connection } = durable;
        // What is under way is given up, and not answered: it may have happened.
        durable.connection = null;
        if (durable.expiry !== null) clearTimeout(durable.expiry);
        this.sessions.delete(durable.id.toString('hex'));
        if (await durable.session.endSaved()) connection?.tellSaved();
      }),
    );
    await Promise.all([...this.connections].map((connection) => connection.end()));
  }
}

class Connection {
  readonly #decoder = new FrameDecoder();
  readonly #writer: FrameWriter;
  #durable: DurableSession | null = null;
  #deadline: NodeJS.Timeout | null = null;
  #busyBytes = 0;

  constructor(
    readonly service: SocketService,
    readonly socket: Socket,
  ) {
    this.#writer = new FrameWriter(socket);
    this.#watch(true);
    socket.on('data', (chunk: Buffer) => this.#data(chunk));
    socket.on('drain', () => this.#flow());
    socket.on('error', () => service.counters.add('socket.connectionErrors'));
    socket.on('close', () => {
      this.#watch(false);
      service.connections.delete(this);
      if (this.#durable !== null) service.detach(this.#durable, this);
    });
  }

  drop(): void {
    this.socket.destroy();
  }

  /** Nothing more is taken in. */
  hush(): void {
    this.#watch(false);
    this.socket.pause();
    this.socket.removeAllListeners('data');
  }
  tellSaved(): void {
    this.#writer.send({ kind: FrameKind.saved, id: 0 });
  }
  /** What was said is sent, if the client takes it in soon. */
  async end(): Promise<void> {
    const { socket } = this;
    if (socket.destroyed) return;
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    const deadline = setTimeout(() => socket.destroy(), LAST_WORDS_MS);
    socket.end(() => socket.destroy());
    await closed;
    clearTimeout(deadline);
  }

  /** A connection that starts something must finish it in time. */
  #watch(on: boolean): void {
    if (!on) {
      if (this.#deadline !== null) clearTimeout(this.#deadline);
      this.#deadline = null;
    } else if (this.#deadline === null) {
      const { frameDeadlineMs } = this.service.options;
      this.#deadline = setTimeout(() => {
        const detail = `a frame or hello took longer than ${frameDeadlineMs} ms`;
        this.#refuse(new FsError('deadlinePassed', { op: 'frame', detail }));
      }, frameDeadlineMs);
      this.#deadline.unref();
    }
  }

  #data(chunk: Buffer): void {
    try {
      for (const frame of this.#decoder.push(chunk)) {
        this.#watch(false);
        this.#frame(frame);
      }
      if (this.#durable !== null) this.#watch(this.#decoder.inFrame && !this.socket.isPaused());
    } catch (error) {
      this.#refuse(FsError.from(error, 'frame'));
    }
  }

  /** The peer can't be understood: it is told why, and the connection ends. */
  #refuse(why: FsError): void {
    const { counters, options } = this.service;
    counters.add('socket.refusedConnections');
    counters.add(`socket.refused.${why.reason}`);
    options.logger.warn({ reason: why.reason, detail: why.detail }, 'client connection refused');
    if (this.socket.destroyed) return;
    this.#writer.send({ kind: FrameKind.goodbye, id: 0, json: errorToRecord(why) });
    this.socket.pause();
    this.socket.removeAllListeners('data');
    this.socket.end(() => this.socket.destroy());
  }

  #frame(frame: Frame): void {
    const durable = this.#durable;
    if (durable === null) {
      this.#hello(frame);
      return;
    }
    switch (frame.kind) {
      case FrameKind.call:
        this.#call(durable, frame);
        return;
      case FrameKind.cancel:
        durable.cancels.get(frame.id)?.abort();
        return;
      case FrameKind.taken: {
        const ids = takenSchema.safeParse(frame.json);
        if (!ids.success) throw new FsError('badFrame', { op: 'frame', detail: z.prettifyError(ids.error) });
        durable.replies.taken(ids.data);
        return;
      }
      case FrameKind.goodbye:
        this.#durable = null;
        void this.service.end(durable).then(() => {
          this.#writer.send({ kind: FrameKind.goodbye, id: 0 });
          this.socket.end();
        });
        return;
      default:
        throw new FsError('badFrame', { op: 'frame', detail: `a client sends no frame of kind ${frame.kind}` });
    }
  }

  #hello(frame: Frame): void {
    if (frame.kind !== FrameKind.hello) throw new FsError('badFrame', { op: 'hello', detail: 'hello comes first' });
    const parsed = helloSchema.safeParse(frame.json);
    if (!parsed.success) throw new FsError('badFrame', { op: 'hello', detail: z.prettifyError(parsed.error) });
    const { session, resumed } = this.service.attach(parsed.data, this);
    this.#durable = session;
    session.replies.acknowledge(frame.ack);
    this.#writer.send({ kind: FrameKind.welcome, id: 0, json: { resumed, life: this.service.life } });
  }

  #call(durable: DurableSession, frame: Frame): void {
    const op = opFromNumber(frame.op);
    if (op === undefined) throw new FsError('badFrame', { op: 'call', detail: `no operation ${frame.op}` });
    durable.replies.acknowledge(frame.ack);
    const checked = OP_SCHEMAS[op].safeParse(frame.json ?? {});
    if (!checked.success) {
      this.service.counters.add('socket.refusedArguments');
      const detail = z.prettifyError(checked.error);
      this.#answer(durable, frame.id, { error: errorToRecord(new FsError('invalidArgument', { op, detail })) });
      return;
    }
    this.#busyBytes += frame.payload.length;
    this.#flow();
    void this.#execute(durable, frame.id, op, checked.data, frame.payload).then((outcome) => {
      this.#busyBytes -= frame.payload.length;
      this.#flow();
      this.#answer(durable, frame.id, outcome);
    });
  }

  async #execute<K extends OpName>(
    durable: DurableSession,
    id: number,
    op: K,
    args: OpArgs<K>,
    payload: Uint8Array,
  ): Promise<Outcome> {
    try {
      return await durable.replies.run(id, op, mustKeep(op, args), async () => {
        const cancel = new Cancel();
        durable.cancels.set(id, cancel);
        try {
          return { reply: await durable.session.executeUntil(cancel, op, args, payload) };
        } catch (error) {
          return { error: errorToRecord(FsError.from(error, op)) };
        } finally {
          durable.cancels.delete(id);
        }
      });
    } catch (error) {
      return { error: errorToRecord(FsError.from(error, op)) };
    }
  }

  /** To whatever connection the session has by now. Without one the client asks again after its return. */
  #answer(durable: DurableSession, id: number, outcome: Outcome): void {
    const connection = durable.connection;
    if (connection === null) return;
    try {
      if ('error' in outcome) connection.#writer.send({ kind: FrameKind.error, id, json: outcome.error });
      else {
        const { result, payload } = outcome.reply;
        connection.#writer.send({ kind: FrameKind.reply, id, json: result, payload });
      }
    } catch (error) {
      connection.#writer.send({ kind: FrameKind.error, id, json: errorToRecord(FsError.from(error, 'reply')) });
    }
    connection.#flow();
  }

  /** Back-pressure: what the client sends faster than it is done waits in its own socket. */
  #flow(): void {
    const full = this.#busyBytes > BUFFERED_BYTES_MAX || this.socket.writableLength > BUFFERED_BYTES_MAX;
    if (full && !this.socket.isPaused()) {
      this.service.counters.add('socket.backPressure');
      this.socket.pause();
      // What is not read can't arrive: the rest of a frame is late for our own sake.
      this.#watch(false);
    } else if (!full && this.socket.isPaused() && this.socket.listenerCount('data') > 0) {
      this.socket.resume();
      this.#watch(this.#decoder.inFrame);
    }
  }
}

/** A file left by a daemon that died is in the way; a living daemon's is not ours to take. */
async function clearStale(path: string): Promise<void> {
  try {
    if (!(await lstat(path)).isSocket())
      throw new FsError('exists', { op: 'listen', object: path, detail: 'there is something else than a socket' });
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
    throw error;
  }
  const alive = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (alive) throw new FsError('identityTaken', { op: 'listen', object: path, detail: 'a daemon listens there' });
  await unlink(path);
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    // Bound under a mask that leaves nobody else a moment in which to connect.
    const previous = isMainThread ? process.umask(0o177) : undefined;
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
    if (previous !== undefined) process.umask(previous);
  });
}

/** Serves the file system on a unix socket until closed. */
export async function serveSocket(
  path: string,
  fileSystem: FileSystem,
  options: ServeOptions = {},
): Promise<SocketServer> {
  const counters = options.counters ?? new Counters();
  const inFlightMax = options.inFlightMax ?? 256;
  const limits: DispatcherLimits = {
    inFlightMax,
    handlesMax: 65_536,
    readBytesMax: FRAME_BYTES_MAX - FRAME_HEADER_BYTES - 1024,
  };
  const dispatcher = new Dispatcher(fileSystem, counters, limits, options.report);
  const sessionsMax = options.sessionsMax ?? 1024;
  const service = new SocketService(dispatcher, counters, {
    logger: options.logger ?? silentLogger,
    authorize: options.authorize ?? ((claimed) => claimed),
    sessionGraceMs: options.sessionGraceMs ?? 30_000,
    frameDeadlineMs: options.frameDeadlineMs ?? 30_000,
    sessionsMax,
    inFlightMax,
  });
  await clearStale(path);
  const server = createServer((socket) => {
    counters.add('socket.connections');
    service.connections.add(new Connection(service, socket));
  });
  // Each has a descriptor, and devices and nodes need some too.
  server.maxConnections = options.connectionsMax ?? 2 * sessionsMax;
  server.on('drop', () => counters.add('socket.tooManyConnections'));
  await listen(server, path);
  await chmod(path, 0o600);
  return {
    path,
    counters,
    dispatcher,
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      await service.close();
      await closed;
    },
  };
}
