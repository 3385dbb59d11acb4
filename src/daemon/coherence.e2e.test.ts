import { afterAll, beforeAll, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

/** Four nodes, one file system: what one did is what the next operation on the other finds (design: close-to-nothing staleness, always). */
let cluster: LocalCluster;
let one: FileSystemClient;
let two: FileSystemClient;
beforeAll(async () => {
  cluster = await startLocalCluster({ nodes: 4, nsds: 3 });
  one = cluster.client(0);
  two = cluster.client(1);
});
afterAll(() => cluster?.close());

const rounds = process.env.HOLDFAST_TEST_FULL === '1' ? 500 : 50;

test('bytes written on one node are what the next read on the other returns, whoever writes', async () => {
  const [a, b] = [await one.open('/pingpong', 'w+'), await two.open('/pingpong', 'r+')];
  const target = Buffer.alloc(6000);
  for (let i = 0; i < rounds; i++) {
    const [writer, reader] = i % 2 === 0 ? [a, b] : [b, a];
    const record = Buffer.alloc(6000, i + 1);
    const at = (i % 7) * 3001;
    await writer.write(record, 0, record.length, at);
    expect((await reader.read(target, 0, target.length, at)).bytesRead).toBe(6000);
    expect(target.equals(record)).toBe(true);
  }
  await Promise.all([a.close(), b.close()]);
});

test('a small file in its inode and a large one in blocks are both seen at once', async () => {
  for (const size of [0, 1, 100, 3000, 4096, 5000, 100_000, 3 << 20]) {
    const content = Buffer.alloc(size, `size ${size} `);
    await one.writeFile('/sized', content);
    expect((await two.readFile('/sized')).equals(content)).toBe(true);
    expect((await two.stat('/sized')).size).toBe(size);
    await two.appendFile('/sized', 'more');
    expect((await one.readFile('/sized')).equals(Buffer.concat([content, Buffer.from('more')]))).toBe(true);
  }
});

test('appends from four nodes at once all land, whole and each in one place', async () => {
  await one.writeFile('/appended', '');
  const names = ['a', 'b', 'c', 'd'];
  const files = await Promise.all(names.map((_, index) => cluster.client(index).open('/appended', 'a')));
  // Ends in the middle of sectors and pages, as records do.
  const record = (node: string, i: number): string => `${node}${String(i).padStart(6, '0')}${'x'.repeat(93)}`;
  await Promise.all(
    files.map(async (file, index) => {
      for (let i = 0; i < rounds; i++) await file.write(record(names[index]!, i));
    }),
  );
  const text = await two.readFile('/appended', 'utf8');
  expect(text.length).toBe(files.length * rounds * 100);
  const found = Array.from({ length: files.length * rounds }, (_, i) => text.slice(i * 100, (i + 1) * 100));
  // Each node's in its own order.
  for (const name of names)
    expect(found.filter((r) => r.startsWith(name))).toEqual(Array.from({ length: rounds }, (_, i) => record(name, i)));
  await Promise.all(files.map((file) => file.close()));
});

test('a file that is replaced while others read it is never absent and never mixed', async () => {
  // Inline, a fragment, and whole blocks, by turns.
  const lengths = [900, 50_000, (1 << 20) + 5000];
  const version = (i: number): Buffer => Buffer.alloc(lengths[i % lengths.length]!, 1 + (i % 250));
  await one.writeFile('/replaced', version(0));
  let over = false;
  let replaced = 0;
  const writer = (async () => {
    for (let i = 1; i <= rounds; i++) {
      await one.writeFile('/replacing', version(i));
      await one.rename('/replacing', '/replaced');
      replaced = i;
    }
    over = true;
  })();
  const reader = async (client: FileSystemClient): Promise<number> => {
    let reads = 0;
    let last = 0;
    for (; !over || reads === 0; reads++) {
      const from = replaced;
      const file = await client.open('/replaced', 'r');
      const bytes = await file.readFile();
      const { size, nlink } = await file.stat();
      const seen = bytes[0]! - 1;
      expect(bytes.equals(version(seen)), `read ${reads}: ${bytes.length} bytes, first ${seen}`).toBe(true);
      expect(size).toBe(bytes.length);
      expect(nlink).toBeLessThanOrEqual(1);
      // What had been put there before is over; versions are told apart modulo 250.
      expect((seen - (from % 250) + 250) % 250).toBeLessThan(125);
      expect((seen - (last % 250) + 250) % 250).toBeLessThan(125);
      last = seen;
      await file.close();
    }
    return reads;
  };
  const [, ...reads] = await Promise.all([writer, reader(two), reader(cluster.client(2)), reader(cluster.client(3))]);
  expect(Math.min(...reads)).toBeGreaterThan(0);
  expect((await two.readFile('/replaced')).equals(version(rounds))).toBe(true);
});

test('a truncated file is short at once, and what grows again holds zeros', async () => {
  await one.writeFile('/cut', Buffer.alloc(100_000, 1));
  const reader = await two.open('/cut', 'r+');
  expect((await reader.stat()).size).toBe(100_000);
  await one.truncate('/cut', 5000);
  expect((await reader.stat()).size).toBe(5000);
  expect((await reader.read(Buffer.alloc(10), 0, 10, 5000)).bytesRead).toBe(0);
  await one.truncate('/cut', 50_000);
  const target = Buffer.alloc(50_000, 9);
  expect((await reader.read(target, 0, target.length, 0)).bytesRead).toBe(50_000);
  expect(target.equals(Buffer.concat([Buffer.alloc(5000, 1), Buffer.alloc(45_000)]))).toBe(true);
  await reader.truncate(7);
  expect(await one.readFile('/cut')).toEqual(Buffer.alloc(7, 1));
  await reader.close();
});

test('created, renamed and removed names, links and listings are the same on both nodes at once', async () => {
  await one.mkdir('/names');
  for (let i = 0; i < 20; i++) {
    await one.writeFile(`/names/f${i}`, `content ${i}`);
    expect(await two.readFile(`/names/f${i}`, 'utf8')).toBe(`content ${i}`);
    await two.rename(`/names/f${i}`, `/names/g${i}`);
    await expect(one.stat(`/names/f${i}`)).rejects.toMatchObject({ code: 'ENOENT' });
    expect(await one.readFile(`/names/g${i}`, 'utf8')).toBe(`content ${i}`);
    expect((await one.readdir('/names')).sort()).toEqual(Array.from({ length: i + 1 }, (_, k) => `g${k}`).sort());
  }
  await two.rename('/names/g1', '/names/g2');
  expect(await one.readFile('/names/g2', 'utf8')).toBe('content 1');
  await one.link('/names/g2', '/names/also');
  expect((await two.stat('/names/g2')).nlink).toBe(2);
  await two.symlink('g2', '/names/link');
  expect(await one.readFile('/names/link', 'utf8')).toBe('content 1');
  await one.unlink('/names/g2');
  await expect(two.readFile('/names/link')).rejects.toMatchObject({ code: 'ENOENT' });
  expect((await two.stat('/names/also')).nlink).toBe(1);
  await two.rm('/names', { recursive: true });
  await expect(one.readdir('/names')).rejects.toMatchObject({ code: 'ENOENT' });
});

test('attributes changed on one node are those that the other one shows', async () => {
  await one.writeFile('/attributes', 'x');
  await two.stat('/attributes');
  await one.chmod('/attributes', 0o640);
  await one.chown('/attributes', 12, 34);
  await one.utimes('/attributes', 1000, 2000);
  const stat = await two.stat('/attributes');
  expect([stat.mode & 0o7777, stat.uid, stat.gid, stat.atimeMs, stat.mtimeMs]).toEqual([0o640, 12, 34, 1e6, 2e6]);
});

test('a file removed on one node stays readable through the handle that the same node has open', async () => {
  await one.writeFile('/gone', 'still here');
  const file = await one.open('/gone', 'r');
  await one.unlink('/gone');
  await expect(two.stat('/gone')).rejects.toMatchObject({ code: 'ENOENT' });
  expect(await file.readFile('utf8')).toBe('still here');
  await file.close();
});

test('overlapping writes of two nodes at once leave one of them whole, never a mixture', async () => {
  const [a, b] = [await one.open('/overlap', 'w+'), await two.open('/overlap', 'r+')];
  const length = 40_000;
  for (let i = 0; i < rounds; i++) {
    const at = i * 13;
    await Promise.all([
      a.write(Buffer.alloc(length, 1), 0, length, at),
      b.write(Buffer.alloc(length, 2), 0, length, at),
    ]);
    const found = Buffer.alloc(length);
    await (i % 2 === 0 ? a : b).read(found, 0, length, at);
    expect(found.every((byte) => byte === found[0])).toBe(true);
    expect([1, 2]).toContain(found[0]);
  }
  await Promise.all([a.close(), b.close()]);
});

test('two nodes write one file at once, record by record, and every byte is there', async () => {
  const recordBytes = 1000;
  const records = process.env.HOLDFAST_TEST_FULL === '1' ? 10_000 : 400;
  await one.writeFile('/shared', '');
  const files = [await one.open('/shared', 'r+'), await two.open('/shared', 'r+')];
  const pattern = (i: number): Buffer => Buffer.alloc(recordBytes, `${i}|`);
  // Every other record is a node's own: neighbours in a sector belong to different nodes.
  await Promise.all(
    files.map(async (file, node) => {
      for (let i = node; i < records; i += 2) await file.write(pattern(i), 0, recordBytes, i * recordBytes);
    }),
  );
  for (const client of [one, two, cluster.client(2)]) {
    const whole = await client.readFile('/shared');
    expect(whole.length).toBe(records * recordBytes);
    for (let i = 0; i < records; i++)
      if (!whole.subarray(i * recordBytes, (i + 1) * recordBytes).equals(pattern(i)))
        throw new Error(`record ${i} is wrong`);
  }
  await Promise.all(files.map((file) => file.close()));
});
