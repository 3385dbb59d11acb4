import type { Clock, Timer } from '../common/clock.js';
import { errorFromRecord, errorToRecord, FsError } from '../common/errors.js';
import { type Epoch, epoch, type Incarnation, incarnation, type NodeId, nodeId } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import type {
  Fabric,
  IncomingMessage,
  NodeIdentity,
  Peer,
  RequestHandler,
  RequestOptions,
  Window,
} from '../fabric/fabric.js';
import { SegmentArena } from '../native/buffer-arena.js';
import { type BufferArena, heapPagePool, type PagePool, type PoolSegment } from '../native/page-pool.js';
import type { MessageType } from '../protocol/message-types.js';
import type { DeviceImage } from './device-record.js';
import type { BlockDevice } from './nsd-api.js';
import { DEVICE_SECTORS_MIN, geometryOfDevice } from './nsd-layout.js';
import { imageOf } from './recording-device.js';

/**
 * What the tests of this folder stand on: a device in memory, a clock that is moved by hand, and a fabric in one
 * process whose messages and transfers a test can look into, change and cut. Not the simulator: no time, no reordering.
 */

export class RamDevice implements BlockDevice {
  readonly logicalBlockBytes = 512;
  readonly bytes: Uint8Array;
  closed = false;
  keeper: string | undefined = undefined;

  constructor(
    readonly lengthBytes: number,
    private readonly pool: PagePool,
  ) {
    this.bytes = new Uint8Array(lengthBytes);
  }
  static of(image: DeviceImage, lengthBytes: number, pool: PagePool): RamDevice {
    const device = new RamDevice(lengthBytes, pool);
    for (const [at, chunk] of image) device.bytes.set(chunk.subarray(0, lengthBytes - at), at);
    return device;
  }
  image(): DeviceImage {
    return imageOf(this.bytes);
  }

  #check(op: string, offsetBytes: number, lengthBytes: number): void {
    const aligned = offsetBytes % this.logicalBlockBytes === 0 && lengthBytes % this.logicalBlockBytes === 0;
    if (this.closed || !aligned || offsetBytes < 0 || offsetBytes + lengthBytes > this.lengthBytes)
      throw new FsError('deviceError', { op, detail: `EINVAL at byte ${offsetBytes}` });
  }
  async read(offsetBytes: number, memory: PoolSegment): Promise<void> {
    this.#check('device.read', offsetBytes, memory.lengthBytes);
    await turn();
    this.pool.bytes.set(this.bytes.subarray(offsetBytes, offsetBytes + memory.lengthBytes), memory.offsetBytes);
  }
  async write(offsetBytes: number, memory: PoolSegment): Promise<void> {
    this.#check('device.write', offsetBytes, memory.lengthBytes);
    await turn();
    const { pool } = this;
    this.bytes.set(pool.bytes.subarray(memory.offsetBytes, memory.offsetBytes + memory.lengthBytes), offsetBytes);
  }
  async flush(): Promise<void> {
    await turn();
  }
  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#check('device.discard', offsetBytes, lengthBytes);
    // What a real device leaves there is its own affair.
    this.bytes.fill(0xdd, offsetBytes, offsetBytes + lengthBytes);
  }
  async close(): Promise<void> {
    this.closed = true;
  }
}

/** The length of a device that has room for so many data sectors. */
export function deviceBytesFor(dataSectorCount: number): number {
  for (let sectors = dataSectorCount + DEVICE_SECTORS_MIN - 1; ; sectors++)
    if (geometryOfDevice(sectors * SECTOR_BYTES).dataSectorCount >= dataSectorCount) return sectors * SECTOR_BYTES;
}

/** The next turn of the event loop: everything that was ready before has run. */
export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Turns until the condition holds; for states that are reached without any time passing. */
export async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 10_000; i++) {
    if (condition()) return;
    await turn();
  }
  throw new Error('the state waited for was not reached');
}

/** A pool with one arena over all of it. */
export function testMemory(lengthBytes: number): { pool: PagePool; arena: SegmentArena } {
  const pool = heapPagePool(lengthBytes);
  return { pool, arena: new SegmentArena({ offsetBytes: 0, lengthBytes }) };
}
export function mustAllocate(arena: BufferArena, sectorCount: number): PoolSegment {
  const segment = arena.tryAllocate(sectorCount * SECTOR_BYTES);
  if (segment === null) throw new Error('the test has too little memory');
  return segment;
}

/** Time stands still until `advance`. */
export class ManualClock implements Clock {
  #now = 0;
  readonly #timers = new Set<{ readonly at: number; readonly fire: () => void }>();

  nowMs(): number {
    return this.#now;
  }
  wallNs(): bigint {
    return 0n;
  }
  after(delayMs: number, fire: () => void): Timer {
    const timer = { at: this.#now + delayMs, fire };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }
  get pending(): number {
    return this.#timers.size;
  }
  advance(byMs: number): void {
    this.#now += byMs;
    for (const timer of [...this.#timers].sort((a, b) => a.at - b.at)) {
      if (timer.at > this.#now || !this.#timers.delete(timer)) continue;
      timer.fire();
    }
  }
}

interface ExposedWindow {
  readonly owner: TestFabric;
  readonly peer: NodeId;
  readonly segments: readonly PoolSegment[];
  readonly access: 'read' | 'write';
}

/** The nodes of a test, and the places where it can meddle. */
export class TestNetwork {
  readonly nodes = new Map<NodeId, TestFabric>();
  readonly windows = new Map<number, ExposedWindow>();
  #nextWindow = 1;
  windowsOpened = 0;
  /** Called with every one-sided transfer's bytes before they land; may change them, wait, or throw. */
  onTransfer: (bytes: Uint8Array, kind: 'read' | 'write') => void | Promise<void> = () => undefined;
  /** Called with every request; may throw instead of letting it through. */
  onRequest: (from: NodeId, to: NodeId, type: MessageType) => void | Promise<void> = () => undefined;
  onReply: (body: Uint8Array, type: MessageType) => Uint8Array = (body) => body;

  node(id: number, pool: PagePool, life = 1): TestFabric {
    const fabric = new TestFabric(this, { nodeId: nodeId(id), incarnation: incarnation(life) }, pool);
    this.nodes.set(nodeId(id), fabric);
    return fabric;
  }
  openWindow(window: ExposedWindow): number {
    this.windowsOpened++;
    const key = this.#nextWindow++;
    this.windows.set(key, window);
    return key;
  }
}

export class TestFabric implements Fabric {
  readonly handlers = new Map<MessageType, RequestHandler>();
  epoch: Epoch = epoch(1);

  constructor(
    readonly network: TestNetwork,
    public self: NodeIdentity,
    readonly pool: PagePool,
  ) {}

  setEpoch(value: Epoch): void {
    this.epoch = value;
  }
  peer(node: NodeId): Peer {
    return new TestPeer(this, node);
  }
  handleRequests(type: MessageType, handler: RequestHandler): void {
    this.handlers.set(type, handler);
  }
  handleMessages(): void {
    throw new Error('no one-way messages in these tests');
  }
  onPeerChange(): void {}
  forget(_node: NodeId, _upTo: Incarnation): void {}
  expose(peer: NodeId, segments: readonly PoolSegment[], access: 'read' | 'write'): Window {
    const key = this.network.openWindow({ owner: this, peer, segments, access });
    const remote = new Uint8Array(4);
    new DataView(remote.buffer).setUint32(0, key);
    return {
      remote,
      lengthBytes: segments.reduce((sum, one) => sum + one.lengthBytes, 0),
      close: async () => {
        await turn();
        this.network.windows.delete(key);
      },
    };
  }
  async close(): Promise<void> {}
}

class TestPeer implements Peer {
  readonly connected = true;
  constructor(
    private readonly from: TestFabric,
    readonly nodeId: NodeId,
  ) {}

  async request(type: MessageType, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    const { network, self } = this.from;
    const stamp = { from: self, epoch: this.from.epoch };
    const copy = body.slice();
    const { signal } = options;
    const aborted = new Promise<never>((_resolve, reject) => {
      const fail = (): void => reject(new FsError('aborted', { op: 'request' }));
      if (signal?.aborted) fail();
      signal?.addEventListener('abort', fail, { once: true });
    });
    aborted.catch(() => undefined);
    const served = (async () => {
      await turn();
      await network.onRequest(self.nodeId, this.nodeId, type);
      const target = network.nodes.get(this.nodeId);
      const handler = target?.handlers.get(type);
      if (target === undefined || handler === undefined) throw new FsError('unreachable', { op: 'request' });
      const message: IncomingMessage = { ...stamp, body: copy, peer: target.peer(self.nodeId) };
      try {
        const reply = handler(message);
        // The body is the fabric's again once the handler has returned.
        copy.fill(0xcc);
        return network.onReply((await reply).slice(), type);
      } catch (error) {
        throw errorFromRecord(errorToRecord(FsError.from(error, 'request')));
      }
    })();
    served.catch(() => undefined);
    return Promise.race([served, aborted]);
  }
  send(): void {
    throw new Error('no one-way messages in these tests');
  }
  async writeRemote(window: Uint8Array, windowOffsetBytes: number, local: readonly PoolSegment[]): Promise<void> {
    await this.#transfer(window, windowOffsetBytes, local, 'write');
  }
  async readRemote(window: Uint8Array, windowOffsetBytes: number, local: readonly PoolSegment[]): Promise<void> {
    await this.#transfer(window, windowOffsetBytes, local, 'read');
  }

  async #transfer(
    name: Uint8Array,
    windowOffsetBytes: number,
    local: readonly PoolSegment[],
    kind: 'read' | 'write',
  ): Promise<void> {
    const { network, self, pool } = this.from;
    const key = new DataView(name.buffer, name.byteOffset).getUint32(0);
    const find = (): ExposedWindow => {
      const window = network.windows.get(key);
      if (window === undefined || window.peer !== self.nodeId || window.access !== kind)
        throw new FsError('wrongKeyWindow', { op: kind, detail: 'no such window' });
      return window;
    };
    const mine = places(local);
    const theirs = (window: ExposedWindow): number[] =>
      places(window.segments).slice(windowOffsetBytes / SECTOR_BYTES, windowOffsetBytes / SECTOR_BYTES + mine.length);
    const before = find();
    if (theirs(before).length !== mine.length)
      throw new FsError('outOfRange', { op: kind, detail: 'beyond the window' });
    const source = kind === 'write' ? pool : before.owner.pool;
    const from = kind === 'write' ? mine : theirs(before);
    const bytes = new Uint8Array(mine.length * SECTOR_BYTES);
    from.forEach((at, i) => {
      bytes.set(source.bytes.subarray(at, at + SECTOR_BYTES), i * SECTOR_BYTES);
    });
    await turn();
    await network.onTransfer(bytes, kind);
    const after = find();
    const target = kind === 'write' ? after.owner.pool : pool;
    (kind === 'write' ? theirs(after) : mine).forEach((at, i) => {
      target.bytes.set(bytes.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES), at);
    });
  }
}

/** Pool offsets of a list of segments, sector by sector. */
function places(segments: readonly PoolSegment[]): number[] {
  const all: number[] = [];
  for (const { offsetBytes, lengthBytes } of segments)
    for (let at = 0; at < lengthBytes; at += SECTOR_BYTES) all.push(offsetBytes + at);
  return all;
}
