import { afterEach, describe, expect, test } from 'vitest';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { incarnation, nodeId } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { crc32c } from '../native/core.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { encodeFrame, FrameKind, TransferStatus } from '../protocol/frame.js';
import { MessageType } from '../protocol/message-types.js';
import type { Link, TransportAddress } from './link.js';
import { type MemoryQueue, type MemoryVerbs, VerbsNetwork } from './memory-verbs.js';
import type { RdmaLink } from './rdma-link.js';
import type { RdmaSettings } from './rdma-settings.js';
import { RdmaTransport } from './rdma-transport.js';
import {
  encodeName,
  PREFIX_BYTES,
  RDMA_VERSION,
  readKeys,
  UNIT_AT,
  UNIT_HEADER_BYTES,
  UnitKind,
  writePrefix,
  writeUnitHeader,
} from './rdma-wire.js';
import { testNode, VirtualClock } from './test-support.js';
import type { VerbsLimits } from './verbs-port.js';

const KIB = 1024;
const doors: RdmaTransport[] = [];
afterEach(() => {
  for (const door of doors.splice(0)) door.close();
});

interface End {
  readonly transport: RdmaTransport;
  readonly port: MemoryVerbs;
  readonly counters: Counters;
  readonly pool: PagePool;
  link: Link;
  readonly seen: { frames: string[]; done: [number, TransferStatus][]; closed: string[] };
}

class World {
  readonly clock = new VirtualClock();
  readonly network = new VerbsNetwork(this.clock);

  end(id: number, settings: Partial<RdmaSettings> = {}, limits: Partial<VerbsLimits> = {}, version?: number): End {
    const pool = heapPagePool(1024 * KIB);
    const counters = new Counters();
    const port = this.network.port(`host-${id}`, pool, limits);
    const transport = new RdmaTransport({
      self: { nodeId: nodeId(id), incarnation: incarnation(1) },
      clusterId: 'test-cluster',
      pool,
      port,
      clock: this.clock,
      counters,
      logger: silentLogger,
      settings,
      version,
    });
    doors.push(transport);
    const end = {
      transport,
      port,
      counters,
      pool,
      link: null as unknown as Link,
      seen: { frames: [], done: [], closed: [] },
    };
    return end as End;
  }

  take(end: End, link: Link, peer: number): void {
    end.link = link;
    link.events = {
      onRecord: () => undefined,
      onFrames: ({ bytes, view, offsets, count }) => {
        for (let i = 0; i < count; i++) {
          const at = offsets[i]! + 48;
          end.seen.frames.push(Buffer.from(bytes.subarray(at, at + view.getUint32(offsets[i]! + 4, true))).toString());
        }
      },
      onTransferDone: (id, status) => end.seen.done.push([id, status]),
      onClosed: (_error, counter) => end.seen.closed.push(counter),
    };
    link.startFrames(peer);
  }

  /** Two ends of a link, as after the handshake. */
  async connect(one: End, two: End): Promise<void> {
    const address = { host: `host-${2}`, port: 1 };
    const accepted = new Promise<Link>((resolve) => void two.transport.listen(address, resolve));
    const dialled = one.transport.dial(address, new AbortController().signal);
    await this.run(100);
    this.take(one, await dialled, 2);
    this.take(two, await accepted, 1);
  }

  async pair(settings: Partial<RdmaSettings> = {}, limits: Partial<VerbsLimits> = {}): Promise<[End, End]> {
    const ends: [End, End] = [this.end(1, settings, limits), this.end(2, settings, limits)];
    await this.connect(...ends);
    return ends;
  }

  run(forMs: number) {
    return this.clock.run(this.clock.nowMs() + forMs);
  }

  queueOf(end: End): MemoryQueue {
    return [...this.network.queues].find(({ port }) => port === end.port)!;
  }
}

const frame = (text: string): Uint8Array =>
  encodeFrame(
    {
      kind: FrameKind.message,
      epoch: 1,
      incarnation: 1,
      sequence: 1,
      ack: 0,
      requestSequence: 0,
      messageType: 21,
      creditMessages: 100,
    },
    Buffer.from(text),
  );
function send(end: End, ...texts: string[]): void {
  const bytes = Buffer.concat(texts.map(frame));
  end.link.send(bytes, 0, bytes.length);
}

/** A unit as a peer would send it as its first, with its checksum. */
function unit(kind: number, payload: Uint8Array, number = 1, limit = 64): Uint8Array {
  const bytes = new Uint8Array(UNIT_HEADER_BYTES + payload.length);
  bytes.set(payload, UNIT_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  writeUnitHeader(view, 0, kind as UnitKind, payload.length, number, limit);
  view.setUint32(UNIT_AT.crc, crc32c(bytes), true);
  return bytes;
}
const prefix = (detail: number, lengthBytes: number, dataBytes = 0, offsetBytes = 0): Uint8Array => {
  const bytes = new Uint8Array(PREFIX_BYTES + dataBytes);
  writePrefix(bytes, new DataView(bytes.buffer), 0, 77, detail, new Uint8Array(16), offsetBytes, lengthBytes);
  return bytes;
};

const bulk = { offsetBytes: 0, lengthBytes: 64 * KIB };

describe('bulk', () => {
  test('a write lands in the window only, and is reported when it has', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    one.pool.bytes.fill(5);
    const window = two.transport.openWindow(1, [{ offsetBytes: 1000, lengthBytes: 64 * KIB }], 'write');
    expect(readKeys(window)!.linkNumber).toBe((two.link as RdmaLink).linkNumber);
    one.link.write(1, window, 0, [bulk]);
    one.link.flush();
    await world.run(100);
    expect(one.seen.done).toEqual([[1, TransferStatus.landed]]);
    expect(two.pool.bytes.indexOf(5)).toBe(1000);
    expect(two.pool.bytes.lastIndexOf(5)).toBe(999 + 64 * KIB);
    expect(one.counters.get('fabric.rdma.bytesWritten')).toBe(64 * KIB);
    expect(one.counters.get('fabric.rdma.bytesCopied') + two.counters.get('fabric.rdma.bytesCopied')).toBe(0);
  });

  test('what is small travels in messages, and no window is bound for it', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    one.pool.bytes.fill(5);
    const small = { offsetBytes: 0, lengthBytes: 4 * KIB };
    const into = two.transport.openWindow(1, [small], 'write');
    const from = two.transport.openWindow(1, [small], 'read');
    one.link.write(1, into, 0, [small]);
    one.link.read(2, from, 100, [{ offsetBytes: 8 * KIB, lengthBytes: 1000 }]);
    one.link.flush();
    await world.run(100);
    expect(one.seen.done.map(([id]) => id).sort()).toEqual([1, 2]);
    expect(two.pool.bytes.lastIndexOf(5)).toBe(4 * KIB - 1);
    expect(two.port.windowCount).toBe(0);
    expect(one.counters.get('fabric.rdma.bytesCopied')).toBe(4 * KIB + 1000);
  });

  test.each([
    ['a device without windows', {}, { windows: false }, 1],
    ['a device that has run out of windows', {}, { windowsMax: 2 }, 3],
  ])('%s moves bulk in messages', async (_name, settings, limits, runs) => {
    const world = new World();
    const [one, two] = await world.pair(settings, limits);
    for (let i = 0; i < one.pool.lengthBytes; i++) one.pool.bytes[i] = (i * 7 + (i >> 8)) & 0xff;
    const segments = Array.from({ length: runs }, (_, i) => ({ offsetBytes: i * 100 * KIB, lengthBytes: 50 * KIB }));
    const total = runs * 50 * KIB;
    const into = two.transport.openWindow(1, segments, 'write');
    expect(readKeys(into)).toBe(null);
    one.link.write(1, into, 0, [{ offsetBytes: 3, lengthBytes: total }]);
    one.link.flush();
    await world.run(1000);
    const from = two.transport.openWindow(1, segments, 'read');
    one.link.read(2, from, 0, [{ offsetBytes: 512 * KIB, lengthBytes: total }]);
    one.link.flush();
    await world.run(1000);
    expect(one.seen.done).toEqual([
      [1, TransferStatus.landed],
      [2, TransferStatus.landed],
    ]);
    const sent = Buffer.from(one.pool.bytes.subarray(3, 3 + total));
    expect(sent.equals(Buffer.from(one.pool.bytes.subarray(512 * KIB, 512 * KIB + total)))).toBe(true);
    expect(one.counters.get('fabric.rdma.bytesCopied')).toBe(2 * total);
  });

  test('a window of many runs, or opened before the link, is bound when the peer asks for its keys', async () => {
    const world = new World();
    const [one, two] = [world.end(1), world.end(2)];
    const early = two.transport.openWindow(1, [bulk], 'write');
    await world.connect(one, two);
    const many = Array.from({ length: 100 }, (_, i) => ({ offsetBytes: i * 8 * KIB, lengthBytes: 4 * KIB }));
    const scattered = two.transport.openWindow(1, many, 'read');
    expect([readKeys(early), readKeys(scattered)]).toEqual([null, null]);
    one.link.write(1, early, 0, [bulk]);
    one.link.read(2, scattered, 0, [{ offsetBytes: 512 * KIB, lengthBytes: 400 * KIB }]);
    one.link.flush();
    await world.run(1000);
    expect(one.seen.done.map(([, status]) => status)).toEqual([TransferStatus.landed, TransferStatus.landed]);
    expect(one.counters.get('fabric.rdma.keysAsked')).toBe(2);
    expect(one.counters.get('fabric.rdma.bytesRead')).toBe(400 * KIB);
    expect(two.port.bound.size).toBe(101);
  });

  test('S3: a window is closed when its invalidate has completed, not before, and its type-2 window is used anew', async () => {
    const world = new World();
    const [, two] = await world.pair();
    world.network.policy = ({ op }) => ({ delayMs: op === 'invalidate' ? 50 : 0 });
    const window = two.transport.openWindow(1, [bulk], 'write');
    let closedAtMs = -1;
    void two.transport.closeWindow(window).then(() => {
      closedAtMs = world.clock.nowMs();
    });
    const startMs = world.clock.nowMs();
    await world.run(40);
    expect(closedAtMs).toBe(-1);
    await world.run(100);
    expect(closedAtMs).toBe(startMs + 50);
    expect(two.port.bound.size).toBe(0);
    two.transport.openWindow(1, [bulk], 'write');
    expect(two.port.windowCount).toBe(1);
  });

  test('what is sent behind a write that is in order arrives behind its bytes, though nobody has waited for these', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    world.network.policy = ({ op }) => ({ delayMs: op === 'write' ? 20 : 0 });
    one.pool.bytes.fill(5);
    const window = two.transport.openWindow(1, [bulk], 'write');
    const before: string[] = [];
    const { events } = two.link;
    two.link.events = {
      ...events,
      onFrames: (batch) => {
        before.push(`${two.pool.bytes.lastIndexOf(5)}`);
        events.onFrames(batch);
      },
    };
    const onOrdered = () => before.push('ordered');
    one.link.write(1, window, 0, [bulk], { onOrdered });
    one.link.flush();
    expect([before, one.seen.done]).toEqual([['ordered'], []]);
    send(one, 'it is there');
    await world.run(100);
    expect(before).toEqual(['ordered', `${64 * KIB - 1}`]);
    expect(one.seen.done).toEqual([[1, TransferStatus.landed]]);
  });

  test('S3: when the link ends first, its end closes the window', async () => {
    const world = new World();
    const [, two] = await world.pair();
    world.network.policy = ({ op }) => (op === 'invalidate' ? 'lost' : { delayMs: 0 });
    const window = two.transport.openWindow(1, [bulk], 'write');
    let closed = false;
    void two.transport.closeWindow(window).then(() => {
      closed = true;
    });
    await world.run(100);
    expect(closed).toBe(false);
    two.link.close();
    await world.run(0);
    expect([closed, two.port.bound.size, two.port.windowCount]).toEqual([true, 0, 0]);
  });

  test('S3: when the link ends over a bind that is refused, the type-2 windows go with it: some may be bound', async () => {
    const world = new World();
    const [, two] = await world.pair();
    world.queueOf(two).post = () => {
      throw new FsError('deviceError', { op: 'fabric.rdma', detail: 'refused' });
    };
    const window = two.transport.openWindow(1, [bulk], 'write');
    expect([two.link.closed, two.port.windowCount]).toEqual([true, 0]);
    await two.transport.closeWindow(window);
  });

  test('cancelling a transfer whose work is posted ends the link; one that only waits is taken out', async () => {
    const world = new World();
    const [one, two] = await world.pair({ bulkBytesMax: 64 * KIB });
    const window = two.transport.openWindow(1, [{ offsetBytes: 0, lengthBytes: 256 * KIB }], 'write');
    await world.run(10);
    world.network.policy = ({ op }) => (op === 'write' ? 'lost' : { delayMs: 0 });
    one.link.write(1, window, 0, [bulk]);
    one.link.write(2, window, 64 * KIB, [bulk]);
    one.link.flush();
    one.link.cancel(2);
    await world.run(10);
    expect(one.link.closed).toBe(false);
    one.link.cancel(1);
    expect(one.link.closed).toBe(true);
    one.pool.bytes.fill(9);
    await world.run(100);
    expect(one.seen.closed).toEqual(['cancelledTransfer']);
    expect(two.seen.closed).toEqual(['closedByPeer']);
    expect(two.pool.bytes.includes(9)).toBe(false);
  });
});

describe('messages', () => {
  test('a link that fails and is closed before the news has come says nothing: another may have taken its place', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    const window = two.transport.openWindow(1, [{ offsetBytes: 0, lengthBytes: 64 * KIB }], 'write');
    one.link.write(1, window, 0, [{ offsetBytes: 0, lengthBytes: 64 * KIB }]);
    one.link.flush();
    one.link.cancel(1);
    expect(one.link.closed).toBe(true);
    one.link.close();
    await world.run(1000);
    expect(one.seen.closed).toEqual([]);
    expect(two.seen.closed).toHaveLength(1);
  });

  test('two sides that flood each other with few receives never meet an empty receive queue, and lose nothing', async () => {
    const world = new World();
    const [one, two] = await world.pair({ receives: 4, unitBytes: 1024, sendSlots: 3, inlineBytes: 128, sendsMax: 64 });
    const texts = Array.from({ length: 300 }, (_, i) => `${i} `.repeat(1 + (i % 7) * 60));
    for (let i = 0; i < texts.length; i += 3) {
      send(one, ...texts.slice(i, i + 3));
      send(two, ...texts.slice(i, i + 3));
      if (i % 60 === 0) await world.run(1);
    }
    await world.run(10_000);
    expect(one.seen.frames).toEqual(texts);
    expect(two.seen.frames).toEqual(texts);
    expect([one.seen.closed, two.seen.closed]).toEqual([[], []]);
  });

  test('completions that never come end the link at their deadline, and say so', async () => {
    const world = new World();
    const [one, two] = await world.pair({ workDeadlineMs: 500 });
    const window = two.transport.openWindow(1, [bulk], 'write');
    await world.run(10);
    world.network.policy = ({ op }) => (op === 'write' ? 'lost' : { delayMs: 0 });
    one.link.write(1, window, 0, [bulk]);
    one.link.flush();
    await world.run(400);
    expect(one.seen.closed).toEqual([]);
    await world.run(200);
    expect(one.seen.closed).toEqual(['workDeadline']);
  });

  test('a unit longer than a receive ends the link', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    world.queueOf(one).rawSend(new Uint8Array(8193));
    await world.run(100);
    expect(two.seen.closed).toEqual(['localLengthError']);
  });

  test.each([0, 5])('a completion of work that was never posted (receive %s) ends the link', async (id) => {
    const world = new World();
    const [one] = await world.pair();
    world.queueOf(one).inventCompletion(id === 0 ? 12_345 : 4711, id !== 0);
    await world.run(100);
    expect(one.seen.closed).toEqual(['unknownCompletion']);
  });

  const good = frame('x');
  const wrongFrame = good.slice();
  wrongFrame[0] = 1;
  const cases: [string, string, Uint8Array][] = [
    ['without the magic', 'badMagic', new Uint8Array(30)],
    ['too short for a header', 'badLength', new Uint8Array(10)],
    ['of another version', 'badVersion', unit(UnitKind.frames, good).fill(9, 2, 3)],
    ['of unknown kind', 'badKind', unit(99, good)],
    ['whose length is not what arrived', 'badLength', unit(UnitKind.frames, good).subarray(0, 60)],
    ['whose checksum is wrong', 'badChecksum', unit(UnitKind.frames, good).fill(7, 60, 61)],
    ['with a number out of turn', 'badNumber', unit(UnitKind.frames, good, 2)],
    ['that gives credit beyond what can be', 'badCredit', unit(UnitKind.frames, good, 1, 5000)],
    ['with something that is no frame', 'badFrame', unit(UnitKind.frames, wrongFrame)],
    ['with a frame that is cut off', 'badFrame', unit(UnitKind.frames, good.subarray(0, good.length - 1))],
    ['of frames with nothing in it', 'badLength', unit(UnitKind.frames, new Uint8Array(0))],
    ['with a part of a frame beyond the limit', 'badLength', unit(UnitKind.part, part(300_000, 0))],
    ['with a part that does not begin at the beginning', 'badPart', unit(UnitKind.part, part(20_000, 100))],
    ['with a record of the wrong length', 'badLength', unit(UnitKind.record, new Uint8Array(64))],
    ['with a control message that is too short', 'badLength', unit(UnitKind.done, new Uint8Array(12))],
    ['with a control message that is too long', 'badLength', unit(UnitKind.bindRequest, new Uint8Array(4000))],
    ['with a write whose length lies', 'badLength', unit(UnitKind.write, prefix(1, 4096, 16))],
    ['with a read of nothing', 'badLength', unit(UnitKind.readRequest, prefix(0, 0))],
    ['that asks for keys to neither read nor write', 'badTransfer', unit(UnitKind.bindRequest, prefix(3, 0))],
    ['with keys whose count lies', 'badLength', unit(UnitKind.bindAnswer, prefix(0, 9))],
  ];
  test.each(cases)('a unit %s ends the link: %s', async (_what, counter, bytes) => {
    const world = new World();
    const [one, two] = await world.pair();
    world.queueOf(one).rawSend(bytes);
    await world.run(100);
    expect(two.seen.closed).toEqual([counter]);
    expect([two.seen.frames, two.seen.done]).toEqual([[], []]);
  });

  test.each([
    ['an answer', UnitKind.done, prefix(0, 0)],
    ['data', UnitKind.readData, prefix(1, 8, 8)],
    ['keys', UnitKind.bindAnswer, prefix(1, 0)],
  ])('%s for a transfer that nobody knows is counted, and nothing else', async (_what, kind, payload) => {
    const world = new World();
    const [one, two] = await world.pair();
    world.queueOf(one).rawSend(unit(kind, payload));
    await world.run(100);
    expect(two.seen.closed).toEqual([]);
    expect(two.counters.get('fabric.rdma.lateAnswers')).toBe(1);
  });

  test('a write by messages into a window that is not there is answered so', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    one.link.write(3, new Uint8Array(16).fill(1), 0, [{ offsetBytes: 0, lengthBytes: 100 }]);
    one.link.flush();
    await world.run(100);
    expect(one.seen.done).toEqual([[3, TransferStatus.windowUnknown]]);
    expect(two.pool.bytes.every((byte) => byte === 0)).toBe(true);
  });
});

function part(totalBytes: number, offsetBytes: number): Uint8Array {
  const bytes = new Uint8Array(8 + 100);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, totalBytes, true);
  view.setUint32(4, offsetBytes, true);
  return bytes;
}

describe('keys', () => {
  const forgeries: [string, { readonly key?: number; readonly address?: number }][] = [
    ['another key', { key: 1 }],
    ['an address before the window', { address: -4096 }],
    ['an address behind it', { address: 4096 }],
  ];
  test.each(forgeries)('%s ends that link, and nothing is written', async (_what, change) => {
    const world = new World();
    const [one, two] = await world.pair();
    one.pool.bytes.fill(7);
    const window = two.transport.openWindow(1, [{ offsetBytes: 128 * KIB, lengthBytes: 64 * KIB }], 'write');
    const keys = readKeys(window)!;
    const run = keys.runs[0]!;
    const forged = encodeName(window, {
      linkNumber: keys.linkNumber,
      runs: [{ ...run, key: (run.key + (change.key ?? 0)) >>> 0, address: run.address + (change.address ?? 0) }],
    });
    one.link.write(1, forged, 0, [bulk]);
    one.link.flush();
    await world.run(100);
    expect(one.seen.closed).toEqual(['remoteAccessError']);
    expect(two.pool.bytes.includes(7)).toBe(false);
    expect([two.port.bound.size, two.port.windowCount]).toEqual([0, 0]);
  });

  test('a window for reading can not be written, and the other way round', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    one.pool.bytes.fill(7);
    const window = two.transport.openWindow(1, [bulk], 'read');
    one.link.write(1, window, 0, [bulk]);
    one.link.flush();
    await world.run(100);
    expect(one.seen.closed).toEqual(['remoteAccessError']);
    expect(two.pool.bytes.includes(7)).toBe(false);
  });

  test('a transfer beyond the end of the window is refused here, before it is sent', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    const window = two.transport.openWindow(1, [bulk], 'write');
    one.link.write(1, window, 1, [bulk]);
    one.link.flush();
    await world.run(100);
    expect(one.seen.done).toEqual([[1, TransferStatus.outOfBounds]]);
    expect(one.link.closed).toBe(false);
  });

  test('when everything is closed, no window, no key and no memory is left', async () => {
    const world = new World();
    const [one, two] = await world.pair();
    two.transport.openWindow(1, [bulk], 'write');
    two.transport.openWindow(1, [bulk], 'read');
    send(one, 'a', 'b');
    await world.run(100);
    for (const end of [one, two]) {
      end.transport.close();
      expect([end.port.windowCount, end.port.bound.size, end.port.memoryCount]).toEqual([0, 0, 0]);
    }
    expect(world.network.queues.size).toBe(0);
  });
});

describe('greetings', () => {
  test('private data of another version are rejected, with the reason on both sides', async () => {
    const world = new World();
    const [one, two] = [world.end(1, {}, {}, RDMA_VERSION + 1), world.end(2)];
    await two.transport.listen({ host: 'host-2', port: 1 }, () => {
      throw new Error('accepted');
    });
    const dialled = one.transport.dial({ host: 'host-2', port: 1 }, new AbortController().signal);
    const refused = dialled.catch((error: unknown) => error);
    await world.run(100);
    expect(await refused).toMatchObject({ reason: 'wrongVersion' });
    expect(two.counters.get('fabric.refusedHandshake.wrongVersion')).toBe(1);
    expect(one.counters.get('fabric.handshakeRefused.wrongVersion')).toBe(1);
    expect(one.port.memoryCount).toBeLessThanOrEqual(1);
  });

  test('private data that make no sense are rejected', async () => {
    const world = new World();
    const [one, two] = [world.end(1), world.end(2)];
    await two.transport.listen({ host: 'host-2', port: 1 }, () => {
      throw new Error('accepted');
    });
    const setup = {
      sendsMax: 8,
      receivesMax: 8,
      inlineBytes: 0,
      privateData: Buffer.from('GET / HTTP/1.1'),
      prepare: () => undefined,
    };
    const signal = new AbortController().signal;
    const refused = one.port.connect({ host: 'host-2', port: 1 }, setup, signal).catch((error: unknown) => error);
    await world.run(100);
    expect(await refused).toBeInstanceOf(FsError);
    expect(two.counters.get('fabric.refusedHandshake.malformed')).toBe(1);
  });

  test('an identity in the private data that is not the one proven is refused', async () => {
    const world = new World();
    const addresses = new Map<number, TransportAddress>([[2, { host: 'host-2', port: 1 }]]);
    const make = (id: number, claimed: number) =>
      testNode({
        node: id,
        clock: world.clock,
        addresses,
        transport: (pool, counters) =>
          new RdmaTransport({
            self: { nodeId: nodeId(claimed), incarnation: incarnation(1) },
            clusterId: 'test-cluster',
            pool,
            port: world.network.port(`host-${id}`, pool),
            clock: world.clock,
            counters,
            logger: silentLogger,
          }),
      });
    const [liar, two] = [make(1, 3), make(2, 2)];
    void two.fabric.listen({ host: 'host-2', port: 1 });
    const asked = liar.fabric.peer(nodeId(2)).request(MessageType.ping, Buffer.from('x'), { timeoutMs: 500 });
    const refused = asked.catch((error: unknown) => error);
    await world.run(1000);
    expect(await refused).toMatchObject({ reason: 'identityTaken' });
    expect(two.counters.get('fabric.refusedHandshake.wrongNode')).toBe(1);
    for (const { fabric } of [liar, two]) await fabric.close();
  });
});
