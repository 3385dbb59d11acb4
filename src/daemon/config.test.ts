import { linkSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test, vi } from 'vitest';
import { loadConfig } from './config.js';
import { configurationTable } from './config-docs.js';
import { parseDuration, parseSize } from './config-schema.js';

const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-config-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
writeFileSync(path.join(directory, 'cluster.key'), 'x'.repeat(32));
writeFileSync(path.join(directory, 'disk-a'), '');
writeFileSync(path.join(directory, 'disk-b'), '');

const GOOD = `clusterName: dev
nodeId: 1
name: node-1
listen:
  host: 127.0.0.1
etcd: [http://127.0.0.1:2379]
clusterKeyFile: cluster.key
socket: node-1.sock
`;
const file = path.join(directory, 'node.yaml');
function load(text: string): ReturnType<typeof loadConfig> {
  writeFileSync(file, text);
  return loadConfig(file);
}
/** The error of a configuration, without the directory. */
function refusal(text: string): string {
  try {
    load(text);
  } catch (error) {
    expect(error).toMatchObject({ reason: 'badConfiguration' });
    const message = (error as Error).message;
    expect(message).not.toContain('\n');
    return message.replaceAll(`${directory}/`, '');
  }
  throw new Error('it was accepted');
}

describe('a daemon configuration', () => {
  test('gets defaults, and paths that start at its own directory', () => {
    expect(load(GOOD)).toMatchObject({
      pagePool: 256 * 2 ** 20,
      leaseTtl: 5000,
      tokenServer: true,
      metrics: null,
      nsds: [],
      listen: { host: '127.0.0.1', port: 0 },
      clusterKeyFile: path.join(directory, 'cluster.key'),
      socket: path.join(directory, 'node-1.sock'),
    });
  });

  test('that loses data on purpose is refused with its line, unless the environment allows it', () => {
    const text = `${GOOD}nsds:\n  - name: a\n    path: disk-a\n    fault:\n      seed: 7\n`;
    vi.stubEnv('HOLDFAST_TEST_FAULTS', '');
    expect(refusal(text)).toMatch(/nsds\[0\]\.fault: is for tests only.* 'node\.yaml:12'/);
    vi.stubEnv('HOLDFAST_TEST_FAULTS', '1');
    expect(load(text).nsds[0]?.fault).toEqual({ seed: 7 });
    vi.unstubAllEnvs();
  });

  test('takes sizes and durations with units', () => {
    expect(load(`${GOOD}pagePool: 1 GiB\ndirtyAge: 250ms\nleaseTtl: 2min\n`)).toMatchObject({
      pagePool: 2 ** 30,
      dirtyAge: 250,
      leaseTtl: 120_000,
    });
    expect([parseSize('1.5MiB'), parseSize(4096), parseSize('12 parsecs'), parseSize('-1')]).toEqual([
      1_572_864,
      4096,
      null,
      null,
    ]);
    expect([parseDuration('1.5s'), parseDuration('5')]).toEqual([1500, null]);
  });

  test('with an unknown key is refused with its line', () => {
    expect(refusal(`${GOOD}pagepool: 1GiB\n`)).toBe(
      "EINVAL: pagepool: there is no such key, configuration 'node.yaml:9'",
    );
    expect(refusal(GOOD.replace('  host', '  port: 1\n  hots: x\n  host'))).toContain(
      'listen.hots: there is no such key',
    );
  });

  test('with a value of the wrong type is refused with key and line', () => {
    expect(refusal(GOOD.replace('nodeId: 1', 'nodeId: one'))).toMatch(/nodeId: expected number.*node\.yaml:2/);
    expect(refusal(GOOD.replace('nodeId: 1', 'nodeId: 40000'))).toMatch(/nodeId: .*32767.*node\.yaml:2/);
    expect(refusal(`${GOOD}pagePool: lots\n`)).toMatch(/pagePool: expected a size like 256MiB.*"lots".*node\.yaml:9/);
    expect(refusal(`${GOOD}leaseTtl: 5\n`)).toMatch(/leaseTtl: .*node\.yaml:9/);
    expect(refusal(`${GOOD}nsds:\n  - name: a\n    path: disk-a\n    failureGroup: x\n`)).toMatch(
      /nsds\[0\]\.failureGroup: .*node\.yaml:12/,
    );
  });

  test('without a required key is refused, and told which', () => {
    expect(refusal(GOOD.replace('clusterName: dev\n', ''))).toMatch(/clusterName: is missing.*node\.yaml:1/);
    expect(refusal(GOOD.replace('  host: 127.0.0.1', '  port: 1'))).toMatch(/listen\.host: is missing.*node\.yaml:4/);
    expect(refusal('')).toContain('is missing');
    expect(refusal('- a list')).toContain('node.yaml:1');
  });

  test('that is no YAML, or has a key twice, is refused with the line', () => {
    expect(refusal(`${GOOD}nodeId: 2\n`)).toMatch(/a key is there twice.*node\.yaml:9/);
    expect(refusal('a: [1,\nb: 2')).toMatch(/node\.yaml:[12]/);
  });

  test('that is not there is refused by name', () => {
    expect(() => loadConfig(path.join(directory, 'none.yaml'))).toThrow(/none\.yaml/);
  });

  test('without its cluster key file, or with an NSD that is missing and has no size, is refused', () => {
    expect(refusal(GOOD.replace('cluster.key', 'none.key'))).toMatch(/clusterKeyFile: there is no file none\.key.*:7/);
    expect(refusal(`${GOOD}nsds:\n  - name: a\n    path: disk-z\n`)).toMatch(
      /nsds\[0\]\.path: there is no disk-z.*:11/,
    );
    expect(load(`${GOOD}nsds:\n  - name: a\n    path: disk-z\n    size: 1GiB\n`).nsds[0]).toMatchObject({
      size: 2 ** 30,
    });
  });

  test('with two NSDs of one name, or on one storage by whatever name, is refused', () => {
    const two = (first: string, second: string): string =>
      `${GOOD}nsds:\n  - { name: a, path: ${first} }\n  - { name: b, path: ${second} }\n`;
    const overlap = /nsds\[1\]\.path: is the same storage as nsds\[0\].*node\.yaml:11/;
    expect(refusal(two('disk-a', './disk-a'))).toMatch(overlap);
    symlinkSync('disk-a', path.join(directory, 'soft'));
    linkSync(path.join(directory, 'disk-a'), path.join(directory, 'hard'));
    mkdirSync(path.join(directory, 'sub'));
    symlinkSync('sub', path.join(directory, 'sub2'));
    expect(refusal(two('disk-a', 'soft'))).toMatch(overlap);
    expect(refusal(two('disk-a', 'hard'))).toMatch(overlap);
    const missing = two('sub/new', 'sub2/new').replaceAll(' }', ', size: 1GiB }');
    expect(refusal(missing)).toMatch(overlap);
    expect(refusal(two('disk-a', 'disk-b').replace('name: b', 'name: a'))).toMatch(
      /nsds\[1\]\.name: nsds\[0\] has this name/,
    );
    expect(load(two('disk-a', 'disk-b')).nsds).toHaveLength(2);
  });

  test('with more dirty bytes than the pool can bear is refused', () => {
    expect(refusal(`${GOOD}pagePool: 64MiB\ndirtyMax: 60MiB\n`)).toMatch(/dirtyMax: must not be more than half.*:10/);
  });
});

test('docs/configuration.md has the table that the schema gives', () => {
  const docs = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
  expect(docs).toContain(configurationTable());
});

test('the example in docs/configuration.md is a configuration', () => {
  const docs = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
  const example = /```yaml\n([\s\S]*?)```/.exec(docs)![1]!;
  const here = example.replace(/clusterKeyFile: .*/, 'clusterKeyFile: cluster.key').replace('/dev/nvme0n1', 'disk-a');
  expect(load(here).nsds).toHaveLength(2);
});
