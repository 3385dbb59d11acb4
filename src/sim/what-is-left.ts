import { PAGE_BYTES, SECTOR_BYTES, SECTORS_PER_PAGE } from '../common/units.js';
import type { SimNode } from './sim-node.js';

/**
 * What a file is after a node that wrote to it has died: what the disks hold, and, where several nodes wrote to it side by side, what the others have
 * in memory: sizes that the inode's sector doesn't say yet, and dirty bytes.
 */
export function sizeLeft(
  ino: number,
  onDisk: { sizeBytes: number; version: number },
  others: readonly SimNode[],
): number {
  let sizeBytes = onDisk.sizeBytes;
  const told = (
    of: readonly { object: number; note: { offsetBytes: number; version: number; sizeBytes: number } }[],
  ): void => {
    for (const { note } of of)
      if (note.offsetBytes === ino * SECTOR_BYTES && note.version === onDisk.version)
        sizeBytes = Math.max(sizeBytes, note.sizeBytes);
  };
  for (const { node, shared } of others) {
    told(node.tokens.machine.notes());
    told(node.tokenServer?.machine.gathered() ?? []);
    sizeBytes = Math.max(sizeBytes, shared(ino));
  }
  return sizeBytes;
}

/** Over what the disks hold: dirty bytes of nodes that are there. */
export function overlay(ino: number, bytes: Uint8Array, others: readonly SimNode[]): void {
  for (const life of others) {
    for (const page of life.cached(ino)?.file.pages.values() ?? []) {
      if (page.gone) continue;
      const { dirtyMask, partialStart, partialEnd } = page.installed ? life.map.content(page.slot) : page;
      const put = (from: number, to: number): void => {
        const at = page.index * PAGE_BYTES + from;
        const start = page.slot * PAGE_BYTES + from;
        const length = Math.min(to - from, bytes.length - at);
        if (length > 0) bytes.set(life.pool.bytes.subarray(start, start + length), at);
      };
      for (let sector = 0; sector < SECTORS_PER_PAGE; sector++)
        if ((dirtyMask & (1 << sector)) !== 0) put(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
      if (partialStart < partialEnd) put(partialStart, partialEnd);
    }
  }
}
