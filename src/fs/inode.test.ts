import { expect, test } from 'vitest';
import type { CachedFile } from '../cache/page-cache-api.js';
import { inodeNumber } from '../common/ids.js';
import { Inode } from './inode.js';

test('writes that moved neither size nor times hold nothing back; others do before anything is moved', () => {
  const inode = new Inode(inodeNumber(4096));
  inode.valid = true;
  inode.sizeBytes = 10;
  const state = { sizeBytes: 10, mtimeNs: inode.mtimeNs, ctimeNs: inode.ctimeNs, changes: 1 };
  inode.file = { state } as CachedFile;
  const sizes: number[] = [];
  const merge = () => inode.mergeState(() => sizes.push(inode.sizeBytes));
  expect([merge(), inode.stateAhead, sizes]).toEqual(['nothing', false, []]);
  state.sizeBytes = 20;
  state.changes++;
  expect([merge(), inode.stateAhead, sizes]).toEqual(['size', false, [10]]);
  state.mtimeNs++;
  state.changes++;
  expect([merge(), sizes]).toEqual(['times', [10, 20]]);
});
