import { expect, test } from 'vitest';
import { Impossible, Tree } from './tree-model.js';

const textOf = (tree: Tree): string[] => tree.describe().text.split('\n');

test('links are counted, and names of one inode look like it', () => {
  const tree = Tree.empty().createFile('/a').link('/a', '/b');
  expect(textOf(tree)).toEqual(['/ is directory #0', '/a is file #1, 2 links', '/b is file #1, 2 links']);
  expect(textOf(tree.unlink('/a'))).toEqual(['/ is directory #0', '/b is file #1, 1 links']);
});

test('a rename takes the place of what was there, and an exchange leaves both', () => {
  const tree = Tree.empty().createFile('/a').mkdir('/d').createFile('/d/b');
  const [a, b] = [tree.lookUp('/a'), tree.lookUp('/d/b')];
  const over = tree.rename('/a', '/d/b');
  expect(over.has('/a')).toBe(false);
  expect(over.lookUp('/d/b')).toBe(a);
  const both = tree.exchange('/a', '/d/b');
  expect([both.lookUp('/a'), both.lookUp('/d/b')]).toEqual([b, a]);
  expect(tree.lookUp('/a')).toBe(a);
});

test('what no file system does is impossible', () => {
  const tree = Tree.empty().mkdir('/d').createFile('/d/a').mkdir('/e');
  for (const wrong of [
    () => tree.rmdir('/d'),
    () => tree.rename('/d', '/d/x'),
    () => tree.rename('/d/a', '/e'),
    () => tree.rename('/e', '/d'),
    () => tree.unlink('/e'),
    () => tree.link('/d', '/x'),
    () => tree.mkdir('/none/x'),
  ])
    expect(wrong).toThrow(Impossible);
});

test('a state stays what it was; a gap reads as zeros', () => {
  const empty = Tree.empty().createFile('/a');
  const id = empty.lookUp('/a');
  const written = empty.write(id, 2, Uint8Array.of(7, 8));
  expect(empty.file(id).content).toHaveLength(0);
  expect([...written.file(id).content]).toEqual([0, 0, 7, 8]);
  expect([...written.truncate(id, 3).truncate(id, 5).file(id).content]).toEqual([0, 0, 7, 0, 0]);
});
