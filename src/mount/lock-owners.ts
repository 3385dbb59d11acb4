import type { InodeNumber } from '../common/ids.js';
import type { FileLocking } from '../fs/file-system-api.js';

type LockOwner = ReturnType<FileLocking['newProcess']>;

/**
 * Who the kernel says locks: a number for each table of open files (fcntl), which it hands in again when one of them closes. Invariant: an owner is
 * kept as long as it may have a lock.
 */
interface Known {
  readonly owner: LockOwner;
  readonly files: Set<InodeNumber>;
}

export class LockOwners {
  readonly #known = new Map<bigint, Known>();

  /** Who may have a lock on the file from now on. */
  locking(key: bigint, pid: number, ino: InodeNumber, locks: FileLocking): LockOwner {
    const known = this.of(key, pid, locks);
    known.files.add(ino);
    return known.owner;
  }
  of(key: bigint, pid: number, locks: FileLocking): Known {
    let known = this.#known.get(key);
    if (known === undefined) {
      known = { owner: locks.newProcess(pid), files: new Set() };
      this.#known.set(key, known);
    }
    return known;
  }
  /** It closes the file: whose locks are to go, or null. */
  closes(key: bigint, ino: InodeNumber): LockOwner | null {
    const known = this.#known.get(key);
    if (known?.files.delete(ino) !== true) return null;
    if (known.files.size === 0) this.#known.delete(key);
    return known.owner;
  }
}
