/** `npm run hw-test`: the suites that need RDMA and NVMe devices, in guests that emulate them or, with --native, on this machine. */
import { spawnSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import { accelerator } from './accelerator.js';
import { type GuestImage, guestImage } from './image.js';
import { projectRoot } from './paths.js';
import { type NativeMachine, type RunOptions, runSuite, type SuiteResult } from './runner.js';
import { SANITIZED, type Suite, suites } from './suites.js';
import { tscRateKHz } from './tsc-rate.js';

const HELP = `npm run hw-test -- [options]

  --list              the suites
  --only NAME         this suite alone (may be repeated)
  --short             the suites that CI runs with every change
  --long              the full counts, where a suite has some, with more time for it
  --run COMMAND       this shell command in a guest instead of the suites; its exit status is the result
  --run2 COMMAND      with --guests 2: what guest 2 runs instead
  --guests 1|2        with --run or --shell: how many guests
  --shell             a prompt in a guest (Ctrl-A X ends it at once); with --guests 2 and --run2 a second one beside it
  --native            without guests, on this machine's devices:
    --address IP        address of the RDMA device's port
    --rdma NAME         RDMA device, --netdev NAME its network interface
    --nvme DEVICE,…     namespaces that MAY BE OVERWRITTEN; without it the suites that write to one fail
  --env NAME=VALUE    into the guests (may be repeated)
  --deadline SECONDS  with --run
  --budget SECONDS    for all suites together; what doesn't get its turn within it has failed
  --cpus N, --memory MiB, --namespace MiB
  --keep              keep the disks of the guests beside the results

Results, logs and core dumps: .holdfast/hw-test/SUITE. docs/hw-test.md has the rest.`;

const { values } = parseArgs({
  options: {
    list: { type: 'boolean', default: false },
    long: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true, default: [] },
    short: { type: 'boolean', default: false },
    run: { type: 'string' },
    run2: { type: 'string' },
    guests: { type: 'string', default: '1' },
    shell: { type: 'boolean', default: false },
    native: { type: 'boolean', default: false },
    address: { type: 'string', default: '127.0.0.1' },
    rdma: { type: 'string', default: '' },
    netdev: { type: 'string', default: '' },
    nvme: { type: 'string', default: '' },
    env: { type: 'string', multiple: true, default: [] },
    deadline: { type: 'string', default: '300' },
    budget: { type: 'string' },
    cpus: { type: 'string', default: '2' },
    memory: { type: 'string' },
    namespace: { type: 'string', default: '256' },
    keep: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});

/** A guest is up after this long at best. */
const SHORTEST_S = 5;

function positive(name: string, text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`--${name} takes a whole number from 1, not ${text}`);
  return value;
}

function chosen(): readonly Suite[] {
  const memory = values.memory === undefined ? {} : { memoryMiB: positive('memory', values.memory) };
  if (values.run !== undefined || values.shell) {
    const guests = positive('guests', values.guests);
    if (guests > 2) throw new Error('--guests takes 1 or 2');
    const commands = [['shell', values.run ?? 'true'], ...(values.run2 === undefined ? [] : [['shell', values.run2]])];
    const deadlineS = positive('deadline', values.deadline);
    return [{ name: 'run', shows: 'a given command', guests: guests as 1 | 2, commands, deadlineS, ...memory }];
  }
  const unknown = values.only.find((name) => !suites.some((suite) => suite.name === name));
  if (unknown !== undefined)
    throw new Error(`no suite ${unknown}; there are ${suites.map(({ name }) => name).join(', ')}`);
  const wanted = values.only.length === 0 ? suites : suites.filter(({ name }) => values.only.includes(name));
  return wanted
    .filter((suite) => !values.short || suite.short === true)
    .filter((suite) => !values.native || suite.native !== false)
    .map((suite) => ({
      ...suite,
      ...memory,
      ...(values.long && suite.longDeadlineS !== undefined ? { deadlineS: suite.longDeadlineS } : {}),
    }));
}

function environment(): Record<string, string> {
  return Object.fromEntries(
    [...values.env, ...(values.long ? ['HOLDFAST_TEST_FULL=1'] : [])].map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1 || !/^\w+$/.test(pair.slice(0, at))) throw new Error(`--env takes NAME=VALUE, not ${pair}`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

/** Guests run what the host has built. */
function buildSanitized(): void {
  console.log("- the addons' sanitizer build ...");
  const { status } = spawnSync(process.execPath, ['scripts/build-native.mjs', '--sanitize'], {
    cwd: projectRoot,
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error('the sanitizer build failed');
}

async function main(): Promise<number> {
  if (values.help || values.list) {
    const list = suites.map(
      (suite) => `${suite.name.padEnd(16)} ${suite.guests} guest${suite.guests > 1 ? 's' : ' '}  ${suite.shows}`,
    );
    console.log(values.help ? HELP : list.join('\n'));
    return 0;
  }
  const wanted = chosen();
  const adHoc = values.run !== undefined || values.shell;
  if (wanted.some(({ commands }) => commands.some(([first]) => first === SANITIZED))) buildSanitized();
  let image: GuestImage | null = null;
  let native: NativeMachine | null = null;
  if (values.native) {
    const { address, rdma, netdev } = values;
    native = { address, rdma, netdev, nvme: values.nvme.split(',').filter((name) => name !== '') };
  } else {
    image = guestImage((line) => console.log(`- ${line} ...`));
    if (image.loopModule === null) console.log(`- ${image.loopModuleReason}`);
  }
  const options: RunOptions = {
    image,
    native,
    accelerator: image === null ? 'tcg' : await accelerator(image),
    tscRateKHz: image === null ? 0 : tscRateKHz(),
    cpus: positive('cpus', values.cpus),
    namespaceMiB: positive('namespace', values.namespace),
    deadlineFactor: Number(process.env.HOLDFAST_HW_DEADLINE_FACTOR ?? '1'),
    keep: values.keep,
    shell: values.shell,
    environment: environment(),
  };
  if (image !== null)
    console.log(
      `- Linux ${image.release} (${image.packageVersion}), ${options.accelerator}, ${image.loopModule === null ? 'without' : 'with'} nvme-loop`,
    );
  const results: SuiteResult[] = [];
  const endMs = values.budget === undefined ? Infinity : performance.now() + 1000 * positive('budget', values.budget);
  for (const suite of wanted) {
    if (!adHoc) console.log(`\n== ${suite.name}`);
    const leftS = (endMs - performance.now()) / 1000;
    if (leftS < SHORTEST_S) {
      results.push({
        name: suite.name,
        passed: 0,
        failed: 1,
        seconds: 0,
        notes: ['no time was left in the budget'],
        status: null,
      });
      continue;
    }
    results.push(await runSuite(suite, options, leftS));
  }
  if (values.shell) return results[0]?.status ?? 1;
  if (values.run !== undefined) {
    for (const note of results[0]?.notes ?? []) console.log(`- ${note}`);
    return results[0]?.status ?? 1;
  }
  console.log('\nsuite             passed  failed  seconds');
  for (const { name, passed, failed, seconds, notes } of results) {
    console.log(
      `${name.padEnd(16)} ${String(passed).padStart(7)} ${String(failed).padStart(7)} ${String(seconds).padStart(8)}  ${notes.join(', ')}`,
    );
  }
  const passed = results.reduce((sum, result) => sum + result.passed, 0);
  const failed = results.reduce((sum, result) => sum + result.failed, 0) + (results.length === 0 ? 1 : 0);
  console.log(`\n${passed} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(1));
process.exitCode = await main().catch((error: unknown) => {
  console.error(`hw-test: ${error instanceof Error ? error.message : String(error)}`);
  return 1;
});
