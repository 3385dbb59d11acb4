import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { allocateMemory, listDevices, RdmaError, rdmaSupport } from '../lib/index.js';
import { ADDRESS, type End, MIB, Setup } from './support.js';

let setup: Setup;
let a: End;
let b: End;

beforeAll(async () => {
  setup = new Setup();
  [a, b] = await setup.pair({ maxInlineBytes: 64 });
});
afterAll(() => setup.close());

const word = (at: number): bigint => new DataView(setup.memory).getBigUint64(at, true);
const text = (at: number, length: number): string => Buffer.from(setup.memory, at, length).toString();

describe('a device', () => {
  it('tells its name, its limits and its ports with their addresses', () => {
    expect(rdmaSupport()).toMatchObject({ usable: true });
    const name = setup.device.name;
    expect(listDevices().find((device) => device.name === name)).toMatchObject({ transport: 'infiniband' });
    const { limits } = setup.device;
    expect(limits.maxQueuePairs).toBeGreaterThan(0);
    expect(limits.maxSegments).toBeGreaterThan(0);
    expect(limits.windowsType2).toBe(true);
    const [port] = setup.device.ports();
    expect(port).toMatchObject({ number: 1, state: 'active' });
    expect(port?.gids.length).toBeGreaterThan(0);
    expect(port?.gids.some(({ gid, netdev }) => gid.endsWith(ADDRESS) && netdev !== null)).toBe(true);
  });
});

describe('requests between two queue pairs', () => {
  it('sends: plain, inline, of several segments, with immediate data, unsignalled', async () => {
    setup.bytes.set(Buffer.from('hello world, in pieces'), 0);
    for (let i = 0; i < 5; i++) b.pair.receive(setup.region.segment(4096 + i * 256, 256), 10 + i);
    b.pair.post();
    a.pair.send(setup.region.segment(0, 11), { id: 1 });
    a.pair.send([setup.region.segment(0, 5), setup.region.segment(11, 11)], { id: 2 });
    a.pair.send(setup.region.segment(0, 5), { id: 3, inline: true });
    a.pair.sendWithImmediate(setup.region.segment(0, 5), 0xfeedbeef, { id: 4, solicited: true });
    a.pair.send(setup.region.segment(6, 5), { id: 5, signalled: false });
    expect(a.pair.sendsFree).toBe(a.pair.maxSend - 5);
    a.pair.post();
    expect(await b.completion(10)).toMatchObject({
      operation: 'receive',
      status: 'success',
      lengthBytes: 11,
      immediate: null,
    });
    expect(await b.completion(11)).toMatchObject({ lengthBytes: 16, queuePair: b.pair });
    expect(await b.completion(12)).toMatchObject({ lengthBytes: 5 });
    expect(await b.completion(13)).toMatchObject({ immediate: 0xfeedbeef, invalidatedKey: null });
    expect(await b.completion(14)).toMatchObject({ lengthBytes: 5 });
    expect([text(4096, 11), text(4096 + 256, 16), text(4096 + 512, 5), text(4096 + 1024, 5)]).toEqual([
      'hello world',
      'hello, in pieces',
      'hello',
      'world',
    ]);
    for (const id of [1, 2, 3, 4])
      expect(await a.completion(id)).toMatchObject({
        status: 'success',
        operation: id === 4 ? 'sendWithImmediate' : 'send',
      });
    expect(a.arrived).toEqual([]);
  });

  it('writes, writes with immediate data, and reads', async () => {
    setup.bytes.fill(7, 0, MIB);
    a.pair.write(setup.region.segment(0, MIB), setup.region.remoteSegment(MIB), { id: 1 });
    expect(await a.post(1)).toMatchObject({ status: 'success', operation: 'write', lengthBytes: MIB });
    expect(setup.bytes.subarray(MIB, 2 * MIB).every((byte) => byte === 7)).toBe(true);

    b.pair.receive(null, 20);
    b.pair.post();
    a.pair.writeWithImmediate(setup.region.segment(0, 4096), setup.region.remoteSegment(2 * MIB), 4711, { id: 2 });
    a.pair.post();
    expect(await b.completion(20)).toMatchObject({ operation: 'receiveWriteWithImmediate', immediate: 4711 });
    expect(setup.bytes[2 * MIB + 4095]).toBe(7);
    await a.completion(2);

    setup.bytes.fill(9, 2 * MIB, 2 * MIB + 8192);
    b.pair.read(
      [setup.region.segment(3 * MIB, 4096), setup.region.segment(3 * MIB + 8192, 4096)],
      setup.region.remoteSegment(2 * MIB),
      { id: 3 },
    );
    expect(await b.post(3)).toMatchObject({ status: 'success', operation: 'read', lengthBytes: 8192 });
    expect([0, 4095, 4096, 8191, 8192, 12287].map((at) => setup.bytes[3 * MIB + at])).toEqual([9, 9, 0, 0, 9, 9]);
  });

  it('compares and swaps, fetches and adds, atomically, with fences behind them', async () => {
    const view = new DataView(setup.memory);
    view.setBigUint64(8192, 41n, true);
    const remote = setup.region.remoteSegment(8192);
    a.pair.fetchAndAdd(setup.region.segment(0, 8), remote, 1n, { id: 1 });
    a.pair.compareAndSwap(setup.region.segment(8, 8), remote, 42n, 0xffffffffffffffffn, { id: 2 });
    a.pair.compareAndSwap(setup.region.segment(16, 8), remote, 42n, 5n, { id: 3 });
    // Without the fence it could carry what the result held before.
    a.pair.write(setup.region.segment(0, 24), setup.region.remoteSegment(12288), { id: 4, fence: true });
    await a.post(4);
    expect([word(0), word(8), word(16), word(8192)]).toEqual([41n, 42n, 0xffffffffffffffffn, 0xffffffffffffffffn]);
    expect([word(12288), word(12296)]).toEqual([41n, 42n]);
    for (const id of [1, 2, 3]) expect((await a.completion(id)).status).toBe('success');
  });

  it('goes on for ever unsignalled, and keeps count', async () => {
    setup.bytes.fill(1, 0, 64);
    for (let round = 0; round < 40; round++) {
      while (a.pair.sendsFree > 1)
        a.pair.write(setup.region.segment(0, 64), setup.region.remoteSegment(4096), { signalled: false });
      a.pair.write(setup.region.segment(0, 64), setup.region.remoteSegment(4096), { id: 100 + round });
      expect(() => a.pair.write(setup.region.segment(0, 64), setup.region.remoteSegment(4096))).toThrow(/ENOBUFS/);
      expect(await a.post(100 + round)).toMatchObject({ status: 'success' });
    }
    expect(a.pair.sendsOutstanding).toBe(0);
    expect(a.arrived).toEqual([]);
  });
});

describe('a memory window', () => {
  it('opens a range for one kind of access, until it is invalidated here', async () => {
    const [left, right] = await setup.pair({ sendDeadlineMs: 20_000 });
    const window = setup.domain.allocateWindow();
    setup.bytes.fill(3, 0, 4096);
    setup.bytes.fill(0, MIB, MIB + 16384);
    const key = right.pair.bindWindow(window, setup.region, MIB + 4096, 4096, { remoteWrite: true }, { id: 1 });
    expect(key).toBe(window.key);
    expect(await right.post(1)).toMatchObject({ status: 'success', operation: 'bindWindow' });
    left.pair.write(setup.region.segment(0, 4096), { address: setup.region.address + MIB + 4096, key }, { id: 2 });
    expect((await left.post(2)).status).toBe('success');
    expect([
      setup.bytes[MIB + 4095],
      setup.bytes[MIB + 4096],
      setup.bytes[MIB + 8191],
      setup.bytes[MIB + 8192],
    ]).toEqual([0, 3, 3, 0]);
    expect(() => setup.region.close()).toThrow(/EBUSY/);

    right.pair.invalidateLocal(window, { id: 3 });
    expect(await right.post(3)).toMatchObject({ status: 'success', operation: 'invalidateLocal' });
    setup.bytes.fill(4, 0, 4096);
    left.pair.write(setup.region.segment(0, 4096), { address: setup.region.address + MIB + 4096, key }, { id: 4 });
    expect((await left.post(4)).status).toBe('remoteAccessError');
    expect(setup.bytes[MIB + 4096]).toBe(3);
    left.close();
    right.close();
    window.close();
  });

  it('gets another key with each bind, tells it in the same batch, and is invalidated by the peer with its answer', async () => {
    const [left, right] = await setup.pair();
    const window = setup.domain.allocateWindow();
    const keys = new Set<number>();
    for (let round = 0; round < 20; round++) {
      left.pair.receive(setup.region.segment(2048, 64), 1);
      left.pair.post();
      const key = right.pair.bindWindow(window, setup.region, MIB, 4096, { remoteRead: true }, { signalled: false });
      keys.add(key);
      new DataView(setup.memory).setUint32(1024, key, true);
      right.pair.send(setup.region.segment(1024, 4), { id: 2 });
      right.pair.post();
      await left.completion(1);
      const told = new DataView(setup.memory).getUint32(2048, true);
      right.pair.receive(setup.region.segment(3072, 64), 3);
      right.pair.post();
      left.pair.read(setup.region.segment(8192, 64), { address: setup.region.address + MIB, key: told }, { id: 4 });
      expect((await left.post(4)).status).toBe('success');
      left.pair.sendWithInvalidate(setup.region.segment(0, 8), told, { id: 5, fence: true });
      left.pair.post();
      const received = await right.completion(3);
      expect(received.status).toBe('success');
      // Soft-RoCE invalidates without saying so in the completion.
      expect([key, null]).toContain(received.invalidatedKey);
      await left.completion(5);
      await right.completion(2);
    }
    expect(keys.size).toBe(20);
    const last = [...keys].at(-1) as number;
    left.pair.read(setup.region.segment(8192, 64), { address: setup.region.address + MIB, key: last }, { id: 6 });
    expect((await left.post(6)).status).toBe('remoteAccessError');
    left.close();
    right.close();
    window.close();
  });
});

describe('a shared receive queue', () => {
  it('feeds several queue pairs, and says when it runs low', async () => {
    const shared = setup.domain.createSharedReceiveQueue({ maxReceive: 16 });
    const low = new Promise<void>((resolve) => {
      setup.device.onAsyncEvent = ({ type }) => {
        if (type === 'sharedReceiveQueueLimitReached') resolve();
      };
    });
    for (let i = 0; i < 8; i++) shared.receive(setup.region.segment(MIB + i * 64, 64), i);
    shared.post();
    shared.armLimit(4);
    expect(shared.outstanding).toBe(8);
    const pairs = [
      await setup.pair({ sharedReceiveQueue: shared }),
      await setup.pair({ sharedReceiveQueue: shared }),
    ] as const;
    for (const [left, right] of pairs) {
      for (let i = 0; i < 3; i++) left.pair.send(setup.region.segment(0, 8), { id: i });
      left.pair.post();
      for (let i = 0; i < 3; i++)
        expect(await right.completionThat(({ operation }) => operation === 'receive')).toMatchObject({
          status: 'success',
          queuePair: right.pair,
        });
    }
    await low;
    expect(shared.outstanding).toBe(2);
    expect(() => pairs[0][0].pair.receive(setup.region.segment(0, 8), 1)).toThrow(TypeError);
    for (const [left, right] of pairs) {
      left.close();
      right.close();
    }
    shared.close();
  });
});

describe('polling', () => {
  it('takes completions without the event loop', async () => {
    const listener = setup.channel.createId();
    listener.bind(ADDRESS, 0);
    const queue = setup.device.createCompletionQueue({ depth: 512, onCompletions: null });
    const accepted = new Promise<void>((resolve, reject) => {
      listener.onEvent = (event) => {
        if (event.type !== 'connectRequest') return;
        const pair = event.request.id.createQueuePair({ protectionDomain: setup.domain, sendCompletions: queue });
        event.request.id.accept({ queuePair: pair }).then(() => resolve(), reject);
      };
    });
    listener.listen();
    const end = await setup.connect((listener.localAddress as { port: number }).port, { sendCompletions: queue });
    await accepted;
    for (let i = 0; i < 200; i++) {
      end.pair.write(setup.region.segment(0, 64), setup.region.remoteSegment(4096), { id: i });
      end.pair.post();
      const batch = queue.poll(5_000_000);
      expect([batch.count, batch.errorCount, batch.id(0), batch.status(0)]).toEqual([1, 0, i, 'success']);
      expect(() => batch.id(1)).toThrow(RangeError);
    }
    expect(queue.poll(0).count).toBe(0);
    end.close();
    listener.close();
    queue.close();
  });
});

describe('wrong requests', () => {
  it('are refused before the device sees them', async () => {
    const other = setup.device.createProtectionDomain();
    const elsewhere = other.registerMemory(allocateMemory(4096), { localWrite: true });
    const closed = setup.domain.registerMemory(allocateMemory(4096));
    const late = setup.domain.registerMemory(allocateMemory(4096));
    closed.close();
    const { region } = setup;
    const remote = region.remoteSegment(0);
    expect(() => a.pair.send(elsewhere.segment())).toThrow(TypeError);
    expect(() => a.pair.send(closed.segment())).toThrow(/EBADF/);
    expect(() => a.pair.send([])).toThrow(RangeError);
    expect(() => a.pair.send(region.segment(0, 0))).toThrow(RangeError);
    expect(() => a.pair.send(region.segment(4 * MIB - 1, 2))).toThrow(RangeError);
    expect(() => a.pair.send(new Array(5).fill(region.segment(0, 1)))).toThrow(RangeError);
    expect(() => a.pair.send(region.segment(0, 1), { id: -1 })).toThrow(RangeError);
    expect(() => a.pair.send(region.segment(0, 4096), { inline: true })).toThrow(RangeError);
    expect(() => a.pair.read(region.segment(0, 8), remote, { inline: true })).toThrow(TypeError);
    expect(() => a.pair.write(region.segment(0, 8), { address: 2 ** 60, key: 1 })).toThrow(RangeError);
    expect(() => a.pair.fetchAndAdd(region.segment(0, 4), remote, 1n)).toThrow(RangeError);
    expect(() => a.pair.fetchAndAdd(region.segment(0, 8), region.remoteSegment(4), 1n)).toThrow(RangeError);
    expect(() => a.pair.compareAndSwap(region.segment(0, 8), remote, 1n, 2n ** 64n)).toThrow(RangeError);
    expect(() => a.pair.sendWithImmediate(region.segment(0, 8), -1)).toThrow(RangeError);
    // Closed between queueing and posting: what is before it goes out, the rest doesn't.
    a.pair.write(region.segment(0, 8), region.remoteSegment(4096), { id: 1 });
    a.pair.write(late.segment(0, 8), region.remoteSegment(4096), { id: 2 });
    a.pair.write(region.segment(0, 8), region.remoteSegment(4096), { id: 3 });
    late.close();
    let refused: unknown;
    try {
      a.pair.post();
    } catch (error) {
      refused = error;
    }
    expect(refused).toBeInstanceOf(RdmaError);
    expect(refused).toMatchObject({ code: 'EFAULT', postedCount: 1 });
    expect((await a.completion(1)).status).toBe('success');
    expect(a.pair.sendsOutstanding).toBe(0);
    expect(a.pair.state).toBe('connected');
    other.close();
  });

  it('are refused where they would overrun a completion queue', async () => {
    const id = setup.channel.createId();
    await id.resolveAddress(ADDRESS, 1);
    const queue = setup.device.createCompletionQueue({ depth: 64, onCompletions: null });
    expect(() => id.createQueuePair({ protectionDomain: setup.domain, sendCompletions: queue })).toThrow(/ENOSPC/);
    const pair = id.createQueuePair({
      protectionDomain: setup.domain,
      sendCompletions: queue,
      maxSend: 32,
      maxReceive: 32,
    });
    pair.send(setup.region.segment(0, 8));
    expect(() => pair.post()).toThrow(/ENOTCONN/);
    id.close();
    queue.close();
  });
});

describe('closing', () => {
  it('brings a completion for everything that was outstanding', async () => {
    const [left, right] = await setup.pair();
    for (let i = 0; i < 10; i++) left.pair.receive(setup.region.segment(0, 64), 100 + i);
    for (let i = 0; i < 10; i++)
      left.pair.write(setup.region.segment(0, MIB), setup.region.remoteSegment(MIB), { id: i });
    left.pair.post();
    left.pair.close();
    const seen = new Map<number, string>();
    while (seen.size < 20) {
      const { id, status } = await left.completionThat(() => true);
      seen.set(id, status);
    }
    for (let i = 0; i < 10; i++) expect(['success', 'flushed']).toContain(seen.get(i));
    for (let i = 100; i < 110; i++) expect(seen.get(i)).toBe('flushed');
    expect(left.pair).toMatchObject({ closed: true, state: 'closed', sendsOutstanding: 0, receivesOutstanding: 0 });
    left.pair.close();
    expect(() => left.pair.send(setup.region.segment(0, 8))).toThrow(/EBADF/);
    left.close();
    right.close();
  });

  it('drains', async () => {
    const [left, right] = await setup.pair();
    for (let i = 0; i < 16; i++)
      left.pair.write(setup.region.segment(0, MIB), setup.region.remoteSegment(MIB), { id: i });
    for (let i = 0; i < 16; i++) left.pair.receive(setup.region.segment(0, 64), 100 + i);
    left.pair.post();
    await left.pair.drain();
    expect([left.pair.sendsOutstanding, left.pair.receivesOutstanding]).toEqual([0, 0]);
    expect(left.arrived).toHaveLength(32);
    left.close();
    right.close();
  });
});
