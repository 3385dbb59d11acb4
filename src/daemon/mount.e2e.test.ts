import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { canMount, type MountClient } from '../mount/testing/mounted.js';
import { type MountedCluster, startMountedCluster } from './testing/mounted-cluster.js';

/** Two nodes, one file system, mounted on both: what a program did on one is what the next call of a program on the other finds. */
describe.skipIf(!canMount())('a mount', () => {
  let cluster: MountedCluster;
  let one: MountClient;
  let two: MountClient;
  beforeAll(async () => {
    cluster = await startMountedCluster({
      nodes: 2,
      mounts: 2,
      nsds: 2,
      logger: process.env['LOUD'] ? (await import('pino')).pino() : (undefined as never),
    });
    one = await cluster.program(0);
    two = await cluster.program(1);
  });
  afterAll(() => cluster?.close());

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
});
