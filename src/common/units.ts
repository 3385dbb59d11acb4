/** The unit of checksums and of token rounding. */
export const SECTOR_BYTES = 4096;
/** The unit of the page pool and the cache map. */
export const PAGE_BYTES = 16384;
export const SECTORS_PER_PAGE = PAGE_BYTES / SECTOR_BYTES;
/** The unit of striping. */
export const BLOCK_BYTES = 1 << 20;
/** The unit of allocation; the same size as a sector in format 1. */
export const SUB_BLOCK_BYTES = 4096;
export const SUB_BLOCKS_PER_BLOCK = BLOCK_BYTES / SUB_BLOCK_BYTES;
/** First offset that no file reaches: the greatest multiple of a sector below 2^53. Ranges to "end of file" end here. */
export const RANGE_END = 2 ** 53 - SECTOR_BYTES;
