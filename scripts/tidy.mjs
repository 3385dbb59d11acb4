// The style as far as a program can check it: biome, TypeScript, layers (imports go downwards only), file sizes, no leftovers.
// Prints one line per check and closes with "N passed, N failed".
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** What each folder of src/ may import, beside itself. The engine (src/daemon) wires everything below the client. */
const layers = {
  common: [],
  protocol: ['common'],
  native: ['common', 'protocol'],
  fabric: ['common', 'protocol', 'native'],
  cluster: ['common', 'protocol', 'fabric', 'native'],
  'token-manager': ['common', 'protocol', 'fabric', 'cluster'],
  nsd: ['common', 'protocol', 'fabric', 'native', 'cluster'],
  cache: ['common', 'native', 'token-manager'],
  fs: ['common', 'protocol', 'native', 'nsd', 'token-manager', 'cache'],
  client: ['common', 'protocol', 'native', 'cache', 'fs'],
  mount: ['common', 'protocol', 'native', 'cache', 'fs'],
};

function* files(directory) {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const full = path.join(directory, entry.name);
    if (entry.isDirectory()) yield* files(full);
    else if (entry.name.endsWith('.ts')) yield full;
  }
}

let passed = 0;
let failed = 0;
function check(name, problems) {
  if (problems.length === 0) passed++;
  else failed++;
  console.log(`${problems.length === 0 ? 'ok  ' : 'FAIL'} ${name}`);
  for (const problem of problems) console.log(`     ${problem}`);
}

const sources = [...files(path.join(root, 'src'))].map((file) => ({
  file: path.relative(root, file),
  text: readFileSync(file, 'utf8'),
}));

const wrongLayer = [];
for (const { file, text } of sources) {
  const folder = file.split(path.sep)[1];
  const allowed = layers[folder];
  if (allowed === undefined || /\.test\.ts$|testing|\.suite\.ts$/.test(file)) continue;
  for (const match of text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']*)'/g)) {
    const target = path.relative(path.join(root, 'src'), path.resolve(root, path.dirname(file), match[1])).split(path.sep)[0];
    if (target !== folder && !allowed.includes(target)) wrongLayer.push(`${file} imports ${match[1]}`);
  }
}
check('imports go downwards only', wrongLayer);

const pure = sources.filter(({ file }) => /machine\.ts$/.test(file));
check(
  'machines have no await, clock, randomness or node import',
  pure.flatMap(({ file, text }) =>
    [/\bawait\b/, /\bPromise\b/, /Date\.now/, /Math\.random/, /from 'node:/, /setTimeout/].flatMap((pattern) =>
      pattern.test(text.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '')) ? [`${file}: ${pattern}`] : [],
    ),
  ),
);

const longest = 700;
check(
  `no source file over ${longest} lines`,
  sources.filter(({ file, text }) => !/\.test\.ts$|\.suite\.ts$/.test(file) && text.split('\n').length > longest).map(({ file }) => file),
);
check(
  'no leftovers (TODO, FIXME, skipped or exclusive tests)',
  sources.flatMap(({ file, text }) => (/\b(TODO|FIXME|XXX)\b|\b(?:it|test|describe)\.(?:only|skip)\(/.test(text) ? [file] : [])),
);

const biome = spawnSync(process.execPath, ['scripts/biome.mjs', 'check', '.'], { cwd: root, encoding: 'utf8' });
check('biome finds nothing', biome.status === 0 ? [] : [`${biome.stdout}${biome.stderr}`.slice(0, 4000)]);
const tsc = spawnSync('npx', ['tsc', '--noEmit', '-p', '.'], { cwd: root, encoding: 'utf8' });
check('TypeScript finds nothing', tsc.status === 0 ? [] : [tsc.stdout.slice(0, 4000)]);

console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
