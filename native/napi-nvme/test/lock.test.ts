import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { BlockEngine } from '../lib/index.js';
import { holderIn } from '../lib/lock-holder.js';
import { native } from '../lib/native.js';

let directory: string;
let file: string;
const engines: BlockEngine[] = [];
const children: ChildProcess[] = [];
const closing: (() => void)[] = [];

beforeAll(() => {
  const parent = path.join(process.cwd(), 'node_modules');
  directory = fs.mkdtempSync(path.join(parent, '.napi-nvme-test-'));
  file = path.join(directory, 'device');
  fs.writeFileSync(file, Buffer.alloc(1 << 20));
});
afterAll(() => fs.rmSync(directory, { recursive: true, force: true }));
afterEach(async () => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  for (const engine of engines.splice(0)) await engine.close();
  for (const close of closing.splice(0)) close();
});

function newEngine(): BlockEngine {
  const engine = new BlockEngine({ queueDepth: 8 });
  engines.push(engine);
  return engine;
}

/** Another process that opens the file with the lock, writes to it without a pause, and says when it has begun. */
async function otherProcess(): Promise<ChildProcess> {
  const library = pathToFileURL(path.join(process.cwd(), 'native/napi-nvme/dist/index.js')).href;
  const script = `
    const { BlockEngine } = await import(${JSON.stringify(library)});
    const engine = new BlockEngine({ queueDepth: 8 });
    const device = await engine.open(${JSON.stringify(file)}, { lock: true });
    const buffer = engine.allocate(65536);
    console.log('locked');
    for (;;) await Promise.all([0, 1, 2, 3].map((i) => device.write(i * 65536, buffer, 0, 65536)));
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  const [said] = (await once(child.stdout!, 'data')) as [Buffer];
  expect(said.toString()).toContain('locked');
  return child;
}

/** The kernel may still be at the I/O of a process that has just died. */
async function openWhenFree(engine: BlockEngine) {
  for (;;) {
    try {
      return await engine.open(file, { lock: true });
    } catch (error) {
      if ((error as { code?: unknown }).code !== 'EBUSY') throw error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

describe('an opened device with a lock', () => {
  it('is refused to another process while it is open, naming the one that has it, and free after that was killed', async () => {
    const other = await otherProcess();
    const engine = newEngine();
    await expect(engine.open(file, { lock: true })).rejects.toMatchObject({
      code: 'EBUSY',
      pid: other.pid,
      message: expect.stringContaining(`process ${other.pid} (`) as string,
    });
    // Who doesn't want the lock isn't kept out: tools may look.
    await (await engine.open(file, { readOnly: true })).close();
    const ended = once(other, 'exit');
    other.kill('SIGKILL');
    await ended;
    const device = await openWhenFree(engine);
    await device.close();
  });

  it('is refused to another engine of the same process, and free once it is closed', async () => {
    const first = await newEngine().open(file, { lock: true });
    const second = newEngine();
    await expect(second.open(file, { lock: true })).rejects.toMatchObject({ code: 'EBUSY', pid: process.pid });
    await first.close();
    await (await second.open(file, { lock: true })).close();
  });

  it('of one storage with two names is refused by the other name, also while only the kernel is still at it', async () => {
    const [agreed, second, missing] = ['agreed', 'second', 'missing'].map((name) => path.join(directory, name));
    for (const name of [agreed!, second!]) fs.writeFileSync(name, Buffer.alloc(4096));
    const names = [missing!, agreed!, second!];
    const make = () => {
      const made = new (native().Engine)(8, 0, () => undefined);
      closing.push(() => made.close());
      return made;
    };
    const [one, other] = [make(), make()];
    for (const [first, then] of [
      [agreed!, second!],
      [second!, agreed!],
      [second!, second!],
    ] as const) {
      const held = await one.open(first, false, 0, names);
      await expect(other.open(then, false, 0, names)).rejects.toMatchObject({ code: 'EBUSY', path: agreed });
      one.closeTarget(held.slot);
      other.closeTarget((await other.open(then, false, 0, names)).slot);
    }
    // Opened by its second name by a process that is dead: that lock alone is there until its I/O has ended.
    const rest = await one.open(second!, false, 0, []);
    await expect(other.open(agreed!, false, 0, names)).rejects.toMatchObject({ code: 'EBUSY', path: second });
    one.closeTarget(rest.slot);
    await other.open(agreed!, false, 0, names);
  });

  it('has its holder named by the lines of /proc/locks', () => {
    const locks = [
      '1: POSIX  ADVISORY  READ 11 00:05:321 128 128',
      '2: FLOCK  ADVISORY  WRITE 12 00:05:321 0 EOF',
      '2: -> FLOCK  ADVISORY  WRITE 13 00:05:322 0 EOF',
      '3: FLOCK  ADVISORY  WRITE 0 103:12:9 0 EOF',
      '',
    ].join('\n');
    expect(holderIn(locks, 0, 5, 321n)).toBe(12);
    expect(holderIn(locks, 0, 5, 322n)).toBeNull();
    expect(holderIn(locks, 0x103, 0x12, 9n)).toBeNull();
  });
});
