import { expect, test } from 'vitest';
import { inodeNumber } from '../common/ids.js';
import { type Attributes, FileType } from '../fs/file-system-api.js';
import { KernelNodes, type NodeNumbers } from './kernel-nodes.js';
import { LockOwners } from './lock-owners.js';

const attributes = (ino: number, generation = 1) =>
  ({ ino: inodeNumber(ino), generation, type: FileType.regular }) as Attributes;

function nodes() {
  const lookups = new Map<number, number>();
  let next = 100;
  const numbers: NodeNumbers = {
    setRoot: () => undefined,
    addNode: () => next++,
    lookedUp: (node) => void lookups.set(node, (lookups.get(node) ?? 0) + 1),
    removeNode: (node) => lookups.get(node) === 0,
  };
  return { table: new KernelNodes(numbers, attributes(3)), lookups };
}

test('one life of an inode is one node; the next life of its number is another', () => {
  const { table, lookups } = nodes();
  const first = table.lookedUp(attributes(20));
  expect(table.lookedUp(attributes(20))).toBe(first);
  expect(lookups.get(first.id)).toBe(2);
  const second = table.lookedUp(attributes(20, 2));
  expect(second.id).not.toBe(first.id);
  expect(table.get(first.id)).toBe(first);
  expect(table.ofInode(inodeNumber(20))).toBe(second);
});

test('a node that the kernel has forgotten is stale, unless it was told of it again', () => {
  const { table, lookups } = nodes();
  const node = table.lookedUp(attributes(20));
  table.forgotten(node.id);
  expect(table.get(node.id)).toBe(node);
  lookups.set(node.id, 0);
  table.forgotten(node.id);
  expect(() => table.get(node.id)).toThrow('ESTALE');
  expect(table.ofInode(inodeNumber(20))).toBe(undefined);
});

test("a process's locks on a file go when it closes the file, once", () => {
  const owners = new LockOwners();
  let made = 0;
  const locks = { newProcess: (pid: number) => ({ id: ++made, pid }) } as never;
  const owner = owners.locking(7n, 1, inodeNumber(20), locks);
  expect(owners.locking(7n, 1, inodeNumber(21), locks)).toBe(owner);
  expect(owners.closes(8n, inodeNumber(20))).toBe(null);
  expect(owners.closes(7n, inodeNumber(20))).toBe(owner);
  expect(owners.closes(7n, inodeNumber(20))).toBe(null);
  expect(owners.closes(7n, inodeNumber(21))).toBe(owner);
  expect(owners.locking(7n, 1, inodeNumber(20), locks)).not.toBe(owner);
});
