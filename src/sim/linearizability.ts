/**
 * Is a history of concurrent operations linearizable? The search of Wing and Gong with Lowe's memory of configurations (2017), as
 * in Porcupine: try every operation that may come first, undo when stuck, never visit a configuration twice. Objects are checked one by one (the
 * property is local, Herlihy and Wing 1990).
 */
export interface Operation<Input, Output> {
  /** Who did it: shown in counter-examples. */
  readonly client: string;
  readonly input: Input;
  /** Null when nobody knows: it may have happened at any time from its call on, or never. */
  readonly output: Output | null;
  readonly calledAt: number;
  /** Infinity when it never returned. */
  readonly returnedAt: number;
}

/** A sequential object. States are immutable. */
export interface SequentialModel<State, Input, Output> {
  readonly initial: State;
  /** The state after the operation, or null when it could not have given this output in that state. */
  step(state: State, input: Input, output: Output | null): State | null;
  /** Equal states, equal keys. */
  key(state: State): string;
}

export interface Verdict<Input, Output> {
  readonly ok: boolean;
  /** True when the search gave up: no verdict. */
  readonly undecided: boolean;
  /** When not ok: the longest prefix that can be ordered, and the operations of which none can come next. */
  readonly ordered: readonly Operation<Input, Output>[];
  readonly stuckAt: readonly Operation<Input, Output>[];
}

export function checkLinearizable<State, Input, Output>(
  model: SequentialModel<State, Input, Output>,
  history: readonly Operation<Input, Output>[],
  visitsMax = 2_000_000,
): Verdict<Input, Output> {
  const operations = [...history].sort((a, b) => a.calledAt - b.calledAt);
  const count = operations.length;
  // A doubly linked list of calls and returns in order of time; taking an operation lifts both of its nodes out.
  const head = node(-1, false);
  const calls: ListNode[] = [];
  const returns: ListNode[] = [];
  const events: { at: number; isReturn: boolean; index: number }[] = [];
  operations.forEach((operation, index) => {
    events.push({ at: operation.calledAt, isReturn: false, index });
    events.push({ at: operation.returnedAt, isReturn: true, index });
    calls.push(node(index, false));
    returns.push(node(index, true));
  });
  // At the same instant calls come first: such operations count as concurrent.
  events.sort((a, b) => a.at - b.at || Number(a.isReturn) - Number(b.isReturn) || a.index - b.index);
  let last = head;
  for (const { index, isReturn } of events) {
    const next = isReturn ? returns[index]! : calls[index]!;
    last.next = next;
    next.previous = last;
    last = next;
  }

  const done = new Uint8Array(count);
  const stack: { index: number; state: State }[] = [];
  const seen = new Set<string>();
  let state = model.initial;
  let best: number[] = [];
  let bestStuck: number[] = [];
  let visits = 0;
  let required = operations.filter((operation) => operation.output !== null).length;
  let entry: ListNode | null = head.next;
  const configuration = (): string => `${Buffer.from(done).toString('latin1')}|${model.key(state)}`;

  while (required > 0) {
    if (entry !== null && !entry.isReturn) {
      const index = entry.index;
      const operation = operations[index]!;
      const next = model.step(state, operation.input, operation.output);
      let taken = false;
      if (next !== null) {
        const previous = state;
        done[index] = 1;
        state = next;
        const key = configuration();
        if (!seen.has(key)) {
          if (++visits > visitsMax) return { ok: false, undecided: true, ordered: [], stuckAt: [] };
          seen.add(key);
          stack.push({ index, state: previous });
          lift(calls[index]!);
          lift(returns[index]!);
          if (operation.output !== null) required--;
          if (stack.length > best.length) {
            best = stack.map((frame) => frame.index);
            bestStuck = [];
          }
          entry = head.next;
          taken = true;
        } else {
          done[index] = 0;
          state = previous;
        }
      }
      if (!taken) entry = entry?.next ?? null;
      continue;
    }
    // A return of an operation not yet taken (or the end): nothing behind it may come first. One of unknown outcome holds nobody up.
    if (entry !== null && operations[entry.index]!.output === null) {
      entry = entry.next;
      continue;
    }
    if (stack.length >= best.length) {
      bestStuck = [];
      for (let at: ListNode | null = head.next; at !== null && at !== entry; at = at.next) {
        if (!at.isReturn) bestStuck.push(at.index);
      }
    }
    const frame = stack.pop();
    if (frame === undefined) {
      return {
        ok: false,
        undecided: false,
        ordered: best.map((index) => operations[index]!),
        stuckAt: bestStuck.map((index) => operations[index]!),
      };
    }
    done[frame.index] = 0;
    state = frame.state;
    putBack(returns[frame.index]!);
    putBack(calls[frame.index]!);
    if (operations[frame.index]!.output !== null) required++;
    entry = calls[frame.index]!.next;
  }
  return { ok: true, undecided: false, ordered: [], stuckAt: [] };
}

interface ListNode {
  readonly index: number;
  readonly isReturn: boolean;
  previous: ListNode | null;
  next: ListNode | null;
}
const node = (index: number, isReturn: boolean): ListNode => ({ index, isReturn, previous: null, next: null });
function lift(at: ListNode): void {
  if (at.previous !== null) at.previous.next = at.next;
  if (at.next !== null) at.next.previous = at.previous;
}
function putBack(at: ListNode): void {
  if (at.previous !== null) at.previous.next = at;
  if (at.next !== null) at.next.previous = at;
}
