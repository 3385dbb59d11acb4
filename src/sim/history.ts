import { invariant } from '../common/assert.js';
import { checkLinearizable, type Operation, type SequentialModel } from './linearizability.js';

/**
 * What clients did to one object and what they saw, in the order of calls and returns. Moments are counted, not timed: two events of
 * one instant of virtual time still happened one after the other.
 *
 * Fault model: the client's node may die; then nobody knows whether its operations happened, only that they can't happen any more
 * once the node is out of the way.
 */
export interface Pending<Input, Output> {
  readonly client: string;
  readonly life: string;
  readonly input: Input;
  readonly calledAt: number;
  readonly calledMs: number;
  done: Operation<Input, Output> | null;
}

export class History<State, Input, Output> {
  readonly #operations: { pending: Pending<Input, Output>; operation: Operation<Input, Output> }[] = [];
  readonly #open = new Set<Pending<Input, Output>>();

  constructor(
    readonly name: string,
    readonly model: SequentialModel<State, Input, Output>,
    private readonly moment: () => number,
    private readonly nowMs: () => number,
  ) {}

  get open(): ReadonlySet<Pending<Input, Output>> {
    return this.#open;
  }
  get operations(): readonly Operation<Input, Output>[] {
    return this.#operations.map(({ operation }) => operation);
  }
  get length(): number {
    return this.#operations.length;
  }

  begin(client: string, life: string, input: Input): Pending<Input, Output> {
    const pending = { client, life, input, calledAt: this.moment(), calledMs: this.nowMs(), done: null };
    this.#open.add(pending);
    return pending;
  }

  end(pending: Pending<Input, Output>, output: Output, input: Input = pending.input): void {
    this.#close(pending, { ...pending, input, output, returnedAt: this.moment() });
  }

  /** It changed nothing, or told nothing. */
  forget(pending: Pending<Input, Output>): void {
    this.#open.delete(pending);
  }

  /** It failed: it may have happened until now. */
  unknown(pending: Pending<Input, Output>): void {
    this.#close(pending, { ...pending, output: null, returnedAt: this.moment() });
  }

  /** Everything that this life has under way, or failed to tell the outcome of, can't happen later than now. */
  endLife(life: string): void {
    for (const pending of [...this.#open]) if (pending.life === life) this.unknown(pending);
  }

  /** Something that the world did, or knows. */
  happened(client: string, input: Input, output: Output): void {
    this.end(this.begin(client, 'world', input), output);
  }

  /** Null when some order explains everything; else what doesn't fit. */
  verdict(textOf: (operation: Operation<Input, Output>) => string): string | null {
    const verdict = checkLinearizable(this.model, this.operations);
    if (verdict.ok) return null;
    if (verdict.undecided) return `${this.name}: the checker gave up on ${this.length} operations`;
    const tail = verdict.ordered.slice(-12).map((operation) => `    ${textOf(operation)}`);
    const stuck = verdict.stuckAt.map((operation) => `    ${textOf(operation)}`);
    return [
      `${this.name}: no order explains its ${this.length} operations; ${verdict.ordered.length} fit, the last of them`,
      ...tail,
      '  and none of these can come next',
      ...stuck,
    ].join('\n');
  }

  #close(pending: Pending<Input, Output>, operation: Operation<Input, Output>): void {
    invariant(this.#open.delete(pending) || pending.done === null, 'an operation ends once');
    pending.done = operation;
    this.#operations.push({ pending, operation });
  }
}
