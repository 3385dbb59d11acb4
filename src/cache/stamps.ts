/**
 * Stamps: whether an answer about inodes that a thread of this process remembers is still right, told without asking the engine.
 *
 * One word of shared memory for each inode number (many numbers share one), and one for the lease. The engine moves an inode's stamp before anybody can
 * learn of a change: in the turn of each change of its attributes or, of a directory, its names; and before a token that covers them leaves. Who
 * remembers an answer remembers it with the stamps of all inodes that it was made of, taken in the turn in which the engine made it.
 * Invariant (I2): when all of them are unmoved, and after that the lease holds, the answer was right at the moment of looking. Nothing has to be pinned for
 * that, since nothing is read in place: what is given up a moment later is a change after the look.
 * Numbers that share a word only make each other's answers forgotten. A fault is told by the lease's word: who is suspended, fenced or gone lets it run out.
 */
const INODE_WORDS = 2 ** 16;
const LEASE_WORD = INODE_WORDS;
/** A deadline fits into one word, which is read and written as a whole; rounded down. So it reaches 4 years behind the start of the machine. */
const LEASE_UNIT_MS = 64;
const LEASE_UNITS_MAX = 2 ** 31 - 1;

export class Stamps {
  readonly #words: Int32Array;
  #over = false;

  /** `memory`: of another thread's. */
  constructor(readonly memory = new SharedArrayBuffer((INODE_WORDS + 1) * Int32Array.BYTES_PER_ELEMENT)) {
    this.#words = new Int32Array(memory);
  }

  // The engine

  changed(ino: number): void {
    Atomics.add(this.#words, ino % INODE_WORDS, 1);
  }
  /** [first, end) */
  changedRun(first: number, end: number): void {
    const last = Math.min(end, first + INODE_WORDS);
    for (let ino = first; ino < last; ino++) this.changed(ino);
  }
  allChanged(): void {
    this.changedRun(0, INODE_WORDS);
  }
  setLeaseDeadline(deadlineMs: number): void {
    const units = Math.max(0, Math.min(LEASE_UNITS_MAX, Math.floor(deadlineMs / LEASE_UNIT_MS)));
    Atomics.store(this.#words, LEASE_WORD, this.#over ? 0 : units);
  }
  /** Nothing that was remembered is right any more, whatever is said about the lease from here on. */
  end(): void {
    this.#over = true;
    this.setLeaseDeadline(0);
  }
  /** Appends an inode's word and its stamp. */
  take(ino: number, into: number[]): void {
    const word = ino % INODE_WORDS;
    into.push(word, Atomics.load(this.#words, word));
  }

  // Whoever remembers

  /** `stamps`: as `take` made them. `nowMs` is asked last. */
  hold(stamps: Int32Array, nowMs: () => number): boolean {
    for (let i = 0; i < stamps.length; i += 2)
      if (Atomics.load(this.#words, stamps[i]!) !== stamps[i + 1]) return false;
    return nowMs() < Atomics.load(this.#words, LEASE_WORD) * LEASE_UNIT_MS;
  }
}
