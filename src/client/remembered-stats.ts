/**
 * What stat answered, remembered on the application's thread and told again without asking the engine as long as nothing that the answer was made of has
 * changed or been given up, on any node (src/cache/stamps.ts): so each answer is as right as a new one.
 *
 * Invariant: an answer is told only after its stamps, then the lease, were looked at in the same turn. Bounded: two generations, of which the older goes when
 * the younger is full; what is asked for moves to the younger.
 */
import type { Stamps } from '../cache/stamps.js';
import { type Attributes, FileType } from '../fs/file-system-api.js';
import { Stats, type StatTimes, statTimes } from './stats.js';

const GENERATION_MAX = 32_768;

class Remembered {
  readonly #times: StatTimes;

  constructor(
    readonly attributes: Attributes,
    readonly stamps: Int32Array,
  ) {
    this.#times = statTimes(attributes);
  }

  /** A new one for each: it belongs to the caller. */
  stats(): Stats {
    return new Stats(this.attributes, this.#times);
  }
}

export class RememberedStats {
  #younger = new Map<string, Remembered>();
  #older = new Map<string, Remembered>();
  hits = 0;

  constructor(
    readonly stamps: Stamps,
    /** On the engine's clock. */
    readonly nowMs: () => number,
  ) {}

  /** By an absolute path, as it was given. */
  get(path: string, follow: boolean): Remembered | undefined {
    const known = this.#younger.get(path) ?? this.#older.get(path);
    if (known === undefined || (follow && known.attributes.type === FileType.symlink)) return undefined;
    if (!this.stamps.hold(known.stamps, this.nowMs)) {
      this.#younger.delete(path);
      this.#older.delete(path);
      return undefined;
    }
    if (this.#older.size > 0 && this.#older.delete(path)) this.#keep(path, known);
    this.hits++;
    return known;
  }

  /** For stat as it is called most: with a path and nothing else. */
  stats(path: unknown, follow: boolean): Stats | undefined {
    return typeof path === 'string' ? this.get(path, follow)?.stats() : undefined;
  }

  put(path: string, attributes: Attributes, stamps: readonly number[]): void {
    this.#older.delete(path);
    this.#keep(path, new Remembered(attributes, Int32Array.from(stamps)));
  }

  #keep(path: string, known: Remembered): void {
    this.#younger.set(path, known);
    if (this.#younger.size < GENERATION_MAX) return;
    this.#older = this.#younger;
    this.#younger = new Map();
  }
}
