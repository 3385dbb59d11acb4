import type { Clock } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import { type NodeId, nodeId } from '../common/ids.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import type { Window } from './fabric.js';
import type { FabricNode } from './fabric-node.js';
import type { TransportKind } from './link.js';

/**
 * `holdfast fabric test`: what each rung gives between two nodes. The link with the peer is replaced by one over that rung, ordinary
 * requests and transfers are timed on it, and afterwards the best rung is taken again. Traffic goes on meanwhile; it is measured along.
 *
 * Each node keeps a scratch segment of its pool for it. Asked by a peer it opens that to the peer for reading and writing, for one
 * test at a time, and closes it when told to, or by itself. Until then neither side looks for a better transport.
 */
export interface RungResult {
  readonly transport: TransportKind;
  /** Null: it was measured. */
  readonly error: string | null;
  /** Of a request and its reply with this many bytes each. */
  readonly messageBytes: number;
  readonly roundTripP50Us: number;
  readonly roundTripP99Us: number;
  readonly transferBytes: number;
  readonly readBytesPerSecond: number;
  readonly writeBytesPerSecond: number;
}

const MESSAGE_BYTES = 64;
const ROUND_TRIPS = 500;
const WARM_UP = 100;
const TRANSFERS = 64;
const TRANSFERS_AT_ONCE = 4;
const RUNG_TIME_MS = 4000;
const TIMEOUT_MS = 10_000;
/** To tell the peer that it is over; whom it does not reach finds out by himself. */
const GOODBYE_MS = 2000;
/** Both rungs at their slowest. */
const TEST_MS = 120_000;
const OPEN = 1;
const CLOSE = 2;
/** Announces a test: the asked side leaves the link with the asking one alone, whichever it is, until CLOSE. */
const BEGIN = 3;

const NOTHING = new Uint8Array(0);

const closeAll = (windows: readonly Window[]) => Promise.all(windows.map((window) => window.close()));

interface Serving {
  readonly node: NodeId;
  windows: readonly Window[];
  readonly timer: { cancel(): void };
}

export class RungTest {
  readonly #fabric: FabricNode;
  readonly #pool: PagePool;
  readonly #scratch: PoolSegment;
  readonly #clock: Clock;
  #serving: Serving | null = null;
  #testing = false;

  constructor(fabric: FabricNode, pool: PagePool, scratch: PoolSegment, clock: Clock) {
    this.#fabric = fabric;
    this.#pool = pool;
    this.#scratch = scratch;
    this.#clock = clock;
    fabric.handleRequests(MessageType.fabricTest, ({ body, from }) => this.#serve(body[0] ?? 0, from.nodeId));
  }

  // --- the peer's side ---

  async #serve(what: number, node: NodeId): Promise<Uint8Array> {
    const op = 'fabric.test';
    if (what !== BEGIN && what !== OPEN && what !== CLOSE) {
      throw new FsError('invalidArgument', { op, detail: `request ${what}` });
    }
    if (what === CLOSE) {
      if (this.#serving?.node === node) await this.#stopServing();
      return NOTHING;
    }
    if (this.#testing || (this.#serving !== null && this.#serving.node !== node)) {
      throw new FsError('busy', { op, detail: 'this node is in another test' });
    }
    if (what === BEGIN) {
      await this.#stopServing();
      const timer = this.#clock.after(TEST_MS, () => void this.#stopServing());
      this.#serving = { node, windows: [], timer };
      this.#fabric.holdLink(node, 'them');
      return NOTHING;
    }
    const serving = this.#serving;
    if (serving === null) throw new FsError('invalidArgument', { op, detail: 'the test has not begun, or is over' });
    await closeAll(serving.windows);
    serving.windows = (['read', 'write'] as const).map((access) => this.#fabric.expose(node, [this.#scratch], access));
    const reply = new Uint8Array(4 + serving.windows.reduce((sum, { remote }) => sum + 4 + remote.length, 0));
    const view = new DataView(reply.buffer);
    view.setUint32(0, this.#scratch.lengthBytes, true);
    let at = 4;
    for (const { remote } of serving.windows) {
      view.setUint32(at, remote.length, true);
      reply.set(remote, at + 4);
      at += 4 + remote.length;
    }
    return reply;
  }

  async #stopServing(): Promise<void> {
    const serving = this.#serving;
    if (serving === null) return;
    this.#serving = null;
    serving.timer.cancel();
    await closeAll(serving.windows);
    this.#fabric.holdLink(serving.node, null);
  }

  // --- the asking side ---

  /** @throws {FsError} busy, invalidArgument. What a rung can't do is said in its result. */
  async run(node: number, transports: readonly TransportKind[]): Promise<RungResult[]> {
    const op = 'fabric.test';
    if (node === this.#fabric.self.nodeId) throw new FsError('invalidArgument', { op, detail: 'that is this node' });
    if (this.#testing || this.#serving !== null) throw new FsError('busy', { op, detail: 'a test is running' });
    this.#testing = true;
    const peer = this.#fabric.peer(nodeId(node));
    const options = { timeoutMs: TIMEOUT_MS };
    this.#fabric.holdLink(nodeId(node), 'us');
    let begun = false;
    try {
      await peer.request(MessageType.fabricTest, Uint8Array.of(BEGIN), options);
      begun = true;
      const results: RungResult[] = [];
      for (const transport of transports) results.push(await this.#rung(nodeId(node), transport));
      return results;
    } finally {
      if (begun) {
        // Back to the best there is, before the other side may look for it.
        await this.#fabric.relink(nodeId(node), 'rdma').catch(() => undefined);
        await peer
          .request(MessageType.fabricTest, Uint8Array.of(CLOSE), { timeoutMs: GOODBYE_MS })
          .catch(() => undefined);
      }
      this.#fabric.holdLink(nodeId(node), null);
      this.#testing = false;
    }
  }

  async #rung(node: NodeId, transport: TransportKind): Promise<RungResult> {
    const none: RungResult = {
      transport,
      error: null,
      messageBytes: MESSAGE_BYTES,
      roundTripP50Us: 0,
      roundTripP99Us: 0,
      transferBytes: 0,
      readBytesPerSecond: 0,
      writeBytesPerSecond: 0,
    };
    try {
      await this.#fabric.relink(node, transport);
      const trips = await this.#roundTrips(node);
      await this.#mustBe(node, transport);
      const bulk = await this.#bulk(node);
      await this.#mustBe(node, transport);
      return { ...none, ...trips, ...bulk };
    } catch (error) {
      return { ...none, error: FsError.from(error, 'fabric.test').message };
    }
  }

  /** What was measured was this rung. */
  async #mustBe(node: NodeId, transport: TransportKind): Promise<void> {
    const status = () => this.#fabric.peers().find((peer) => peer.nodeId === node);
    // Between two links there is none for a moment.
    if (status()?.connected !== true) await this.#ping(node, NOTHING);
    const now = status();
    if (now?.transport === transport) return;
    const detail = `the link did not stay: it is ${now?.transport ?? 'none'} now (${now?.reason ?? 'unknown'})`;
    throw new FsError('connectionLost', { op: 'fabric.test', detail });
  }

  #ping(node: NodeId, body: Uint8Array): Promise<Uint8Array> {
    return this.#fabric.peer(node).request(MessageType.ping, body, { timeoutMs: TIMEOUT_MS });
  }

  async #roundTrips(node: NodeId) {
    const body = new Uint8Array(MESSAGE_BYTES);
    const timesUs: number[] = [];
    const endMs = this.#clock.nowMs() + RUNG_TIME_MS;
    for (let i = 0; i < WARM_UP + ROUND_TRIPS && (this.#clock.nowMs() < endMs || timesUs.length === 0); i++) {
      const startMs = performance.now();
      await this.#ping(node, body);
      if (i >= WARM_UP || this.#clock.nowMs() >= endMs) timesUs.push((performance.now() - startMs) * 1000);
    }
    timesUs.sort((a, b) => a - b);
    const at = (part: number) => Math.round(timesUs[Math.min(timesUs.length - 1, Math.floor(part * timesUs.length))]!);
    return { roundTripP50Us: at(0.5), roundTripP99Us: at(0.99) };
  }

  async #bulk(node: NodeId) {
    const peer = this.#fabric.peer(node);
    const options = { timeoutMs: TIMEOUT_MS };
    const [lengthBytes, readName, writeName] = readReply(
      await peer.request(MessageType.fabricTest, Uint8Array.of(OPEN), options),
    );
    const transferBytes = Math.min(lengthBytes, this.#scratch.lengthBytes);
    const local = [{ offsetBytes: this.#scratch.offsetBytes, lengthBytes: transferBytes }];
    const readBytesPerSecond = await this.#rate(transferBytes, () => peer.readRemote(readName, 0, local));
    this.#pool.bytes.fill(0x5a, this.#scratch.offsetBytes, this.#scratch.offsetBytes + transferBytes);
    const writeBytesPerSecond = await this.#rate(transferBytes, () => peer.writeRemote(writeName, 0, local));
    return { transferBytes, readBytesPerSecond, writeBytesPerSecond };
  }

  async #rate(bytes: number, move: () => Promise<void>): Promise<number> {
    await move();
    const startMs = performance.now();
    let begun = 0;
    let done = 0;
    const worker = async () => {
      while (begun < TRANSFERS && (performance.now() - startMs < RUNG_TIME_MS || begun === 0)) {
        begun++;
        await move();
        done++;
      }
    };
    await Promise.all(Array.from({ length: TRANSFERS_AT_ONCE }, worker));
    return Math.round((done * bytes * 1000) / (performance.now() - startMs));
  }
}

function readReply(reply: Uint8Array): [lengthBytes: number, read: Uint8Array, write: Uint8Array] {
  const malformed = () => new FsError('badFrame', { op: 'fabric.test', detail: "the peer's answer makes no sense" });
  const view = new DataView(reply.buffer, reply.byteOffset, reply.byteLength);
  const names: Uint8Array[] = [];
  if (reply.length < 4) throw malformed();
  let at = 4;
  for (let i = 0; i < 2; i++) {
    if (at + 4 > reply.length) throw malformed();
    const lengthBytes = view.getUint32(at, true);
    if (at + 4 + lengthBytes > reply.length) throw malformed();
    names.push(reply.slice(at + 4, at + 4 + lengthBytes));
    at += 4 + lengthBytes;
  }
  return [view.getUint32(0, true), names[0]!, names[1]!];
}
