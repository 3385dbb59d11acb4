/** All pointers of a file at once: what its area holds and the indirect blocks below it. */
import type { InodeNumber } from '../../../common/ids.js';
import { entryOffset } from '../../block-map.js';
import { type BlockPointer, blockPointer, writePointer } from '../../block-pointer.js';
import { formatIndirect, pointerPlace, span } from '../../indirect-format.js';
import { EMPTY_AREA } from '../../inode-format.js';
import type { Extent } from '../../layout.js';
import { withAreaPointer } from '../pointer-walk.js';

export interface IndirectAt {
  readonly level: number;
  readonly firstBlock: number;
}
export const indirectKey = ({ level, firstBlock }: IndirectAt): string => `${level} ${firstBlock}`;

/** Indirect blocks on the way to a block, from the top. */
export function indirectsAbove(block: number): IndirectAt[] {
  const place = pointerPlace(block);
  const found: IndirectAt[] = [];
  let { firstBlock } = place;
  for (let { level } = place; level >= 1; level--) {
    found.push({ level, firstBlock });
    firstBlock += Math.floor((block - firstBlock) / span(level)) * span(level);
  }
  return found;
}

export interface PointerTree {
  readonly area: Uint8Array;
  /** Not sealed. */
  readonly indirects: readonly { readonly home: Extent; readonly sector: Uint8Array }[];
}

/** @param homeOf where an indirect block is to be */
export async function pointerTree(
  blocks: ReadonlyMap<number, BlockPointer>,
  { ino, generation, fsId }: { readonly ino: InodeNumber; readonly generation: number; readonly fsId: bigint },
  birthEpoch: number,
  homeOf: (at: IndirectAt) => Promise<Extent>,
): Promise<PointerTree> {
  const indirects = new Map<string, { home: Extent; sector: Uint8Array }>();
  let area: Uint8Array = EMPTY_AREA;
  for (const [block, pointer] of blocks) {
    const { root } = pointerPlace(block);
    let put = (to: BlockPointer): void => {
      area = withAreaPointer(area, root, to);
    };
    for (const at of indirectsAbove(block)) {
      let node = indirects.get(indirectKey(at));
      if (node === undefined) {
        const home = await homeOf(at);
        node = { home, sector: formatIndirect(ino, at.level, at.firstBlock, generation, fsId) };
        indirects.set(indirectKey(at), node);
        put(blockPointer(home, birthEpoch));
      }
      const { sector } = node;
      const slot = Math.floor((block - at.firstBlock) / span(at.level));
      put = (to) => writePointer(sector, entryOffset(slot), to);
    }
    put(pointer);
  }
  return { area, indirects: [...indirects.values()] };
}
