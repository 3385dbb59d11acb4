import type { Operation, SequentialModel } from './linearizability.js';

/**
 * What a directory is to the checker: which inode each of a few names leads to. Linearizable as a whole, which includes each entry.
 */
export type DirectoryInput =
  | { readonly op: 'create' | 'unlink' | 'look'; readonly name: string }
  | { readonly op: 'rename'; readonly name: string; readonly to: string }
  /** A further name for a file that keeps another one elsewhere: looking that up is no part of the operation's moment. */
  | { readonly op: 'link'; readonly name: string; readonly ino: string }
  | { readonly op: 'list' };

/** The error's code, or what was found: create and look give the inode, list gives `name:inode` in order of names. */
export type DirectoryOutput = string;
export type DirectoryState = ReadonlyMap<string, string>;

const missing = 'ENOENT';
const changed = (state: DirectoryState, change: (next: Map<string, string>) => void): DirectoryState => {
  const next = new Map(state);
  change(next);
  return next;
};

export const directoryModel: SequentialModel<DirectoryState, DirectoryInput, DirectoryOutput> = {
  initial: new Map(),
  step(state, input, output) {
    if (output === null) return unknownOutcome(state, input);
    switch (input.op) {
      case 'create':
        if (state.has(input.name)) return output === 'EEXIST' ? state : null;
        return isError(output) ? null : changed(state, (next) => next.set(input.name, output));
      case 'look':
        return output === (state.get(input.name) ?? missing) ? state : null;
      case 'list':
        return output === listing(state) ? state : null;
      case 'unlink':
        if (!state.has(input.name)) return output === missing ? state : null;
        return output === 'ok' ? changed(state, (next) => next.delete(input.name)) : null;
      case 'rename': {
        const ino = state.get(input.name);
        if (ino === undefined) return output === missing ? state : null;
        if (output !== 'ok') return null;
        // Two names of one inode: POSIX lets both stand.
        if (state.get(input.to) === ino) return state;
        return changed(state, (next) => next.set(input.to, ino).delete(input.name));
      }
      case 'link':
        if (state.has(input.name)) return output === 'EEXIST' ? state : null;
        return output === 'ok' ? changed(state, (next) => next.set(input.name, input.ino)) : null;
    }
  },
  key: listing,
};

/** In seeds with names nobody dies, so every outcome is known; what failed did nothing. */
function unknownOutcome(state: DirectoryState, _input: DirectoryInput): DirectoryState {
  return state;
}

const isError = (output: string): boolean => /^E[A-Z]/.test(output);

function listing(state: DirectoryState): string {
  return [...state]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, ino]) => `${name}:${ino}`)
    .join(' ');
}
export const listingOf = (entries: readonly { name: string; ino: number }[]): string =>
  listing(new Map(entries.map(({ name, ino }) => [name, String(ino)])));

export function directoryText({
  client,
  input,
  output,
  calledAt,
  returnedAt,
}: Operation<DirectoryInput, DirectoryOutput>): string {
  const { op, ...rest } = input;
  return `[${calledAt}, ${returnedAt}] ${client}: ${op} ${JSON.stringify(rest)} -> ${output ?? 'unknown'}`;
}
