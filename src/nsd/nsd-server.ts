import { Counters } from '../common/counters.js';
import { FsError, type Reason } from '../common/errors.js';
import type { Epoch, Incarnation, NodeId } from '../common/ids.js';
import { type Logger, silentLogger } from '../common/logger.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Wakeful } from '../common/wakeful.js';
import {
  type Fabric,
  type IncomingMessage,
  type Peer,
  type TransferOptions,
  WINDOW_BYTES_MAX,
} from '../fabric/fabric.js';
import type { BufferArena, PagePool, PoolSegment } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import {
  decodeNsdDiscard,
  decodeNsdFence,
  decodeNsdName,
  decodeNsdRead,
  decodeNsdVersions,
  decodeNsdWrite,
  encodeNsdInfoReply,
  encodeNsdLife,
  encodeNsdReadReply,
  encodeNsdVersionsReply,
  encodeNsdWriteReply,
  type SectorExtent,
  sectorsOf,
} from '../protocol/nsd-messages.js';
import type { Checksums } from './checksums.js';
import { type NsdStore, newSectorStates, type SectorStates, type SectorWrite } from './nsd-store.js';
import { settleAll } from './settle-all.js';

/**
 * Serves this node's NSDs to the others. Owns the list of exported stores, the fence, and the way of bytes between a store and a peer's
 * window through staging space.
 *
 * Invariants
 * - No operation of a fenced incarnation reaches a device after `fence` has resolved (F1): the fence is checked in the same step
 *   in which an operation is counted as under way at the device, and `fence` waits for the counted ones. What has not got that far (waiting
 *   for staging space, or for bytes from a node that may be dead) is refused when it gets there, and needs no waiting for.
 * - Bytes reach a device only if they have the checksum that their writer gave (S1), and a window only after they were verified.
 * - Staging space is what bounds the work in flight. Each piece takes its space, ends, gives it back, and never waits for more
 *   while it holds some.
 *
 * Fault model: requests with any content, old epochs, fenced senders, windows that go away meanwhile, devices that fail. Each
 * gets an error with a reason, is counted (`nsd.refused.<reason>`), and leaves no trace.
 */
export interface NsdServerParts {
  readonly fabric: Fabric;
  readonly pool: PagePool;
  /** Staging space, shared with nobody who holds some while he waits for this server. */
  readonly arena: BufferArena;
  readonly checksums: Checksums;
  readonly counters?: Counters;
  readonly logger?: Logger;
  /** While somebody waits for what is to be durable. */
  readonly wakeful?: Wakeful | undefined;
  /** Bytes staged at a time per request; a multiple of a sector. */
  readonly pieceBytesMax?: number;
}
const PIECE_BYTES_DEFAULT = 1 << 20;
/** Pieces of one request under way at a time: device and network overlap, and one request can't take all the staging space. */
const PIECES_AT_ONCE = 4;

/** Part of a request that is staged in one go. */
interface Piece {
  readonly extents: readonly SectorExtent[];
  /** Of its first sector, among the request's. */
  readonly index: number;
  readonly sectorCount: number;
}

interface UnderWay {
  readonly node: NodeId;
  readonly incarnation: Incarnation;
}

export class NsdServer {
  readonly counters: Counters;
  readonly #logger: Logger;
  readonly #stores = new Map<string, NsdStore>();
  readonly #fencedUpTo = new Map<NodeId, Incarnation>();
  #fenceEpoch = 0;
  /** Operations at a device. */
  readonly #underWay = new Set<UnderWay>();
  #drainers: { readonly node: NodeId; readonly upTo: Incarnation; readonly done: () => void }[] = [];
  readonly #pieceSectorsMax: number;

  constructor(private readonly parts: NsdServerParts) {
    this.counters = parts.counters ?? new Counters();
    this.#logger = parts.logger ?? silentLogger;
    this.#pieceSectorsMax = Math.max(1, Math.floor((parts.pieceBytesMax ?? PIECE_BYTES_DEFAULT) / SECTOR_BYTES));
    const { fabric } = parts;
    const handle = (type: MessageType, serve: (message: IncomingMessage) => Promise<Uint8Array>): void =>
      fabric.handleRequests(type, async (message) => {
        try {
          return await serve(message);
        } catch (error) {
          throw this.#refusal(error, message);
        }
      });
    handle(MessageType.nsdRead, (message) => this.#serveRead(message));
    handle(MessageType.nsdWrite, (message) => this.#serveWrite(message));
    handle(MessageType.nsdFlush, (message) => this.#awake(this.#serveFlush(message)));
    handle(MessageType.nsdInfo, (message) => this.#serveInfo(message));
    handle(MessageType.nsdVersions, (message) => this.#serveVersions(message));
    handle(MessageType.nsdDiscard, (message) => this.#serveDiscard(message));
    handle(MessageType.nsdFence, (message) => this.#serveFence(message));
  }

  /**
   * From now on this node serves the NSD. `epochMin`: requests of epochs before it are refused; who was expelled before this node could be
   * told so sends such.
   */
  export(store: NsdStore, epochMin: Epoch): void {
    if (this.#stores.has(store.uuid))
      throw new FsError('exists', { op: 'nsd.export', object: `nsd ${store.uuid}`, detail: 'is exported already' });
    this.#fenceEpoch = Math.max(this.#fenceEpoch, epochMin);
    this.#stores.set(store.uuid, store);
  }
  /** Requests that come later get nsdUnavailable; those at work go on (`NsdStore.close` waits for them). */
  unexport(uuid: string): void {
    this.#stores.delete(uuid);
  }
  /** For the client on this node: the device without a copy. */
  store(uuid: string): NsdStore | undefined {
    return this.#stores.get(uuid);
  }
  get exported(): readonly NsdStore[] {
    return [...this.#stores.values()];
  }

  /**
   * Refuses the node's incarnations up to `upTo`, and everyone's requests of epochs before `epoch`. Resolves when nothing of
   * theirs is at a device any more. May be called any number of times.
   */
  fence(node: NodeId, upTo: Incarnation, epoch: Epoch): Promise<void> {
    const before = this.#fencedUpTo.get(node);
    if (before === undefined || before < upTo) this.#fencedUpTo.set(node, upTo);
    this.#fenceEpoch = Math.max(this.#fenceEpoch, epoch);
    this.counters.add('nsd.fences');
    if (this.#drained(node, upTo)) return Promise.resolve();
    return new Promise((resolve) => {
      this.#drainers.push({ node, upTo, done: resolve });
    });
  }

  #drained(node: NodeId, upTo: Incarnation): boolean {
    for (const one of this.#underWay) if (one.node === node && one.incarnation <= upTo) return false;
    return true;
  }

  /** Checks the fence and, in the same step, counts the operation; the only way to a store. */
  async #atDevice<T>(message: IncomingMessage, operation: () => Promise<T>): Promise<T> {
    this.#admit(message);
    const { nodeId, incarnation } = message.from;
    const one: UnderWay = { node: nodeId, incarnation };
    this.#underWay.add(one);
    try {
      return await operation();
    } finally {
      this.#underWay.delete(one);
      if (this.#drainers.length > 0) {
        const waiting = this.#drainers;
        this.#drainers = waiting.filter((drainer) => !this.#drained(drainer.node, drainer.upTo));
        for (const drainer of waiting) if (!this.#drainers.includes(drainer)) drainer.done();
      }
    }
  }

  #admit(message: IncomingMessage): void {
    const { nodeId, incarnation } = message.from;
    const fenced = this.#fencedUpTo.get(nodeId);
    if (fenced !== undefined && incarnation <= fenced)
      throw new FsError('fenced', {
        op: 'nsd',
        object: `node ${nodeId}`,
        detail: `incarnation ${incarnation} is fenced (up to ${fenced})`,
      });
    if (message.epoch < this.#fenceEpoch)
      throw new FsError('staleEpoch', {
        op: 'nsd',
        object: `node ${nodeId}`,
        detail: `request of epoch ${message.epoch}, the fence is at ${this.#fenceEpoch}`,
      });
  }

  #find(uuid: string): NsdStore {
    const store = this.#stores.get(uuid);
    if (store === undefined)
      throw new FsError('nsdUnavailable', { op: 'nsd', object: `nsd ${uuid}`, detail: 'this node does not serve it' });
    return store;
  }

  /** Before any work is done for it: a request that names sectors which aren't there has no effect at all. */
  #checkExtents(store: NsdStore, extents: readonly SectorExtent[], op: string): void {
    for (const { sector, sectorCount } of extents)
      if (sector + sectorCount > store.dataSectorCount)
        throw new FsError('outOfRange', {
          op,
          object: `nsd ${store.uuid} sector ${sector}`,
          detail: `${sectorCount} sectors from ${sector} on are not among the ${store.dataSectorCount} there are`,
        });
  }

  async #serveRead(message: IncomingMessage): Promise<Uint8Array> {
    const request = decodeNsdRead(message.body);
    this.#admit(message);
    const store = this.#find(request.nsd);
    this.#checkExtents(store, request.extents, 'nsd.read');
    const sectorCount = sectorsOf(request.extents);
    const states = newSectorStates(sectorCount);
    const { window } = request;
    const data = window === null ? new Uint8Array(sectorCount * SECTOR_BYTES) : null;
    await this.#inPieces(request.extents, async (piece) => {
      await this.#staged(piece, async (staging, keepUntil) => {
        await this.#atDevice(message, () => readPiece(store, piece, staging, states));
        const offsetBytes = piece.index * SECTOR_BYTES;
        if (window === null) data?.set(bytesOf(this.parts.pool, staging), offsetBytes);
        else {
          const { ordered, landed } = push(message.peer, window, offsetBytes, staging);
          keepUntil(landed);
          await ordered;
        }
      });
    });
    this.counters.add('nsd.servedReadBytes', sectorCount * SECTOR_BYTES);
    if (data !== null) this.counters.add('nsd.servedInlineBytes', data.length);
    return encodeNsdReadReply({ ...states, data, ...store.life });
  }

  async #serveWrite(message: IncomingMessage): Promise<Uint8Array> {
    const request = decodeNsdWrite(message.body);
    this.#admit(message);
    const store = this.#find(request.nsd);
    this.#checkExtents(store, request.extents, 'nsd.write');
    const sectorCount = sectorsOf(request.extents);
    const write = {
      crcs: request.crcs,
      logged: request.logged,
      exposed: request.exposed,
      selfChecking: request.selfChecking,
      durable: request.durable,
      versions: request.versions ?? undefined,
      versionsOut: new Uint32Array(sectorCount),
    };
    const { peer } = message;
    // All of it before any of it is written; each write looks again, under its lock.
    if (write.versions !== undefined) {
      const { versions } = write;
      await this.#atDevice(message, () => store.checkVersions(request.extents, versions));
    }
    await this.#inPieces(request.extents, async (piece) => {
      await this.#staged(piece, async (staging) => {
        const offsetBytes = piece.index * SECTOR_BYTES;
        if (request.data !== null) {
          const bytes = request.data.subarray(offsetBytes, offsetBytes + staging.lengthBytes);
          this.parts.pool.bytes.set(bytes, staging.offsetBytes);
        } else await this.#pull(peer, request.window, offsetBytes, staging);
        this.#verifyArrived(store, piece, staging, request.crcs);
        const written = this.#atDevice(message, () => writePiece(store, piece, staging, write));
        await (request.durable ? this.#awake(written) : written);
      });
    });
    this.counters.add('nsd.servedWriteBytes', sectorCount * SECTOR_BYTES);
    if (request.data !== null) this.counters.add('nsd.servedInlineBytes', request.data.length);
    return encodeNsdWriteReply({ versions: write.versionsOut, ...store.life });
  }

  /** Somebody waits for what is to be durable, and often has the next thing to write then. */
  #awake<T>(operation: Promise<T>): Promise<T> {
    return this.parts.wakeful?.during(operation) ?? operation;
  }

  async #pull(peer: Peer, window: Uint8Array | null, offsetBytes: number, staging: PoolSegment): Promise<void> {
    if (window === null) throw new FsError('badFrame', { op: 'nsd.write', detail: 'neither window nor data' });
    await peer.readRemote(window, offsetBytes, [staging], BY_SECTOR_CHECKSUMS);
  }

  #verifyArrived(store: NsdStore, piece: Piece, staging: PoolSegment, crcs: Uint32Array): void {
    const arrived = new Uint32Array(piece.sectorCount);
    this.parts.checksums.sectors(this.parts.pool.bytes, staging.offsetBytes, piece.sectorCount, arrived, 0);
    for (let i = 0; i < piece.sectorCount; i++)
      if (arrived[i] !== crcs[piece.index + i])
        throw new FsError('badChecksum', {
          op: 'nsd.write',
          object: `nsd ${store.uuid}`,
          detail: `sector ${piece.index + i} of the request arrived with another checksum than it was sent with`,
        });
  }

  async #serveFlush(message: IncomingMessage): Promise<Uint8Array> {
    const store = this.#find(decodeNsdName(message.body));
    await this.#atDevice(message, () => store.flush());
    return encodeNsdLife(store.life);
  }

  async #serveInfo(message: IncomingMessage): Promise<Uint8Array> {
    const uuid = decodeNsdName(message.body);
    this.#admit(message);
    const { header } = this.#find(uuid);
    return encodeNsdInfoReply({ nsd: uuid, ...header });
  }

  async #serveVersions(message: IncomingMessage): Promise<Uint8Array> {
    const request = decodeNsdVersions(message.body);
    this.#admit(message);
    const store = this.#find(request.nsd);
    this.#checkExtents(store, request.extents, 'nsd.versions');
    const words = new Uint32Array(sectorsOf(request.extents));
    await this.#atDevice(message, () => store.versions(request.extents, words));
    return encodeNsdVersionsReply({ words });
  }

  async #serveDiscard(message: IncomingMessage): Promise<Uint8Array> {
    const request = decodeNsdDiscard(message.body);
    this.#admit(message);
    const store = this.#find(request.nsd);
    this.#checkExtents(store, request.extents, 'nsd.discard');
    for (const { sector, sectorCount } of request.extents)
      await this.#atDevice(message, () => store.discard(sector, sectorCount));
    return encodeNsdLife(store.life);
  }

  async #serveFence(message: IncomingMessage): Promise<Uint8Array> {
    const { node, upTo, epoch } = decodeNsdFence(message.body);
    // A fenced node may not fence others, nor one that has not caught up. An order of an earlier expulsion is as good as a later one: of several
    // nodes that go at once they come in any order, and each shuts out its own.
    this.#admit(message);
    this.#logger.info({ node, upTo, epoch }, 'fencing a node from the NSDs');
    await this.fence(node, upTo, epoch);
    return NOTHING;
  }

  /** Cuts a request into pieces and carries them out, a few at a time; the first failure ends it when all have ended. */
  async #inPieces(extents: readonly SectorExtent[], carryOut: (piece: Piece) => Promise<void>): Promise<void> {
    const pieces = cut(extents, this.#pieceSectorsMax);
    let next = 0;
    let failed = false;
    const lane = async (): Promise<void> => {
      for (;;) {
        const piece = pieces[next++];
        if (piece === undefined || failed) return;
        try {
          await carryOut(piece);
        } catch (error) {
          failed = true;
          throw error;
        }
      }
    };
    await settleAll(Array.from({ length: Math.min(PIECES_AT_ONCE, pieces.length) }, lane));
  }

  /** @param use May hand in what the space is kept for after it has ended (S3). */
  async #staged(
    piece: Piece,
    use: (staging: PoolSegment, keepUntil: (over: Promise<void>) => void) => Promise<void>,
  ): Promise<void> {
    const lengthBytes = piece.sectorCount * SECTOR_BYTES;
    const { arena } = this.parts;
    const staging = arena.tryAllocate(lengthBytes) ?? (await arena.allocate(lengthBytes));
    let kept: Promise<void> | null = null;
    const keepUntil = (over: Promise<void>): void => {
      kept = over;
    };
    const free = () => arena.free(staging);
    try {
      const whole = staging.lengthBytes === lengthBytes;
      await use(whole ? staging : { offsetBytes: staging.offsetBytes, lengthBytes }, keepUntil);
    } finally {
      if (kept === null) free();
      else (kept as Promise<void>).then(free, free);
    }
  }

  #refusal(thrown: unknown, message: IncomingMessage): FsError {
    const error = FsError.from(thrown, 'nsd');
    this.counters.add(`nsd.refused.${error.reason}`);
    if (!QUIET.has(error.reason))
      this.#logger.warn({ from: message.from, reason: error.reason }, `NSD request failed: ${error.message}`);
    return error;
  }
}

/**
 * Our bytes into a peer's window. `ordered`: the reply may go, it arrives behind the bytes. Should the connection break before they have landed, so that it
 * doesn't, the client sees it by the checksums in the reply, and reads again. `landed`: our memory is free (S3).
 */
function push(
  peer: Peer,
  window: Uint8Array,
  offsetBytes: number,
  staging: PoolSegment,
): { readonly ordered: Promise<void>; readonly landed: Promise<void> } {
  let onOrdered: () => void = () => undefined;
  const inOrder = new Promise<void>((resolve) => {
    onOrdered = resolve;
  });
  const landed = peer.writeRemote(window, offsetBytes, [staging], { verifiedByUser: true, onOrdered });
  return { ordered: Promise.race([inOrder, landed]), landed };
}

/** The checksums of the sectors go in messages; the client looks after landing, we look before writing. */
const BY_SECTOR_CHECKSUMS: TransferOptions = { verifiedByUser: true };
const NOTHING = new Uint8Array(0);
/** Expected while the cluster changes: not worth a line in the log each. */
const QUIET: ReadonlySet<Reason> = new Set(['fenced', 'staleEpoch', 'nsdUnavailable', 'queueFull']);

const bytesOf = (pool: PagePool, segment: PoolSegment): Uint8Array =>
  pool.bytes.subarray(segment.offsetBytes, segment.offsetBytes + segment.lengthBytes);

/** Runs of at most `sectorsMax` sectors, in order. */
export function cut(extents: readonly SectorExtent[], sectorsMax: number): Piece[] {
  const pieces: Piece[] = [];
  let current: SectorExtent[] = [];
  let currentSectors = 0;
  let index = 0;
  const close = (): void => {
    if (currentSectors === 0) return;
    pieces.push({ extents: current, index, sectorCount: currentSectors });
    index += currentSectors;
    current = [];
    currentSectors = 0;
  };
  for (const extent of extents) {
    for (let done = 0; done < extent.sectorCount; ) {
      const sectorCount = Math.min(extent.sectorCount - done, sectorsMax - currentSectors);
      current.push({ sector: extent.sector + done, sectorCount });
      currentSectors += sectorCount;
      done += sectorCount;
      if (currentSectors === sectorsMax) close();
    }
  }
  close();
  return pieces;
}

/** Each extent of a piece with its part of the staging space, all at once. */
function forEachExtent(
  piece: Piece,
  staging: PoolSegment,
  use: (sector: number, memory: PoolSegment, index: number) => Promise<void>,
): Promise<void> {
  const operations: Promise<void>[] = [];
  let done = 0;
  for (const { sector, sectorCount } of piece.extents) {
    const memory = { offsetBytes: staging.offsetBytes + done * SECTOR_BYTES, lengthBytes: sectorCount * SECTOR_BYTES };
    operations.push(use(sector, memory, piece.index + done));
    done += sectorCount;
  }
  return settleAll(operations);
}
const readPiece = (store: NsdStore, piece: Piece, staging: PoolSegment, states: SectorStates): Promise<void> =>
  forEachExtent(piece, staging, (sector, memory, index) => store.read(sector, memory, states, index));
const writePiece = (store: NsdStore, piece: Piece, staging: PoolSegment, what: SectorWrite): Promise<void> =>
  forEachExtent(piece, staging, (sector, memory, index) => store.write(sector, memory, { ...what, index }));

/** The greatest request there can be: what an arena must hold to serve without waiting. */
export const NSD_SERVER_STAGING_BYTES_GOOD = 4 * WINDOW_BYTES_MAX;
