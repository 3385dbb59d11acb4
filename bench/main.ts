/** Runs the benches one after the other: `npm run bench`, or `npm run bench -- hit fabric`, or parts of one: `cluster:sequential`. */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const all = readdirSync(here).filter((name) => name.endsWith('.bench.js'));
const wanted = process.argv.slice(2);
let failed = 0;
for (const name of all.sort()) {
  const short = name.slice(0, -'.bench.js'.length);
  const asked = wanted.filter((name) => name === short || name.startsWith(`${short}:`));
  if (wanted.length > 0 && asked.length === 0) continue;
  const parts = asked.includes(short) ? [] : asked.map((name) => name.slice(short.length + 1));
  console.log(`\n== ${short}`);
  const { status } = spawnSync(process.execPath, ['--expose-gc', path.join(here, name), ...parts], {
    stdio: 'inherit',
  });
  if (status !== 0) failed++;
}
process.exit(failed === 0 ? 0 : 1);
