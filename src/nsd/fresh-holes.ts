/**
 * Ranges of sectors that were discarded and that no flush has covered yet: after a power cut they may be what they were before, so until
 * then their bytes are neither given back to the device nor written over without an intent. In order of time.
 */
interface FreshHole {
  readonly start: number;
  end: number;
  /** The last flush that had begun when the discard ended. */
  readonly endedAt: number;
}

export class FreshHoles {
  #holes: FreshHole[] = [];

  get size(): number {
    return this.#holes.length;
  }

  add(start: number, end: number, endedAt: number): void {
    const last = this.#holes.at(-1);
    if (last !== undefined && last.end === start && last.endedAt === endedAt) last.end = end;
    else this.#holes.push({ start, end, endedAt });
  }

  overlaps(start: number, end: number): boolean {
    return this.#holes.some((hole) => hole.start < end && start < hole.end);
  }

  /** Those that flush `number` has covered; they are fresh no more. */
  takeCovered(number: number): { readonly start: number; readonly end: number }[] {
    const kept = this.#holes.findIndex(({ endedAt }) => endedAt >= number);
    return kept < 0 ? this.#holes.splice(0) : this.#holes.splice(0, kept);
  }
}
