/**
 * Names in a leaf that doesn't verify. An entry's hash is one of its name under the directory's seed, so it tells whether the bytes are still those of an
 * entry; where one ends and the next begins is looked for byte by byte.
 */
import { type InodeNumber, inodeNumber } from '../../common/ids.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { FileType } from '../file-system-api.js';
import { entryAt, entryBytes, hashName, LEAF_ENTRIES_AT, type NamedEntry } from '../leaf-format.js';
import { getU32, getU64 } from '../sector.js';

const ENTRY_HEADER_BYTES = entryBytes(0);

export function salvageEntries(
  leaf: Uint8Array,
  seed: number,
  isThere: (entry: { ino: InodeNumber; generation: number; type: FileType }) => boolean,
): NamedEntry[] {
  const found: NamedEntry[] = [];
  const names = new Set<string>();
  for (let at = LEAF_ENTRIES_AT; at + ENTRY_HEADER_BYTES < SECTOR_BYTES; ) {
    const entry = entryHere(leaf, at, seed);
    const key = entry === null ? '' : Buffer.from(entry.name).toString('latin1');
    if (entry === null || names.has(key) || !isThere(entry)) {
      at++;
      continue;
    }
    names.add(key);
    found.push(entry);
    at += entryBytes(entry.name.length);
  }
  return found;
}

function entryHere(leaf: Uint8Array, at: number, seed: number): NamedEntry | null {
  const type = leaf[at + 16]!;
  const length = leaf[at + 17]!;
  if (type === 0 || type > FileType.socket || length === 0 || at + ENTRY_HEADER_BYTES + length > leaf.length)
    return null;
  const ino = inodeNumber(getU64(leaf, at + 4));
  if (Number.isNaN(ino)) return null;
  const name = leaf.slice(at + ENTRY_HEADER_BYTES, at + ENTRY_HEADER_BYTES + length);
  const hash = getU32(leaf, at);
  return hash === hashName(name, seed) ? { ...entryAt(leaf, at), hash, name } : null;
}
