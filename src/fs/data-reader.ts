/**
 * Reads of files' bytes past the page cache. What the NSD says is not all there is: the log may be ahead of it (small synchronous writes), and it may have lost
 * what this node wrote and did not flush (durable.ts). Of the former the log's bytes count; of the latter nobody is given what was there before as if it were
 * good (I10): each answer of an NSD says in which life it was given, so that the loss is known with the read.
 */
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import { firstCopy } from '../nsd/copies.js';
import type { SectorIo } from '../nsd/nsd-api.js';
import type { Inode } from './inode.js';
import { keyOf, type SectorKey } from './log/logged-sectors.js';
import type { FileIo } from './unflushed.js';
import type { Volume } from './volume.js';

/** @throws {FsError} writesLost; whatever the NSDs say */
export async function readData(
  volume: Volume,
  inode: Inode,
  ios: readonly FileIo[],
  signal?: AbortSignal,
): Promise<void> {
  if (ios.length === 0) return;
  await readAsLogged(volume, ios, signal);
  const lost = inode.hasUnflushed ? inode.unflushed.lostIn(ios, (nsd) => volume.parts.nsds.lossesOf(nsd)) : null;
  if (lost === null) return;
  const { uuid } = volume.superblock.nsds[firstCopy(lost.nsd)]!;
  volume.counters.add('fs.lostReads');
  throw new FsError('writesLost', {
    op: 'read',
    object: `inode ${inode.ino}`,
    detail: `bytes from ${lost.offsetBytes} on were written, and NSD ${uuid} has lost them before they were flushed`,
  });
}

/** As the log has them, where the NSDs don't have that yet or have lost it since. */
export async function readAsLogged(volume: Volume, ios: readonly SectorIo[], signal?: AbortSignal): Promise<void> {
  const { nsds, pool } = volume.parts;
  if (volume.logged.isEmpty) return nsds.read(ios, { signal });
  const places = [...placesOf(ios)];
  const ahead = volume.logged.aheadOf(places);
  const versions = ios.map(({ memory }) => new Uint32Array(memory.lengthBytes / SECTOR_BYTES));
  await volume.readAsWritten(
    ios.map((io, index) => ({ ...io, versions: versions[index]! })),
    signal,
  );
  ahead?.(pool.bytes);
  const read = versions.flatMap((some) => [...some]);
  for (const [index, { key, at }] of places.entries()) {
    const image = volume.sectors.newest(key, read[index]!);
    if (image !== undefined)
      pool.bytes
        .subarray(at, at + SECTOR_BYTES)
        .fill(0)
        .set(image);
  }
}

function* placesOf(ios: readonly SectorIo[]): Generator<{ readonly key: SectorKey; readonly at: number }> {
  for (const { nsd, sector, memory } of ios)
    for (let i = 0; i * SECTOR_BYTES < memory.lengthBytes; i++)
      yield { key: keyOf({ nsd, sector: sector + i }), at: memory.offsetBytes + i * SECTOR_BYTES };
}
