import { expect, test } from 'vitest';
import { deferred } from './deferred.js';
import { Wakeful } from './wakeful.js';

function made() {
  const asked: number[] = [];
  const clock = { ms: 0 };
  const wakeful = new Wakeful({ stayAwake: (forUs) => asked.push(forUs), nowMs: () => clock.ms });
  /** One that takes so long. */
  const take = async (ms: number, fails = false): Promise<void> => {
    const operation = deferred<void>();
    const over = wakeful.during(operation.promise).catch(() => undefined);
    clock.ms += ms;
    if (fails) operation.reject(new Error('no'));
    else operation.resolve();
    await over;
    await Promise.resolve();
  };
  return { asked, wakeful, take };
}

test('a processor is kept awake while an operation is under way, and a little longer, also when it fails', async () => {
  const { asked, take } = made();
  await take(0.2);
  await take(0.2, true);
  expect(asked).toEqual([2000, 300, 2000, 300]);
});

test('it may sleep again when the last of several has ended', async () => {
  const { asked, wakeful } = made();
  const [first, second] = [deferred<void>(), deferred<void>()];
  const both = [wakeful.during(first.promise), wakeful.during(second.promise)];
  first.resolve();
  await both[0];
  expect(asked).toEqual([2000, 2000]);
  second.resolve();
  await both[1];
  expect(asked).toEqual([2000, 2000, 300]);
});

test('what takes long is waited for asleep, and tried again ever more rarely', async () => {
  const { asked, take } = made();
  const triedAmong = async (count: number, ms: number): Promise<number> => {
    asked.length = 0;
    for (let i = 0; i < count; i++) await take(ms);
    return asked.filter((forUs) => forUs === 2000).length;
  };
  expect(await triedAmong(3, 10)).toBe(3);
  expect(await triedAmong(32, 10)).toBe(0);
  expect(await triedAmong(3, 10)).toBe(3);
  expect(await triedAmong(64, 10)).toBe(0);
  // And when it is fast again, each time.
  expect(await triedAmong(50, 0.1)).toBe(50);
});
