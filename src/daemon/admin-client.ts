import { connect, type Socket } from 'node:net';
import { z } from 'zod';
import { type Deferred, deferred } from '../common/deferred.js';
import { errorFromRecord, FsError, reasonNumber } from '../common/errors.js';
import type { AdminMethod, AdminParams, AdminResults } from './admin-api.js';
import { ADMIN_REPLY_BYTES_MAX, AdminFrames, encodeAdminFrame } from './admin-wire.js';

/**
 * A tool's side of the admin socket. Fault model: the daemon may not be there, stop, or die in the middle: every call ends,
 * with an answer, the daemon's own error, or `unreachable` / `connectionLost` / `deadlinePassed`.
 */
const CONNECT_TIMEOUT_MS = 5000;
const CALL_TIMEOUT_MS = 120_000;

const replySchema = z.union([
  z.object({
    id: z.number(),
    error: z.object({
      reason: z.number(),
      op: z.string(),
      object: z.string().optional(),
      detail: z.string().optional(),
    }),
  }),
  z.object({ id: z.number(), result: z.unknown() }),
]);

export class AdminClient {
  readonly #waiting = new Map<number, { readonly done: Deferred<unknown>; readonly timer: NodeJS.Timeout }>();
  readonly #frames = new AdminFrames(ADMIN_REPLY_BYTES_MAX);
  #nextId = 1;

  private constructor(
    readonly path: string,
    readonly socket: Socket,
  ) {
    socket.on('data', (piece: Buffer) => this.#data(piece));
    socket.on('error', () => undefined);
    socket.once('close', () => this.#end(new FsError('connectionLost', { op: 'admin', object: path })));
  }

  /** @throws {FsError} unreachable. */
  static async connect(path: string): Promise<AdminClient> {
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => socket.destroy(new Error('no answer')), CONNECT_TIMEOUT_MS);
      socket.once('connect', () => {
        clearTimeout(timer);
        resolve();
      });
      socket.once('error', (cause) => {
        clearTimeout(timer);
        reject(new FsError('unreachable', { op: 'connect', object: path, detail: 'no daemon listens there', cause }));
      });
    });
    return new AdminClient(path, socket);
  }

  async call<M extends AdminMethod>(
    method: M,
    params: AdminParams<M>,
    timeoutMs = CALL_TIMEOUT_MS,
  ): Promise<AdminResults[M]> {
    if (this.socket.destroyed) throw new FsError('connectionLost', { op: method, object: this.path });
    const id = this.#nextId++;
    const done = deferred<unknown>();
    const timer = setTimeout(
      () => this.#settle(id, (call) => call.reject(new FsError('deadlinePassed', { op: method, object: this.path }))),
      timeoutMs,
    );
    this.#waiting.set(id, { done, timer });
    this.socket.write(encodeAdminFrame({ id, method, params }));
    return (await done.promise) as AdminResults[M];
  }

  close(): void {
    this.socket.destroy();
  }

  #data(piece: Buffer): void {
    try {
      for (const value of this.#frames.push(piece)) {
        const reply = replySchema.parse(value);
        if ('error' in reply) {
          const { reason, op, object, detail } = reply.error;
          const record = {
            reason,
            op,
            ...(object === undefined ? {} : { object }),
            ...(detail === undefined ? {} : { detail }),
          };
          this.#settle(reply.id, (call) => call.reject(errorFromRecord(record)));
        } else this.#settle(reply.id, (call) => call.resolve(reply.result));
      }
    } catch (error) {
      this.#end(FsError.is(error) ? error : new FsError('badFrame', { op: 'admin', object: this.path, cause: error }));
      this.socket.destroy();
    }
  }

  #settle(id: number, settle: (done: Deferred<unknown>) => void): void {
    const call = this.#waiting.get(id);
    if (call === undefined) return;
    this.#waiting.delete(id);
    clearTimeout(call.timer);
    settle(call.done);
  }

  #end(why: FsError): void {
    for (const id of [...this.#waiting.keys()]) this.#settle(id, (call) => call.reject(why));
  }
}

/** Whether an error says that there is no daemon to talk to. */
export const isUnreachable = (error: unknown): boolean =>
  FsError.is(error) &&
  [reasonNumber('unreachable'), reasonNumber('connectionLost')].includes(reasonNumber(error.reason));
