import { type ByteRange, contains, subtract } from '../common/byte-range.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { CacheCore } from './cache-core.js';
import { COVERAGE_RANGES_MAX, type Coverage } from './cache-map.js';
import type { FileCore } from './file-core.js';

/**
 * What hits may use: the token coverage in the map.
 *
 * An entry publishes few ranges, so they are those around where the file was used last. A range that is being revoked, or that
 * an operation has for itself, is in none of them; it comes back with the next `publish` after that.
 */
export class Publisher {
  readonly #core: CacheCore;
  readonly #writerFiles = new Set<FileCore>();

  constructor(core: CacheCore) {
    this.#core = core;
  }

  /** Hits may make pages dirty at any time: somebody has to look now and then. */
  get writersPublished(): boolean {
    return this.#writerFiles.size > 0;
  }

  /** What of data tokens is held, as far as it fits. */
  publish(file: FileCore): void {
    if (file.entry === null) return;
    if (!file.hitsWanted) {
      file.hitsWanted = true;
      for (const page of file.pages.values()) this.#core.slots.show(page);
    }
    const { lastRange, lastMode } = file;
    // The usual case: nothing new.
    if (lastRange !== null && file.coverage.some((c) => c.mode >= lastMode && contains(c, lastRange))) return;
    this.#set(file, this.#held(file));
  }

  /** Published coverage without what is being revoked or withdrawn, which was just added to the file's lists. */
  lower(file: FileCore): void {
    if (file.entry !== null && file.coverage.length > 0) this.#set(file, this.#allowed(file, file.coverage));
  }

  /** The file has no entry any more, or none of its coverage holds. */
  forget(file: FileCore): void {
    this.#set(file, []);
  }

  /** No hit gets between the pieces of what the caller does with the range, until `end` is called. */
  async withdraw(file: FileCore, range: ByteRange): Promise<{ end: () => void }> {
    file.withdrawn.push(range);
    this.lower(file);
    await this.#core.slots.waitForHits(file.pagesIn(range));
    return {
      end: () => {
        file.withdrawn.splice(file.withdrawn.indexOf(range), 1);
        if (file.hitsWanted) this.publish(file);
      },
    };
  }

  #held(file: FileCore): Coverage[] {
    const { tokens } = this.#core;
    const ranges: Coverage[] = [];
    const add = (offset: number, mode: TokenMode): void => {
      if (ranges.some((r) => r.mode >= mode && r.start <= offset && offset < r.end)) return;
      const held = tokens.heldRange(TokenClass.data, file.ino, offset, mode);
      // An exclusive range that reaches as far as the shared one says it all.
      if (held === null || ranges.some((r) => r.mode >= mode && contains(r, held))) return;
      ranges.push({ start: held.start, end: held.end, mode });
    };
    for (const offset of file.positions) {
      add(offset, TokenMode.exclusive);
      add(offset, TokenMode.shared);
    }
    return this.#allowed(file, ranges);
  }

  #allowed(file: FileCore, ranges: readonly Coverage[]): Coverage[] {
    let allowed: readonly Coverage[] = ranges;
    for (const taken of [...file.revoking, ...file.withdrawn])
      allowed = allowed.flatMap((r) => subtract(r, taken).map((rest) => ({ ...rest, mode: r.mode })));
    return allowed.slice(0, COVERAGE_RANGES_MAX);
  }

  #set(file: FileCore, coverage: readonly Coverage[]): void {
    if (coverage.some((c) => c.mode === TokenMode.exclusive)) {
      this.#writerFiles.add(file);
      this.#core.behind.watch();
    } else this.#writerFiles.delete(file);
    if (same(coverage, file.coverage)) return;
    file.coverage = coverage;
    if (file.entry !== null) this.#core.map.setCoverage(file.entry, coverage);
  }
}

const same = (a: readonly Coverage[], b: readonly Coverage[]): boolean =>
  a.length === b.length && a.every((c, i) => c.start === b[i]!.start && c.end === b[i]!.end && c.mode === b[i]!.mode);
