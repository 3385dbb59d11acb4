/**
 * For the time that a thread sleeps until something that is due within microseconds, its processor is kept from being halted: waking it, on a virtual machine
 * above all, takes longer than what is waited for. Pure; who keeps it awake, and at whose expense, is native/core's (wakeful.h).
 *
 * Invariant: each operation keeps it awake for a bounded time, and operations that take longer than that soon don't any more: then they are tried again
 * ever more rarely.
 */
export interface WakefulParts {
  /** From now on for so long, whatever was said before. */
  readonly stayAwake: (forUs: number) => void;
  readonly nowMs: () => number;
}

/** What takes longer gains nothing from a processor that is awake. */
const AWAKE_US = 2000;
/** Behind an operation: the next one may follow it. */
const LINGER_US = 300;
const SLOW_MAX = 3;
const PAUSE_MIN = 32;
const PAUSE_MAX = 4096;

export class Wakeful {
  readonly #parts: WakefulParts;
  #underWay = 0;
  /** Operations in a row that took too long, and those that are still passed over for it. */
  #slow = 0;
  #pause = 0;
  #pauseLength = PAUSE_MIN;

  constructor(parts: WakefulParts) {
    this.#parts = parts;
  }

  /** While this is under way. Returns it as it is. */
  during<T>(operation: Promise<T>): Promise<T> {
    if (this.#pause > 0) {
      this.#pause--;
      return operation;
    }
    const { stayAwake, nowMs } = this.#parts;
    const begunMs = nowMs();
    this.#underWay++;
    stayAwake(AWAKE_US);
    const end = (): void => {
      this.#underWay--;
      if ((nowMs() - begunMs) * 1000 > AWAKE_US) this.#wasSlow();
      else {
        this.#slow = 0;
        this.#pauseLength = PAUSE_MIN;
        if (this.#underWay === 0) stayAwake(LINGER_US);
      }
    };
    operation.then(end, end);
    return operation;
  }

  #wasSlow(): void {
    if (++this.#slow < SLOW_MAX) return;
    this.#slow = 0;
    this.#pause = this.#pauseLength;
    this.#pauseLength = Math.min(2 * this.#pauseLength, PAUSE_MAX);
  }
}
