import { constants } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { directRig } from './testing/harness.js';

/** Trees named through links and '..': what is touched is what the path means, not what its text looks like. */
describe('a path through a link and ..', () => {
  async function rig() {
    const { client } = directRig();
    await client.mkdir('/a/b', { recursive: true });
    await client.mkdir('/a/tree/sub', { recursive: true });
    await client.writeFile('/a/tree/sub/f', 'meant');
    await client.mkdir('/tree/sub', { recursive: true });
    await client.writeFile('/tree/sub/f', 'innocent');
    await client.symlink('/a/b', '/link');
    return client;
  }

  it('rm removes the tree that it means', async () => {
    const client = await rig();
    await client.rm('/link/../tree', { recursive: true });
    expect(await client.readFile('/tree/sub/f', 'utf8')).toBe('innocent');
    expect(await client.readdir('/a')).toEqual(['b']);
  });

  it('cp copies the tree that it means', async () => {
    const client = await rig();
    await client.cp('/link/../tree', '/copy', { recursive: true });
    expect(await client.readFile('/copy/sub/f', 'utf8')).toBe('meant');
  });

  it('readdir lists the tree that it means', async () => {
    const client = await rig();
    await client.rmdir('/tree/sub', { recursive: true });
    expect((await client.readdir('/link/../tree', { recursive: true })).sort()).toEqual(['sub', 'sub/f']);
  });
});

describe('cp', () => {
  it('of what is neither file, directory nor link is refused by name', async () => {
    const { client } = directRig();
    await client.mkfifo('/fifo');
    await client.mknod('/socket', constants.S_IFSOCK | 0o644);
    await expect(client.cp('/fifo', '/copy')).rejects.toMatchObject({ code: 'ERR_FS_CP_FIFO_PIPE' });
    await expect(client.cp('/socket', '/copy')).rejects.toMatchObject({ code: 'ERR_FS_CP_SOCKET' });
    expect(
      (await client.readdir('/', { withFileTypes: true })).map((entry) => [entry.name, entry.isFIFO()]).sort(),
    ).toEqual([
      ['fifo', true],
      ['socket', false],
    ]);
  });

  it('of a directory into itself through a link is refused', async () => {
    const { client } = directRig();
    await client.mkdir('/d/sub', { recursive: true });
    await client.symlink('/d/sub', '/link');
    const into = client.cp('/d', '/link/copy', { recursive: true });
    await expect(into).rejects.toMatchObject({ code: 'ERR_FS_CP_EINVAL' });
    expect(await client.readdir('/d/sub')).toEqual([]);
  });

  it('of a file or link onto itself by another name is refused and loses nothing', async () => {
    const { client } = directRig();
    await client.mkdir('/d');
    await client.writeFile('/d/f', 'kept');
    await client.symlink('f', '/d/l');
    await client.symlink('/d', '/also');
    await client.link('/d/f', '/hard');
    for (const [from, to] of [
      ['/d/l', '/also/l'],
      ['/d/f', '/also/f'],
      ['/d/f', '/hard'],
    ] as const)
      await expect(client.cp(from, to)).rejects.toMatchObject({ code: 'ERR_FS_CP_EINVAL' });
    expect(await client.readlink('/d/l')).toBe('f');
    expect(await client.readFile('/hard', 'utf8')).toBe('kept');
  });
});

describe('streams', () => {
  it('a write stream that does not close its handle writes everything before it ends', async () => {
    const { client } = directRig();
    const handle = await client.open('/f', 'w');
    const stream = handle.createWriteStream({ autoClose: false });
    for (let i = 0; i < 20; i++) stream.write('0123456789');
    await new Promise<void>((resolve) => stream.close(() => resolve()));
    expect((await handle.stat()).size).toBe(200);
    await handle.close();
  });

  it('an end without a start counts from where the handle is', async () => {
    const { client } = directRig();
    await client.writeFile('/f', 'abcdefgh');
    const handle = await client.open('/f');
    await handle.read(Buffer.alloc(3));
    let text = '';
    for await (const chunk of handle.createReadStream({ end: 1, autoClose: false })) text += chunk;
    expect(text).toBe('de');
    await handle.close();
  });

  it('close tells of itself also when the stream has ended already', async () => {
    const { client } = directRig();
    await client.writeFile('/f', 'x');
    const reader = client.createReadStream('/f');
    await new Promise((resolve) => reader.on('close', resolve).resume());
    await new Promise<void>((resolve) => reader.close(() => resolve()));
    const writer = client.createWriteStream('/g');
    await new Promise((resolve) => writer.on('close', resolve).end('x'));
    await new Promise<void>((resolve) => writer.close(() => resolve()));
  }, 20_000);

  it('take an encoding in place of options, as those of node do', async () => {
    const { client } = directRig();
    const writer = client.createWriteStream('/f', 'latin1');
    await new Promise((resolve) => writer.on('close', resolve).end('\xe9'));
    expect([...(await client.readFile('/f'))]).toEqual([0xe9]);
    for await (const chunk of client.createReadStream('/f', 'latin1')) expect(chunk).toBe('\xe9');
  });
});
