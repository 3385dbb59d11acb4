import type { Clock } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError, type Reason } from '../common/errors.js';
import type { Epoch, Incarnation, NodeId, NsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { Wakeful } from '../common/wakeful.js';
import type { Fabric, Window } from '../fabric/fabric.js';
import type { PagePool } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import {
  decodeNsdInfoReply,
  decodeNsdLife,
  decodeNsdReadReply,
  decodeNsdVersionsReply,
  decodeNsdWriteReply,
  encodeNsdDiscard,
  encodeNsdFence,
  encodeNsdName,
  encodeNsdRead,
  encodeNsdVersions,
  encodeNsdWrite,
  NSD_DISCARD_EXTENTS_MAX,
  NSD_INLINE_BYTES_MAX,
  type NsdInfoReply,
  type NsdLife,
  type NsdReadReply,
  type SectorExtent,
} from '../protocol/nsd-messages.js';
import type { Checksums } from './checksums.js';
import type {
  NsdClientApi,
  NsdExtent,
  NsdFlushOptions,
  NsdIoOptions,
  NsdWriteOptions,
  SectorIo,
  SectorVersions,
} from './nsd-api.js';
import { isLost, readsAsZeros, versionOf } from './nsd-layout.js';
import { type NsdStore, newSectorStates } from './nsd-store.js';
import {
  type Batch,
  batchesOf,
  checkSectors,
  contiguous,
  sectorAt,
  tellVersions,
  type VersionBatch,
  versionBatches,
  versionsNamed,
} from './sector-batches.js';
import { Semaphore } from './semaphore.js';
import { settleAll } from './settle-all.js';

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
 * exclusive token that writers hold, and leaves the same versions if the write names them (L2). A checksum that was wrong on the device stays wrong: that is the file system's to
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
  /** While somebody waits for what is to be durable. */
  readonly wakeful?: Wakeful | undefined;
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
/** A device error of an NSD that another server could take over is believed when it lasts. */
const PATH_DOUBT_MS = 2_000;
/** Bytes that arrive changed this often were not hit by chance. */
const CHANGED_ON_THE_WAY_MAX = 3;

const OF_THE_DEVICE: ReadonlySet<Reason> = new Set(['deviceError', 'shortIo', 'noSpace']);

/** What a request of writes says about its sectors. */
interface WriteStates {
  readonly crcs: Uint32Array;
  readonly versions: Uint32Array | undefined;
  readonly logged: boolean;
  readonly exposed: boolean;
  readonly selfChecking: boolean;
  readonly durable: boolean;
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
  /** The last life of each NSD that this node has met. */
  readonly #lives = new Map<NsdIndex, { life: number; wholeSince: number; losses: number }>();

  constructor(private readonly parts: NsdClientParts) {
    this.counters = parts.counters ?? new Counters();
    this.#slots = new Semaphore(parts.requestsMax ?? REQUESTS_MAX_DEFAULT, WAITING_MAX);
  }

  async read(ios: readonly SectorIo[], options: NsdIoOptions = {}): Promise<void> {
    const batches = batchesOf('nsd.read', ios, this.parts.pool);
    await settleAll(
      batches.map((batch) =>
        this.#persist('nsd.read', batch.nsd, options, (attempt, store) =>
          store === undefined ? this.#readRemote(batch, attempt) : this.#readLocal(batch, store),
        ),
      ),
    );
  }

  async write(ios: readonly SectorIo[], options: NsdWriteOptions = {}): Promise<void> {
    if (options.flush !== undefined) this.counters.add(`nsd.flushes.${options.flush}`);
    const batches = batchesOf('nsd.write', ios, this.parts.pool);
    const written = settleAll(
      batches.map((batch) => {
        const what: WriteStates = {
          crcs: this.#checksumsOf(batch),
          versions: versionsNamed(batch),
          logged: batch.logged,
          exposed: batch.exposed,
          selfChecking: batch.selfChecking,
          durable: options.flush !== undefined,
        };
        return this.#persist('nsd.write', batch.nsd, options, (attempt, store) =>
          store === undefined ? this.#writeRemote(batch, what, attempt) : this.#writeLocal(batch, what, store),
        );
      }),
    );
    if (options.flush !== undefined) this.parts.wakeful?.during(written);
    await written;
  }

  async flush(nsds: readonly NsdIndex[], options: NsdFlushOptions = {}): Promise<void> {
    this.counters.add(`nsd.flushes.${options.why ?? 'other'}`);
    const flushed = settleAll(
      [...new Set(nsds)].map((nsd) =>
        this.#persist('nsd.flush', nsd, options, async (attempt, store) => {
          if (store !== undefined) {
            await store.flush();
            this.#met(nsd, store.life);
          } else {
            const reply = await this.#request(MessageType.nsdFlush, encodeNsdName(attempt.location.uuid), attempt);
            this.#met(nsd, decodeNsdLife(reply));
          }
        }),
      ),
    );
    this.parts.wakeful?.during(flushed);
    await flushed;
  }

  async versions(extents: readonly NsdExtent[], options: NsdIoOptions = {}): Promise<SectorVersions> {
    const { batches, sectorCount } = versionBatches(extents);
    const versions = new Uint32Array(sectorCount);
    const zeros = new Uint8Array(sectorCount);
    await settleAll(
      batches.map((batch) =>
        this.#persist('nsd.versions', batch.nsd, options, async (attempt, store) => {
          const words = await this.#versionWords(batch, attempt, store);
          for (const { index, at, count } of batch.places)
            for (let i = 0; i < count; i++) {
              const word = words[at + i]!;
              versions[index + i] = isLost(word) ? 0 : versionOf(word);
              zeros[index + i] = readsAsZeros(word) ? 1 : 0;
            }
        }),
      ),
    );
    return { versions, zeros };
  }

  async #versionWords(batch: VersionBatch, attempt: Attempt, store: NsdStore | undefined): Promise<Uint32Array> {
    const { extents, sectorCount } = batch;
    if (store === undefined) {
      const body = encodeNsdVersions({ nsd: attempt.location.uuid, extents });
      return decodeNsdVersionsReply(await this.#request(MessageType.nsdVersions, body, attempt), sectorCount).words;
    }
    const words = new Uint32Array(sectorCount);
    await store.versions(extents, words);
    return words;
  }

  async discard(extents: readonly NsdExtent[], options: NsdIoOptions = {}): Promise<void> {
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
            if (store !== undefined) {
              for (const one of some) await store.discard(one.sector, one.sectorCount);
              this.#met(nsd, store.life);
            } else {
              const body = encodeNsdDiscard({ nsd: attempt.location.uuid, extents: some });
              this.#met(nsd, decodeNsdLife(await this.#request(MessageType.nsdDiscard, body, attempt)));
            }
          }),
        );
      }
    await settleAll(discards);
  }

  lossesOf(nsd: NsdIndex): number {
    return this.#lives.get(nsd)?.losses ?? 0;
  }
  /** Something was done in this life of the NSD. */
  #met(nsd: NsdIndex, { life, wholeSince }: NsdLife): void {
    const known = this.#lives.get(nsd);
    if (known === undefined) {
      this.#lives.set(nsd, { life, wholeSince, losses: 0 });
      return;
    }
    // Either way round: an answer may come after that of a later life.
    if (known.life < wholeSince || life < known.wholeSince) {
      known.losses++;
      this.counters.add('nsd.losses');
    }
    known.life = Math.max(known.life, life);
    known.wholeSince = Math.max(known.wholeSince, wholeSince);
  }

  /** The same for a read; one of an earlier life says nothing of what was written since. */
  #metByRead(nsd: NsdIndex, life: NsdLife): void {
    if (life.life >= (this.#lives.get(nsd)?.wholeSince ?? 0)) this.#met(nsd, life);
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
    let states: Omit<NsdReadReply, 'data'>;
    if (inline) {
      const body = encodeNsdRead({ nsd, extents, window: null });
      const reply = decodeNsdReadReply(await this.#request(MessageType.nsdRead, body, attempt), sectorCount, true);
      let at = 0;
      for (const { offsetBytes, lengthBytes } of batch.segments) {
        if (reply.data !== null) pool.bytes.set(reply.data.subarray(at, at + lengthBytes), offsetBytes);
        at += lengthBytes;
      }
      states = reply;
    } else {
      states = await this.#withWindow(batch, 'write', attempt, async (window) => {
        const body = encodeNsdRead({ nsd, extents, window });
        return decodeNsdReadReply(await this.#request(MessageType.nsdRead, body, attempt), sectorCount, false);
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
      if (landed[i] !== states.crcs[i])
        throw new FsError('badChecksum', {
          op: 'nsd.read',
          object: `nsd ${nsd} sector ${sectorAt(extents, i)}`,
          detail: 'landed with another checksum than the server sent it with',
        });
    tellVersions(batch, states.versions);
    this.#metByRead(batch.nsd, states);
  }

  async #writeRemote(batch: Batch, what: WriteStates, attempt: Attempt): Promise<void> {
    const { pool } = this.parts;
    const nsd = attempt.location.uuid;
    const { sectorCount, extents, segments } = batch;
    const send = async (window: Uint8Array | null, data: Uint8Array | null): Promise<void> => {
      const body = encodeNsdWrite({ nsd, extents, ...what, versions: what.versions ?? null, window, data });
      const reply = await this.#request(MessageType.nsdWrite, body, attempt);
      this.#met(batch.nsd, decodeNsdWriteReply(reply, sectorCount));
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

  async #readLocal(batch: Batch, store: NsdStore): Promise<void> {
    this.counters.add('nsd.localReads');
    const states = batch.versions.length === 0 ? undefined : newSectorStates(batch.sectorCount);
    await settleAll(contiguous(batch).map(({ sector, memory, index }) => store.read(sector, memory, states, index)));
    if (states !== undefined) tellVersions(batch, states.versions);
    this.#metByRead(batch.nsd, store.life);
  }
  async #writeLocal(batch: Batch, what: WriteStates, store: NsdStore): Promise<void> {
    this.counters.add('nsd.localWrites');
    // As the server does: all of it before any of it is written.
    if (what.versions !== undefined) await store.checkVersions(batch.extents, what.versions);
    await settleAll(
      contiguous(batch).map(({ sector, memory, index }) => store.write(sector, memory, { ...what, index })),
    );
    this.#met(batch.nsd, store.life);
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
}

/** The life of the server that was asked is over, as the fabric says; ours isn't. The next one may answer, or another server. */
const serverReplaced = (error: FsError): boolean =>
  error.reason === 'fenced' && (error.op === 'fabric.forget' || error.op === 'fabric.session');

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
