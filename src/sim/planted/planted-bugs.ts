import { CACHE_MAP_BUGS } from './cache-map.js';
import { COPY_BUGS } from './copies.js';
import { NOTE_BUGS } from './notes.js';
import type { PlantedBug } from './planted-bug.js';
import { HOLDER_BUGS } from './revocations.js';
import { SPACE_BUGS } from './space.js';
import { STORAGE_BUGS } from './storage.js';
import { TOKEN_STREAM_BUGS } from './token-streams.js';

/**
 * The bugs that the simulator has to find. Each breaks one rule, in every node, at a seam of the world; which check notices is the
 * check's affair.
 */
export const PLANTED_BUGS: readonly PlantedBug[] = [
  ...HOLDER_BUGS,
  ...TOKEN_STREAM_BUGS,
  ...NOTE_BUGS,
  ...CACHE_MAP_BUGS,
  ...STORAGE_BUGS,
  ...SPACE_BUGS,
  ...COPY_BUGS,
];
