import type { SequentialModel } from '../../sim/linearizability.js';

/** What the locks of a file are to the checker: for each of a few bytes who has it locked, and how. */
export const LOCK_BYTES = 4;

export type LocksInput =
  | {
      readonly op: 'lock';
      readonly type: 'read' | 'write';
      readonly from: number;
      readonly to: number;
      readonly owner: string;
    }
  | { readonly op: 'unlock'; readonly from: number; readonly to: number; readonly owner: string };

/** lock: [1], or [0]: somebody's lock stands against it; unlock: []. */
export type LocksOutput = readonly number[];
/** For each byte its owners, in order of names; `!` in front: for writing, then there is one. */
export type LocksState = readonly (readonly string[])[];

export const locksModel: SequentialModel<LocksState, LocksInput, LocksOutput> = {
  initial: Array.from({ length: LOCK_BYTES }, () => []),
  step(state, input, output) {
    if (output === null) return null;
    const { owner, from, to } = input;
    const others = (byte: number): string[] => state[byte]!.filter((held) => held !== owner && held !== `!${owner}`);
    const changed = (locks: (byte: number) => readonly string[]): LocksState =>
      state.map((was, byte) => (byte >= from && byte < to ? locks(byte) : was));
    if (input.op === 'unlock') return changed(others);
    const writes = input.type === 'write';
    let free = true;
    for (let byte = from; byte < to; byte++)
      if (others(byte).some((held) => writes || held.startsWith('!'))) free = false;
    if (output[0] !== Number(free)) return null;
    return free ? changed((byte) => [...others(byte), writes ? `!${owner}` : owner].sort()) : state;
  },
  key: (state) => state.map((held) => held.join()).join(';'),
};
