import { expect, test } from 'vitest';
import { FsError } from '../../common/errors.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { SegmentArena } from '../../native/buffer-arena.js';
import { heapPagePool } from '../../native/page-pool.js';
import type { NsdClientApi, SectorIo } from '../../nsd/nsd-api.js';
import { fsIdOf } from '../superblock.js';
import { TestVolume, testChecksums } from '../testing.js';
import { findLogTable, readDescriptors } from './log-reader.js';

const STAGING_BYTES = 1 << 20;

test('a descriptor that a power cut has torn hides no other: recovery goes on with those that can be read', async () => {
  const volume = await TestVolume.create();
  const { fs, life } = await volume.mount(1);
  const pool = heapPagePool(STAGING_BYTES);
  const nsds = volume.nsds.from(pool);
  const torn = { nsd: -1, sector: -1 };
  const read = async (ios: readonly SectorIo[]): Promise<void> => {
    for (const { nsd, sector, memory } of ios)
      if (nsd === torn.nsd && sector <= torn.sector && torn.sector < sector + memory.lengthBytes / SECTOR_BYTES)
        throw new FsError('checksumMismatch', { op: 'nsd.read', object: `sector ${torn.sector}` });
    await nsds.read(ios);
  };
  const { fsUuid, geometry, inodeFile } = fs.superblock;
  const logs = {
    nsds: Object.assign(Object.create(nsds) as NsdClientApi, { read }),
    pool,
    arena: new SegmentArena({ offsetBytes: 0, lengthBytes: STAGING_BYTES }),
    checksums: testChecksums,
    fsId: fsIdOf(fsUuid),
    geometry,
    inodeFile,
  };
  const table = await findLogTable(logs);
  const before = await readDescriptors(logs, table);
  expect(before[0]).toMatchObject({ owner: life });
  Object.assign(torn, { nsd: table.nsd, sector: table.sector + 3 });
  expect(await readDescriptors(logs, table)).toEqual(
    before.map((descriptor, slot) => (slot === 3 ? null : descriptor)),
  );
  await fs.unmount();
});
