import { defineConfig } from 'vitest/config';

/** The hardware tests: one file after the other, emulation is slow and the devices are shared. */
export default defineConfig({
  root: new URL('..', import.meta.url).pathname,
  test: {
    pool: 'forks',
    include: ['hw-test/**/*.hw.test.ts', 'src/**/*.hw.test.ts', 'native/*/test/**/*.hw.test.ts'],
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    expect: { poll: { timeout: 60_000 } },
  },
});
