import { constants } from 'node:fs';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { deferred } from '../common/deferred.js';
import { connectSocket } from './connect-socket.js';
import { encodeFrame, FrameDecoder, FrameKind } from './frames.js';
import { OPS } from './ops.js';
import { serveSocket } from './socket-server.js';
import { Cutter } from './testing/cutter.js';
import { restartableDaemon, type SocketRig, socketRig } from './testing/harness.js';
import type { MemoryFileSystem } from './testing/memory-file-system.js';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function rigUp(...args: Parameters<typeof socketRig>): Promise<SocketRig> {
  const rig = await socketRig(...args);
  closers.push(() => rig.close());
  return rig;
}

/** A client that reaches the daemon through a connection that can be cut. */
async function cuttable(rig: SocketRig) {
  const cutter = await Cutter.start(`${rig.path}.cut`, rig.path);
  const client = await connectSocket(cutter.path);
  closers.push(() => cutter.stop());
  closers.push(() => client.close());
  return { cutter, client };
}

/** Holds operations of one kind until told. */
function hold(fs: MemoryFileSystem, op: string) {
  const [entered, released] = [deferred<void>(), deferred<void>()];
  fs.before = (name) => {
    if (name !== op) return;
    entered.resolve();
    return released.promise;
  };
  return { entered: entered.promise, release: () => released.resolve() };
}

/** Raw bytes to the socket; what came back as frames, once the daemon has hung up. */
async function raw(path: string, ...chunks: Uint8Array[]): Promise<number[]> {
  const socket: Socket = connect(path);
  const decoder = new FrameDecoder();
  const kinds: number[] = [];
  socket.on('data', (chunk: Buffer) => kinds.push(...decoder.push(chunk).map((f) => f.kind)));
  socket.on('error', () => undefined);
  for (const chunk of chunks) socket.write(chunk);
  await new Promise<void>((resolve) => socket.on('close', () => resolve()));
  return kinds;
}

const who = { uid: 0, gid: 0, groups: [], umask: 0o022 };
const hello = (session = 'ab'.repeat(16)): Buffer =>
  encodeFrame({ kind: FrameKind.hello, id: 0, json: { session, resume: false, credentials: who } });

describe('the client socket', () => {
  it('is for its owner only', async () => {
    const rig = await rigUp();
    expect((await stat(rig.path)).mode & 0o777).toBe(0o600);
  });

  it('replaces the file of a daemon that died, and leaves a living daemon alone', async () => {
    const rig = await rigUp();
    await expect(serveSocket(rig.path, rig.fs)).rejects.toMatchObject({ reason: 'identityTaken' });
    const folder = await mkdtemp(join(tmpdir(), 'holdfast-socket-'));
    closers.push(() => rm(folder, { recursive: true }));
    const cutter = await Cutter.start(join(folder, 's'), rig.path);
    await cutter.stop();
    const server = await serveSocket(join(folder, 's'), rig.fs);
    await server.close();
    await expect(connectSocket(join(folder, 's'))).rejects.toMatchObject({ reason: 'unreachable' });
  });

  it('hangs up on malformed, foreign and oversized frames, counts them, and goes on serving others', async () => {
    const rig = await rigUp();
    const oversized = Buffer.from(hello());
    oversized.writeUInt32LE(0xffffffff, 0);
    const flipped = Buffer.from(hello());
    flipped[50]! ^= 4;
    const call = encodeFrame({ kind: FrameKind.call, id: 1, op: OPS.stat.number, json: { path: '/', follow: true } });
    const noOp = encodeFrame({ kind: FrameKind.call, id: 1, op: 999, json: {} });
    const wrongKind = encodeFrame({ kind: FrameKind.welcome, id: 1 });
    const badHello = encodeFrame({ kind: FrameKind.hello, id: 0, json: { session: 'x', resume: false } });
    const noise = Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\nAccept: everything\r\n\r\n');
    const cases = [
      [oversized],
      [flipped],
      [call],
      [hello('01'.repeat(16)), noOp],
      [hello('02'.repeat(16)), wrongKind],
      [badHello],
      [noise],
    ];
    for (const bytes of cases) expect((await raw(rig.path, ...bytes)).at(-1)).toBe(FrameKind.goodbye);
    expect(rig.counters.get('socket.refusedConnections')).toBe(cases.length);
    await rig.client.writeFile('/f', 'still here');
    expect(await rig.client.readFile('/f', 'utf8')).toBe('still here');
  });

  it('takes so many connections and no more', async () => {
    const rig = await rigUp();
    const path = `${rig.path}.few`;
    const few = await serveSocket(path, rig.fs, { connectionsMax: 1 });
    const client = await connectSocket(path);
    const second = connect(path);
    await new Promise((resolve) => second.once('close', resolve));
    expect(few.counters.get('socket.tooManyConnections')).toBe(1);
    await client.writeFile('/f', 'still here');
    await client.close();
    await few.close();
  });

  it('writes a file with its times in one exchange', async () => {
    const rig = await rigUp();
    const before = rig.counters.get('client.calls');
    await rig.client.writeFile('/f', 'old', { mode: 0o640, times: { atime: 1_600_000_000, mtime: 1_500_000_000.25 } });
    expect(rig.counters.get('client.calls') - before).toBe(1);
    const found = await rig.client.stat('/f');
    expect([found.mode & 0o777, found.atimeMs, found.mtimeMs]).toEqual([0o640, 1.6e12, 1_500_000_000_250]);
    await expect(rig.client.writeFile('/f', 'x', { times: { atime: 'never', mtime: 0 } })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARG_TYPE',
    });
    expect(await rig.client.readFile('/f', 'utf8')).toBe('old');
  });

  it('executes nothing of a frame in which a bit was flipped', async () => {
    const rig = await rigUp();
    await rig.client.writeFile('/f', 'untouched');
    const payload = Buffer.from('overwrite');
    const json = { path: '/f', flags: 0o1001, mode: 0o666, sync: false };
    const frame = encodeFrame({ kind: FrameKind.call, id: 1, op: OPS.writeFile.number, json, payload });
    const good = Buffer.concat([frame, payload]);
    for (let byte = 0; byte < good.length; byte += 5) {
      const bad = Buffer.from(good);
      bad[byte]! ^= 1 << (byte % 8);
      await raw(rig.path, hello(byte.toString(16).padStart(32, '0')), bad);
    }
    expect(await rig.client.readFile('/f', 'utf8')).toBe('untouched');
  });

  it('gives up on a frame that never ends', async () => {
    const rig = await rigUp({ frameDeadlineMs: 20 });
    expect((await raw(rig.path, hello(), hello().subarray(0, 30))).at(-1)).toBe(FrameKind.goodbye);
    expect((await raw(rig.path)).at(-1)).toBe(FrameKind.goodbye);
    expect(rig.counters.get('socket.refused.deadlinePassed')).toBe(2);
  });

  it('answers wrong arguments with EINVAL and keeps the connection', async () => {
    const rig = await rigUp();
    const socket = connect(rig.path);
    const decoder = new FrameDecoder();
    const frames: { kind: number; json: unknown }[] = [];
    const done = deferred<void>();
    socket.on('data', (chunk: Buffer) => {
      frames.push(...decoder.push(chunk));
      if (frames.length === 5) done.resolve();
    });
    socket.write(hello());
    for (const [id, args] of [
      { path: 'relative', follow: true },
      { path: '/a\0b', follow: true },
      { path: '/', follow: true, extra: 1 },
      { path: '/', follow: true },
    ].entries())
      socket.write(encodeFrame({ kind: FrameKind.call, id: id + 1, op: OPS.stat.number, json: args }));
    await done.promise;
    socket.destroy();
    const kinds = frames.map((f) => f.kind);
    expect(kinds.filter((k) => k === FrameKind.error)).toHaveLength(3);
    expect(kinds.filter((k) => k === FrameKind.reply)).toHaveLength(1);
    expect(rig.counters.get('socket.refusedArguments')).toBe(3);
  });

  it('carries more than a frame holds, and listings of many pages', async () => {
    const rig = await rigUp();
    const big = Buffer.alloc(20 << 20, 'abc');
    await rig.client.writeFile('/big', big);
    expect((await rig.client.readFile('/big')).equals(big)).toBe(true);
    for (let i = 0; i < 60_000; i++)
      rig.fs.tree.insert(rig.fs.tree.root, `a-rather-long-name-${i}`, rig.fs.tree.root.entries.get('big')!);
    expect(await rig.client.readdir('/')).toHaveLength(60_001);
  });

  it('takes as many calls at once as a program likes to make', async () => {
    const rig = await rigUp();
    await Promise.all(Array.from({ length: 3000 }, (_, i) => rig.client.writeFile(`/f${i}`, `${i}`)));
    expect(await rig.client.readFile('/f2999', 'utf8')).toBe('2999');
    expect(rig.counters.get('client.refusedQueueFull')).toBe(0);
  });

  it('closes the handle of an open whose caller gave up', async () => {
    const rig = await rigUp();
    const gate = hold(rig.fs, 'open');
    const abort = new AbortController();
    const opening = rig.client.open('/f', 'w', 0o666, { signal: abort.signal });
    await gate.entered;
    abort.abort(new Error('enough'));
    await expect(opening).rejects.toMatchObject({
      name: 'AbortError',
      code: 'ABORT_ERR',
      cause: { message: 'enough' },
    });
    gate.release();
    await rig.client.stat('/');
    await expect.poll(() => rig.fs.openFiles).toBe(0);
  });
});

describe('a durable handle', () => {
  it('outlives its connection, with its position', async () => {
    const rig = await rigUp();
    const { cutter, client } = await cuttable(rig);
    const h = await client.open('/f', 'w+');
    await h.write('one ');
    cutter.cut();
    await h.write('two');
    expect((await h.read(Buffer.alloc(9), 0, 9, 0)).bytesRead).toBe(7);
    expect(cutter.accepted).toBe(2);
    await h.close();
  });

  it('appends once, though the connection broke before the answer (F6)', async () => {
    const rig = await rigUp();
    const { cutter, client } = await cuttable(rig);
    const h = await client.open('/log', 'a');
    const gate = hold(rig.fs, 'write');
    const writing = h.write('line\n');
    await gate.entered;
    cutter.cut();
    await expect.poll(() => rig.counters.get('socket.sessionsResumed')).toBe(1);
    gate.release();
    expect((await writing).bytesWritten).toBe(5);
    await h.close();
    expect(await rig.client.readFile('/log', 'utf8')).toBe('line\n');
  });

  it('gets the kept answer of a call that was done while nobody was connected', async () => {
    const rig = await rigUp();
    const { cutter, client } = await cuttable(rig);
    const gate = hold(rig.fs, 'mkdir');
    const making = client.mkdir('/d');
    await gate.entered;
    cutter.refusing = true;
    cutter.cut();
    gate.release();
    await expect.poll(() => rig.fs.tree.root.entries.has('d')).toBe(true);
    cutter.refusing = false;
    await expect(making).resolves.toBeUndefined();
    expect(rig.fs.calls.get('mkdir')).toBe(1);
  });

  it('survives cuts at any moment without a byte lost or doubled', async () => {
    const rig = await rigUp();
    const { cutter, client } = await cuttable(rig);
    const h = await client.open('/log', 'a');
    for (let i = 0; i < 60; i++) {
      const writes = Array.from({ length: 5 }, (_, k) => h.write(`${i}-${k}\n`));
      if (i % 3 === 0) cutter.cut();
      await Promise.all(writes);
    }
    await h.close();
    const lines = (await rig.client.readFile('/log', 'utf8')).trim().split('\n');
    expect(lines).toEqual(Array.from({ length: 300 }, (_, n) => `${Math.floor(n / 5)}-${n % 5}`));
  });

  it('is opened again by inode when the daemon was restarted, whatever its name is now', async () => {
    const { fs, path, first, restart } = await restartableDaemon(closers);
    const client = await connectSocket(path);
    closers.push(() => client.close());
    const h = await client.open('/before', 'w+');
    await h.write('kept');
    await client.rename('/before', '/after');
    const gate = hold(fs, 'write');
    const append = client.appendFile('/after', 'unknown').catch((e: NodeJS.ErrnoException) => e.code);
    await gate.entered;
    const stopped = first.close();
    gate.release();
    await stopped;
    await restart();
    expect(await append).toBe('ECONNRESET');
    fs.before = () => undefined;
    expect((await h.read(Buffer.alloc(4), 0, 4, 0)).bytesRead).toBe(4);
    await h.close();
  });

  it('whose file was removed meanwhile is stale when the daemon was restarted; the others go on', async () => {
    const { fs, path, first, restart } = await restartableDaemon(closers);
    const client = await connectSocket(path);
    closers.push(() => client.close());
    const gone = await client.open('/gone', 'w+');
    const kept = await client.open('/kept', 'w+');
    await kept.write('kept');
    // A read that is under way when the daemon ends, and is to be asked again.
    const gate = hold(fs, 'read');
    const reading = gone.read(Buffer.alloc(4), 0, 4, 0).catch((error: unknown) => error);
    await gate.entered;
    const stopped = first.close();
    gate.release();
    await stopped;
    fs.before = () => undefined;
    await fs.unlink('/gone', who);
    await restart();
    expect((await kept.read(Buffer.alloc(4), 0, 4, 0)).bytesRead).toBe(4);
    expect(await reading).toMatchObject({ code: 'ESTALE' });
    await expect(gone.write('x')).rejects.toMatchObject({ code: 'ESTALE', syscall: 'write' });
    await expect(gone.stat()).rejects.toMatchObject({ code: 'ESTALE' });
    await gone.close();
    await expect(gone.write('x')).rejects.toMatchObject({ code: 'EBADF' });
    await kept.close();
  });

  it('tells who syncs or closes a handle that the daemon ended without having written out what was written to it (I10)', async () => {
    const { fs, path, first, restart } = await restartableDaemon(closers);
    const cutter = await Cutter.start(`${path}.cut`, path);
    closers.push(() => cutter.stop());
    const client = await connectSocket(cutter.path);
    closers.push(() => client.close());
    const [written, cut, synced, read] = await Promise.all(['a', 'b', 'c', 'd'].map((name) => client.open(name, 'w+')));
    const durable = await client.open('e', constants.O_CREAT | constants.O_RDWR | constants.O_DSYNC);
    await written!.write('lost');
    await cut!.write('lost');
    await cut!.truncate(1);
    await synced!.write('kept');
    await synced!.sync();
    await durable.write('kept');
    // It dies: nobody hears of its end.
    cutter.refusing = true;
    cutter.cut();
    await first.close();
    await restart();
    cutter.refusing = false;
    await expect(written!.sync()).rejects.toMatchObject({ code: 'EIO', reason: 'writesLost', syscall: 'fsync' });
    await written!.write('again');
    await written!.sync();
    await written!.close();
    await expect(cut!.close()).rejects.toMatchObject({ code: 'EIO', reason: 'writesLost', syscall: 'close' });
    for (const file of [synced!, read!, durable]) {
      await file.sync();
      await file.close();
    }
    expect(fs.openFiles).toBe(0);
  });

  it('is as it was when the daemon ended in good order: what was written is durable by then', async () => {
    const { fs, path, first, restart } = await restartableDaemon(closers);
    const client = await connectSocket(path);
    closers.push(() => client.close());
    const h = await client.open('/f', 'w+');
    await h.write('kept');
    expect(fs.syncs).toBe(0);
    await first.close();
    expect(fs.syncs).toBe(1);
    await restart();
    await h.sync();
    await h.close();
  });

  it('fails with why when the daemon does not come back, and its session is ended by the daemon', async () => {
    const rig = await rigUp({ sessionGraceMs: 1 });
    const cutter = await Cutter.start(`${rig.path}.cut`, rig.path);
    closers.push(() => cutter.stop());
    const client = await connectSocket(cutter.path, { reconnectForMs: 1 });
    const h = await client.open('/f', 'w');
    cutter.refusing = true;
    cutter.cut();
    await expect(h.write('x')).rejects.toMatchObject({ code: 'ECONNRESET', syscall: 'write' });
    await expect(client.stat('/')).rejects.toThrow(/no connection to the daemon any more/);
    await expect.poll(() => rig.fs.openFiles).toBe(0);
    await h.close();
    await client.close();
  });
});
