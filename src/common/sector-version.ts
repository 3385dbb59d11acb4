/**
 * Versions of sectors (S1, L2): counted up by every write, 1 to SECTOR_VERSION_MAX and then 1 again, so they are compared as serial
 * numbers (RFC 1982's idea): of two, the later one is the one less than half the circle ahead. 0: never written, before all.
 *
 * What a redo is to do with a record's version r and the sector's present version p: skip it when r is before p (another write has
 * come since), or when the sector is a hole of version r or later; otherwise write the record's full image with version r. That
 * includes r = p: the write may have been torn, and the same write twice is harmless.
 */
export const SECTOR_VERSION_MAX = 2 ** 31 - 2;

export const isSectorVersion = (version: number): boolean =>
  Number.isInteger(version) && version >= 1 && version <= SECTOR_VERSION_MAX;

/** The version of the write after the one of `version`. */
export const nextSectorVersion = (version: number): number => (version >= SECTOR_VERSION_MAX ? 1 : version + 1);

/** Whether `version` is of an earlier write than `other` is. */
export function isVersionBefore(version: number, other: number): boolean {
  if (version === other || other === 0) return false;
  if (version === 0) return true;
  const ahead = (other - version + SECTOR_VERSION_MAX) % SECTOR_VERSION_MAX;
  return ahead < SECTOR_VERSION_MAX / 2;
}
