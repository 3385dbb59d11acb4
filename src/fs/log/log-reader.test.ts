import { expect, test } from 'vitest';
import { fsIdOf } from '../superblock.js';
import { TestVolume } from '../testing.js';
import { findLogTable, readDescriptors } from './log-reader.js';

test('a descriptor that a power cut has torn hides no other: recovery goes on with those that can be read', async () => {
  const volume = await TestVolume.create();
  const { fs, life } = await volume.mount(1);
  const { fsUuid, geometry, inodeFile } = fs.superblock;
  const logs = { ...volume.storage(), fsId: fsIdOf(fsUuid), geometry, inodeFile };
  const table = await findLogTable(logs);
  const before = await readDescriptors(logs, table);
  expect(before[0]).toMatchObject({ owner: life });
  volume.nsds.tear(table.nsd, table.sector + 3);
  expect(await readDescriptors(logs, table)).toEqual(
    before.map((descriptor, slot) => (slot === 3 ? null : descriptor)),
  );
  await fs.unmount();
});
