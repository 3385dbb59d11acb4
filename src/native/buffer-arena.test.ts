import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { InvariantError } from '../common/assert.js';
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import { SegmentArena } from './buffer-arena.js';
import type { PoolSegment } from './page-pool.js';

const S = SECTOR_BYTES;
const arena = (sectors: number, waitersMax?: number) =>
  new SegmentArena({ offsetBytes: 10 * S, lengthBytes: sectors * S }, waitersMax === undefined ? {} : { waitersMax });
const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => (FsError.is(error) ? error.reason : error),
  );

describe('the buffer arena', () => {
  it('gives whole sectors from its part of the pool, the first that fit', () => {
    const buffers = arena(4);
    expect(buffers.tryAllocate(1)).toEqual({ offsetBytes: 10 * S, lengthBytes: S });
    expect(buffers.tryAllocate(S + 1)).toEqual({ offsetBytes: 11 * S, lengthBytes: 2 * S });
    expect(buffers.freeBytes).toBe(S);
    expect(buffers.tryAllocate(2 * S)).toBeNull();
    expect(buffers.tryAllocate(S)).toEqual({ offsetBytes: 13 * S, lengthBytes: S });
    expect(buffers.tryAllocate(1)).toBeNull();
  });

  it('joins freed neighbours, in any order', () => {
    const buffers = arena(4);
    const [a, b, c, d] = [1, 2, 3, 4].map(() => buffers.tryAllocate(S)!);
    for (const segment of [a, c, b, d]) buffers.free(segment!);
    expect(buffers.freeBytes).toBe(4 * S);
    expect(buffers.tryAllocate(4 * S)).toEqual({ offsetBytes: 10 * S, lengthBytes: 4 * S });
  });

  it('serves waiters in order, and lets nobody overtake them', async () => {
    const buffers = arena(4);
    const whole = await buffers.allocate(4 * S);
    const order: string[] = [];
    const served = (name: string) => (segment: PoolSegment) => {
      order.push(name);
      return segment;
    };
    const big = buffers.allocate(3 * S).then(served('big'));
    const small = buffers.allocate(S).then(served('small'));
    const last = buffers.allocate(S).then(served('last'));
    buffers.free(whole);
    const first = [await big, await small];
    expect(order).toEqual(['big', 'small']);
    // Somebody waits: no room for others, though some bytes may be free.
    buffers.free(first[0]!);
    await last;
    expect(order).toEqual(['big', 'small', 'last']);
    expect(buffers.tryAllocate(2 * S)).not.toBeNull();
  });

  it('gives nothing to who comes later while the first in line waits', async () => {
    const buffers = arena(4);
    const two = await buffers.allocate(2 * S);
    const waiting = buffers.allocate(3 * S);
    expect(buffers.freeBytes).toBe(2 * S);
    expect(buffers.tryAllocate(S)).toBeNull();
    buffers.free(two);
    expect((await waiting).lengthBytes).toBe(3 * S);
    expect(buffers.tryAllocate(S)).not.toBeNull();
  });

  it('bounds the line, and refuses what can never fit', async () => {
    const buffers = arena(2, 1);
    expect(await failure(buffers.allocate(3 * S))).toBe('tooLarge');
    expect(buffers.tryAllocate(3 * S)).toBeNull();
    const whole = await buffers.allocate(2 * S);
    const waiting = buffers.allocate(S);
    expect(await failure(buffers.allocate(S))).toBe('queueFull');
    buffers.free(whole);
    await waiting;
    for (const length of [0, -1, 1.5, Number.NaN]) {
      expect(await failure(buffers.allocate(length))).toBe('invalidArgument');
      expect(() => buffers.tryAllocate(length)).toThrow(FsError);
    }
  });

  it('forgets a waiter that gave up, and serves the one behind it', async () => {
    const buffers = arena(4);
    const three = await buffers.allocate(3 * S);
    const control = new AbortController();
    const given = failure(buffers.allocate(2 * S, control.signal));
    const behind = buffers.allocate(S);
    control.abort();
    expect(await given).toBe('aborted');
    expect((await behind).lengthBytes).toBe(S);
    expect(await failure(buffers.allocate(S, control.signal))).toBe('aborted');
    buffers.free(three);
    expect(buffers.freeBytes).toBe(3 * S);
  });

  it('takes back only what it gave, once', () => {
    const buffers = arena(4);
    const segment = buffers.tryAllocate(2 * S)!;
    expect(() => buffers.free({ ...segment, lengthBytes: S })).toThrow(InvariantError);
    expect(() => buffers.free({ offsetBytes: 0, lengthBytes: S })).toThrow(InvariantError);
    buffers.free(segment);
    expect(() => buffers.free(segment)).toThrow(InvariantError);
  });

  it('hands out disjoint segments and loses none, whatever happens', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 5 * S })), { maxLength: 200 }), (steps) => {
        const buffers = arena(16);
        const held: PoolSegment[] = [];
        for (const [take, number] of steps) {
          if (take) {
            const segment = buffers.tryAllocate(number);
            if (segment === null) continue;
            const end = segment.offsetBytes + segment.lengthBytes;
            expect(segment.offsetBytes >= 10 * S && end <= 26 * S && segment.lengthBytes >= number).toBe(true);
            for (const other of held) {
              expect(end <= other.offsetBytes || other.offsetBytes + other.lengthBytes <= segment.offsetBytes).toBe(
                true,
              );
            }
            held.push(segment);
          } else if (held.length > 0) {
            buffers.free(held.splice(number % held.length, 1)[0]!);
          }
          const heldBytes = held.reduce((sum, segment) => sum + segment.lengthBytes, 0);
          expect(buffers.freeBytes).toBe(16 * S - heldBytes);
        }
        for (const segment of held) buffers.free(segment);
        expect(buffers.tryAllocate(16 * S)).not.toBeNull();
      }),
    );
  });
});
