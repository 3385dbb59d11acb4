/**
 * What nodes that wrote one file side by side (concurrent-write status) have told of its size and times, gathered at the token server until somebody has
 * the status exclusively and gives it up again: then all of it is in the inode, in place.
 *
 * Invariant: while there is a note, nobody is granted the sector shared: whoever asks gets it exclusively. Fault model: a note that is told twice,
 * or late after a takeover, changes nothing (see its version).
 */
import type { ByteRange } from '../common/byte-range.js';
import { isVersionBefore } from '../common/sector-version.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { MemberIndex, ObjectKey } from './holder-table.js';
import type { StatusNote } from './token.js';

const NOBODY: MemberIndex = -1;

interface Noted {
  note: StatusNote;
  /** Told just now by this member, whose statement follows: it may be what an exclusive holder did not take in. */
  toldBy: MemberIndex;
}

const latest = (a: bigint, b: bigint): bigint => (a > b ? a : b);

/** Of one sector and one version: the greatest size, the latest times. Of two versions the later counts. */
export function joinNotes(a: StatusNote, b: StatusNote): StatusNote {
  if (a.version !== b.version) return isVersionBefore(a.version, b.version) ? b : a;
  return {
    offsetBytes: a.offsetBytes,
    version: a.version,
    sizeBytes: Math.max(a.sizeBytes, b.sizeBytes),
    mtimeNs: latest(a.mtimeNs, b.mtimeNs),
    ctimeNs: latest(a.ctimeNs, b.ctimeNs),
  };
}

export class StatusNotes {
  readonly #objects = new Map<ObjectKey, Map<number, Noted>>();

  all(): { readonly key: ObjectKey; readonly note: StatusNote }[] {
    return [...this.#objects].flatMap(([key, notes]) => [...notes.values()].map(({ note }) => ({ key, note })));
  }

  told(key: ObjectKey, toldBy: MemberIndex, note: StatusNote): void {
    const notes = this.#objects.get(key) ?? new Map<number, Noted>();
    this.#objects.set(key, notes);
    const known = notes.get(note.offsetBytes);
    notes.set(note.offsetBytes, { note: known === undefined ? note : joinNotes(known.note, note), toldBy });
  }

  in(key: ObjectKey, { start, end }: ByteRange): StatusNote[] {
    const found: StatusNote[] = [];
    for (const [offset, { note }] of this.#objects.get(key) ?? [])
      if (offset < end && start < offset + SECTOR_BYTES) found.push(note);
    return found;
  }

  any(key: ObjectKey, range: ByteRange): boolean {
    return this.#objects.has(key) && this.in(key, range).length > 0;
  }

  /** The range without noted sectors beyond the required one. */
  clip(key: ObjectKey, required: ByteRange, within: ByteRange): ByteRange {
    let { start, end } = within;
    for (const { offsetBytes } of this.in(key, within)) {
      if (offsetBytes + SECTOR_BYTES <= required.start) start = Math.max(start, offsetBytes + SECTOR_BYTES);
      else if (offsetBytes >= required.end) end = Math.min(end, offsetBytes);
    }
    return { start, end };
  }

  /**
   * A member states what it holds of the range at most. Where it gives exclusive status up, the notes are in the inode, but for those that it told
   * just before.
   */
  stated(
    key: ObjectKey,
    member: MemberIndex,
    { start, end }: ByteRange,
    wasExclusive: (offset: number) => boolean,
  ): void {
    const notes = this.#objects.get(key);
    if (notes === undefined) return;
    for (const [offset, noted] of notes) {
      if (offset >= end || offset + SECTOR_BYTES <= start) continue;
      if (noted.toldBy === member) noted.toldBy = NOBODY;
      else if (wasExclusive(offset)) notes.delete(offset);
    }
    if (notes.size === 0) this.#objects.delete(key);
  }

  /** Not ours any more, or not known to be complete: those who told will tell again. */
  dropUnless(stays: (key: ObjectKey) => boolean): void {
    for (const key of this.#objects.keys()) if (!stays(key)) this.#objects.delete(key);
  }
}
