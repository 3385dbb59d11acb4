import net from 'node:net';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { loadTcpAddon } from '../native/tcp.js';
import {
  encodeFrame,
  FRAME_AT,
  FRAME_BODY_BYTES_MAX,
  FRAME_HEADER_BYTES,
  FRAME_KIND_MAX,
  FRAME_KIND_STREAM_MAX,
  FRAME_MAGIC,
  FRAME_VERSION,
  type FrameFields,
  FrameKind,
  judgeFrame,
  LINK_ENDS,
  LinkEnd,
  setU64,
  TRANSFER_AT,
  TRANSFER_BYTES_MAX,
  TRANSFER_CHUNK_BYTES,
  TRANSFER_FLAG_DATA_UNCHECKED,
  TRANSFER_FLAG_LAST,
  TRANSFER_PREFIX_BYTES,
  TransferStatus,
} from '../protocol/frame.js';
import { HANDSHAKE_RECORD_BYTES, type Link } from './link.js';
import { TcpTransport } from './tcp-link.js';

/** A link that takes frames at once, with a plain socket at its other end: what a hostile or broken peer can do to it. */
class Rig {
  readonly frames: Buffer[] = [];
  readonly done: [number, TransferStatus][] = [];
  end = '';
  #waiters: (() => void)[] = [];

  private constructor(
    readonly transport: TcpTransport,
    readonly link: Link,
    readonly socket: net.Socket,
  ) {
    link.events = {
      onRecord: () => undefined,
      onFrames: ({ bytes, view, offsets, count }) => {
        for (let i = 0; i < count; i++) {
          const at = offsets[i]!;
          const total = FRAME_HEADER_BYTES + view.getUint32(at + FRAME_AT.bodyBytes, true);
          this.frames.push(Buffer.from(bytes.slice(at, at + total)));
        }
        this.#wake();
      },
      onTransferDone: (id, status) => {
        this.done.push([id, status]);
        this.#wake();
      },
      onClosed: (_, counter) => {
        this.end = counter;
        this.#wake();
      },
    };
    link.startFrames(7);
  }

  static async make(transport: TcpTransport): Promise<Rig> {
    let accepted!: (link: Link) => void;
    const link = new Promise<Link>((resolve) => {
      accepted = resolve;
    });
    const address = await listenOnce(transport, (made) => accepted(made));
    const socket = net.connect(address.port, '127.0.0.1');
    socket.on('error', () => undefined);
    return new Rig(transport, await link, socket);
  }

  #wake(): void {
    for (const waiter of this.#waiters.splice(0)) waiter();
  }
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.#waiters.push(resolve));
  }
  closed(): Promise<void> {
    return this.until(() => this.end !== '');
  }
  /** Reads so many bytes from the link. */
  async read(count: number): Promise<Buffer> {
    for (;;) {
      const chunk = this.socket.read(count) as Buffer | null;
      if (chunk !== null) return chunk;
      await new Promise((resolve) => this.socket.once('readable', resolve));
      // It is said again for bytes that are there but too few: let the socket bring more.
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

const ports = new WeakMap<TcpTransport, { port: number; accept: (link: Link) => void }>();
async function listenOnce(transport: TcpTransport, accept: (link: Link) => void): Promise<{ port: number }> {
  let entry = ports.get(transport);
  if (entry === undefined) {
    entry = { port: 0, accept };
    const made = entry;
    ports.set(transport, made);
    made.port = (await transport.listen({ host: '127.0.0.1', port: 0 }, (link) => made.accept(link))).port;
  }
  entry.accept = accept;
  return entry;
}

let pool: PagePool;
let transport: TcpTransport;
beforeEach(() => {
  pool = heapPagePool(4 << 20);
  transport = new TcpTransport(pool);
});
afterEach(() => transport.close());

const fields = (kind: number, more: Partial<FrameFields> = {}): FrameFields => ({
  kind,
  epoch: 1,
  incarnation: 1,
  sequence: 1,
  ack: 0,
  requestSequence: 0,
  messageType: 10,
  creditMessages: 100,
  ...more,
});

function writeFrame(
  window: Uint8Array,
  offset: number,
  data: Uint8Array,
  last = true,
  transfer = 5,
  flags = 0,
): Uint8Array {
  const body = new Uint8Array(TRANSFER_PREFIX_BYTES + data.length);
  const view = new DataView(body.buffer);
  body.set(window.subarray(0, 16), 0);
  setU64(view, TRANSFER_AT.offsetBytes, offset);
  view.setUint32(TRANSFER_AT.lengthBytes, data.length, true);
  view.setUint32(TRANSFER_AT.flags, flags | (last ? TRANSFER_FLAG_LAST : 0), true);
  body.set(data, TRANSFER_PREFIX_BYTES);
  return encodeFrame(fields(FrameKind.write, { requestSequence: transfer, sequence: 0 }), body);
}
const statusOf = (frame: Buffer): [number, number] => [
  frame.readUInt8(FRAME_AT.kind),
  frame.readUInt16LE(FRAME_AT.messageType),
];

test('the layout in C++ is the layout in TypeScript', () => {
  const native = loadTcpAddon().constants;
  const kinds = Object.entries(FrameKind).map(([name, value]) => [
    `kind${name[0]!.toUpperCase()}${name.slice(1)}`,
    value,
  ]);
  const statuses = Object.entries(TransferStatus).map(([name, v]) => [
    `status${name[0]!.toUpperCase()}${name.slice(1)}`,
    v,
  ]);
  const ends = Object.entries(LinkEnd).map(([name, value]) => [`end${name[0]!.toUpperCase()}${name.slice(1)}`, value]);
  expect({ ...native }).toEqual({
    frameMagic: FRAME_MAGIC,
    frameVersion: FRAME_VERSION,
    frameHeaderBytes: FRAME_HEADER_BYTES,
    atMagic: FRAME_AT.magic,
    atVersion: FRAME_AT.version,
    atKind: FRAME_AT.kind,
    atBodyBytes: FRAME_AT.bodyBytes,
    atRequestSequence: FRAME_AT.requestSequence,
    atMessageType: FRAME_AT.messageType,
    atCrc32c: FRAME_AT.crc32c,
    transferPrefixBytes: TRANSFER_PREFIX_BYTES,
    atWindowId: TRANSFER_AT.windowId,
    atWindowSecret: TRANSFER_AT.windowSecret,
    atOffsetBytes: TRANSFER_AT.offsetBytes,
    atLengthBytes: TRANSFER_AT.lengthBytes,
    atFlags: TRANSFER_AT.flags,
    transferFlagLast: TRANSFER_FLAG_LAST,
    transferFlagDataUnchecked: TRANSFER_FLAG_DATA_UNCHECKED,
    frameBodyBytesMax: FRAME_BODY_BYTES_MAX,
    transferChunkBytes: TRANSFER_CHUNK_BYTES,
    transferBytesMax: TRANSFER_BYTES_MAX,
    handshakeRecordBytes: HANDSHAKE_RECORD_BYTES,
    kindMax: FRAME_KIND_MAX,
    kindStreamMax: FRAME_KIND_STREAM_MAX,
    ...Object.fromEntries([...kinds, ...statuses, ...ends]),
  });
  expect(LINK_ENDS.map((entry) => entry.name)).toEqual(Object.keys(LinkEnd));
});

describe('a stream that can not be trusted ends its connection, with the reason', () => {
  const good = encodeFrame(fields(FrameKind.message), Buffer.from('hello'));
  const altered = (change: (bytes: Uint8Array, view: DataView) => void) => {
    const bytes = good.slice();
    change(bytes, new DataView(bytes.buffer));
    return bytes;
  };
  const cases: [string, Uint8Array, keyof typeof LinkEnd][] = [
    ['noise instead of a frame', new Uint8Array(100).fill(0xaa), 'badMagic'],
    ['another version', altered((_, view) => view.setUint8(FRAME_AT.version, 9)), 'badVersion'],
    ['an unknown kind', altered((_, view) => view.setUint8(FRAME_AT.kind, FRAME_KIND_MAX + 1)), 'badKind'],
    ['kind 0', altered((_, view) => view.setUint8(FRAME_AT.kind, 0)), 'badKind'],
    [
      'an oversized body',
      altered((_, v) => v.setUint32(FRAME_AT.bodyBytes, FRAME_BODY_BYTES_MAX + 1, true)),
      'badLength',
    ],
    ['a flipped bit in the body', altered((bytes) => (bytes[FRAME_HEADER_BYTES]! ^= 4)), 'badChecksum'],
    ['a flipped bit in the header', altered((_, view) => view.setUint32(FRAME_AT.epoch, 2, true)), 'badChecksum'],
  ];
  test.each(cases)('%s', async (_, bytes, end) => {
    const rig = await Rig.make(transport);
    rig.socket.write(good);
    rig.socket.write(bytes);
    await rig.closed();
    expect(rig.end).toBe(end);
    expect(rig.frames.length).toBe(1);
  });

  test('a truncated frame is never delivered', async () => {
    const rig = await Rig.make(transport);
    rig.socket.end(good.subarray(0, good.length - 1));
    await rig.closed();
    expect([rig.end, rig.frames.length]).toEqual(['closedByPeer', 0]);
  });

  test('a flipped bit in the data of a transfer ends the connection, and no completion is sent', async () => {
    const rig = await Rig.make(transport);
    const window = transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 4096 }], 'write');
    const frame = writeFrame(window, 0, new Uint8Array(4096).fill(3));
    frame[frame.length - 1]! ^= 1;
    rig.socket.write(frame);
    await rig.closed();
    expect(rig.end).toBe('badChecksum');
  });
});

describe('windows', () => {
  const data = new Uint8Array(10_000).fill(0x5a);

  test.each<[string, TransferStatus, (rig: Rig) => Uint8Array]>([
    ['an unknown window', TransferStatus.windowUnknown, () => writeFrame(new Uint8Array(16).fill(9), 0, data)],
    [
      "another peer's window",
      TransferStatus.windowDenied,
      () => writeFrame(transport.openWindow(8, [{ offsetBytes: 0, lengthBytes: 10_000 }], 'write'), 0, data),
    ],
    [
      'a window open only for reading',
      TransferStatus.windowDenied,
      () => writeFrame(transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 10_000 }], 'read'), 0, data),
    ],
    [
      'the end of a window exceeded by one byte',
      TransferStatus.outOfBounds,
      () => writeFrame(transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 10_000 }], 'write'), 1, data),
    ],
    [
      'a guessed secret',
      TransferStatus.windowDenied,
      () => {
        const name = transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 10_000 }], 'write').slice();
        name[12]! ^= 1;
        return writeFrame(name, 0, data);
      },
    ],
  ])('%s: nothing lands, the writer is told, the connection goes on', async (_, status, frame) => {
    const rig = await Rig.make(transport);
    rig.socket.write(frame(rig));
    rig.socket.write(encodeFrame(fields(FrameKind.message), Buffer.from('after')));
    expect(statusOf(await rig.read(FRAME_HEADER_BYTES))).toEqual([FrameKind.transferDone, status]);
    await rig.until(() => rig.frames.length === 1);
    expect(pool.bytes.every((byte) => byte === 0)).toBe(true);
    expect(transport.stats().transferBytesDiscarded).toBe(10_000);
  });

  test('S3: once a window is closed no byte of a transfer in its midst lands any more', async () => {
    const rig = await Rig.make(transport);
    const window = transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 200_000 }], 'write');
    const frame = writeFrame(window, 0, new Uint8Array(200_000).fill(0x77));
    rig.socket.write(encodeFrame(fields(FrameKind.message), Buffer.from('before')));
    rig.socket.write(frame.subarray(0, 100_000));
    while (transport.stats().transferBytesLanded < 50_000) await new Promise((resolve) => setImmediate(resolve));
    await transport.closeWindow(window);
    pool.bytes.fill(1);
    rig.socket.write(frame.subarray(100_000));
    expect(statusOf(await rig.read(FRAME_HEADER_BYTES))).toEqual([
      FrameKind.transferDone,
      TransferStatus.windowUnknown,
    ]);
    expect(pool.bytes.every((byte) => byte === 1)).toBe(true);
    expect(rig.end).toBe('');
  });

  test('data whose users verify it lands without a checksum of the link; where it lands is checked all the same', async () => {
    const rig = await Rig.make(transport);
    const window = transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 8192 }], 'write');
    const frame = writeFrame(window, 4096, new Uint8Array(4096).fill(0x33), true, 5, TRANSFER_FLAG_DATA_UNCHECKED);
    frame[frame.length - 1] = 0x44;
    rig.socket.write(frame);
    expect(statusOf(await rig.read(FRAME_HEADER_BYTES))).toEqual([FrameKind.transferDone, TransferStatus.landed]);
    expect([pool.bytes[4096], pool.bytes[8191]]).toEqual([0x33, 0x44]);
    expect(rig.end).toBe('');
    const astray = writeFrame(window, 4096, new Uint8Array(4096), true, 6, TRANSFER_FLAG_DATA_UNCHECKED);
    astray[FRAME_HEADER_BYTES + TRANSFER_AT.offsetBytes + 1] = 0;
    pool.bytes.fill(1, 0, 4096);
    rig.socket.write(astray);
    await rig.closed();
    expect(rig.end).toBe('badChecksum');
  });

  test('who reads data that its users verify gets it without a checksum of the link', async () => {
    const rig = await Rig.make(transport);
    pool.bytes.fill(0x42);
    const window = transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 4096 }], 'read');
    const body = new Uint8Array(TRANSFER_PREFIX_BYTES);
    const view = new DataView(body.buffer);
    body.set(window.subarray(0, 16));
    view.setUint32(TRANSFER_AT.lengthBytes, 4096, true);
    view.setUint32(TRANSFER_AT.flags, TRANSFER_FLAG_DATA_UNCHECKED, true);
    rig.socket.write(encodeFrame(fields(FrameKind.readRequest, { requestSequence: 3, sequence: 0 }), body));
    const answer = await rig.read(FRAME_HEADER_BYTES + TRANSFER_PREFIX_BYTES + 4096);
    expect(judgeFrame(answer, 0, answer.length).is).toBe('frame');
    answer[answer.length - 1] = 7;
    expect(judgeFrame(answer, 0, answer.length).is).toBe('frame');
    answer[FRAME_HEADER_BYTES + TRANSFER_AT.flags] = TRANSFER_FLAG_LAST;
    expect(judgeFrame(answer, 0, answer.length).is).toBe('refused');
  });

  test('S3: once a window open for reading is closed its pages are not sent any more, and the frame begun is completed', async () => {
    const rig = await Rig.make(transport);
    pool.bytes.fill(0x42);
    const window = transport.openWindow(7, [{ offsetBytes: 0, lengthBytes: 4 << 20 }], 'read');
    const body = new Uint8Array(TRANSFER_PREFIX_BYTES);
    body.set(window.subarray(0, 16));
    new DataView(body.buffer).setUint32(TRANSFER_AT.lengthBytes, 4 << 20, true);
    for (let i = 0; i < 8; i++) {
      rig.socket.write(encodeFrame(fields(FrameKind.readRequest, { requestSequence: i, sequence: 0 }), body));
    }
    rig.socket.write(encodeFrame(fields(FrameKind.message), Buffer.from('asked')));
    await rig.until(() => rig.frames.length === 1);
    // Until the socket takes no more: most likely in the midst of a frame.
    let sent = -1;
    while (sent <= 0 || transport.stats().bytesSent !== sent) {
      sent = transport.stats().bytesSent;
      for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
    }
    await transport.closeWindow(window);
    pool.bytes.fill(0x13);
    // Everything that comes is whole, of the old content, and ends with refusals.
    const statuses: number[] = [];
    let complete = 0;
    while (complete + statuses.length < 8) {
      const header = await rig.read(FRAME_HEADER_BYTES);
      if (header.readUInt8(FRAME_AT.kind) === FrameKind.transferDone) {
        statuses.push(header.readUInt16LE(FRAME_AT.messageType));
        continue;
      }
      const rest = await rig.read(header.readUInt32LE(FRAME_AT.bodyBytes));
      const whole = Buffer.concat([header, rest]);
      expect(judgeFrame(whole, 0, whole.length).is).toBe('frame');
      expect(rest.subarray(TRANSFER_PREFIX_BYTES).every((byte) => byte === 0x42)).toBe(true);
      if (rest.readUInt32LE(TRANSFER_AT.flags) === TRANSFER_FLAG_LAST) complete++;
    }
    expect(statuses.length).toBeGreaterThan(0);
    expect(statuses.every((status) => status === TransferStatus.windowUnknown)).toBe(true);
  });
});

test('calls for what is closed do nothing, calls with nonsense throw, a closed engine says so', async () => {
  const addon = loadTcpAddon();
  const rig = await Rig.make(transport);
  rig.link.close();
  rig.link.close();
  rig.link.send(encodeFrame(fields(FrameKind.ack, { sequence: 0 }), new Uint8Array(0)), 0, FRAME_HEADER_BYTES);
  rig.link.flush();
  expect(() => transport.openWindow(7, [{ offsetBytes: pool.lengthBytes, lengthBytes: 1 }], 'read')).toThrow(TypeError);
  expect(() => addon.stats({} as never)).toThrow(TypeError);
  expect(() => addon.createEngine({} as never, [] as never, new Uint32Array(1), new Uint32Array(4))).toThrow(TypeError);
  const other = new TcpTransport(pool);
  other.close();
  other.close();
  expect(() => other.stats()).toThrow(/closed/);
  await expect(other.listen({ host: '127.0.0.1', port: 0 }, () => undefined)).rejects.toSatisfy(FsError.is);
});

test(
  'any bytes in any pieces: C++ and TypeScript judge them alike, and nothing crashes',
  async () => {
    const frame = fc
      .record({
        kind: fc.integer({ min: 1, max: FRAME_KIND_MAX }),
        body: fc.uint8Array({ maxLength: 300 }),
        large: fc.option(fc.integer({ min: 0, max: FRAME_BODY_BYTES_MAX }), { freq: 20 }),
        prefix: fc.boolean(),
      })
      .map(({ kind, body, large, prefix }) => {
        if (kind === FrameKind.write)
          return writeFrame(new Uint8Array(16).fill(1), 0, prefix ? new Uint8Array([1, ...body]) : body);
        if (kind === FrameKind.resume || kind === FrameKind.ack || kind === FrameKind.transferDone) {
          return encodeFrame(fields(kind), prefix ? new Uint8Array(0) : body);
        }
        if (kind === FrameKind.readRequest) return encodeFrame(fields(kind), new Uint8Array(TRANSFER_PREFIX_BYTES));
        return encodeFrame(fields(kind), large === null ? body : new Uint8Array(large));
      });
    const damage = fc.option(
      fc.record({ at: fc.nat(), flip: fc.integer({ min: 1, max: 255 }), cut: fc.option(fc.nat(), { freq: 5 }) }),
      { freq: 3 },
    );
    const pieces = fc.array(fc.integer({ min: 1, max: 5000 }), { maxLength: 6 });
    const seconds = Number(process.env['HOLDFAST_FUZZ_SECONDS'] ?? 3);
    await fc.assert(
      fc.asyncProperty(fc.array(frame, { minLength: 1, maxLength: 8 }), damage, pieces, async (frames, hurt, cuts) => {
        let bytes = Buffer.concat(frames);
        if (hurt !== null) {
          bytes[hurt.at % bytes.length]! ^= hurt.flip;
          if (hurt.cut !== null) bytes = bytes.subarray(0, hurt.cut % bytes.length);
        }
        const rig = await Rig.make(transport);
        rig.socket.resume();
        let at = 0;
        for (const cut of cuts) {
          rig.socket.write(bytes.subarray(at, at + cut));
          at += cut;
          await new Promise((resolve) => setImmediate(resolve));
        }
        rig.socket.end(bytes.subarray(Math.min(at, bytes.length)));
        await rig.closed();
        expect([rig.end, rig.frames.length]).toEqual(expected(bytes));
        rig.socket.destroy();
      }),
      { numRuns: 1_000_000, interruptAfterTimeLimit: seconds * 1000, markInterruptAsFailure: false },
    );
  },
  (Number(process.env['HOLDFAST_FUZZ_SECONDS'] ?? 3) + 60) * 1000,
);

/** How a link must end on these bytes, and how many frames it hands up first. */
function expected(bytes: Buffer): [string, number] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let count = 0;
  for (let at = 0; ; ) {
    const verdict = judgeFrame(bytes, at, bytes.length);
    const kind = bytes[at + FRAME_AT.kind];
    const transfer = kind === FrameKind.write || kind === FrameKind.readData;
    const prefix = at + FRAME_HEADER_BYTES;
    if (transfer && verdict.is !== 'refused' && bytes.length >= prefix + TRANSFER_PREFIX_BYTES) {
      const claimed = view.getUint32(prefix + TRANSFER_AT.lengthBytes, true);
      const real = view.getUint32(at + FRAME_AT.bodyBytes, true) - TRANSFER_PREFIX_BYTES;
      if (claimed !== real) return ['badLength', count];
    }
    // The length in a prefix is judged before the checksum, since the data is placed before it is complete.
    if (verdict.is === 'refused' && verdict.end === LinkEnd.badChecksum && transfer) {
      const claimed = view.getUint32(prefix + TRANSFER_AT.lengthBytes, true);
      if (claimed !== view.getUint32(at + FRAME_AT.bodyBytes, true) - TRANSFER_PREFIX_BYTES)
        return ['badLength', count];
    }
    if (verdict.is === 'refused') return [LINK_ENDS[verdict.end]!.name, count];
    if (verdict.is === 'partial') return ['closedByPeer', count];
    if (kind! <= FrameKind.ack) count++;
    at += verdict.totalBytes;
  }
}
