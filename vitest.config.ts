import { defineConfig } from 'vitest/config';

/** One project per suite, so that each has its own budget and the closing line can tell if one of them ran nothing. */
export default defineConfig({
  test: {
    pool: 'forks',
    include: ['src/**/*.test.ts', 'native/*/test/**/*.test.ts'],
    // These need devices: docs/hw-test.md.
    exclude: ['**/node_modules/**', '**/dist/**', '**/*.hw.test.ts'],
    // For what hangs; a machine busy with other things takes its time.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // As long as `eventually`: what is awaited has no deadline of its own.
    expect: { poll: { timeout: 60_000 } },
    maxWorkers: 2,
  },
});
