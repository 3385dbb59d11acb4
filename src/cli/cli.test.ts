import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { bytesText, durationText, sentence, table } from './output.js';
import { insidePath, remotePath } from './target.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
const cli = path.join(root, 'dist', 'src', 'cli', 'main.js');
const empty = mkdtempSync(path.join(tmpdir(), 'holdfast-cli-'));
afterAll(() => rmSync(empty, { recursive: true, force: true }));

function holdfast(...args: string[]): { code: number | null; out: string; err: string } {
  const env = { PATH: process.env['PATH'], HOME: process.env['HOME'], NO_COLOR: '1' };
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], { cwd: empty, encoding: 'utf8', env });
  return { code: status, out: stdout, err: stderr };
}

describe('the command line', () => {
  beforeAll(() => {
    if (!existsSync(cli)) throw new Error(`there is no ${cli}: build first (npm run build)`);
  });

  test.each([
    [['frobnicate'], /unknown command/],
    [['ls', '--frobnicate'], /unknown option/],
    [['cat'], /missing required argument/],
    [['fs', 'create'], /missing required argument/],
    [['fs', 'create', 'a/b'], /a file system has a name of 1 to 64 letters/],
    [['dev', 'up', '--nodes', 'three'], /whole number from 1 to 64/],
    [['dev', 'up', '--nsd-size', 'huge'], /size like 2GiB/],
    [['token', 'list', '--limit', '0'], /whole number/],
    [['bench', '--size', '1B'], /at least 1MiB/],
    [['ls', 'relative'], /paths in Holdfast are absolute: \/relative/],
    [['cp', 'hf:/a'], /at least a source and a destination/],
    [['cp', 'a', 'b'], /one side of each copy must be in Holdfast/],
    [['cp', 'a', 'hf:b'], /absolute: hf:\/b/],
    [['ls', '--socket', 'x', '--node', '2'], /cannot be used with/],
    [['nsd', 'export', '/dev/null', '--host', 'nqn.x:h'], /required option '--subsystem/],
    [['nsd', 'attach', 'nqn.x:s', '--transport', 'tcp'], /tcp wants an --address/],
    [['nsd', 'attach', 'nqn.x:s', '--address', '::1', '--lease', '1s'], /a lease of at least 4000 ms/],
    [['nsd', 'attach', 'disk', '--transport', 'loop'], /no NVMe qualified name: "disk"/],
  ] as const)('refuses %j with exit code 2 and says why', (args, why) => {
    const { code, out, err } = holdfast(...args);
    expect(err).toMatch(why);
    expect(code).toBe(2);
    expect(out).toBe('');
  });

  test('says in one sentence that there is no daemon, with exit code 3', () => {
    for (const args of [
      ['ls', '/'],
      ['status'],
      ['cat', '/x', '--socket', 'none.sock'],
      ['node', 'list', '--socket', 'none.sock'],
    ]) {
      const { code, err } = holdfast(...args);
      expect(code).toBe(3);
      expect(err.trimEnd().split('\n')).toHaveLength(1);
      expect(err).toMatch(/^holdfast: /);
    }
    expect(holdfast('ls', '/').err).toContain("start one with 'holdfast dev up'");
    expect(holdfast('ls', '/', '--socket', 'none.sock').err).toMatch(/no daemon answers: .*none\.sock/);
  });

  test('says what went wrong as a line of JSON to who asked for JSON', () => {
    const { code, out, err } = holdfast('status', '--socket', 'none.sock', '--json');
    expect([code, out]).toEqual([3, '']);
    expect(JSON.parse(err)).toEqual({
      error: {
        code: 'EHOSTUNREACH',
        reason: 'unreachable',
        op: 'connect',
        message: expect.stringContaining('no daemon listens there'),
      },
    });
  });

  test('fails with exit code 1 where there is no cluster to look at or to stop, and on a damaged state file', () => {
    expect(holdfast('dev', 'down')).toMatchObject({ code: 1, err: expect.stringContaining('has no local cluster') });
    expect(holdfast('dev', 'status').code).toBe(1);
    writeFileSync(path.join(empty, 'dev.json'), '{"nodes": 5}');
    expect(holdfast('dev', 'status', '--dir', '.')).toMatchObject({
      code: 1,
      err: expect.stringContaining('is damaged'),
    });
  });

  test('refuses a directory whose sockets nobody could open', () => {
    const long = path.join(empty, 'x'.repeat(120));
    expect(holdfast('dev', 'up', '--dir', long)).toMatchObject({
      code: 1,
      err: expect.stringContaining('too long for unix sockets'),
    });
  });

  test('has examples in the help of every command', () => {
    const words = [
      ['dev', 'up'],
      ['dev', 'down'],
      ['dev', 'status'],
      ['fs', 'create'],
      ['fs', 'info'],
      ['fs', 'check'],
      ['nsd', 'list'],
      ['node', 'list'],
      ['node', 'expel'],
      ['token', 'list'],
    ];
    for (const command of [
      ...words,
      ...['ls', 'cat', 'stat', 'cp', 'rm', 'mkdir', 'status', 'bench', 'locate', 'locks', 'shared-write'].map((one) => [
        one,
      ]),
    ]) {
      const { code, out } = holdfast(...command, '--help');
      expect(code).toBe(0);
      expect(out).toMatch(/Examples?:\n +holdfast /);
    }
  }, 120_000);
});

test('paths: hf: is told from a local one', () => {
  expect([remotePath('hf:/a/b'), remotePath('./a'), insidePath('/a'), insidePath('hf:/a')]).toEqual([
    '/a/b',
    null,
    '/a',
    '/a',
  ]);
});

test('figures are written for people', () => {
  expect([bytesText(0), bytesText(1023), bytesText(1536), bytesText(2 ** 31)]).toEqual([
    '0 B',
    '1023 B',
    '1.5 KiB',
    '2.0 GiB',
  ]);
  expect([durationText(12), durationText(1500), durationText(90_000)]).toEqual(['12 ms', '1.5 s', '1 min 30 s']);
  expect(
    table(
      ['A', { name: 'B', align: 'right' }],
      [
        ['x', 1],
        [null, 200],
      ],
    ),
  ).toBe('A    B\nx    1\n-  200');
});

test('errors become one sentence', () => {
  const refused = new FsError('busy', { op: 'fs.create', object: 'nsd-1', detail: 'belongs to a file system already' });
  expect(sentence(refused)).toBe('belongs to a file system already (nsd-1)');
  expect(sentence(new Error('first\nsecond'))).toBe('first');
});
