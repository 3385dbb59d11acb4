/** Random nodes, files and times; nodes and servers die and come back. What must be true is looked at whenever an operation ends. */
import { describe, expect, it } from 'vitest';
import { below, pick, SeededRandom } from '../../common/random.js';
import { findCycle, type OwnerReport } from './deadlock.js';
import type { LockOp } from './lock-client-events.js';
import { FileLocks, LOCK_END, type LockOwner, LockSpace, LockType, sameOwner } from './lock-table.js';
import { type Ended, LockWorld } from './testing.js';

const OBJECTS = [1, 4097, 8193, 4096 * 7];
const { read, write } = LockType;
const nameOf = ({ node, incarnation, id }: LockOwner): string => `${node}.${incarnation}.${id}`;

class Play {
  readonly world: LockWorld;
  /** What owners know that they have. */
  readonly held = new Map(OBJECTS.map((object) => [object, new FileLocks()]));
  readonly busy = new Map<string, LockOp>();
  readonly owners: { readonly node: number; readonly owner: LockOwner }[] = [];
  deadlocks = 0;

  constructor(readonly random: SeededRandom) {
    this.world = new LockWorld(random, [1, 2], [3, 4]);
    for (const node of [1, 2, 3, 4]) this.newOwners(node);
    this.world.onEnded = (ended) => this.ended(ended);
  }

  newOwners(node: number): void {
    for (let id = 1; id <= 3; id++) this.owners.push({ node, owner: this.world.owner(node, id, id < 3) });
  }

  reports(extra?: LockOp): OwnerReport[] {
    const waits = [...this.busy.values(), ...(extra === undefined ? [] : [extra])].filter(
      (op) => op.kind === 'lock' && op.wait && op.space === LockSpace.ranges && op.owner.isProcess,
    );
    return waits.map((op) => ({
      owner: op.owner,
      version: 0,
      waits: [{ object: op.object, type: op.type, ...op.at, opId: op.opId, sinceMs: 0 }],
      holds: [...(this.world.nodes.get(op.owner.node)?.client.held() ?? [])]
        .filter(({ lock, space }) => sameOwner(lock.owner, op.owner) && space === LockSpace.ranges)
        .map(({ object, lock: { type, start, end } }) => ({ object, type, start, end })),
    }));
  }

  ended({ op, result, blocker }: Ended): void {
    this.busy.delete(nameOf(op.owner));
    const table = this.held.get(op.object)!.spaces[op.space];
    if (op.kind === 'lock' && result === 'done') {
      const other = table.conflict(op.owner, op.type, op.at);
      expect(other === null ? null : `${nameOf(op.owner)} beside ${nameOf(other.owner)}`).toBe(null);
      table.set(op.owner, op.type, op.at);
    }
    if (result === 'lockHeld') expect(blocker).not.toBe(null);
    if (result === 'deadlock') {
      this.deadlocks++;
      const reports = this.reports(op);
      // No false alarm: it waits in a circle at this very moment.
      expect(findCycle(reports, reports.at(-1)!)).not.toBe(null);
    }
  }

  act(): void {
    const { random, world } = this;
    const alive = this.owners.filter(
      ({ node, owner }) => world.nodes.get(node)?.identity.incarnation === owner.incarnation,
    );
    const { node, owner } = pick(random, alive);
    const under = this.busy.get(nameOf(owner));
    if (under !== undefined) {
      if (under.wait && below(random, 40) === 0) world.abort(node, under.opId);
      return;
    }
    const object = pick(random, OBJECTS);
    const whole = !owner.isProcess && below(random, 2) === 0;
    const space = whole ? LockSpace.whole : LockSpace.ranges;
    const start = below(random, 6);
    const at = whole ? { start: 0, end: LOCK_END } : { start, end: start + 1 + below(random, 4) };
    const type = below(random, 3) === 0 ? read : write;
    const dice = below(random, 10);
    const kind = dice < 6 ? 'lock' : dice < 9 ? 'unlock' : 'test';
    const everything = kind === 'unlock' && below(random, 3) === 0;
    const op = {
      kind,
      object,
      owner,
      space,
      type,
      wait: below(random, 2) === 0,
      at: everything ? { start: 0, end: LOCK_END } : at,
    } as const;
    const table = this.held.get(object)!.spaces[space];
    // From here on it may be somebody else's.
    if (kind === 'unlock') table.assign(owner, op.at, []);
    if (kind === 'lock' && type === read) for (const piece of table.pieces(owner, at)) table.set(owner, read, piece);
    if (kind === 'lock' && whole && table.pieces(owner, at)[0]?.type !== type) table.assign(owner, at, []);
    const opId = world.do(node, op);
    const started = world.ops.get(opId);
    if (started !== undefined) this.busy.set(nameOf(owner), started);
  }

  dies(node: number): void {
    const { world } = this;
    const serves = world.nodes.get(node)!.server !== null;
    const identity = world.kill(node);
    for (const { owner } of this.owners.filter((one) => one.node === node)) {
      const op = this.busy.get(nameOf(owner));
      if (op !== undefined) world.ops.delete(op.opId);
      this.busy.delete(nameOf(owner));
    }
    for (let i = below(this.random, 60); i > 0; i--) if (!world.step() || world.some(0.2)) this.act();
    for (const locks of this.held.values())
      locks.dropWhere((owner) => owner.node === identity.nodeId && owner.incarnation === identity.incarnation);
    world.fell(identity);
    for (let i = below(this.random, 60); i > 0; i--) if (!world.step() || world.some(0.2)) this.act();
    world.revive(node, serves);
    this.newOwners(node);
  }

  end(): void {
    const { world } = this;
    for (let round = 0; this.busy.size > 0; round++) {
      world.run();
      for (const report of this.reports()) expect(findCycle(this.reports(), report)).toBe(null);
      // Circles of handles are nobody's to find.
      for (const op of [...this.busy.values()]) if (!op.owner.isProcess) world.abort(op.owner.node, op.opId);
      expect(round).toBeLessThan(200);
      for (const { node, owner } of this.owners) {
        if (!world.nodes.has(node) || this.busy.has(nameOf(owner))) continue;
        if (world.nodes.get(node)!.identity.incarnation !== owner.incarnation) continue;
        for (const object of OBJECTS)
          for (const space of [LockSpace.ranges, LockSpace.whole]) {
            this.held.get(object)!.spaces[space].assign(owner, { start: 0, end: LOCK_END }, []);
            world.do(node, { kind: 'unlock', object, owner, space });
          }
      }
      world.run();
    }
  }
}

describe('file locks on many nodes', () => {
  it('never stand against each other, every request ends, every circle has a victim and only circles have', () => {
    const counts = new Map<string, number>();
    let deadlocks = 0;
    for (let seed = 1; seed <= 60; seed++) {
      const random = new SeededRandom(seed);
      const play = new Play(random);
      try {
        for (let i = 0; i < 1500; i++) {
          if (play.world.some(0.3)) play.act();
          else play.world.step();
          if (seed % 2 === 0 && i % 500 === 499) play.dies(1 + below(random, 4));
        }
        play.end();
      } catch (error) {
        throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
      }
      deadlocks += play.deadlocks;
      for (const [what, count] of play.world.counts) counts.set(what, (counts.get(what) ?? 0) + count);
    }
    expect(deadlocks).toBeGreaterThan(20);
    for (const what of [
      'delegated',
      'recalled',
      'handedOver',
      'queued',
      'grantedAfterWait',
      'rebuilt',
      'fallen',
      'undone',
      'victims',
    ])
      expect([what, counts.get(what) ?? 0]).not.toEqual([what, 0]);
    expect(counts.get('claimConflict') ?? 0).toBe(0);
  });
});
