/**
 * Locks on ranges of sectors of one NSD, shared or exclusive. They make two writes to one sector follow each other, and keep a
 * read from seeing new bytes with an old checksum. First come, first served: who conflicts with anyone before him, holding
 * or waiting, waits. Held only across device operations, never across a message, so they can't deadlock between nodes; a holder
 * takes one range only.
 */
interface Entry {
  readonly start: number;
  readonly end: number;
  readonly exclusive: boolean;
  /** Null once the lock is held. */
  grant: (() => void) | null;
}
export type SectorLock = Entry;

export class SectorLocks {
  /** In order of arrival; the waiting ones among the holding ones. */
  readonly #entries = new Set<Entry>();
  #waiting = 0;

  /** Data sectors [start, end). Resolves when held; `release` must follow. */
  acquire(start: number, end: number, exclusive: boolean): SectorLock | Promise<SectorLock> {
    const entry: Entry = { start, end, exclusive, grant: null };
    if (!this.#blocked(entry)) {
      this.#entries.add(entry);
      return entry;
    }
    return new Promise((resolve) => {
      this.#waiting++;
      entry.grant = () => resolve(entry);
      this.#entries.add(entry);
    });
  }

  release(lock: SectorLock): void {
    this.#entries.delete(lock);
    if (this.#waiting === 0) return;
    for (const entry of this.#entries) {
      if (entry.grant === null || this.#blocked(entry)) continue;
      const { grant } = entry;
      entry.grant = null;
      this.#waiting--;
      grant();
    }
  }

  /** Whether anyone who came before `entry` stands in its way. */
  #blocked(entry: Entry): boolean {
    for (const other of this.#entries) {
      if (other === entry) return false;
      if ((entry.exclusive || other.exclusive) && entry.start < other.end && other.start < entry.end) return true;
    }
    return false;
  }
}
