/**
 * Is a history of concurrent operations linearizable? The search of Wing and Gong with Lowe's memory of configurations (2017), as
 * in Porcupine: try every operation that may come first, undo when stuck, never visit a configuration twice. Objects are checked one by one (the
 * property is local, Herlihy and Wing 1990).
 */
export interface Operation<Input, Output> {
  /** Who did it: shown in counter-examples. */
  readonly client: string;
  readonly input: Input;
  /** Null when nobody knows: it happened between `calledAt` and `returnedAt`, or never. */
  readonly output: Output | null;
  readonly calledAt: number;
  /** Infinity when it never returned and nothing says from when on it can't happen any more. */
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
  /** Every operation before this index is done: what makes two configurations' keys short. */
  let firstOpen = 0;
  const mark = (index: number, value: 0 | 1): void => {
    done[index] = value;
    if (value === 0) firstOpen = Math.min(firstOpen, index);
    else while (firstOpen < count && done[firstOpen] === 1) firstOpen++;
  };
  const configuration = (state: State): string => {
    let last = count - 1;
    while (last >= firstOpen && done[last] === 0) last--;
    let bits = '';
    let word = 0;
    for (let index = firstOpen; index <= last; index++) {
      word = (word << 1) | done[index]!;
      if ((index - firstOpen) % 15 === 14) {
        bits += String.fromCharCode(word);
        word = 0;
      }
    }
    return `${firstOpen} ${last} ${bits}${String.fromCharCode(word)}|${model.key(state)}`;
  };

  /** `skipped`: an operation of unknown outcome that never happened. */
  const stack: { index: number; state: State; skipped: boolean }[] = [];
  const seen = new Set<string>();
  let state = model.initial;
  let best: number[] = [];
  let bestStuck: number[] = [];
  let visits = 0;
  let required = operations.filter((operation) => operation.output !== null).length;
  let entry: ListNode | null = head.next;

  /** Goes to a configuration, unless that one was visited before. */
  const enter = (index: number, next: State, skipped: boolean): boolean => {
    mark(index, 1);
    const key = configuration(next);
    if (seen.has(key)) {
      mark(index, 0);
      return false;
    }
    visits++;
    seen.add(key);
    stack.push({ index, state, skipped });
    state = next;
    lift(calls[index]!);
    lift(returns[index]!);
    if (operations[index]!.output !== null) required--;
    entry = head.next;
    return true;
  };

  while (required > 0) {
    if (visits > visitsMax) return { ok: false, undecided: true, ordered: [], stuckAt: [] };
    if (entry !== null) {
      const { index, isReturn }: ListNode = entry;
      const operation = operations[index]!;
      if (!isReturn) {
        const next = model.step(state, operation.input, operation.output);
        if (next === null || !enter(index, next, false)) entry = entry.next;
        continue;
      }
      // Nothing behind a return may come before its operation; one of unknown outcome need not have happened at all.
      if (operation.output === null && enter(index, state, true)) continue;
    }
    const taken = stack.filter((frame) => !frame.skipped);
    if (taken.length >= best.length) {
      best = taken.map((frame) => frame.index);
      bestStuck = [];
      for (let at: ListNode | null = head.next; at !== null && at !== entry; at = at.next) {
        if (!at.isReturn) bestStuck.push(at.index);
      }
    }
    // Back to the last operation that could have come later; one that was skipped could not.
    for (let skipped = true; skipped; ) {
      const frame = stack.pop();
      if (frame === undefined) {
        return {
          ok: false,
          undecided: false,
          ordered: best.map((index) => operations[index]!),
          stuckAt: bestStuck.map((index) => operations[index]!),
        };
      }
      mark(frame.index, 0);
      state = frame.state;
      putBack(returns[frame.index]!);
      putBack(calls[frame.index]!);
      if (operations[frame.index]!.output !== null) required++;
      skipped = frame.skipped;
      entry = calls[frame.index]!.next;
    }
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
