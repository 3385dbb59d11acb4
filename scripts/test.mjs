// Runs every suite one after the other, each within its budget, and closes with one line over all: "N passed, N failed".
// A suite that ran nothing, or ran out of its budget, has failed. `--full` runs the full counts and keeps its results in docs/test-results.md.
// `--only NAME` runs one suite.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const args = process.argv.slice(2);
const full = args.includes('--full');
const only = args.includes('--only') ? args[args.indexOf('--only') + 1] : undefined;
const scratch = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'));

const vitest = (name, paths, extra = []) => ({
  name,
  command: ['npx', 'vitest', 'run', ...paths, ...extra, '--reporter=default', '--reporter=json', `--outputFile.json=${path.join(scratch, `${name}.json`)}`],
  count: () => {
    const result = JSON.parse(readFileSync(path.join(scratch, `${name}.json`), 'utf8'));
    return { passed: result.numPassedTests, failed: result.numFailedTests + (result.success ? 0 : result.numFailedTests === 0 ? 1 : 0) };
  },
});
const closing = (name, command) => ({
  name,
  command,
  count: (output) => {
    const match = [...output.matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1);
    return match ? { passed: Number(match[1]), failed: Number(match[2]) } : { passed: 0, failed: 0 };
  },
});

/** Caps for a two-core machine that is busy with other things too; alone, the short suites take about 5 minutes together. */
const suites = [
  { ...closing('tidy', ['node', 'scripts/tidy.mjs']), budgetS: 120, fullBudgetS: 120 },
  { ...vitest('unit', ['src', 'native'], ['--exclude', '**/*.e2e.test.ts']), budgetS: 600, fullBudgetS: 1800 },
  { ...closing('model', ['node', 'spec/check.mjs', ...(full ? ['--full'] : [])]), budgetS: 300, fullBudgetS: 5400 },
  { ...closing('simulator', ['node', '--enable-source-maps', 'dist/src/sim/main.js', '--seeds', full ? '1000' : '60']), budgetS: 420, fullBudgetS: 5400 },
  { ...closing('planted', ['node', '--enable-source-maps', 'dist/src/sim/main.js', '--planted', ...(full ? [] : ['--quick'])]), budgetS: 420, fullBudgetS: 5400 },
  { ...closing('explorer', ['node', '--enable-source-maps', 'dist/src/sim/main.js', '--crash-explorer', '--size', full ? 'full' : 'short']), budgetS: 300, fullBudgetS: 7200 },
  { ...vitest('cluster', ['e2e']), budgetS: 600, fullBudgetS: 7200 },
];

function run({ command, budgetS, fullBudgetS }) {
  return new Promise((resolve) => {
    const child = spawn(command[0], command.slice(1), {
      cwd: root,
      env: { ...process.env, FORCE_COLOR: '0', ...(full ? { HOLDFAST_TEST_FULL: '1', HOLDFAST_FUZZ_SECONDS: process.env.HOLDFAST_FUZZ_SECONDS ?? '10' } : {}) },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    let output = '';
    const collect = (chunk) => {
      output += chunk;
      process.stdout.write(chunk);
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      process.kill(-child.pid, 'SIGKILL');
    }, (full ? fullBudgetS : budgetS) * 1000);
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, output, late });
    });
  });
}

const rows = [];
for (const suite of suites) {
  if (only !== undefined && suite.name !== only) continue;
  process.stdout.write(`\n== ${suite.name}\n`);
  const startedMs = Date.now();
  const { code, output, late } = await run(suite);
  let counts = { passed: 0, failed: 0 };
  try {
    counts = suite.count(output);
  } catch {
    counts = { passed: 0, failed: 1 };
  }
  const notes = [];
  if (late) notes.push('ran out of its budget');
  if (code !== 0 && !late && counts.failed === 0) notes.push(`exit code ${code}`);
  if (counts.passed + counts.failed === 0) notes.push('ran nothing');
  if (notes.length > 0) counts.failed += 1;
  rows.push({ name: suite.name, ...counts, seconds: Math.round((Date.now() - startedMs) / 1000), notes: notes.join(', '), output });
}
rmSync(scratch, { recursive: true, force: true });

process.stdout.write('\nsuite       passed  failed  seconds\n');
for (const row of rows) {
  process.stdout.write(`${row.name.padEnd(10)} ${String(row.passed).padStart(7)} ${String(row.failed).padStart(7)} ${String(row.seconds).padStart(8)}  ${row.notes}\n`);
}
const passed = rows.reduce((sum, row) => sum + row.passed, 0);
const failed = rows.reduce((sum, row) => sum + row.failed, 0);
/** Results of full runs: a line in the table and a section for each suite; a run of one suite replaces its own. */
function keepResults() {
  const file = path.join(root, 'docs/test-results.md');
  const kept = new Map();
  try {
    const before = readFileSync(file, 'utf8');
    for (const [line, name] of before.matchAll(/^\| (\w+) \| \d.*$/gm)) kept.set(name, { line, section: '' });
    for (const [, name, section] of before.matchAll(/^## (\w+)\n\n```\n([\s\S]*?)\n```$/gm)) kept.get(name).section = section;
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
  const day = new Date().toISOString().slice(0, 10);
  const on = `${cpus().length} cores, Node ${process.version}`;
  for (const row of rows) {
    const lines = row.output.split('\n').filter((line) => /^(sim|ok |FAIL|planted|transitions|seeds|failed seeds)/.test(line));
    kept.set(row.name, {
      line: `| ${row.name} | ${row.passed} | ${row.failed} | ${row.seconds} | ${day}, ${on} |`,
      section: lines.filter((line) => !/^seeds \d+ of/.test(line)).join('\n'),
    });
  }
  const known = suites.map(({ name }) => name).filter((name) => kept.has(name));
  const text = [
    '# Results of the full test runs',
    '',
    'Written by `npm run test:full` (all suites) and `npm run test:full -- --only NAME` (one, in the place of its older result).',
    '',
    '| suite | passed | failed | seconds | when, where |',
    '|---|---|---|---|---|',
    ...known.map((name) => kept.get(name).line),
    '',
    ...known.filter((name) => kept.get(name).section !== '').flatMap((name) => [`## ${name}`, '', '```', kept.get(name).section, '```', '']),
  ];
  writeFileSync(file, text.join('\n'));
}
if (full) keepResults();
process.stdout.write(`\n${passed} passed, ${failed} failed\n`);
process.exit(failed === 0 ? 0 : 1);
