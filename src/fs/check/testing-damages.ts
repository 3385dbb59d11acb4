/** What any structure on disk may have come to: each by itself, to be planted in the sector that it is in. */
import { setI64, setU32 } from '../sector.js';
import type { DamagedVolume, Place } from './testing-damage.js';

export type Damage = (v: DamagedVolume, place: Place) => void;

export const UNREADABLE = 'bytes without their checksum';
/** All but the first and the last under a checksum that fits. */
export const DAMAGES: Record<string, Damage> = {
  'flipped bits': (v, place) => v.flip(place, 1000, 5),
  'a wrong magic': (v, place) => v.edit(place, (bytes) => setU32(bytes, 0, 0x41414141)),
  "another file system's UUID": (v, place) => v.edit(place, (bytes) => setI64(bytes, 8, 99n)),
  "another's place": (v, place) => v.edit(place, (bytes) => setU32(bytes, 24, 12_345)),
  [UNREADABLE]: (v, place) => v.rot(place),
};
/** Where the generation says that a structure is of an earlier life. */
export const OLD_GENERATION: Damage = (v, place) => v.edit(place, (bytes) => setU32(bytes, 32, 0));
