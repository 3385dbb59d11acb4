/** Formats that this code doesn't know, or not all of: what may still be done with them. */
import { expect, test } from 'vitest';
import { Counters } from '../common/counters.js';
import { nsdIndex } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { repairFileSystem } from './check/repair.js';
import { allNsds } from './layout.js';
import { decodeSuperblock, encodeSuperblock, type Superblock } from './superblock.js';
import { checkParts, checkVolume, TestVolume, testChecksums } from './testing.js';

/** As other code may have made it. */
async function volumeWith(change: Partial<Superblock>): Promise<TestVolume> {
  const volume = await TestVolume.create();
  const made = decodeSuperblock(volume.nsds.sector(nsdIndex(0), 0), testChecksums);
  const other = encodeSuperblock({ ...made, ...change }, testChecksums);
  for (const nsd of allNsds(made.geometry)) volume.nsds.setSector(nsd, 0, other);
  return volume;
}

const clean = { findings: [], problems: [], lostSubBlocks: 0 };

test('of another format version nothing is read', async () => {
  for (const formatVersion of [0, 2, 2 ** 32 - 1]) {
    const volume = await volumeWith({ formatVersion });
    const refused = {
      reason: 'wrongFormat',
      message: expect.stringContaining(`format version ${formatVersion}; this code knows 1`),
    };
    await expect(volume.mount()).rejects.toMatchObject(refused);
    await expect(checkVolume(volume)).rejects.toMatchObject(refused);
  }
});

test('with an incompatible feature that is not known nothing is read', async () => {
  const volume = await volumeWith({ incompatibleFeatures: 0x80000008 });
  const refused = { reason: 'wrongFormat', message: expect.stringMatching(/incompatible features .*: bits 3, 31,/) };
  await expect(volume.mount()).rejects.toMatchObject(refused);
  await expect(checkVolume(volume)).rejects.toMatchObject(refused);
});

test('with a read-only-compatible feature that is not known it is read, and not written to', async () => {
  const volume = await volumeWith({ readOnlyCompatibleFeatures: 1 << 5 });
  const { writes } = volume.nsds.shared;
  const refused = { reason: 'wrongFormat', message: expect.stringMatching(/whoever writes to it must know.*: bit 5,/) };
  await expect(volume.mount()).rejects.toMatchObject(refused);
  const parts = { ...checkParts(volume), logger: silentLogger, counters: new Counters() };
  await expect(repairFileSystem(parts, undefined)).rejects.toMatchObject(refused);
  expect(volume.nsds.shared.writes).toBe(writes);
  expect(await checkVolume(volume)).toMatchObject(clean);
});

test('a compatible feature that is not known is nobody’s business', async () => {
  const volume = await volumeWith({ compatibleFeatures: 2 ** 32 - 1 });
  const { fs } = await volume.mount();
  expect(fs.superblock.compatibleFeatures).toBe(2 ** 32 - 1);
  await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(clean);
});
