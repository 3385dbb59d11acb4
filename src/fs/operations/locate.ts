/** Where a file's bytes are: which NSD, served by which node. Of the moment it was asked. */
import { FsError } from '../../common/errors.js';
import { BLOCK_BYTES, SUB_BLOCK_BYTES } from '../../common/units.js';
import { TokenMode } from '../../token-manager/token.js';
import { findPointer } from '../block-map.js';
import { dataFrom, holeFrom } from '../file-seek.js';
import { type Credentials, FileType, type Located, type LocatedRange, type OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { checkAccess, READ } from '../permissions.js';
import { type InodeRef, loadRef, pinInodes } from '../pinning.js';
import type { Volume } from '../volume.js';

const op = 'locate';
/** Of one answer; the next call goes on where it ends. */
const RANGES_MAX = 1024;

export async function locateInode(
  volume: Volume,
  ref: InodeRef,
  range: { readonly offsetBytes: number; readonly lengthBytes: number },
  path: string,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<Located> {
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.shared }], options);
  try {
    const inode = await loadRef(volume, ref, op);
    if (inode.type !== FileType.regular)
      throw new FsError(inode.isDirectory ? 'isDirectory' : 'invalidArgument', { op, object: path });
    checkAccess(inode, credentials, READ, op, path);
    return await inode.structure.run(async () => {
      volume.inodes.refresh(inode);
      const end = Math.min(inode.sizeBytes, range.offsetBytes + range.lengthBytes);
      const ranges: LocatedRange[] = [];
      for (let at = range.offsetBytes; at < end; ) {
        if (ranges.length >= RANGES_MAX) return { ranges, nextBytes: at };
        const found = await rangeAt(volume, inode, at, end);
        ranges.push(found);
        at += found.lengthBytes;
      }
      return { ranges, nextBytes: null };
    });
  } finally {
    pins.release();
  }
}

/** What begins at an offset, cut where its block ends; a hole where data begins again. */
async function rangeAt(volume: Volume, inode: Inode, offsetBytes: number, end: number): Promise<LocatedRange> {
  const none = { offsetBytes, nsd: null, nsdUuid: null, node: null, sector: null };
  if (inode.isInline) return { ...none, kind: 'inline', lengthBytes: end - offsetBytes };
  const data = await dataFrom(volume, inode, offsetBytes);
  if (data > offsetBytes) return { ...none, kind: 'hole', lengthBytes: Math.min(data, end) - offsetBytes };
  const block = Math.floor(offsetBytes / BLOCK_BYTES);
  const until = Math.min(end, (block + 1) * BLOCK_BYTES, await holeFrom(volume, inode, offsetBytes));
  const pointer = findPointer(inode, block)!;
  const { uuid } = volume.superblock.nsds[pointer.nsd]!;
  const server = volume.parts.servers(uuid);
  return {
    kind: 'data',
    offsetBytes,
    lengthBytes: until - offsetBytes,
    nsd: server?.name ?? null,
    nsdUuid: uuid,
    node: server?.node ?? null,
    sector: pointer.sector + Math.floor((offsetBytes - block * BLOCK_BYTES) / SUB_BLOCK_BYTES),
  };
}
