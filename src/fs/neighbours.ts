/**
 * Files read one after the other: their data tokens come in runs of neighbours, as their inodes do.
 *
 * Files that were made together have neighbouring numbers, and are mostly read together too. When a second file of a run is opened for
 * reading, the data tokens of all of the run's files that are known here are asked for in one message, shared and unpinned, so that
 * the others' readers find them. A run is asked for once as long as it is remembered: where other nodes write meanwhile, nobody
 * takes their tokens back from them again and again. Who only looks at attributes asks for no data (a stat takes no busy file away).
 */
import { WHOLE } from '../common/byte-range.js';
import { type InodeNumber, inodeNumber } from '../common/ids.js';
import { TokenClass, type TokenItem, TokenMode } from '../token-manager/token.js';
import { FileType } from './file-system-api.js';
import { READ_RUN } from './inode-table.js';
import type { Volume } from './volume.js';

/** Runs remembered; the longest unused goes first. */
const RUNS_MAX = 256;
const ASKED = 0;

export class Neighbours {
  readonly #volume: Volume;
  /** By run: the one file of it that was opened, or ASKED. */
  readonly #runs = new Map<number, number>();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  /** A regular file is opened for reading, its status token pinned. */
  opened(ino: InodeNumber): void {
    const run = Math.floor(ino / READ_RUN);
    const first = this.#runs.get(run);
    if (first === undefined) {
      this.#remember(run, ino);
      return;
    }
    this.#runs.delete(run);
    const second = first !== ASKED && first !== ino;
    this.#remember(run, second ? ASKED : first);
    if (second) this.#ask(run);
  }

  #remember(run: number, value: number): void {
    this.#runs.set(run, value);
    if (this.#runs.size <= RUNS_MAX) return;
    const oldest = this.#runs.keys().next().value;
    if (oldest !== undefined) this.#runs.delete(oldest);
  }

  #ask(run: number): void {
    const { inodes, parts } = this.#volume;
    const items: TokenItem[] = [];
    for (let number = run * READ_RUN; number < (run + 1) * READ_RUN; number++) {
      const ino = inodeNumber(number);
      const inode = inodes.get(ino);
      if (inode === undefined || inode.type !== FileType.regular || inode.sizeBytes === 0) continue;
      if (parts.tokens.heldRange(TokenClass.data, ino, 0, TokenMode.shared) !== null) continue;
      items.push(this.#volume.dataItem(ino, WHOLE, TokenMode.shared));
    }
    parts.tokens.ask(items);
  }
}
