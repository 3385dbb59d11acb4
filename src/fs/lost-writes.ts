/**
 * Writes to a file that are lost for good, and who has been told: each handle once (I10), like Linux' errseq_t. A handle that is opened after
 * the loss is told if nobody was before.
 */
import type { FsError } from '../common/errors.js';

export class LostWrites {
  #count = 0;
  #last: FsError | null = null;
  #told = true;

  add(error: FsError): void {
    this.#count++;
    this.#last = error;
    this.#told = false;
  }
  /** For a handle that is being opened: how many of them are no business of its. */
  seen(): number {
    return this.#told ? this.#count : this.#count - 1;
  }
  /** What a handle that has seen so many is to be told, and how many it has seen then. */
  tell(seen: number): { readonly error: FsError | null; readonly seen: number } {
    if (seen >= this.#count) return { error: null, seen };
    this.#told = true;
    return { error: this.#last, seen: this.#count };
  }
}
