import * as nodeFs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { FileSystemClient } from './file-system-client.js';
import { directRig, outcome, type Rig, socketRig } from './testing/harness.js';
import { workerRig } from './testing/worker-rig.js';

/**
 * The same programs run on node:fs/promises over a temporary directory and on a Holdfast client, over every transport: what they
 * see must be the same, values and errors alike. A program gets the API and the directory it may use.
 */
type Api = Pick<typeof nodeFs, 'readFile'> & Omit<FileSystemClient, 'readFile'>;
type Program = (fs: Api, dir: string) => Promise<unknown>;

let realRoot: string;
let rig: Rig;
let count = 0;

beforeAll(async () => {
  realRoot = await nodeFs.mkdtemp(join(tmpdir(), 'holdfast-conformance-'));
});
afterAll(async () => {
  await nodeFs.rm(realRoot, { recursive: true });
});

/** Paths differ in where the program's directory is; nothing else may. */
function normalise(value: unknown, dir: string): unknown {
  if (typeof value === 'string') return value.replaceAll(dir, '<dir>');
  if (Buffer.isBuffer(value)) return `bytes ${value.toString('latin1')}`;
  if (Array.isArray(value)) return value.map((v) => normalise(v, dir));
  if (typeof value === 'object' && value !== null)
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, normalise(v, dir)]));
  return value;
}

function same(name: string, program: Program): void {
  it(name, async () => {
    const dir = `case-${count++}`;
    const realDir = join(realRoot, dir);
    const ourDir = `/${dir}`;
    await nodeFs.mkdir(realDir, { recursive: true });
    await rig.client.mkdir(ourDir, { recursive: true });
    const expected = normalise(await outcome(() => program(nodeFs as unknown as Api, realDir)), realDir);
    const found = normalise(await outcome(() => program(rig.client as unknown as Api, ourDir)), ourDir);
    expect(found).toEqual(expected);
  });
}

const errors = (works: (() => Promise<unknown>)[]): Promise<unknown[]> =>
  works.reduce<Promise<unknown[]>>(async (all, work) => [...(await all), await outcome(work)], Promise.resolve([]));

const sorted = (names: string[]): string[] => [...names].sort();

for (const transport of ['direct', 'socket', 'worker'] as const)
  describe(`as node:fs/promises, over the ${transport} transport`, () => {
    beforeAll(async () => {
      rig = await { direct: directRig, socket: socketRig, worker: workerRig }[transport]();
    });
    afterAll(() => rig.close());

    same('writeFile and readFile agree in every form of data and encoding', async (fs, dir) => {
      const file = join(dir, 'f');
      const seen: unknown[] = [];
      for (const data of [
        'text ü',
        Buffer.from([0, 1, 255]),
        new Uint16Array([1, 2]),
        new DataView(new ArrayBuffer(3)),
      ]) {
        await fs.writeFile(file, data);
        seen.push(
          await fs.readFile(file),
          await fs.readFile(file, 'utf8'),
          await fs.readFile(file, { encoding: 'hex' }),
        );
      }
      await fs.writeFile(file, '00ff', 'hex');
      seen.push(await fs.readFile(file));
      await fs.writeFile(file, ['a', 'b', Buffer.from('c')] as unknown as string[]);
      seen.push(await fs.readFile(file, 'utf8'));
      await fs.writeFile(
        file,
        (async function* () {
          yield 'x';
          yield 'y';
        })(),
      );
      await fs.appendFile(file, 'z');
      seen.push(await fs.readFile(file, 'latin1'));
      return seen;
    });

    same('flags of writeFile, readFile and open mean the same', async (fs, dir) => {
      const file = join(dir, 'f');
      return errors([
        () => fs.readFile(file),
        () => fs.writeFile(file, 'one', { flag: 'wx' }),
        () => fs.writeFile(file, 'two', { flag: 'wx' }),
        () => fs.writeFile(file, 'T', { flag: 'r+' }),
        () => fs.readFile(file, 'utf8'),
        () => fs.writeFile(join(dir, 'none'), 'x', { flag: 'r+' }),
        () => fs.writeFile(file, 'x', { flag: 'bogus' }),
        () => fs.writeFile(file, '!', { flag: 'a' }),
        () => fs.readFile(file, { encoding: 'utf8', flag: 'a+' }),
        () => fs.writeFile(dir, 'x'),
        () => fs.readFile(dir),
        () => fs.readFile(join(file, 'below')),
        () => fs.writeFile(file, 5 as unknown as string),
        () => fs.writeFile(file, undefined as unknown as string),
        () => fs.readFile(file, 'no-encoding' as BufferEncoding),
      ]);
    });

    same('errors name code, errno, syscall, path and dest', async (fs, dir) => {
      const missing = join(dir, 'missing');
      const file = join(dir, 'file');
      const full = join(dir, 'full');
      await fs.writeFile(file, 'x');
      await fs.mkdir(full);
      await fs.writeFile(join(full, 'x'), 'x');
      return errors([
        () => fs.open(missing),
        () => fs.stat(missing),
        () => fs.lstat(missing),
        () => fs.access(missing),
        () => fs.unlink(missing),
        () => fs.unlink(dir),
        () => fs.rmdir(missing),
        () => fs.rmdir(file),
        () => fs.rmdir(full),
        () => fs.mkdir(file),
        () => fs.mkdir(join(missing, 'below')),
        () => fs.mkdir(join(file, 'below'), { recursive: true }),
        () => fs.mkdir(file, { recursive: true }),
        () => fs.readdir(missing),
        () => fs.readdir(file),
        () => fs.opendir(missing),
        () => fs.rename(missing, file),
        () => fs.rename(full, join(full, 'inside')),
        () => fs.rename(file, full),
        () => fs.rename(full, file),
        () => fs.link(missing, file),
        () => fs.link(file, file),
        () => fs.symlink('x', file),
        () => fs.readlink(missing),
        () => fs.readlink(file),
        () => fs.realpath(missing),
        () => fs.truncate(missing),
        () => fs.chmod(missing, 0o600),
        () => fs.chown(missing, 1, 1),
        () => fs.lchown(missing, 1, 1),
        () => fs.utimes(missing, 1, 1),
        () => fs.lutimes(missing, 1, 1),
        () => fs.copyFile(missing, file),
        () => fs.copyFile(file, full),
        () => fs.copyFile(file, file, 1),
        () => fs.statfs(missing),
        () => fs.rm(missing),
        () => fs.rm(missing, { force: true }),
        () => fs.rm(full),
        () => fs.mkdtemp(join(missing, 'x-')).catch((e: NodeJS.ErrnoException) => [e.code, e.syscall]),
        () => fs.cp(full, join(dir, 'copy')),
        () => fs.stat(join(dir, 'n'.repeat(256))),
      ]);
    });

    same('arguments of the wrong kind are refused in the same words', async (fs, dir) => {
      const file = join(dir, 'f');
      await fs.writeFile(file, 'x');
      const bad = (value: unknown): string => value as string;
      return errors([
        () => fs.open(bad(undefined)),
        () => fs.open(bad(7)),
        () => fs.open(bad(null)),
        () => fs.open(bad({})),
        () => fs.stat(bad([])),
        () => fs.readFile(bad(true)),
        () => fs.open('a\0b'),
        () => fs.stat('a\0b'),
        () => fs.rename(file, bad(1)),
        () => fs.rename(bad(1), file),
        () => fs.link(bad(1), file),
        () => fs.open(file, 'zz'),
        () => fs.open(file, 1.5),
        () => fs.chmod(file, bad('9')),
        () => fs.chmod(file, -1),
        () => fs.chmod(file, 1.5),
        () => fs.chown(file, 1.5, 0),
        () => fs.chown(file, -2, 0),
        () => fs.chown(file, bad('1') as unknown as number, 0),
        () => fs.truncate(file, 1.5),
        () => fs.truncate(file, bad('1') as unknown as number),
        () => fs.utimes(file, bad('x'), 1),
        () => fs.mkdir(join(dir, 'd'), { recursive: 1 as unknown as boolean }),
        () =>
          fs
            .readFile(file, { signal: 1 as unknown as AbortSignal })
            .then(() => 'node does not check this one')
            .catch(() => 'node does not check this one'),
      ]);
    });

    same('paths may be strings, buffers and URLs', async (fs, dir) => {
      const file = join(dir, 'a file');
      await fs.writeFile(Buffer.from(file), 'bytes');
      return [
        await fs.readFile(pathToFileURL(file), 'utf8'),
        await fs.readFile(Buffer.from(file), 'utf8'),
        (await fs.stat(pathToFileURL(file))).size,
      ];
    });

    same('stat tells kind, size, mode, links and times', async (fs, dir) => {
      const file = join(dir, 'f');
      await fs.writeFile(file, 'x'.repeat(5000), { mode: 0o640 });
      await fs.symlink('f', join(dir, 'l'));
      await fs.link(file, join(dir, 'h'));
      await fs.utimes(file, 1_700_000_000.25, new Date('2024-05-06T07:08:09.500Z'));
      const [s, l, d, b] = [
        await fs.stat(join(dir, 'l')),
        await fs.lstat(join(dir, 'l')),
        await fs.stat(dir),
        await fs.stat(file, { bigint: true }),
      ];
      return [
        [s.isFile(), s.isDirectory(), s.isSymbolicLink(), s.size, s.mode, s.nlink, s.uid, s.gid, s.rdev],
        [
          s.atimeMs,
          s.mtimeMs,
          s.atime.toISOString(),
          s.mtime.toISOString(),
          typeof s.ctimeMs,
          s.birthtime instanceof Date,
        ],
        [l.isSymbolicLink(), l.isFile(), l.size, l.mode],
        [d.isDirectory(), d.isFile(), d.isFIFO(), d.isSocket(), d.isBlockDevice(), d.isCharacterDevice()],
        [b.size, b.mode, b.mtimeNs, b.mtimeMs, b.atimeNs, typeof b.ino, b.isFile()],
        // The dates are made when asked for, as in node from 22 on.
        Object.keys(s)
          .filter((key) => !/time$/.test(key))
          .sort(),
        Object.keys(b).sort(),
      ];
    });

    same('chmod, utimes and lutimes change what they say', async (fs, dir) => {
      const file = join(dir, 'f');
      await fs.writeFile(file, '');
      await fs.symlink('f', join(dir, 'l'));
      await fs.chmod(file, '0700');
      await fs.lutimes(join(dir, 'l'), 5, 6);
      await fs.utimes(file, '7', 8);
      const s = await fs.stat(file);
      const l = await fs.lstat(join(dir, 'l'));
      return [s.mode, s.atimeMs, s.mtimeMs, l.atimeMs, l.mtimeMs];
    });

    same('mkdir -p tells the first directory that it made', async (fs, dir) => [
      await fs.mkdir(join(dir, 'a/b/c'), { recursive: true }),
      await fs.mkdir(join(dir, 'a/b/c'), { recursive: true }),
      await fs.mkdir(join(dir, 'a/x/y/z'), { recursive: true, mode: 0o700 }),
      await fs.mkdir(join(dir, 'plain')),
      (await fs.stat(join(dir, 'a/x'))).mode,
    ]);

    same('readdir lists names, Dirents and whole trees', async (fs, dir) => {
      await fs.mkdir(join(dir, 'd/e'), { recursive: true });
      await fs.writeFile(join(dir, 'f'), '');
      await fs.writeFile(join(dir, 'd/e/deep'), '');
      await fs.symlink('d', join(dir, 's'));
      const plain = await fs.readdir(dir, { withFileTypes: true });
      const deep = await fs.readdir(dir, { withFileTypes: true, recursive: true });
      const bytes = await fs.readdir(dir, 'buffer');
      const kind = (e: (typeof plain)[number]): string =>
        `${e.path} ${e.name} ${e.isFile()} ${e.isDirectory()} ${e.isSymbolicLink()}`;
      return [
        sorted(await fs.readdir(dir)),
        sorted(plain.map(kind)),
        sorted(await fs.readdir(join(dir, 'd'), { recursive: true })),
        sorted(deep.map(kind)),
        sorted(bytes.map((b) => b.toString())),
      ];
    });

    same('opendir iterates and closes', async (fs, dir) => {
      await fs.writeFile(join(dir, 'one'), '');
      const names: string[] = [];
      const opened = await fs.opendir(dir);
      for await (const entry of opened) names.push(entry.name);
      return [names, opened.path, await outcome(() => opened.close())];
    });

    same('rename, link, symlink, readlink and realpath follow POSIX', async (fs, dir) => {
      await fs.mkdir(join(dir, 'd'));
      await fs.writeFile(join(dir, 'd/f'), 'content');
      await fs.symlink('d', join(dir, 'link'));
      await fs.symlink(join(dir, 'loop'), join(dir, 'loop'));
      await fs.link(join(dir, 'd/f'), join(dir, 'hard'));
      await fs.rename(join(dir, 'd/f'), join(dir, 'd/g'));
      return [
        await fs.readlink(join(dir, 'link')),
        await fs.realpath(join(dir, 'link/g')),
        await fs.readFile(join(dir, 'link/g'), 'utf8'),
        (await fs.stat(join(dir, 'hard'))).nlink,
        await outcome(() => fs.readFile(join(dir, 'loop'))),
        await outcome(() => fs.stat(join(dir, 'd/g/'))),
        await outcome(() => fs.rename(join(dir, 'd/g'), join(dir, 'd/g'))),
      ];
    });

    same('copyFile, cp and rm handle files and trees', async (fs, dir) => {
      await fs.mkdir(join(dir, 'src/sub'), { recursive: true });
      await fs.writeFile(join(dir, 'src/a'), 'A', { mode: 0o600 });
      await fs.writeFile(join(dir, 'src/sub/b'), 'B');
      await fs.symlink('a', join(dir, 'src/l'));
      await fs.copyFile(join(dir, 'src/a'), join(dir, 'a2'));
      await fs.cp(join(dir, 'src'), join(dir, 'dst'), { recursive: true });
      await fs.cp(join(dir, 'src'), join(dir, 'part'), { recursive: true, filter: (s) => !s.endsWith('b') });
      const before = [
        await fs.readFile(join(dir, 'a2'), 'utf8'),
        (await fs.stat(join(dir, 'a2'))).mode,
        sorted(await fs.readdir(join(dir, 'dst'), { recursive: true })),
        sorted(await fs.readdir(join(dir, 'part'), { recursive: true })),
        await fs.readlink(join(dir, 'dst/l')),
        await fs.readFile(join(dir, 'dst/sub/b'), 'utf8'),
      ];
      await fs.rm(join(dir, 'dst'), { recursive: true });
      await fs.rm(join(dir, 'a2'));
      return [before, sorted(await fs.readdir(dir))];
    });

    same('truncate shrinks, grows with zeros, and takes negative lengths for 0', async (fs, dir) => {
      const file = join(dir, 'f');
      await fs.writeFile(file, 'abcdef');
      await fs.truncate(file, 3);
      const short = await fs.readFile(file, 'utf8');
      await fs.truncate(file, 5);
      const long = await fs.readFile(file);
      await fs.truncate(file, -3);
      return [short, long, (await fs.stat(file)).size];
    });

    same('mkdtemp adds six characters', async (fs, dir) => {
      const made = await fs.mkdtemp(join(dir, 'tmp-'));
      return [made.length - dir.length, (await fs.stat(made)).mode];
    });

    same('a FileHandle reads and writes with and without positions', async (fs, dir) => {
      const h = await fs.open(join(dir, 'f'), 'w+');
      const seen: unknown[] = [];
      seen.push((await h.write('hello ')).bytesWritten, (await h.write(Buffer.from('world'))).bytesWritten);
      seen.push((await h.write(Buffer.from('XY'), 0, 1, 0)).bytesWritten, (await h.write('Z', 10)).bytesWritten);
      const b = Buffer.alloc(20);
      seen.push((await h.read(b, 0, 5, 0)).bytesRead, b.toString('latin1'));
      seen.push((await h.read(b, 0, 5, null)).bytesRead);
      seen.push((await h.read({ buffer: b, position: 6, length: 4, offset: 2 })).bytesRead, b.toString('latin1'));
      seen.push((await h.read(b, { position: 0, length: 3 })).bytesRead, b.toString('latin1'));
      seen.push((await h.readv([Buffer.alloc(3), Buffer.alloc(4)], 2)).bytesRead);
      seen.push((await h.writev([Buffer.from('12'), Buffer.from('345')], 20)).bytesWritten);
      seen.push((await h.stat()).size, await fs.readFile(join(dir, 'f')));
      await h.truncate(4);
      await h.sync();
      await h.datasync();
      await h.chmod(0o600);
      await h.utimes(1, 2);
      seen.push((await h.stat({ bigint: true })).mtimeMs, (await h.read()).bytesRead);
      await h.close();
      await h.close();
      return seen;
    });

    same('a handle in append mode writes at the end, whatever position is given', async (fs, dir) => {
      const file = join(dir, 'f');
      await fs.writeFile(file, 'abc');
      const h = await fs.open(file, 'a+');
      await h.write('1', 0);
      await h.write(Buffer.from('2'), 0, 1, 0);
      await h.appendFile('3');
      await h.writeFile('4');
      const rest = await h.readFile('utf8');
      await h.close();
      return [await fs.readFile(file, 'utf8'), rest];
    });

    same('readFile and writeFile of a handle start at its position', async (fs, dir) => {
      const h = await fs.open(join(dir, 'f'), 'w+');
      await h.writeFile('0123456789');
      const empty = await h.readFile('utf8');
      const b = Buffer.alloc(4);
      await h.close();
      const r = await fs.open(join(dir, 'f'), 'r+');
      await r.read(b, 0, 4);
      const rest = await r.readFile({ encoding: 'utf8' });
      await r.writeFile('END');
      await r.close();
      return [empty, rest, await fs.readFile(join(dir, 'f'), 'utf8')];
    });

    same('a handle refuses what it was not opened for, and everything once closed', async (fs, dir) => {
      const file = join(dir, 'f');
      await fs.writeFile(file, 'abc');
      const r = await fs.open(file, 'r');
      const w = await fs.open(file, 'w');
      const b = Buffer.alloc(4);
      const while_open = await errors([
        () => r.write('x'),
        () => w.read(b, 0, 1, 0),
        () => r.truncate(1),
        () => r.read(b, 0, 5, 0),
        () => r.read(b, 5, 1, 0),
        () => r.read(b, -1, 1, 0),
        () => r.read(b, 0, -1, 0),
        () => r.read(b, 1.5, 1, 0),
        () => r.read(Buffer.alloc(0), 0, 1, 0),
        () => r.read(b, 0, 0, 0),
        () => w.write(b, 0, 5, 0),
        () => w.write(b, 5, 0, 0),
        () => w.write(b, 0, -1, 0),
        () => w.write(7 as unknown as string),
        () => r.readv('x' as unknown as Buffer[]),
        () => w.truncate(0.5),
      ]);
      await r.close();
      await w.close();
      const closed = await errors([
        () => r.read(b, 0, 1, 0),
        () => r.readFile(),
        () => r.stat().catch((e: NodeJS.ErrnoException) => e.code),
        () => w.write('x'),
        () => w.writeFile('x'),
        () => w.sync().catch((e: NodeJS.ErrnoException) => e.code),
      ]);
      const only = (all: unknown[]): unknown[] =>
        (all as { code?: string; syscall?: string; message?: string }[]).map(({ code, message }) => [code, message]);
      return [only(while_open), only(closed), r.fd, w.fd];
    });

    same('aborting before the start rejects with the reason', async (fs, dir) => {
      const signal = AbortSignal.abort(new Error('why'));
      const file = join(dir, 'f');
      return errors([() => fs.readFile(file, { signal }), () => fs.writeFile(file, 'x', { signal })]);
    });

    same('streams carry bytes both ways, with ranges', async (fs, dir) => {
      const file = join(dir, 'f');
      const w = (await fs.open(file, 'w')).createWriteStream();
      for (let i = 0; i < 1000; i++) w.write(`line ${i}\n`);
      await new Promise<void>((resolve, reject) => w.on('error', reject).end(resolve));
      const all: Buffer[] = [];
      for await (const chunk of (await fs.open(file)).createReadStream()) all.push(chunk as Buffer);
      let part = '';
      for await (const chunk of (await fs.open(file)).createReadStream({
        start: 5,
        end: 20,
        encoding: 'utf8',
        highWaterMark: 7,
      }))
        part += `${chunk}|`;
      let lines = 0;
      const h = await fs.open(file);
      for await (const line of h.readLines()) if (line.startsWith('line')) lines++;
      return [Buffer.concat(all).length, part, lines, w.bytesWritten];
    });
  });
