import { expect, test } from 'vitest';
import { FileSystemClaims } from './file-system-claims.js';
import { MemoryStore } from './memory-store.js';
import { ManualClock } from './testing/manual-clock.js';

const data = { uuid: 'u', name: 'data' };

async function cluster() {
  const clock = new ManualClock();
  const store = new MemoryStore(clock);
  const gone = new Set<number>();
  const node = async (nodeId: number) => {
    const connection = store.connect();
    const lease = await clock.run(connection.grantLease(5000));
    const claims = new FileSystemClaims({
      store: connection,
      self: { nodeId, incarnation: nodeId * 10 },
      lease: () => lease,
      isGone: (life) => gone.has(life.nodeId),
    });
    const die = (): Promise<void> => {
      gone.add(nodeId);
      return clock.run(lease.revoke());
    };
    /** Out of the view while its lease still runs. */
    const expel = (): void => void gone.add(nodeId);
    return { claims, die, expel };
  };
  return { clock, run: <T>(work: Promise<T>) => clock.run(work), one: await node(1), two: await node(2) };
}

test('a file system that is mounted is not checked or repaired, and one that is being repaired is not mounted', async () => {
  const { run, one, two } = await cluster();
  const release = await run(one.claims.use(data));
  for (const repairs of [true, false])
    await expect(run(two.claims.takeAlone(data, repairs))).rejects.toMatchObject({
      reason: 'busy',
      detail: 'node 1 has it mounted: unmount it first',
    });
  await run(release());
  const alone = await run(two.claims.takeAlone(data, true));
  await expect(run(one.claims.use(data))).rejects.toMatchObject({ reason: 'busy', detail: 'node 2 repairs it' });
  await expect(run(one.claims.takeAlone(data, false))).rejects.toMatchObject({ reason: 'busy' });
  await run(alone.done());
  await run((await run(one.claims.use(data)))());
});

test('of a mount and a repair that begin at the same time at most one goes on', async () => {
  const { run, one, two } = await cluster();
  const both = await run(Promise.allSettled([one.claims.use(data), two.claims.takeAlone(data, true)]));
  expect(both.filter(({ status }) => status === 'fulfilled').length).toBeLessThan(2);
});

test('a repair that was cut off keeps mounts out until another repair has come to its end; a check does not', async () => {
  const { run, one, two } = await cluster();
  await run(one.claims.takeAlone(data, true));
  await one.die();
  const cutOff = { reason: 'busy', detail: 'a repair of it was cut off: run holdfast fs check data --repair' };
  await expect(run(two.claims.use(data))).rejects.toMatchObject(cutOff);
  await run((await run(two.claims.takeAlone(data, false))).giveUp());
  await expect(run(two.claims.use(data))).rejects.toMatchObject(cutOff);
  await run((await run(two.claims.takeAlone(data, true))).done());
  await run((await run(two.claims.use(data)))());
});

test('who dies while it has it mounted, or checks it, keeps nobody out', async () => {
  const { run, one, two } = await cluster();
  await run(one.claims.use(data));
  await one.die();
  await run((await run(two.claims.takeAlone(data, true))).done());
});

test('who was expelled keeps nobody out, though its lease still runs', async () => {
  const { run, one, two } = await cluster();
  await run(one.claims.use(data));
  one.expel();
  await run((await run(two.claims.takeAlone(data, false))).giveUp());
});

test('a making that failed or was cut off is told from one that is under way, and from none', async () => {
  const { run, one, two } = await cluster();
  await run(one.claims.beginMaking('a'));
  await run(one.claims.beginMaking('b'));
  expect(await run(two.claims.wasNeverMade('a'))).toBe(false);
  await run(one.claims.endMaking('a', true));
  expect(await run(two.claims.wasNeverMade('a'))).toBe(true);
  expect(await run(two.claims.wasNeverMade('c'))).toBe(false);
  await one.die();
  expect(await run(two.claims.wasNeverMade('b'))).toBe(true);
});
