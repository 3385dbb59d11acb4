import { inodeNumber } from '../common/ids.js';
import type { DirectoryEntry, FileType } from '../fs/file-system-api.js';
import { ByteReader, ByteWriter } from '../protocol/codec.js';

/**
 * Directory entries as a payload: u8 type, u64 inode, u32 length and bytes of the name, one after the other. A tenth of the
 * JSON, and a page of a large directory stays within a frame.
 */
const PAGE_BYTES_MAX = 1 << 20;
const NAME_BYTES_MAX = 4096;

/** @returns the payload of entries from `from` on, and the index of the first one that no longer fits. */
export function packEntries(entries: readonly DirectoryEntry[], from: number): { payload: Uint8Array; next: number } {
  const writer = new ByteWriter(Math.min(PAGE_BYTES_MAX, 64 + (entries.length - from) * 40));
  let next = from;
  while (next < entries.length && writer.lengthBytes < PAGE_BYTES_MAX) {
    const entry = entries[next++]!;
    writer.u8(entry.type).u64(entry.ino).string(entry.name);
  }
  return { payload: writer.finish().slice(), next };
}

/** @throws {FsError} badFrame */
export function unpackEntries(payload: Uint8Array): DirectoryEntry[] {
  const reader = new ByteReader(payload, 'directory entries');
  const entries: DirectoryEntry[] = [];
  while (reader.remainingBytes > 0) {
    const type = reader.u8() as FileType;
    const ino = inodeNumber(reader.u64());
    entries.push({ name: reader.string(NAME_BYTES_MAX), ino, type });
  }
  return entries;
}
