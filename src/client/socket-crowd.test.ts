import { afterEach, expect, it, vi } from 'vitest';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { connectSocket } from './connect-socket.js';
import { Cutter } from './testing/cutter.js';
import { restartableDaemon, socketRig } from './testing/harness.js';

/** Many calls and many handles of one client: bounds are for what runs, and nobody's call fails for them. */
const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

it('one slow call does not make those that overtake it fail', async () => {
  const rig = await socketRig();
  closers.push(() => rig.close());
  const [entered, released] = [deferred<void>(), deferred<void>()];
  rig.fs.before = (op) => {
    if (op !== 'stat') return;
    entered.resolve();
    return released.promise;
  };
  const slow = rig.client.stat('/');
  await entered.promise;
  for (let i = 0; i < 1500; i++) await rig.client.mkdir(`/d${i}`);
  released.resolve();
  await slow;
  expect(await rig.client.readdir('/')).toHaveLength(1500);
});

it('every handle is opened again after a restart, however many there are', async () => {
  const { fs, path, first, restart } = await restartableDaemon(closers);
  const client = await connectSocket(path);
  closers.push(() => client.close());
  const handles = await Promise.all(Array.from({ length: 700 }, (_, i) => client.open(`/f${i}`, 'w+')));
  await first.close();
  // Each of them takes a moment.
  fs.before = (op) => (op === 'openInode' ? new Promise((resolve) => setImmediate(resolve)) : undefined);
  await restart();
  const written = await Promise.allSettled(handles.map((handle, i) => handle.write(`${i}`, 0)));
  expect(written.filter(({ status }) => status === 'rejected')).toEqual([]);
  await Promise.all(handles.map((handle) => handle.close()));
});

it('a handle that a restarted daemon can not open yet is asked for again', async () => {
  const { fs, path, first, restart } = await restartableDaemon(closers);
  const client = await connectSocket(path);
  closers.push(() => client.close());
  const handle = await client.open('/f', 'w+');
  await first.close();
  let refusals = 3;
  fs.before = (op) => {
    if (op === 'openInode' && refusals-- > 0)
      throw new FsError('nsdUnavailable', { op: 'nsd.read', detail: 'its server has not started yet' });
  };
  await restart();
  expect((await handle.read(Buffer.alloc(1), 0, 1, 0)).bytesRead).toBe(0);
  expect(refusals).toBeLessThan(0);
  await handle.close();
});

it('a client that the daemon does not read from for being busy is not blamed for a frame that takes long', async () => {
  const rig = await socketRig();
  closers.push(() => rig.close());
  // Time goes on by itself, too: whoever waits for a timer must be seen to fail, not to hang.
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'], shouldAdvanceTime: true });
  closers.push(async () => vi.useRealTimers());
  const handle = await rig.client.open('/f', 'w');
  const released = deferred<void>();
  rig.fs.before = (op) => (op === 'write' ? released.promise : undefined);
  const bytes = Buffer.alloc(7 << 20);
  const writes = Array.from({ length: 16 }, (_, i) => handle.write(bytes, 0, bytes.length, i * bytes.length));
  while (rig.counters.get('socket.backPressure') === 0) await new Promise((resolve) => setImmediate(resolve));
  vi.advanceTimersByTime(3_600_000);
  released.resolve();
  await Promise.all(writes);
  expect(rig.counters.get('socket.refusedConnections')).toBe(0);
  expect((await handle.stat()).size).toBe(16 * bytes.length);
  await handle.close();
});

it('a write at a position is done once, though its answer was lost with the connection (F6)', async () => {
  const rig = await socketRig();
  closers.push(() => rig.close());
  const cutter = await Cutter.start(`${rig.path}.cut`, rig.path);
  closers.push(() => cutter.stop());
  const client = await connectSocket(cutter.path);
  closers.push(() => client.close());
  const handle = await client.open('/f', 'w+');
  const [entered, released] = [deferred<void>(), deferred<void>()];
  rig.fs.before = (op) => {
    if (op !== 'write') return;
    entered.resolve();

    return released.promise;
  };
  const writing = handle.write('old', 0);
  await entered.promise;
  cutter.refusing = true;
  cutter.cut();
  released.resolve();
  rig.fs.before = () => undefined;
  while ((await rig.client.readFile('/f', 'utf8')) !== 'old');
  await rig.client.writeFile('/f', 'new');
  cutter.refusing = false;
  await writing;
  expect(await rig.client.readFile('/f', 'utf8')).toBe('new');
  await handle.close();
});

it('listings of many large directories at once are all complete', async () => {
  const rig = await socketRig();
  closers.push(() => rig.close());
  await rig.client.writeFile('/f', '');
  const inode = rig.fs.tree.root.entries.get('f')!;
  const pad = 'x'.repeat(200);
  for (let i = 0; i < 12_000; i++) rig.fs.tree.insert(rig.fs.tree.root, `${pad}${i}`, inode);
  const all = await Promise.all(Array.from({ length: 40 }, () => rig.client.readdir('/')));
  for (const names of all) expect(names).toHaveLength(12_001);
});
