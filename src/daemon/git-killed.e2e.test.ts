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
import { type DaemonCluster, startDaemonCluster } from './testing/daemon-cluster.js';
import { KillRun, seedOr } from './testing/kill-run.js';

/**
 * One repository, two nodes that commit into it at the same time, one of them killed in the middle, again and again, and now and then the power of all
 * cut, with what was not flushed: what git finds after recovery is whole, and has every commit that was acknowledged.
 */
const execute = promisify(execFile);
const ROUNDS = process.env.HOLDFAST_TEST_FULL === '1' ? 21 : 3;
/** In one round of so many the power of all goes. */
const POWER_CUT_EVERY = 3;
const NODES = [1, 2, 3] as const;
const dir = '/repository';
/** A second instance: its locks between callers of one process must not tie two nodes together. */
const require = createRequire(import.meta.url);
const first: unknown = require('isomorphic-git');
delete require.cache[require.resolve('isomorphic-git')];
const gitOfVictim = require('isomorphic-git') as typeof git;
invariant(gitOfVictim !== first, 'it was loaded twice');
const author = { name: 'Holdfast test', email: 'test@holdfast.invalid' };

let cluster: DaemonCluster | null = null;
afterEach(async () => {
  await cluster?.close();
  cluster = null;
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
  isKilled: boolean;
  ended: Promise<void>;
}
/** Commits to a branch of its own until it is over; when its daemon is gone, what is under way waits for the next one. */
function startCommits(client: FileSystemClient, branch: string, program: typeof git): Committer {
  const committer: Committer = { last: null, count: 0, over: false, isKilled: false, ended: Promise.resolve() };
  committer.ended = commit(durable(client), branch, committer, program);
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
    // Whoever is killed may fail; nobody else.
    if (!committer.isKilled) throw error;
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

test('isomorphic-git on two nodes commits into one repository, one node is killed in the middle, or the power of all goes: git finds it clean, with every commit', {
  // Each step has its own.
  timeout: 0,
}, async () => {
  const seed = seedOr(20_261_122);
  const run = new KillRun(seed);
  const it = await startDaemonCluster({ nsds: 1, leaseTtl: '30s', seed });
  cluster = it;
  run.of(it);
  const startAll = () => run.step('the daemons start', Promise.all(NODES.map((nodeId) => it.start(nodeId))));
  let daemons = await startAll();
  await run.step('the file system is made', it.createFileSystem());
  let survivor = await daemons[0]!.connect();
  await survivor.mkdir(dir);
  const fs = durable(survivor);
  await git.init({ fs, dir, defaultBranch: 'main' });
  const tree = await git.writeTree({ fs, dir, tree: [] });
  const root = await git.commit({ fs, dir, author, message: 'begin', tree, parent: [] });
  for (const branch of ['steady', 'victim']) await git.writeRef({ fs, dir, ref: `refs/heads/${branch}`, value: root });

  const random = new SeededRandom(seed);
  for (run.round = 0; run.round < ROUNDS; run.round++) {
    const isPowerCut = (run.round + 1) % POWER_CUT_EVERY === 0;
    const client = await daemons[2]!.connect();
    const steady = startCommits(survivor, 'steady', git);
    const killed = startCommits(client, 'victim', gitOfVictim);
    run.watch(steady.ended);
    run.watch(killed.ended);
    await run.step(
      'both have committed',
      eventually('both have committed', async () => steady.count >= 2 && killed.count >= 2, Number.POSITIVE_INFINITY),
    );
    await run.step('a moment', new Promise((resolve) => setTimeout(resolve, below(random, 300))));
    killed.over = true;
    killed.isKilled = true;
    if (isPowerCut) {
      steady.over = true;
      steady.isKilled = true;
      await run.step('the power goes', it.powerCut());
      daemons = await startAll();
      await run.step('commits on the killed node end', steady.ended);
      await run.step('its client closes', survivor.close());
      survivor = await daemons[0]!.connect();
    } else {
      await daemons[2]!.kill();
      const admin = await daemons[0]!.admin();
      const told = await run.step('node 3 is told dead', admin.call('expel', { node: 3 }));
      expect(told).toMatchObject({ nodeId: 3, done: true });
      admin.close();
      steady.over = true;
      await run.step('commits of the survivor end', steady.ended);
      daemons[2] = await run.step('node 3 starts', it.start(3));
    }
    // What was under way when its daemon was killed has waited for the next one, and ends.
    await run.step('commits of the victim end', killed.ended);
    await run.step('its client closes', client.close());

    const out = path.join(it.directory, `out${run.round}`);
    await run.step('the repository is copied out', copyOut(survivor, dir, out));
    await run.step('git fsck', execute('git', ['-C', out, 'fsck', '--strict', '--full']));
    for (const [branch, { last }] of Object.entries({ steady, victim: killed }))
      await run.step(
        `what was committed to ${branch} is there`,
        execute('git', ['-C', out, 'merge-base', '--is-ancestor', last!, branch]),
      );
  }
  await survivor.close();
});
