/**
 * How a node that mounts a file system comes to its log.
 *
 * First every log that was left behind is redone; of an owner that is being expelled that is waited for. Then a slot is taken: under its sector's
 * token the descriptor gets a new owner, and as long as that one is there nobody else touches it. A slot without space gets some. There is
 * no log yet to note that in, so the descriptor says it first: state *creating*, with the place; whoever finds that marks the place as used
 * once more and goes on. Where the file system has no space for it, the log of a node that is not here does.
 */
import { sleep } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import type { TokenPins } from '../token-manager/token.js';
import { durably } from './durable.js';
import { ALLOCATION_MAP, type Extent, LOG_TABLE } from './layout.js';
import {
  checkDescriptors,
  clearLog,
  findLogTable,
  type LogVolume,
  readDescriptor,
  readDescriptors,
  writeDescriptor,
} from './log/log-reader.js';
import { LogSpace } from './log/log-space.js';
import { LOG_SLOTS, type LogDescriptor, LogState, logBytesFor, logPieces, slotRange } from './log/log-table.js';
import { NodeLog } from './log/node-log.js';
import { Mutex } from './mutex.js';
import { replayLogs } from './recovery.js';
import { settleReplayed } from './settlement.js';
import type { LifeState, Volume } from './volume.js';

/** How long the recovery of a dead node by others is waited for. */
const RECOVERY_TIMEOUT_MS = 60_000;
const RECOVERY_LOOK_MS = 100;

export class LogClaim {
  readonly #volume: Volume;
  readonly #logs: LogVolume;
  readonly #table: Extent;
  #descriptor: LogDescriptor;
  readonly #saying = new Mutex();
  readonly #settling = new Mutex();

  private constructor(volume: Volume, logs: LogVolume, table: Extent, descriptor: LogDescriptor) {
    this.#volume = volume;
    this.#logs = logs;
    this.#table = table;
    this.#descriptor = descriptor;
  }

  /**
   * No log of a node that is gone stays unread. Before anything else of the file system is looked at: until then a sector may be torn by a write in place
   * whose record is in such a log, the inode file's own inode among them.
   */
  static async recoverLeft(volume: Volume): Promise<void> {
    const logs = logVolumeOf(volume);
    await recoverOthers(volume, logs, await findLogTable(logs));
  }

  /** After `recoverLeft`. */
  static async take(volume: Volume): Promise<LogClaim> {
    const logs = logVolumeOf(volume);
    const table = await findLogTable(logs);
    try {
      return await LogClaim.#takeOne(volume, logs, table, () => true);
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'noSpace') throw error;
      // A full file system: then the log of a node that is not here does, or nobody could make room.
      return LogClaim.#takeOne(volume, logs, table, ({ pieces }) => pieces.length > 0).catch((other: unknown) => {
        throw FsError.is(other) && other.reason === 'busy' ? error : other;
      });
    }
  }

  static async #takeOne(
    volume: Volume,
    logs: LogVolume,
    table: Extent,
    fits: (descriptor: LogDescriptor) => boolean,
  ): Promise<LogClaim> {
    const { pins, descriptor } = await takeSlot(volume, logs, table, fits);
    try {
      const claim = new LogClaim(volume, logs, table, descriptor);
      await claim.#begin();
      return claim;
    } finally {
      pins.release();
    }
  }

  async #begin(): Promise<void> {
    const { parts } = this.#volume;
    if (this.#descriptor.pieces.length === 0) await this.#create();
    else if (this.#descriptor.state === LogState.creating) await this.#markUsed();
    if (this.#descriptor.generation === 0) await this.#clear();
    // What was left unfinished in it by an earlier owner is still to be read: the new log begins behind it.
    await this.#say({ state: LogState.open, owner: this.#self(), generation: this.#descriptor.generation + 1 });
    const { pieceSectors, pieces, slot, generation, tail } = this.#descriptor;
    const identity = { fsId: this.#volume.fsId, slot, generation };
    this.#volume.log = await NodeLog.open(
      { ...parts, sectors: this.#volume.sectors },
      new LogSpace(pieceSectors, pieces),
      identity,
      tail,
      {
        flushPages: async (ino, range) => {
          const file = this.#volume.systemFiles.get(ino)?.file ?? this.#volume.cache.get(ino);
          // The first flush may tell of a failure that was mended since; of metadata nobody wants to know that.
          if (file?.dirty) await file.flush(range).catch(() => file.flush(range));
        },
        settleLimbo: async () => {
          await this.#volume.inodes.exposeAll();
          await this.#volume.frees.drain();
        },
        announceTail: (to) => this.#say({ tail: to }),
      },
    );
    this.#volume.counters.add('log.opened');
  }

  /** Its place in the table of logs: names this node's log wherever it is spoken of. */
  get slot(): number {
    return this.#descriptor.slot;
  }

  #self(): LogDescriptor['owner'] {
    const { nodeId, incarnation } = this.#volume.parts;
    return { nodeId, incarnation };
  }

  /** One at a time: both copies are to say the same. */
  #say(change: Partial<LogDescriptor>): Promise<void> {
    return this.#saying.run(async () => {
      const descriptor = { ...this.#descriptor, ...change };
      await writeDescriptor(this.#logs, this.#table, descriptor);
      this.#descriptor = descriptor;
    });
  }

  /** On both copies, whatever one has missed. */
  sayAgain(): Promise<void> {
    return this.#say({});
  }

  async #create(): Promise<void> {
    const volume = this.#volume;
    const { pieceSectors, pieces } = logPieces(logBytesFor(volume.geometry, volume.settings.logBytes));
    const extents: Extent[] = [];
    try {
      for (let piece = 0; piece < pieces; piece++)
        extents.push(await volume.allocator.allocateMetadata(LOG_TABLE, piece, pieceSectors));
    } catch (error) {
      for (const extent of extents) await volume.allocator.markFree(extent);
      throw error;
    }
    await this.#say({ state: LogState.creating, pieceSectors, pieces: extents, owner: this.#self() });
    await this.#markUsed();
  }

  /** The allocation map says so too, durably. */
  async #markUsed(): Promise<void> {
    const volume = this.#volume;
    await durably(volume.parts.nsds, volume.nsdsInUse(), 'logSpace', async () => {
      for (const extent of this.#descriptor.pieces) await volume.allocator.markUsed(extent);
      await volume.mapFile(ALLOCATION_MAP).flush();
    });
  }

  /** Nobody has used it yet. */
  async #clear(): Promise<void> {
    const { pieces } = this.#descriptor;
    const nsds = [...new Set(pieces.map(({ nsd }) => nsd))];
    await durably(this.#volume.parts.nsds, nsds, 'logCleared', () => clearLog(this.#logs, pieces));
  }

  /** What was left unfinished in logs that have been redone. One at a time: the token of a log's slot keeps other nodes from it, not this one. */
  async settleLeft(): Promise<void> {
    await this.#settling.run(() => settleReplayed(this.#volume, this.#logs, this.#table));
  }

  /** Everything is in place. What is unfinished all the same (a file without a name that another node has open) is for others to settle. */
  async close(): Promise<void> {
    const { log } = this.#volume;
    if (log === null) return;
    await log.close();
    if (log.ends.empty) await this.#say({ state: LogState.clean, tail: log.headSector });
    else await this.#say({ state: LogState.replayed, tail: log.tailSector, settledEnds: 0 });
    this.#volume.log = null;
  }

  /** Fenced: whoever recovers this node says what becomes of the log. */
  abandon(error: FsError): void {
    this.#volume.log?.stop(error);
  }
}

/** Whoever mounts has no log yet: one of its own life was left by a mount of it that failed. */
const stateOf = ({ parts }: Volume, { owner }: LogDescriptor): LifeState =>
  owner.nodeId === parts.nodeId && owner.incarnation === parts.incarnation
    ? 'gone'
    : parts.lives.state(owner.nodeId, owner.incarnation);

function logVolumeOf({ parts, fsId, geometry, superblock }: Volume): LogVolume {
  const { nsds, pool, arena, checksums } = parts;
  return { nsds, pool, arena, checksums, fsId, geometry, inodeFile: superblock.inodeFile };
}

async function recoverOthers(volume: Volume, logs: LogVolume, table: Extent): Promise<void> {
  const { clock, tokens, logger, counters } = volume.parts;
  const deadlineMs = clock.nowMs() + RECOVERY_TIMEOUT_MS;
  const isLeft = (descriptor: LogDescriptor | null): descriptor is LogDescriptor =>
    descriptor !== null && descriptor.state === LogState.open && stateOf(volume, descriptor) !== 'here';
  for (;;) {
    const descriptors = await readDescriptors(logs, table);
    const left = descriptors.filter(isLeft);
    if (left.length === 0) return checkDescriptors(descriptors);
    if (left.some((descriptor) => stateOf(volume, descriptor) === 'expelling')) {
      if (clock.nowMs() >= deadlineMs) {
        const nodes = left.map(({ owner }) => owner.nodeId).join();
        throw new FsError('busy', { op: 'mount', object: volume.superblock.name, detail: `recovery of node ${nodes}` });
      }
      await sleep(clock, RECOVERY_LOOK_MS);
      continue;
    }
    const taken: TokenPins[] = [];
    try {
      const found: LogDescriptor[] = [];
      for (const { slot } of left) {
        taken.push(await tokens.acquire([volume.dataItem(LOG_TABLE, slotRange(slot))]));
        const descriptor = await readDescriptor(logs, table, slot);
        if (isLeft(descriptor)) found.push(descriptor);
      }
      const recovered = await replayLogs({ ...logs, logger, counters }, table, found);
      logger.info({ ...recovered }, 'logs that were left behind have been redone');
    } finally {
      for (const pins of taken) pins.release();
    }
  }
}

/** Somebody is at it. */
const isCreated = (volume: Volume, descriptor: LogDescriptor): boolean =>
  descriptor.state === LogState.creating && stateOf(volume, descriptor) === 'here';

async function takeSlot(
  volume: Volume,
  logs: LogVolume,
  table: Extent,
  fits: (descriptor: LogDescriptor) => boolean,
): Promise<{ pins: TokenPins; descriptor: LogDescriptor }> {
  const first = (volume.parts.nodeId - 1) % LOG_SLOTS;
  for (let i = 0; i < LOG_SLOTS; i++) {
    const slot = (first + i) % LOG_SLOTS;
    const seen = await readDescriptor(logs, table, slot);
    // Unfinished business in it is settled first, by whoever is mounted.
    const busy = seen.state === LogState.replayed || seen.state === LogState.open || isCreated(volume, seen);
    if (busy || !fits(seen)) continue;
    let pins: TokenPins;
    try {
      const item = volume.dataItem(LOG_TABLE, slotRange(slot));
      pins = await volume.parts.tokens.acquire([item], { timeoutMs: volume.settings.regionTimeoutMs });
    } catch (error) {
      if (FsError.is(error) && (error.reason === 'tokenDeadline' || error.reason === 'tokenRefused')) continue;
      throw error;
    }
    const descriptor = await readDescriptor(logs, table, slot);
    const { state } = descriptor;
    const free = state === LogState.clean || state === LogState.unused || state === LogState.creating;
    if (free && !isCreated(volume, descriptor) && fits(descriptor)) return { pins, descriptor };
    pins.release();
  }
  throw new FsError('busy', {
    op: 'mount',
    object: volume.superblock.name,
    detail: `all ${LOG_SLOTS} logs are in use`,
  });
}
