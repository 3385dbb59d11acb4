// Checks spec/token.m and spec/notes.m with rumur: every configuration must hold, every planted mutation must be caught in the one named for it.
// usage: node spec/check.mjs [--full] [--only MODEL]     (--full adds the large configurations; MODEL: token or notes)
// Prints one line per check and closes with "N passed, N failed".
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const full = process.argv.includes('--full');
const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : undefined;
const here = path.dirname(fileURLToPath(import.meta.url));

const configurations = {
  'two nodes, one range, expulsion and returning lease': { NODES: 2, EXPULSIONS: 1, LEASE_ENDS: 1 },
  'two nodes, two ranges granted together, split later, to depth 18': { BOUND: 18, NODES: 2, RANGES: 2, EXPULSIONS: 0, LEASE_ENDS: 0, CHANNEL: 2, SEQ_MOD: 3, RELEASES: false },
  "two nodes and their kernels' caches, expulsion": { NODES: 2, KERNEL: true, EXPULSIONS: 1, LEASE_ENDS: 1, CHANNEL: 2, SEQ_MOD: 3 },
  'two nodes, token server taken over, a node dead with it': { NODES: 2, TAKEOVERS: 1, EXPULSIONS: 1, LEASE_ENDS: 1, CHANNEL: 2, SEQ_MOD: 3 },
};
const large = {
  'two nodes, two ranges granted together, split later': { NODES: 2, RANGES: 2, EXPULSIONS: 0, LEASE_ENDS: 0, CHANNEL: 2, SEQ_MOD: 3, RELEASES: false },
  'three nodes, one range': { NODES: 3, EXPULSIONS: 0, LEASE_ENDS: 0, CHANNEL: 2, SEQ_MOD: 3 },
  'two nodes, one range, two leases end': { NODES: 2, EXPULSIONS: 1, LEASE_ENDS: 2 },
  'two nodes, two takeovers, two expulsions': { NODES: 2, TAKEOVERS: 2, EXPULSIONS: 2, LEASE_ENDS: 2 },
};
const plain = Object.values(configurations)[0];
const kernel = Object.values(configurations)[2];
const takeover = Object.values(configurations)[3];
const mutations = {
  GRANT_BEFORE_ANSWER: plain,
  ANSWER_BEFORE_FLUSH: plain,
  KEEP_AFTER_REVOKE: plain,
  KEEP_WRITING_AFTER_DOWNGRADE: plain,
  STALE_ANSWER: plain,
  NO_LEASE_WAIT: plain,
  NO_FENCE: plain,
  LOSE_REVOKE: plain,
  FILL_WITHOUT_TOKEN: plain,
  FORGET_CO_DEAD: takeover,
  NOTIFY_WAITS_FOR_READS: kernel,
  NO_KERNEL_DROP: kernel,
  NO_KERNEL_INVALIDATE: kernel,
  NO_GUARD: kernel,
};


const noted = {
  'notes of two writers, one dies': { NODES: 2, SIZES: 1, EXPULSIONS: 1, TAKEOVERS: 0 },
  'notes of two writers, sizes of each': { NODES: 2, SIZES: 2, EXPULSIONS: 0, TAKEOVERS: 0 },
  'notes of two writers, token server taken over': { NODES: 2, SIZES: 1, EXPULSIONS: 0, TAKEOVERS: 1 },
};
const notedLarge = {
  'notes of three writers': { NODES: 3, SIZES: 1, EXPULSIONS: 0, TAKEOVERS: 0, TRUNCATES: false },
  'notes of two writers, a death and a takeover': { NODES: 2, SIZES: 1, EXPULSIONS: 1, TAKEOVERS: 1 },
};
const [death, sizes, taken] = Object.values(noted);
const notedMutations = {
  ANSWER_WITHOUT_NOTE: death,
  NOTE_AFTER_ANSWER: death,
  ANSWER_BEFORE_FLUSH: death,
  SHARED_WHILE_NOTED: death,
  NOTE_FORGOTTEN_AT_GRANT: death,
  NOTE_KEPT_FROM_RAISED: sizes,
  OWN_NOT_TAKEN_IN: death,
  UNTAKEN_FORGOTTEN: death,
  WRITTEN_BEFORE_TAKEN_IN: death,
  TOLD_FORGOTTEN: taken,
  VERSION_IGNORED: death,
  DOWNGRADE_BEFORE_WRITE: death,
};
const models = [
  { name: 'token', configurations, large, mutations },
  { name: 'notes', configurations: noted, large: notedLarge, mutations: notedMutations },
];

if (spawnSync('rumur', ['--version']).error) {
  console.error('holdfast: rumur is missing; install it: apt-get install rumur');
  process.exit(2);
}

/** @returns {{ verdict: 'holds' | 'violated' | 'unclear', what: string, states: string }} */
function check(model, { BOUND = 0, ...constants }, optimise = '-O3') {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-spec-'));
  try {
    // A bounded search sees no end of what begins near its bound: liveness is for the whole state space.
    let text = BOUND > 0 ? model.replace(/^liveness [\s\S]*?^  [^\n]*;$/m, '') : model;
    for (const [name, value] of Object.entries(constants)) {
      const changed = text.replace(new RegExp(`^  ${name}: [^;]+;`, 'm'), `  ${name}: ${value};`);
      if (!new RegExp(`^  ${name}: ${value};`, 'm').test(changed)) throw new Error(`no constant ${name} in the model`);
      text = changed;
    }
    const [source, c, binary] = ['token.m', 'token.c', 'token'].map((name) => path.join(directory, name));
    writeFileSync(source, text);
    const run = (command, args) => {
      const result = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 30, timeout: full ? 1_800_000 : 240_000 });
      return { status: result.status, text: `${result.stdout}${result.stderr}` };
    };
    const made = run('rumur', ['--threads', '2', '--counterexample-trace', 'off', '--bound', String(BOUND), '--output', c, source]);
    if (made.status !== 0 || !existsSync(c)) throw new Error(`rumur: ${made.text}`);
    const compiled = run('cc', [optimise, '-march=native', '-mcx16', '-w', '-o', binary, c, '-lpthread']);
    if (compiled.status !== 0) throw new Error(`cc: ${compiled.text}`);
    const checked = run(binary, []);
    const states = /([0-9]+) states, [0-9]+ rules fired/.exec(checked.text)?.[1] ?? '?';
    if (/No error found/.test(checked.text)) return { verdict: 'holds', what: '', states };
    const what = /(invariant "[^"]*"|liveness property "[^"]*"|deadlock|"[^"]*" violated)/i.exec(checked.text)?.[1] ?? '';
    return { verdict: /error\(s\) found|violat|fail|deadlock/i.test(checked.text) ? 'violated' : 'unclear', what, states };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

let passed = 0;
let failed = 0;
const report = (ok, line) => {
  if (ok) passed++;
  else failed++;
  console.log(`${ok ? 'ok  ' : 'FAIL'} ${line}`);
};
for (const { name: file, configurations: short, large: long, mutations: planted } of models) {
  if (only !== undefined && only !== file) continue;
  const model = readFileSync(path.join(here, `${file}.m`), 'utf8');
  for (const [name, constants] of Object.entries(full ? { ...short, ...long } : short)) {
    const { verdict, what, states } = check(model, constants);
    report(verdict === 'holds', `${name}: ${verdict} ${what} (${states} states)`);
  }
  for (const [name, constants] of Object.entries(planted)) {
    // Found early: compiling is most of it.
    const { verdict, what, states } = check(model, { ...constants, [name]: true }, '-O1');
    report(verdict === 'violated', `planted ${name}: ${verdict === 'violated' ? `caught, ${what}` : 'NOT caught'} (${states} states)`);
  }
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
