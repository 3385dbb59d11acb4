import { afterEach, expect, test } from 'vitest';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { nodeId } from '../common/ids.js';
import type { PoolSegment } from '../native/page-pool.js';
import type { BlockDevice } from '../nsd/nsd-api.js';
import { eventually } from './testing/counting.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

/** An NSD with two servers: one serves, the other takes over by S4's steps; node 3 is a client, and where the target is. */
let cluster: LocalCluster | null = null;
let release = (): void => undefined;
afterEach(async () => {
  // Nothing is held back when the nodes end, whatever a test came to.
  release();
  await cluster?.close();
  cluster = null;
});

/**
 * The target in front of the shared file: lets each server through until it is shut out, which waits for what is at the file already. A write
 * can be held back on its way there.
 */
class Target {
  readonly #shut = new Set<number>();
  readonly #inside = new Map<number, Set<Promise<void>>>();
  readonly shutOuts: string[] = [];
  hold: { readonly server: number; readonly arrived: () => void; readonly released: Promise<void> } | null = null;

  door(server: number, device: BlockDevice): BlockDevice {
    const through = async (work: () => Promise<void>): Promise<void> => {
      if (this.#shut.has(server))
        throw new FsError('deviceError', { op: 'device', object: `path ${server}`, detail: 'shut' });
      const inside = this.#inside.get(server) ?? new Set();
      this.#inside.set(server, inside);
      const running = work();
      inside.add(running);
      await running.finally(() => inside.delete(running));
    };
    return {
      lengthBytes: device.lengthBytes,
      logicalBlockBytes: device.logicalBlockBytes,
      read: (offsetBytes: number, memory: PoolSegment) => through(() => device.read(offsetBytes, memory)),
      write: async (offsetBytes, memory) => {
        if (this.hold?.server === server) {
          this.hold.arrived();
          await this.hold.released;
        }
        await through(() => device.write(offsetBytes, memory));
      },
      flush: () => through(() => device.flush()),
      discard: (offsetBytes, lengthBytes) => through(() => device.discard(offsetBytes, lengthBytes)),
      close: () => device.close(),
    };
  }
  shutOut = async (subsystem: string): Promise<void> => {
    const server = Number(subsystem.split(':')[1]);
    this.shutOuts.push(subsystem);
    this.#shut.add(server);
    await Promise.allSettled([...(this.#inside.get(server) ?? [])]);
  };
}

async function start(target: Target, options: { readonly withTarget: boolean }): Promise<LocalCluster> {
  const shared = (index: number, directory: string) => ({
    name: 'shared',
    path: directory,
    sizeBytes: 256 << 20,
    failureGroup: 1,
    shared: true,
    lock: false,
    format: index === 0,
    ...(options.withTarget ? { target: { nodeId: nodeId(3), subsystem: `nqn.server:${index + 1}` } } : {}),
  });
  cluster = await startLocalCluster({ nodes: 0, fileSystem: null, pagePoolBytes: 64 << 20 });
  for (let index = 0; index < 3; index++)
    await cluster.start(index, {
      nsds: index < 2 ? [shared(index, cluster.nsdPath(0))] : [],
      target: { shutOut: target.shutOut },
      wrapDevice: (device) => target.door(index + 1, device),
    });
  await cluster.engines[2]!.createFileSystem('test');
  return cluster;
}
const servingAt = (it: LocalCluster, index: number): number | null =>
  [...it.engines[index]!.membership.view.nsds.values()][0]!.serving;

test('a takeover while a client writes: no error, no byte lost, and back again', async () => {
  const it = await start(new Target(), { withTarget: false });
  expect(servingAt(it, 2)).toBe(1);
  expect(it.engines[1]!.stores).toEqual([]);
  const client = it.client(2);
  let going = true;
  const written: number[] = [];
  const writer = (async () => {
    const file = await client.open('/f', 'w+');
    for (let i = 0; going || i < 20; i++) {
      await file.write(Buffer.alloc(40_000, i & 0xff), 0, 40_000, i * 40_000);
      await file.sync();
      written.push(i & 0xff);
    }
    await file.close();
  })();
  for (const to of [2, 1, 2]) {
    await it.engines[to - 1]!.takeover('shared', null);
    expect(it.engines[to - 1]!.stores).toHaveLength(1);
    await eventually('the other has let go', () => it.engines[2 - to]!.stores.length === 0);
  }
  going = false;
  await writer;
  await it.engines[2]!.unmount();
  const bytes = await client.readFile('/f');
  expect(bytes.length).toBe(written.length * 40_000);
  for (const [i, value] of written.entries())
    expect(bytes.subarray(i * 40_000, (i + 1) * 40_000).every((byte) => byte === value)).toBe(true);
});

test('a server that does not answer is shut out at the target; a write held back on its path can not land', async () => {
  const target = new Target();
  const it = await start(target, { withTarget: true });
  const client = it.client(2);
  await client.writeFile('/f', Buffer.alloc(300_000, 1));
  await it.engines[2]!.fileSystem.sync();

  const arrived = deferred<void>();
  const released = deferred<void>();
  release = released.resolve;
  target.hold = { server: 1, arrived: () => arrived.resolve(), released: released.promise };
  const file = await client.open('/f', 'r+');
  await file.write(Buffer.alloc(300_000, 2), 0, 300_000, 0);
  const syncing = file.sync();
  await arrived.promise;

  // Node 1 waits for the write that is on its way to the device, so it can't say that it has let go.
  await it.engines[1]!.takeover('shared', null);
  expect(target.shutOuts).toEqual(['nqn.server:1']);
  expect(it.engines[2]!.metrics.get('nsd.shutOuts')).toBe(1);
  await syncing;
  await file.write(Buffer.alloc(300_000, 3), 0, 300_000, 0);
  await file.sync();
  released.resolve();
  await eventually('node 1 has closed its device', () => it.engines[0]!.stores.length === 0);
  await file.close();
  await it.engines[2]!.unmount();
  expect((await client.readFile('/f')).every((byte) => byte === 3)).toBe(true);
});

test('without a target a server that can not let go is waited for, and nobody else serves meanwhile', async () => {
  const target = new Target();
  const it = await start(target, { withTarget: false });
  const client = it.client(2);
  await client.writeFile('/f', Buffer.alloc(300_000, 1));
  await it.engines[2]!.fileSystem.sync();
  const arrived = deferred<void>();
  const released = deferred<void>();
  release = released.resolve;
  target.hold = { server: 1, arrived: () => arrived.resolve(), released: released.promise };
  const file = await client.open('/f', 'r+');
  await file.write(Buffer.alloc(300_000, 2), 0, 300_000, 0);
  const syncing = file.sync();
  await arrived.promise;
  const moving = it.engines[1]!.takeover('shared', null);
  await eventually('the takeover waits', () => it.engines[1]!.metrics.get('nsd.takeoverWaits') > 0);
  expect(it.engines[1]!.stores).toEqual([]);
  released.resolve();
  await moving;
  await syncing;
  await file.close();
  await it.engines[2]!.unmount();
  expect((await client.readFile('/f')).every((byte) => byte === 2)).toBe(true);
});

test('a server that leaves gives the NSD to the next one; an empty shared device is not formatted by chance', async () => {
  const it = await start(new Target(), { withTarget: false });
  const client = it.client(2);
  await client.writeFile('/f', 'here');
  await it.engines[0]!.close();
  await eventually('node 2 serves', () => servingAt(it, 2) === 2);
  await it.engines[2]!.unmount();
  expect(await client.readFile('/f', 'utf8')).toBe('here');
  const empty = it.start(3, {
    nsds: [{ name: 'other', path: it.nsdPath(7), sizeBytes: 64 << 20, failureGroup: 1, shared: true }],
  });
  await expect(empty).rejects.toMatchObject({ reason: 'badConfiguration' });
});
