/**
 * Reads, writes and truncation of an open regular file, on the engine: what hits can't do.
 *
 * Every operation holds status and data tokens pinned from its look at the size to its end; writes share `contents`, appends and
 * truncations own it. Nothing waits for a file's token while it owns `contents` (a write may wait there for an allocation region, whose
 * holders wait for nobody).
 */
import type { CachedFile } from '../cache/page-cache-api.js';
import { type ByteRange, WHOLE } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { RANGE_END, SECTOR_BYTES } from '../common/units.js';
import { TokenClass, TokenMode, type TokenPins } from '../token-manager/token.js';
import { noteCut } from './being-cut.js';
import { cutSpace, isCutInSteps, reserve } from './file-space.js';
import type { Credentials, OpOptions } from './file-system-api.js';
import { clearTail } from './file-tail.js';
import { FILE_BYTES_MAX } from './indirect-format.js';
import type { Inode } from './inode.js';
import { AREA_BYTES, InodeFlag } from './inode-format.js';
import { holdBack } from './inode-image.js';
import { segmentOf } from './layout.js';
import { strippedByWrite } from './permissions.js';
import { type InodeRef, loadRef } from './pinning.js';
import { publishStatus, withSettledState } from './publishing.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

/** The open file's inode object: it is kept in the table as long as the handle is. */
export interface FileHandle extends InodeRef {
  readonly inode: Inode;
  readonly credentials: Credentials;
  /** Its reads move atime: not with O_NOATIME. */
  readonly movesAtime: boolean;
}

export const named = (handle: FileHandle): string => `inode ${handle.ino}`;

export async function pinFile(
  volume: Volume,
  handle: FileHandle,
  status: TokenMode,
  data: ByteRange | null,
  mode: TokenMode,
  options: OpOptions | undefined,
): Promise<TokenPins> {
  const items = [volume.inodes.statusItem(handle.ino, status)];
  if (data !== null) items.push(volume.inodes.attach(handle.inode).dataItem(data, mode));
  return volume.pin(items, options);
}

export function readFile(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  target: Uint8Array,
  options: OpOptions | undefined,
): Promise<number> {
  return readInto(volume, handle, offsetBytes, target.length, options, (file, length) =>
    file.read(offsetBytes, target.subarray(0, length), { signal: options?.signal }),
  );
}

/** A read without the copy. */
export function bringFile(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  lengthBytes: number,
  options: OpOptions | undefined,
): Promise<number> {
  return readInto(volume, handle, offsetBytes, lengthBytes, options, (file, length) =>
    file.bring(offsetBytes, length, { signal: options?.signal }),
  );
}

export type ReadPages = (file: CachedFile, lengthBytes: number) => Promise<void>;

async function readInto(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  lengthBytes: number,
  options: OpOptions | undefined,
  read: ReadPages,
): Promise<number> {
  for (;;) {
    const done = await readOnce(volume, handle, offsetBytes, lengthBytes, options, read);
    if (done !== null) return done;
  }
}

/** Null: it ends behind what this node knows of the file, and must begin anew for the rest of it. */
async function readOnce(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number,
  lengthBytes: number,
  options: OpOptions | undefined,
  read: ReadPages,
): Promise<number | null> {
  checkOffset('read', handle, offsetBytes);
  if (lengthBytes === 0 || offsetBytes >= RANGE_END) return 0;
  const wanted = { start: offsetBytes, end: Math.min(RANGE_END, offsetBytes + lengthBytes) };
  // Who writes to it beside others knows a part of the file, and shares that for reading without asking anybody for the rest.
  const known = volume.inodes.get(handle.ino);
  if (known?.concurrent) volume.inodes.refresh(known);
  const isKnown = known?.concurrent === true && wanted.end <= known.sizeBytes;
  const status = isKnown ? TokenMode.concurrentWrite : TokenMode.shared;
  const pins = await pinFile(volume, handle, status, wanted, TokenMode.shared, options);
  try {
    const inode = await loadRef(volume, handle, 'read');
    if (inode.concurrent) {
      volume.inodes.refresh(inode);
      if (wanted.end > inode.sizeBytes) return null;
    }
    return await readPages(volume, handle, inode, offsetBytes, lengthBytes, read);
  } finally {
    pins.release();
  }
}

/** Tokens are held until it ends. */
export async function readPages(
  volume: Volume,
  handle: FileHandle,
  inode: Inode,
  offsetBytes: number,
  lengthBytes: number,
  read: ReadPages,
): Promise<number> {
  await inode.contents.share();
  try {
    for (;;) {
      const length = lengthNow(volume, inode, offsetBytes, lengthBytes);
      if (length <= 0) return 0;
      const file = volume.inodes.attach(inode);
      await read(file, length);
      file.publish();
      publishStatus(volume, handle.ino);
      // A hit that wrote across the end meanwhile may be half in what was read: then the old end is no longer right.
      if (lengthNow(volume, inode, offsetBytes, lengthBytes) !== length) continue;
      if (handle.movesAtime) volume.accessTimes.noteRead(inode);
      return length;
    }
  } finally {
    inode.contents.unshare();
  }
}

/** What of a read of `wanted` bytes there is, with what hits have written taken in. Only grows while `contents` is shared. */
function lengthNow(volume: Volume, inode: Inode, offsetBytes: number, wanted: number): number {
  volume.inodes.refresh(inode);
  return Math.min(wanted, inode.sizeBytes - offsetBytes);
}

export async function writeFile(
  volume: Volume,
  handle: FileHandle,
  offsetBytes: number | null,
  source: Uint8Array,
  options: OpOptions | undefined,
): Promise<{ offsetBytes: number; lengthBytes: number }> {
  if (offsetBytes === null) return appendFile(volume, handle, source, options);
  checkOffset('write', handle, offsetBytes);
  const end = offsetBytes + source.length;
  if (end > FILE_BYTES_MAX) throw new FsError('fileTooBig', { op: 'write', object: named(handle) });
  if (source.length === 0) return { offsetBytes, lengthBytes: 0 };
  await besideOthers(volume, handle, { start: offsetBytes, end }, options, async (inode) => {
    await inode.contents.share();
    try {
      await copyIn(volume, handle, inode, offsetBytes, source, options);
    } finally {
      inode.contents.unshare();
    }
  });
  return { offsetBytes, lengthBytes: source.length };
}

/**
 * Status and the range exclusively pinned, and the bytes behind the end of file known to be zeros. Where they are in doubt that takes the data
 * token from the end on, which may lie before the range: so the tokens go, the tail is made certain, and it begins anew (T4).
 */
export async function onCertainTail(
  volume: Volume,
  handle: FileHandle,
  range: ByteRange,
  op: string,
  options: OpOptions | undefined,
  body: (inode: Inode) => Promise<void>,
): Promise<void> {
  for (;;) {
    const pins = await pinFile(volume, handle, TokenMode.exclusive, range, TokenMode.exclusive, options);
    try {
      const inode = await loadRef(volume, handle, op);
      if (!inode.tailDoubtful) return await changing(volume, inode, range, options, () => body(inode));
    } finally {
      publishStatus(volume, handle.ino);
      pins.release();
    }
    await atEnd(volume, handle, op, options, () => Promise.resolve());
  }
}

/**
 * A write within a file: with exclusive status when nobody else writes to it, else sharing it, if the write needs nothing that only an exclusive holder
 * may do (concurrent-writing.ts). If it does, it is done exclusively, and prepares for those that follow it.
 */
async function besideOthers(
  volume: Volume,
  handle: FileHandle,
  range: ByteRange,
  options: OpOptions | undefined,
  body: (inode: Inode) => Promise<void>,
): Promise<void> {
  const { concurrent } = volume.inodes;
  const kept = (): boolean => volume.kernel?.keeps(handle.ino) === true;
  const status = kept() ? TokenMode.exclusive : TokenMode.concurrentWrite;
  const pins = await pinFile(volume, handle, status, range, TokenMode.exclusive, options);
  try {
    const inode = await loadRef(volume, handle, 'write');
    const keepsMode = strippedByWrite(inode, handle.credentials) === inode.mode;
    if (inode.concurrent) {
      // What a kernel keeps goes by all of the status.
      if (!kept() && keepsMode && (await concurrent.mayWrite(inode, range)) && !kept()) return await body(inode);
    } else if (!inode.tailDoubtful && (status === TokenMode.exclusive || !isComingDown(volume, handle.ino)))
      return await changing(volume, inode, range, options, () => body(inode));
  } finally {
    publishStatus(volume, handle.ino);
    pins.release();
  }
  await onCertainTail(volume, handle, range, 'write', options, async (inode) => {
    await body(inode);
    await concurrent.reserveAhead(inode, range.end);
  });
}

/** With concurrent-write pinned, exclusive status may be on its way to that: what a kernel reads then is not to go by it. */
function isComingDown({ kernel, parts }: Volume, ino: InodeNumber): boolean {
  if (kernel?.watches(ino) !== true) return false;
  return parts.tokens.heldRange(TokenClass.status, segmentOf(ino), ino * SECTOR_BYTES, TokenMode.exclusive) === null;
}

async function appendFile(
  volume: Volume,
  handle: FileHandle,
  source: Uint8Array,
  options: OpOptions | undefined,
): Promise<{ offsetBytes: number; lengthBytes: number }> {
  return atEnd(volume, handle, 'write', options, async (inode, offsetBytes) => {
    if (offsetBytes + source.length > FILE_BYTES_MAX)
      throw new FsError('fileTooBig', { op: 'write', object: named(handle) });
    if (source.length > 0) await copyIn(volume, handle, inode, offsetBytes, source, options);
    return { offsetBytes, lengthBytes: source.length };
  });
}

/**
 * At the end of file, of which this node alone has the tokens meanwhile: the size is known once status is pinned exclusively, then the data token
 * from there on is asked for.
 */
export async function atEnd<T>(
  volume: Volume,
  handle: FileHandle,
  op: string,
  options: OpOptions | undefined,
  body: (inode: Inode, endBytes: number) => Promise<T>,
): Promise<T> {
  for (;;) {
    const done = await atEndOnce(volume, handle, op, options, body);
    if (done !== null) return done.value;
    // Its tail goes in steps; between them others get on.
    await volume.betweenSteps();
  }
}

/** Null: a part of what lies behind the end in doubt is gone; there is more. */
export async function atEndOnce<T>(
  volume: Volume,
  handle: FileHandle,
  op: string,
  options: OpOptions | undefined,
  body: (inode: Inode, endBytes: number) => Promise<T>,
): Promise<{ readonly value: T } | null> {
  const pins = await pinFile(volume, handle, TokenMode.exclusive, null, TokenMode.none, options);
  try {
    for (;;) {
      const inode = await loadRef(volume, handle, op);
      volume.inodes.refresh(inode);
      const sizeThen = inode.sizeBytes;
      const item = volume.inodes.attach(inode).dataItem({ start: sizeThen, end: RANGE_END }, TokenMode.exclusive);
      const dataPins = await volume.pin([item], options);
      try {
        const tail = { start: sizeThen, end: RANGE_END };
        const append = () =>
          inode.contents.runExclusive(async () => {
            inode.settling++;
            try {
              // No hit appends from here on; what hits and other operations of this node wrote meanwhile is counted.
              const endBytes = withSettledState(volume, inode, () => inode.sizeBytes);
              if (endBytes < sizeThen) return 'again';
              if (inode.tailDoubtful && !(await clearTail(volume, inode))) return null;
              return { value: await body(inode, endBytes) };
            } finally {
              inode.settling--;
            }
          });
        const done = await changing(volume, inode, tail, options, append);
        // Again: it was truncated while we waited; the token from the new end on may not be ours.
        if (done !== 'again') return done;
      } finally {
        dataPins.release();
      }
    }
  } finally {
    publishStatus(volume, handle.ino);
    pins.release();
  }
}

/** What a kernel has of the range goes first, and comes back when it has changed. The tokens are pinned, `contents` is free. */
export async function changing<T>(
  volume: Volume,
  inode: Inode,
  range: ByteRange,
  options: OpOptions | undefined,
  body: () => Promise<T>,
): Promise<T> {
  const { kernel } = volume;
  if (kernel === null) return body();
  const { ino } = inode;
  const held = volume.parts.tokens.heldRange(TokenClass.data, ino, range.start, TokenMode.exclusive) ?? range;
  const dropped = kernel.changing(ino, range, held, options?.kernelTruncates === true);
  if (dropped === null) return body();
  const end = await dropped;
  try {
    return await body();
  } finally {
    end();
  }
}

export async function copyIn(
  volume: Volume,
  handle: FileHandle,
  inode: Inode,
  offsetBytes: number,
  source: Uint8Array,
  options: OpOptions | undefined,
): Promise<void> {
  const file = volume.inodes.attach(inode);
  await file.write(offsetBytes, source, {
    signal: options?.signal,
    onCopied: () => wrote(volume, handle, inode, offsetBytes + source.length),
  });
  file.publish();
}

/** In the turn in which bytes up to `endBytes` were written: size, times, setuid bits. */
export function wrote(volume: Volume, handle: FileHandle, inode: Inode, endBytes: number): void {
  volume.inodes.attach(inode).noteWrite(endBytes, volume.now());
  volume.inodes.refresh(inode);
  const mode = strippedByWrite(inode, handle.credentials);
  if (mode === inode.mode) return;
  const transaction = new MetadataTransaction(volume);
  inode.mode = mode;
  transaction.inode(inode);
  transaction.commit();
}

export async function truncateFile(
  volume: Volume,
  handle: FileHandle,
  sizeBytes: number,
  options: OpOptions | undefined,
): Promise<void> {
  checkOffset('truncate', handle, sizeBytes);
  if (sizeBytes > FILE_BYTES_MAX) throw new FsError('fileTooBig', { op: 'truncate', object: named(handle) });
  await onCertainTail(volume, handle, { start: sizeBytes, end: WHOLE.end }, 'truncate', options, (inode) =>
    inode.contents.runExclusive(() => setSize(volume, handle, inode, sizeBytes)),
  );
}

/**
 * Order: hits off, the new size, the pointers behind it, then the pages behind it. Write-behind that meets a page without space finds it behind
 * the end and passes over it; nothing prepares pages for write hits where no space is reserved any more.
 * Pointers that are too many for one transaction go afterwards (in-steps.ts).
 */
export async function setSize(volume: Volume, handle: FileHandle, inode: Inode, sizeBytes: number): Promise<void> {
  inode.settling++;
  try {
    const before = withSettledState(volume, inode, () => inode.sizeBytes);
    holdBack(volume, inode);
    // A hole at the end of an inline file is kept in the inode as zeros, as long as there is room.
    if (inode.isInline && sizeBytes > AREA_BYTES) {
      if (before === 0) inode.flags &= ~InodeFlag.inline;
      else await reserve(volume, inode, { start: 0, end: AREA_BYTES + 1 });
    }
    const sectorEnd = Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
    const tail = { start: sizeBytes, end: Math.min(before, sectorEnd) };
    // Whoever can't read the last sector can't make zeros of its rest: better now than when the size has changed.
    if (tail.start < tail.end) await volume.inodes.attach(inode).withBytes(tail, 'shared', () => undefined);
    const keeps = (inode.flags & InodeFlag.keepsSpace) !== 0;
    const cuts = sizeBytes < before || (sizeBytes === before && keeps);
    const inSteps = cuts && (await isCutInSteps(volume, inode, sizeBytes));
    const transaction = new MetadataTransaction(volume);
    inode.sizeBytes = sizeBytes;
    if (cuts) inode.flags &= ~InodeFlag.keepsSpace;
    if (inSteps) noteCut(inode, transaction);
    if (inode.isInline) inode.area = inlineArea(inode.area, sizeBytes);
    inode.mtimeNs = transaction.nowNs;
    inode.ctimeNs = transaction.nowNs;
    inode.mode = strippedByWrite(inode, handle.credentials);
    transaction.inode(inode);
    transaction.commit();
    if (!cuts) return;
    if (inSteps) void volume.orphans.take(inode);
    else while (!(await cutSpace(volume, inode, sizeBytes))) await volume.inodes.expose([inode]);
    const file = volume.inodes.attach(inode);
    await file.discard({ start: sizeBytes, end: WHOLE.end });
    // The rest of the last sector: growing again must show zeros.
    if (tail.start < tail.end) await file.zero(tail);
  } finally {
    inode.settling--;
  }
}

/** Shorter, or longer by zeros: as many bytes as the size says, whoever logs it next. */
function inlineArea(area: Uint8Array, sizeBytes: number): Uint8Array {
  if (area.length >= sizeBytes) return area.slice(0, sizeBytes);
  const longer = new Uint8Array(sizeBytes);
  longer.set(area);
  return longer;
}

function checkOffset(op: string, handle: FileHandle, offsetBytes: number): void {
  if (Number.isSafeInteger(offsetBytes) && offsetBytes >= 0) return;
  const reason = op !== 'read' && offsetBytes > FILE_BYTES_MAX ? 'fileTooBig' : 'invalidArgument';
  throw new FsError(reason, { op, object: named(handle), detail: `offset ${offsetBytes}` });
}
