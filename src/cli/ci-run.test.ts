/** What CI's script says at the end: the sum of its parts, and that the hardware tests were left out where somebody asked for that. */
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';

const script = new URL('../../.ci/run', import.meta.url).pathname;
let root: string;
beforeEach(() => {
  root = mkdtempSync(path.join(tmpdir(), 'holdfast-ci-'));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function program(file: string, text: string): void {
  mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
  writeFileSync(path.join(root, file), `#!/usr/bin/env bash\n${text}\n`);
  chmodSync(path.join(root, file), 0o755);
}

/** With parts that end like this; npm's arguments are in what it prints. */
function run(hardware: string, environment: NodeJS.ProcessEnv): { status: number | null; lines: string[] } {
  mkdirSync(path.join(root, '.ci'));
  copyFileSync(script, path.join(root, '.ci/run'));
  program('scripts/sanitize.sh', 'echo "20 passed, 0 failed"');
  program('bin/npm', `echo "npm $*"; case "$*" in *hw-test*) ${hardware};; *) echo "3 passed, 0 failed";; esac`);
  const { HOLDFAST_HW_TEST: _, ...own } = process.env;
  const env = { ...own, ...environment, PATH: `${path.join(root, 'bin')}:${process.env['PATH']}` };
  const { status, stdout } = spawnSync('bash', [path.join(root, '.ci/run')], { env, encoding: 'utf8' });
  return { status, lines: stdout.trim().split('\n') };
}

test('the hardware tests are part of the closing line', () => {
  const { status, lines } = run('echo "100 passed, 0 failed"', {});
  expect(lines.at(-1)).toBe('123 passed, 0 failed');
  expect(lines.some((line) => /^npm .*hw-test -- --short --budget \d+$/.test(line))).toBe(true);
  expect(status).toBe(0);
});

test('a failed hardware test fails the run', () => {
  expect(run('echo "99 passed, 1 failed"; exit 1', {})).toMatchObject({ status: 1 });
});

test('hardware tests that end without a result fail the run', () => {
  const { status, lines } = run('exit 0', {});
  expect(lines.at(-1)).toBe('23 passed, 1 failed');
  expect(status).toBe(1);
});

test('hardware tests are left out by HOLDFAST_HW_TEST=skip alone, and the closing line says so', () => {
  const { status, lines } = run('exit 1', { HOLDFAST_HW_TEST: 'skip' });
  expect(lines.at(-1)).toBe('23 passed, 0 failed (without the hardware tests: HOLDFAST_HW_TEST=skip)');
  expect(lines.some((line) => line.includes('hw-test --'))).toBe(false);
  expect(status).toBe(0);
});
