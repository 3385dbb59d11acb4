/**
 * What directories and inodes say of each other, where it is believed: before a name is followed upwards, or what it names is changed. Under the tokens of
 * both they agree, whatever died before; who finds that they don't has found damage under a good checksum, and changes nothing.
 */
import type { InodeNumber } from '../common/ids.js';
import type { Inode } from './inode.js';
import { isUserInode, ROOT_DIRECTORY } from './layout.js';
import type { LeafEntry } from './leaf-format.js';
import { corrupt } from './sector.js';
import type { Volume } from './volume.js';

/** Its own and its parent's. */
const LINKS_OF_A_DIRECTORY = 2;

/** The directory that a directory says it is in; only the root is in itself. */
export function parentOf({ geometry }: Volume, { ino, parent }: Inode, op: string): InodeNumber {
  if (ino === ROOT_DIRECTORY) return ROOT_DIRECTORY;
  if (parent !== ino && (parent === ROOT_DIRECTORY || isUserInode(parent, geometry))) return parent;
  throw corrupt(op, `directory ${ino}`, `says that its parent is inode ${parent}`);
}

/** Before the name goes or moves, or the inode behind it does. */
export function checkNamed(op: string, directory: Inode, name: string, entry: LeafEntry, inode: Inode): void {
  const { type, nlink } = inode;
  if (type !== entry.type)
    throw corrupt(op, `name '${name}' in directory ${directory.ino}`, `has type ${entry.type}, its inode ${type}`);
  if (nlink < 1)
    throw corrupt(op, `inode ${inode.ino}`, `has ${nlink} links, and a name in directory ${directory.ino}`);
  if (inode.isDirectory && directory.nlink <= LINKS_OF_A_DIRECTORY)
    throw corrupt(op, `inode ${directory.ino}`, `has ${directory.nlink} links, and directory ${inode.ino} in it`);
}
