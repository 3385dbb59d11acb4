/**
 * Every counter of the page cache, and what it counts. Hits of application threads are counted in the cache map (`stats`), not
 * here. The daemon shows these texts beside the numbers.
 */
export const PAGE_CACHE_COUNTERS = {
  'cache.readHits': 'reads that came to the engine and found everything cached',
  'cache.readMisses': 'reads that had to wait for something (pieces of long reads count each)',
  'cache.readBytes': 'bytes copied out by the engine',
  'cache.writes': 'writes through the engine',
  'cache.writeBytes': 'bytes copied in by the engine',
  'cache.missedPages': 'pages that an operation wanted and that were not there',
  'cache.fills': 'reads of the backing store, those of read-ahead among them',
  'cache.fillBytes': 'bytes of these',
  'cache.partialsGivenUp': 'writes to a part of a sector that were lost, as its other bytes are damaged',
  'cache.fillsBesideDamage':
    'fills that were done again without what lies beside the sectors that are needed, as one of them is damaged',
  'cache.readAheadPages': 'pages fetched before anybody asked for them',
  'cache.readAheadWastedPages': 'of these, pages that went without having been used',
  'cache.readAheadTokens': 'tokens asked for by read-ahead',
  'cache.preparedPages': 'empty pages made ready for write hits',
  'cache.writeBehinds': 'writes to the backing store, those of flushes and revokes among them',
  'cache.writeBehindBytes': 'bytes of these',
  'cache.writeBehindErrors': 'groups of pages that could not be written in the background',
  'cache.evictions': 'pages that made room for others',
  'cache.entriesRefused': 'files that got no entry in the cache map, and work without hits',
  'cache.revokes': 'data tokens taken back, in part or whole',
  'cache.revokeFlushes': 'of these, rounds that found dirty pages',
  'cache.revokeFlushBytes': 'bytes written while a revoke waited for its dirty pages',
} as const satisfies Record<`cache.${string}`, string>;

/** The node's counters, as the page cache uses them: by these names only. */
export interface PageCacheCounters {
  add(name: keyof typeof PAGE_CACHE_COUNTERS, by?: number): void;
}
