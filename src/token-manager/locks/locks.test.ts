import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { incarnation, nodeId } from '../../common/ids.js';
import { SeededRandom } from '../../common/random.js';
import { FileLocks, LOCK_END, type LockOwner, LockSpace, LockTable, LockType } from './lock-table.js';
import { LockWorld } from './testing.js';

const { read, write } = LockType;
const owner = (id: number): LockOwner => ({
  node: nodeId(1),
  incarnation: incarnation(1),
  id,
  pid: id,
  isProcess: true,
});
const at = (start: number, end: number) => ({ start, end });

describe('a lock table', () => {
  it.each([
    [
      'two of one type that touch become one',
      [
        [1, write, 0, 4],
        [1, write, 4, 8],
      ],
      [[1, write, 0, 8]],
    ],
    [
      'a weaker one in the middle splits',
      [
        [1, write, 0, 9],
        [1, read, 3, 5],
      ],
      [
        [1, write, 0, 3],
        [1, read, 3, 5],
        [1, write, 5, 9],
      ],
    ],
    [
      'an unlock in the middle leaves both sides',
      [
        [1, write, 0, 9],
        [1, 0, 3, 5],
      ],
      [
        [1, write, 0, 3],
        [1, write, 5, 9],
      ],
    ],
    [
      'an upgrade of a part',
      [
        [1, read, 0, 9],
        [1, write, 0, 2],
      ],
      [
        [1, write, 0, 2],
        [1, read, 2, 9],
      ],
    ],
    [
      'readers stand together',
      [
        [1, read, 0, 9],
        [2, read, 0, 9],
      ],
      [
        [1, read, 0, 9],
        [2, read, 0, 9],
      ],
    ],
    [
      'to the end of the file',
      [
        [1, write, 5, LOCK_END],
        [1, 0, 100, LOCK_END],
      ],
      [[1, write, 5, 100]],
    ],
  ] as const)('%s', (_name, steps, expected) => {
    const table = new LockTable();
    for (const [id, type, start, end] of steps) {
      if (type === 0) table.assign(owner(id), at(start, end), []);
      else table.set(owner(id), type, at(start, end));
    }
    const held = table.all().map((lock) => [lock.owner.id, lock.type, lock.start, lock.end] as const);
    expect(held.sort((a, b) => a[0] - b[0] || a[2] - b[2])).toEqual(expected);
  });

  it('agrees with a table of bytes (fcntl, F_SETLK)', () => {
    const step = fc.record({
      id: fc.integer({ min: 1, max: 3 }),
      type: fc.constantFrom(0, read, write),
      start: fc.nat(15),
      length: fc.integer({ min: 1, max: 8 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const locks = new FileLocks();
        const model = Array.from({ length: 24 }, () => new Map<number, number>());
        for (const { id, type, start, length } of steps) {
          const range = at(start, start + length);
          const bytes = model.slice(start, start + length);
          if (type === 0) {
            locks.spaces[0].assign(owner(id), range, []);
            for (const byte of bytes) byte.delete(id);
            continue;
          }
          const free = bytes.every((byte) =>
            [...byte].every(([other, held]) => other === id || (held === read && type === read)),
          );
          const { outcome } = locks.take({ space: LockSpace.ranges, owner: owner(id), type, at: range });
          expect(outcome === 'granted').toBe(free);
          if (free) for (const byte of bytes) byte.set(id, type);
        }
        const found = model.map(() => new Map<number, number>());
        for (const lock of locks.spaces[0].all()) {
          expect(lock.start).toBeLessThan(lock.end);
          for (let byte = lock.start; byte < lock.end; byte++) {
            expect(found[byte]!.has(lock.owner.id)).toBe(false);
            found[byte]!.set(lock.owner.id, lock.type);
          }
        }
        expect(found).toEqual(model);
        // What touches is one.
        for (const a of locks.spaces[0].all())
          for (const b of locks.spaces[0].all())
            if (a !== b && a.owner.id === b.owner.id && a.type === b.type) expect(a.end).not.toBe(b.start);
      }),
    );
  });
});

describe('locks of a file', () => {
  const world = (): LockWorld => new LockWorld(new SeededRandom(7), [1, 2], [3, 4]);
  const object = 77;

  it('that one node locks cost no message after the first', () => {
    const w = world();
    const mine = w.owner(3, 1);
    expect(w.result(w.do(3, { kind: 'lock', object, owner: mine }))).toBe('done');
    const before = w.messages;
    for (let i = 0; i < 1000; i++) {
      w.do(3, { kind: 'lock', object, owner: mine, at: at(i, i + 2) });
      w.do(3, { kind: 'unlock', object, owner: mine });
      w.do(3, { kind: 'test', object, owner: w.owner(3, 2) });
    }
    w.run();
    expect(w.messages).toBe(before);
    expect(w.ended.every(({ result }) => result === 'done')).toBe(true);
  });

  it('that two nodes lock cost two messages each time, whoever is in the way is named, and waiters come in their order', () => {
    const w = world();
    const [a, b, c] = [w.owner(3, 1), w.owner(4, 1), w.owner(4, 2)];
    w.result(w.do(3, { kind: 'lock', object, owner: a, at: at(0, 10) }));
    const tested = w.do(4, { kind: 'test', object, owner: b, at: at(5, 6) });
    expect(w.result(tested)).toBe('done');
    expect(w.ended.at(-1)!.blocker).toMatchObject({ start: 0, end: 10, type: write, owner: { node: 3, pid: 101 } });
    expect(w.result(w.do(4, { kind: 'lock', object, owner: b, at: at(5, 6) }))).toBe('lockHeld');
    expect(w.result(w.do(4, { kind: 'lock', object, owner: b, at: at(10, 20) }))).toBe('done');
    const first = w.do(4, { kind: 'lock', object, owner: b, at: at(0, 2), wait: true });
    w.run();
    const second = w.do(4, { kind: 'lock', object, owner: c, at: at(0, 2), wait: true });
    expect([w.result(first), w.result(second)]).toEqual(['waits', 'waits']);
    expect(w.result(w.do(3, { kind: 'unlock', object, owner: a, at: at(0, 2) }))).toBe('done');
    expect([w.result(first), w.result(second)]).toEqual(['done', 'waits']);
    const before = w.messages;
    expect(w.result(w.do(3, { kind: 'lock', object, owner: a, at: at(30, 31) }))).toBe('done');
    expect(w.messages - before).toBe(2);
    w.abort(4, second);
    expect(w.result(second)).toBe('aborted');
  });

  it('is decided by one node alone again when nobody else has been there for a while', () => {
    const w = world();
    const [a, b] = [w.owner(3, 1), w.owner(4, 1)];
    w.result(w.do(3, { kind: 'lock', object, owner: a, at: at(0, 10) }));
    w.result(w.do(4, { kind: 'lock', object, owner: b, at: at(10, 20) }));
    w.result(w.do(3, { kind: 'unlock', object, owner: a }));
    for (let i = 0; i < 10; i++) w.result(w.do(4, { kind: 'lock', object, owner: b, at: at(i, 30) }));
    const before = w.messages;
    expect(w.result(w.do(4, { kind: 'unlock', object, owner: b }))).toBe('done');
    expect(w.messages).toBe(before);
  });

  it('flock: a conversion gives up first; readers and one writer', () => {
    const w = world();
    const [a, b] = [w.owner(3, 1, false), w.owner(4, 1, false)];
    const flock = (node: number, who: LockOwner, type: LockType, wait = false): number =>
      w.do(node, { kind: 'lock', object, owner: who, space: LockSpace.whole, type, wait });
    expect(w.result(flock(3, a, read))).toBe('done');
    expect(w.result(flock(4, b, read))).toBe('done');
    // Refused, and the lock that was there is gone.
    expect(w.result(flock(3, a, write))).toBe('lockHeld');
    expect(w.result(flock(4, b, write))).toBe('done');
    const waits = flock(3, a, read, true);
    expect(w.result(waits)).toBe('waits');
    expect(w.result(flock(4, b, read))).toBe('done');
    expect(w.result(waits)).toBe('done');
    // Locks on ranges know nothing of it.
    expect(w.result(w.do(3, { kind: 'lock', object, owner: a }))).toBe('done');
  });

  it('EDEADLK: a circle over nodes, files and servers has one victim; handles are in none', () => {
    for (const isProcess of [true, false]) {
      const w = world();
      const owners = [w.owner(2, 1, isProcess), w.owner(3, 1, isProcess), w.owner(4, 1, isProcess)];
      const objects = [5, 4096 * 3 + 5, 4096 * 9 + 5];
      owners.forEach((who, i) => {
        w.result(w.do(i + 2, { kind: 'lock', object: objects[i]!, owner: who }));
      });
      const waits = owners.map((who, i) =>
        w.do(i + 2, { kind: 'lock', object: objects[(i + 1) % 3]!, owner: who, wait: true }),
      );
      const results = waits.map((opId) => w.result(opId));
      expect(results.filter((result) => result === 'deadlock').length).toBe(isProcess ? 1 : 0);
      expect(results.filter((result) => result === 'waits').length).toBe(isProcess ? 2 : 3);
    }
  });

  it('EDEADLK on one node is told at once, without a message', () => {
    const w = world();
    const [a, b] = [w.owner(3, 1), w.owner(3, 2)];
    w.result(w.do(3, { kind: 'lock', object, owner: a, at: at(0, 1) }));
    w.result(w.do(3, { kind: 'lock', object, owner: b, at: at(1, 2) }));
    const waits = w.do(3, { kind: 'lock', object, owner: a, at: at(1, 2), wait: true });
    const closes = w.do(3, { kind: 'lock', object, owner: b, at: at(0, 1), wait: true });
    expect(w.ended.at(-1)).toMatchObject({ op: { opId: closes }, result: 'deadlock' });
    expect(w.result(w.do(3, { kind: 'unlock', object, owner: b }))).toBe('done');
    expect(w.result(waits)).toBe('done');
  });

  it('the locks of a dead node fall with it, and no sooner; those of the living outlive their server (T8)', () => {
    const w = world();
    const [a, b] = [w.owner(3, 1), w.owner(4, 1)];
    for (let i = 0; i < 8; i++) {
      const file = 4096 * i + 1;
      w.result(w.do(3, { kind: 'lock', object: file, owner: a, at: at(0, 10) }));
      w.result(w.do(4, { kind: 'lock', object: file, owner: b, at: at(10, 20) }));
    }
    w.result(w.do(3, { kind: 'lock', object: 4096 * 20 + 1, owner: a }));
    const server = w.kill(1);
    const late = w.do(4, { kind: 'lock', object: 1, owner: b, at: at(0, 1), wait: true });
    expect(w.result(late)).toBe('waits');
    w.fell(server);
    w.run();
    for (let i = 0; i < 8; i++) {
      const file = 4096 * i + 1;
      expect(w.result(w.do(4, { kind: 'lock', object: file, owner: b, at: at(5, 6) }))).toBe('lockHeld');
    }
    expect(w.result(w.do(4, { kind: 'lock', object: 4096 * 20 + 1, owner: b }))).toBe('lockHeld');
    const dead = w.kill(3);
    expect(w.result(late)).toBe('waits');
    w.fell(dead);
    expect(w.result(late)).toBe('done');
  });
});
