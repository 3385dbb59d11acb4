/**
 * copy_file_range: bytes go from page to page in the engine. Holes of the source stay holes.
 *
 * A step has the tokens of both files pinned, taken in the one order (T4), and copies what is data; between two steps others may change
 * either file, as between two reads and writes.
 */
import { FsError } from '../common/errors.js';
import { type TokenItem, TokenMode, type TokenPins } from '../token-manager/token.js';
import { allocateRange } from './file-allocate.js';
import { atEnd, changing, type FileHandle, named, onCertainTail, setSize, wrote } from './file-io.js';
import { dataFrom, holeFrom } from './file-seek.js';
import type { OpOptions } from './file-system-api.js';
import { FILE_BYTES_MAX } from './indirect-format.js';
import type { Inode } from './inode.js';
import { loadRef } from './pinning.js';
import { publishStatus } from './publishing.js';
import type { Volume } from './volume.js';

const op = 'copy_file_range';
/** Copied with the tokens of both files pinned. */
const STEP_BYTES = 4 << 20;

/** What there is at an offset of the source: up to where data, or a hole, goes on. Null: it is behind the end. */
async function stretchAt(
  volume: Volume,
  source: FileHandle,
  offsetBytes: number,
  options: OpOptions | undefined,
): Promise<{ readonly isHole: boolean; readonly endBytes: number; readonly sizeBytes: number } | null> {
  const pins = await volume.pin([volume.inodes.statusItem(source.ino, TokenMode.shared)], options);
  try {
    const inode = await loadRef(volume, source, op);
    return await inode.structure.run(async () => {
      volume.inodes.refresh(inode);
      const { sizeBytes } = inode;
      if (offsetBytes >= sizeBytes) return null;
      if (inode.isInline) return { isHole: false, endBytes: sizeBytes, sizeBytes };
      const data = await dataFrom(volume, inode, offsetBytes);
      const isHole = data > offsetBytes;
      const endBytes = isHole ? data : await holeFrom(volume, inode, offsetBytes);
      return { isHole, endBytes: Math.min(endBytes, sizeBytes), sizeBytes };
    });
  } finally {
    pins.release();
  }
}

/** Bytes copied: fewer than asked for at the end of the source, or when something went wrong after the first of them. */
export async function copyRange(
  volume: Volume,
  source: FileHandle,
  offsetBytes: number,
  target: FileHandle,
  targetOffsetBytes: number,
  lengthBytes: number,
  options: OpOptions | undefined,
): Promise<number> {
  if (source.ino === target.ino && Math.abs(offsetBytes - targetOffsetBytes) < lengthBytes)
    throw new FsError('invalidArgument', { op, object: named(source), detail: 'the two ranges overlap' });
  let length = Math.min(lengthBytes, FILE_BYTES_MAX - offsetBytes);
  for (let copied = 0; ; ) {
    const [from, to] = [offsetBytes + copied, targetOffsetBytes + copied];
    if (copied >= length) return copied;
    try {
      const stretch = await stretchAt(volume, source, from, options);
      if (stretch === null) return copied;
      // What the copy itself puts behind the end is not copied in turn.
      if (copied === 0) length = Math.min(length, stretch.sizeBytes - offsetBytes);
      const count = Math.min(stretch.endBytes - from, length - copied);
      if (to + count > FILE_BYTES_MAX) throw new FsError('fileTooBig', { op, object: named(target) });
      await volume.frees.makeRoom();
      await volume.inodes.makeRoom(target.inode);
      if (stretch.isHole) {
        await volume.change(() => copyHole(volume, target, to, count, options), options);
        copied += count;
      } else {
        const step = Math.min(count, STEP_BYTES);
        copied += await volume.change(() => copyData(volume, source, from, target, to, step, options), options);
      }
    } catch (error) {
      if (copied > 0) return copied;
      throw error;
    }
  }
}

async function copyHole(
  volume: Volume,
  target: FileHandle,
  offsetBytes: number,
  lengthBytes: number,
  options: OpOptions | undefined,
): Promise<void> {
  const range = { start: offsetBytes, end: offsetBytes + lengthBytes };
  await allocateRange(volume, target, 'punchHole', { ...range, isLast: true, blocks: 0 }, options);
  await onCertainTail(volume, target, range, op, options, (inode) =>
    inode.contents.runExclusive(async () => {
      volume.inodes.refresh(inode);
      if (inode.sizeBytes < range.end) await setSize(volume, target, inode, range.end);
    }),
  );
}

async function copyData(
  volume: Volume,
  source: FileHandle,
  offsetBytes: number,
  target: FileHandle,
  targetOffsetBytes: number,
  lengthBytes: number,
  options: OpOptions | undefined,
): Promise<number> {
  for (;;) {
    const pins = await pinBoth(volume, source, offsetBytes, target, targetOffsetBytes, lengthBytes, options);
    try {
      const from = await loadRef(volume, source, op);
      const to = await loadRef(volume, target, op);
      if (!to.tailDoubtful) {
        const range = { start: targetOffsetBytes, end: targetOffsetBytes + lengthBytes };
        const copy = () =>
          shared([from, to], async () => {
            volume.inodes.refresh(from);
            const length = Math.min(lengthBytes, from.sizeBytes - offsetBytes);
            if (length <= 0) return 0;
            const bytes = new Uint8Array(length);
            await volume.inodes.attach(from).read(offsetBytes, bytes, { signal: options?.signal });
            const file = volume.inodes.attach(to);
            await file.write(targetOffsetBytes, bytes, {
              signal: options?.signal,
              onCopied: () => wrote(volume, target, to, targetOffsetBytes + length),
            });
            file.publish();
            if (source.movesAtime) volume.accessTimes.noteRead(from);
            volume.counters.add('fs.copiedBytes', length);
            return length;
          });
        return await changing(volume, to, range, options, copy);
      }
    } finally {
      publishStatus(volume, source.ino);
      publishStatus(volume, target.ino);
      pins.release();
    }
    await atEnd(volume, target, op, options, () => Promise.resolve());
  }
}

const exactly = (item: TokenItem): TokenItem => ({ ...item, desired: item.required });

function pinBoth(
  volume: Volume,
  source: FileHandle,
  offsetBytes: number,
  target: FileHandle,
  targetOffsetBytes: number,
  lengthBytes: number,
  options: OpOptions | undefined,
): Promise<TokenPins> {
  const from = { start: offsetBytes, end: offsetBytes + lengthBytes };
  const to = { start: targetOffsetBytes, end: targetOffsetBytes + lengthBytes };
  const fromItem = volume.inodes.attach(source.inode).dataItem(from, TokenMode.shared);
  const toItem = volume.inodes.attach(target.inode).dataItem(to, TokenMode.exclusive);
  if (source.ino !== target.ino)
    return volume.pin(
      [
        // They may be neighbours, wanted in two modes.
        exactly(volume.inodes.statusItem(source.ino, TokenMode.shared)),
        exactly(volume.inodes.statusItem(target.ino, TokenMode.exclusive)),
        fromItem,
        toItem,
      ],
      options,
    );
  const status = volume.inodes.statusItem(target.ino, TokenMode.exclusive);
  // Parts of one request are disjoint. They may share a sector at their edges: then all of it is wanted exclusively.
  const [first, second] = from.start < to.start ? [fromItem, toItem] : [toItem, fromItem];
  if (first.required.end <= second.required.start)
    return volume.pin([status, exactly(first), exactly(second)], options);
  const whole = { start: first.required.start, end: second.required.end };
  return volume.pin([status, { ...toItem, required: whole, desired: whole }], options);
}

/** Shares `contents` of both, in one order for everybody: an owner who waits in between must not close a circle. */
async function shared<T>(inodes: readonly [Inode, Inode], body: () => Promise<T>): Promise<T> {
  const all = [...new Set(inodes)].sort((a, b) => a.ino - b.ino);
  const held: Inode[] = [];
  try {
    for (const inode of all) {
      await inode.contents.share();
      held.push(inode);
    }
    return await body();
  } finally {
    for (const inode of held) inode.contents.unshare();
  }
}
