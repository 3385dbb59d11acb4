import type { Clock } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError, type Reason } from '../common/errors.js';
import type { Epoch, Incarnation, NodeId, NsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { type Fabric, WINDOW_BYTES_MAX, type Window } from '../fabric/fabric.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import {
  decodeNsdInfoReply,
  decodeNsdReadReply,
  decodeNsdWriteReply,
  encodeNsdDiscard,
  encodeNsdFence,
  encodeNsdName,
  encodeNsdRead,
  encodeNsdWrite,
  NSD_DISCARD_EXTENTS_MAX,
  NSD_INLINE_BYTES_MAX,
  NSD_REQUEST_SECTORS_MAX,
  type NsdInfoReply,
  type SectorExtent,
} from '../protocol/nsd-messages.js';
import type { Checksums } from './checksums.js';
import type { NsdClientApi, NsdIoOptions, SectorIo } from './nsd-api.js';
import { checkMemory, type NsdStore, settleAll } from './nsd-store.js';
import { Semaphore } from './semaphore.js';

/**
 * Reads and writes sectors of NSDs wherever they are served: groups what is asked for into requests, opens a window for each, verifies
 * what landed, and tries along the servers until the deadline.
 *
 * Invariants
 * - When a call returns, resolved or rejected, nothing of it can land in or be read from the caller's memory any more (S3): windows are
 *   closed, local device operations have ended. That may take longer than the deadline if the device hangs.
 * - A read resolves only if every sector's bytes, as they lie in the caller's memory, have the checksum the server named (S1).
 * - At most `requestsMax` requests are in flight; the rest wait in order.
 *
 * Fault model: servers that don't answer, answer late, refuse, answer with the wrong number of things, or whose bytes change on the
 * way. What may go better elsewhere or later is tried again with a fresh window; writing the same bytes twice is harmless under the
 * exclusive token that writers hold. A checksum that was wrong on the device stays wrong: that is the file system's to
 * repair from another copy.
 */
export interface NsdLocation {
  readonly uuid: string;
  /** In order of preference; empty while the NSD is down. */
  readonly servers: readonly NodeId[];
  /** Changes when another server takes over. */
  readonly generation?: number;
  /** A takeover is under way, or could be: worth waiting for where nobody serves now, and a server's device error may be a path that was shut. */
  readonly mayMove?: boolean;
}

export interface NsdClientParts {
  readonly fabric: Fabric;
  readonly pool: PagePool;
  readonly checksums: Checksums;
  readonly clock: Clock;
  /** Where an NSD is now; asked anew at every attempt. Null if there is no such NSD. */
  readonly locate: (nsd: NsdIndex) => NsdLocation | null;
  /** This node's own store of an NSD that it serves. */
  readonly localStore?: (uuid: string) => NsdStore | undefined;
  readonly counters?: Counters;
  readonly requestsMax?: number;
  readonly timeoutMsDefault?: number;
  /** What one server gets before the next one is tried. */
  readonly attemptTimeoutMs?: number;
}
const REQUESTS_MAX_DEFAULT = 64;
const WAITING_MAX = 65_536;
const TIMEOUT_MS_DEFAULT = 30_000;
const ATTEMPT_TIMEOUT_MS_DEFAULT = 5_000;
/** Between rounds along the server list; doubles up to the greater. */
const BACKOFF_MS_MIN = 5;
const BACKOFF_MS_MAX = 500;
/** Scatter of one window. */
const WINDOW_SEGMENTS_MAX = 64;
/** A device error of an NSD that another server could take over is believed when it lasts. */
const PATH_DOUBT_MS = 2_000;
/** Bytes that arrive changed this often were not hit by chance. */
const CHANGED_ON_THE_WAY_MAX = 3;

const OF_THE_DEVICE: ReadonlySet<Reason> = new Set(['deviceError', 'shortIo', 'noSpace']);

/** What goes to one NSD in one request. */
interface Batch {
  readonly nsd: NsdIndex;
  readonly extents: SectorExtent[];
  readonly segments: PoolSegment[];
  sectorCount: number;
}

interface Attempt {
  readonly location: NsdLocation;
  readonly server: NodeId;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export class NsdClient implements NsdClientApi {
  readonly counters: Counters;
  readonly #slots: Semaphore;

  constructor(private readonly parts: NsdClientParts) {
    this.counters = parts.counters ?? new Counters();
    this.#slots = new Semaphore(parts.requestsMax ?? REQUESTS_MAX_DEFAULT, WAITING_MAX);
  }

  async read(ios: readonly SectorIo[], options: NsdIoOptions = {}): Promise<void> {
    const batches = this.#batches('nsd.read', ios);
    await settleAll(
      batches.map((batch) =>
        this.#persist('nsd.read', batch.nsd, options, (attempt, store) =>
          store === undefined ? this.#readRemote(batch, attempt) : this.#readLocal(batch, store),
        ),
      ),
    );
  }

  async write(ios: readonly SectorIo[], options: NsdIoOptions = {}): Promise<void> {
    const batches = this.#batches('nsd.write', ios);
    await settleAll(
      batches.map((batch) => {
        const crcs = this.#checksumsOf(batch);
        return this.#persist('nsd.write', batch.nsd, options, (attempt, store) =>
          store === undefined ? this.#writeRemote(batch, crcs, attempt) : this.#writeLocal(batch, crcs, store),
        );
      }),
    );
  }

  async flush(nsds: readonly NsdIndex[], options: NsdIoOptions = {}): Promise<void> {
    await settleAll(
      [...new Set(nsds)].map((nsd) =>
        this.#persist('nsd.flush', nsd, options, async (attempt, store) => {
          if (store !== undefined) await store.flush();
          else await this.#request(MessageType.nsdFlush, encodeNsdName(attempt.location.uuid), attempt);
        }),
      ),
    );
  }

  async discard(
    extents: readonly { nsd: NsdIndex; sector: number; sectorCount: number }[],
    options: NsdIoOptions = {},
  ): Promise<void> {
    const byNsd = new Map<NsdIndex, SectorExtent[]>();
    for (const { nsd, sector, sectorCount } of extents) {
      checkSectors('nsd.discard', nsd, sector, sectorCount);
      const list = byNsd.get(nsd);
      if (list === undefined) byNsd.set(nsd, [{ sector, sectorCount }]);
      else list.push({ sector, sectorCount });
    }
    const discards: Promise<void>[] = [];
    for (const [nsd, list] of byNsd)
      for (let at = 0; at < list.length; at += NSD_DISCARD_EXTENTS_MAX) {
        const some = list.slice(at, at + NSD_DISCARD_EXTENTS_MAX);
        discards.push(
          this.#persist('nsd.discard', nsd, options, async (attempt, store) => {
            if (store !== undefined) for (const one of some) await store.discard(one.sector, one.sectorCount);
            else {
              const body = encodeNsdDiscard({ nsd: attempt.location.uuid, extents: some });
              await this.#request(MessageType.nsdDiscard, body, attempt);
            }
          }),
        );
      }
    await settleAll(discards);
  }

  /** What the NSD's server says about it. */
  async info(nsd: NsdIndex, options: NsdIoOptions = {}): Promise<NsdInfoReply> {
    let info: NsdInfoReply | undefined;
    await this.#persist('nsd.info', nsd, options, async (attempt, store) => {
      if (store !== undefined) info = { nsd: store.uuid, ...store.header };
      else {
        const { uuid } = attempt.location;
        const reply = decodeNsdInfoReply(await this.#request(MessageType.nsdInfo, encodeNsdName(uuid), attempt));
        if (reply.nsd !== uuid)
          throw new FsError('badFrame', {
            op: 'nsd.info',
            object: `nsd ${uuid}`,
            detail: `answer is about ${reply.nsd}`,
          });
        info = reply;
      }
    });
    if (info === undefined) throw new FsError('internal', { op: 'nsd.info', detail: 'no answer' });
    return info;
  }

  /**
   * Tells one server to refuse a node's incarnations up to `upTo` (F1). Resolves when it has drained. Not retried: the caller
   * decides what a server that doesn't answer means (S4).
   */
  async fence(
    server: NodeId,
    order: { readonly node: NodeId; readonly upTo: Incarnation; readonly epoch: Epoch },
    options: { readonly timeoutMs: number; readonly signal?: AbortSignal | undefined },
  ): Promise<void> {
    await this.parts.fabric.peer(server).request(MessageType.nsdFence, encodeNsdFence(order), options);
  }

  // Requests

  async #readRemote(batch: Batch, attempt: Attempt): Promise<void> {
    const { checksums, pool } = this.parts;
    const nsd = attempt.location.uuid;
    const { sectorCount, extents } = batch;
    const inline = sectorCount * SECTOR_BYTES <= NSD_INLINE_BYTES_MAX;
    let crcs: Uint32Array;
    if (inline) {
      const body = encodeNsdRead({ nsd, extents, window: null });
      const reply = decodeNsdReadReply(await this.#request(MessageType.nsdRead, body, attempt), sectorCount, true);
      let at = 0;
      for (const { offsetBytes, lengthBytes } of batch.segments) {
        if (reply.data !== null) pool.bytes.set(reply.data.subarray(at, at + lengthBytes), offsetBytes);
        at += lengthBytes;
      }
      crcs = reply.crcs;
    } else {
      crcs = await this.#withWindow(batch, 'write', attempt, async (window) => {
        const body = encodeNsdRead({ nsd, extents, window });
        return decodeNsdReadReply(await this.#request(MessageType.nsdRead, body, attempt), sectorCount, false).crcs;
      });
    }
    // After the window is closed: nothing can change the bytes between this look and the caller's.
    const landed = new Uint32Array(sectorCount);
    let index = 0;
    for (const { offsetBytes, lengthBytes } of batch.segments) {
      checksums.sectors(pool.bytes, offsetBytes, lengthBytes / SECTOR_BYTES, landed, index);
      index += lengthBytes / SECTOR_BYTES;
    }
    for (let i = 0; i < sectorCount; i++)
      if (landed[i] !== crcs[i])
        throw new FsError('badChecksum', {
          op: 'nsd.read',
          object: `nsd ${nsd} sector ${sectorAt(extents, i)}`,
          detail: 'landed with another checksum than the server sent it with',
        });
  }

  async #writeRemote(batch: Batch, crcs: Uint32Array, attempt: Attempt): Promise<void> {
    const { pool } = this.parts;
    const nsd = attempt.location.uuid;
    const { sectorCount, extents, segments } = batch;
    const send = async (window: Uint8Array | null, data: Uint8Array | null): Promise<void> => {
      const body = encodeNsdWrite({ nsd, extents, crcs, window, data });
      decodeNsdWriteReply(await this.#request(MessageType.nsdWrite, body, attempt), sectorCount);
    };
    if (sectorCount * SECTOR_BYTES > NSD_INLINE_BYTES_MAX) {
      await this.#withWindow(batch, 'read', attempt, (window) => send(window, null));
      return;
    }
    const data = new Uint8Array(sectorCount * SECTOR_BYTES);
    let at = 0;
    for (const { offsetBytes, lengthBytes } of segments) {
      data.set(pool.bytes.subarray(offsetBytes, offsetBytes + lengthBytes), at);
      at += lengthBytes;
    }
    await send(null, data);
  }

  async #withWindow<T>(
    batch: Batch,
    access: 'read' | 'write',
    attempt: Attempt,
    use: (window: Uint8Array) => Promise<T>,
  ): Promise<T> {
    const window: Window = this.parts.fabric.expose(attempt.server, batch.segments, access);
    try {
      return await use(window.remote);
    } finally {
      await window.close();
    }
  }

  #request(type: MessageType, body: Uint8Array, attempt: Attempt): Promise<Uint8Array> {
    this.counters.add('nsd.requests');
    const { timeoutMs, signal } = attempt;
    return this.parts.fabric.peer(attempt.server).request(type, body, { timeoutMs, signal });
  }

  // This node's own devices: from the device into the caller's pages, no copy.

  #readLocal(batch: Batch, store: NsdStore): Promise<void> {
    this.counters.add('nsd.localReads');
    return settleAll(contiguous(batch).map(({ sector, memory }) => store.read(sector, memory)));
  }
  #writeLocal(batch: Batch, crcs: Uint32Array, store: NsdStore): Promise<void> {
    this.counters.add('nsd.localWrites');
    return settleAll(
      contiguous(batch).map(({ sector, memory, index }) => store.write(sector, memory, crcs, undefined, index)),
    );
  }

  #checksumsOf(batch: Batch): Uint32Array {
    const crcs = new Uint32Array(batch.sectorCount);
    let index = 0;
    for (const { offsetBytes, lengthBytes } of batch.segments) {
      this.parts.checksums.sectors(this.parts.pool.bytes, offsetBytes, lengthBytes / SECTOR_BYTES, crcs, index);
      index += lengthBytes / SECTOR_BYTES;
    }
    return crcs;
  }

  // Persistence

  /** Along the servers, round after round, until it succeeds, fails for good, or the deadline has come. */
  async #persist(
    op: string,
    nsd: NsdIndex,
    options: NsdIoOptions,
    attemptOnce: (attempt: Attempt, store: NsdStore | undefined) => Promise<void>,
  ): Promise<void> {
    const { clock, fabric, localStore } = this.parts;
    const { signal } = options;
    const startMs = clock.nowMs();
    const deadlineMs = startMs + (options.timeoutMs ?? this.parts.timeoutMsDefault ?? TIMEOUT_MS_DEFAULT);
    await this.#slots.acquire(op, clock, deadlineMs, signal);
    try {
      let last: FsError | null = null;
      let changedOnTheWay = 0;
      let backoffMs = BACKOFF_MS_MIN;
      for (let tries = 0; ; tries++) {
        throwIfAborted(op, signal);
        const location = this.parts.locate(nsd);
        const nobody = location === null || location.servers.length === 0;
        if (nobody && !location?.mayMove)
          throw new FsError('nsdUnavailable', {
            op,
            object: location === null ? `nsd ${nsd}` : `nsd ${location.uuid}`,
            detail: location === null ? 'there is no such NSD' : 'no server has a path to it',
            cause: last ?? undefined,
          });
        const leftMs = deadlineMs - clock.nowMs();
        if (leftMs <= 0)
          throw new FsError('deadlinePassed', {
            op,
            object: `nsd ${location.uuid}`,
            detail: last === null ? 'no time was left' : `after ${tries} attempts; the last: ${last.message}`,
            cause: last ?? undefined,
          });
        if (nobody) {
          last ??= new FsError('nsdUnavailable', {
            op,
            object: `nsd ${location.uuid}`,
            detail: 'no server has taken it over yet',
          });
          await pause(clock, Math.min(BACKOFF_MS_MAX, leftMs), signal);
          continue;
        }
        const server = location.servers[tries % location.servers.length]!;
        const timeoutMs = Math.min(leftMs, this.parts.attemptTimeoutMs ?? ATTEMPT_TIMEOUT_MS_DEFAULT);
        try {
          const store = server === fabric.self.nodeId ? localStore?.(location.uuid) : undefined;
          await attemptOnce({ location, server, timeoutMs, signal }, store);
          return;
        } catch (error) {
          last = FsError.from(error, op, `nsd ${location.uuid}`);
        }
        if (last.reason === 'badChecksum') {
          this.counters.add('nsd.changedOnTheWay');
          if (++changedOnTheWay >= CHANGED_ON_THE_WAY_MAX) throw last;
          // Nothing to wait for: the next transfer is a new one.
          continue;
        }
        if (last.retry !== 'same' && !serverReplaced(last) && !this.#mayHaveMoved(last, nsd, location, startMs))
          throw last;
        this.counters.add('nsd.retries');
        if (last.reason === 'deadlinePassed') this.counters.add('nsd.resent');
        if ((tries + 1) % location.servers.length === 0) {
          await pause(clock, Math.min(backoffMs, Math.max(0, deadlineMs - clock.nowMs())), signal);
          backoffMs = Math.min(BACKOFF_MS_MAX, backoffMs * 2);
        }
      }
    } catch (error) {
      const known = FsError.from(error, op);
      this.counters.add(`nsd.failed.${known.reason}`);
      throw this.#named(known, nsd, op);
    } finally {
      this.#slots.release();
    }
  }

  /** The path of the server that was asked may have been shut because another takes over, and this node's view may not have it yet. */
  #mayHaveMoved(error: FsError, nsd: NsdIndex, { generation, mayMove }: NsdLocation, startMs: number): boolean {
    if (!OF_THE_DEVICE.has(error.reason) || mayMove !== true) return false;
    return this.parts.locate(nsd)?.generation !== generation || this.parts.clock.nowMs() - startMs < PATH_DOUBT_MS;
  }

  /** A device knows offsets and paths; whoever asked wants to hear of which NSD. */
  #named(error: FsError, nsd: NsdIndex, op: string): FsError {
    if (error.object?.startsWith('nsd ') || !OF_THE_DEVICE.has(error.reason)) return error;
    const what = error.detail ?? error.reason;
    const detail = error.object === undefined ? what : `${what}, ${error.object}`;
    return new FsError(error.reason, {
      op,
      object: `nsd ${this.parts.locate(nsd)?.uuid ?? nsd}`,
      detail,
      cause: error,
    });
  }

  /** By NSD, in the order given; adjacent sectors and adjacent memory merged; split where a request would be too large. */
  #batches(op: string, ios: readonly SectorIo[]): Batch[] {
    const open = new Map<NsdIndex, Batch>();
    const batches: Batch[] = [];
    for (const { nsd, sector, memory } of ios) {
      checkMemory(op, memory, this.parts.pool);
      const total = memory.lengthBytes / SECTOR_BYTES;
      checkSectors(op, nsd, sector, total);
      for (let done = 0; done < total; ) {
        const offsetBytes = memory.offsetBytes + done * SECTOR_BYTES;
        let batch = open.get(nsd);
        if (batch !== undefined && !hasRoom(batch, offsetBytes)) batch = undefined;
        if (batch === undefined) {
          batch = { nsd, extents: [], segments: [], sectorCount: 0 };
          open.set(nsd, batch);
          batches.push(batch);
        }
        const sectorCount = Math.min(total - done, NSD_REQUEST_SECTORS_MAX - batch.sectorCount);
        append(batch, sector + done, sectorCount, offsetBytes);
        done += sectorCount;
      }
    }
    return batches;
  }
}

/** The life of the server that was asked is over, as the fabric says; ours isn't. The next one may answer, or another server. */
const serverReplaced = (error: FsError): boolean =>
  error.reason === 'fenced' && (error.op === 'fabric.forget' || error.op === 'fabric.session');

function hasRoom(batch: Batch, offsetBytes: number): boolean {
  if (batch.sectorCount >= NSD_REQUEST_SECTORS_MAX || batch.sectorCount * SECTOR_BYTES >= WINDOW_BYTES_MAX)
    return false;
  const last = batch.segments.at(-1);
  const adjacent = last !== undefined && last.offsetBytes + last.lengthBytes === offsetBytes;
  return adjacent || batch.segments.length < WINDOW_SEGMENTS_MAX;
}

function append(batch: Batch, sector: number, sectorCount: number, offsetBytes: number): void {
  const lengthBytes = sectorCount * SECTOR_BYTES;
  const lastExtent = batch.extents.at(-1);
  if (lastExtent !== undefined && lastExtent.sector + lastExtent.sectorCount === sector)
    batch.extents[batch.extents.length - 1] = {
      sector: lastExtent.sector,
      sectorCount: lastExtent.sectorCount + sectorCount,
    };
  else batch.extents.push({ sector, sectorCount });
  const lastSegment = batch.segments.at(-1);
  if (lastSegment !== undefined && lastSegment.offsetBytes + lastSegment.lengthBytes === offsetBytes)
    batch.segments[batch.segments.length - 1] = {
      offsetBytes: lastSegment.offsetBytes,
      lengthBytes: lastSegment.lengthBytes + lengthBytes,
    };
  else batch.segments.push({ offsetBytes, lengthBytes });
  batch.sectorCount += sectorCount;
}

/** Pieces of a batch in which sectors and memory are both contiguous. */
function contiguous(batch: Batch): { sector: number; memory: PoolSegment; index: number }[] {
  const pieces: { sector: number; memory: PoolSegment; index: number }[] = [];
  let index = 0;
  let segment = 0;
  let inSegment = 0;
  for (const extent of batch.extents) {
    for (let done = 0; done < extent.sectorCount; ) {
      const { offsetBytes, lengthBytes } = batch.segments[segment]!;
      const sectorCount = Math.min(extent.sectorCount - done, lengthBytes / SECTOR_BYTES - inSegment);
      const memory = { offsetBytes: offsetBytes + inSegment * SECTOR_BYTES, lengthBytes: sectorCount * SECTOR_BYTES };
      pieces.push({ sector: extent.sector + done, memory, index });
      done += sectorCount;
      index += sectorCount;
      inSegment += sectorCount;
      if (inSegment * SECTOR_BYTES === lengthBytes) {
        segment++;
        inSegment = 0;
      }
    }
  }
  return pieces;
}

function sectorAt(extents: readonly SectorExtent[], index: number): number {
  for (const { sector, sectorCount } of extents) {
    if (index < sectorCount) return sector + index;
    index -= sectorCount;
  }
  return -1;
}

function checkSectors(op: string, nsd: NsdIndex, sector: number, sectorCount: number): void {
  const whole = Number.isSafeInteger(sector) && Number.isSafeInteger(sectorCount);
  if (!whole || sector < 0 || sectorCount < 1 || !Number.isSafeInteger(sector + sectorCount))
    throw new FsError('outOfRange', { op, object: `nsd ${nsd} sector ${sector}`, detail: `${sectorCount} sectors` });
}

function throwIfAborted(op: string, signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new FsError('aborted', { op, detail: 'the operation was aborted', cause: signal.reason });
}

/** Ends early when aborted; the caller looks at the signal then. */
function pause(clock: Clock, delayMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) {
      resolve();
      return;
    }
    const end = (): void => {
      timer.cancel();
      signal?.removeEventListener('abort', end);
      resolve();
    };
    const timer = clock.after(delayMs, end);
    signal?.addEventListener('abort', end, { once: true });
  });
}
