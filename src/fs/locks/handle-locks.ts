/**
 * Locks through one open file: whose they are, what the handle must be open for, and what goes with it when it closes.
 *
 * fcntl's locks belong to a process, and go when any of its handles of the file closes (POSIX says so); those of a handle (open file
 * descriptions), and flock's, go with the handle. Closing ends what still waits through it.
 */
import { setMaxListeners } from 'node:events';
import type { ByteRange } from '../../common/byte-range.js';
import { FsError } from '../../common/errors.js';
import type { InodeNumber } from '../../common/ids.js';
import type { LockClientApi, LockOptions, LockWanted } from '../../token-manager/locks/lock-client-api.js';
import { LOCK_END, type LockOwner, LockSpace, LockType } from '../../token-manager/locks/lock-table.js';
import type { FileLock, FileLocking, LockRequest } from '../file-system-api.js';

const WHOLE_FILE: ByteRange = { start: 0, end: LOCK_END };

export class HandleLocks implements FileLocking {
  readonly #locks: LockClientApi;
  readonly #ino: InodeNumber;
  readonly #access: { readonly readable: boolean; readonly writable: boolean };
  #handle: LockOwner | null = null;
  /** Processes that have locked through this handle. */
  readonly #processes = new Set<LockOwner>();
  /** Made for the first lock: most handles have none. */
  #closing: AbortController | null = null;
  /** Something may have to be given up at close. */
  used = false;
  closed = false;

  constructor(
    locks: LockClientApi,
    ino: InodeNumber,
    access: { readonly readable: boolean; readonly writable: boolean },
  ) {
    this.#locks = locks;
    this.#ino = ino;
    this.#access = access;
  }

  #wanted(op: string, { kind, process, offsetBytes, lengthBytes }: LockRequest): LockWanted {
    const object = this.#ino;
    if (kind === 'flock')
      return { object, space: LockSpace.whole, owner: this.#ownHandle(process.pid), at: WHOLE_FILE };
    if (!Number.isSafeInteger(offsetBytes) || offsetBytes < 0 || !Number.isSafeInteger(lengthBytes) || lengthBytes < 0)
      throw new FsError('invalidArgument', { op, object: `inode ${this.#ino}`, detail: 'no range of bytes' });
    // Beyond what can be counted is the end of the file.
    const end = lengthBytes === 0 ? LOCK_END : Math.min(LOCK_END, offsetBytes + lengthBytes);
    if (offsetBytes >= LOCK_END)
      throw new FsError('invalidArgument', { op, object: `inode ${this.#ino}`, detail: 'beyond the end of all files' });
    const owner = kind === 'process' ? process : this.#ownHandle(process.pid);
    return { object, space: LockSpace.ranges, owner, at: { start: offsetBytes, end } };
  }

  newProcess(pid: number): LockOwner {
    return this.#locks.newOwner(pid, true);
  }

  #ownHandle(pid: number): LockOwner {
    this.#handle ??= this.#locks.newOwner(pid, false);
    return this.#handle;
  }

  #untilClosed(): AbortSignal {
    if (this.#closing === null) {
      this.#closing = new AbortController();
      // One listener per lock that waits.
      setMaxListeners(0, this.#closing.signal);
    }
    return this.#closing.signal;
  }

  async lock(request: LockRequest, type: 'read' | 'write', wait: boolean, options?: LockOptions): Promise<void> {
    const op = request.kind === 'flock' ? 'flock' : 'lock';
    const wanted = this.#wanted(op, request);
    const { readable, writable } = this.#access;
    // flock asks for nothing.
    if (request.kind !== 'flock' && !(type === 'read' ? readable : writable))
      throw new FsError('badHandle', { op, object: `inode ${this.#ino}`, detail: `not open for that (${type})` });
    if (request.kind === 'process') this.#processes.add(request.process);
    if (this.closed) throw new FsError('badHandle', { op, object: `inode ${this.#ino}`, detail: 'closed' });
    this.used = true;
    const closing = this.#untilClosed();
    const cancel = new AbortController();
    const abort = (): void => cancel.abort();
    const signals = [closing, ...(options?.signal === undefined ? [] : [options.signal])];
    for (const signal of signals) {
      if (signal.aborted) abort();
      signal.addEventListener('abort', abort, { once: true });
    }
    try {
      const lockType = type === 'read' ? LockType.read : LockType.write;
      await this.#locks.lock(wanted, lockType, wait, { ...options, signal: cancel.signal });
    } catch (error) {
      if (!closing.aborted) throw error;
      throw new FsError('badHandle', { op, object: `inode ${this.#ino}`, detail: 'closed', cause: error });
    } finally {
      for (const signal of signals) signal.removeEventListener('abort', abort);
    }
  }

  async unlock(request: LockRequest, options?: LockOptions): Promise<void> {
    await this.#locks.unlock(this.#wanted('unlock', request), options);
  }

  async test(request: LockRequest, type: 'read' | 'write', options?: LockOptions): Promise<FileLock | null> {
    const lockType = type === 'read' ? LockType.read : LockType.write;
    const found = await this.#locks.test(this.#wanted('getLock', request), lockType, options);
    if (found === null) return null;
    const { owner, start, end } = found;
    return {
      type: found.type === LockType.read ? 'read' : 'write',
      offsetBytes: start,
      lengthBytes: end === LOCK_END ? 0 : end - start,
      // As F_GETLK says it of locks that are no process's.
      pid: owner.isProcess ? owner.pid : -1,
      node: owner.node,
    };
  }

  /** This process closes one of its handles of the file. */
  async release(process: LockOwner): Promise<void> {
    const at = WHOLE_FILE;
    await this.#locks.unlock({ object: this.#ino, space: LockSpace.ranges, owner: process, at });
  }

  /** The handle closes. Errors are those of a node that is fenced or leaves: its locks fall in any case. */
  async close(): Promise<void> {
    this.#closing?.abort();
    const owner = this.#handle;
    const [object, at] = [this.#ino, WHOLE_FILE];
    const ending = [...this.#processes].map((process) => this.release(process));
    if (owner !== null)
      for (const space of [LockSpace.ranges, LockSpace.whole])
        ending.push(this.#locks.unlock({ object, space, owner, at }));
    await Promise.allSettled(ending);
  }
}
