import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { promisify } from 'node:util';
import git from 'isomorphic-git';
import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { invariant } from '../common/assert.js';
import { below, SeededRandom } from '../common/random.js';
import { eventually } from './testing/counting.js';
import { startDaemonCluster } from './testing/daemon-cluster.js';

/**
 * One repository, two nodes that commit into it at the same time, one of them killed in the middle, again and again: what git finds
 * after recovery is whole, and has every commit that was acknowledged.
 */
const run = promisify(execFile);
const ROUNDS = process.env.HOLDFAST_TEST_FULL === '1' ? 20 : 3;
const dir = '/repository';
/** A second instance: its locks between callers of one process must not tie two nodes together. */
const require = createRequire(import.meta.url);
const first: unknown = require('isomorphic-git');
delete require.cache[require.resolve('isomorphic-git')];
const gitOfVictim = require('isomorphic-git') as typeof git;
invariant(gitOfVictim !== first, 'it was loaded twice');
const author = { name: 'Holdfast test', email: 'test@holdfast.invalid' };

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

/** As git itself keeps its promises: a file is whole and durable before it gets its name, and the name before anything goes on. */
function durable(fs: FileSystemClient): git.PromiseFsClient {
  let temporaries = 0;
  const writeWhole = async (name: string, data: string | Uint8Array): Promise<void> => {
    // Not beside it: what a kill leaves of it would count as a branch.
    const temporary = `/tmp-${randomBytes(6).toString('hex')}-${temporaries++}`;
    const file = await fs.open(temporary, 'wx');
    try {
      await file.writeFile(data);
      await file.sync();
    } finally {
      await file.close();
    }
    await fs.rename(temporary, name);
    const parent = await fs.open(path.posix.dirname(name), 'r');
    await parent.sync();
    await parent.close();
  };
  const { readFile, mkdir, rmdir, unlink, stat, lstat, readdir, readlink, symlink } = bound(fs);
  return {
    promises: { readFile, mkdir, rmdir, unlink, stat, lstat, readdir, readlink, symlink, writeFile: writeWhole },
  };
}
/** Methods that can be taken out of their object. */
function bound(fs: FileSystemClient): FileSystemClient {
  return new Proxy(fs, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

interface Committer {
  /** The last commit that was acknowledged. */
  last: string | null;
  count: number;
  over: boolean;
  ended: Promise<void>;
}
/** Commits to a branch of its own until it is over; when its daemon is gone, what is under way waits for the next one. */
function startCommits(client: FileSystemClient, branch: string, program: typeof git): Committer {
  const committer: Committer = { last: null, count: 0, over: false, ended: Promise.resolve() };
  committer.ended = commit(durable(client), branch, committer, program);
  // Awaited later.
  committer.ended.catch(() => undefined);
  return committer;
}
async function commit(
  fs: git.PromiseFsClient,
  branch: string,
  committer: Committer,
  program: typeof git,
): Promise<void> {
  try {
    for (; !committer.over; committer.count++) {
      const { count } = committer;
      const parent = await program.resolveRef({ fs, dir, ref: branch });
      const { tree } = (await program.readCommit({ fs, dir, oid: parent })).commit;
      const text = `${branch} ${count}\n`.repeat(1 + (count % 700));
      const blob = await program.writeBlob({ fs, dir, blob: Buffer.from(text) });
      const kept = (await program.readTree({ fs, dir, oid: tree })).tree
        .filter((entry) => entry.path !== branch)
        .slice(-20);
      const entry = { mode: '100644', path: branch, oid: blob, type: 'blob' } as const;
      const next = await program.writeTree({ fs, dir, tree: [...kept, entry] });
      const ref = `refs/heads/${branch}`;
      const message = `${branch}: ${count}`;
      committer.last = await program.commit({ fs, dir, author, message, tree: next, parent: [parent], ref });
    }
  } catch (error) {
    // Whoever is told dead may fail; nobody else.
    if (branch !== 'victim' || !committer.over) throw error;
  }
}

async function copyOut(fs: FileSystemClient, from: string, to: string): Promise<void> {
  await mkdir(to, { recursive: true });
  for (const entry of await fs.readdir(from, { withFileTypes: true })) {
    const [source, target] = [`${from}/${entry.name}`, path.join(to, entry.name)];
    if (entry.isDirectory()) await copyOut(fs, source, target);
    else await writeFile(target, await fs.readFile(source));
  }
}

test(
  'isomorphic-git on two nodes commits into one repository, one node is killed in the middle: git finds it clean, with every commit',
  async () => {
    const cluster = await startDaemonCluster({ nsds: 1, leaseTtl: '30s' });
    cleanups.push(() => cluster.close());
    const { start, directory } = cluster;
    const one = await start(1);
    await start(2);
    const admin = await one.admin();
    cleanups.push(async () => admin.close());
    await cluster.createFileSystem();
    const survivor = await one.connect();
    cleanups.push(() => survivor.close());
    await survivor.mkdir(dir);
    const fs = durable(survivor);
    await git.init({ fs, dir, defaultBranch: 'main' });
    const tree = await git.writeTree({ fs, dir, tree: [] });
    const root = await git.commit({ fs, dir, author, message: 'begin', tree, parent: [] });
    for (const branch of ['steady', 'victim'])
      await git.writeRef({ fs, dir, ref: `refs/heads/${branch}`, value: root });

    const random = new SeededRandom(20_261_122);
    let before: { committer: Committer; client: FileSystemClient } | null = null;
    const ended = async (): Promise<void> => {
      await before?.committer.ended;
      await before?.client.close();
    };
    for (let round = 0; round < ROUNDS; round++) {
      const victim = await start(3);
      await ended();
      const client = await victim.connect();
      const steady = startCommits(survivor, 'steady', git);
      const killed = startCommits(client, 'victim', gitOfVictim);
      before = { committer: killed, client };
      await eventually('both have committed', async () => steady.count >= 2 && killed.count >= 2);
      await new Promise((resolve) => setTimeout(resolve, below(random, 300)));
      killed.over = true;
      await victim.kill();
      expect(await admin.call('expel', { node: 3 })).toMatchObject({ nodeId: 3, done: true });
      steady.over = true;
      await steady.ended;

      const out = path.join(directory, `out${round}`);
      await copyOut(survivor, dir, out);
      await run('git', ['-C', out, 'fsck', '--strict', '--full']);
      for (const [branch, { last }] of Object.entries({ steady, victim: killed }))
        await run('git', ['-C', out, 'merge-base', '--is-ancestor', last!, branch]);
    }
    await start(3);
    await ended();
  },
  process.env.HOLDFAST_TEST_FULL === '1' ? 600_000 : 120_000,
);
