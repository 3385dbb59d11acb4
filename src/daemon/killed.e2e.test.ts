import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { startPrivateEtcd } from '../cluster/private-etcd.js';
import { below, SeededRandom } from '../common/random.js';
import { eventually } from './testing/counting.js';
import { type DaemonProcess, startDaemon } from './testing/daemon-process.js';

const full = process.env.HOLDFAST_TEST_FULL === '1';
const ROUNDS = full ? 200 : 20;

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

/** What was synced and is left alone since. */
type Promised = Map<string, Buffer>;

/** Metadata and data, until the daemon is gone: every error after that is its end. */
async function work(
  client: FileSystemClient,
  round: number,
  random: SeededRandom,
  promised: Promised,
  isOver: () => boolean,
): Promise<void> {
  const dir = `/work/${round % 4}`;
  const names: string[] = [];
  for (let i = 0; !isOver(); i++) {
    const name = `${dir}/${round}-${i}`;
    const any = (): string => names[below(random, names.length)]!;
    try {
      switch (names.length < 4 ? 0 : below(random, 8)) {
        case 0:
        case 1:
        case 2: {
          const bytes = Buffer.alloc(1 + below(random, [200, 9_000, 300_000][below(random, 3)]!), i % 251);
          const file = await client.open(name, 'w+');
          await file.write(bytes, 0, bytes.length, 0);
          if (below(random, 3) === 0) {
            await file.sync();
            promised.set(name, bytes);
          } else names.push(name);
          await file.close();
          break;
        }
        case 3:
          await client.truncate(any(), below(random, 20_000));
          break;
        case 4: {
          const at = below(random, names.length);
          await client.rename(names[at]!, `${name}-r`);
          names[at] = `${name}-r`;
          break;
        }
        case 5:
          await client.link(any(), `${name}-l`);
          names.push(`${name}-l`);
          break;
        case 6:
          await client.unlink(names.splice(below(random, names.length), 1)[0]!);
          break;
        case 7:
          await client.mkdir(`${name}-d`);
          break;
      }
    } catch (error) {
      if (isOver()) return;
      throw error;
    }
  }
}

test(
  `kill -9 at ${ROUNDS} random moments: told dead, redone by a survivor, every synced byte there, and a sound file system in the end`,
  async () => {
    const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-killed-'));
    cleanups.push(() => rm(directory, { recursive: true, force: true }));
    await mkdir(path.join(directory, 'etcd'));
    const etcd = await startPrivateEtcd({
      dataDir: path.join(directory, 'etcd'),
      logFile: path.join(directory, 'log'),
    });
    cleanups.push(async () => {
      const gone = new Promise((resolve) => etcd.process.once('exit', resolve));
      etcd.process.kill('SIGKILL');
      await gone;
    });
    const keyFile = path.join(directory, 'key');
    await writeFile(keyFile, randomBytes(32), { mode: 0o600 });
    const start = async (nodeId: number): Promise<DaemonProcess> => {
      const nsd = nodeId <= 2;
      const daemon = await startDaemon({ directory, etcd: etcd.endpoint, keyFile, leaseTtl: '30s', nodeId, nsd });
      cleanups.push(() => daemon.kill());
      return daemon;
    };
    const one = await start(1);
    const two = await start(2);
    const admin = await one.admin();
    cleanups.push(async () => admin.close());
    await eventually('node 1 sees every NSD', async () => (await admin.call('nsds', {})).length === 2);
    await admin.call('createFileSystem', { name: 'test' });
    const survivor = await one.connect();
    for (const dir of ['/work', '/work/0', '/work/1', '/work/2', '/work/3']) await survivor.mkdir(dir);
    const random = new SeededRandom(20_261_121);
    const promised: Promised = new Map();
    let before = async (): Promise<void> => undefined;
    for (let round = 0; round < ROUNDS; round++) {
      const victim = await start(3);
      // What was under way when its daemon was killed has waited for this one, and ends.
      await before();
      const client = await victim.connect();
      let over = false;
      const working = work(client, round, random.fork(), promised, () => over);
      await new Promise((resolve) => setTimeout(resolve, 30 + below(random, 400)));
      over = true;
      await victim.kill();
      before = async () => {
        await working;
        await client.close();
      };
      expect(await admin.call('expel', { node: 3 })).toMatchObject({ nodeId: 3, done: true });
      for (const [name, bytes] of promised)
        expect((await survivor.readFile(name)).equals(bytes), `${name} after round ${round}`).toBe(true);
      // Not all of them every time.
      if (promised.size > 60) for (const name of [...promised.keys()].slice(0, 40)) promised.delete(name);
    }
    const three = await start(3);
    await before();
    await survivor.close();
    for (const daemon of [three, two, one]) {
      const each = await daemon.admin();
      await each.call('unmount', {});
      each.close();
    }
    const report = await admin.call('checkFileSystem', { name: 'test' });
    expect(report).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
    expect(report.inodes).toBeGreaterThan(ROUNDS);
  },
  full ? 1_800_000 : 240_000,
);
