import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { ROOT } from '../file-system-api.js';
import { checkVolume, TestVolume } from '../testing.js';

test('link to a name that is replaced meanwhile finds what was there before or what is there now, on two nodes', async () => {
  const volume = await TestVolume.create();
  const one = await volume.mount(1);
  const two = await volume.mount(2);
  const make = async (path: string): Promise<void> =>
    (await one.fs.open(path, constants.O_CREAT | constants.O_RDWR, 0o644, ROOT)).close();
  await make('/a');
  for (let i = 0; i < 10; i++) {
    await make('/c');
    await Promise.all([two.fs.link('/a', `/b${i}`, ROOT), one.fs.rename('/c', '/a', ROOT)]);
    expect((await two.fs.stat(`/b${i}`, ROOT)).nlink).toBeGreaterThan(0);
  }
  for (const { fs } of [one, two]) await fs.unmount();
  expect((await checkVolume(volume)).problems).toEqual([]);
});
