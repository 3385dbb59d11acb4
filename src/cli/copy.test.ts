import { randomBytes } from 'node:crypto';
import { promises as fs } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { directRig } from '../client/testing/harness.js';
import { type CopyResult, copy } from './copy.js';
import { holdfastTree, localTree, type TreeFs } from './tree.js';

let top = '';
beforeEach(async () => {
  top = await fs.mkdtemp(path.join(tmpdir(), 'holdfast-copy-'));
});
afterEach(async () => {
  await fs.rm(top, { recursive: true, force: true });
});

const run = (from: TreeFs, source: string, to: TreeFs, target: string): Promise<CopyResult> =>
  copy({ fs: from, path: source }, { fs: to, path: target }, { recursive: true, quiet: true, label: 'test' });

describe.each([
  ['Holdfast', () => ({ tree: holdfastTree(directRig().client), at: '' })],
  ['the local file system', () => ({ tree: localTree, at: top })],
])('within %s', (_name, make) => {
  const large = randomBytes((1 << 20) + 5);
  const small = randomBytes(100);
  const options = { mode: 0o644, times: { atime: 1, mtime: 1 } };

  test('a file that is copied onto itself stays as it is, by whichever name', async () => {
    const { tree, at } = make();
    for (const [name, bytes] of [
      ['large', large],
      ['small', small],
    ] as const) {
      const file = `${at}/${name}`;
      await tree.writeFile(file, bytes, options);
      await tree.symlink(file, `${file}-link`);
      for (const [from, to] of [
        [file, file],
        [file, `${file}-link`],
        [`${file}-link`, file],
        [file, at === '' ? '/' : at],
      ] as const) {
        await expect(run(tree, from, tree, to)).rejects.toThrow(/same file/);
        expect((await tree.readFile(file)).equals(bytes)).toBe(true);
      }
    }
  });

  test('a tree that is copied onto itself stays as it is', async () => {
    const { tree, at } = make();
    await tree.mkdir(`${at}/d`, { mode: 0o755 });
    await tree.writeFile(`${at}/d/large`, large, options);
    await tree.symlink('large', `${at}/d/link`);
    await expect(run(tree, `${at}/d`, tree, at === '' ? '/' : at)).rejects.toThrow(/same file/);
    expect((await tree.readFile(`${at}/d/large`)).equals(large)).toBe(true);
    expect(await tree.readlink(`${at}/d/link`)).toBe('large');
  });

  test('a file in a tree that its copy is a link to stays as it is', async () => {
    const { tree, at } = make();
    await tree.mkdir(`${at}/d`, { mode: 0o755 });
    await tree.mkdir(`${at}/to`, { mode: 0o755 });
    await tree.mkdir(`${at}/to/d`, { mode: 0o755 });
    await tree.writeFile(`${at}/d/large`, large, options);
    await tree.symlink(`${at}/d/large`, `${at}/to/d/large`);
    await expect(run(tree, `${at}/d`, tree, `${at}/to`)).rejects.toThrow(/same file/);
    expect((await tree.readFile(`${at}/d/large`)).equals(large)).toBe(true);
  });
});

test('a link to a directory, named as the source, means the directory', async () => {
  await fs.mkdir(path.join(top, 'd'));
  await fs.writeFile(path.join(top, 'd', 'f'), 'inside');
  await fs.symlink('d', path.join(top, 'link'));
  const result = await run(localTree, path.join(top, 'link'), localTree, path.join(top, 'copy'));
  expect(result).toMatchObject({ files: 1, directories: 1, symlinks: 0 });
  expect((await fs.lstat(path.join(top, 'copy'))).isDirectory()).toBe(true);
  expect(await fs.readFile(path.join(top, 'copy', 'f'), 'utf8')).toBe('inside');
});
