import type { MessagePort } from 'node:worker_threads';

/**
 * Messages of one turn, in their order, as one: what a port costs is for the most part the message, not what is in it.
 *
 * Invariant: what was posted is on its way before the thread's event loop goes on, and after as many as are expected, at once: who asks for something and
 * computes meanwhile has it under way.
 */
export class MessageBatch<Message> {
  #messages: Message[] = [];
  #transfer: ArrayBuffer[] = [];
  #expected: number;

  /** `usual`: how many are sent at once where nothing is said about the turn. */
  constructor(
    private readonly port: MessagePort,
    private readonly usual = 1,
  ) {
    this.#expected = usual;
  }

  /** In this turn so many may come: as many as those that wait for what it brings. */
  expect(count: number): void {
    if (count <= this.usual) return;
    this.#expected = count;
    // A tick that is asked for right here would come before the promises that these messages settle.
    queueMicrotask(() =>
      process.nextTick(() => {
        this.#expected = this.usual;
        this.flush();
      }),
    );
  }

  post(message: Message, transfer: readonly ArrayBuffer[] = []): void {
    for (const buffer of transfer) this.#transfer.push(buffer);
    const count = this.#messages.push(message);
    if (count >= this.#expected) this.flush();
    // After everything that the present event sets off, promises included.
    else if (count === 1) process.nextTick(() => this.flush());
  }

  flush(): void {
    if (this.#messages.length === 0) return;
    const messages = this.#messages;
    const transfer = this.#transfer;
    this.#messages = [];
    this.#transfer = [];
    this.port.postMessage(messages, transfer);
  }
}
