/**
 * Recovery of nodes that are gone: their logs are redone (L2, L3).
 *
 * What may be redone is what nobody else can touch: the caller knows that the owners write no more (fenced everywhere, F1) and that their tokens
 * are still held for them, or that nobody has the file system mounted. Redone any number of times, by anybody, in any state of an
 * earlier attempt, it comes to the same. What the owners left unfinished (loose-ends.ts) stays in the log; it is settled by a mounted node
 * later (settlement.ts), because that takes tokens.
 * Fault model: an NSD that can't be reached fails the recovery, which is begun again; a sector that doesn't fit to the log is left as it is, counted
 * and reported.
 */
import type { Counters } from '../common/counters.js';
import { isDamage } from '../common/damage.js';
import { FsError } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import { isVersionBefore, nextSectorVersion } from '../common/sector-version.js';
import { SECTOR_BYTES } from '../common/units.js';
import { allCopiesOf, copiesOf } from '../nsd/copies.js';
import { isCopyLost, readableCopies, withCopies } from '../nsd/mirrored-nsds.js';
import type { SectorIo } from '../nsd/nsd-api.js';
import { settleAll } from '../nsd/settle-all.js';
import { durably, type Flush, LossMark } from './durable.js';
import { allNsds, type Extent } from './layout.js';
import {
  checkDescriptors,
  evenOut,
  findLogTable,
  type LogVolume,
  type ReadLog,
  readDescriptors,
  readLog,
  withSectors,
  writeDescriptor,
} from './log/log-reader.js';
import { LOG_SLOTS, type LogDescriptor, LogState } from './log/log-table.js';
import { isMadeAnew, NOT_READ, type PresentSector, redoCopies } from './log/redo.js';
import { type PlannedSector, type PlannedSectors, RedoPlan } from './log/redo-plan.js';
import { sealSectors } from './sector.js';

/** Others are at it, too. */
const ATTEMPTS_MAX = 5;
/** Of so many neighbouring sectors at most, redone side by side. */
const RUNS_AT_ONCE = 8;
const RUN_MAX = 256;

/** An NSD that is away holds up nobody for longer. */
const DATA_FLUSH_TIMEOUT_MS = 5_000;

export interface RecoveryVolume extends LogVolume {
  readonly logger: Logger;
  readonly counters: Counters;
  /** @throws {FsError} when the logs are not this node's to redo any more. */
  readonly goOn?: () => void;
}

export interface Recovered {
  readonly logs: number;
  readonly transactions: number;
  readonly sectorsRedone: number;
  readonly sectorsUnfit: number;
}

/** F1: a node is fenced everywhere, and its tokens are still held for it. Its log is redone, if it had one in this file system. */
export async function recoverLife(
  given: RecoveryVolume,
  life: { readonly nodeId: number; readonly incarnation: number },
): Promise<Recovered> {
  const { nsds, counters, logger } = given;
  const volume = { ...given, nsds: withCopies({ nsds, counters, logger }) };
  const table = await findLogTable(volume);
  for (let attempt = 1; ; attempt++) {
    // Before they are read: who comes late, when others have redone the logs and gone on with them, is refused with what he says of them.
    const { versions } = await volume.nsds.versions([{ ...table, sectorCount: LOG_SLOTS }]);
    const descriptors = await readDescriptors(volume, table);
    const slots = descriptors.filter(
      (descriptor): descriptor is LogDescriptor =>
        descriptor !== null &&
        descriptor.state === LogState.open &&
        descriptor.owner.nodeId === life.nodeId &&
        descriptor.owner.incarnation === life.incarnation,
    );
    // It may be one that is damaged; or it had none.
    if (slots.length === 0) checkDescriptors(descriptors);
    try {
      return await replayLogs(volume, table, slots, (slot) => nextSectorVersion(versions[slot]!));
    } catch (error) {
      if (!FsError.is(error) || error.reason !== 'staleVersion' || attempt === ATTEMPTS_MAX) throw error;
      counters.add('recovery.late');
    }
  }
}

/** Redoes the logs of these slots together: their records about one sector are put in order. */
export async function replayLogs(
  volume: RecoveryVolume,
  table: Extent,
  slots: readonly LogDescriptor[],
  versionOf: (slot: number) => number | undefined = () => undefined,
): Promise<Recovered> {
  const { plan, transactions, done, outdated } = await readDurably(
    volume,
    // The space of any other may not even be marked as used: whoever takes the slot goes on with that.
    slots.filter(({ state }) => state === LogState.open),
  );
  const result = await redo(volume, plan);
  volume.goOn?.();
  for (const descriptor of done) {
    await writeDescriptor(volume, table, descriptor, versionOf(descriptor.slot));
    // Only now is it certain that nobody else had gone on with it.
    const why = outdated.get(descriptor.slot);
    if (why === undefined) continue;
    volume.counters.add('recovery.logHoles');
    volume.logger.error({ slot: descriptor.slot, why }, 'what was logged in a later life of the log is lost');
  }
  volume.counters.add('recovery.logs', done.length);
  volume.counters.add('recovery.transactions', transactions);
  return { logs: done.length, transactions, ...result };
}

interface ReadLogs {
  readonly plan: PlannedSectors;
  readonly transactions: number;
  /** What is to be said of them when they have been redone. */
  readonly done: readonly LogDescriptor[];
  /** By slot: why what is behind the end may be of a later life of the log. */
  readonly outdated: ReadonlyMap<number, string>;
  readonly logs: readonly { readonly descriptor: LogDescriptor; readonly scanned: ReadLog }[];
}

/**
 * What was read is durable when it resolves, with everything that their owners had written, and the same on all copies; what may be lost of what follows is
 * noticed. The end of a log may have been read that was not flushed, and go before it is; and a copy that was away, and is back for the flush, may have more
 * of it: then it is read again. Else there would be an end for this node and another one for whoever settles that log, who would free what it gave to files,
 * or goes on with the redo, which would leave it done in part.
 */
async function readDurably(volume: RecoveryVolume, slots: readonly LogDescriptor[]): Promise<ReadLogs> {
  const pieces = new Set(slots.flatMap((descriptor) => descriptor.pieces.map(({ nsd }) => nsd)));
  for (let missing = 0; ; ) {
    const mark = new LossMark(volume.nsds, pieces);
    const read = await readAll(volume, slots);
    if (slots.length === 0) return read;
    const needed = new Set([...read.plan.nsds(), ...pieces]);
    try {
      volume.goOn?.();
      for (const { descriptor, scanned } of read.logs) await evenOut(volume, descriptor, scanned.uneven);
    } catch (error) {
      // The very sector may be gone that was to be written to the other copy.
      if (mark.lost && isDamage(error)) continue;
      throw error;
    }
    await volume.nsds.flush([...needed], { why: 'leftBehind' satisfies Flush });
    if (mark.lost) continue;
    if (read.logs.some(({ scanned }) => scanned.isCopyMissing)) {
      // Flushed, or everybody knows that it is out of date: nobody reads it then.
      if (++missing < ATTEMPTS_MAX) continue;
      throw new FsError('nsdUnavailable', { op: 'log.redo', detail: 'a copy of a log comes and goes' });
    }
    await flushData(volume, needed);
    for (const { descriptor, scanned } of read.logs) tellOfEnd(volume, descriptor, scanned);
    return read;
  }
}

async function readAll(volume: RecoveryVolume, slots: readonly LogDescriptor[]): Promise<ReadLogs> {
  const plan = new RedoPlan();
  let transactions = 0;
  const outdated = new Map<number, string>();
  const done: LogDescriptor[] = [];
  const logs: { readonly descriptor: LogDescriptor; readonly scanned: ReadLog }[] = [];
  for (const descriptor of slots) {
    const scanned = await readLog(volume, descriptor);
    logs.push({ descriptor, scanned });
    if (scanned.later !== null) outdated.set(descriptor.slot, scanned.later);
    const ends = plan.add(scanned.records);
    transactions += scanned.records.transactions;
    // Places in a log never come again: shipped frees are told apart by them (S6).
    if (ends.empty) done.push({ ...descriptor, state: LogState.clean, tail: scanned.head, settledEnds: 0 });
    else done.push({ ...descriptor, state: LogState.replayed, settledEnds: 0 });
  }
  return { plan: plan.sectors(), transactions, done, outdated, logs };
}

function tellOfEnd({ counters, logger }: RecoveryVolume, { slot }: LogDescriptor, { hole, ended }: ReadLog): void {
  if (hole !== null) {
    counters.add('recovery.logHoles');
    logger.error({ slot, why: hole }, 'what was logged behind a hole is lost');
  } else if (ended !== null) logger.info({ slot, why: ended }, 'the log ends with a write that was cut off');
}

/**
 * What the dead had written into files in place, and others may have read, or may sync: it stays. Files on an NSD that is away are as they are there when
 * it comes back (F1).
 */
async function flushData(volume: RecoveryVolume, done: Iterable<NsdIndex>): Promise<void> {
  const rest = new Set(allNsds(volume.geometry));
  for (const nsd of allCopiesOf(done)) rest.delete(nsd);
  const why: Flush = 'leftData';
  await Promise.all(
    [...rest].map((nsd) =>
      volume.nsds.flush([nsd], { why, timeoutMs: DATA_FLUSH_TIMEOUT_MS }).catch((error: unknown) => {
        if (!isCopyLost(error)) throw error;
        volume.logger.warn({ nsd, error: error.message }, 'what a dead node had written could not be flushed');
      }),
    ),
  );
}

async function redo(volume: RecoveryVolume, sectors: PlannedSectors) {
  let sectorsRedone = 0;
  let sectorsUnfit = 0;
  await durably(volume.nsds, [...sectors.nsds()], 'redo', async () => {
    sectorsUnfit = 0;
    let next = 0;
    const work = async (): Promise<void> => {
      while (next < sectors.length) {
        volume.goOn?.();
        const run = sectors.runFrom(next, RUN_MAX);
        next += run.length;
        const { redone, unfit } = await redoRun(volume, run);
        sectorsRedone += redone;
        sectorsUnfit += unfit;
      }
    };
    // All end before an error is told: the caller may begin anew, and nothing may land after that.
    await settleAll(Array.from({ length: RUNS_AT_ONCE }, work));
  });
  volume.counters.add('recovery.sectorsRedone', sectorsRedone);
  volume.counters.add('recovery.sectorsUnfit', sectorsUnfit);
  return { sectorsRedone, sectorsUnfit };
}

async function redoRun(volume: RecoveryVolume, run: readonly PlannedSector[]) {
  const { nsd, sector } = run[0]!;
  const copies = await presentOnCopies(volume, run);
  const all = copies.length === copiesOf(nsd).length;
  let unfit = 0;
  let redone = 0;
  await withSectors(volume, run.length, async (bytes, offsetBytes) => {
    const written: (RedoneSector | null)[] = run.map(({ records, sector: place }, index) => {
      const present = copies.map((copy) => copy[index]!);
      const into = bytes.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
      const result = redoCopies(records, present, all, into);
      if (result.kind === 'unfit') {
        unfit++;
        volume.logger.error({ nsd, sector: place, why: result.why }, 'a sector does not fit to the log');
      }
      if (result.kind !== 'write') return null;
      if (result.image !== into) into.set(result.image);
      redone++;
      // Torn by this very write, it could only be made anew from a full image.
      return { version: result.version, raw: result.raw, logged: records.some(({ full }) => full) };
    });
    sealSectors(bytes, volume.checksums, (index) => written[index]?.raw === false);
    const ios: SectorIo[] = [];
    for (let at = 0; at < written.length; ) {
      const one = written[at]!;
      let end = at + 1;
      if (one !== null) {
        while (end < written.length && written[end]?.logged === one.logged) end++;
        const memory = { offsetBytes: offsetBytes + at * SECTOR_BYTES, lengthBytes: (end - at) * SECTOR_BYTES };
        const versions = Uint32Array.from(written.slice(at, end), (each) => each!.version);
        ios.push({ nsd, sector: sector + at, memory, versions, ...(one.logged ? { logged: true as const } : {}) });
      }
      at = end;
    }
    if (ios.length > 0) await volume.nsds.write(ios);
  });
  return { redone, unfit };
}

interface RedoneSector {
  readonly version: number;
  readonly raw: boolean;
  /** The log has all of it and is the write's intent (S1). */
  readonly logged: boolean;
}

/** The neighbours as each copy has them that can be read. */
async function presentOnCopies(volume: RecoveryVolume, run: readonly PlannedSector[]): Promise<PresentSector[][]> {
  const { nsd, sector } = run[0]!;
  const expected = copiesOf(nsd).length;
  const reachable = async <T>(copy: NsdIndex, look: (copy: NsdIndex) => Promise<T>): Promise<T | null> => {
    try {
      return await look(copy);
    } catch (error) {
      // Its other copy has it; what is written tells everyone that this one misses it (S5).
      if (expected === 1 || !isCopyLost(error)) throw error;
      return null;
    }
  };
  const known: { readonly copy: NsdIndex; readonly versions: Uint32Array }[] = [];
  for (const copy of readableCopies(volume.nsds, nsd)) {
    const found = await reachable(copy, (one) => volume.nsds.versions([{ nsd: one, sector, sectorCount: run.length }]));
    if (found !== null) known.push({ copy, versions: found.versions });
  }
  // Most of what a log says it says from the beginning: then no copy's bytes are of interest.
  const isRead = run.map(({ records }, index) => known.some(({ versions }) => !isMadeAnew(records, versions[index]!)));
  const copies: PresentSector[][] = [];
  for (const { copy, versions } of known) {
    const present = await reachable(copy, async (one) => {
      const found: PresentSector[] = Array.from(versions, (version) => ({ version, bytes: NOT_READ }));
      for (let at = 0; at < run.length; ) {
        let end = at + 1;
        if (isRead[at]) {
          while (end < run.length && isRead[end]) end++;
          // Where one copy is all there is, whether it can be read is all that is asked of what is only current.
          const isWanted = (index: number): boolean =>
            expected > 1 || run[index]!.records.some(({ base }) => !isVersionBefore(base, versions[index]!));
          const first = at;
          const some = await readPresent(volume, one, sector + at, end - at, (index) => isWanted(first + index));
          some.forEach((each, index) => {
            found[at + index] = each;
          });
        }
        at = end;
      }
      return found;
    });
    if (present !== null) copies.push(present);
  }
  if (copies.length === 0)
    throw new FsError('nsdUnavailable', { op: 'log.redo', object: `nsd ${nsd}`, detail: 'no copy can be read' });
  return copies;
}

/** `isWanted`: whose bytes are of interest, and not only that they can be read. */
async function readPresent(
  volume: RecoveryVolume,
  nsd: NsdIndex,
  sector: number,
  count: number,
  isWanted: (index: number) => boolean,
): Promise<PresentSector[]> {
  try {
    return await readSome(volume, nsd, sector, count, isWanted);
  } catch (error) {
    if (!isUnreadable(error)) throw error;
  }
  const found: PresentSector[] = [];
  for (let at = 0; at < count; at++) {
    try {
      found.push(...(await readSome(volume, nsd, sector + at, 1, () => isWanted(at))));
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      const { versions } = await volume.nsds.versions([{ nsd, sector: sector + at, sectorCount: 1 }]);
      found.push({ version: versions[0]!, bytes: null });
    }
  }
  return found;
}

const isUnreadable = (error: unknown): boolean => FsError.is(error) && error.reason === 'checksumMismatch';

const readSome = (
  volume: RecoveryVolume,
  nsd: NsdIndex,
  sector: number,
  count: number,
  isWanted: (index: number) => boolean,
): Promise<PresentSector[]> =>
  withSectors(volume, count, async (bytes, offsetBytes) => {
    const versions = new Uint32Array(count);
    await volume.nsds.read([{ nsd, sector, memory: { offsetBytes, lengthBytes: count * SECTOR_BYTES }, versions }]);
    return Array.from({ length: count }, (_, i) => ({
      version: versions[i]!,
      bytes: isWanted(i) ? bytes.slice(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES) : NOT_READ,
    }));
  });
