import { type MembershipEffect, MembershipMachine } from '../cluster/membership.js';

/**
 * Which transitions of the membership have fired: the effects that it decides on, seen by a look at every step of every machine of this
 * process. (The token machines count theirs themselves.)
 */
type MembershipTransition = Exclude<MembershipEffect['type'], 'wake' | 'complain'>;

/** `complain` needs records that are none: the store of the simulator holds no such. */
const MEMBERSHIP: Record<MembershipTransition, true> = {
  suspended: true,
  fenced: true,
  publish: true,
  lease: true,
  resumed: true,
  joined: true,
  left: true,
  renew: true,
  regain: true,
  readAll: true,
  swapView: true,
  fence: true,
  tokensFall: true,
};

let sink: ((transition: string) => void) | null = null;
const step = MembershipMachine.prototype.step;
MembershipMachine.prototype.step = function (this: MembershipMachine, ...args: Parameters<typeof step>) {
  const effects = step.apply(this, args);
  if (sink !== null) for (const effect of effects) sink(effect.type);
  return effects;
};

/** Counts what fires from now on, until the returned function is called. */
export function watchMembership(counts: Map<string, number>): () => void {
  sink = (transition) => {
    const name = `membership.${transition}`;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  };
  return () => {
    sink = null;
  };
}

export const MEMBERSHIP_TRANSITIONS: readonly string[] = Object.keys(MEMBERSHIP);
