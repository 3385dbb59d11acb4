import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Etcd3 } from 'etcd3';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { deferred } from '../common/deferred.js';
import { EtcdStore } from './etcd-store.js';
import { freePorts, type PrivateEtcd, startPrivateEtcd } from './private-etcd.js';
import { storeConformance } from './testing/store-conformance.js';

const pause = (durationMs: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, durationMs));

function scratch(): { dir: string; start: (clientPort?: number) => Promise<PrivateEtcd>; remove: () => void } {
  const dir = mkdtempSync(path.join(tmpdir(), 'holdfast-etcd-'));
  mkdirSync(path.join(dir, 'data'), { mode: 0o700 });
  return {
    dir,
    start: (clientPort) =>
      startPrivateEtcd({
        dataDir: path.join(dir, 'data'),
        logFile: path.join(dir, 'etcd.log'),
        ...(clientPort === undefined ? {} : { clientPort }),
      }),
    remove: () => rmSync(dir, { recursive: true, force: true }),
  };
}

async function stop(etcd: PrivateEtcd | undefined): Promise<void> {
  if (etcd === undefined || etcd.process.exitCode !== null || etcd.process.signalCode !== null) return;
  const ended = deferred<void>();
  etcd.process.once('exit', () => ended.resolve());
  etcd.process.kill('SIGKILL');
  await ended.promise;
}

storeConformance('EtcdStore', async () => {
  const place = scratch();
  const etcd = await place.start();
  const admin = new Etcd3({ hosts: etcd.endpoint });
  return {
    connect: (namespace) => new EtcdStore({ endpoints: [etcd.endpoint], clusterName: namespace }),
    run: (promise) => promise,
    pass: pause,
    compact: async () => {
      const { header } = await admin.kv.range({ key: Buffer.from('x') });
      await admin.kv.compact({ revision: header.revision, physical: true });
    },
    stop: async () => {
      admin.close();
      await stop(etcd);
      place.remove();
    },
  };
});

/** What the threads of a process are at, each state once (proc(5)). */
const threadStates = (pid: number): string[] => {
  const states = readdirSync(`/proc/${pid}/task`).map((task) => {
    const stat = readFileSync(`/proc/${pid}/task/${task}/stat`, 'utf8');
    return stat[stat.lastIndexOf(')') + 2]!;
  });
  return [...new Set(states)];
};

describe('EtcdStore when etcd fails', () => {
  const place = scratch();
  let etcd: PrivateEtcd;
  let port: number;
  beforeAll(async () => {
    port = (await freePorts(1))[0]!;
    etcd = await place.start(port);
  });
  afterAll(async () => {
    await stop(etcd);
    place.remove();
  });
  const open = (): EtcdStore =>
    new EtcdStore({ endpoints: [`http://127.0.0.1:${port}`], clusterName: 'faults', callDeadlineMs: 500 });

  test('a hung etcd costs a call its deadline, and a lease is lost in time', async () => {
    const store = open();
    await store.put('k', 'v');
    const lease = await store.grantLease(60_000);
    etcd.process.kill('SIGSTOP');
    // The signal is sent; threads that run stop a moment later, and may answer until then.
    await expect.poll(() => threadStates(etcd.process.pid!)).toEqual(['T']);
    try {
      const started = performance.now();
      const outcomes = await Promise.allSettled([store.get('k'), store.put('k', 'w'), lease.renew()]);
      expect(performance.now() - started).toBeLessThan(3000);
      for (const outcome of outcomes) expect(outcome).toMatchObject({ status: 'rejected', reason: { retry: 'same' } });
    } finally {
      etcd.process.kill('SIGCONT');
    }
    await expect.poll(() => store.get('k').catch(() => null)).not.toBeNull();
    await store.close();
  });

  test('a watch goes on where it stopped when etcd was killed and came back', async () => {
    const store = open();
    const seen: string[] = [];
    const watch = store.watch(
      'w',
      await store.put('w', '0'),
      (change) => seen.push(change.value),
      () => undefined,
    );
    await store.put('w', '1');
    await expect.poll(() => seen).toEqual(['1']);
    await stop(etcd);
    await expect(store.get('w')).rejects.toMatchObject({ code: expect.stringMatching(/EHOSTUNREACH|ETIMEDOUT/) });
    etcd = await place.start(port);
    await expect.poll(() => store.put('w', '2').catch(() => null)).not.toBeNull();
    await expect.poll(() => seen).toEqual(['1', '2']);
    watch.close();
    await store.close();
  });
});
