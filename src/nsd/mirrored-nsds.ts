/**
 * The storage as the file system sees it, where some sectors have two copies (copies.ts).
 *
 * Invariants
 * - A write, flush or discard resolves when every copy that is not marked stale has it. A copy that can't be reached is marked first, for everyone
 *   and durably (S5); one that is marked is passed over.
 * - A copy that is marked is never read.
 * - Both copies of a sector are written with the same version, so that equal versions mean equal bytes. (Sectors of logs check themselves, and
 *   have none.)
 * - A sector of which one copy is damaged is read from the other, and made good with the version that this one had: a write that has come since is not
 *   undone (L2).
 *
 * Fault model: an NSD that doesn't answer, answers late, or refuses; damaged sectors of either copy. What both copies fail with is the caller's.
 */
import { Counters } from '../common/counters.js';
import { FsError, type Reason } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';
import { type Logger, silentLogger } from '../common/logger.js';
import { isVersionBefore, nextSectorVersion } from '../common/sector-version.js';
import { SECTOR_BYTES } from '../common/units.js';
import { copiesOf, isMirrored } from './copies.js';
import { ALWAYS_UP, type CopyStates } from './copy-states.js';
import type {
  NsdClientApi,
  NsdExtent,
  NsdFlushOptions,
  NsdIoOptions,
  NsdWriteOptions,
  SectorIo,
  SectorVersions,
} from './nsd-api.js';
import { settleAll } from './settle-all.js';

export interface MirrorParts {
  readonly nsds: NsdClientApi;
  readonly states?: CopyStates;
  readonly counters?: Counters;
  readonly logger?: Logger;
}

/** How long one copy is waited for while there is another to read. */
const FIRST_READ_TIMEOUT_MS = 5_000;
/** How often a change goes to a copy to which there is a way again. */
const AGAIN_MAX = 3;
/** Pieces of one read beside each other that is gone through sector by sector. */
const CAREFUL_MAX = 16;

/** The bytes on it, at this place, can't be had; the NSD is there. */
const DAMAGED: ReadonlySet<Reason> = new Set(['checksumMismatch', 'deviceError', 'shortIo']);
/** There is no way to it. */
const AWAY: ReadonlySet<Reason> = new Set([
  'nsdUnavailable',
  'deadlinePassed',
  'unreachable',
  'connectionLost',
  'remoteFailure',
  'badChecksum',
  'wrongNsd',
]);

interface Failure {
  readonly nsd: NsdIndex;
  readonly error: FsError;
}

export class MirroredNsds implements NsdClientApi {
  readonly #nsds: NsdClientApi;
  readonly #states: CopyStates;
  readonly #counters: Counters;
  readonly #logger: Logger;
  readonly #changes = new Set<Promise<unknown>>();

  constructor({ nsds, states, counters, logger }: MirrorParts) {
    this.#nsds = nsds;
    this.#states = states ?? ALWAYS_UP;
    this.#counters = counters ?? new Counters();
    this.#logger = logger ?? silentLogger;
  }

  get states(): CopyStates {
    return this.#states;
  }

  /** What is under way now, by the states that were known when it began, has ended. */
  async changesEnded(): Promise<void> {
    await Promise.allSettled(this.#changes);
  }

  lossesOf(nsd: NsdIndex): number {
    let losses = 0;
    for (const copy of copiesOf(nsd)) losses += this.#nsds.lossesOf(copy);
    return losses;
  }

  /** Its copies that may be read. */
  upToDate(nsd: NsdIndex): readonly NsdIndex[] {
    return copiesOf(nsd).filter((copy) => !isMirrored(nsd) || this.#states.stateOf(copy) === 'up');
  }

  // Reading

  async read(ios: readonly SectorIo[], options?: NsdIoOptions): Promise<void> {
    if (!ios.some(({ nsd }) => isMirrored(nsd))) return this.#nsds.read(ios, options);
    try {
      await this.#nsds.read(
        ios.map((io) => at(io, this.#readable(io)[0]!)),
        ios.every((io) => this.#readable(io).length > 1) ? firstTry(options) : options,
      );
      return;
    } catch (error) {
      if (!isCopyLost(error)) throw error;
    }
    for (let from = 0; from < ios.length; from += CAREFUL_MAX)
      await settleAll(ios.slice(from, from + CAREFUL_MAX).map((io) => this.#readEither(io, options)));
  }

  /** The copies of it that may be read, the one to be asked first in front. Blocks go round, so that both NSDs have their share. */
  #readable({ nsd, sector }: SectorIo): readonly NsdIndex[] {
    const copies = copiesOf(nsd);
    if (copies.length === 1) return copies;
    const up = copies.filter((copy) => this.#states.stateOf(copy) === 'up');
    if (up.length === 0) throw noCopy('nsd.read', nsd);
    const near = up.findIndex((copy) => this.#states.isNear(copy));
    const first = near >= 0 ? near : Math.floor(sector / 256) % up.length;
    return first === 0 ? up : [up[first]!, ...up.filter((_, index) => index !== first)];
  }

  async #readEither(io: SectorIo, options: NsdIoOptions | undefined): Promise<void> {
    const copies = this.#readable(io);
    const count = io.memory.lengthBytes / SECTOR_BYTES;
    const versions = io.versions ?? new Uint32Array(count);
    const damaged: NsdIndex[] = [];
    let failure: FsError | null = null;
    for (const [index, copy] of copies.entries()) {
      try {
        await this.#nsds.read([at({ ...io, versions }, copy)], index + 1 < copies.length ? firstTry(options) : options);
        if (index > 0) this.#counters.add('nsd.otherCopyRead');
        for (const bad of damaged) await this.#mend({ ...io, versions }, bad, copy);
        return;
      } catch (error) {
        failure ??= FsError.from(error, 'nsd.read');
        if (!isCopyLost(error)) throw error;
        if (!DAMAGED.has(error.reason)) continue;
        // Each sector from where it can be had.
        if (count > 1) return this.#readSectors(io, versions, options);
        damaged.push(copy);
      }
    }
    throw failure ?? noCopy('nsd.read', io.nsd);
  }

  async #readSectors(io: SectorIo, versions: Uint32Array, options: NsdIoOptions | undefined): Promise<void> {
    const { nsd, sector, memory } = io;
    for (let index = 0; index < versions.length; index++)
      await this.#readEither(
        {
          nsd,
          sector: sector + index,
          memory: { offsetBytes: memory.offsetBytes + index * SECTOR_BYTES, lengthBytes: SECTOR_BYTES },
          versions: versions.subarray(index, index + 1),
        },
        options,
      );
  }

  /** One sector, whose good bytes have just been read. */
  async #mend({ nsd, sector, memory, versions }: SectorIo, bad: NsdIndex, good: NsdIndex): Promise<void> {
    if (nsd === bad || versions![0] === 0) return;
    try {
      await this.#nsds.write([{ nsd: bad, sector, memory, versions: versions!.slice() }]);
      this.#counters.add('nsd.copiesMended');
      this.#logger.warn({ nsd: bad, sector, from: good }, 'a damaged sector was written anew from its other copy');
    } catch (error) {
      this.#counters.add('nsd.copiesNotMended');
      this.#logger.error({ nsd: bad, sector, error: String(error) }, 'a damaged sector could not be written anew');
    }
  }

  // Versions

  /** Of two copies the later version: the next write is to be taken by both. */
  async versions(extents: readonly NsdExtent[], options?: NsdIoOptions): Promise<SectorVersions> {
    if (!extents.some(({ nsd }) => isMirrored(nsd))) return this.#nsds.versions(extents, options);
    const asked = new Map<NsdIndex, { extents: NsdExtent[]; index: number[] }>();
    let total = 0;
    for (const { nsd, sector, sectorCount } of extents) {
      for (const copy of this.#current('nsd.versions', nsd)) {
        let one = asked.get(copy);
        if (one === undefined) asked.set(copy, (one = { extents: [], index: [] }));
        one.extents.push({ nsd: copy, sector, sectorCount });
        for (let i = 0; i < sectorCount; i++) one.index.push(total + i);
      }
      total += sectorCount;
    }
    const versions = new Uint32Array(total);
    const zeros = new Uint8Array(total).fill(1);
    await this.#onEach('nsd.versions', extents, asked.keys(), async (copy) => {
      const { extents: some, index } = asked.get(copy)!;
      const found = await this.#nsds.versions(some, options);
      const counts = this.#states.stateOf(copy) === 'up';
      index.forEach((place, i) => {
        const version = found.versions[i]!;
        if (isVersionBefore(versions[place]!, version)) versions[place] = version;
        if (counts && found.zeros[i] === 0) zeros[place] = 0;
      });
    });
    return { versions, zeros };
  }

  // Changing

  write(ios: readonly SectorIo[], options?: NsdWriteOptions): Promise<void> {
    if (!ios.some(({ nsd }) => isMirrored(nsd))) return this.#nsds.write(ios, options);
    return this.#change(async () => {
      const named = await this.#named(ios);
      const byNsd = new Map<NsdIndex, SectorIo[]>();
      for (const io of named) for (const copy of this.#current('nsd.write', io.nsd)) put(byNsd, copy, at(io, copy));
      await this.#onEach('nsd.write', ios, byNsd.keys(), (copy) => this.#nsds.write(byNsd.get(copy)!, options));
    });
  }

  /** Copies that count their versions themselves would not stay the same. */
  async #named(ios: readonly SectorIo[]): Promise<readonly SectorIo[]> {
    const needed = ios.filter(
      ({ nsd, versions, selfChecking }) => isMirrored(nsd) && versions === undefined && selfChecking !== true,
    );
    if (needed.length === 0) return ios;
    const { versions } = await this.versions(
      needed.map(({ nsd, sector, memory }) => ({ nsd, sector, sectorCount: memory.lengthBytes / SECTOR_BYTES })),
    );
    let from = 0;
    return ios.map((io) => {
      if (!needed.includes(io)) return io;
      const count = io.memory.lengthBytes / SECTOR_BYTES;
      const next = versions.subarray(from, from + count).map(nextSectorVersion);
      from += count;
      return { ...io, versions: next };
    });
  }

  flush(nsds: readonly NsdIndex[], options?: NsdFlushOptions): Promise<void> {
    if (!nsds.some(isMirrored)) return this.#nsds.flush(nsds, options);
    return this.#change(async () => {
      const flushed = new Set<NsdIndex>();
      for (const nsd of nsds) for (const copy of this.#current('nsd.flush', nsd)) flushed.add(copy);
      const asked = nsds.map((nsd) => ({ nsd }));
      await this.#onEach('nsd.flush', asked, flushed, (copy) => this.#nsds.flush([copy], options));
    });
  }

  discard(extents: readonly NsdExtent[], options?: NsdIoOptions): Promise<void> {
    const isPlain = ({ nsd }: NsdExtent): boolean => !isMirrored(nsd) && this.#states.stateOf(nsd) === 'up';
    if (extents.every(isPlain)) return this.#nsds.discard(extents, options);
    return this.#change(async () => {
      const byNsd = new Map<NsdIndex, NsdExtent[]>();
      // What is free on an NSD that is stale is discarded when it is brought up to date, and nothing is allocated there before.
      for (const extent of extents)
        if (isMirrored(extent.nsd) || this.#states.stateOf(extent.nsd) !== 'stale')
          for (const copy of this.#current('nsd.discard', extent.nsd)) put(byNsd, copy, { ...extent, nsd: copy });
      await this.#onEach('nsd.discard', extents, byNsd.keys(), (copy) => this.#nsds.discard(byNsd.get(copy)!, options));
    });
  }

  /** The copies that a change has to reach. What has one copy has to reach that. */
  #current(op: string, nsd: NsdIndex): readonly NsdIndex[] {
    const copies = copiesOf(nsd);
    if (copies.length === 1) return copies;
    const current = copies.filter((copy) => this.#states.stateOf(copy) !== 'stale');
    if (!current.some((copy) => this.#states.stateOf(copy) === 'up')) throw noCopy(op, nsd);
    if (current.length < copies.length) this.#counters.add('nsd.copiesPassedOver');
    return current;
  }

  async #change<T>(body: () => Promise<T>): Promise<T> {
    const change = body();
    this.#changes.add(change);
    try {
      return await change;
    } finally {
      this.#changes.delete(change);
    }
  }

  /** All of it, on each NSD; what one alone can't do is put down to its being away, and told to everyone before this resolves. */
  async #onEach(
    op: string,
    what: readonly { readonly nsd: NsdIndex }[],
    copies: Iterable<NsdIndex>,
    work: (copy: NsdIndex) => Promise<void>,
  ): Promise<void> {
    const reached = new Set(copies);
    let pending = [...reached];
    for (let round = 0; pending.length > 0; round++) {
      const failures: Failure[] = [];
      await Promise.all(
        pending.map((copy) =>
          work(copy).catch((error: unknown) => {
            failures.push({ nsd: copy, error: FsError.from(error, op) });
          }),
        ),
      );
      for (const { nsd } of failures) reached.delete(nsd);
      pending = [];
      for (const failure of failures)
        if ((await this.#settleFailure(op, what, reached, failure)) === 'again') {
          if (round >= AGAIN_MAX) throw failure.error;
          pending.push(failure.nsd);
        }
      for (const copy of pending) reached.add(copy);
    }
  }

  async #settleFailure(
    op: string,
    what: readonly { readonly nsd: NsdIndex }[],
    reached: ReadonlySet<NsdIndex>,
    { nsd, error }: Failure,
  ): Promise<'stale' | 'again'> {
    const elsewhere = what
      .filter((one) => copiesOf(one.nsd).includes(nsd))
      .every((one) => copiesOf(one.nsd).some((copy) => reached.has(copy) && this.#states.stateOf(copy) === 'up'));
    if (!elsewhere) throw error;
    if (error.reason === 'staleVersion' && this.#states.stateOf(nsd) === 'resync') {
      await this.#states.refused(nsd);
      return 'stale';
    }
    if (!isCopyLost(error)) throw error;
    this.#counters.add('nsd.copiesMissed');
    this.#logger.warn({ nsd, op, error: error.message }, 'a copy was not reached');
    return this.#states.missed(nsd, error);
  }
}

/** A storage that knows of copies, whatever it was given. */
export const withCopies = (parts: MirrorParts): MirroredNsds =>
  parts.nsds instanceof MirroredNsds ? parts.nsds : new MirroredNsds(parts);

/** By what the storage that was given goes, if it knows of copies. */
export const statesOf = (nsds: NsdClientApi): CopyStates => (nsds instanceof MirroredNsds ? nsds.states : ALWAYS_UP);

/** The copies that may be read, each by itself: for those who compare them. */
export const readableCopies = (nsds: NsdClientApi, nsd: NsdIndex): readonly NsdIndex[] =>
  nsds instanceof MirroredNsds ? nsds.upToDate(nsd) : copiesOf(nsd);

/** The bytes of one copy can't be had; another may have them. */
export const isCopyLost = (error: unknown): error is FsError =>
  FsError.is(error) && (DAMAGED.has(error.reason) || AWAY.has(error.reason));

/** It may have something to say, and can't be asked now. */
export const isCopyAway = (error: unknown): error is FsError => FsError.is(error) && AWAY.has(error.reason);

const at = (io: SectorIo, nsd: NsdIndex): SectorIo => (io.nsd === nsd ? io : { ...io, nsd });

function put<T>(lists: Map<NsdIndex, T[]>, nsd: NsdIndex, one: T): void {
  const list = lists.get(nsd);
  if (list === undefined) lists.set(nsd, [one]);
  else list.push(one);
}

const firstTry = (options: NsdIoOptions | undefined): NsdIoOptions => ({
  ...options,
  timeoutMs: Math.min(options?.timeoutMs ?? FIRST_READ_TIMEOUT_MS, FIRST_READ_TIMEOUT_MS),
});

const noCopy = (op: string, nsd: NsdIndex): FsError =>
  new FsError('nsdUnavailable', { op, object: `nsd ${copiesOf(nsd).join(' and ')}`, detail: 'no copy is up to date' });
