/** The main job in two guests, each a full node with two NVMe namespaces of its own as NSDs. */
import { expect, test } from 'vitest';
import { hardware, ownNamespaces } from './guest/environment.js';
import { runMainJob } from './guest/main-job.js';

const { guest } = hardware();
const DEADLINE_MS = 480_000;

/** 512 and 4096 bytes per LBA. */
const nsds = () =>
  ownNamespaces(2).map((path, index) => ({ name: `nsd-${guest}-${index + 1}`, path, failureGroup: guest }));

test(
  'over TCP: every file is the same from the other node, cold and hot, and two writers lose no byte',
  async () => {
    const result = await runMainJob('tcp', { nsds: nsds(), fabric: { rdma: 'off' } });
    if (result === null) return;
    expect(result.phases.map(({ name }) => name)).toEqual([
      'import through node 1',
      'SHA-256 from node 2, cold',
      'SHA-256 from node 2, hot',
      'nodes 1 and 2 write one file',
    ]);
    // Half of what is read cold lies on the other guest's namespaces.
    for (const counters of result.counters) expect(counters['nsd.servedReadBytes'] ?? 0).toBeGreaterThan(0);
  },
  DEADLINE_MS,
);
