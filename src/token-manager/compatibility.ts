/**
 * Which tokens get along: the compatibility matrix of docs/token-protocol.md as bit masks. Tokens of different classes or
 * objects never conflict, nor do disjoint ranges, nor the tokens of one node; everything else is decided here.
 */
import { isBySegment, type TokenClass, TokenMode } from './token.js';

/** A set of modes: bit `1 << mode`. */
export type ModeMask = number;

const bit = (mode: TokenMode): ModeMask => 1 << mode;

/** For each mode, the modes on other nodes that it can't stand beside. Symmetric; `none` conflicts with nothing. */
const CONFLICTS: readonly ModeMask[] = [
  0,
  bit(TokenMode.concurrentWrite) | bit(TokenMode.exclusive),
  bit(TokenMode.shared) | bit(TokenMode.exclusive),
  bit(TokenMode.shared) | bit(TokenMode.concurrentWrite) | bit(TokenMode.exclusive),
];

export const modeMask = bit;
export const conflictsWithMask = (mode: TokenMode, mask: ModeMask): boolean => (CONFLICTS[mode]! & mask) !== 0;
export const conflicts = (a: TokenMode, b: TokenMode): boolean => (CONFLICTS[a]! & bit(b)) !== 0;

/** The strongest mode that a holder of `held` may keep beside a new holder of `wanted`. */
export function keepBeside(wanted: TokenMode, held: TokenMode): TokenMode {
  for (let mode = held; mode > TokenMode.none; mode--) {
    if (!conflicts(wanted, mode as TokenMode) && covers(held, mode as TokenMode)) return mode as TokenMode;
  }
  return TokenMode.none;
}

/** Whether holding `held` lets a node do what `wanted` allows: exclusive covers all, otherwise only itself. */
export const covers = (held: TokenMode, wanted: TokenMode): boolean =>
  held === wanted || held === TokenMode.exclusive || wanted === TokenMode.none;

/** The weakest mode that allows what both do: shared and concurrentWrite on one node make exclusive. */
export function join(a: TokenMode, b: TokenMode): TokenMode {
  if (covers(a, b)) return a;
  return covers(b, a) ? b : TokenMode.exclusive;
}

/** What is left of a mode when at most the other may be kept: of shared and concurrent-write, neither. */
export function meet(a: TokenMode, b: TokenMode): TokenMode {
  if (covers(a, b)) return b;
  return covers(b, a) ? a : TokenMode.none;
}

/** Modes that exist for a class. Of open tokens `concurrentWrite` is for those who deny what the others, with `shared`, do. */
export const modeExists = (tokenClass: TokenClass, mode: TokenMode): boolean =>
  mode !== TokenMode.none && (mode !== TokenMode.concurrentWrite || isBySegment(tokenClass));
