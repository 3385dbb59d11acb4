import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { type Deferred, deferred } from '../common/deferred.js';
import { errorFromRecord, FsError, type FsErrorRecord } from '../common/errors.js';
import type { Credentials } from '../fs/file-system-api.js';
import { FrameWriter } from './frame-writer.js';
import { FRAME_BYTES_MAX, type Frame, FrameDecoder, FrameKind } from './frames.js';
import { mayRepeat, OPS, type OpArgs, type OpName, type OpResult, type Reply } from './ops.js';
import { closedError, FailureState, type Session } from './session.js';

/**
 * A client's session over a daemon's socket. Durable: when the connection breaks it connects again, with backoff, and goes on
 * with the session the daemon still has; calls in flight are sent again under their numbers and executed once. If the daemon
 * has forgotten the session (it was restarted), handles are opened again by inode and generation, and those that can't be are
 * stale (ESTALE) from then on; calls that may be repeated are, the others fail with connectionLost: whether they happened is not known.
 *
 * Invariants: at most `IN_FLIGHT_MAX` calls are on the wire, the others wait in line; every call ends; the process is kept
 * alive by calls in flight only, never by an idle connection.
 */
export interface SocketSessionOptions {
  readonly credentials?: Credentials | undefined;
  /** How long to try to connect again before everything fails. */
  readonly reconnectForMs?: number | undefined;
}

const SYNCHRONOUS = constants.O_SYNC | constants.O_DSYNC;
const IN_FLIGHT_MAX = 128;
/** Reopens at once after a restart: with the calls in line behind them, fewer than a daemon takes of one client. */
const REOPENS_MAX = 64;
/** So many answers that came before an older call's are acknowledged together. */
const TAKEN_TOGETHER = 64;
const BACKOFF_FIRST_MS = 5;
const BACKOFF_MAX_MS = 1000;
const CONNECT_DEADLINE_MS = 10_000;
/** How long close() waits for calls in flight. */
const CLOSE_DEADLINE_MS = 30_000;

interface Call {
  readonly id: number;
  readonly op: OpName;
  readonly args: OpArgs<OpName>;
  readonly payload: Uint8Array | undefined;
  readonly done: Deferred<Reply>;
  /** It has been on a wire: what it does may have happened. */
  sent: boolean;
  /** The caller gave up; the answer, when it comes, is only tidied up after. */
  abandoned: boolean;
  /** Writes answered before it was asked for: what a sync covers. */
  readonly writesBefore: number;
}

interface DurableHandle {
  readonly handle: number;
  readonly path: string;
  readonly ino: number;
  readonly generation: number;
  readonly flags: number;
  /** The latest write that was answered and not synced since, by its number; 0: none. */
  written: number;
  /** A daemon ended with such writes of it, and nobody has been told yet. */
  lost: boolean;
}

interface Welcome {
  readonly resumed: boolean;
  readonly life: string;
}

const lostError = (op: string, { path }: DurableHandle): FsError => {
  const detail = 'the daemon ended without having written out all that was written to it';
  return new FsError('writesLost', { op, object: path, detail });
};

const handleOf = (args: OpArgs<OpName>): number | undefined => ('handle' in args ? args.handle : undefined);

export function processCredentials(): Credentials {
  const uid = process.geteuid?.() ?? 0;
  const gid = process.getegid?.() ?? 0;
  const realUid = process.getuid?.() ?? uid;
  const realGid = process.getgid?.() ?? gid;
  return {
    uid,
    gid,
    groups: process.getgroups?.() ?? [],
    umask: process.umask(),
    ...(realUid === uid ? {} : { realUid }),
    ...(realGid === gid ? {} : { realGid }),
  };
}

export class SocketSession implements Session {
  readonly map = null;
  /** Room for the header and the JSON beside it. */
  readonly transferBytesMax = FRAME_BYTES_MAX / 2;
  readonly #sessionId = randomBytes(16).toString('hex');
  readonly #credentials: Credentials;
  readonly #reconnectForMs: number;
  readonly #state = new FailureState();
  /** On the wire or to be sent again, by id, ascending. */
  readonly #calls = new Map<number, Call>();
  readonly #waiting: Call[] = [];
  readonly #handles = new Map<number, DurableHandle>();
  /** Those that a restarted daemon could not open again, and why; until they are closed. */
  readonly #stale = new Map<number, FsError>();
  /** Answered while an older call still runs, and not acknowledged yet. */
  #taken: number[] = [];
  #nextId = 1;
  #writes = 0;
  /** The daemon's life that answers, and whether it said at its end that everything written was durable. */
  #life = '';
  #saved = false;
  #socket: Socket | null = null;
  #writer: FrameWriter | null = null;
  /** Welcomed, handles open again: calls may go. */
  #ready = false;
  #everReady = false;
  #closing: Promise<void> | null = null;
  /** Set once nothing is owed any more and the goodbye may be said. */
  #leaving: Deferred<void> | null = null;
  #retryTimer: NodeJS.Timeout | null = null;
  /** How often the connection was made again. */
  reconnects = 0;

  private constructor(
    readonly path: string,
    options: SocketSessionOptions,
  ) {
    this.#credentials = options.credentials ?? processCredentials();
    this.#reconnectForMs = options.reconnectForMs ?? 30_000;
  }

  /** @throws {FsError} unreachable, when nobody listens there; what the daemon says when it refuses. */
  static async open(path: string, options: SocketSessionOptions = {}): Promise<SocketSession> {
    const session = new SocketSession(path, options);
    await session.#connect();
    return session;
  }

  get failure(): FsError | null {
    return this.#state.failure;
  }

  onFailure(listener: (why: FsError) => void): () => void {
    return this.#state.onFailure(listener);
  }

  call<K extends OpName>(op: K, args: OpArgs<K>, payload?: Uint8Array, signal?: AbortSignal): Promise<Reply<K>> {
    if (this.#state.failure !== null) return Promise.reject(this.#state.failure);
    if (this.#closing !== null) return Promise.reject(closedError(op));
    if (signal?.aborted === true) return Promise.reject(new FsError('aborted', { op }));
    const stale = this.#staleness(op, args) ?? this.#loss(op, args);
    if (stale !== null) return Promise.reject(stale);
    const wireArgs = op === 'open' ? { ...args, identify: true } : args;
    const call: Call = {
      id: this.#nextId++,
      op,
      args: wireArgs,
      payload,
      done: deferred<Reply>(),
      sent: false,
      abandoned: false,
      writesBefore: this.#writes,
    };
    if (signal !== undefined) this.#abortable(call, signal);
    if (this.#calls.size >= IN_FLIGHT_MAX) this.#waiting.push(call);
    else this.#start(call);
    return call.done.promise as Promise<Reply<K>>;
  }

  #staleness(op: OpName, args: OpArgs<OpName>): FsError | null {
    const handle = op !== 'close' && op !== 'reopen' ? handleOf(args) : undefined;
    const why = handle === undefined ? undefined : this.#stale.get(handle);
    if (why === undefined) return null;
    const detail = `the daemon was restarted and could not open it again: ${why.detail ?? why.reason}`;
    return new FsError('staleHandle', { op, object: why.object, detail, cause: why });
  }

  /** I10: whoever syncs is told once that something written before is lost. */
  #loss(op: OpName, args: OpArgs<OpName>): FsError | null {
    if (op === 'syncAll') {
      const lost = [...this.#handles.values()].filter((durable) => durable.lost);
      for (const durable of lost) durable.lost = false;
      return lost[0] === undefined ? null : lostError('fsync', lost[0]);
    }
    const handle = op === 'sync' ? handleOf(args) : undefined;
    const durable = handle === undefined ? undefined : this.#handles.get(handle);
    if (!durable?.lost) return null;
    durable.lost = false;
    return lostError('fsync', durable);
  }

  #abortable(call: Call, signal: AbortSignal): void {
    const abort = (): void => {
      call.abandoned = true;
      const at = this.#waiting.indexOf(call);
      if (at >= 0) this.#waiting.splice(at, 1);
      else if (call.sent && this.#ready) this.#writer?.send({ kind: FrameKind.cancel, id: call.id });
      else if (!call.sent) this.#finish(call);
      call.done.reject(new FsError('aborted', { op: call.op }));
    };
    signal.addEventListener('abort', abort, { once: true });
    const forget = (): void => signal.removeEventListener('abort', abort);
    call.done.promise.then(forget, forget);
  }

  callSync<K extends OpName>(op: K, _args: OpArgs<K>, _replyBytesMax: number, _payload?: Uint8Array): Reply<K> {
    const detail = 'this client talks to its daemon from this very thread; connect({ socket }) gives one that can wait';
    throw this.#state.failure ?? new FsError('notSupported', { op, detail });
  }

  notify<K extends OpName>(op: K, args: OpArgs<K>): void {
    if (this.#ready) this.call(op, args).catch(() => undefined);
  }

  #start(call: Call): void {
    this.#calls.set(call.id, call);
    if (this.#calls.size === 1) {
      this.#socket?.ref();
      this.#retryTimer?.ref();
    }
    if (this.#ready) this.#send(call);
  }

  #send(call: Call): void {
    try {
      const ack = this.#calls.keys().next().value ?? call.id;
      const { id, args, payload } = call;
      call.sent = true;
      this.#writer?.send({ kind: FrameKind.call, id, op: OPS[call.op].number, ack, json: args, payload });
    } catch (error) {
      this.#finish(call);
      call.done.reject(FsError.from(error, call.op));
    }
  }

  /** The call is off the wire; the next in line takes its place. */
  #finish(call: Call): void {
    this.#calls.delete(call.id);
    this.#startWaiting();
    if (this.#calls.size === 0) {
      this.#socket?.unref();
      this.#retryTimer?.unref();
    }
  }

  #startWaiting(): void {
    while (this.#waiting.length > 0 && this.#calls.size < IN_FLIGHT_MAX) this.#start(this.#waiting.shift()!);
  }

  /** With each call goes the number of the oldest that is not answered; what overtook that one is told of here. */
  #acknowledge(id: number): void {
    const oldest = this.#calls.keys().next().value;
    if (oldest === undefined || oldest > id) return;
    this.#taken.push(id);
    if (this.#taken.length < TAKEN_TOGETHER || !this.#ready) return;
    this.#writer?.send({ kind: FrameKind.taken, id: 0, json: this.#taken });
    this.#taken = [];
  }

  #frame(frame: Frame): void {
    if (frame.kind === FrameKind.goodbye) {
      if (this.#leaving !== null) return;
      throw errorFromRecord(frame.json as FsErrorRecord);
    }
    if (frame.kind === FrameKind.saved) {
      this.#saved = true;
      return;
    }
    const call = this.#calls.get(frame.id);
    if (call === undefined) return;
    if (frame.kind === FrameKind.error) {
      this.#finish(call);
      this.#acknowledge(call.id);
      call.done.reject(errorFromRecord(frame.json as FsErrorRecord));
    } else if (frame.kind === FrameKind.reply && typeof frame.json === 'object' && frame.json !== null) {
      const loss = this.#track(call, frame.json);
      this.#finish(call);
      this.#acknowledge(call.id);
      if (loss !== null) call.done.reject(loss);
      else call.done.resolve({ result: frame.json as OpResult<OpName>, payload: frame.payload });
    } else throw new FsError('badFrame', { op: 'frame', detail: `a daemon sends no frame of kind ${frame.kind}` });
  }

  /** What the session has to remember of an answer. @returns why it is an error all the same. */
  #track(call: Call, result: object): FsError | null {
    const { op } = call;
    if (op === 'open') {
      const { handle, ino, generation, flags } = result as OpResult<'open'>;
      const { path } = call.args as OpArgs<'open'>;
      // Nobody will ever close it otherwise.
      if (call.abandoned) this.call('close', { handle }).catch(() => undefined);
      else this.#handles.set(handle, { handle, ino, generation, flags, path, written: 0, lost: false });
    } else if (op === 'close') {
      const { handle } = call.args as OpArgs<'close'>;
      const durable = this.#handles.get(handle);
      this.#handles.delete(handle);
      this.#stale.delete(handle);
      if (durable?.lost) return lostError('close', durable);
    } else if (op === 'write' || op === 'truncateHandle') {
      const durable = this.#handles.get((call.args as OpArgs<'write' | 'truncateHandle'>).handle);
      const durableAtOnce = op === 'write' && durable !== undefined && (durable.flags & SYNCHRONOUS) !== 0;
      if (durable !== undefined && !durableAtOnce) durable.written = ++this.#writes;
    } else if (op === 'sync' || op === 'syncAll') {
      const of = op === 'sync' ? (call.args as OpArgs<'sync'>).handle : null;
      for (const durable of this.#handles.values())
        if ((of === null || durable.handle === of) && durable.written <= call.writesBefore) durable.written = 0;
    }
    return null;
  }

  /** Connects, says hello, waits for the welcome, brings handles back, sends what is owed. */
  async #connect(): Promise<void> {
    const socket = connect(this.path);
    this.#socket = socket;
    const writer = new FrameWriter(socket);
    const decoder = new FrameDecoder();
    const welcome = deferred<Welcome>();
    const deadline = setTimeout(() => socket.destroy(), CONNECT_DEADLINE_MS);
    deadline.unref();
    let fault: FsError | null = null;
    socket.on('connect', () => {
      const ack = this.#calls.keys().next().value ?? this.#nextId;
      const hello = { session: this.#sessionId, resume: this.#everReady, credentials: this.#credentials };
      writer.send({ kind: FrameKind.hello, id: 0, ack, json: hello });
    });
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const frame of decoder.push(chunk))
          if (frame.kind === FrameKind.welcome) welcome.resolve(frame.json as Welcome);
          else this.#frame(frame);
      } catch (error) {
        fault = FsError.from(error, 'frame');
        socket.destroy();
      }
    });
    socket.on('error', (cause) => {
      fault ??= new FsError('unreachable', { op: 'connect', object: this.path, detail: cause.message, cause });
    });
    socket.on('close', () => {
      clearTimeout(deadline);
      const why = fault ?? new FsError('connectionLost', { op: 'connect', object: this.path });
      welcome.reject(why);
      if (this.#socket === socket) this.#broken(why);
    });
    if (this.#everReady && this.#calls.size === 0) socket.unref();
    const { resumed, life } = await welcome.promise;
    clearTimeout(deadline);
    this.#writer = writer;
    this.#noteLife(life);
    if (!resumed && this.#everReady) await this.#restore();
    if (this.#socket !== socket) throw new FsError('connectionLost', { op: 'connect', object: this.path });
    if (this.#calls.size === 0) socket.unref();
    this.#everReady = true;
    this.#ready = true;
    for (const call of [...this.#calls.values()]) {
      this.#send(call);
      if (call.abandoned) writer.send({ kind: FrameKind.cancel, id: call.id });
    }
  }

  /** Another daemon: what its predecessor had not written out when it ended is lost, and the handles concerned will say so. */
  #noteLife(life: string): void {
    if (life === this.#life) return;
    for (const durable of this.#handles.values()) {
      durable.lost ||= durable.written > 0 && !this.#saved;
      durable.written = 0;
    }
    this.#life = life;
    this.#saved = false;
    // Those that have been asked for meanwhile would find nothing to sync.
    for (const call of [...this.#calls.values(), ...this.#waiting]) {
      const loss = this.#loss(call.op, call.args);
      if (loss !== null) this.#dropCall(call, loss);
    }
  }

  #dropCall(call: Call, why: FsError | null): void {
    const at = this.#waiting.indexOf(call);
    if (at >= 0) this.#waiting.splice(at, 1);
    else this.#finish(call);
    call.done.reject(why);
  }

  /** The daemon doesn't know us: what can't be repeated fails, handles are opened again under their numbers. */
  async #restore(): Promise<void> {
    for (const call of [...this.#calls.values()])
      if (call.abandoned) this.#finish(call);
      else if (call.sent && !mayRepeat(call.op, call.args)) {
        this.#finish(call);
        const detail = 'the daemon was restarted while this ran; whether it was done is not known';
        call.done.reject(new FsError('connectionLost', { op: call.op, detail }));
      }
    const handles = this.#handles.values();
    const giveUpAt = performance.now() + this.#reconnectForMs;
    const lane = async (): Promise<void> => {
      for (const durable of handles) await this.#reopen(durable, giveUpAt);
    };
    await Promise.all(Array.from({ length: REOPENS_MAX }, lane));
  }

  /** Until it is open, or can't be: what the daemon needs for it may still be starting too. */
  async #reopen(durable: DurableHandle, giveUpAt: number): Promise<void> {
    const writer = this.#writer;
    let backoffMs = BACKOFF_FIRST_MS;
    // After a break the next connection starts all over.
    while (writer !== null && this.#writer === writer && !writer.socket.destroyed) {
      const refused = await this.#askReopen(durable);
      if (refused === null || this.#writer !== writer || writer.socket.destroyed) return;
      if (refused.retry !== 'same' || performance.now() >= giveUpAt) {
        // Calls on this handle fail; the others go on.
        this.#giveUp(durable, refused);
        return;
      }
      await new Promise<void>((resolve) => setTimeout(resolve, backoffMs).unref());
      backoffMs = Math.min(backoffMs * 2, BACKOFF_MAX_MS);
    }
  }

  async #askReopen({ handle, path, ino, generation, flags }: DurableHandle): Promise<FsError | null> {
    const call: Call = {
      id: this.#nextId++,
      op: 'reopen',
      args: { handle, path, ino, generation, flags },
      payload: undefined,
      done: deferred<Reply>(),
      sent: false,
      abandoned: false,
      writesBefore: this.#writes,
    };
    this.#calls.set(call.id, call);
    this.#send(call);
    try {
      await call.done.promise;
      return null;
    } catch (error) {
      return FsError.from(error, 'reopen');
    }
  }

  #giveUp({ handle }: DurableHandle, why: FsError): void {
    this.#handles.delete(handle);
    this.#stale.set(handle, why);
    const doomed = [...this.#calls.values(), ...this.#waiting].filter((call) => this.#staleness(call.op, call.args));
    for (const call of doomed) this.#dropCall(call, this.#staleness(call.op, call.args));
  }

  /** The connection is gone, by whoever's doing. */
  #broken(why: FsError): void {
    this.#ready = false;
    this.#socket = null;
    this.#writer = null;
    // Half-done reopens are started over with the next connection.
    for (const call of [...this.#calls.values()])
      if (call.op === 'reopen') {
        this.#calls.delete(call.id);
        call.done.reject(why);
      }
    this.#startWaiting();
    this.#leaving?.resolve();
    if (!this.#everReady || this.#leaving !== null || this.#state.failure !== null || this.#retryTimer !== null) return;
    const giveUpAt = performance.now() + this.#reconnectForMs;
    void this.#retry(giveUpAt, BACKOFF_FIRST_MS, why);
  }

  async #retry(giveUpAt: number, backoffMs: number, why: FsError): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#retryTimer = setTimeout(resolve, backoffMs * (0.5 + Math.random()));
      if (this.#calls.size === 0) this.#retryTimer.unref();
    });
    if (this.#leaving !== null) return;
    try {
      await this.#connect();
      this.#retryTimer = null;
      this.reconnects++;
      // It may have broken while #retryTimer still said that we are at it.
      if (this.#socket === null) this.#broken(why);
    } catch (error) {
      const last = FsError.from(error, 'connect');
      if (last.retry !== 'same' || performance.now() >= giveUpAt) this.#fail(last);
      else await this.#retry(giveUpAt, Math.min(backoffMs * 2, BACKOFF_MAX_MS), why);
    }
  }

  #fail(cause: FsError): void {
    const detail = `no connection to the daemon any more: ${cause.message}`;
    const why = new FsError('connectionLost', { op: 'connect', object: this.path, detail, cause });
    this.#retryTimer = null;
    this.#state.fail(why);
    for (const call of [...this.#calls.values(), ...this.#waiting.splice(0)]) call.done.reject(why);
    this.#calls.clear();
    this.#handles.clear();
    this.#stale.clear();
  }

  /** Lets calls in flight end, then closes the daemon's session with all its handles. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const running = [...this.#calls.values(), ...this.#waiting].map((call) => call.done.promise);
    const late = deferred<void>();
    const timer = setTimeout(() => late.resolve(), CLOSE_DEADLINE_MS);
    await Promise.race([Promise.allSettled(running), late.promise]);
    clearTimeout(timer);
    this.#leaving = deferred<void>();
    for (const call of [...this.#calls.values(), ...this.#waiting.splice(0)]) call.done.reject(closedError(call.op));
    this.#state.fail(closedError('call'));
    if (this.#retryTimer !== null) clearTimeout(this.#retryTimer);
    const socket = this.#socket;
    if (socket === null || !this.#ready) {
      socket?.destroy();
      return;
    }
    socket.ref();
    const deadline = setTimeout(() => socket.destroy(), CONNECT_DEADLINE_MS);
    this.#writer?.send({ kind: FrameKind.goodbye, id: 0 });
    await this.#leaving.promise;
    clearTimeout(deadline);
  }
}
