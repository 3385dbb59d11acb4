import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { afterEach, describe, expect, it } from 'vitest';
import { fuseMounts } from './mount-point.js';
import { MemoryFileSystem } from './testing/memory-file-system.js';
import { canMount, Mounted } from './testing/mounted.js';
import { invalEntry, invalInode } from './wire/notify.js';
import { NotifyCode, WriteFlag } from './wire/protocol.js';

/** Maps a file shared, stores an x at its begin, unmaps: the exit code, or null where nothing can do that. */
function mapAndStore(file: string): Promise<number | null> {
  const program =
    'import mmap,sys\nf=open(sys.argv[1],"r+b")\nm=mmap.mmap(f.fileno(),4096)\nm[0]=120\nm.flush()\nm.close()\nf.close()';
  return new Promise((resolve) => {
    const child = spawn('python3', ['-c', program, file], { stdio: 'ignore' });
    child.on('error', () => resolve(null));
    child.on('exit', (code) => resolve(code ?? -1));
  });
}

/** Real mounts: these need root and /dev/fuse. Programs that use a mount are processes of their own. */
describe.skipIf(!canMount())('a mount served from memory', () => {
  let mounted: Mounted | undefined;
  const mount = async (
    fs: MemoryFileSystem,
    ...more: [Parameters<typeof Mounted.start>[1]?, Parameters<typeof Mounted.start>[2]?, ArrayBuffer?]
  ) => {
    mounted = await Mounted.start(fs, ...more);
    return mounted;
  };
  afterEach(async () => {
    await mounted?.stop();
    mounted = undefined;
  });

  it('agrees with the kernel on what the rules need', async () => {
    const fs = new MemoryFileSystem();
    await mount(fs);
    expect(fs.endedWith).toBe(null);
    expect(fs.agreement!.minor).toBeGreaterThanOrEqual(31);
    const explicitInvalData = 1 << 25;
    const writebackCache = 1 << 16;
    expect(fs.agreement!.flags & explicitInvalData).not.toBe(0);
    expect(fs.agreement!.flags & writebackCache).toBe(0);
  });

  it('serves look-ups, reads, writes, listings, removal, and what statfs asks', async () => {
    const fs = new MemoryFileSystem();
    fs.put('a', 'hello');
    const { session } = await mount(fs);
    const client = await mounted!.client();
    const result = await client.run(({ fs, dir }) => {
      const text = fs.readFileSync(`${dir}/a`, 'utf8');
      fs.mkdirSync(`${dir}/d`);
      fs.writeFileSync(`${dir}/d/b`, Buffer.alloc(3_000_000, 7));
      const b = fs.readFileSync(`${dir}/d/b`);
      fs.renameSync(`${dir}/d/b`, `${dir}/c`);
      fs.truncateSync(`${dir}/c`, 10);
      fs.rmdirSync(`${dir}/d`);
      const code = (f: () => void) => {
        try {
          f();
          return 'none';
        } catch (error) {
          return (error as NodeJS.ErrnoException).code;
        }
      };
      return {
        text,
        bytes: b.length,
        allSevens: b.every((byte) => byte === 7),
        size: fs.statSync(`${dir}/c`).size,
        times: [fs.statSync(`${dir}/a`).mtimeMs, fs.statSync(`${dir}/a`).birthtimeMs],
        list: fs.readdirSync(dir),
        missing: code(() => fs.readFileSync(`${dir}/none`)),
        longName: code(() => fs.readFileSync(`${dir}/${'x'.repeat(256)}`)),
        blocks: fs.statfsSync(dir).blocks,
      };
    });
    expect(result).toEqual({
      text: 'hello',
      bytes: 3_000_000,
      allSevens: true,
      size: 10,
      times: [1500, 2250],
      list: ['a', 'c'],
      missing: 'ENOENT',
      longName: 'ENAMETOOLONG',
      blocks: (1 << 30) / 4096,
    });
    // A megabyte at a time, and whoever writes bypasses the kernel's pages (M1).
    expect(Math.max(...fs.writes.map(({ bytes }) => bytes))).toBe(1 << 20);
    expect(fs.writes.every(({ writeFlags }) => (writeFlags & WriteFlag.cache) === 0)).toBe(true);
    expect(session.counters().badLength).toBe(0);
  });

  it('lists with attributes: no look-up afterwards', async () => {
    const fs = new MemoryFileSystem();
    for (let i = 0; i < 300; i++) fs.put(`file-${i}`, 'x'.repeat(i));
    await mount(fs);
    const client = await mounted!.client();
    const sizes = await client.run(({ fs, dir }) =>
      fs.readdirSync(dir).map((name) => [name, fs.statSync(`${dir}/${name}`).size]),
    );
    expect(new Map(sizes as [string, number][])).toEqual(
      new Map(Array.from({ length: 300 }, (_, i) => [`file-${i}`, i])),
    );
    expect(fs.count('readdirplus')).toBeGreaterThan(0);
    expect(fs.count('lookup')).toBe(0);
  });

  it('answers from the page pool, in pieces, without a copy of its own', async () => {
    const fs = new MemoryFileSystem();
    fs.put('a', Buffer.alloc(8192));
    const pool = new ArrayBuffer(65536);
    new Uint8Array(pool).fill(1, 4096, 8192).fill(2, 40960, 45056);
    const { session } = await mount(fs, {}, {}, pool);
    const client = await mounted!.client();
    const held = fs.hold('read');
    const read = client.run(({ fs, dir }) => fs.readFileSync(`${dir}/a`).toString('hex'));
    const { id } = await held;
    session.answerPool(id, Float64Array.of(4096, 4096, 40960, 4096));
    expect(await read).toBe('01'.repeat(4096) + '02'.repeat(4096));
    expect(() => session.answerPool(id, Float64Array.of(65536, 1))).toThrow(TypeError);
  });

  it('a second answer is refused, and reaches nobody', async () => {
    const fs = new MemoryFileSystem();
    fs.put('a', 'x');
    const { session } = await mount(fs);
    const client = await mounted!.client();
    const held = fs.hold('statx');
    const asked = client.run(({ fs, dir }) => fs.promises.stat(dir).then((stat) => stat.isDirectory()));
    const request = await held;
    request.release();
    expect(await asked).toBe(true);
    expect(() => session.answer(request.id, 0)).toThrow(/second time/);
  });

  it('a signal reaches the request that waits, and whoever waited is free (M7)', async () => {
    const fs = new MemoryFileSystem();
    const { session } = await mount(fs);
    const client = await mounted!.client();
    const held = fs.hold('mkdir');
    void client.run(({ fs, dir }) => fs.promises.mkdir(`${dir}/d`)).catch(() => undefined);
    const { id } = await held;
    client.kill();
    await client.gone;
    expect(fs.interruptedIds).toContain(id);
    expect(session.counters().interrupts).toBeGreaterThan(0);
  });

  it('unmounting, and aborting, while requests are parked leaves nobody waiting', async () => {
    const fs = new MemoryFileSystem();
    fs.put('a', Buffer.alloc(1 << 16));
    await mount(fs);
    const client = await mounted!.client();
    const code = (promise: Promise<string>) => promise.catch((error: NodeJS.ErrnoException) => String(error.code));
    const heldRead = fs.hold('read');
    const heldMkdir = fs.hold('mkdir');
    const read = code(client.run(({ fs, dir }) => fs.promises.readFile(`${dir}/a`).then(() => 'done')));
    await heldRead;
    // Only now: it holds the directory's lock, and the look-up of the other would wait for it.
    const made = code(client.run(({ fs, dir }) => fs.promises.mkdir(`${dir}/d`).then(() => 'done')));
    await heldMkdir;
    const directory = mounted!.directory;
    await mounted!.stop();
    mounted = undefined;
    // Its programs were killed; that they are gone means that none of them waits for the mount.
    for (const result of await Promise.all([read, made])) expect(result).not.toBe('done');
    expect(fs.endedWith).not.toBe(null);
    expect((await fuseMounts()).map(({ target }) => target)).not.toContain(directory);
  });

  it('closing answers what is parked: its callers get an error, the mount another server', async () => {
    const fs = new MemoryFileSystem();
    const { session } = await mount(fs);
    const client = await mounted!.client();
    const held = fs.hold('mkdir');
    const waiting = client
      .run(({ fs, dir }) => fs.promises.mkdir(`${dir}/d`))
      .catch((e: NodeJS.ErrnoException) => e.code);
    const { id } = await held;
    await session.close();
    expect(await waiting).toBe('ENOTCONN');
    expect(session.answer(id, constants.errno.EIO)).toBe(true); // nothing happens
  });

  it('without a free slot nothing is read, and all go on when one comes free', async () => {
    const fs = new MemoryFileSystem();
    const { session } = await mount(fs, { smallSlots: 2 });
    const client = await mounted!.client();
    const names = ['a', 'b', 'c', 'd', 'e'];
    // Look-ups of several names run side by side; two are read, and then none.
    const held = names.map((name) => fs.hold('lookup', (request) => request.op === 'lookup' && request.name === name));
    const asked = names.map((name) =>
      client.run(({ fs, dir }, n) => fs.promises.stat(`${dir}/${n}`).catch((e) => e.code), name),
    );
    await fs.until(() => fs.count('lookup') === 2);
    expect(session.counters().slotsFree).toBe(0);
    for (const one of held) void one.then((lookup) => lookup.release());
    expect(await Promise.all(asked)).toEqual(names.map(() => 'ENOENT'));
    expect(fs.count('lookup')).toBe(names.length);
  });

  it('the reader answers what it was taught, until that is taken back or the lease is out (I2, M4)', async () => {
    const fs = new MemoryFileSystem();
    const file = fs.put('a', 'hello');
    fs.entrySeconds = 0; // the kernel asks each time
    fs.attributeSeconds = 0;
    fs.teachReader = true;
    const { session } = await mount(fs);
    const client = await mounted!.client();
    const stat = () =>
      client.run(({ fs, dir }) => {
        const { size, birthtimeMs, mtimeMs, mode } = fs.statSync(`${dir}/a`);
        return [size, birthtimeMs, mtimeMs, mode];
      });
    const right = (size: number) => [size, 2250, 1500, 0o100644];
    session.setLeaseDeadline(Number.POSITIVE_INFINITY);
    expect(await stat()).toEqual(right(5));
    const asked = fs.seen.length;
    for (let i = 0; i < 3; i++) expect(await stat()).toEqual(right(5));
    // Of the root's attributes, which nobody taught it, the engine is asked.
    expect(fs.seen.slice(asked).filter((op) => op === 'lookup')).toEqual([]);
    expect(session.counters().lookupHits).toBeGreaterThanOrEqual(3);
    expect(session.counters().attributeHits).toBeGreaterThanOrEqual(3);

    file.data = Buffer.from('longer than before');
    session.takeBack(file.node);
    expect(await stat()).toEqual(right(18));

    const lookups = fs.count('lookup');
    session.setLeaseDeadline(0);
    expect(await stat()).toEqual(right(18));
    expect(fs.count('lookup')).toBe(lookups + 1);
  });

  it('a node that the kernel forgot is told, and its id is stale', async () => {
    const fs = new MemoryFileSystem();
    fs.put('a', 'x');
    fs.entrySeconds = 0;
    const { session } = await mount(fs);
    const client = await mounted!.client();
    await client.run(({ fs, dir }) => fs.readFileSync(`${dir}/a`, 'utf8'));
    const node = [...fs.inodes.keys()].find((key) => key !== 1)!;
    expect(session.removeNode(node)).toBe(false); // the kernel knows it
    await client.run(({ fs, dir }) => fs.unlinkSync(`${dir}/a`));
    await fs.until(() => fs.forgottenNodes.includes(node));
    expect(session.removeNode(node)).toBe(false); // it is gone already
    expect(() => session.lookedUp(node)).toThrow(/not live/);
  });

  it('a notification ends with its own completion; the next read asks', async () => {
    const fs = new MemoryFileSystem();
    const file = fs.put('a', 'old');
    const { session } = await mount(fs);
    const client = await mounted!.client();
    const read = () => client.run(({ fs, dir }) => fs.readFileSync(`${dir}/a`, 'utf8'));
    expect(await read()).toBe('old');
    file.data = Buffer.from('new');
    expect(await read()).toBe('old'); // the kernel's page
    expect(await session.notify(NotifyCode.invalInode, invalInode(file.node, 0, 0))).toBe(0);
    expect(await read()).toBe('new');
    // Names: a file that was renamed elsewhere.
    fs.root.children.delete('a');
    expect(await session.notify(NotifyCode.invalEntry, invalEntry(1, 'a', true))).toBe(0);
    expect(await client.run(({ fs, dir }) => fs.existsSync(`${dir}/a`))).toBe(false);
    expect(await session.notify(NotifyCode.invalEntry, invalEntry(1, 'never-looked-up', false))).toBe(
      constants.errno.ENOENT,
    );
  });

  it('a notification waits for a parked READ of its pages; cut around it, it does not (M2)', async () => {
    const fs = new MemoryFileSystem();
    const file = fs.put('a', Buffer.alloc(8 * 4096, 1));
    fs.entrySeconds = 0;
    const { session } = await mount(fs);
    const client = await mounted!.client();
    const held = fs.hold('read');
    const read = client.run(({ fs, dir, kept }) => {
      kept['fd'] = fs.openSync(`${dir}/a`, 'r');
      return fs.promises.readFile(`${dir}/a`).then((data) => data[0]);
    });
    const parked = await held;
    if (parked.request.op !== 'read') throw new Error('not a read');
    const end = parked.request.offset + parked.request.size;
    let whole: number | null = null;
    const blocked = session.notify(NotifyCode.invalInode, invalInode(file.node, 0, 0)).then((errno) => (whole = errno));
    // Attributes alone, and what is behind the READ, are taken back meanwhile.
    expect(await session.notify(NotifyCode.invalInode, invalInode(file.node, -1, 0))).toBe(0);
    expect(await session.notify(NotifyCode.invalInode, invalInode(file.node, end, 0))).toBe(0);
    expect(whole).toBe(null);
    expect(session.counters().notificationsPending).toBe(1);
    parked.release();
    expect(await read).toBe(1);
    expect(await blocked).toBe(0);
  });

  it('INC_EPOCH takes no lock: names are asked again though the directory is held (M2)', async () => {
    const fs = new MemoryFileSystem();
    fs.put('a', 'x');
    const { session } = await mount(fs);
    const client = await mounted!.client();
    await client.run(({ fs, dir }) => fs.existsSync(`${dir}/a`));
    const held = fs.hold('mkdir');
    const made = client.run(({ fs, dir }) => fs.promises.mkdir(`${dir}/d`).then(() => true));
    const parked = await held;
    const epoch = await session.expireAllNames();
    if (fs.agreement!.minor >= 44) expect(epoch).toBe(0);
    const lookups = fs.count('lookup');
    parked.release();
    expect(await made).toBe(true);
    await client.run(({ fs, dir }) => fs.existsSync(`${dir}/a`));
    if (epoch === 0) expect(fs.count('lookup')).toBe(lookups + 1);
  });

  it('a queue of notifications that is full says so', async () => {
    const fs = new MemoryFileSystem();
    const file = fs.put('a', Buffer.alloc(4096));
    const { session } = await mount(fs, { notifierThreads: 1, notificationsMax: 2 });
    const client = await mounted!.client();
    const held = fs.hold('read');
    const read = client.run(({ fs, dir }) => fs.promises.readFile(`${dir}/a`).then((data) => data.length));
    const parked = await held;
    const data = () => session.notify(NotifyCode.invalInode, invalInode(file.node, 0, 0));
    // One is under way (and blocked) at most, two are queued.
    const told = Array.from({ length: 8 }, () => data().then(String, (error: { code: string }) => error.code));
    parked.release();
    const results = await Promise.all(told);
    expect(results.filter((result) => result === 'EAGAIN').length).toBeGreaterThanOrEqual(5);
    expect(results.filter((result) => result === '0').length).toBeGreaterThanOrEqual(2);
    expect(await read).toBe(4096);
  });

  it('a read that was refused for many pages is asked again page by page', async () => {
    const fs = new MemoryFileSystem();
    fs.put('a', Buffer.alloc(16 * 4096, 5));
    await mount(fs);
    const client = await mounted!.client();
    const held = fs.hold('read', (request) => request.op === 'read' && request.size > 4096);
    const read = client.run(({ fs, dir }) => {
      const data = fs.readFileSync(`${dir}/a`);
      return data.length === 16 * 4096 && data.every((byte) => byte === 5);
    });
    (await held).answer(constants.errno.EAGAIN);
    expect(await read).toBe(true);
  });

  it('a shared writable mapping of a direct handle works, and its pages come as laundered writes (M1, M3)', async () => {
    const fs = new MemoryFileSystem();
    const file = fs.put('a', Buffer.alloc(4096, 97));
    await mount(fs);
    const errno = await mapAndStore(`${mounted!.directory}/a`);
    if (errno === null) return; // no python3: nothing here can map
    expect(errno).toBe(0);
    expect(file.data.subarray(0, 3).toString()).toBe('xaa');
    expect(fs.writes.map(({ writeFlags, bytes }) => [writeFlags & WriteFlag.cache, bytes])).toEqual([[1, 4096]]);
  });
});
