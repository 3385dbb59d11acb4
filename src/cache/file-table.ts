import type { InodeNumber } from '../common/ids.js';
import type { CacheCore } from './cache-core.js';
import type { EntryState } from './cache-map.js';
import { CachedFileOps } from './cached-file.js';
import type { FileCore } from './file-core.js';

/**
 * The inodes with pages or users, and their entries in the cache map.
 *
 * An inode stays as long as it is attached or has pages. When entries run short, the files that have been idle longest lose their
 * pages and their entry; when none can, a file works without one, through the engine, until it is attached again.
 */
export interface FileState {
  readonly sizeBytes: number;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
}

/** Above this share of the table, idle files are let go of. */
const FULL_SHARE = 15 / 16;

export class FileTable {
  readonly #core: CacheCore;
  readonly #files = new Map<InodeNumber, CachedFileOps>();
  /** Not attached, with pages; the longest idle first. */
  readonly #idle = new Set<FileCore>();
  #entries = 0;
  #trimming = false;

  constructor(core: CacheCore) {
    this.#core = core;
  }

  get(ino: InodeNumber): CachedFileOps | undefined {
    return this.#files.get(ino);
  }
  all(): CachedFileOps[] {
    return [...this.#files.values()];
  }

  attach(ino: InodeNumber, state: FileState): CachedFileOps {
    let ops = this.#files.get(ino);
    if (ops === undefined) {
      ops = new CachedFileOps(this.#core, ino);
      this.#files.set(ino, ops);
    }
    const { file } = ops;
    // The owner of attributes knows them, unless another handle has been working on them meanwhile.
    if (file.attachCount === 0) this.setState(file, state);
    file.attachCount++;
    this.#idle.delete(file);
    if (file.entry === null) this.#open(file);
    return ops;
  }

  detach(file: FileCore): void {
    if (file.attachCount === 0) return;
    file.attachCount--;
    if (file.attachCount > 0) return;
    this.#idle.add(file);
    // Pages that were only made ready for writes: nobody writes any more, and their space may be given back now.
    for (const page of [...file.pages.values()])
      if (page.loaded && page.validMask === 0 && !page.dirty) this.#core.eviction.tryEvict(page);
    this.forgetIfUnused(file);
  }

  /** Called when a page has gone or the last user has. */
  forgetIfUnused(file: FileCore): void {
    if (file.attachCount > 0 || file.pages.size > 0 || this.#files.get(file.ino)?.file !== file) return;
    this.#files.delete(file.ino);
    this.#idle.delete(file);
    this.#core.publisher.forget(file);
    this.#core.ahead.cancelRequests(file);
    file.forgotten = true;
    this.closeEntryIfEmpty(file);
  }

  /** A page that goes during a transfer is in the map until the transfer has ended; the entry goes with the last. */
  closeEntryIfEmpty(file: FileCore): void {
    if (!file.forgotten || file.entry === null || file.installedCount > 0) return;
    const { entry } = file;
    file.ownState = { ...this.stateOf(file) };
    file.entry = null;
    this.#core.map.closeEntry(entry);
    this.#entries--;
  }

  stateOf(file: FileCore): EntryState {
    if (file.entry === null) return file.ownState;
    const { sizeBytes, mtimeNs, ctimeNs, changes } = this.#core.map.entryState(file.entry);
    return { sizeBytes, mtimeNs, ctimeNs, changes: changes + file.changesBefore };
  }
  setState(file: FileCore, state: FileState): void {
    const { sizeBytes, mtimeNs, ctimeNs } = state;
    if (file.entry === null) file.ownState = { sizeBytes, mtimeNs, ctimeNs, changes: file.ownState.changes };
    else this.#core.map.setEntryState(file.entry, state);
  }
  noteWrite(file: FileCore, endBytes: number, wallNs: bigint): void {
    if (file.entry !== null) {
      this.#core.map.noteWrite(file.entry, endBytes, wallNs);
      return;
    }
    const { sizeBytes, changes } = file.ownState;
    file.ownState = {
      sizeBytes: Math.max(sizeBytes, endBytes),
      mtimeNs: wallNs,
      ctimeNs: wallNs,
      changes: changes + 1,
    };
  }

  #open(file: FileCore): void {
    const { map } = this.#core;
    if (this.#entries >= map.entryCountMax) this.#trim(1);
    const state = file.ownState;
    file.entry = map.openEntry(file.ino, state);
    if (file.entry === null) {
      this.#core.counters.add('cache.entriesRefused');
      return;
    }
    file.changesBefore = state.changes;
    this.#entries++;
    if (file.hitsWanted) for (const page of file.pages.values()) this.#core.slots.show(page);
    if (this.#entries > map.entryCountMax * FULL_SHARE) this.#trimSoon();
  }

  #trimSoon(): void {
    if (this.#trimming) return;
    this.#trimming = true;
    this.#core.clock.after(0, () => {
      this.#trimming = false;
      this.#trim(Math.ceil(this.#core.map.entryCountMax / 16));
    });
  }

  /** Lets go of idle files that have nothing dirty; those that have are written out, for the next time. */
  #trim(count: number): void {
    for (const file of [...this.#idle]) {
      if (count <= 0) return;
      if (file.dirtyPages.size > 0) {
        void this.#core.behind.flush(file, [...file.dirtyPages]);
        continue;
      }
      for (const page of [...file.pages.values()]) this.#core.eviction.tryEvict(page);
      if (file.forgotten) count--;
    }
  }
}
