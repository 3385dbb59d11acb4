import type { SequentialModel } from '../../sim/linearizability.js';

/** What a directory is to the checker: for each of a few names the inode that it leads to, 0 for none. */
export const NAMES = ['n0', 'n1', 'n2', 'n3'] as const;

export type NamesInput =
  | { readonly op: 'create' | 'unlink' | 'lookup'; readonly name: number }
  | { readonly op: 'rename' | 'link'; readonly from: number; readonly to: number }
  | { readonly op: 'list' };

/**
 * create: [inode], or [0]: it was there; unlink, rename: [1], or [0]: it wasn't; link: [1], [0]: there was nothing to link, [2]: the name
 * was in use; lookup: [inode] or [0]; list: all inodes. (An inode's count of links is of a later moment than its name: a path is walked first.)
 */
export type NamesOutput = readonly number[];
export type NamesState = readonly number[];

export const namesModel = (initial: NamesState): SequentialModel<NamesState, NamesInput, NamesOutput> => ({
  initial,
  step(state, input, output) {
    if (output === null) return null;
    const changed = (name: number, ino: number): NamesState => state.map((was, i) => (i === name ? ino : was));
    switch (input.op) {
      case 'create':
        if ((output[0] === 0) !== (state[input.name] !== 0)) return null;
        return output[0] === 0 ? state : changed(input.name, output[0]!);
      case 'unlink':
        if ((output[0] === 0) !== (state[input.name] === 0)) return null;
        return changed(input.name, 0);
      case 'rename': {
        const moved = state[input.from]!;
        if ((output[0] === 0) !== (moved === 0)) return null;
        // Two names of one inode: POSIX lets both stand.
        if (moved === 0 || moved === state[input.to]) return state;
        return state.map((was, i) => (i === input.from ? 0 : i === input.to ? moved : was));
      }
      case 'link': {
        const linked = state[input.from]!;
        const expected = linked === 0 ? 0 : state[input.to] === 0 ? 1 : 2;
        if (output[0] !== expected) return null;
        return expected === 1 ? changed(input.to, linked) : state;
      }
      case 'lookup':
        return output[0] === state[input.name] ? state : null;
      case 'list':
        return output.every((ino, i) => ino === state[i]) ? state : null;
    }
  },
  key: (state) => state.join(),
});
