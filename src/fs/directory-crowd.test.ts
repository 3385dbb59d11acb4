import { constants } from 'node:fs';
import { expect, test } from 'vitest';
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
