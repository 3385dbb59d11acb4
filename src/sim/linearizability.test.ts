import { describe, expect, it } from 'vitest';
import { checkLinearizable, type Operation, type SequentialModel } from './linearizability.js';

type Input = { write: number } | 'read';
const register: SequentialModel<number, Input, number> = {
  initial: 0,
  step: (state, input, output) =>
    input === 'read' ? (output === null || output === state ? state : null) : input.write,
  key: (state) => String(state),
};
const op = (
  client: string,
  input: Input,
  output: number | null,
  calledAt: number,
  returnedAt: number,
): Operation<Input, number> => ({
  client,
  input,
  output,
  calledAt,
  returnedAt,
});

describe('checkLinearizable', () => {
  it('accepts a sequential history', () => {
    expect(checkLinearizable(register, [op('a', { write: 1 }, 0, 0, 1), op('b', 'read', 1, 2, 3)]).ok).toBe(true);
  });
  it('accepts either order of concurrent operations', () => {
    expect(
      checkLinearizable(register, [op('a', { write: 1 }, 0, 0, 10), op('b', 'read', 0, 2, 3), op('c', 'read', 1, 4, 5)])
        .ok,
    ).toBe(true);
  });
  it('refuses a stale read, and names it', () => {
    const verdict = checkLinearizable(register, [op('a', { write: 1 }, 0, 0, 1), op('b', 'read', 0, 2, 3)]);
    expect(verdict.ok).toBe(false);
    expect(verdict.stuckAt.map((operation) => operation.client)).toEqual(['b']);
  });
  it('refuses a read that goes back behind another read', () => {
    const history = [op('a', { write: 1 }, 0, 0, 10), op('b', 'read', 1, 2, 3), op('c', 'read', 0, 4, 5)];
    expect(checkLinearizable(register, history).ok).toBe(false);
  });
  it('lets an operation of unknown outcome happen late, or never', () => {
    const lost = op('a', { write: 1 }, null, 0, Number.POSITIVE_INFINITY);
    expect(checkLinearizable(register, [lost, op('b', 'read', 0, 5, 6), op('c', 'read', 1, 7, 8)]).ok).toBe(true);
    expect(checkLinearizable(register, [lost, op('b', 'read', 0, 5, 6)]).ok).toBe(true);
    expect(checkLinearizable(register, [lost, op('b', 'read', 1, 5, 6), op('c', 'read', 0, 7, 8)]).ok).toBe(false);
  });
  it('agrees with trying every order, on all small histories', () => {
    const inputs: Input[] = [{ write: 1 }, { write: 2 }, 'read'];
    let refused = 0;
    for (let mask = 0; mask < 3 ** 4 * 8; mask++) {
      let rest = mask;
      const history: Operation<Input, number>[] = [];
      for (let i = 0; i < 4; i++) {
        const input = inputs[rest % 3]!;
        rest = Math.floor(rest / 3);
        history.push(op(`c${i}`, input, input === 'read' ? (mask + i) % 3 : 0, i * 2, i * 2 + 1 + (rest % 2) * 3));
      }
      const verdict = checkLinearizable(register, history).ok;
      expect(verdict).toBe(bruteForce(history));
      if (!verdict) refused++;
    }
    expect(refused).toBeGreaterThan(50);
  });
});

function bruteForce(history: Operation<Input, number>[]): boolean {
  const search = (state: number, left: Operation<Input, number>[]): boolean =>
    left.length === 0 ||
    left.some((candidate) => {
      if (left.some((other) => other !== candidate && other.returnedAt < candidate.calledAt)) return false;
      const next = register.step(state, candidate.input, candidate.output);
      return (
        next !== null &&
        search(
          next,
          left.filter((other) => other !== candidate),
        )
      );
    });
  return search(0, history);
}
