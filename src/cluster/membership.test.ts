import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { SeededRandom } from '../common/random.js';
import type { NodeRecord } from './membership-api.js';
import type { MembershipRuntime } from './membership-runtime.js';
import { ALIVE_PREFIX, lifeKey, StoreKey } from './records.js';
import { KEY, Lab, TTL_MS } from './testing/membership-lab.js';

const ids = (lab: Lab): number[] => lab.view.nodes.map((node) => node.nodeId);

async function started(...nodes: number[]): Promise<Lab> {
  const lab = new Lab({ latencyMs: () => 2 });
  for (const id of nodes) await lab.clock.run(lab.start(id));
  await lab.clock.advance(500);
  return lab;
}

describe('membership', () => {
  test('nodes that join one after the other are in the view, each token server moving the epoch', async () => {
    const lab = await started(1, 2, 3);
    expect(ids(lab)).toEqual([1, 2, 3]);
    expect(lab.view.tokenServers).toEqual([1, 2, 3]);
    expect(lab.view.epoch).toBe(3);
    for (const id of [1, 2, 3]) expect([...lab.node(id).runtime!.view.nodes.keys()]).toEqual([1, 2, 3]);
  });

  test('nodes that join at the same moment all get in', async () => {
    const lab = new Lab({ latencyMs: () => 2 });
    await lab.clock.run(Promise.all([1, 2, 3, 4, 5].map((id) => lab.start(id))));
    expect(ids(lab)).toEqual([1, 2, 3, 4, 5]);
  });

  test('a library node joins without moving the epoch and serves no tokens', async () => {
    const lab = await started(1);
    await lab.clock.run(lab.start(40_000, { full: false }));
    expect(lab.view).toMatchObject({ epoch: 1, tokenServers: [1] });
    expect(ids(lab)).toEqual([1, 40_000]);
  });

  test('a member that is reached in another way is known so to all, in the same epoch, also while others change the view', async () => {
    const lab = await started(1, 2);
    const rdma = { host: '10.0.0.2', port: 7002 };
    const address = { host: '127.0.0.1', port: 7002, rdma };
    lab.node(2).runtime!.addressChanged(address);
    const third = lab.start(3);
    lab.node(2).runtime!.addressChanged(address);
    await lab.clock.run(third);
    await lab.clock.advance(500);
    expect(lab.view.epoch).toBe(3);
    for (const id of [1, 2, 3]) {
      const { nodes } = lab.node(id).runtime!.view;
      expect([...nodes.values()].map((node) => node.address?.rdma)).toEqual([undefined, rdma, undefined]);
    }
    lab.crash(1);
    await lab.clock.advance(3 * TTL_MS);
    expect(ids(lab)).toEqual([2, 3]);
    expect(lab.view.nodes[0]?.address).toEqual(address);
  });

  test('an identity that is alive is refused', async () => {
    const lab = await started(1);
    const second = new Lab();
    expect(second.view.nodes).toEqual([]);
    const { runtime } = lab.node(1);
    await expect(lab.clock.run(lab.start(1, { identityWaitMs: 0 }))).rejects.toMatchObject({ reason: 'identityTaken' });
    expect(runtime?.phase).toBe('member');
  });

  test('a node with another cluster key is refused before it takes anything', async () => {
    const lab = await started(1);
    const wrong = lab.start(2, { key: new TextEncoder().encode('another key') });
    await expect(lab.clock.run(wrong)).rejects.toMatchObject({ reason: 'wrongKey' });
    expect(lab.store.snapshot().has(`${ALIVE_PREFIX}2`)).toBe(false);
    expect(KEY.length).toBeGreaterThan(0);
  });

  test('a lease is renewed for as long as the node lives', async () => {
    const lab = await started(1, 2);
    await lab.clock.advance(60_000);
    expect(lab.node(1).events).toEqual([]);
    expect(lab.node(1).deadlineMs).toBeGreaterThan(lab.clock.nowMs() + TTL_MS / 2);
  });

  test('F2: the deadline counts from when the acknowledged renewal was sent', async () => {
    const lab = new Lab({ latencyMs: () => 300 });
    await lab.clock.run(lab.start(1));
    await lab.clock.advance(20_000);
    const { ttlMs, leaseMarginMs } = lab.settings;
    // Answered 600 ms after it was sent.
    expect(lab.node(1).deadlineMs).toBeLessThanOrEqual(lab.clock.nowMs() - 600 + ttlMs - leaseMarginMs + 600);
    lab.node(1).connection!.setConnected(false);
    await lab.clock.advance(1);
    const last = lab.node(1).deadlineMs;
    await lab.clock.advance(last - lab.clock.nowMs() - 1);
    expect(lab.node(1).events).toEqual([]);
    await lab.clock.advance(2);
    expect(lab.node(1).events).toEqual(['suspended']);
  });

  test('F3: a node that gets its lease back before it was expelled goes on as if nothing had been', async () => {
    const lab = await started(1, 2, 3);
    const before = lab.view;
    lab.node(2).connection!.setConnected(false);
    await lab.clock.advance(TTL_MS + 500);
    expect(lab.node(2).events).toEqual(['suspended']);
    expect(lab.store.snapshot().has(`${ALIVE_PREFIX}2`)).toBe(false);
    lab.node(2).connection!.setConnected(true);
    await lab.clock.advance(2000);
    expect(lab.node(2).events).toEqual(['suspended', 'resumed']);
    expect(lab.view).toEqual(before);
    expect(lab.violations).toEqual([]);
  });

  test('F3: a node that comes back after it was expelled is fenced', async () => {
    const lab = await started(1, 2, 3);
    lab.node(2).connection!.setConnected(false);
    await lab.clock.advance(4 * TTL_MS);
    expect(ids(lab)).toEqual([1, 3]);
    lab.node(2).connection!.setConnected(true);
    await lab.clock.advance(2000);
    expect(lab.node(2).events).toEqual(['suspended', 'fenced']);
    expect(lab.node(2).deadlineMs).toBe(0);
    expect(lab.violations).toEqual([]);
  });

  test('F3: of a return and an expulsion that is already on its way exactly one succeeds', async () => {
    const outcomes = new Set<string>();
    for (let healAfterMs = 10_000; healAfterMs <= 13_000; healAfterMs += 150) {
      const lab = new Lab({ latencyMs: () => 2, callDeadlineMs: 5000 });
      // The driver's requests take so long that node 2 can come back while one is under way.
      await lab.clock.run(lab.start(1, { latencyMs: 700 }));
      await lab.clock.run(lab.start(2));
      await lab.clock.run(lab.start(3));
      await lab.clock.advance(2000);
      lab.node(2).connection!.setConnected(false);
      await lab.clock.advance(healAfterMs);
      lab.node(2).connection!.setConnected(true);
      await lab.clock.advance(TTL_MS);
      expect(lab.violations).toEqual([]);
      const [first, ...rest] = lab.node(2).events;
      expect([first, rest.length]).toEqual(['suspended', 1]);
      expect(ids(lab).includes(2)).toBe(rest[0] === 'resumed');
      outcomes.add(rest[0]!);
      for (const id of [1, 2, 3]) lab.crash(id);
    }
    expect([...outcomes].sort()).toEqual(['fenced', 'resumed']);
  });

  test('F1: a node that vanished is expelled in order: epoch, fence everywhere, tokens fall, cleaned up', async () => {
    const lab = await started(1, 2, 3);
    const epochBefore = lab.view.epoch;
    const life = lab.node(3).life!;
    lab.crash(3);
    await lab.clock.advance(TTL_MS);
    expect(ids(lab)).toEqual([1, 2, 3]);
    await lab.clock.advance(3 * TTL_MS);
    expect(lab.view).toMatchObject({ epoch: epochBefore + 1, tokenServers: [1, 2], expelling: [] });
    for (const id of [1, 2]) {
      expect([...lab.node(id).refuses]).toEqual([life]);
      expect(lab.node(id).fallen).toEqual([life]);
    }
    expect(lab.store.snapshot().has(`${ALIVE_PREFIX}3`)).toBe(false);
    expect(lab.violations).toEqual([]);
  });

  test('an expulsion whose driver dies is finished by the next node', async () => {
    const lab = await started(1, 2, 3);
    const life = lab.node(3).life!;
    lab.node(2).isolated = true; // node 1 can't reach node 2, so it can't get past the fence
    lab.crash(3);
    await lab.clock.advance(4 * TTL_MS);
    expect(lab.view.expelling).toHaveLength(1);
    expect(lab.node(1).fallen).toEqual([]);
    lab.crash(1);
    lab.node(2).isolated = false;
    await lab.clock.advance(4 * TTL_MS);
    expect(lab.view).toMatchObject({ expelling: [], tokenServers: [2] });
    expect(lab.node(2).fallen).toContain(life);
    expect(lab.violations).toEqual([]);
  });

  test('what can not be reached is never assumed to be quiet: no tokens fall until the last fence is acknowledged', async () => {
    const lab = await started(1, 2, 3);
    lab.node(2).isolated = true;
    lab.crash(3);
    await lab.clock.advance(10 * TTL_MS);
    expect(lab.node(1).fallen).toEqual([]);
    lab.node(2).isolated = false;
    await lab.clock.advance(TTL_MS);
    expect(lab.node(1).fallen).toHaveLength(1);
    expect(lab.violations).toEqual([]);
  });

  test('a node that is started again joins as a new incarnation while its old life is being cleaned up', async () => {
    const lab = await started(1, 2, 3);
    const old = lab.node(2).runtime!.self.incarnation;
    lab.crash(2);
    await lab.clock.run(lab.start(2));
    expect(lab.node(2).runtime!.self.incarnation).toBe(old + 1);
    // The newer claim is evidence enough: nobody waits for the time that a vanished node is given.
    expect(lab.clock.nowMs()).toBeLessThan(TTL_MS + 3000);
    await lab.clock.advance(TTL_MS);
    expect(lab.view.expelling).toEqual([]);
    expect(lab.node(1).fallen).toEqual([`2/${old}`]);
    expect(lab.violations).toEqual([]);
  });

  test('I6: the tokens of a life fall after those of the older lives of its node, though its own log is redone sooner', async () => {
    const lab = await started(1, 2, 3);
    const [first, second] = [lab.node(2).life!, `2/${lab.node(2).runtime!.self.incarnation + 1}`];
    lab.unreadable.add(first);
    lab.crash(2);
    await lab.clock.run(lab.start(2));
    expect(lab.node(2).life).toBe(second);
    lab.crash(2);
    await lab.clock.run(lab.start(2));
    await lab.clock.advance(4 * TTL_MS);
    expect(lab.view.expelling.map(lifeKey)).toEqual([first, second]);
    expect(lab.node(1).fallen).toEqual([]);
    lab.unreadable.clear();
    await lab.clock.advance(TTL_MS);
    expect(lab.view.expelling).toEqual([]);
    expect(lab.node(1).fallen).toEqual([first, second]);
    expect(lab.violations).toEqual([]);
  });

  test('after all nodes were killed the ones that start again expel their old lives', async () => {
    const lab = await started(1, 2, 3);
    for (const id of [1, 2, 3]) lab.crash(id);
    await lab.clock.run(Promise.all([2, 3].map((id) => lab.start(id))));
    await lab.clock.advance(4 * TTL_MS);
    expect(ids(lab)).toEqual([2, 3]);
    expect(lab.view.expelling).toEqual([]);
    await lab.clock.run(lab.start(1));
    expect(ids(lab)).toEqual([1, 2, 3]);
    expect(lab.violations).toEqual([]);
  });

  test('a file system gets a number that no other ever gets, those without one being the first', async () => {
    const lab = await started(1, 2);
    const allot = (id: number): Promise<number> =>
      lab.clock.run(lab.node(id).runtime!.allotFileSystemNumber(`made by ${id}`));
    expect(await Promise.all([1, 2, 1, 2].map(allot)).then((numbers) => numbers.sort())).toEqual([0, 1, 2, 3]);
    const older = await started(1);
    await older.clock.run(
      older.store.connect().put(StoreKey.fileSystem('older'), '{"uuid":"u","nsds":[],"createdMs":1}'),
    );
    expect((await older.clock.run(older.node(1).runtime!.fileSystem('older')))?.number).toBe(0);
    expect(await older.clock.run(older.node(1).runtime!.allotFileSystemNumber('newer'))).toBe(1);
    await older.clock.run(older.store.connect().put(StoreKey.nextFileSystemNumber, '2048'));
    await expect(older.clock.run(older.node(1).runtime!.allotFileSystemNumber('last'))).rejects.toMatchObject({
      reason: 'notSupported',
    });
  });

  test('a clean leave takes effect at once, moves the epoch and frees the identity', async () => {
    const lab = await started(1, 2, 3);
    const at = lab.clock.nowMs();
    await lab.clock.run(lab.leave(3));
    await lab.clock.advance(500);
    expect(lab.clock.nowMs() - at).toBeLessThan(1500);
    expect(lab.view).toMatchObject({ epoch: 4, tokenServers: [1, 2], expelling: [] });
    expect(lab.node(1).fallen).toHaveLength(1);
    await lab.clock.run(lab.start(3, { identityWaitMs: 0 }));
    expect(ids(lab)).toEqual([1, 2, 3]);
    expect(lab.violations).toEqual([]);
  });

  test('a node that leaves with something in its log is expelled by that, at once: its own end, and F1 for the others', async () => {
    const lab = await started(1, 2, 3);
    const { epoch } = lab.view;
    const life = lab.node(3).life!;
    lab.unreadable.add(life);
    await lab.clock.run(lab.leave(3, false));
    expect(lab.node(3).events).not.toContain('fenced');
    expect(lab.view).toMatchObject({ epoch: epoch + 1, expelling: [{ nodeId: 3, clean: false }] });
    lab.unreadable.clear();
    await lab.clock.advance(TTL_MS);
    expect(lab.view.expelling).toEqual([]);
    for (const id of [1, 2]) expect([...lab.node(id).refuses]).toEqual([life]);
    expect(lab.node(1).fallen).toEqual([life]);
    expect(lab.violations).toEqual([]);
  });

  test('the last node to leave leaves nothing behind', async () => {
    const lab = await started(1);
    await lab.clock.run(lab.leave(1));
    await lab.clock.advance(10);
    expect(lab.view).toMatchObject({ nodes: [], tokenServers: [], expelling: [] });
  });

  test('I7: while the store is away everyone is suspended and nobody is expelled, and all go on when it is back', async () => {
    const lab = await started(1, 2, 3);
    const before = lab.view;
    lab.store.setAvailable(false);
    await lab.clock.advance(10 * TTL_MS);
    for (const id of [1, 2, 3]) expect(lab.node(id).events).toEqual(['suspended']);
    expect(lab.view).toEqual(before);
    lab.store.setAvailable(true);
    await lab.clock.advance(3000);
    for (const id of [1, 2, 3]) expect(lab.node(id).events).toEqual(['suspended', 'resumed']);
    expect(lab.view).toEqual(before);
    expect(lab.violations).toEqual([]);
  });

  test('a record in the store that is none is refused and changes nothing', async () => {
    const lab = await started(1, 2);
    const other = lab.store.connect();
    const good = lab.view;
    await lab.clock.run(other.put('view', '{"epoch":"high"}'));
    await lab.clock.advance(1000);
    expect(lab.node(1).runtime!.view.nodes.size).toBe(2);
    expect(lab.node(1).runtime!.phase).toBe('member');
    await lab.clock.run(other.put('view', JSON.stringify(good)));
    await lab.clock.run(lab.start(3));
    expect(lab.node(3).runtime!.phase).toBe('member');
  });

  type Fault =
    | {
        readonly kind: 'crash' | 'start' | 'cut' | 'heal' | 'isolate' | 'reconnect' | 'leave' | 'move';
        readonly node: number;
      }
    | { readonly kind: 'storeDown' | 'storeUp' | 'compact' };
  const faultArbitrary: fc.Arbitrary<Fault> = fc.oneof(
    fc.record({
      kind: fc.constantFrom('crash', 'start', 'cut', 'heal', 'isolate', 'reconnect', 'leave', 'move'),
      node: fc.integer({ min: 1, max: 4 }),
    }),
    fc.record({ kind: fc.constantFrom('storeDown', 'storeUp', 'compact') }),
  );

  const moved = new WeakMap<MembershipRuntime, NodeRecord['address']>();
  let moves = 1;

  function inject(lab: Lab, fault: Fault): void {
    switch (fault.kind) {
      case 'storeDown':
      case 'storeUp':
        lab.store.setAvailable(fault.kind === 'storeUp');
        return;
      case 'compact':
        lab.store.compact();
        return;
    }
    const node = lab.node(fault.node);
    switch (fault.kind) {
      case 'crash':
        lab.crash(fault.node);
        break;
      case 'start':
        if (node.connection === null || node.events.includes('fenced')) {
          lab.crash(fault.node);
          lab.start(fault.node).catch(() => undefined);
        }
        break;
      case 'cut':
      case 'heal':
        node.connection?.setConnected(fault.kind === 'heal');
        break;
      case 'isolate':
      case 'reconnect':
        node.isolated = fault.kind === 'isolate';
        break;
      case 'move':
        // Reached in another way; only who listens can be.
        if (node.full && node.runtime !== null) {
          const address = {
            host: '127.0.0.1',
            port: 7000 + node.id,
            rdma: { host: '10.0.0.1', port: 1 + (moves++ % 60_000) },
          };
          node.runtime.addressChanged(address);
          if (node.runtime.phase === 'member') moved.set(node.runtime, address);
        }
        break;
      case 'leave':
        lab.leave(fault.node).then(
          () => lab.crash(fault.node),
          () => undefined,
        );
        break;
    }
  }

  test('F1, F3, I7: under any schedule of faults nobody serves beyond an expulsion, and all is well when the faults end', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer(),
        fc.array(fc.tuple(faultArbitrary, fc.integer({ min: 0, max: 2 * TTL_MS })), { maxLength: 14 }),
        async (seed, schedule) => {
          const random = new SeededRandom(seed);
          const lab = new Lab({ latencyMs: () => 1 + random.next() * 40 });
          for (const id of [1, 2, 3, 4]) await lab.clock.run(lab.start(id, { full: id !== 4 }));
          for (const [fault, waitMs] of schedule) {
            inject(lab, fault);
            await lab.clock.advance(waitMs);
            expect(lab.violations).toEqual([]);
          }
          lab.store.setAvailable(true);
          for (const node of lab.nodes.values()) {
            node.isolated = false;
            node.connection?.setConnected(true);
          }
          await lab.clock.advance(6 * TTL_MS);
          for (const node of lab.nodes.values())
            if (node.runtime === null || node.runtime.phase !== 'member') {
              lab.crash(node.id);
              await lab.clock.advance(2 * TTL_MS);
              await lab.clock.run(lab.start(node.id));
            }
          await lab.clock.advance(6 * TTL_MS);
          expect(lab.violations).toEqual([]);
          expect(lab.view).toMatchObject({ tokenServers: [1, 2, 3], expelling: [] });
          for (const node of lab.nodes.values()) {
            expect(node.runtime?.phase).toBe('member');
            expect(node.runtime?.suspended).toBe(false);
            expect(node.runtime?.view.epoch).toBe(lab.view.epoch);
            const address = moved.get(node.runtime!);
            if (address !== undefined) expect(node.runtime!.view.nodes.get(node.id)?.address).toEqual(address);
          }
          for (const [key, value] of lab.store.snapshot())
            if (key.startsWith(ALIVE_PREFIX))
              expect(lab.view.nodes).toContainEqual(
                expect.objectContaining({
                  nodeId: Number(key.slice(ALIVE_PREFIX.length)),
                  incarnation: JSON.parse(value).incarnation,
                }),
              );
          for (const id of lab.nodes.keys()) lab.crash(id);
        },
      ),
      { numRuns: 400 },
    );
  });
});
