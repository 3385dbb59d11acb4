import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { type Child, startChild } from './testing/child.js';
import type { LibraryProgramArguments } from './testing/library-program.js';
import { type LocalCluster, startLocalCluster } from './testing/local-cluster.js';

const full = process.env.HOLDFAST_TEST_FULL === '1';
const computeMs = full ? 60_000 : 10_000;
const files = full ? 600 : 100;
const fileBytes = 20_000;

let cluster: LocalCluster | null = null;
let child: Child | null = null;
afterEach(async () => {
  await child?.kill();
  await cluster?.close();
  child = null;
  cluster = null;
});

test(`a program that computes for ${computeMs / 1000} s without yielding holds up nobody who reads what it has dirty`, {
  timeout: computeMs + 120_000,
}, async () => {
  cluster = await startLocalCluster();
  const stop = path.join(cluster.directory, 'stop');
  const args: LibraryProgramArguments = {
    config: {
      cluster: { etcd: [cluster.etcd], name: cluster.clusterName, keyFile: cluster.keyFile },
      fileSystem: 'test',
      pagePoolBytes: 64 << 20,
    },
    directory: '/theirs',
    files,
    fileBytes,
    computeUntil: stop,
  };
  child = startChild('daemon/testing/library-program', [JSON.stringify(args)]);
  const { dirtyPages } = await child.message<{ kind: string; dirtyPages: number }>('written');
  expect(dirtyPages).toBeGreaterThanOrEqual(files);

  const client = cluster.client(1);
  const begun = performance.now();
  let served = 0;
  const target = Buffer.alloc(fileBytes);
  for (let i = 0; i < files; i++) {
    // Each file's first read conflicts with the exclusive token that the program has; they are spread over the time.
    const dueMs = begun + (i * computeMs) / files;
    if (dueMs > performance.now()) await new Promise((resolve) => setTimeout(resolve, dueMs - performance.now()));
    const handle = await client.open(`/theirs/${i}`, 'r');
    expect((await handle.read(target, 0, fileBytes, 0)).bytesRead).toBe(fileBytes);
    expect(target.equals(Buffer.alloc(fileBytes, i + 1))).toBe(true);
    await handle.close();
    served++;
  }
  // All of it while the program computed: it has not come to the end of it, and can't before the file is there.
  expect(child.has('computed')).toBe(false);
  await writeFile(stop, '');
  const { timerFired } = await child.message<{ kind: string; timerFired: boolean }>('computed');
  expect(timerFired).toBe(false);
  expect(served).toBe(files);
  await child.message('closed');
  expect(await child.exited).toBe(0);
  expect(cluster.engines[1]!.counters()['tokens.client.refusedDeadline'] ?? 0).toBe(0);
});
