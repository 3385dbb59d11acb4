import { runSeed } from './run-seed.js';

const from = Number(process.argv[2]);
const to = Number(process.argv[3] ?? from);
const trace = process.argv[4] === 'trace';
for (let seed = from; seed <= to; seed++) {
  const r = await runSeed(seed, trace ? { onLine: (l) => console.log(l) } : {});
  console.log(
    seed,
    r.plan.kind,
    r.violation === null ? 'ok' : 'FAILED',
    r.digest,
    `${r.operations} ops ${r.hits} hits ${r.faults} faults ${r.steps} steps ${r.virtualMs.toFixed(0)} vms ${r.realMs.toFixed(0)} ms`,
    JSON.stringify(r.errors),
  );
  if (r.violation) {
    if (!trace) for (const l of r.lastEvents.slice(-45)) console.log('   ', l);
    console.log(r.violation.check, r.violation.ino, r.violation.text);
  }
}
