import { chmodSync, rmSync, statSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { z } from 'zod';
import type { Counters } from '../common/counters.js';
import { errorToRecord, FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import { ADMIN_METHODS, type AdminApi, type AdminMethod } from './admin-api.js';
import { ADMIN_REQUEST_BYTES_MAX, AdminFrames, type AdminReply, encodeAdminFrame } from './admin-wire.js';

/**
 * Serves admin calls on a unix socket that only the daemon's owner may open (mode 0600).
 *
 * Invariants: every request is answered, in any order, under its id; a connection has a bounded number of calls running and is
 * not read from while it is full. Fault model: whoever connects may send anything: what doesn't parse ends that connection and is counted.
 */
export interface AdminServer {
  readonly path: string;
  close(): Promise<void>;
}

const CALLS_MAX = 64;
/** Each has a descriptor, and devices and nodes need some too. Beyond, a connection is closed at once. */
const CONNECTIONS_MAX = 256;
const requestSchema = z.object({ id: z.int().min(0), method: z.string(), params: z.unknown() });

export async function serveAdmin(
  path: string,
  api: AdminApi,
  parts: { readonly logger: Logger; readonly counters: Counters; readonly connectionsMax?: number },
): Promise<AdminServer> {
  await clearStaleSocket(path);
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    serveConnection(socket, api, parts);
  });
  server.maxConnections = parts.connectionsMax ?? CONNECTIONS_MAX;
  server.on('drop', () => parts.counters.add('admin.tooManyConnections'));
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
  chmodSync(path, 0o600);
  return {
    path,
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

function serveConnection(
  socket: Socket,
  api: AdminApi,
  { logger, counters }: { readonly logger: Logger; readonly counters: Counters },
): void {
  const frames = new AdminFrames(ADMIN_REQUEST_BYTES_MAX);
  let running = 0;
  const gone = new AbortController();
  socket.once('close', () => gone.abort());
  const answer = (reply: AdminReply): void => {
    if (!socket.destroyed) socket.write(encodeAdminFrame(reply));
  };
  const refuse = (error: unknown): void => {
    counters.add('admin.badFrames');
    logger.warn({ error: String(error) }, 'admin connection ended: what it sent is no request');
    socket.destroy();
  };
  const take = (value: unknown): void => {
    const request = requestSchema.safeParse(value);
    if (!request.success) {
      refuse('not a request');
      return;
    }
    const { id, method, params } = request.data;
    counters.add('admin.calls');
    if (++running >= CALLS_MAX) socket.pause();
    execute(api, method, params, gone.signal)
      .then(
        (result) => answer({ id, result }),
        (error: unknown) => answer({ id, error: errorToRecord(FsError.from(error, method)) }),
      )
      .finally(() => {
        if (running-- === CALLS_MAX) socket.resume();
      });
  };
  socket.on('error', () => socket.destroy());
  socket.on('data', (piece: Buffer) => {
    try {
      for (const value of frames.push(piece)) if (!socket.destroyed) take(value);
    } catch (error) {
      refuse(error);
    }
  });
}

async function execute(api: AdminApi, method: string, params: unknown, signal: AbortSignal): Promise<unknown> {
  if (!Object.hasOwn(ADMIN_METHODS, method)) throw new FsError('notSupported', { op: 'admin', object: method });
  const known = method as AdminMethod;
  const checked = ADMIN_METHODS[known].safeParse(params ?? {});
  if (!checked.success) {
    const issue = checked.error.issues[0]!;
    throw new FsError('invalidArgument', { op: method, object: issue.path.join('.'), detail: issue.message });
  }
  return api.call(known, checked.data, signal);
}

/** A socket file that nobody listens on any more is removed; one that answers stays. @throws {FsError} identityTaken, exists. */
export async function clearStaleSocket(path: string): Promise<void> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (!stat.isSocket())
    throw new FsError('exists', { op: 'listen', object: path, detail: 'there is a file, and no socket' });
  const answers = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (answers)
    throw new FsError('identityTaken', { op: 'listen', object: path, detail: 'a daemon listens there already' });
  rmSync(path, { force: true });
}
