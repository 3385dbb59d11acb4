import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RdmaDevice } from '../../../hw-test/guest/rdma-device.js';
import { liveObjects } from '../lib/index.js';
import { ADDRESS, MIB, Setup } from './support.js';

setFlagsFromString('--expose_gc');
const collectGarbage = runInNewContext('gc') as () => void;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const NOTHING = {
  devices: 0,
  protectionDomains: 0,
  memoryRegions: 0,
  memoryWindows: 0,
  sharedReceiveQueues: 0,
  completionQueues: 0,
  queuePairs: 0,
  eventChannels: 0,
  connectionIds: 0,
};
async function settled(): Promise<Record<string, number>> {
  for (let i = 0; i < 10; i++) await turn();
  return liveObjects();
}
const descriptors = (): number => readdirSync('/proc/self/fd').length;

let setup: Setup;
beforeEach(() => {
  setup = new Setup();
});
afterEach(async () => {
  setup.close();
  expect(await settled()).toEqual(NOTHING);
});

/** 10,000 with HOLDFAST_TEST_FULL. */
const ROUNDS = process.env['HOLDFAST_TEST_FULL'] === '1' ? 10_000 : 1000;

describe('connections', () => {
  it(`come and go ${ROUNDS} times without a leak`, { timeout: 3_600_000 }, async () => {
    const before = liveObjects();
    let memoryBefore = 0;
    let descriptorsBefore = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const [left, right] = await setup.pair({ maxSend: 4, maxReceive: 4 });
      right.pair.receive(setup.region.segment(64, 64), 1);
      right.pair.post();
      left.pair.send(setup.region.segment(0, 8), { id: 2 });
      await left.post(2);
      await right.completion(1);
      // In all orders.
      if (round % 3 === 0) left.id.disconnect();
      if (round % 2 === 0) left.close();
      right.close();
      left.close();
      if (round === 99) {
        collectGarbage();
        memoryBefore = process.memoryUsage.rss();
        descriptorsBefore = descriptors();
      }
    }
    expect(await settled()).toEqual(before);
    collectGarbage();
    expect(descriptors()).toBeLessThanOrEqual(descriptorsBefore);
    // 1,000 leaked queue pairs of the smallest size would be more.
    expect((process.memoryUsage.rss() - memoryBefore) / MIB).toBeLessThan(40);
  });

  it('that are only half made are cleaned up too', async () => {
    const before = liveObjects();
    const listener = setup.channel.createId();
    listener.bind(ADDRESS, 0);
    listener.listen();
    const { port } = listener.localAddress as { port: number };
    for (let round = 0; round < 20; round++) {
      const id = setup.channel.createId();
      if (round % 4 === 0) {
        id.close();
        continue;
      }
      const resolving = id.resolveAddress(ADDRESS, port);
      if (round % 4 === 1) {
        id.close();
        await expect(resolving).rejects.toMatchObject({ code: 'ECANCELED' });
        continue;
      }
      await resolving;
      if (round % 4 === 2) {
        id.close();
        continue;
      }
      await id.resolveRoute();
      // Nobody answers the request: whoever waits is told.
      const queue = setup.device.createCompletionQueue({ depth: 512, onCompletions: null });
      const pair = id.createQueuePair({ protectionDomain: setup.domain, sendCompletions: queue });
      const connecting = id.connect({ queuePair: pair, timeoutMs: 50 });
      await expect(connecting).rejects.toMatchObject({ code: 'ETIMEDOUT' });
      id.close();
      queue.close();
    }
    // The requests that nobody answered end with their listener.
    listener.close();
    const after = await settled();
    expect(after['queuePairs']).toBe(before['queuePairs']);
    expect(after['completionQueues']).toBe(before['completionQueues']);
  });
});

describe('closing in any order', () => {
  it('from the root: everything below goes first', async () => {
    const [left] = await setup.pair();
    const window = setup.domain.allocateWindow();
    left.pair.bindWindow(window, setup.region, 0, 4096, { remoteRead: true }, { id: 1 });
    await left.post(1);
    for (let i = 0; i < 8; i++)
      left.pair.write(setup.region.segment(0, MIB), setup.region.remoteSegment(MIB), { id: i });
    left.pair.post();
    setup.device.close();
    expect([left.pair.closed, window.closed, setup.region.closed, left.queue.closed]).toEqual([true, true, true, true]);
    expect(() => left.queue.poll()).toThrow(/EBADF/);
    setup.device.close();
  });

  it('the queue first, the connection last', async () => {
    const [left, right] = await setup.pair();
    left.queue.close();
    expect(left.pair.closed).toBe(true);
    left.pair.close();
    setup.region.close();
    setup.domain.close();
    setup.domain.close();
    expect(() => setup.domain.allocateWindow()).toThrow();
    left.id.close();
    right.close();
  });
});

describe('the garbage collector', () => {
  it('takes nothing that is in use, and everything that is not', async () => {
    const [left, right] = await setup.pair();
    await (async () => {
      const buffer = new ArrayBuffer(MIB);
      const region = setup.domain.registerMemory(buffer, { localWrite: true });
      setup.bytes.fill(5, 0, MIB);
      for (let i = 0; i < 16; i++) left.pair.read(region.segment(), setup.region.remoteSegment(0), { id: i });
      left.pair.post();
    })();
    for (let i = 0; i < 16; i++) {
      collectGarbage();
      expect((await left.completion(i)).status).toBe('success');
    }
    left.close();
    right.close();
    // Never closed: devices, domains, regions and queues that nobody holds any more.
    await (async () => {
      const other = new Setup(MIB);
      other.domain.allocateWindow();
      other.device.createCompletionQueue({ depth: 16, onCompletions: () => {} });
    })();
    for (let i = 0; i < 100 && (liveObjects()['devices'] as number) > 1; i++) {
      collectGarbage();
      await turn();
    }
    expect(liveObjects()).toMatchObject({ devices: 1, memoryWindows: 0, completionQueues: 0 });
  });
});

describe('a worker', () => {
  const program = `
    import { parentPort, workerData } from 'node:worker_threads';
    import { allocateMemory, Device, EventChannel } from ${JSON.stringify(new URL('../dist/index.js', import.meta.url).href)};
    const device = Device.open(workerData.device);
    const domain = device.createProtectionDomain();
    const buffer = new ArrayBuffer(${MIB});
    const region = domain.registerMemory(buffer, { localWrite: true });
    const channel = new EventChannel();
    const id = channel.createId();
    await id.resolveAddress(workerData.host, workerData.port);
    await id.resolveRoute();
    const queue = device.createCompletionQueue({ depth: 256, onCompletions: () => {} });
    const pair = id.createQueuePair({ protectionDomain: domain, sendCompletions: queue, maxReceive: 8 });
    await id.connect({ queuePair: pair });
    for (let i = 0; i < 64; i++) pair.read(region.segment(), workerData.remote, { id: i });
    pair.post();
    parentPort.postMessage('in flight');
    if (workerData.exit) process.exit(0);
  `;
  for (const exit of [true, false])
    it(`${exit ? 'exits' : 'is terminated'} with transfers in flight`, async () => {
      const listener = setup.channel.createId();
      listener.bind(ADDRESS, 0);
      const disconnected = new Promise<void>((resolve) => {
        listener.onEvent = (event) => {
          if (event.type !== 'connectRequest') return;
          const { id } = event.request;
          const queue = setup.device.createCompletionQueue({ depth: 256, onCompletions: () => {} });
          const pair = id.createQueuePair({ protectionDomain: setup.domain, sendCompletions: queue });
          id.onEvent = ({ type }) => {
            if (type === 'disconnected') resolve();
          };
          void id.accept({ queuePair: pair });
        };
      });
      listener.listen();
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(program)}`), {
        workerData: {
          device: setup.device.name,
          host: ADDRESS,
          port: listener.localAddress?.port,
          remote: setup.region.remoteSegment(0),
          exit,
        },
      });
      const ended = new Promise<void>((resolve, reject) => {
        worker.on('exit', () => resolve());
        worker.on('error', reject);
      });
      await new Promise((resolve) => worker.once('message', resolve));
      if (!exit) await worker.terminate();
      await ended;
      await disconnected;
      setup.close();
      expect(await settled()).toEqual(NOTHING);
    });
});

describe('children', () => {
  it('started while transfers run leave these alone', async () => {
    const [left, right] = await setup.pair();
    for (let round = 0; round < 10; round++) {
      setup.bytes.fill(round + 1, 0, MIB);
      left.pair.read(setup.region.segment(MIB, MIB), setup.region.remoteSegment(0), { id: round });
      left.pair.post();
      expect(spawnSync('/bin/true').status).toBe(0);
      expect((await left.completion(round)).status).toBe('success');
      // The page that the device wrote is still ours.
      expect(setup.bytes[MIB] === round + 1 && setup.bytes[2 * MIB - 1] === round + 1).toBe(true);
    }
    left.close();
    right.close();
  });
});

describe('a soft-RoCE device', () => {
  const device = new RdmaDevice(process.env['HOLDFAST_HW_RDMA'] ?? 'rxe0', process.env['HOLDFAST_HW_NETDEV'] ?? 'eth0');
  afterEach(async () => {
    setup.close();
    await device.restore();
  });

  async function expectUsable(): Promise<void> {
    setup = new Setup();
    const [one, other] = await setup.pair();
    other.pair.receive(setup.region.segment(64, 64), 1);
    other.pair.post();
    one.pair.send(setup.region.segment(0, 8), { id: 2 });
    await one.post(2);
    expect((await other.completion(1)).status).toBe('success');
  }

  it('that is removed goes once everything on it is closed, and can be used when it is there again', async () => {
    const [left] = await setup.pair();
    device.beginRemoval();
    await device.verbsGone();
    left.pair.read(setup.region.segment(0, MIB), setup.region.remoteSegment(MIB), { id: 1 });
    setup.close();
    await device.removed();
    await device.add();
    await expectUsable();
  });

  it('goes also if everything was closed before its verbs went: what librdmacm keeps of it is given back', async () => {
    await setup.pair();
    setup.close();
    expect(await settled()).toEqual(NOTHING);
    await device.remove();
    await device.add();
    await expectUsable();
  });

  it('goes also if everything is closed at the connection manager’s news of the removal', async () => {
    const listener = setup.channel.createId();
    const news = new Promise<void>((resolve) => {
      listener.onEvent = ({ type }) => {
        if (type !== 'deviceRemoval') return;
        setup.close();
        resolve();
      };
    });
    listener.bind(ADDRESS, 0);
    listener.listen();
    await device.remove();
    await news;
    await device.add();
    await expectUsable();
  });

  it('goes also if a thread that used it has ended', async () => {
    const program = `
      import { EventChannel } from ${JSON.stringify(new URL('../dist/index.js', import.meta.url).href)};
      import { parentPort, workerData } from 'node:worker_threads';
      const channel = new EventChannel();
      channel.createId().bind(workerData, 0);
      parentPort.postMessage('bound');
    `;
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(program)}`), { workerData: ADDRESS });
    const ended = new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject));
    await new Promise((resolve) => worker.once('message', resolve));
    await worker.terminate();
    await ended;
    setup.close();
    await device.remove();
    await device.add();
    await expectUsable();
  });
});
