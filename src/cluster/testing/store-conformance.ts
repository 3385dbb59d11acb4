import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { ClusterStore, StoreChange } from '../cluster-store.js';

/** What every ClusterStore promises; run on each implementation by its own test file. */
export interface StoreUnderTest {
  /** Another connection to the same store, fresh namespace per test. */
  connect(namespace: string): ClusterStore;
  /** Lets virtual or real time pass until the promise is settled. */
  run<T>(promise: Promise<T>): Promise<T>;
  /** Virtual or real time. */
  pass(durationMs: number): Promise<void>;
  /** Makes the store forget the changes up to now. */
  compact(): Promise<void>;
  stop(): Promise<void>;
}

export function storeConformance(name: string, start: () => Promise<StoreUnderTest>): void {
  describe(`${name} as a ClusterStore`, () => {
    let under: StoreUnderTest;
    let store: ClusterStore;
    let other: ClusterStore;
    let count = 0;

    beforeAll(async () => {
      under = await start();
    });
    afterAll(async () => {
      await under?.stop();
    });
    beforeEach(() => {
      const namespace = `test-${process.pid}-${count++}`;
      store = under.connect(namespace);
      other = under.connect(namespace);
    });
    afterEach(async () => {
      await store.close();
      await other.close();
    });

    /** Real stores deliver when they deliver: wait for the condition, bounded. */
    async function until(condition: () => boolean): Promise<void> {
      for (let i = 0; i < 500 && !condition(); i++) await under.pass(10);
      expect(condition()).toBe(true);
    }

    test('a key that was never written reads as null', async () => {
      expect(await under.run(store.get('nothing'))).toBeNull();
    });

    test('what is put through one connection is read through another with its revision', async () => {
      const revision = await under.run(store.put('a', 'one ☃'));
      expect(await under.run(other.get('a'))).toEqual({ key: 'a', value: 'one ☃', revision });
    });

    test('list returns the keys of a prefix in order, and no others', async () => {
      for (const key of ['nodes/2', 'nodes/1', 'nodes', 'nodesx', 'other/1']) await under.run(store.put(key, key));
      const { entries, revision } = await under.run(other.list('nodes/'));
      expect(entries.map((entry) => entry.key)).toEqual(['nodes/1', 'nodes/2']);
      expect(revision).toBeGreaterThanOrEqual(Math.max(...entries.map((entry) => entry.revision)));
    });

    test('list of the empty prefix returns everything', async () => {
      await under.run(store.put('x', '1'));
      await under.run(store.put('y', '2'));
      expect((await under.run(store.list(''))).entries.map((entry) => entry.key)).toEqual(['x', 'y']);
    });

    test('compare-and-swap from revision 0 creates a key once', async () => {
      expect((await under.run(store.compareAndSwap('k', 0, 'first'))).ok).toBe(true);
      expect(await under.run(other.compareAndSwap('k', 0, 'second'))).toEqual({ ok: false });
      expect((await under.run(store.get('k')))?.value).toBe('first');
    });

    test('of two compare-and-swaps on one revision exactly one succeeds', async () => {
      const revision = await under.run(store.put('k', '0'));
      const results = await under.run(
        Promise.all([store.compareAndSwap('k', revision, 'a'), other.compareAndSwap('k', revision, 'b')]),
      );
      expect(results.filter((result) => result.ok)).toHaveLength(1);
    });

    test('a compare-and-swap answers the revision that the next one must name', async () => {
      const first = await under.run(store.compareAndSwap('k', 0, '1'));
      expect(first.ok && (await under.run(store.compareAndSwap('k', first.revision, '2'))).ok).toBe(true);
      expect(first.ok && (await under.run(store.compareAndSwap('k', first.revision, '3'))).ok).toBe(false);
    });

    test('delete says whether there was a key, and spares one that was changed since', async () => {
      const revision = await under.run(store.put('k', '1'));
      await under.run(store.put('k', '2'));
      expect(await under.run(store.delete('k', revision))).toBe(false);
      expect((await under.run(store.get('k')))?.value).toBe('2');
      expect(await under.run(store.delete('k'))).toBe(true);
      expect(await under.run(store.delete('k'))).toBe(false);
    });

    test('a key that was deleted can be created again from revision 0', async () => {
      await under.run(store.put('k', '1'));
      await under.run(store.delete('k'));
      expect((await under.run(store.compareAndSwap('k', 0, '2'))).ok).toBe(true);
    });

    test('a watch delivers every change of its prefix behind a revision, in order, with values', async () => {
      const from = await under.run(store.put('w/a', 'before'));
      const seen: StoreChange[] = [];
      const watch = other.watch(
        'w/',
        from,
        (change) => seen.push(change),
        () => undefined,
      );
      await under.run(store.put('w/a', '1'));
      await under.run(store.put('v', 'not ours'));
      await under.run(store.put('w/b', '2'));
      await under.run(store.delete('w/a'));
      await until(() => seen.length >= 3);
      expect(seen.map(({ type, key, value }) => [type, key, value])).toEqual([
        ['put', 'w/a', '1'],
        ['put', 'w/b', '2'],
        ['delete', 'w/a', ''],
      ]);
      expect(seen.map((change) => change.revision)).toEqual([...seen.map((c) => c.revision)].sort((a, b) => a - b));
      watch.close();
    });

    test('a watch begins with changes that happened before it was opened', async () => {
      const { revision } = await under.run(store.list(''));
      await under.run(store.put('w', 'early'));
      const seen: string[] = [];
      const watch = store.watch(
        'w',
        revision,
        (change) => seen.push(change.value),
        () => undefined,
      );
      await until(() => seen.length === 1);
      watch.close();
    });

    test('a watch that begins thousands of changes behind delivers every one', async () => {
      const from = await under.run(store.put('w', 'start'));
      const count = 2500;
      for (let i = 0; i < count; i += 50)
        await under.run(Promise.all(Array.from({ length: 50 }, (_, k) => store.put('w', `${i + k}`))));
      let seen = 0;
      let last = '';
      const watch = store.watch(
        'w',
        from,
        (change) => {
          seen++;
          last = change.value;
        },
        () => undefined,
      );
      await until(() => last !== '' && seen >= count);
      expect(seen).toBe(count);
      watch.close();
    });

    test('a closed watch delivers nothing more', async () => {
      const seen: string[] = [];
      const watch = store.watch(
        '',
        await under.run(store.put('w', '0')),
        (c) => seen.push(c.value),
        () => undefined,
      );
      await under.run(store.put('w', '1'));
      await until(() => seen.length === 1);
      watch.close();
      await under.run(store.put('w', '2'));
      await under.pass(50);
      expect(seen).toEqual(['1']);
    });

    test('a watch whose changes were compacted away reports a gap and goes on', async () => {
      const from = await under.run(store.put('w', '0'));
      await under.run(store.put('w', '1'));
      await under.run(store.put('w', '2'));
      await under.compact();
      let gaps = 0;
      const seen: string[] = [];
      const watch = store.watch(
        'w',
        from,
        (change) => seen.push(change.value),
        () => gaps++,
      );
      await until(() => gaps > 0);
      await under.run(store.put('w', '3'));
      await until(() => seen.includes('3'));
      expect(gaps).toBe(1);
      watch.close();
    });

    test('a key with a lease stays while the lease is renewed and goes when it runs out', async () => {
      const lease = await under.run(store.grantLease(1000));
      expect(lease.ttlMs).toBeGreaterThanOrEqual(1000);
      await under.run(store.compareAndSwap('alive', 0, 'me', lease));
      for (let passed = 0; passed < lease.ttlMs * 2; passed += 250) {
        await under.run(lease.renew());
        await under.pass(250);
      }
      expect(await under.run(other.get('alive'))).not.toBeNull();
      const seen: StoreChange[] = [];
      const watch = other.watch(
        'alive',
        (await under.run(other.list(''))).revision,
        (c) => seen.push(c),
        () => undefined,
      );
      await until(() => seen.length > 0);
      expect(seen[0]?.type).toBe('delete');
      expect(await under.run(other.get('alive'))).toBeNull();
      await expect(under.run(lease.renew())).rejects.toMatchObject({ reason: 'notFound' });
      await expect(under.run(store.put('alive', 'me', lease))).rejects.toMatchObject({ reason: 'notFound' });
      watch.close();
    });

    test('revoking a lease removes its keys at once, twice does no harm', async () => {
      const lease = await under.run(store.grantLease(60_000));
      await under.run(store.put('alive', 'me', lease));
      await under.run(lease.revoke());
      expect(await under.run(other.get('alive'))).toBeNull();
      await under.run(lease.revoke());
    });

    test('a key written again without the lease outlives it', async () => {
      const lease = await under.run(store.grantLease(60_000));
      await under.run(store.put('k', 'leased', lease));
      await under.run(store.put('k', 'free'));
      await under.run(lease.revoke());
      expect((await under.run(store.get('k')))?.value).toBe('free');
    });

    test('a closed store refuses calls', async () => {
      await store.close();
      await expect(under.run(store.get('k'))).rejects.toMatchObject({ reason: 'closed' });
    });
  });
}
