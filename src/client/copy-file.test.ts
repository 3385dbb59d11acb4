import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { TestVolume } from '../fs/testing.js';
import { directClient } from './connect-socket.js';
import { ROOT_USER } from './testing/posix-calls.js';

const MIB = 1 << 20;

test('copyFile keeps holes, and leaves nothing behind when there is no room for the copy', async () => {
  const volume = await TestVolume.create({ blocks: [24], poolPages: 4096 });
  const { fs } = await volume.mount();
  const client = directClient(fs, { credentials: ROOT_USER });
  await using handle = await client.open('/sparse', 'w', 0o640);
  await handle.truncate(500 * MIB);
  await handle.write('data', 300 * MIB);
  await client.copyFile('/sparse', '/copy');
  const copy = await client.stat('/copy');
  expect([copy.size, copy.mode & 0o777]).toEqual([500 * MIB, 0o640]);
  expect(copy.blocks * 512).toBeLessThan(2 * MIB);
  await client.writeFile('/large', Buffer.alloc(10 * MIB, 1));
  await expect(client.copyFile('/large', '/no-room')).rejects.toMatchObject({ code: 'ENOSPC', syscall: 'copyfile' });
  expect((await client.readdir('/')).sort()).toEqual(['copy', 'large', 'sparse']);
  await expect(client.copyFile('/large', '/copy', constants.COPYFILE_EXCL)).rejects.toMatchObject({ code: 'EEXIST' });
  expect((await client.stat('/copy')).size).toBe(500 * MIB);
  await fs.unmount();
});
