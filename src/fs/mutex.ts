/** One at a time, in the order of asking. Nothing that serves a revoke may ask for one whose owner waits for a token. */
export class Mutex {
  /** Null: nobody has asked yet. Every inode has some of these, and few are ever used. */
  #tail: Promise<void> | null = null;
  #length = 0;

  get busy(): boolean {
    return this.#length > 0;
  }

  async run<T>(body: () => Promise<T>): Promise<T> {
    const before = this.#tail;
    let leave!: () => void;
    this.#tail = new Promise((resolve) => {
      leave = resolve;
    });
    this.#length++;
    try {
      if (before !== null) await before;
      return await body();
    } finally {
      this.#length--;
      leave();
    }
  }
}

/** Many sharers or one owner, in the order of asking: writes of a file against its truncation. */
export class SharedMutex {
  #sharers = 0;
  #owned = false;
  readonly #waiting: { exclusive: boolean; wake: () => void }[] = [];

  /** Without waiting: the hot path. */
  tryShare(): boolean {
    if (this.#owned || this.#waiting.length > 0) return false;
    this.#sharers++;
    return true;
  }
  async share(): Promise<void> {
    if (!this.tryShare()) await this.#wait(false);
  }
  unshare(): void {
    this.#sharers--;
    this.#next();
  }
  async runExclusive<T>(body: () => Promise<T>): Promise<T> {
    if (this.#owned || this.#sharers > 0 || this.#waiting.length > 0) await this.#wait(true);
    else this.#owned = true;
    try {
      return await body();
    } finally {
      this.#owned = false;
      this.#next();
    }
  }

  #wait(exclusive: boolean): Promise<void> {
    return new Promise((wake) => {
      this.#waiting.push({ exclusive, wake });
    });
  }
  /** Ownership passes to the woken before it runs, so nobody slips in between. */
  #next(): void {
    for (let first = this.#waiting[0]; first !== undefined && !this.#owned; first = this.#waiting[0]) {
      if (first.exclusive) {
        if (this.#sharers > 0) return;
        this.#owned = true;
      } else this.#sharers++;
      this.#waiting.shift();
      first.wake();
    }
  }
}
