/**
 * Reading and writing for a kernel that keeps pages of a file (kernel-caches.ts): under tokens that this node has, whether they are on their way out or
 * not. Whoever calls sees to it that they stay until it ends: a token leaves only after the kernel has given back what it keeps under it.
 * Nothing here waits for a token.
 */
import type { ByteRange } from '../common/byte-range.js';
import type { InodeNumber } from '../common/ids.js';
import { TokenClass, TokenMode, type TokenPins } from '../token-manager/token.js';
import { copyIn, type FileHandle, pinFile, readPages } from './file-io.js';
import { type OpOptions, ROOT } from './file-system-api.js';
import { staleError } from './inode-table.js';
import { loadRef } from './pinning.js';
import type { Volume } from './volume.js';

const modeOf = (exclusive: boolean): TokenMode => (exclusive ? TokenMode.exclusive : TokenMode.shared);

/** Status and the range, when they are at hand and not on their way out. */
export function tryHold(volume: Volume, handle: FileHandle, range: ByteRange, exclusive: boolean): TokenPins | null {
  const mode = modeOf(exclusive);
  const { inode } = handle;
  if (!inode.valid || inode.replaced || inode.concurrent) return null;
  const items = [volume.inodes.statusItem(handle.ino, mode), volume.inodes.attach(inode).dataItem(range, mode)];
  const pins = volume.parts.tokens.tryPin(items);
  if (pins !== null && volume.inodes.getPinned(handle.ino) === inode && !inode.concurrent) return pins;
  pins?.release();
  return null;
}

/** The longest range around an offset that is held, and may be relied on as long as it is: more than an operation has pinned. */
export const heldAround = (
  volume: Volume,
  ino: InodeNumber,
  offsetBytes: number,
  exclusive: boolean,
): ByteRange | null => volume.parts.tokens.heldRange(TokenClass.data, ino, offsetBytes, modeOf(exclusive));

/** The same with waiting. @throws {FsError} staleHandle, tokenDeadline, aborted, fenced. */
export async function hold(
  volume: Volume,
  handle: FileHandle,
  range: ByteRange,
  exclusive: boolean,
  options: OpOptions | undefined,
): Promise<TokenPins> {
  const mode = modeOf(exclusive);
  const pins = await pinFile(volume, handle, mode, range, mode, options);
  try {
    await loadRef(volume, handle, 'read');
    return pins;
  } catch (error) {
    pins.release();
    throw error;
  }
}

/** Bytes read; 0 at the end of file. */
export async function readHeld(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  target: Uint8Array,
): Promise<number> {
  const { inode } = handle;
  if (!inode.valid) throw staleError(inode, 'read');
  return readPages(volume, handle, inode, offsetBytes, target.length, (file, length) =>
    file.read(offsetBytes, target.subarray(0, length), {}),
  );
}

/** What a program stored through a mapping; of it what lies within the file. Exclusive tokens. */
export async function writeHeld(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  source: Uint8Array,
): Promise<void> {
  const { inode } = handle;
  if (!inode.valid) throw staleError(inode, 'write');
  await volume.innerChange(async () => {
    await inode.contents.share();
    try {
      volume.inodes.refresh(inode);
      const length = Math.min(source.length, inode.sizeBytes - offsetBytes);
      if (length <= 0) return;
      // A store strips nothing of the mode.
      const asRoot = { ...handle, credentials: ROOT };
      await copyIn(volume, asRoot, inode, offsetBytes, source.subarray(0, length), undefined);
    } finally {
      inode.contents.unshare();
    }
  });
}
