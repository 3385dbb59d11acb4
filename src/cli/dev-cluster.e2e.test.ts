import { spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connectSocket } from '../client/connect-socket.js';
import { BLOCK_BYTES } from '../common/units.js';
import { type DevState, readState } from '../daemon/dev-cluster.js';
import { processRecord } from '../daemon/dev-cluster-process.js';

/** A real cluster of three daemons, driven by the built command line as a user does. */
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
const cli = path.join(root, 'dist', 'src', 'cli', 'main.js');
const scratch = mkdtempSync(path.join(tmpdir(), 'hf-e2e-'));
const dir = path.join(scratch, 'cluster');

interface Outcome {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}
const env = { ...process.env, HOLDFAST_DIR: dir, NO_COLOR: '1' };
function holdfast(...args: string[]): Outcome {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--enable-source-maps', cli, ...args], {
    cwd: scratch,
    encoding: 'utf8',
    env,
    timeout: 150_000,
  });
  return { code: status, out: stdout, err: stderr };
}
function ok(...args: string[]): string {
  const { code, out, err } = holdfast(...args);
  expect(`${code} ${code === 0 ? '' : err}`).toBe('0 ');
  return out;
}
const json = (...args: string[]) => JSON.parse(ok(...args, '--json'));
/** While others do something. */
function meanwhile(...args: string[]): Promise<string> {
  const child = spawn(process.execPath, [cli, ...args], { cwd: scratch, env, stdio: ['ignore', 'pipe', 'inherit'] });
  let out = '';
  child.stdout.on('data', (piece) => {
    out += piece;
  });
  return new Promise((resolve) => child.once('close', (code) => resolve(`${code} ${out}`)));
}
const pids = (state: DevState): number[] =>
  [state.etcd?.process, ...state.nodes.map((node) => node.process)].flatMap((record) =>
    record == null ? [] : [record.pid],
  );

describe('a local cluster', () => {
  beforeAll(() => {
    if (!existsSync(cli)) throw new Error(`there is no ${cli}: build first (npm run build)`);
    ok('dev', 'up', '--nsd-size', '512MiB', '--page-pool', '96MiB');
  }, 180_000);
  afterAll(() => {
    if (existsSync(path.join(dir, 'dev.json'))) holdfast('dev', 'down', '--clean');
    rmSync(scratch, { recursive: true, force: true });
  }, 120_000);

  test('has three ready nodes, each with an NSD that belongs to nobody yet', () => {
    expect(json('dev', 'status').nodes.map((node: { ready: boolean }) => node.ready)).toEqual([true, true, true]);
    expect(json('node', 'list').map((node: { nodeId: number }) => node.nodeId)).toEqual([1, 2, 3]);
    const nsds: { fileSystem: string | null; servers: number[] }[] = json('nsd', 'list');
    expect(nsds.map((nsd) => [nsd.fileSystem, nsd.servers])).toEqual([
      [null, [1]],
      [null, [2]],
      [null, [3]],
    ]);
  });

  test('keeps its key and its sockets from others', () => {
    for (const name of ['cluster.key', 'node-1.yaml', 'node-1.sock', 'node-1.sock.admin'])
      expect(statSync(path.join(dir, name)).mode & 0o077).toBe(0);
  });

  test('that is up stays as it is when it is started again', () => {
    const before = pids(readState(dir)!);
    expect(json('dev', 'up').started).toEqual([]);
    expect(pids(readState(dir)!)).toEqual(before);
  });

  test('without a file system says how to make one, then makes it', () => {
    expect(holdfast('ls', '/')).toMatchObject({ code: 1, err: expect.stringContaining('holdfast fs create') });
    expect(json('fs', 'create', 'data')).toMatchObject({ name: 'data', nsds: ['nsd-1', 'nsd-2', 'nsd-3'] });
    expect(holdfast('fs', 'create', 'data')).toMatchObject({
      code: 1,
      err: expect.stringContaining('there is such a file system'),
    });
    expect(json('fs', 'info', 'data').usage.totalBytes).toBeGreaterThan(2 ** 30);
    const missing = holdfast('stat', '/nothing', '--json');
    expect([missing.code, missing.out, JSON.parse(missing.err).error.code]).toEqual([1, '', 'ENOENT']);
    expect(json('mkdir', '/made')).toEqual({ made: ['/made'] });
    expect(holdfast('rm', '/made').err).toBe('holdfast: /made is a directory: rm -r removes it\n');
    expect(json('rm', '-r', '/made')).toEqual({ removed: ['/made'] });
  });

  test('carries a tree in through one node and out through another, with modes, times and links', () => {
    const source = path.join(scratch, 'tree');
    mkdirSync(path.join(source, 'sub', 'deep'), { recursive: true });
    writeFileSync(path.join(source, 'empty'), '');
    writeFileSync(path.join(source, 'run.sh'), '#!/bin/sh\n', { mode: 0o750 });
    writeFileSync(path.join(source, 'sub', 'naïve ☃'), 'text\n', { mode: 0o604 });
    const large = Buffer.alloc(9_000_001, 0).map((_, i) => (i * 7 + (i >> 12)) & 0xff);
    writeFileSync(path.join(source, 'sub', 'deep', 'large'), large);
    symlinkSync('../run.sh', path.join(source, 'sub', 'link'));
    symlinkSync('nowhere', path.join(source, 'dangling'));
    utimesSync(path.join(source, 'run.sh'), 1_000_000_000, 1_100_000_000);
    utimesSync(path.join(source, 'sub'), 1_000_000_000, 1_200_000_000);

    const summary = json('cp', '-r', source, 'hf:/', '--node', '1');
    expect(summary).toMatchObject({ files: 4, symlinks: 2, directories: 3, skipped: [], bytes: large.length + 15 });
    expect(json('ls', '/tree', '--node', '2').map((entry: { name: string }) => entry.name)).toEqual([
      'dangling',
      'empty',
      'run.sh',
      'sub',
    ]);
    expect(json('stat', '/tree/run.sh', '--node', '3')).toMatchObject({
      mode: '0750',
      size: 10,
      mtime: '2004-11-09T11:33:20.000Z',
    });
    expect(ok('cat', '/tree/sub/naïve ☃', '--node', '2')).toBe('text\n');

    ok('cp', '-r', 'hf:/tree', path.join(scratch, 'back'), '--node', '3');
    const diff = spawnSync('diff', ['-r', '--no-dereference', source, path.join(scratch, 'back')], {
      encoding: 'utf8',
    });
    expect([diff.status, diff.stdout]).toEqual([0, '']);
    for (const name of ['run.sh', 'sub', 'sub/naïve ☃']) {
      const [a, b] = [statSync(path.join(source, name)), statSync(path.join(scratch, 'back', name))];
      expect([b.mode, Math.round(b.mtimeMs)]).toEqual([a.mode, Math.round(a.mtimeMs)]);
    }
  });

  test('wants -r for directories, and removes what it is told to on every node', () => {
    expect(holdfast('cp', 'hf:/tree', '/tmp/x')).toMatchObject({ code: 2, err: expect.stringContaining('-r') });
    expect(holdfast('rm', '/tree').code).toBe(1);
    ok('rm', '-r', '/tree', '--node', '2');
    expect(holdfast('stat', '/tree', '--node', '1')).toMatchObject({
      code: 1,
      err: expect.stringMatching(/ENOENT|no such/),
    });
    ok('rm', '-f', '/tree');
    ok('mkdir', '-p', '/a/b/c');
    expect(ok('ls', '/a/b', '--node', '3')).toBe('c\n');
  });

  test('tells which NSD and node has which bytes of a file', () => {
    const source = path.join(scratch, 'striped');
    writeFileSync(source, Buffer.alloc(5 * BLOCK_BYTES + 1, 7));
    ok('cp', source, 'hf:/striped', '--node', '1');
    const nsds: { name: string; servers: number[] }[] = json('nsd', 'list');
    const ranges: { offset: number; length: number; kind: string; nsd: string; node: number }[] = json(
      ...['locate', '/striped', '--node', '2'],
    );
    let end = 0;
    for (const { offset, length, kind, nsd, node } of ranges) {
      expect([offset, kind]).toEqual([end, 'data']);
      expect(nsds.find(({ name }) => name === nsd)?.servers).toEqual([node]);
      end = offset + length;
    }
    expect(end).toBe(5 * BLOCK_BYTES + 1);
    expect(new Set(ranges.map(({ nsd }) => nsd)).size).toBe(3);
    const table = ok('locate', '/striped', '--node', '3');
    for (const { nsd, node } of ranges) expect(table).toMatch(new RegExp(`${nsd} .*node ${node}`));
  });

  test('serves what is declared shared-write through one node, and says so on every node', () => {
    ok('mkdir', '/queue');
    expect(ok('shared-write', '/queue', 'on', '--node', '1')).toBe('/queue is shared-write\n');
    const source = path.join(scratch, 'item');
    writeFileSync(source, 'of node 2');
    ok('cp', source, 'hf:/queue/item', '--node', '2');
    expect(json('shared-write', '/queue/item', '--node', '3')).toEqual({ path: '/queue/item', sharedWrite: true });
    expect(ok('cat', '/queue/item', '--node', '1')).toBe('of node 2');
    expect(ok('shared-write', '/queue/item', 'off', '--node', '3')).toBe('/queue/item is not shared-write\n');
  });

  test('does what the README says, word for word', () => {
    mkdirSync(path.join(scratch, 'node_modules', 'zod'), { recursive: true });
    writeFileSync(path.join(scratch, 'node_modules', 'zod', 'package.json'), '{}');
    const commands = readFileSync(path.join(root, 'README.md'), 'utf8')
      .split('\n')
      .filter((line) => line.startsWith('    npx holdfast '))
      .map((line) => line.replace(/#.*/, '').trim().split(/\s+/).slice(2));
    expect(commands.length).toBeGreaterThan(6);
    // Those are what the other tests do; an expelled node is not wanted here.
    const elsewhere = ['dev', 'fs', 'node'];
    for (const words of commands) if (!elsewhere.includes(words[0]!)) ok(...words);
    ok('rm', '-r', '/tree');
  });

  test('shows every writer the others bytes at once', async () => {
    const state = readState(dir)!;
    const clients = await Promise.all(state.nodes.map((node) => connectSocket(node.socket)));
    try {
      for (let round = 0; round < 30; round++) {
        const [writer, reader] = [clients[round % 3]!, clients[(round + 1) % 3]!];
        await writer.writeFile('/turns', `round ${round}`);
        expect(await reader.readFile('/turns', 'utf8')).toBe(`round ${round}`);
      }
    } finally {
      await Promise.all(clients.map((client) => client.close()));
    }
  });

  test('lists tokens, counters and a bench', () => {
    const { tokens } = json('token', 'list');
    expect(tokens.length).toBeGreaterThan(0);
    expect(new Set(tokens.map((token: { fileSystem: string }) => token.fileSystem))).toEqual(new Set(['data']));
    expect(json('status', '--counters').counters['client.calls']).toBeGreaterThan(0);
    const lines = json('bench', '--size', '4MiB', '--files', '50');
    expect(lines.map((line: { seconds: number }) => line.seconds > 0)).not.toContain(false);
    expect(
      ok('ls', '/')
        .split('\n')
        .some((name) => name.startsWith('bench-')),
    ).toBe(false);
  });

  test('whose node was killed goes on without it, and takes it back as a new incarnation with its synced files', async () => {
    const client = await connectSocket(readState(dir)!.nodes[1]!.socket);
    await client.writeFile('/kept', 'before the crash', { flush: true });
    await client.close();
    const victim = readState(dir)!.nodes[2]!.process!;
    expect(processRecord(victim.pid)?.startTicks).toBe(victim.startTicks);
    process.kill(victim.pid, 'SIGKILL');
    const told = meanwhile('node', 'expel', '3', '--node', '1', '--json');
    expect(holdfast('dev', 'status').code).toBe(3);
    expect(holdfast('status', '--node', '3').code).toBe(3);
    await expect.poll(() => json('status', '--node', '1').expelling, { timeout: 30_000 }).toEqual([3]);
    expect(json('dev', 'up').started).toEqual([3]);
    expect(json('status', '--node', '3')).toMatchObject({ phase: 'member', incarnation: 2 });
    // Its old life's log lies on the NSD that only this one serves: so it joins before that life has been cleaned up after.
    await expect.poll(() => json('status', '--node', '3').expelling).toEqual([]);
    expect(await told).toBe('0 {"nodeId":3,"incarnation":1,"done":true}\n');
    expect(ok('cat', '/kept', '--node', '3')).toBe('before the crash');
    // What was passed over while its NSD was away comes to it.
    await expect.poll(() => json('status', '--node', '1').staleNsds, { timeout: 60_000 }).toEqual([]);
  }, 120_000);

  test('that is stopped and started again has its files, and none of its nodes has anything to complain of', async () => {
    const before = pids(readState(dir)!);
    // Dirty on every node, with pages for every NSD, when all of them are told to stop.
    const clients = await Promise.all(readState(dir)!.nodes.map((node) => connectSocket(node.socket)));
    // The node that was killed before serves its NSD again, and nobody is still at what could not be written meanwhile.
    await Promise.all(clients.map((client) => client.syncAll().catch(() => client.syncAll())));
    const content = Buffer.alloc(5 << 20, 'dirty to the end ');
    await Promise.all(clients.map((client, i) => client.writeFile(`/dirty-${i}`, content)));
    await Promise.all(clients.map((client) => client.close()));
    const logs = readState(dir)!.nodes.map(({ log }) => ({ log, saidBytes: statSync(log).size }));
    const outcome = json('dev', 'down');
    expect(outcome.nodes.map((node: { outcome: string }) => node.outcome)).toEqual(['stopped', 'stopped', 'stopped']);
    expect(before.map((pid) => processRecord(pid))).toEqual(before.map(() => null));
    for (const { log, saidBytes } of logs) {
      const said = readFileSync(log).subarray(saidBytes).toString();
      expect(said).toContain('"ended"');
      expect(said.split('\n').filter((line) => /"level":[456]0/.test(line))).toEqual([]);
    }
    expect(holdfast('ls', '/').code).toBe(3);
    ok('dev', 'up');
    // Nobody has it mounted yet.
    expect(json('fs', 'check', 'data')).toMatchObject({ findings: [], lostInodes: 0, lostSubBlocks: 0 });
    expect(ok('fs', 'check', 'data', '--repair')).toMatch(/verdict +sound\nmended +0, 0 sectors written/);
    const again = await connectSocket(readState(dir)!.nodes[0]!.socket);
    for (const i of [0, 1, 2]) expect((await again.readFile(`/dirty-${i}`)).equals(content)).toBe(true);
    await again.close();
    expect(ok('cat', '/kept')).toBe('before the crash');
  }, 180_000);

  test('never signals a process that only has the pid of one of its own', () => {
    const stranger = spawn('sleep', ['60'], { stdio: 'ignore' });
    try {
      const file = path.join(dir, 'dev.json');
      const state: DevState = JSON.parse(readFileSync(file, 'utf8'));
      const node = state.nodes[2]!;
      const own = node.process!;
      node.process = { pid: stranger.pid!, startTicks: own.startTicks };
      writeFileSync(file, JSON.stringify(state));
      expect(json('dev', 'down').nodes[2]).toEqual({ nodeId: 3, outcome: 'gone' });
      expect(processRecord(stranger.pid!)).not.toBeNull();
      process.kill(own.pid, 'SIGKILL');
    } finally {
      stranger.kill();
    }
  }, 120_000);

  test('leaves nothing behind when it is cleaned up', () => {
    ok('dev', 'down', '--clean');
    expect(existsSync(dir)).toBe(false);
  });
});
