/** The flushes of what mends (durable.ts): of a copy that comes back, of repairs, of checks of a mounted file system. As testing-flushes.ts has the others. */
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, type NsdIndex, nsdIndex } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { SECTOR_BYTES } from '../common/units.js';
import { copiesOf } from '../nsd/copies.js';
import { repairFileSystem } from './check/repair.js';
import type { Flush } from './durable.js';
import { ROOT } from './file-system-api.js';
import { metadataOf } from './metadata-extents.js';
import { readSuperblock } from './mount.js';
import { checkParts, turns } from './testing.js';
import {
  FILES,
  look,
  type MendingFlush,
  makeAll,
  type Scenario,
  sixFiles,
  VolatileVolume,
  WORKING,
} from './testing-flushes.js';
import type { VolatileNsds } from './testing-volatile.js';

const TWO_COPIES = { mkfs: { metadataCopies: 2 as const } };
const SECOND = nsdIndex(1);
const NONE: ReadonlyMap<string, Uint8Array> = new Map();

/** With a few directories, durable, and nobody has it mounted. */
async function somethingThere(
  prepare: (nsds: VolatileNsds) => void,
  options: Parameters<typeof VolatileVolume.create>[0] = {},
): Promise<{ it: VolatileVolume; ino: InodeNumber }> {
  const it = await VolatileVolume.create(options, prepare);
  const { fs } = await it.mount(1);
  for (let i = 0; i < 6; i++) await fs.mkdir(`/d${i}`, 0o755, ROOT);
  const { ino } = await fs.stat('/d3', ROOT);
  await fs.unmount();
  return { it, ino };
}

async function repair(it: VolatileVolume): Promise<string | null> {
  try {
    const { findings } = await repairFileSystem(
      { ...checkParts(it), logger: silentLogger, counters: new Counters() },
      it.nsds.blocks.length,
    );
    return findings.length === 0 ? null : `still there: ${JSON.stringify(findings[0])}`;
  } catch (error) {
    return FsError.from(error, 'repair').message;
  }
}

async function inodePlace(it: VolatileVolume, ino: InodeNumber): Promise<{ nsd: NsdIndex; sector: number }> {
  const storage = it.volume.storage();
  for await (const { kind, extent, first } of metadataOf(storage, await readSuperblock(storage)))
    if (kind === 'inodes' && extent !== null && first <= ino && ino < first + extent.count)
      return { nsd: extent.nsd, sector: extent.sector + ino - first };
  throw new Error(`inode ${ino} has no place`);
}
const DAMAGED = Buffer.alloc(SECTOR_BYTES, 0xdd);

async function until(it: VolatileVolume, condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    if (i > 20_000) throw new Error('it never came to that');
    await (i % 100 === 99 ? it.volume.clock.advance(500) : turns());
  }
}

/** A check of a mounted file system mends what `damage` did, and says so; then the power goes. */
const mendedOnline =
  (damage: (it: VolatileVolume, ino: InodeNumber) => Promise<void> | void): Scenario =>
  async (prepare) => {
    const { it, ino } = await somethingThere(prepare, TWO_COPIES);
    await damage(it, ino);
    const node = await it.mount(2);
    const { mended } = await node.fs.checkOnline({ repair: true });
    if (mended.length === 0) return 'nothing was mended';
    it.powerOff([node]);
    return look(it, NONE);
  };

/** The files had sectors of one value; nobody has one any more. */
function whatIsFree(it: VolatileVolume): string | null {
  for (const [nsd, sectors] of it.nsds.devices.entries())
    for (const [sector, bytes] of sectors) {
      const value = bytes[0]!;
      if (value > 0 && value <= FILES && bytes.every((byte) => byte === value))
        return `sector ${sector} of NSD ${nsd} is free, and has what a file had`;
    }
  return null;
}

const MENDING: Readonly<Record<MendingFlush, Scenario>> = {
  resync: async (prepare) => {
    const it = await VolatileVolume.create(TWO_COPIES, prepare);
    const worker = await it.mount(1);
    const node = await it.mount(2);
    for (let i = 0; i < 20; i++) await worker.fs.mkdir(`/before${i}`, 0o755, ROOT);
    await worker.fs.sync();
    it.nsds.away.add(SECOND);
    for (let i = 0; i < 20; i++) await worker.fs.setAttributes(`/before${i}`, { mode: 0o700 }, true, ROOT);
    // All of it is in place, on one copy, and in no log.
    await worker.fs.unmount();
    it.nsds.away.delete(SECOND);
    it.volume.copies.changed();
    await until(it, () => it.volume.copies.stateOf(SECOND) === 'up');
    it.powerOff([node]);
    return look(it, NONE);
  },

  repairZeros: async (prepare) => {
    const it = await VolatileVolume.create({ blocks: [16, 16, 16], mkfs: { expectedNodes: 1 } }, prepare);
    const one = await it.mount(1);
    const files = await makeAll(one.fs, sixFiles(1, 1_000_000));
    const inos = files.map(({ ino }) => ino);
    for (const file of files) await file.close();
    await one.fs.unmount();
    for (const ino of inos) {
      const { nsd, sector } = await inodePlace(it, ino);
      it.nsds.setSector(nsd, sector, DAMAGED);
    }
    const wrong = await repair(it);
    if (wrong !== null) return wrong;
    it.nsds.powerCut();
    return whatIsFree(it);
  },

  repair: async (prepare) => {
    const { it } = await somethingThere(prepare);
    it.nsds.setSector(SECOND, 0, DAMAGED);
    const wrong = await repair(it);
    if (wrong !== null) return wrong;
    it.nsds.powerCut();
    return it.check();
  },

  mendedCopy: mendedOnline(async (it, ino) => {
    const { nsd, sector } = await inodePlace(it, ino);
    it.nsds.setSector(copiesOf(nsd)[1]!, sector, DAMAGED);
  }),

  mendedSuperblock: mendedOnline((it) => it.nsds.setSector(SECOND, 0, DAMAGED)),
};

export const SCENARIOS: Readonly<Record<Flush, Scenario>> = { ...WORKING, ...MENDING };
