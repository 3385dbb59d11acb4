import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { silentLogger } from '../common/logger.js';
import { CallsCompiler, type CallsProgram } from '../mount/testing/calls-program.js';
import { canMount, type MountClient } from '../mount/testing/mounted.js';
import { Mounts } from './mounts.js';
import { systemClock } from './system-clock.js';
import { type MountedCluster, startMountedCluster } from './testing/mounted-cluster.js';

/** Two nodes, one file system, mounted on both: what a program did on one is what the next call of a program on the other finds. */
describe.skipIf(!canMount())('a mount', () => {
  let cluster: MountedCluster;
  let one: MountClient;
  let two: MountClient;
  beforeAll(async () => {
    cluster = await startMountedCluster({ nodes: 2, mounts: 2, nsds: 2 });
    one = await cluster.program(0);
    two = await cluster.program(1);
  });
  const calls = new CallsCompiler();
  afterAll(async () => {
    await calls.end();
    await cluster?.close();
  });

  test('names, attributes and bytes', async () => {
    const seen = await one.run(({ fs, dir }) => {
      fs.mkdirSync(`${dir}/a`);
      fs.writeFileSync(`${dir}/a/file`, 'hello', { mode: 0o640 });
      fs.renameSync(`${dir}/a/file`, `${dir}/a/other`);
      fs.linkSync(`${dir}/a/other`, `${dir}/a/linked`);
      fs.symlinkSync('other', `${dir}/a/soft`);
      fs.appendFileSync(`${dir}/a/soft`, ' world');
      fs.truncateSync(`${dir}/a/linked`, 9);
      const { mode, nlink, size } = fs.statSync(`${dir}/a/other`);
      return {
        names: fs.readdirSync(`${dir}/a`).sort(),
        mode,
        nlink,
        size,
        text: fs.readFileSync(`${dir}/a/other`, 'utf8'),
      };
    });
    expect(seen).toEqual({ names: ['linked', 'other', 'soft'], mode: 0o100640, nlink: 2, size: 9, text: 'hello wor' });
    expect(await two.run(({ fs, dir }) => fs.readFileSync(`${dir}/a/soft`, 'utf8'))).toBe('hello wor');
    await two.run(({ fs, dir }) => fs.rmSync(`${dir}/a`, { recursive: true }));
    expect(await one.run(({ fs, dir }) => fs.readdirSync(dir))).toEqual([]);
  });

  test('bytes written on one node are what the next read of an open file on the other returns', async () => {
    await one.run(({ fs, dir, kept }) => {
      fs.writeFileSync(`${dir}/pingpong`, Buffer.alloc(20_000));
      kept['fd'] = fs.openSync(`${dir}/pingpong`, 'r+');
    });
    await two.run(({ fs, dir, kept }) => {
      kept['fd'] = fs.openSync(`${dir}/pingpong`, 'r');
    });
    for (let i = 1; i <= 30; i++) {
      const at = (i % 7) * 2501;
      await one.run(
        ({ fs, kept }, i, at) => fs.writeSync(kept['fd'] as number, Buffer.alloc(3000, i), 0, 3000, at),
        i,
        at,
      );
      const seen = await two.run(({ fs, kept }, at) => {
        const target = Buffer.alloc(3000);
        fs.readSync(kept['fd'] as number, target, 0, 3000, at);
        return [...new Set(target)];
      }, at);
      expect(seen).toEqual([i]);
    }
  });

  /** A program on each node, with the same file open. */
  const both = async (name: string, how: 'r' | 'w', bytes: number): Promise<[CallsProgram, CallsProgram]> => {
    await one.run(({ fs, dir }, name, bytes) => fs.writeFileSync(`${dir}/${name}`, Buffer.alloc(bytes)), name, bytes);
    const programs = await Promise.all([calls.start(), calls.start()]);
    for (const [index, program] of programs.entries())
      expect(await program.run(`open ${cluster.directories[index]}/${name} ${how}`)).not.toContain('error');
    return programs;
  };

  test('what is stored through a mapping is read on the other node, and the other way round (M3)', async () => {
    const [a, b] = await both('mapped', 'w', 20_000);
    for (const program of [a, b]) expect(await program.run('map 20000 w')).toBe('0');
    for (let i = 1; i <= 12; i++) {
      const [storing, loading] = i % 2 === 0 ? [a, b] : [b, a];
      const at = 4000 + i * 31;
      await storing.run(`set ${at} ${i}`);
      expect(await loading.run(`get ${at}`)).toBe(`${i}`);
      const read = ({ fs, dir }: { fs: typeof import('node:fs'); dir: string }, at: number) =>
        fs.readFileSync(`${dir}/mapped`)[at];
      expect(await (i % 2 === 0 ? two : one).run(read, at)).toBe(i);
    }
    // A write on one is seen in the mappings of both.
    await one.run(({ fs, dir }) => fs.writeSync(fs.openSync(`${dir}/mapped`, 'r+'), Buffer.alloc(3, 99), 0, 3, 4050));
    for (const program of [a, b]) expect(await program.run('get 4051')).toBe('99');
  });

  test('locks of fcntl and flock hold on both nodes, and go with their process', async () => {
    const [a, b] = await both('locked', 'w', 100);
    expect(await a.run('lock w 10 10 0')).toBe('0');
    expect(await b.run('lock w 20 10 0')).toBe('0');
    expect(await b.run('lock r 15 2 0')).toMatch(/error (11|13)/);
    expect(await b.run('tell')).toBe('1');
    const waiting = b.run('lock w 10 10 1');
    expect(await a.run('lock u 10 10 0')).toBe('0');
    expect(await waiting).toBe('0');
    expect(await a.run('flock x')).toBe('0');
    expect(await b.run('flock s')).toBe('error 11');
    await a.kill();
    await expect.poll(() => b.run('flock s')).toBe('0');
    await b.kill();
    const next = await calls.start();
    await next.run(`open ${cluster.directories[0]}/locked w`);
    await expect.poll(() => next.run('tell')).toBe('-2');
  });

  test('a program that waits for a lock can be killed', async () => {
    const [a, b] = await both('waited', 'w', 1);
    expect(await a.run('lock w 0 0 0')).toBe('0');
    const waiting = b.run('lock w 0 0 1');
    await expect.poll(() => cluster.counters[1]!.snapshot()['mount.requests.setlk'] ?? 0).toBeGreaterThan(0);
    await b.kill();
    expect(await waiting).toBe('gone');
    expect(await a.run('lock u 0 0 0')).toBe('0');
    const next = await calls.start();
    await next.run(`open ${cluster.directories[1]}/waited w`);
    expect(await next.run('lock w 0 0 0')).toBe('0');
  });

  test('appends land at the end, whatever the kernel believes it to be (M5)', async () => {
    const append = ({ fs, dir }: { fs: typeof import('node:fs'); dir: string }, text: string) => {
      const fd = fs.openSync(`${dir}/appended`, 'a');
      for (let i = 0; i < 20; i++) fs.writeSync(fd, text);
      fs.closeSync(fd);
    };
    await Promise.all([one.run(append, 'first '), two.run(append, 'other ')]);
    const text = await one.run(({ fs, dir }) => fs.readFileSync(`${dir}/appended`, 'utf8'));
    expect(text.split(' ').filter((word) => word === 'first').length).toBe(20);
    expect(text.split(' ').filter((word) => word === 'other').length).toBe(20);
  });

  test('a file is used on by who has it open, whatever becomes of its name', async () => {
    await one.run(({ fs, dir, kept }) => {
      kept['gone'] = fs.openSync(`${dir}/gone`, 'w+');
      fs.writeSync(kept['gone'] as number, 'still here');
    });
    await two.run(({ fs, dir, kept }) => {
      kept['gone'] = fs.openSync(`${dir}/gone`, 'r');
      fs.unlinkSync(`${dir}/gone`);
    });
    const read = ({ fs, kept }: { fs: typeof import('node:fs'); kept: Record<string, unknown> }) => {
      const target = Buffer.alloc(20);
      const count = fs.readSync(kept['gone'] as number, target, 0, 20, 0);
      return [target.toString('utf8', 0, count), fs.fstatSync(kept['gone'] as number).nlink];
    };
    expect(await two.run(read)).toEqual(['still here', 0]);
    expect(await one.run(read)).toEqual(['still here', 0]);
  });

  test('many names in one directory, made on both nodes at once, are seen on both', async () => {
    const make = ({ fs, dir }: { fs: typeof import('node:fs'); dir: string }, prefix: string) => {
      fs.mkdirSync(`${dir}/many`, { recursive: true });
      for (let i = 0; i < 60; i++) fs.writeFileSync(`${dir}/many/${prefix}${i}`, '');
    };
    await Promise.all([one.run(make, 'a'), two.run(make, 'b')]);
    for (const program of [one, two])
      expect((await program.run(({ fs, dir }) => fs.readdirSync(`${dir}/many`))).length).toBe(120);
  });

  test('devices, fifos and attributes; what one may not do', async () => {
    const seen = await one.run(({ fs, dir }) => {
      const codes: string[] = [];
      const fails = (act: () => void): void => {
        try {
          act();
          codes.push('none');
        } catch (error) {
          codes.push((error as NodeJS.ErrnoException).code ?? '');
        }
      };
      fs.writeFileSync(`${dir}/plain`, '');
      fs.chmodSync(`${dir}/plain`, 0o604);
      fs.utimesSync(`${dir}/plain`, 1000, 2000.5);
      fails(() => fs.mkdirSync(`${dir}/plain`));
      fails(() => fs.readdirSync(`${dir}/plain`));
      fails(() => fs.openSync(`${dir}/none/none`, 'r'));
      fails(() => fs.writeFileSync(`${dir}/${'x'.repeat(256)}`, ''));
      fails(() => fs.rmdirSync(`${dir}/many`));
      const { mode, mtimeMs, atimeMs } = fs.statSync(`${dir}/plain`);
      return { codes, mode, mtimeMs, atimeMs, free: fs.statfsSync(dir).bfree > 0 };
    });
    const codes = ['EEXIST', 'ENOTDIR', 'ENOENT', 'ENAMETOOLONG', 'ENOTEMPTY'];
    expect(seen).toEqual({ codes, mode: 0o100604, mtimeMs: 2_000_500, atimeMs: 1_000_000, free: true });
  });

  test('a mount point that is missing, no directory, not empty or taken is refused, saying so; so is a second mount', async () => {
    const engine = cluster.cluster.engines[0]!;
    const [name] = (await engine.fileSystems()).map((one) => one.name);
    const mounts = new Mounts(
      { clock: systemClock, counters: engine.metrics, logger: silentLogger },
      async () => engine.node.fileSystem!,
    );
    const at = (target: string) => mounts.mount({ name: name!, target, options: {} });
    await expect(at('/no/such/place')).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(at('/proc/version')).rejects.toMatchObject({ code: 'ENOTDIR' });
    await expect(at(cluster.cluster.directory)).rejects.toMatchObject({ code: 'ENOTEMPTY' });
    await expect(at(cluster.directories[1]!)).rejects.toMatchObject({ code: 'EBUSY' });
    await expect(at('here')).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(mounts.unmount('/proc', { lazy: false, force: false })).rejects.toMatchObject({ code: 'ENOENT' });
  });
});
