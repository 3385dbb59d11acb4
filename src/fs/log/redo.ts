/**
 * Redo: what recovery makes of the records about one sector (L2, L3). Pure.
 *
 * A record names the version that the sector had, or was on its way to, when the record was made; a write in place raises it. So a sector
 * that is at version v on its NSD has in it every record made on less than v, and none made on v or more; records of several
 * nodes' logs are in the order of those versions, because the next holder of the sector's token goes on from what it read. The first
 * record after each write in place is a full image: from it a sector is made anew that was torn by that very write.
 * Redone, the sector is at the version after its last record's, whatever it was found at: doing it again changes nothing, and a redo that is torn in its
 * turn looks like a write in place that was.
 */
import { invariant } from '../../common/assert.js';
import { isVersionBefore, nextSectorVersion } from '../../common/sector-version.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { applyRecord, type SectorRecord } from './log-records.js';

/** As it is on its NSD. */
export interface PresentSector {
  readonly version: number;
  /** Null: it can't be read, its bytes don't have the checksum that is kept for them. NOT_READ: nothing depends on them. */
  readonly bytes: Uint8Array | null;
}
export const NOT_READ = new Uint8Array(0);

/**
 * Whether a sector at this version is made anew from a record that has all of it: then what it has now, and whether it can be read, changes nothing. (Of one
 * at the version that redo gives it only its bytes tell whether it was torn.)
 */
export const isMadeAnew = (records: readonly SectorRecord[], version: number): boolean =>
  records.some(({ full, base }) => full && !isVersionBefore(base, version));

export type Redone =
  | { readonly kind: 'current' }
  /** Not sealed yet, unless raw. */
  | { readonly kind: 'write'; readonly image: Uint8Array; readonly version: number; readonly raw: boolean }
  /** The log doesn't fit to what is there, and is not applied; a check of the file system says what that means. */
  | { readonly kind: 'unfit'; readonly why: string };

/** `records`: of all logs, one behind the other; of one log in its order. `into`: where the image is made. */
export function redoSector(
  records: readonly SectorRecord[],
  present: PresentSector,
  into: Uint8Array = new Uint8Array(SECTOR_BYTES),
): Redone {
  const ordered = inOrder(records);
  const last = ordered.at(-1);
  if (last === undefined) return { kind: 'current' };
  const { bytes, version } = present;
  if (bytes === null && isVersionBefore(nextSectorVersion(last.base), version)) return { kind: 'current' };
  const live = bytes === null ? ordered : ordered.filter(({ base }) => !isVersionBefore(base, version));
  if (live.length === 0) return { kind: 'current' };
  const from = live.findLastIndex(({ full }) => full);
  const first = live[0]!;
  if (from < 0 && (bytes === null || first.base !== version)) {
    const why =
      bytes === null
        ? 'it is unreadable, and no record has all of it'
        : `it is at version ${version}, the first record was made on ${first.base}`;
    return { kind: 'unfit', why };
  }
  if (from < 0) {
    invariant(bytes !== null && bytes.length === SECTOR_BYTES, 'a sector that is patched was read');
    into.set(bytes);
  } else into.fill(0);
  for (let at = Math.max(from, 0); at < live.length; at++) applyRecord(into, live[at]!);
  // The version of the very write in place that may have torn it: a redo that is itself torn leaves what the next one makes good in the same way.
  return { kind: 'write', image: into, version: nextSectorVersion(last.base), raw: last.raw };
}

/** By the versions that they were made on; as a rule they are. */
function inOrder(records: readonly SectorRecord[]): readonly SectorRecord[] {
  for (let at = 1; at < records.length; at++)
    if (isVersionBefore(records[at]!.base, records[at - 1]!.base))
      return [...records].sort((a, b) => +isVersionBefore(b.base, a.base) - +isVersionBefore(a.base, b.base));
  return records;
}

/**
 * The same of a sector of which there may be two copies (I11): what comes of the one that has come furthest is what every copy is to be. `all`: no copy is
 * missing here that is to be written; what is written goes to all of them.
 */
export function redoCopies(
  records: readonly SectorRecord[],
  copies: readonly PresentSector[],
  all: boolean,
  into: Uint8Array = new Uint8Array(SECTOR_BYTES),
): Redone {
  if (all && copies.length === 1) return redoSector(records, copies[0]!, into);
  const [best, ...others] = [...copies].sort(
    (a, b) =>
      +(a.bytes === null) - +(b.bytes === null) ||
      +isVersionBefore(a.version, b.version) - +isVersionBefore(b.version, a.version),
  );
  invariant(best !== undefined, 'there is a copy to redo');
  let result = redoSector(records, best, into);
  for (const other of others) if (result.kind === 'unfit') result = redoSector(records, other, into);
  if (result.kind === 'unfit') return result;
  const uneven = !all || others.some(({ bytes, version }) => bytes === null || version !== best.version);
  if (result.kind === 'current' && (!uneven || best.bytes === null)) return result;
  let { version, image } = result.kind === 'write' ? result : { version: best.version, image: best.bytes! };
  for (const other of copies) if (isVersionBefore(version, other.version)) version = nextSectorVersion(other.version);
  if (version === 0) return { kind: 'current' };
  return { kind: 'write', image, version, raw: result.kind === 'write' ? result.raw : (records[0]?.raw ?? false) };
}
