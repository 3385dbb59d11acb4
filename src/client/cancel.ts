import { setMaxListeners } from 'node:events';

/**
 * By which a call can be cancelled, and the options of what it does. Its signal is made when somebody asks for it, which is whoever waits: an AbortSignal
 * for each call was a twentieth of what creating a file cost. A signal counts for those who ask later, too.
 */
export class Cancel {
  #controller: AbortController | null = null;
  #reason: unknown;
  aborted = false;

  get signal(): AbortSignal {
    if (this.#controller === null) {
      this.#controller = new AbortController();
      // A large transfer is many requests that listen at once; they all stop listening when they end.
      setMaxListeners(0, this.#controller.signal);
      if (this.aborted) this.#controller.abort(this.#reason);
    }
    return this.#controller.signal;
  }

  abort(reason?: unknown): void {
    if (this.aborted) return;
    this.aborted = true;
    this.#reason = reason;
    this.#controller?.abort(reason);
  }
}
