import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import git from 'isomorphic-git';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { FileSystemClient } from './file-system-client.js';
import { directRig, type Rig, socketRig } from './testing/harness.js';
import { workerRig } from './testing/worker-rig.js';

/** A real program written for fs.promises: isomorphic-git keeps its repository on Holdfast, real git judges what it left. */
const run = promisify(execFile);
const author = { name: 'A Tester', email: 'tester@example.org', timestamp: 1_700_000_000, timezoneOffset: 0 };
const dir = '/work/repository';
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'holdfast-git-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function copyOut(fs: FileSystemClient, from: string, to: string): Promise<void> {
  await mkdir(to, { recursive: true });
  for (const entry of await fs.readdir(from, { withFileTypes: true })) {
    const [source, target] = [`${from}/${entry.name}`, join(to, entry.name)];
    if (entry.isDirectory()) await copyOut(fs, source, target);
    else await writeFile(target, await fs.readFile(source));
  }
}

async function copyIn(fs: FileSystemClient, from: string, to: string, names: readonly string[]): Promise<void> {
  for (const name of names) await fs.writeFile(`${to}/${name}`, await readFile(join(from, name)));
}

describe.each([
  ['direct', directRig],
  ['socket', socketRig],
  ['worker', workerRig],
] as [string, () => Rig | Promise<Rig>][])('isomorphic-git over the %s transport', (transport, start) => {
  it('inits, commits, branches, checks out, reads a pack, and leaves a repository that git fsck finds clean', async () => {
    const rig = await start();
    const fs = rig.client;
    await fs.mkdir(dir, { recursive: true });
    await git.init({ fs, dir, defaultBranch: 'main' });
    for (let i = 0; i < 30; i++) {
      await fs.mkdir(`${dir}/d${i % 3}`, { recursive: true });
      await fs.writeFile(`${dir}/d${i % 3}/file-${i}.txt`, `content ${i}\n`.repeat(i));
    }
    await git.add({ fs, dir, filepath: '.' });
    const first = await git.commit({ fs, dir, author, message: 'first' });
    await git.branch({ fs, dir, ref: 'side', checkout: true });
    await fs.writeFile(`${dir}/d0/file-0.txt`, 'changed on the side\n');
    await fs.unlink(`${dir}/d1/file-1.txt`);
    await git.remove({ fs, dir, filepath: 'd1/file-1.txt' });
    await git.add({ fs, dir, filepath: 'd0/file-0.txt' });
    await git.commit({ fs, dir, author, message: 'second' });
    await git.checkout({ fs, dir, ref: 'main' });
    expect(await fs.readFile(`${dir}/d1/file-1.txt`, 'utf8')).toBe('content 1\n');
    await git.checkout({ fs, dir, ref: 'side' });
    expect(await fs.readFile(`${dir}/d0/file-0.txt`, 'utf8')).toBe('changed on the side\n');
    expect((await git.log({ fs, dir })).map(({ commit }) => commit.message.trim())).toEqual(['second', 'first']);
    const dirty = (await git.statusMatrix({ fs, dir })).filter(
      ([, head, work, stage]) => head !== 1 || work !== 1 || stage !== 1,
    );
    expect(dirty).toEqual([]);

    const out = join(folder, transport);
    await copyOut(fs, dir, out);
    await run('git', ['-C', out, 'fsck', '--strict']);
    expect((await run('git', ['-C', out, 'status', '--porcelain'])).stdout).toBe('');

    // What real git packed, isomorphic-git reads through Holdfast.
    await run('git', ['-C', out, 'repack', '-a', '-d', '-q']);
    const packs = '.git/objects/pack';
    const names = (await run('ls', [join(out, packs)])).stdout.trim().split('\n');
    await fs.rm(`${dir}/.git/objects`, { recursive: true });
    await fs.mkdir(`${dir}/${packs}`, { recursive: true });
    await copyIn(fs, join(out, packs), `${dir}/${packs}`, names);
    const { blob } = await git.readBlob({ fs, dir, oid: first, filepath: 'd2/file-29.txt' });
    expect(Buffer.from(blob).toString()).toBe('content 29\n'.repeat(29));
    await rig.close();
  });
});
