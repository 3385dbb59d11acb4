/** A tree of 500 files and 20 MB, the same each time: empty, tiny, small, large, in folders of folders, and symbolic links. */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';

export const SAMPLE_FILES = 500;
const KIB = 1024;

/** How long file number `index` is: nobody's block, page or sector in particular. */
function lengthOf(index: number): number {
  if (index % 100 === 0) return 0;
  if (index % 50 === 7) return 1024 * KIB + index * 13;
  if (index % 10 === 3) return 100 * KIB + index * 211;
  return 1 + ((index * 7919) % (12 * KIB));
}

export function makeSampleTree(root: string): void {
  let word = 0x2545f491;
  for (let index = 0; index < SAMPLE_FILES; index++) {
    const folder = path.join(root, `a${index % 7}`, `b${index % 11}`);
    mkdirSync(folder, { recursive: true });
    const bytes = Buffer.alloc(lengthOf(index));
    for (let at = 0; at + 4 <= bytes.length; at += 4) {
      // xorshift32 (Marsaglia 2003).
      word ^= word << 13;
      word ^= word >>> 17;
      word ^= word << 5;
      bytes.writeInt32LE(word, at);
    }
    writeFileSync(path.join(folder, `file-${index}`), bytes);
    if (index % 50 === 1) symlinkSync(`file-${index}`, path.join(folder, `link-${index}`));
  }
}
