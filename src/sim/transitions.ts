import { type MembershipEffect, type MembershipEvent, MembershipMachine } from '../cluster/membership.js';

/**
 * Which transitions of the membership have fired, by a look at every step of every machine of this process: what it took in, with its
 * outcome; what it decided; the way from one phase to another. (The token machines count theirs themselves.)
 */
type Phase = MembershipMachine['phase'];

/** What is taken in, and how it ended, where that makes a difference. */
function nameOf(event: MembershipEvent): string {
  switch (event.type) {
    case 'renewed':
    case 'regained':
      return `${event.type}:${event.outcome}`;
    case 'viewSwapped':
    case 'fenceAnswered':
    case 'fallAnswered':
      return `${event.type}:${event.done ? 'done' : 'failed'}`;
    default:
      return event.type;
  }
}

type EventName<E extends MembershipEvent = MembershipEvent> = E extends { outcome: infer Outcome extends string }
  ? `${E['type']}:${Outcome}`
  : E extends { done: boolean }
    ? `${E['type']}:${'done' | 'failed'}`
    : E['type'];
/** Every one there is (renewing takes nothing from anybody, and what is asked for anew isn't gone): the compiler misses new ones here. */
const EVENTS: Record<Exclude<EventName, 'renewed:taken' | 'regained:gone'>, true> = {
  listed: true,
  listFailed: true,
  changed: true,
  gap: true,
  join: true,
  leave: true,
  address: true,
  'renewed:kept': true,
  'renewed:gone': true,
  'renewed:unknown': true,
  'regained:kept': true,
  'regained:unknown': true,
  'regained:taken': true,
  'viewSwapped:done': true,
  'viewSwapped:failed': true,
  'fenceAnswered:done': true,
  'fenceAnswered:failed': true,
  'fallAnswered:done': true,
  'fallAnswered:failed': true,
  tick: true,
};
/** `complain` needs records that are none, which the simulator's store doesn't hold; `wake` is no decision. */
const EFFECTS: Record<Exclude<MembershipEffect['type'], 'wake' | 'complain'>, true> = {
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
const PHASES: readonly `${Phase}>${Phase}`[] = [
  'claimed>joining',
  'joining>member',
  'joining>fenced',
  'member>leaving',
  'member>fenced',
  'leaving>left',
  'leaving>fenced',
];

export const MEMBERSHIP_TRANSITIONS: readonly string[] = [...Object.keys(EVENTS), ...Object.keys(EFFECTS), ...PHASES];

let sink: ((transition: string) => void) | null = null;
const step = MembershipMachine.prototype.step;
MembershipMachine.prototype.step = function (this: MembershipMachine, ...args: Parameters<typeof step>) {
  const before = this.phase;
  const effects = step.apply(this, args);
  if (sink !== null && before !== 'left' && before !== 'fenced') {
    sink(nameOf(args[0]));
    for (const effect of effects) sink(effect.type);
    if (this.phase !== before) sink(`${before}>${this.phase}`);
  }
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
