import { expect, test } from 'vitest';
import { MemoryStore } from './memory-store.js';
import { ManualClock } from './testing/manual-clock.js';
import { storeConformance } from './testing/store-conformance.js';

storeConformance('MemoryStore', async () => {
  const clock = new ManualClock();
  const stores = new Map<string, MemoryStore>();
  return {
    connect: (namespace) => {
      const store = stores.get(namespace) ?? new MemoryStore(clock);
      stores.set(namespace, store);
      return store.connect();
    },
    run: (promise) => clock.run(promise),
    pass: (durationMs) => clock.advance(durationMs),
    compact: async () => {
      for (const store of stores.values()) store.compact();
    },
    stop: async () => undefined,
  };
});

test('a call to an unavailable store fails at its deadline and changes nothing', async () => {
  const clock = new ManualClock();
  const store = new MemoryStore(clock, { callDeadlineMs: 300 });
  const connection = store.connect();
  store.setAvailable(false);
  const call = connection.put('k', 'v');
  call.catch(() => undefined);
  await clock.advance(299);
  store.setAvailable(true);
  await expect(clock.run(call)).rejects.toMatchObject({ reason: 'storeUnavailable' });
  expect(clock.nowMs()).toBeLessThan(320);
  expect(store.read('k')).toBeNull();
});

test('a call cut between execution and answer has executed and fails all the same', async () => {
  const clock = new ManualClock();
  const store = new MemoryStore(clock, { latencyMs: () => 10 });
  const connection = store.connect();
  const call = connection.put('k', 'v');
  call.catch(() => undefined);
  await clock.advance(15);
  connection.setConnected(false);
  await expect(clock.run(call)).rejects.toMatchObject({ reason: 'storeUnavailable' });
  expect(store.read('k')?.value).toBe('v');
});

test('a node that was cut off from the store hears on its return what it missed', async () => {
  const clock = new ManualClock();
  const store = new MemoryStore(clock);
  const [cut, writer] = [store.connect(), store.connect()];
  const seen: string[] = [];
  cut.watch(
    '',
    0,
    (change) => seen.push(change.value),
    () => undefined,
  );
  cut.setConnected(false);
  await clock.run(writer.put('k', '1'));
  await clock.run(writer.put('k', '2'));
  expect(seen).toEqual([]);
  cut.setConnected(true);
  await clock.advance(1);
  expect(seen).toEqual(['1', '2']);
});

test('a lease runs out by the clock while the store is unavailable', async () => {
  const clock = new ManualClock();
  const store = new MemoryStore(clock);
  const connection = store.connect();
  const lease = await clock.run(connection.grantLease(1000));
  await clock.run(connection.put('alive', 'me', lease));
  store.setAvailable(false);
  await clock.advance(1001);
  expect(store.read('alive')).toBeNull();
});
