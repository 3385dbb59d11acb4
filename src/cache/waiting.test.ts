import { describe, expect, it } from 'vitest';
import { RangeLock } from './range-lock.js';
import { ManualClock } from './testing.js';
import { WaitQueue } from './wait-queue.js';

describe('a lock on ranges', () => {
  it('lets readers share, and a writer behind them go before readers that come later', async () => {
    const lock = new RangeLock();
    const order: string[] = [];
    const first = await lock.take(0, 10, false);
    const second = await lock.take(5, 15, false);
    const writer = lock.take(8, 12, true).then((held) => {
      order.push('writer');
      return held;
    });
    const late = lock.take(9, 10, false).then((held) => {
      order.push('late reader');
      return held;
    });
    expect(lock.tryTake(20, 30, true)).not.toBeNull();
    expect(lock.tryTake(9, 10, false)).toBeNull();
    lock.release(first);
    lock.release(second);
    lock.release(await writer);
    lock.release(await late);
    expect(order).toEqual(['writer', 'late reader']);
  });

  it('lets those behind an aborted waiter go on', async () => {
    const lock = new RangeLock();
    const reader = await lock.take(0, 10, false);
    const abort = new AbortController();
    const writer = lock.take(0, 10, true, abort.signal);
    const behind = lock.take(0, 10, false);
    abort.abort();
    await expect(writer).rejects.toMatchObject({ code: 'ABORT_ERR' });
    lock.release(await behind);
    lock.release(reader);
    expect(lock.isFree(0, 10, true)).toBe(true);
  });
});

describe('a queue of waiters', () => {
  function queue(waitersMax = 10) {
    const clock = new ManualClock();
    const stock = { count: 0 };
    const waiting = new WaitQueue<number>({
      clock,
      what: 'tests',
      waitersMax,
      deadlineMs: 1000,
      tryTake: (count) => {
        if (stock.count < count) return null;
        stock.count -= count;
        return count;
      },
    });
    return { clock, stock, waiting };
  }

  it('serves in order: a small wish waits behind a large one', async () => {
    const { clock, stock, waiting } = queue();
    const order: number[] = [];
    const all = [3, 1].map((count) => waiting.take(count).then(() => order.push(count)));
    stock.count = 2;
    waiting.pump();
    await clock.settle();
    expect(order).toEqual([]);
    expect(waiting.takeNow(1)).toBeNull();
    stock.count = 4;
    waiting.pump();
    await Promise.all(all);
    expect(order).toEqual([3, 1]);
  });

  it('ends every wait: at the deadline, by abort, when it is full, when it is closed', async () => {
    const { clock, stock, waiting } = queue(3);
    const abort = new AbortController();
    const late = waiting.take(1);
    const aborted = waiting.take(1, abort.signal);
    const closed = waiting.take(5);
    await expect(waiting.take(1)).rejects.toMatchObject({ code: 'EAGAIN' });
    abort.abort();
    await expect(aborted).rejects.toMatchObject({ code: 'ABORT_ERR' });
    waiting.rejectAll(new Error('closed'));
    await expect(late).rejects.toThrow('closed');
    await expect(closed).rejects.toThrow('closed');
    await expect(clock.until(waiting.take(1))).rejects.toMatchObject({ code: 'ETIMEDOUT' });
    stock.count = 1;
    expect(waiting.takeNow(1)).toBe(1);
  });
});
