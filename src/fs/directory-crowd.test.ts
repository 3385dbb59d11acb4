import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { SECTOR_BYTES } from '../common/units.js';
import { ROOT } from './file-system-api.js';
import { checkVolume, TestVolume } from './testing.js';

test('many creates in one directory split a full leaf once, however many of them found it full', async () => {
  const volume = await TestVolume.create();
  const { fs, counters } = await volume.mount();
  await fs.mkdir('/crowd', 0o755, ROOT);
  const names = Array.from({ length: 600 }, (_, i) => `/crowd/a-name-of-some-length-${i}`);
  for (let at = 0; at < names.length; at += 100) {
    await Promise.all(
      names.slice(at, at + 100).map(async (name) => {
        const file = await fs.open(name, constants.O_CREAT | constants.O_RDWR, 0o644, ROOT);
        await file.close();
      }),
    );
  }
  // 600 entries of about 45 bytes fill 7 leaves. Splitting once for each waiter ran through all depths instead.
  expect(counters.get('fs.leafSplits')).toBeLessThan(16);
  expect((await fs.readdir('/crowd', ROOT)).length).toBe(600);
  await fs.unmount();
  expect((await checkVolume(volume)).problems).toEqual([]);
});

test('a lookup in a large directory that nobody has in memory reads one block of it, whether the name is there or not', async () => {
  const volume = await TestVolume.create();
  const first = await volume.mount(1);
  await first.fs.mkdir('/crowd', 0o755, ROOT);
  await (await first.fs.open('/crowd/0', constants.O_CREAT | constants.O_RDWR, 0o644, ROOT)).close();
  // The last round of splits has begun here: there are leaves of two depths.
  for (let i = 1; i < 2500; i++) await first.fs.link('/crowd/0', `/crowd/${i}`, ROOT);
  const { sizeBytes } = await first.fs.stat('/crowd', ROOT);
  expect(sizeBytes / SECTOR_BYTES).toBeGreaterThan(24);
  expect(sizeBytes / SECTOR_BYTES).toBeLessThan(32);
  await first.fs.unmount();
  let seldom = 0;
  for (let i = 0; i < 16; i++) {
    const isThere = i % 4 !== 3;
    const { fs } = await volume.mount(2);
    // The inodes on the way, that of the file too: what is left is the directory's own.
    const file = await fs.open('/crowd/0', constants.O_RDONLY, 0, ROOT);
    await fs.stat('/crowd', ROOT);
    const { reads } = volume.nsds.shared;
    const looked = fs.stat(`/crowd/${isThere ? 150 * i + 1 : `none ${i}`}`, ROOT);
    if (isThere) expect((await looked).nlink).toBe(2500);
    else await expect(looked).rejects.toMatchObject({ code: 'ENOENT' });
    const own = volume.nsds.shared.reads - reads;
    // Of leaves that are among the few of another depth it is two.
    expect(own).toBeLessThanOrEqual(2);
    if (own === 2) seldom++;
    await file.close();
    await fs.unmount();
  }
  expect(seldom, 'lookups that read two').toBeLessThanOrEqual(1);
});
