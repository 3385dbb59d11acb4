import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { connectThrough } from './connect.js';
import type { FileSystemClient } from './file-system-client.js';
import { socketRig } from './testing/harness.js';
import { connectFake, fakeCluster } from './testing/worker-rig.js';

const clients: FileSystemClient[] = [];
async function connected(options: Parameters<typeof connectFake>[0] = {}): Promise<FileSystemClient> {
  const client = await connectFake(options);
  clients.push(client);
  return client;
}
afterEach(async () => {
  await Promise.allSettled(clients.splice(0).map((client) => client.close()));
});

const LOADER = new URL('./testing/ts-loader.mjs', import.meta.url).href;
const RIG = new URL('./testing/worker-rig.ts', import.meta.url).href;

/** A program of its own that uses the library; resolves when it has ended by itself. */
async function program(source: string): Promise<{ code: number | null; output: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'holdfast-program-'));
  const text = `import { connectFake } from ${JSON.stringify(RIG)};\n${source}`;
  const child = spawn(process.execPath, ['--import', LOADER, '--input-type=module', '-e', text], { cwd: folder });
  let output = '';
  child.stdout.on('data', (d: Buffer) => (output += d.toString()));
  child.stderr.on('data', (d: Buffer) => (output += d.toString()));
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve));
  await rm(folder, { recursive: true });
  return { code, output };
}

describe('the library’s worker', () => {
  it('reads and writes synchronously, through the engine where nothing is cached', async () => {
    const client = await connected();
    const h = await client.open('/f', 'w+');
    expect(h.writeSync('hello ')).toBe(6);
    expect(h.writeSync(Buffer.from('xworldx'), 1, 5)).toBe(5);
    expect(h.writeSync(Buffer.from('H'), 0, 1, 0)).toBe(1);
    const buffer = Buffer.alloc(20);
    expect(h.readSync(buffer, 0, 20, 0)).toBe(11);
    expect(buffer.toString('latin1', 0, 11)).toBe('Hello world');
    expect(h.readSync(buffer, { position: 6, length: 5 })).toBe(5);
    expect(h.readSync(new DataView(new ArrayBuffer(4)), 0, 4, 100)).toBe(0);
    const big = Buffer.alloc(3 << 20, 'z');
    expect(h.writeSync(big, 0, big.length, 0)).toBe(big.length);
    const back = Buffer.alloc(big.length);
    expect(h.readSync(back, 0, back.length, 0)).toBe(big.length);
    expect(back.equals(big)).toBe(true);
    expect(() => h.readSync(buffer, 0, 21, 0)).toThrow(RangeError);
    expect(() => h.readSync(buffer, 0, 1, -2)).toThrow(RangeError);
    expect(() => h.readSync('x' as unknown as Buffer)).toThrow(TypeError);
    await h.close();
    expect(() => h.readSync(buffer, 0, 1, 0)).toThrow(expect.objectContaining({ code: 'EBADF' }));
    const readOnly = await client.open('/f');
    expect(() => readOnly.writeSync('x')).toThrow(expect.objectContaining({ code: 'EBADF', syscall: 'write' }));
  });

  it('answers synchronous misses while many asynchronous operations are under way', async () => {
    const client = await connected();
    const h = await client.open('/f', 'w+');
    const writes = Array.from({ length: 500 }, (_, i) => client.writeFile(`/w${i}`, Buffer.alloc(10_000, i)));
    h.writeSync('in between', 0);
    const buffer = Buffer.alloc(10);
    for (let i = 0; i < 50; i++) expect(h.readSync(buffer, 0, 10, 0)).toBe(10);
    expect(buffer.toString()).toBe('in between');
    await Promise.all(writes);
    expect((await client.readFile('/w499')).length).toBe(10_000);
  });

  it('keeps the position out of two hands at once', async () => {
    const client = await connected();
    const h = await client.open('/f', 'w+');
    const writing = h.write('x');
    expect(() => h.writeSync('y')).toThrow(expect.objectContaining({ code: 'EBUSY' }));
    await writing;
    expect(h.writeSync('y')).toBe(1);
    expect(await client.readFile('/f', 'utf8')).toBe('xy');
  });

  it('goes on with its work while the application never yields (rule 2)', async () => {
    const client = await connected();
    const h = await client.open('/f', 'w+');
    await h.write('before', 0);
    const writing = h.write('behind', 0);
    // From here this thread gives nobody a turn; the answer to the write can't be delivered, but the write must happen.
    const buffer = Buffer.alloc(6);
    for (let tries = 0; tries < 10_000 && buffer.toString() !== 'behind'; tries++) h.readSync(buffer, 0, 6, 0);
    expect(buffer.toString()).toBe('behind');
    await writing;
  });

  it('hits the shared map without asking the engine', async () => {
    const client = await connected({ fileSystem: 'mapped' });
    const h = await client.open('/hot', 'r+');
    const [out, back] = [Buffer.alloc(4096, 'h'), Buffer.alloc(4096)];
    const before = (await client.stats()).engine['fake.reads'];
    for (let i = 0; i < 100; i++) {
      expect(h.writeSync(out, 0, 4096, i * 4096)).toBe(4096);
      expect(h.readSync(back, 0, 4096, i * 4096)).toBe(4096);
    }
    expect(back.equals(out)).toBe(true);
    expect((await h.read(back, 0, 10, 8192)).bytesRead).toBe(10);
    expect((await h.write(Buffer.from('q'), 0, 1, 0)).bytesWritten).toBe(1);
    expect((await h.read(Buffer.alloc(1))).buffer.toString()).toBe('q');
    const { engine, hits } = await client.stats();
    expect(engine['fake.reads']).toBe(before);
    expect(hits).toMatchObject({ readHits: 102, writeHits: 101 });
    await h.close();
    expect(() => h.readSync(back, 0, 4096, 0)).toThrow(expect.objectContaining({ code: 'EBADF' }));
  });

  it('does not hit where a hit would say less than was asked for', async () => {
    const client = await connected({ fileSystem: 'mapped' });
    const readOnly = await client.open('/hot', 'r');
    await expect(readOnly.write(Buffer.from('x'), 0, 1, 0)).rejects.toMatchObject({ code: 'EBADF' });
    const synchronous = await client.open('/hot', 'rs+');
    await synchronous.write(Buffer.from('x'), 0, 1, 0);
    expect((await client.stats()).hits?.writeHits).toBe(0);
  });

  it('gives up when the signal says so, also where the engine waits', async () => {
    const client = await connected();
    const abort = new AbortController();
    const held = client.access('/control/hold', 0, { signal: abort.signal });
    abort.abort('enough');
    await expect(held).rejects.toMatchObject({ code: 'ABORT_ERR', cause: 'enough' });
    await client.writeFile('/f', 'goes on');
  });

  it('says why it could not join', async () => {
    await expect(connectFake({ fileSystem: 'broken' })).rejects.toMatchObject({
      reason: 'storeUnavailable',
      message: expect.stringContaining('no etcd answers'),
    });
    const nowhere = new URL('file:///no/such/engine.js');
    const options = { cluster: fakeCluster, fileSystem: 'memory' };
    const worker = { entry: new URL('./worker.ts', import.meta.url), execArgv: ['--import', LOADER] };
    await expect(connectThrough(options, worker, nowhere)).rejects.toThrow(/no\/such\/engine/);
    await expect(connectFake({ cluster: { ...fakeCluster, name: 3 as unknown as string } })).rejects.toThrow(TypeError);
  });

  it.each(['fail', 'throw'])(
    'fails every handle with why when the engine dies (%s), and the program lives on (F7)',
    async (how) => {
      const client = await connected();
      const h = await client.open('/f', 'w+');
      const waiting = client.access('/control/hold');
      const killer = client.unlink(`/control/${how}`);
      const why = how === 'fail' ? /told to/ : /nobody catches this/;
      await expect(killer).rejects.toThrow(why);
      await expect(waiting).rejects.toThrow(why);
      await expect(h.write('x')).rejects.toThrow(why);
      expect(() => h.writeSync('x', 0)).toThrow(why);
      await h.close();
      await client.close();
    },
  );

  it('wakes a thread that waits for an engine that dies', async () => {
    const client = await connected();
    const h = await client.open('/f', 'w+');
    const killer = client.unlink('/control/throw');
    killer.catch(() => undefined);
    let seen: unknown;
    try {
      for (;;) h.writeSync('x', 0);
    } catch (error) {
      seen = error;
    }
    expect(seen).toMatchObject({ syscall: 'write', message: expect.stringContaining('nobody catches this') });
  });

  it('ends close() at its deadline when the engine does not leave', async () => {
    const client = await connectFake({ nodeName: 'slow-to-leave', closeDeadlineMs: 50 });
    await expect(client.close()).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  });

  it('lets a program end by itself, with and without close', async () => {
    const use = `const fs = await connectFake(); await fs.writeFile('/f', 'x'); console.log(await fs.readFile('/f', 'utf8'));`;
    expect(await program(use)).toEqual({ code: 0, output: 'x\n' });
    expect(await program(`${use} await fs.close(); console.log('closed');`)).toEqual({
      code: 0,
      output: 'x\nclosed\n',
    });
    expect(await program(`${use} process.exit(3);`)).toEqual({ code: 3, output: 'x\n' });
  });

  it('gives a proxied client synchronous operations too', async () => {
    const rig = await socketRig();
    // In a process of its own: the daemon of this test lives on this very thread, which must not stand still.
    const use = `
      const fs = await connectFake({ socket: ${JSON.stringify(rig.path)} });
      const h = await fs.open('/f', 'w+');
      console.log(h.writeSync('over the socket'), h.readSync(Buffer.alloc(4), 0, 4, 5));
      await fs.close();`;
    expect(await program(use)).toEqual({ code: 0, output: '15 4\n' });
    expect(await rig.client.readFile('/f', 'utf8')).toBe('over the socket');
    expect(rig.fs.openFiles).toBe(0);
    await rig.close();
    await expect(connectFake({ socket: rig.path } as never)).rejects.toMatchObject({ reason: 'unreachable' });
  });
});
