/**
 * A client process's locks: fcntl's belong to it, and go when it closes any of its handles of the file, or ends.
 */
import { FsError } from '../common/errors.js';
import type { FileLocking, LockRequest, OpenFile, OpOptions } from '../fs/file-system-api.js';
import type { OpArgs, OpResult } from './ops.js';

type Args<K extends 'lock' | 'unlock' | 'getLock'> = Omit<OpArgs<K>, 'handle'>;

export class SessionLocks {
  #process: LockRequest['process'] | null = null;
  /** Files of which the process may have locks. */
  readonly #locked = new Set<number>();

  #request(file: OpenFile, op: string, args: Args<'unlock'>, pid = 0): { locks: FileLocking; request: LockRequest } {
    const { locks } = file;
    if (locks === undefined) throw new FsError('notSupported', { op, detail: 'no locks here' });
    const { kind, offset: offsetBytes, length: lengthBytes } = args;
    const process = this.#process ?? locks.newProcess(pid);
    // Who has locked nothing yet has no locks that are to be its own.
    if (op === 'lock') this.#process = process;
    return { locks, request: { kind, process, offsetBytes, lengthBytes } };
  }

  async lock(file: OpenFile, args: Args<'lock'>, { signal }: OpOptions): Promise<void> {
    const { locks, request } = this.#request(file, 'lock', args, args.pid);
    if (args.kind === 'process') this.#locked.add(file.ino);
    await locks.lock(request, args.type, args.wait, { signal, timeoutMs: args.timeoutMs });
  }

  async unlock(file: OpenFile, args: Args<'unlock'>, { signal }: OpOptions): Promise<void> {
    const { locks, request } = this.#request(file, 'unlock', args);
    await locks.unlock(request, { signal });
  }

  async test(file: OpenFile, args: Args<'getLock'>, { signal }: OpOptions): Promise<OpResult<'getLock'>> {
    const { locks, request } = this.#request(file, 'getLock', args);
    const found = await locks.test(request, args.type, { signal });
    if (found === null) return { lock: null };
    const { type, offsetBytes: offset, lengthBytes: length, pid, node } = found;
    return { lock: { type, offset, length, pid, node } };
  }

  /** POSIX: any close of the file ends the process's locks on it. */
  async close(file: OpenFile): Promise<void> {
    if (this.#process !== null && this.#locked.delete(file.ino)) await file.locks?.release(this.#process);
    await file.close();
  }
}
