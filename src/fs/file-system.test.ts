import { constants } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { FileType, ROOT } from './file-system-api.js';
import { TestVolume } from './testing.js';

const { O_CREAT, O_RDWR, O_RDONLY, O_APPEND, O_TRUNC, O_EXCL, O_WRONLY } = constants;
const bytes = (text: string): Uint8Array => Buffer.from(text);

async function readAll(fs: import('./file-system-api.js').FileSystem, path: string): Promise<Buffer> {
  const file = await fs.open(path, O_RDONLY, 0, ROOT);
  const { sizeBytes } = await file.stat();
  const target = Buffer.alloc(sizeBytes + 10);
  const length = await file.read(0, target);
  await file.close();
  return target.subarray(0, length);
}

describe('a file system on one node', () => {
  test('a file is created, written, read, listed and removed', async () => {
    const { fs } = await (await TestVolume.create()).mount();
    const file = await fs.open('/hello', O_CREAT | O_RDWR, 0o644, ROOT);
    expect(await file.write(0, bytes('hello, world'))).toEqual({ offsetBytes: 0, lengthBytes: 12 });
    const target = Buffer.alloc(20);
    expect(await file.read(7, target)).toBe(5);
    expect(target.subarray(0, 5).toString()).toBe('world');
    await file.close();
    expect((await fs.stat('/hello', ROOT)).sizeBytes).toBe(12);
    expect((await fs.readdir('/', ROOT)).map(({ name, type }) => [name, type])).toEqual([['hello', FileType.regular]]);
    await fs.unlink('/hello', ROOT);
    await expect(fs.stat('/hello', ROOT)).rejects.toMatchObject({ code: 'ENOENT' });
    await fs.unmount();
  });

  test('a remount gives the same tree', async () => {
    const volume = await TestVolume.create();
    const first = await volume.mount();
    await first.fs.mkdir('/a', 0o755, ROOT);
    await first.fs.mkdir('/a/b', 0o755, ROOT);
    await first.fs.symlink('b/c', '/a/link', ROOT);
    const big = Buffer.alloc(3_500_000, 'abcdefghij');
    for (const [path, content] of [
      ['/a/b/c', bytes('small')],
      ['/a/big', big],
      ['/a/medium', big.subarray(0, 70_000)],
    ] as const) {
      const file = await first.fs.open(path, O_CREAT | O_RDWR | O_EXCL, 0o640, ROOT);
      await file.write(0, content);
      await file.close();
    }
    await first.fs.rename('/a/medium', '/moved', ROOT);
    await first.fs.unmount();
    const { fs } = await volume.mount(2);
    expect((await readAll(fs, '/a/link')).toString()).toBe('small');
    expect(Buffer.compare(await readAll(fs, '/a/big'), big)).toBe(0);
    expect(Buffer.compare(await readAll(fs, '/moved'), big.subarray(0, 70_000))).toBe(0);
    expect((await fs.readdir('/a', ROOT)).map(({ name }) => name).sort()).toEqual(['b', 'big', 'link']);
    expect(await fs.realpath('/a/link', ROOT)).toBe('/a/b/c');
    await fs.unmount();
  });

  test('appends go behind one another and truncation leaves zeros', async () => {
    const { fs } = await (await TestVolume.create()).mount();
    const file = await fs.open('/log', O_CREAT | O_WRONLY | O_APPEND, 0o644, ROOT);
    await Promise.all(Array.from({ length: 20 }, (_, i) => file.write(0, Buffer.alloc(1000, 65 + i))));
    expect((await file.stat()).sizeBytes).toBe(20_000);
    await file.truncate(10);
    await file.truncate(5000);
    await file.close();
    const content = await readAll(fs, '/log');
    expect(content.length).toBe(5000);
    expect(content.findIndex((byte, index) => index >= 10 && byte !== 0)).toBe(-1);
    await (await fs.open('/log', O_WRONLY | O_TRUNC, 0, ROOT)).close();
    expect((await fs.stat('/log', ROOT)).sizeBytes).toBe(0);
    await fs.unmount();
  });

  test('a directory of 20,000 entries is found, listed and emptied', async () => {
    const volume = await TestVolume.create({ blocks: [512, 512] });
    const { fs, tokens } = await volume.mount();
    await fs.mkdir('/d', 0o755, ROOT);
    const requests = tokens.requests;
    for (let i = 0; i < 20_000; i++) {
      const file = await fs.open(`/d/file-${i}`, O_CREAT | O_WRONLY | O_EXCL, 0o644, ROOT);
      await file.close();
    }
    // A batch of numbers (and their data tokens) at a time, a block of the inode file at a time; never one request per create.
    expect(tokens.requests - requests).toBeLessThan(130);
    expect(await fs.readdir('/d', ROOT)).toHaveLength(20_000);
    for (let i = 0; i < 20_000; i += 997) expect((await fs.stat(`/d/file-${i}`, ROOT)).type).toBe(FileType.regular);
    await tokens.revokeAll();
    for (let i = 0; i < 20_000; i += 997) expect((await fs.stat(`/d/file-${i}`, ROOT)).type).toBe(FileType.regular);
    for (let i = 0; i < 20_000; i++) await fs.unlink(`/d/file-${i}`, ROOT);
    expect(await fs.readdir('/d', ROOT)).toHaveLength(0);
    await fs.rmdir('/d', ROOT);
    await fs.unmount();
  });
});
