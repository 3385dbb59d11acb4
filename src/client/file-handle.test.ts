import { MessageChannel } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { deferred } from '../common/deferred.js';
import { directRig } from './testing/harness.js';

/** What happens to a buffer that was handed to another thread. */
function detach(bytes: Uint8Array): void {
  const { port1 } = new MessageChannel();
  port1.postMessage(null, [bytes.buffer as ArrayBuffer]);
  port1.close();
}

/** Newer than the library that the compiler is told of. */
type Resizable = ArrayBuffer & { resize(lengthBytes: number): void };
const resizable = (lengthBytes: number): Resizable =>
  Reflect.construct(ArrayBuffer, [lengthBytes, { maxByteLength: lengthBytes }]) as Resizable;

describe('a FileHandle', () => {
  it('keeps operations that use its position in order, one at a time', async () => {
    const { client } = directRig();
    const h = await client.open('/f', 'w+');
    await Promise.all(Array.from({ length: 50 }, (_, i) => h.write(`${i},`)));
    expect(await client.readFile('/f', 'utf8')).toBe(Array.from({ length: 50 }, (_, i) => `${i},`).join(''));
    const r = await client.open('/f');
    const parts = await Promise.all(Array.from({ length: 10 }, () => r.read(Buffer.alloc(4), 0, 4)));
    expect(parts.map(({ buffer }) => buffer.toString()).join('')).toBe(
      (await client.readFile('/f', 'utf8')).slice(0, 40),
    );
  });

  it('does not move its position when an operation fails', async () => {
    const { client, fs } = directRig();
    await client.writeFile('/f', 'abcdef');
    const h = await client.open('/f');
    fs.before = (op) => {
      if (op === 'read') throw new Error('the device broke');
    };
    await expect(h.read(Buffer.alloc(3))).rejects.toMatchObject({ code: 'EIO', syscall: 'read' });
    fs.before = () => undefined;
    expect((await h.read(Buffer.alloc(3))).buffer.toString()).toBe('abc');
  });

  it('writes what the buffer held at the call, though it is changed or detached right after', async () => {
    const { client } = directRig();
    const h = await client.open('/f', 'w');
    const a = Buffer.alloc(5, 'a');
    const b = new Uint8Array(5).fill(98);
    const c = new Uint8Array(resizable(5)).fill(99);
    const writes = [h.write(a), h.write(b), h.write(c)];
    a.fill('x');
    detach(b);
    (c.buffer as Resizable).resize(0);
    await Promise.all(writes);
    expect(await client.readFile('/f', 'utf8')).toBe('aaaaabbbbbccccc');
  });

  it('says so when the buffer of a read is detached or shrinks meanwhile, and loses nothing', async () => {
    const { client, fs } = directRig();
    await client.writeFile('/f', 'abcdef');
    const h = await client.open('/f');
    const spoil: ((b: Uint8Array) => void)[] = [detach, (b) => (b.buffer as Resizable).resize(2)];
    for (const [i, ruin] of spoil.entries()) {
      const gate = deferred<void>();
      fs.before = (op) => (op === 'read' ? gate.promise : undefined);
      const buffer = i === 0 ? new Uint8Array(4) : new Uint8Array(resizable(4));
      const reading = h.read(buffer);
      ruin(buffer);
      gate.resolve();
      await expect(reading).rejects.toMatchObject({ code: 'ERR_INVALID_STATE' });
    }
    expect((await h.read(Buffer.alloc(6))).buffer.toString()).toBe('abcdef');
    const gone = new Uint8Array(4);
    detach(gone);
    await expect(h.read(gone, 0, 4, 0)).rejects.toThrow(TypeError);
    expect(() => h.readSync(gone, 0, 4, 0)).toThrow(TypeError);
  });

  it('closes the file when the last operation that uses it is done', async () => {
    const { client, fs } = directRig();
    await client.writeFile('/f', 'abc');
    const h = await client.open('/f');
    const gate = deferred<void>();
    fs.before = (op) => (op === 'read' ? gate.promise : undefined);
    const reading = h.read(Buffer.alloc(3));
    const closing = h.close();
    await expect(h.read(Buffer.alloc(3))).rejects.toMatchObject({ code: 'EBADF' });
    expect(fs.openFiles).toBe(1);
    gate.resolve();
    expect((await reading).bytesRead).toBe(3);
    await closing;
    expect([fs.openFiles, h.fd]).toEqual([0, -1]);
  });

  it('is closed at the end of its scope, and by the end of its client', async () => {
    const { client, fs } = directRig();
    {
      await using h = await client.open('/f', 'w');
      await h.write('x');
    }
    expect(fs.openFiles).toBe(0);
    const left = await client.open('/f');
    await client.close();
    expect(fs.openFiles).toBe(0);
    await expect(left.read()).rejects.toMatchObject({ code: 'ESHUTDOWN' });
    await expect(client.stat('/')).rejects.toMatchObject({ code: 'ESHUTDOWN' });
  });

  it('gives up a waiting operation when its signal says so, and tells the engine', async () => {
    const { client, fs } = directRig();
    await client.writeFile('/f', 'abc');
    const h = await client.open('/f', 'r+');
    const abort = new AbortController();
    let told = false;
    const entered = deferred<void>();
    fs.before = (op, options) => {
      if (op !== 'write') return;
      entered.resolve();
      return new Promise((_resolve, reject) => {
        options?.signal?.addEventListener('abort', () => {
          told = true;
          reject(new Error('given up'));
        });
      });
    };
    const writing = h.write(Buffer.from('x'), { position: 0, signal: abort.signal });
    await entered.promise;
    abort.abort();
    await expect(writing).rejects.toMatchObject({ name: 'AbortError', code: 'ABORT_ERR' });
    expect(told).toBe(true);
    await expect(h.sync({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORT_ERR' });
    await expect(client.unlink('/f', { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORT_ERR' });
  });

  it('refuses a synchronous miss where the engine is on the same thread', async () => {
    const { client } = directRig();
    const h = await client.open('/f', 'w+');
    expect(() => h.readSync(Buffer.alloc(1), 0, 1, 0)).toThrow(/only a hit can be synchronous/);
  });

  it('ends a stream whose handle is closed, and fails one whose file is missing', async () => {
    const { client } = directRig();
    await client.writeFile('/f', Buffer.alloc(1 << 20));
    const h = await client.open('/f');
    const stream = h.createReadStream();
    await new Promise((resolve) => stream.once('readable', resolve));
    const closed = new Promise((resolve) => stream.once('close', resolve));
    await h.close();
    await closed;
    const missing = client.createReadStream('/none');
    const error = await new Promise((resolve) => missing.once('error', resolve));
    expect(error).toMatchObject({ code: 'ENOENT', syscall: 'open', path: '/none' });
    expect(() => h.createReadStream({ start: 5, end: 2 })).toThrow(RangeError);
    expect(() => h.createReadStream({ start: -1 })).toThrow(RangeError);
  });

  it('works when its methods, and the client’s, are taken off their objects', async () => {
    const { client } = directRig();
    const { writeFile, readFile } = client.promises;
    await writeFile('/f', 'x');
    expect(await readFile('/f', 'utf8')).toBe('x');
    expect(await Promise.all(['/f'].map(client.stat as (p: string, i: number) => Promise<unknown>))).toHaveLength(1);
  });

  it('refuses paths beyond 4096 bytes with ENAMETOOLONG', async () => {
    const { client } = directRig();
    await expect(client.stat(`/${'a/'.repeat(2048)}b`)).rejects.toMatchObject({ code: 'ENAMETOOLONG', errno: -36 });
    await expect(client.stat('')).rejects.toMatchObject({ code: 'ENOENT', path: '' });
    await expect(client.stat(Buffer.from([0xff, 0xfe]))).rejects.toMatchObject({ code: 'ERR_INVALID_ARG_VALUE' });
  });

  it('counts what it refused', async () => {
    const { client } = directRig();
    const before = (await client.stats()).client;
    const of = (counters: Record<string, number>, name: string): number => counters[`client.refused.${name}`] ?? 0;
    await client.stat('a\0b').catch(() => undefined);
    await client.stat(`/${'x/'.repeat(3000)}`).catch(() => undefined);
    const h = await client.open('/f', 'w');
    await h.write(Buffer.alloc(1), -1).catch(() => undefined);
    await h.close();
    await h.write('x').catch(() => undefined);
    const after = (await client.stats()).client;
    for (const name of ['ERR_INVALID_ARG_VALUE', 'ENAMETOOLONG', 'ERR_OUT_OF_RANGE', 'EBADF'])
      expect(of(after, name) - of(before, name), name).toBe(1);
  });
});
