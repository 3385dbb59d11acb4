import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type NodeId, nodeId } from '../common/ids.js';
import { type ServingEffect, type ServingEvent, ServingMachine, type ServingRecord } from './serving-machine.js';

const [A, B, C] = [nodeId(1), nodeId(2), nodeId(3)];
const settings = { retryMs: 10 };
const all = new Set([A, B, C]);
const record = (changes: Partial<ServingRecord>): ServingRecord => ({
  serving: A,
  moving: null,
  generation: 1,
  servers: [A, B],
  ...changes,
});
const told = (changes: Partial<ServingRecord>, inView: ReadonlySet<NodeId> = all): ServingEvent => ({
  type: 'record',
  record: record(changes),
  inView,
});

describe('who serves', () => {
  test('is who the record names; the others keep their device closed', () => {
    const a = new ServingMachine(A, settings, false);
    expect(a.step(told({}), 0)).toEqual([{ type: 'open' }]);
    a.step({ type: 'opened', done: true }, 0);
    expect(a.serves).toBe(true);
    const b = new ServingMachine(B, settings, true);
    expect(b.step(told({}), 0)).toEqual([{ type: 'close' }]);
  });

  test('opens again after a while when the device could not be opened', () => {
    const a = new ServingMachine(A, settings, false);
    a.step(told({}), 0);
    expect(a.step({ type: 'opened', done: false }, 5)).toEqual([{ type: 'wake', atMs: 15 }]);
    expect(a.step({ type: 'tick' }, 15)).toEqual([{ type: 'open' }]);
  });

  test('takes what nobody serves when it is the first of the servers that are there', () => {
    const b = new ServingMachine(B, settings, false);
    expect(b.step(told({ serving: null }), 0)).toEqual([]);
    expect(b.step(told({ serving: null }, new Set([B, C])), 0)).toEqual([
      { type: 'swap', expected: 1, next: { serving: B, moving: null, generation: 2 } },
    ]);
    expect(b.step({ type: 'swapped', done: true }, 0)).toEqual([{ type: 'open' }]);
  });
});

describe('a takeover', () => {
  const moving = { serving: null, moving: { from: A, to: B }, generation: 2 };

  test('asks the server, waits for its answer, then claims and opens', () => {
    const b = new ServingMachine(B, settings, false);
    expect(b.step(told(moving), 0)).toEqual([{ type: 'askRelease', of: A, generation: 2 }]);
    expect(b.step({ type: 'released', generation: 2, done: true }, 1)).toEqual([
      { type: 'swap', expected: 2, next: { serving: B, moving: null, generation: 3 } },
    ]);
    expect(b.step({ type: 'swapped', done: true }, 2)).toEqual([{ type: 'open' }]);
  });

  test('goes to the target when the server is gone or does not answer, and to nobody else', () => {
    const gone = new ServingMachine(B, settings, false);
    expect(gone.step(told(moving, new Set([B, C])), 0)).toEqual([{ type: 'shutOut', of: A, generation: 2 }]);
    const b = new ServingMachine(B, settings, false);
    b.step(told(moving), 0);
    expect(b.step({ type: 'released', generation: 2, done: false }, 0)).toEqual([
      { type: 'shutOut', of: A, generation: 2 },
    ]);
    // No target, or it doesn't answer: nothing is claimed, and the server is asked once more.
    expect(b.step({ type: 'shutOut', generation: 2, done: false }, 0)).toEqual([{ type: 'wake', atMs: 10 }]);
    expect(b.step({ type: 'tick' }, 10)).toEqual([{ type: 'askRelease', of: A, generation: 2 }]);
  });

  test('an answer about an older move proves nothing about this one', () => {
    const b = new ServingMachine(B, settings, false);
    b.step(told(moving), 0);
    b.step(told({ ...moving, generation: 4 }), 0);
    expect(b.step({ type: 'released', generation: 2, done: true }, 0)).toEqual([]);
  });

  test('the server that is asked closes first, and never serves an older record again', () => {
    const a = new ServingMachine(A, settings, true);
    a.step(told({}), 0);
    expect(a.step({ type: 'releaseAsked', generation: 2 }, 0)).toEqual([{ type: 'close' }]);
    expect(a.step({ type: 'closed', done: true }, 0)).toEqual([{ type: 'answerRelease', generation: 2 }]);
    expect(a.step(told({}), 0)).toEqual([]);
    expect(a.step(told({ generation: 5 }), 0)).toEqual([{ type: 'open' }]);
  });
});

test('leaving gives the NSD up when another has a path to it, and keeps it for the next life when none has', () => {
  const a = new ServingMachine(A, settings, true);
  a.step(told({}), 0);
  expect(a.step({ type: 'leave' }, 0)).toEqual([{ type: 'close' }]);
  expect(a.step({ type: 'closed', done: true }, 0)).toEqual([
    { type: 'swap', expected: 1, next: { serving: null, moving: null, generation: 2 } },
  ]);
  expect(a.step({ type: 'swapped', done: true }, 0)).toEqual([{ type: 'left' }]);
  const alone = new ServingMachine(A, settings, true);
  alone.step(told({ servers: [A] }), 0);
  alone.step({ type: 'leave' }, 0);
  expect(alone.step({ type: 'closed', done: true }, 0)).toEqual([{ type: 'left' }]);
});

/**
 * Three nodes with a path each, one record, one target; answers in any order or never, views that lag, nodes that die and come back with
 * nothing, takeovers ordered at any time.
 */
class World {
  record = record({ servers: [A, B, C] });
  readonly machines = new Map<NodeId, ServingMachine>();
  readonly open = new Set<NodeId>();
  /** What the target lets through. */
  readonly allowed = new Set<NodeId>([A, B, C]);
  readonly up = new Set<NodeId>();
  readonly pending: (() => void)[] = [];
  readonly waiting: { from: NodeId; generation: number; answer: (done: boolean) => void }[] = [];
  nowMs = 0;

  constructor() {
    for (const id of [A, B, C]) this.start(id);
  }
  start(id: NodeId): void {
    if (this.up.has(id)) return;
    this.up.add(id);
    // A life begins with the lock on its device: what an earlier one had under way there has ended.
    this.open.delete(id);
    this.machines.set(id, new ServingMachine(id, settings, false));
    this.tell(id);
  }
  /** Its process ends; what it had sent to the device may still be under way: the path stays open until the target shuts it. */
  kill(id: NodeId): void {
    this.up.delete(id);
    this.machines.delete(id);
  }
  tell(id: NodeId): void {
    const seen = this.record;
    const inView = new Set(this.up);
    this.later(id, () => this.step(id, { type: 'record', record: seen, inView }));
  }
  later(id: NodeId, run: () => void): void {
    const machine = this.machines.get(id);
    this.pending.push(() => {
      if (machine !== undefined && this.machines.get(id) === machine) run();
    });
  }
  step(id: NodeId, event: ServingEvent): void {
    const machine = this.machines.get(id);
    if (machine === undefined) return;
    for (const effect of machine.step(event, this.nowMs)) this.carryOut(id, effect);
    this.check();
  }
  carryOut(id: NodeId, effect: ServingEffect): void {
    switch (effect.type) {
      case 'open':
        this.later(id, () => {
          if (this.allowed.has(id)) this.open.add(id);
          this.step(id, { type: 'opened', done: this.allowed.has(id) });
        });
        return;
      case 'close':
        this.later(id, () => {
          this.open.delete(id);
          this.step(id, { type: 'closed', done: true });
        });
        return;
      case 'swap':
        this.later(id, () => {
          const done = this.record.generation === effect.expected;
          if (done) this.record = { ...this.record, ...effect.next };
          for (const one of this.up) this.tell(one);
          this.step(id, { type: 'swapped', done });
        });
        return;
      case 'askRelease': {
        const { of, generation } = effect;
        const answer = (done: boolean): void =>
          this.later(id, () => this.step(id, { type: 'released', generation, done }));
        this.waiting.push({ from: of, generation, answer });
        this.later(of, () => this.step(of, { type: 'releaseAsked', generation }));
        return;
      }
      case 'answerRelease':
        for (const one of this.waiting.filter((w) => w.from === id && w.generation <= effect.generation)) {
          this.waiting.splice(this.waiting.indexOf(one), 1);
          one.answer(true);
        }
        return;
      case 'shutOut':
        this.later(id, () => {
          // The target carries out no order of a move that is over.
          const done = this.record.generation === effect.generation;
          if (done) this.allowed.delete(effect.of);
          if (done) this.open.delete(effect.of);
          this.step(id, { type: 'shutOut', generation: effect.generation, done });
        });
        return;
      default:
    }
  }
  takeover(to: NodeId): void {
    const { serving, moving, generation } = this.record;
    const from = moving?.from ?? serving;
    this.record =
      from === null
        ? { ...this.record, serving: to, generation: generation + 1 }
        : { ...this.record, serving: null, moving: { from, to }, generation: generation + 1 };
    for (const one of this.up) this.tell(one);
  }
  check(): void {
    if (this.open.size > 1) throw new Error(`open at ${[...this.open].join()}`);
  }
  settle(): void {
    const done = (): boolean =>
      this.record.moving === null && this.machines.get(this.record.serving as NodeId)?.serves === true;
    for (let i = 0; i < 5000 && !(this.pending.length === 0 && done()); i++) {
      this.pending.shift()?.();
      if (this.pending.length === 0) {
        this.nowMs += 10;
        for (const one of this.waiting.splice(0)) one.answer(false);
        for (const id of this.up) {
          this.tell(id);
          this.step(id, { type: 'tick' });
        }
      }
    }
  }
}

test('never two servers at once, whatever is late or lost or dies; and in the end the record is true', () => {
  const node = fc.constantFrom(A, B, C);
  const action = fc.oneof(
    fc.record({ do: fc.constant('deliver' as const), index: fc.nat(20) }),
    fc.record({ do: fc.constant('takeover' as const), node }),
    fc.record({ do: fc.constant('kill' as const), node }),
    fc.record({ do: fc.constant('start' as const), node }),
    fc.record({ do: fc.constant('unanswered' as const) }),
    fc.record({ do: fc.constant('tick' as const), node }),
  );
  fc.assert(
    fc.property(fc.array(action, { maxLength: 120 }), (actions) => {
      const world = new World();
      for (const one of actions) {
        if (one.do === 'deliver') world.pending.splice(one.index % Math.max(1, world.pending.length), 1)[0]?.();
        else if (one.do === 'takeover') world.takeover(one.node);
        else if (one.do === 'kill') world.kill(one.node);
        else if (one.do === 'start') world.start(one.node);
        else if (one.do === 'unanswered') world.waiting.shift()?.answer(false);
        else {
          world.nowMs += 10;
          world.step(one.node, { type: 'tick' });
        }
        world.check();
      }
      for (const id of [A, B, C]) world.start(id);
      for (const id of [A, B, C]) world.allowed.add(id);
      world.settle();
      const { serving, moving } = world.record;
      expect(moving).toBeNull();
      expect(world.machines.get(serving!)?.serves).toBe(true);
    }),
    { numRuns: 200 },
  );
});
