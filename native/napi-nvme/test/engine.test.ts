import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type BlockDeviceHandle, BlockEngine, BlockIoError, type IoBuffer } from '../lib/index.js';

let directory: string;
let engine: BlockEngine;

beforeAll(() => {
  // Not under a tmpfs: the tests of direct I/O want a file system that has it.
  const parent = path.join(process.cwd(), 'node_modules');
  fs.mkdirSync(parent, { recursive: true });
  directory = fs.mkdtempSync(path.join(parent, '.napi-nvme-test-'));
});
afterAll(() => fs.rmSync(directory, { recursive: true, force: true }));
beforeEach(() => {
  engine = new BlockEngine({ queueDepth: 8 });
});
afterEach(() => engine.close());

const MIB = 1 << 20;
let fileNumber = 0;
function makeFile(lengthBytes: number, fill?: (bytes: Uint8Array) => void): string {
  const file = path.join(directory, `file-${fileNumber++}`);
  const bytes = new Uint8Array(lengthBytes);
  fill?.(bytes);
  fs.writeFileSync(file, bytes);
  return file;
}
/** Each 512-byte block carries its number. */
const numbered = (bytes: Uint8Array): void => {
  const view = new DataView(bytes.buffer);
  for (let at = 0; at + 512 <= bytes.length; at += 512) view.setUint32(at, at / 512 + 1, true);
};
const u32 = (buffer: IoBuffer, at: number): number => new DataView(buffer.buffer).getUint32(at, true);
async function failure(work: Promise<unknown>): Promise<BlockIoError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof BlockIoError) return error;
    throw error;
  }
  throw new Error('it should have failed');
}

describe('a regular file', () => {
  it('reads and writes what node:fs sees, directly, through registered memory', async () => {
    const file = makeFile(MIB, numbered);
    const device = await engine.open(file);
    expect(device).toMatchObject({ kind: 'file', sizeBytes: MIB, direct: true, readOnly: false, path: file });
    expect([512, 4096]).toContain(device.logicalBlockBytes);
    const buffer = engine.allocate(64 * 1024);
    expect(buffer.registered || buffer.notRegisteredBecause !== null).toBe(true);
    await device.read(512 * 1024, buffer, 4096, 8192);
    expect([u32(buffer, 4096), u32(buffer, 4096 + 512), u32(buffer, 0)]).toEqual([1025, 1026, 0]);
    new Uint8Array(buffer.buffer).fill(0xab, 0, 4096);
    await device.write(4096, buffer, 0, 4096);
    await device.flush();
    const seen = fs.readFileSync(file);
    expect(seen.subarray(4096, 8192).every((byte) => byte === 0xab)).toBe(true);
    expect(seen.readUInt32LE(8192)).toBe(17);
  });

  it('makes a write durable in itself where that is asked for', async () => {
    const file = makeFile(MIB);
    const device = await engine.open(file);
    const buffer = engine.allocate(8192);
    new Uint8Array(buffer.buffer).fill(0xcd);
    await Promise.all([device.write(0, buffer, 0, 4096, true), device.write(8192, buffer, 0, 8192, true)]);
    const seen = fs.readFileSync(file);
    expect(seen.subarray(8192, 16384).every((byte) => byte === 0xcd) && seen[4095] === 0xcd && seen[4096] === 0).toBe(
      true,
    );
  });

  it('works the same through memory that is not registered', async () => {
    const device = await engine.open(makeFile(MIB, numbered));
    const buffer = engine.allocate(8192, { registered: false });
    expect(buffer).toMatchObject({ registered: false, notRegisteredBecause: null });
    await device.read(8192, buffer, 0, 8192);
    expect(u32(buffer, 512)).toBe(18);
  });

  it('takes many more operations than the queue is deep, and settles every one', async () => {
    const device = await engine.open(makeFile(4 * MIB, numbered));
    const buffer = engine.allocate(1000 * 4096);
    const reads = Array.from({ length: 1000 }, (_, i) => device.read(((i * 7) % 1024) * 4096, buffer, i * 4096, 4096));
    expect(engine.inFlight).toBe(8);
    expect(engine.waiting).toBe(992);
    await Promise.all(reads);
    for (let i = 0; i < 1000; i++) expect(u32(buffer, i * 4096)).toBe(((i * 7) % 1024) * 8 + 1);
    expect(engine.inFlight).toBe(0);
  });

  it('refuses an operation when too many wait already', async () => {
    const small = new BlockEngine({ queueDepth: 1, waitingMax: 2 });
    const device = await small.open(makeFile(MIB));
    const buffer = small.allocate(4096);
    const taken = [0, 1, 2].map(() => device.read(0, buffer, 0, 4096));
    expect(await failure(device.read(0, buffer, 0, 4096))).toMatchObject({ code: 'EAGAIN' });
    await Promise.all(taken);
    await small.close();
  });

  it('punches holes and writes zeroes', async () => {
    const file = makeFile(MIB, (bytes) => bytes.fill(7));
    const device = await engine.open(file);
    await device.discard(64 * 1024, 64 * 1024);
    await device.writeZeroes(256 * 1024, 4096);
    const seen = fs.readFileSync(file);
    expect(seen.length).toBe(MIB);
    const zeros = (from: number, to: number): boolean => seen.subarray(from, to).every((byte) => byte === 0);
    expect([zeros(64 * 1024, 128 * 1024), zeros(256 * 1024, 260 * 1024)]).toEqual([true, true]);
    expect([seen[64 * 1024 - 1], seen[128 * 1024], seen[260 * 1024]]).toEqual([7, 7, 7]);
  });

  it('reports a read that the end of the file cuts short, with what was read', async () => {
    const device = await engine.open(makeFile(10_000, (bytes) => bytes.fill(3)));
    const buffer = engine.allocate(8192);
    const error = await failure(device.read(4096, buffer, 0, 8192));
    expect(error).toMatchObject({
      code: 'EIO',
      short: true,
      doneBytes: 10_000 - 4096,
      offsetBytes: 4096,
      syscall: 'read',
    });
    expect(await failure(device.read(65_536, buffer, 0, 4096))).toMatchObject({ short: true, doneBytes: 0 });
  });

  it('refuses writes when it was opened for reading, and says EROFS', async () => {
    const device = await engine.open(makeFile(MIB), { readOnly: true });
    const buffer = engine.allocate(4096);
    expect(device.readOnly).toBe(true);
    expect(await failure(device.write(0, buffer, 0, 4096))).toMatchObject({ code: 'EROFS', syscall: 'write' });
    expect(await failure(device.discard(0, 4096))).toMatchObject({ code: 'EROFS' });
  });

  it('refuses odd places of direct I/O before the kernel does', async () => {
    const device = await engine.open(makeFile(MIB));
    const buffer = engine.allocate(16_384);
    for (const [offset, at, length] of [
      [100, 0, 4096],
      [0, 1, 4096],
      [0, 0, 100],
      [0, 0, 0],
      [-4096, 0, 4096],
      [0.5, 0, 4096],
      [Number.NaN, 0, 4096],
      [2 ** 53, 0, 4096],
    ] as const)
      expect(await failure(device.read(offset, buffer, at, length))).toMatchObject({ code: 'EINVAL' });
    expect(await failure(device.read(0, buffer, 16_384, 4096))).toMatchObject({ code: 'EFAULT' });
    expect(await failure(device.read(0, buffer, -4096, 4096))).toMatchObject({ code: 'EFAULT' });
  });

  it('has no such places without direct I/O', async () => {
    const device = await engine.open(makeFile(MIB, numbered), { direct: 'off' });
    expect(device.direct).toBe(false);
    const buffer = engine.allocate(4096);
    await device.read(511, buffer, 3, 5);
    expect(u32(buffer, 4)).toBe(2);
  });

  it('is opened through the page cache where O_DIRECT is refused, unless that is required', async () => {
    const device = await engine.open('/proc/self/status', { readOnly: true });
    expect(device.direct).toBe(false);
    await expect(engine.open('/proc/self/status', { readOnly: true, direct: 'require' })).rejects.toMatchObject({
      code: 'EINVAL',
      syscall: 'open',
    });
  });

  it('reports an error of the device with its errno and place', async () => {
    // Address 0 of this process: there is nothing, and the kernel says EIO.
    const device = await engine.open('/proc/self/mem', { readOnly: true });
    const buffer = engine.allocate(4096);
    const error = await failure(device.read(0, buffer, 0, 4096));
    expect(error).toMatchObject({
      code: 'EIO',
      short: false,
      offsetBytes: 0,
      lengthBytes: 4096,
      path: '/proc/self/mem',
    });
    expect(error.message).toContain("EIO: the device failed, read of 4096 bytes at 0 '/proc/self/mem'");
  });
});

describe('opening', () => {
  it('reports what the system says', async () => {
    await expect(engine.open(path.join(directory, 'nothing'))).rejects.toMatchObject({
      code: 'ENOENT',
      syscall: 'open',
    });
    await expect(engine.open(directory, { readOnly: true })).rejects.toMatchObject({ code: 'EISDIR' });
    await expect(engine.open('/dev/null')).rejects.toThrow();
  });

  it('refuses wrong types', async () => {
    await expect(engine.open(5 as unknown as string)).rejects.toThrow(TypeError);
    await expect(engine.open('x', { direct: 'maybe' as 'off' })).rejects.toThrow(TypeError);
    expect(() => new BlockEngine({ queueDepth: 0 })).toThrow(RangeError);
    expect(() => new BlockEngine({ queueDepth: 5000 })).toThrow(RangeError);
    expect(() => new BlockEngine({ spinUsMax: -1 })).toThrow(RangeError);
  });
});

describe('memory', () => {
  it('is refused when it is no ArrayBuffer, empty, resizable, shared, or of another engine', async () => {
    const attach = (value: unknown): unknown => engine.attach(value as ArrayBuffer);
    expect(() => attach(new Uint8Array(8))).toThrow(TypeError);
    expect(() => attach(null)).toThrow(TypeError);
    expect(() => attach(new SharedArrayBuffer(4096))).toThrow(TypeError);
    expect(() => attach(new ArrayBuffer(0))).toThrow(RangeError);
    expect(() =>
      attach(new (ArrayBuffer as unknown as new (n: number, o: object) => ArrayBuffer)(8, { maxByteLength: 16 })),
    ).toThrow(TypeError);
    const other = new BlockEngine();
    const device = await engine.open(makeFile(MIB));
    await expect(device.read(0, other.allocate(4096), 0, 4096)).rejects.toThrow(TypeError);
    await expect(device.read(0, {} as IoBuffer, 0, 4096)).rejects.toThrow(TypeError);
    await other.close();
  });

  it('is kept while operations name it, and given back after', async () => {
    const device = await engine.open(makeFile(MIB, numbered));
    const buffer = engine.allocate(4096);
    const reading = device.read(4096, buffer, 0, 4096);
    expect(() => engine.detach(buffer)).toThrow(/in use/);
    await reading;
    engine.detach(buffer);
    engine.detach(buffer);
    expect(await failure(device.read(0, buffer, 0, 4096))).toMatchObject({ code: 'EFAULT' });
    for (let i = 0; i < 200; i++) engine.detach(engine.allocate(4096));
  });

  it('that was transferred away behind our back fails its operations and no others', async () => {
    const device = await engine.open(makeFile(MIB), { direct: 'off' });
    const plain = new ArrayBuffer(8192);
    const gone = engine.attach(plain, { registered: false });
    structuredClone(plain, { transfer: [plain] });
    await expect(device.read(0, gone, 0, 4096)).rejects.toThrow(/detached/);
    engine.detach(gone);
    await device.read(0, engine.allocate(4096), 0, 4096);
  });

  it('survives the garbage collector while the kernel writes into it', async () => {
    const device = await engine.open(makeFile(MIB, numbered));
    const churn: ArrayBuffer[] = [];
    await Promise.all(
      Array.from({ length: 30 }, async (_, i) => {
        // Nobody but the engine holds it.
        const reading = device.read(i * 4096, engine.allocate(4096, { registered: i % 2 === 0 }), 0, 4096);
        churn.push(new ArrayBuffer(MIB));
        await reading;
      }),
    );
    expect(churn.length).toBe(30);
  });
});

describe('the end of things', () => {
  it('closes a device after its operations, and any number of times', async () => {
    const device = await engine.open(makeFile(MIB, numbered));
    const buffer = engine.allocate(64 * 4096);
    const reads = Array.from({ length: 40 }, (_, i) => device.read(i * 4096, buffer, i * 4096, 4096));
    await Promise.all([device.close(), device.close()]);
    await Promise.all(reads);
    expect(u32(buffer, 39 * 4096)).toBe(39 * 8 + 1);
    expect(device.closed).toBe(true);
    expect(await failure(device.read(0, buffer, 0, 4096))).toMatchObject({ code: 'EBADF' });
    expect(await failure(device.flush())).toMatchObject({ code: 'EBADF' });
  });

  it('closes an engine after everything on it, and says so to whoever comes after', async () => {
    const device = await engine.open(makeFile(MIB, numbered));
    const buffer = engine.allocate(64 * 4096);
    const reads = Array.from({ length: 40 }, (_, i) => device.read(i * 4096, buffer, i * 4096, 4096));
    const closing = engine.close();
    expect(engine.close()).toBe(closing);
    expect(await failure(device.read(0, buffer, 0, 4096))).toMatchObject({ code: 'EBADF' });
    await Promise.all([closing, ...reads]);
    expect(() => engine.allocate(4096)).toThrow(/closed/);
    expect(() => engine.pollCompletions(0)).toThrow(/closed/);
    await expect(engine.open('x')).rejects.toThrow(/closed/);
    engine.detach(buffer);
  });

  it('can reuse the places of closed devices', async () => {
    const file = makeFile(MIB);
    for (let i = 0; i < 600; i++) await (await engine.open(file)).close();
  });

  it('settles operations of an engine that nobody holds any more', async () => {
    const file = makeFile(MIB, numbered);
    const values = await Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        const lost = new BlockEngine({ queueDepth: 2 });
        const device = await lost.open(file);
        const buffer = lost.allocate(4096);
        await device.read(i * 4096, buffer, 0, 4096);
        return u32(buffer, 0);
      }),
    );
    expect(values).toEqual(Array.from({ length: 20 }, (_, i) => i * 8 + 1));
  });
});

describe('the event loop', () => {
  it('gives timers and other events their turn, however busy the device is', async () => {
    const device = await engine.open(makeFile(MIB, numbered), { direct: 'off' });
    const buffer = engine.allocate(8 * 4096);
    let turns = 0;
    const lane = async (index: number): Promise<void> => {
      while (turns < 50) await device.read(index * 4096, buffer, index * 4096, 4096);
    };
    const tick = (): void => {
      turns++;
      if (turns < 50) setTimeout(tick, 0);
    };
    setTimeout(tick, 0);
    await Promise.all([0, 1, 2, 3, 4, 5, 6, 7].map(lane));
    expect(turns).toBe(50);
  });
});

describe('pollCompletions', () => {
  it('settles what has completed, without the event loop', async () => {
    const device = await engine.open(makeFile(MIB, numbered));
    const buffer = engine.allocate(4 * 4096);
    const reads = [0, 1, 2].map((i) => device.read(i * 4096, buffer, i * 4096, 4096));
    let settled = 0;
    while (engine.inFlight > 0) settled += engine.pollCompletions(1_000_000);
    expect(settled).toBe(3);
    expect([0, 1, 2].map((i) => u32(buffer, i * 4096))).toEqual([1, 9, 17]);
    await Promise.all(reads);
    expect(engine.pollCompletions(0)).toBe(0);
    expect(() => engine.pollCompletions(-1)).toThrow(RangeError);
  });
});

describe('a worker', () => {
  const library = fileURLToPath(new URL('../dist/index.js', import.meta.url));
  const script = `
    const { workerData, parentPort } = require('node:worker_threads');
    (async () => {
      const { BlockEngine } = await import(workerData.library);
      const engine = new BlockEngine({ queueDepth: 64 });
      const device = await engine.open(workerData.file);
      const buffer = engine.allocate(64 * 65536);
      const again = (i) => device.read((i % 16) * 65536, buffer, i * 65536, 65536).then(() => again(i));
      for (let i = 0; i < 64; i++) again(i);
      await device.read(0, buffer, 0, 4096);
      parentPort.postMessage('busy');
      if (workerData.exit) process.exit(0);
    })();`;

  for (const exit of [true, false]) {
    it(`may ${exit ? 'exit' : 'be terminated'} with I/O in flight`, async () => {
      const file = makeFile(MIB, numbered);
      for (let round = 0; round < 5; round++) {
        const worker = new Worker(script, { eval: true, workerData: { library, file, exit } });
        const ended = new Promise((resolve) => worker.once('exit', resolve));
        await new Promise((resolve, reject) => {
          worker.once('message', resolve);
          worker.once('error', reject);
        });
        if (!exit) await worker.terminate();
        await ended;
      }
    });
  }

  it('and the main thread may use the same memory, each through an engine of its own', async () => {
    const device = await engine.open(makeFile(MIB, numbered));
    const second = new BlockEngine();
    const buffer = engine.allocate(8192);
    const same = second.attach(buffer.buffer);
    const again = await second.open(device.path);
    await Promise.all([device.read(0, buffer, 0, 4096), again.read(4096, same, 4096, 4096)]);
    expect([u32(buffer, 0), u32(buffer, 4096)]).toEqual([1, 9]);
    await second.close();
  });
});

describe('a process', () => {
  it('stays alive for its operations and ends by itself after them', () => {
    const file = makeFile(MIB, numbered);
    const library = new URL('../dist/index.js', import.meta.url).href;
    const script = `
      import { BlockEngine } from '${library}';
      const engine = new BlockEngine();
      const device = await engine.open('${file}');
      const buffer = engine.allocate(4096);
      device.read(4096, buffer, 0, 4096).then(() => console.log('read', new Uint32Array(buffer.buffer)[0]));`;
    const ran = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
      timeout: 30_000,
    });
    expect(ran.stdout).toBe('read 9\n');
    expect(ran.status).toBe(0);
  });
});

/** Loop devices: real block devices. Null with the reason when the machine doesn't let us have them. */
function attachLoop(file: string, ...options: string[]): string | null {
  const made = spawnSync('losetup', ['--find', '--show', ...options, file], { encoding: 'utf8' });
  if (made.status === 0) return made.stdout.trim();
  loopRefused = `losetup was refused: ${(made.stderr ?? made.error?.message ?? '').trim()}`;
  return null;
}
let loopRefused = '';
const loopProbe = (() => {
  const file = path.join(os.tmpdir(), `napi-nvme-probe-${process.pid}`);
  fs.writeFileSync(file, new Uint8Array(MIB));
  const loop = attachLoop(file);
  if (loop !== null) spawnSync('losetup', ['--detach', loop]);
  fs.rmSync(file);
  if (loop === null) process.stderr.write(`napi-nvme: tests on loop devices are skipped, ${loopRefused}\n`);
  return loop !== null;
})();

describe.skipIf(!loopProbe)('a block device', () => {
  async function withLoop(
    file: string,
    options: string[],
    use: (device: BlockDeviceHandle, loop: string) => Promise<void>,
  ): Promise<void> {
    const loop = attachLoop(file, ...options);
    if (loop === null) throw new Error(loopRefused);
    try {
      const device = await engine.open(loop);
      await use(device, loop).finally(() => device.close());
    } finally {
      spawnSync('losetup', ['--detach', loop]);
    }
  }

  it('tells its size, its sectors and that it is one', async () => {
    await withLoop(makeFile(8 * MIB), ['--sector-size', '4096'], async (device) => {
      expect(device).toMatchObject({
        kind: 'block',
        sizeBytes: 8 * MIB,
        logicalBlockBytes: 4096,
        direct: true,
        readOnly: false,
      });
      expect(device.physicalBlockBytes).toBeGreaterThanOrEqual(4096);
    });
  });

  it('reads, writes, flushes, discards and zeroes', async () => {
    const file = makeFile(8 * MIB, numbered);
    await withLoop(file, [], async (device) => {
      const buffer = engine.allocate(MIB);
      await device.read(4 * MIB, buffer, 0, MIB);
      expect(u32(buffer, 512)).toBe(8194);
      new Uint8Array(buffer.buffer).fill(0x77);
      await device.write(MIB, buffer, 0, MIB);
      await device.discard(2 * MIB, MIB);
      await device.writeZeroes(MIB, 65_536);
      await device.flush();
    });
    const seen = fs.readFileSync(file);
    expect([seen[MIB], seen[MIB + 65_536], seen[2 * MIB - 1], seen[2 * MIB]]).toEqual([0, 0x77, 0x77, 0]);
  });

  it('that is read-only says so and refuses writes', async () => {
    await withLoop(makeFile(MIB), ['--read-only'], async (_, loop) => {
      const device = await engine.open(loop, { readOnly: true });
      expect(device.readOnly).toBe(true);
      expect(await failure(device.write(0, engine.allocate(4096), 0, 4096))).toMatchObject({ code: 'EROFS' });
    }).catch((error: { code?: string }) => {
      // Opening for writing is refused by some kernels, and that is an answer, too.
      expect(['EROFS', 'EACCES']).toContain(error.code);
    });
  });

  it('reports reads and discards beyond its end', async () => {
    await withLoop(makeFile(MIB), [], async (device) => {
      const buffer = engine.allocate(8192);
      expect(await failure(device.read(MIB - 4096, buffer, 0, 8192))).toMatchObject({ short: true, doneBytes: 4096 });
      expect(await failure(device.discard(MIB, 4096))).toMatchObject({ code: 'EINVAL', syscall: 'discard' });
      expect((await failure(device.write(MIB, buffer, 0, 4096))).code).toMatch(/ENOSPC|EIO/);
    });
  });

  it('reports an error of the disk behind it, with errno and offset', async () => {
    const small = path.join(directory, 'small');
    fs.mkdirSync(small);
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', small]);
    if (mounted.status !== 0) {
      process.stderr.write('napi-nvme: mounting a tmpfs was refused, the test of a failing disk is skipped\n');
      return;
    }
    try {
      const file = path.join(small, 'sparse');
      fs.writeFileSync(file, '');
      fs.truncateSync(file, 8 * MIB);
      await withLoop(file, [], async (device) => {
        const buffer = engine.allocate(4 * MIB);
        new Uint8Array(buffer.buffer).fill(1);
        const error = await failure(device.write(4 * MIB, buffer, 0, 4 * MIB));
        expect(['EIO', 'ENOSPC']).toContain(error.code);
        expect(error).toMatchObject({ offsetBytes: 4 * MIB, syscall: 'write' });
      });
      const device = await engine.open(file);
      const buffer = engine.allocate(4 * MIB);
      new Uint8Array(buffer.buffer).fill(1);
      expect(await failure(device.write(0, buffer, 0, 4 * MIB))).toMatchObject({ code: 'ENOSPC' });
      await device.close();
    } finally {
      spawnSync('umount', [small]);
    }
  });
});
