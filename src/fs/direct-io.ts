/**
 * O_DIRECT: bytes go between the devices and staging space, past the page cache, in whole sectors.
 *
 * Tokens are those of any read or write. A read first has what this node has dirty in the range written out; a write throws the range's pages away, before
 * and (for what read-ahead brought meanwhile) after, and owns `contents`, so that nobody here reads what is half written.
 * Fault model: a write that fails leaves its range old, new or mixed; what it put behind the end of file is made zeros again.
 */
import type { ByteRange } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { BLOCK_BYTES, RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { makeZeros } from './file-holes.js';
import { atEnd, type FileHandle, named, onCertainTail, pinFile, wrote } from './file-io.js';
import { reserve } from './file-space.js';
import type { OpOptions } from './file-system-api.js';
import { FILE_BYTES_MAX } from './indirect-format.js';
import type { Inode } from './inode.js';
import { loadRef } from './pinning.js';
import { publishStatus, withSettledState } from './publishing.js';
import type { Volume } from './volume.js';

/** Of one transfer. */
const PIECE_BYTES = BLOCK_BYTES;

function checkAligned(op: string, handle: FileHandle, offsetBytes: number, lengthBytes: number): void {
  if (offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0 && offsetBytes >= 0) return;
  const detail = `O_DIRECT: ${lengthBytes} bytes at ${offsetBytes}, not multiples of ${SECTOR_BYTES}`;
  throw new FsError('invalidArgument', { op, object: named(handle), detail });
}

export async function readDirect(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  target: Uint8Array,
  options: OpOptions | undefined,
): Promise<number> {
  checkAligned('read', handle, offsetBytes, target.length);
  if (target.length === 0 || offsetBytes >= FILE_BYTES_MAX) return 0;
  const range = { start: offsetBytes, end: Math.min(RANGE_END, offsetBytes + target.length) };
  const pins = await pinFile(volume, handle, TokenMode.shared, range, TokenMode.shared, options);
  try {
    const inode = await loadRef(volume, handle, 'read');
    await inode.contents.share();
    try {
      volume.inodes.refresh(inode);
      const length = Math.min(target.length, inode.sizeBytes - offsetBytes);
      if (length <= 0) return 0;
      const file = volume.inodes.attach(inode);
      if (file.dirty) await file.flush(range);
      for (let at = 0; at < length; at += PIECE_BYTES) {
        const count = Math.min(PIECE_BYTES, length - at);
        const sectors = Math.ceil(count / SECTOR_BYTES) * SECTOR_BYTES;
        await volume.withStaging(sectors, async (bytes, { offsetBytes: poolOffsetBytes }) => {
          const piece = { offsetBytes: offsetBytes + at, lengthBytes: sectors, poolOffsetBytes };
          await volume.backing.read(inode.ino, [piece], options?.signal);
          target.set(bytes.subarray(0, count), at);
        });
      }
      volume.counters.add('fs.directReadBytes', length);
      if (handle.movesAtime) volume.accessTimes.noteRead(inode);
      return length;
    } finally {
      inode.contents.unshare();
    }
  } finally {
    publishStatus(volume, handle.ino);
    pins.release();
  }
}

export async function writeDirect(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number | null,
  source: Uint8Array,
  options: OpOptions | undefined,
): Promise<{ offsetBytes: number; lengthBytes: number }> {
  checkAligned('write', handle, offsetBytes ?? 0, source.length);
  const lengthBytes = source.length;
  if (offsetBytes === null)
    return atEnd(volume, handle, 'write', options, async (inode, end) => {
      checkAligned('write', handle, end, lengthBytes);
      if (lengthBytes > 0) await writeSectors(volume, handle, inode, end, source);
      return { offsetBytes: end, lengthBytes };
    });
  if (offsetBytes + lengthBytes > FILE_BYTES_MAX)
    throw new FsError('fileTooBig', { op: 'write', object: named(handle) });
  if (lengthBytes === 0) return { offsetBytes, lengthBytes };
  const range = { start: offsetBytes, end: offsetBytes + lengthBytes };
  await onCertainTail(volume, handle, range, 'write', options, (inode) =>
    inode.contents.runExclusive(() => writeSectors(volume, handle, inode, offsetBytes, source)),
  );
  return { offsetBytes, lengthBytes };
}

/** Exclusive status and data pinned, `contents` owned. */
async function writeSectors(
  volume: Volume,
  handle: FileHandle,
  inode: Inode,
  start: number,
  source: Uint8Array,
): Promise<void> {
  const range: ByteRange = { start, end: start + source.length };
  if (range.end > FILE_BYTES_MAX) throw new FsError('fileTooBig', { op: 'write', object: named(handle) });
  inode.settling++;
  try {
    const sizeBytes = withSettledState(volume, inode, () => inode.sizeBytes);
    const file = volume.inodes.attach(inode);
    await reserve(volume, inode, range);
    await file.discard(range);
    try {
      for (let at = 0; at < source.length; at += PIECE_BYTES) {
        const bytes = source.subarray(at, at + PIECE_BYTES);
        await volume.withStaging(bytes.length, async (staging, { offsetBytes: poolOffsetBytes }) => {
          staging.set(bytes);
          const piece = { offsetBytes: start + at, lengthBytes: bytes.length, poolOffsetBytes };
          await volume.backing.write(inode.ino, [piece]);
        });
      }
    } catch (error) {
      const behind = Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
      if (range.end > behind) {
        // As after a death there: if this fails too, the next write tries again, on whichever node.
        volume.backing.leftBehindEnd(inode.ino);
        await makeZeros(volume, inode, { start: Math.max(start, behind), end: range.end });
        inode.tailDoubtful = false;
      }
      throw error;
    } finally {
      await file.discard(range);
    }
    withSettledState(volume, inode, () => wrote(volume, handle, inode, range.end));
    volume.counters.add('fs.directWrittenBytes', source.length);
  } finally {
    inode.settling--;
  }
}
