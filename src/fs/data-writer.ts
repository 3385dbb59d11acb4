/**
 * Where the bytes of files go when their pages are written out: to their place, or for a small synchronous write into the log first, which costs
 * one log write and one flush together with the inode; the log brings them to their place later.
 *
 * Fault model: what is in the log is data like metadata (L2): a record names the version that its sector has on the NSD, and is passed over when
 * somebody has written the sector since. So every write in place of a sector that the log knows names its version. Needs no token (T5).
 */
import type { FilePiece } from '../cache/backing-store.js';
import type { ByteRange } from '../common/byte-range.js';
import { WHOLE } from '../common/byte-range.js';
import type { InodeNumber } from '../common/ids.js';
import { SECTOR_BYTES, SUB_BLOCKS_PER_BLOCK } from '../common/units.js';
import type { SectorIo } from '../nsd/nsd-api.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { findPointer } from './block-map.js';
import type { Inode } from './inode.js';
import { type Extent, segmentOf } from './layout.js';
import { keyOf, type MetadataPlace, type SectorKey, type SectorWrite } from './log/logged-sectors.js';
import type { FileIo } from './unflushed.js';
import type { Volume } from './volume.js';

/** Versions asked for at once around a sector whose version is not known: the next write is there, as a rule. */
const LEARN_SECTORS = 16;

interface LoggedPlace extends MetadataPlace {
  readonly key: SectorKey;
  readonly offsetBytes: number;
  readonly poolOffsetBytes: number;
}

export async function writeData(
  volume: Volume,
  inode: Inode,
  pieces: readonly FilePiece[],
  ios: readonly FileIo[],
  /** Brings them to their places, when it isn't done here. */
  write: () => Promise<void> = () => inPlace(volume, ios),
): Promise<void> {
  if (ios.length === 0) return;
  if (inode.syncBytesLeft > 0 && (await intoLog(volume, inode, pieces))) return;
  const losses = ios.map(({ nsd }) => volume.parts.nsds.lossesOf(nsd));
  inode.writesInPlace.begun++;
  inode.writesInPlace.running++;
  try {
    await write();
  } finally {
    inode.writesInPlace.running--;
  }
  // Now, not before: a flush that began while they were under way doesn't cover them.
  for (const [index, io] of ios.entries()) inode.unflushed.add(io, losses[index]!);
}

// Into the log

async function intoLog(volume: Volume, inode: Inode, pieces: readonly FilePiece[]): Promise<boolean> {
  const { log, sectors, logged } = volume;
  let lengthBytes = 0;
  for (const piece of pieces) lengthBytes += piece.lengthBytes;
  if (log === null || lengthBytes > inode.syncBytesLeft || !ownsStatus(volume, inode.ino)) return false;
  const leave = log.tryEnterFor(lengthBytes);
  if (leave === null) return false;
  try {
    const places = placesOf(inode, pieces);
    if (!(await learn(volume, inode, places))) return false;
    inode.syncBytesLeft -= lengthBytes;
    const { bytes } = volume.parts.pool;
    const nowMs = volume.clock.nowMs();
    log.writer.clear();
    for (const place of places) {
      logged.add(inode.ino, place.key, place.offsetBytes);
      sectors.record(
        place,
        bytes.subarray(place.poolOffsetBytes, place.poolOffsetBytes + SECTOR_BYTES),
        nowMs,
        log.writer,
      );
    }
    if (!log.writer.isEmpty) log.append([]);
    volume.counters.add('log.dataSectors', places.length);
    return true;
  } finally {
    leave();
  }
}

/** Only its one owner knows where a file's sectors are from one turn to the next. */
const ownsStatus = (volume: Volume, ino: InodeNumber): boolean =>
  volume.parts.tokens.heldRange(TokenClass.status, segmentOf(ino), ino * SECTOR_BYTES, TokenMode.exclusive) !== null;

/** Of what a truncation has just cut off there is none. */
function placesOf(inode: Inode, pieces: readonly FilePiece[]): LoggedPlace[] {
  const places: LoggedPlace[] = [];
  for (const { offsetBytes, lengthBytes, poolOffsetBytes } of pieces)
    for (let at = 0; at < lengthBytes; at += SECTOR_BYTES) {
      const place = placeAt(inode, offsetBytes + at);
      if (place !== null)
        places.push({
          ...place,
          raw: true,
          key: keyOf(place),
          offsetBytes: offsetBytes + at,
          poolOffsetBytes: poolOffsetBytes + at,
        });
    }
  return places;
}

function placeAt(inode: Inode, offsetBytes: number): Pick<Extent, 'nsd' | 'sector'> | null {
  const index = offsetBytes / SECTOR_BYTES;
  const inside = index % SUB_BLOCKS_PER_BLOCK;
  const pointer = findPointer(inode, Math.floor(index / SUB_BLOCKS_PER_BLOCK));
  if (!pointer || inside >= pointer.count) return null;
  return { nsd: pointer.nsd, sector: pointer.sector + inside };
}

/** Afterwards, in this turn, the versions of all of them are known. False: the tokens that make them last are not at hand. */
async function learn(volume: Volume, inode: Inode, places: readonly LoggedPlace[]): Promise<boolean> {
  for (;;) {
    const unknown = places.find(({ key }) => !volume.sectors.knows(key));
    if (unknown === undefined) return true;
    const { tokens } = volume.parts;
    const held = tokens.heldRange(TokenClass.data, inode.ino, unknown.offsetBytes, TokenMode.exclusive);
    if (held === null || !inode.valid) return false;
    const first = placeAt(inode, unknown.offsetBytes);
    if (first === null || keyOf(first) !== unknown.key) return false;
    let count = 1;
    // A write that is under way may raise what is being asked for. Of the sector itself there is none: its page is on its way here.
    const { begun, running } = inode.writesInPlace;
    const { departures } = volume.logged;
    while (running === 0 && count < LEARN_SECTORS && unknown.offsetBytes + (count + 1) * SECTOR_BYTES <= held.end) {
      const next = placeAt(inode, unknown.offsetBytes + count * SECTOR_BYTES);
      if (next === null || next.nsd !== first.nsd || next.sector !== first.sector + count) break;
      if (volume.sectors.knows(keyOf(next))) break;
      count++;
    }
    const asked = { nsd: first.nsd, sector: first.sector, sectorCount: count };
    const { versions } = await volume.parts.nsds.versions([asked]);
    const still = tokens.heldRange(TokenClass.data, inode.ino, unknown.offsetBytes, TokenMode.exclusive);
    if (still === null || still.end < unknown.offsetBytes + count * SECTOR_BYTES || !ownsStatus(volume, inode.ino))
      return false;
    if (inode.writesInPlace.begun !== begun || volume.logged.departures !== departures) count = 1;
    for (let i = 0; i < count; i++) {
      const key = keyOf({ nsd: first.nsd, sector: first.sector + i });
      // Moved or cut off meanwhile: it may be another's by now.
      const place = placeAt(inode, unknown.offsetBytes + i * SECTOR_BYTES);
      if (place === null || keyOf(place) !== key) return false;
      volume.logged.add(inode.ino, key, unknown.offsetBytes + i * SECTOR_BYTES);
      volume.sectors.learn(key, versions[i]!);
    }
  }
}

// In place

async function inPlace(volume: Volume, ios: readonly SectorIo[]): Promise<void> {
  const { sectors, logged, parts } = volume;
  if (logged.isEmpty) return parts.nsds.write(ios);
  for (const key of keysOf(ios)) while (sectors.isWriting(key)) await sectors.writeEnded(key);
  const writes: SectorWrite[] = [];
  let succeeded = false;
  try {
    const named = ios.flatMap((io) => cutByKnown(volume, io, writes));
    await parts.nsds.write(named);
    succeeded = true;
  } finally {
    for (const write of writes) sectors.endWrite(write, succeeded);
  }
}

function* keysOf(ios: readonly SectorIo[]): Generator<SectorKey> {
  for (const { nsd, sector, memory } of ios)
    for (let i = 0; i * SECTOR_BYTES < memory.lengthBytes; i++) yield keyOf({ nsd, sector: sector + i });
}

/** Runs of sectors that the log knows name the versions that they get; it has nothing newer of them from here on. */
function cutByKnown(volume: Volume, io: SectorIo, writes: SectorWrite[]): SectorIo[] {
  const { sectors } = volume;
  const { nsd, sector, memory } = io;
  const count = memory.lengthBytes / SECTOR_BYTES;
  const isKnown = (i: number): boolean => sectors.knows(keyOf({ nsd, sector: sector + i }));
  const runs: SectorIo[] = [];
  for (let at = 0; at < count; ) {
    const known = isKnown(at);
    let end = at + 1;
    while (end < count && isKnown(end) === known) end++;
    const part = {
      nsd,
      sector: sector + at,
      ...(io.exposed ? { exposed: io.exposed } : {}),
      memory: { offsetBytes: memory.offsetBytes + at * SECTOR_BYTES, lengthBytes: (end - at) * SECTOR_BYTES },
    };
    if (known) {
      const versions = new Uint32Array(end - at);
      for (let i = at; i < end; i++) {
        const write = sectors.beginWrite({ nsd, sector: sector + i });
        versions[i - at] = write.version;
        writes.push(write);
      }
      runs.push({ ...part, versions });
    } else runs.push(part);
    at = end;
  }
  return runs;
}

/** What the log has of a file in a range, and its NSDs may not have yet, comes to its place; others may write there from here on (T6). */
export async function placeLogged(volume: Volume, ino: InodeNumber, range: ByteRange = WHOLE): Promise<void> {
  volume.logged.departures++;
  const keys = volume.logged.keysIn(ino, range);
  if (keys.length === 0) return;
  const { log, logged, sectors } = volume;
  // What somebody else is writing is waited for, too. Nobody logs more of it meanwhile.
  for (let ahead = keys; log !== null && ahead.length > 0; ) {
    await log.writeInPlace(ahead);
    ahead = keys.filter((key) => sectors.latest(key) !== undefined);
  }
  // And stays there: who gets the tokens doesn't know what this node's log says (T6).
  await log?.makeDurable(keys);
  logged.forget(keys);
}
