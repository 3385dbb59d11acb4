/**
 * Runs one suite: starts its guests (or, natively, its processes), serves their power-cut requests, shows what they print, ends
 * them at the deadline, and counts results. What never arrived has failed: no exit status does not mean success.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  cpSync,
  existsSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { GuestImage } from './image.js';
import { projectRoot, resultsDirectory } from './paths.js';
import { NAMESPACES, startGuest } from './qemu.js';
import { SANITIZED, type Suite } from './suites.js';

export interface NativeMachine {
  readonly address: string;
  readonly rdma: string;
  readonly netdev: string;
  /** Namespaces that may be overwritten; empty where none was named. */
  readonly nvme: readonly string[];
}

export interface RunOptions {
  /** Null: natively. */
  readonly image: GuestImage | null;
  readonly native: NativeMachine | null;
  readonly accelerator: 'kvm' | 'tcg';
  readonly tscRateKHz: number;
  readonly cpus: number;
  readonly namespaceMiB: number;
  readonly deadlineFactor: number;
  readonly keep: boolean;
  readonly shell: boolean;
  readonly environment: Readonly<Record<string, string>>;
}

export interface SuiteResult {
  readonly name: string;
  readonly passed: number;
  readonly failed: number;
  readonly seconds: number;
  readonly notes: readonly string[];
  /** Exit status of guest 1's command, for ad-hoc commands. */
  readonly status: number | null;
}

interface Participant {
  readonly guest: number;
  readonly process: ChildProcess;
  /** Resolves when the machine is off: '' or why it ended badly. */
  readonly ended: Promise<string>;
  readonly consoleLog: string | null;
  cut: boolean;
}

const TICK_MS = 20;
const LAST_WORDS_MS = 8000;
/** From a guest's start to its command's; 5 s is usual, 20 s on a busy machine. */
const BOOT_DEADLINE_S = 120;

/**
 * A guest that doesn't come up is the emulation's fault, before anything that is tested here has run: its suite is begun again, once,
 * and says so.
 */
export async function runSuite(suite: Suite, options: RunOptions, leftS: number): Promise<SuiteResult> {
  const startedMs = Date.now();
  const first = await attempt(suite, options, leftS);
  if (first.booted) return first.result;
  console.log(`-- ${first.result.notes.join(', ')}: once more`);
  const second = await attempt(suite, options, leftS - (Date.now() - startedMs) / 1000);
  return { ...second.result, seconds: Math.round((Date.now() - startedMs) / 1000) };
}

async function attempt(
  suite: Suite,
  options: RunOptions,
  leftS: number,
): Promise<{ readonly result: SuiteResult; readonly booted: boolean }> {
  const startedMs = Date.now();
  const { image } = options;
  const runDirectory = mkdtempSync(path.join(tmpdir(), 'holdfast-hw-'));
  const share = path.join(runDirectory, 'share');
  for (const folder of ['', 'exchange', 'control']) mkdirSync(path.join(share, folder));
  const guests = Array.from({ length: suite.guests }, (_, index) => index + 1);
  for (const guest of guests) prepareGuest(suite, guest, share, options);

  const participants = guests.map((guest) => startParticipant(suite, guest, runDirectory, share, options));
  const killAll = () => {
    for (const participant of participants) powerOff(participant);
  };
  // A run that is broken off leaves neither guests nor disks.
  const abandon = () => {
    killAll();
    rmSync(runDirectory, { recursive: true, force: true });
  };
  process.once('exit', abandon);
  const follow = guests.map(
    (guest) => new Follower(path.join(share, `guest${guest}`, 'output.log'), suite.guests > 1 ? `[${guest}] ` : ''),
  );
  const tick = setInterval(() => {
    servePowerCuts(share, participants);
    for (const follower of follow) follower.show();
  }, TICK_MS);
  const deadlineMs = Math.min(suite.deadlineS * options.deadlineFactor, leftS) * 1000;
  let late = false;
  const booted = (): boolean =>
    options.shell || guests.every((guest) => existsSync(path.join(share, `guest${guest}`, 'output.log')));
  const bootTimer = setTimeout(
    () => {
      if (!booted()) killAll();
    },
    BOOT_DEADLINE_S * 1000 * options.deadlineFactor,
  );
  const timer = options.shell
    ? undefined
    : setTimeout(() => {
        late = true;
        // What it hangs in goes to its console, if it still can say so.
        writeFileSync(path.join(share, 'control/hangs'), '');
        setTimeout(killAll, image === null ? 0 : LAST_WORDS_MS);
      }, deadlineMs);
  const reasons = await Promise.all(
    participants.map(async ({ guest, ended }) => {
      const reason = await ended;
      writeFileSync(path.join(share, `control/ended-${guest}`), '');
      return reason;
    }),
  );
  clearTimeout(timer);
  clearTimeout(bootTimer);
  clearInterval(tick);
  process.removeListener('exit', abandon);
  for (const follower of follow) follower.close();

  const notes: string[] = [];
  const allBooted = booted();
  if (!allBooted) notes.push('a guest did not come up');
  if (late) notes.push(`ended after ${Math.round(deadlineMs / 1000)} s`);
  let passed = 0;
  let failed = 0;
  let status: number | null = null;
  for (const [index, participant] of participants.entries()) {
    const outcome = readOutcome(path.join(share, `guest${participant.guest}`));
    passed += outcome.passed;
    failed += outcome.failed;
    if (participant.guest === 1) status = outcome.status;
    if (!participant.cut && outcome.status === null) notes.push(`guest ${participant.guest} brought no exit status`);
    else if (!participant.cut && outcome.status !== 0 && outcome.failed === 0)
      notes.push(`guest ${participant.guest} ended with ${outcome.status}`);
    if (!participant.cut && reasons[index] !== '' && !late) notes.push(reasons[index]!);
    for (const core of outcome.cores) notes.push(`core dump ${core}`);
  }
  if (!options.shell) {
    if (passed + failed === 0 && notes.length === 0) notes.push('ran nothing');
    if (notes.length > 0) {
      failed = Math.max(failed, 1);
      showConsoles(participants);
    }
  }
  if (!options.shell) keepResults(suite, runDirectory, share, options.keep);
  rmSync(runDirectory, { recursive: true, force: true });
  const seconds = Math.round((Date.now() - startedMs) / 1000);
  return { booted: allBooted, result: { name: suite.name, passed, failed, notes, status, seconds } };
}

function prepareGuest(suite: Suite, guest: number, share: string, options: RunOptions) {
  const folder = path.join(share, `guest${guest}`);
  mkdirSync(folder);
  const { native, image } = options;
  const variables: Record<string, string> = {
    HOLDFAST_HW: native === null ? 'guest' : 'native',
    HOLDFAST_HW_GUEST: `${guest}`,
    HOLDFAST_HW_GUESTS: `${suite.guests}`,
    HOLDFAST_HW_PROJECT: projectRoot,
    HOLDFAST_HW_ADDRESS: native?.address ?? `10.77.0.${guest}`,
    HOLDFAST_HW_PEER: native?.address ?? (suite.guests === 2 ? `10.77.0.${3 - guest}` : '10.77.0.1'),
    HOLDFAST_HW_NETDEV: native?.netdev ?? 'eth0',
    HOLDFAST_HW_RDMA: native?.rdma ?? 'rxe0',
    HOLDFAST_HW_NVME: (native?.nvme ?? NAMESPACES.map(({ device }) => device)).join(','),
    HOLDFAST_HW_IMAGE: image?.directory ?? '',
    HOLDFAST_HW_LOOP: image === null || image.loopModule === null ? '' : '1',
    HOLDFAST_HW_SHELL: options.shell ? '1' : '',
    NO_COLOR: '1',
    ...options.environment,
  };
  const lines = Object.entries(variables).map(([name, value]) => `${name}=${quote(value)}`);
  writeFileSync(path.join(folder, 'environment'), `${lines.join('\n')}\n`);
  const command = suite.commands[guest - 1] ?? suite.commands[0] ?? ['true'];
  writeFileSync(path.join(folder, 'command.sh'), `exec ${expand(command, guest).join(' ')}\n`);
}

/** `vitest PATH…`, `sanitized PATH…` stand for vitest with the hardware tests' configuration and its report in the share. */
function expand(command: readonly string[], guest: number): string[] {
  if (command[0] === 'shell') return ['bash', '-c', quote(command[1] ?? 'true')];
  if (command[0] !== 'vitest' && command[0] !== SANITIZED) return command.map(quote);
  const report = `"$HOLDFAST_HW_SHARE/guest${guest}/results.json"`;
  return [
    ...(command[0] === SANITIZED ? ['bash scripts/under-sanitizers.sh'] : []),
    'node node_modules/vitest/vitest.mjs run --config hw-test/vitest.config.ts',
    ...command.slice(1).map(quote),
    `--reporter=verbose --reporter=json --outputFile.json=${report}`,
  ];
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function startParticipant(
  suite: Suite,
  guest: number,
  runDirectory: string,
  share: string,
  options: RunOptions,
): Participant {
  if (options.image === null) return startNative(guest, share);
  const machine = startGuest({
    guest,
    guests: suite.guests,
    image: options.image,
    accelerator: options.accelerator,
    tscRateKHz: options.tscRateKHz,
    memoryMiB: suite.memoryMiB ?? 2048,
    cpus: options.cpus,
    namespaceMiB: options.namespaceMiB,
    runDirectory,
    share,
    interactive: options.shell && guest === 1,
  });
  return { guest, cut: false, ...machine };
}

/** The same command without a guest, in a process group of its own: killing the group stands for the power cut. */
function startNative(guest: number, share: string): Participant {
  const folder = path.join(share, `guest${guest}`);
  mkdirSync(path.join(folder, 'cores'));
  const script = `set -a; HOLDFAST_HW_SHARE=${quote(share)}; . ${quote(`${folder}/environment`)}; set +a; bash ${quote(`${folder}/command.sh`)}`;
  const output = openSync(path.join(folder, 'output.log'), 'a');
  const child = spawn('bash', ['-c', script], { cwd: projectRoot, stdio: ['ignore', output, output], detached: true });
  closeSync(output);
  const ended = new Promise<string>((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code) => {
      if (code !== null) writeFileSync(path.join(folder, 'status'), `${code}\n`);
      resolve('');
    });
  });
  return { guest, process: child, ended, consoleLog: null, cut: false };
}

function powerOff(participant: Participant) {
  const { pid } = participant.process;
  if (pid === undefined || participant.process.exitCode !== null || participant.process.signalCode !== null) return;
  try {
    process.kill(participant.consoleLog === null ? -pid : pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** A file control/cut-N asks for the power cut of guest N; control/ended-N says that it is off. */
function servePowerCuts(share: string, participants: readonly Participant[]) {
  const control = path.join(share, 'control');
  for (const participant of participants) {
    if (participant.cut || !existsSync(path.join(control, `cut-${participant.guest}`))) continue;
    participant.cut = true;
    powerOff(participant);
  }
}

interface Outcome {
  readonly passed: number;
  readonly failed: number;
  readonly status: number | null;
  readonly cores: readonly string[];
}

function readOutcome(folder: string): Outcome {
  const read = (name: string) => {
    const file = path.join(folder, name);
    return existsSync(file) ? readFileSync(file, 'utf8') : null;
  };
  const statusText = read('status');
  const status = statusText === null ? null : Number(statusText);
  const coreFolder = path.join(folder, 'cores');
  const cores = existsSync(coreFolder) ? readdirSync(coreFolder) : [];
  const report = read('results.json');
  if (report !== null) {
    const { numPassedTests, numFailedTests, success } = JSON.parse(report) as {
      numPassedTests: number;
      numFailedTests: number;
      success: boolean;
    };
    return { passed: numPassedTests, failed: numFailedTests + (success || numFailedTests > 0 ? 0 : 1), status, cores };
  }
  const line = [...(read('output.log') ?? '').matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1);
  if (line !== undefined) return { passed: Number(line[1]), failed: Number(line[2]), status, cores };
  return { passed: status === 0 ? 1 : 0, failed: 0, status, cores };
}

function showConsoles(participants: readonly Participant[]) {
  for (const { guest, consoleLog } of participants) {
    if (consoleLog === null || !existsSync(consoleLog)) continue;
    const lines = readFileSync(consoleLog, 'utf8').trimEnd().split('\n').slice(-60);
    process.stdout.write(`-- console of guest ${guest}\n${lines.join('\n')}\n`);
  }
}

/** Logs, reports and core dumps of the last run of each suite. The disks go, unless they are to be kept. */
function keepResults(suite: Suite, runDirectory: string, share: string, disks: boolean) {
  const target = path.join(resultsDirectory(), suite.name);
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target, { recursive: true });
  for (const name of readdirSync(share).filter((name) => /^guest\d$/.test(name)))
    cpSync(path.join(share, name), path.join(target, name), { recursive: true });
  const wanted = disks ? /^(console|namespace)/ : /^console/;
  for (const name of readdirSync(runDirectory).filter((name) => wanted.test(name)))
    cpSync(path.join(runDirectory, name), path.join(target, name));
}

/** Prints what a file grows by, line by line. */
class Follower {
  readonly #file: string;
  readonly #prefix: string;
  #descriptor: number | null = null;
  #offset = 0;
  #rest = '';

  constructor(file: string, prefix: string) {
    this.#file = file;
    this.#prefix = prefix;
  }

  show() {
    if (this.#descriptor === null) {
      if (!existsSync(this.#file)) return;
      this.#descriptor = openSync(this.#file, 'r');
    }
    const size = fstatSync(this.#descriptor).size;
    if (size <= this.#offset) return;
    const buffer = Buffer.alloc(size - this.#offset);
    this.#offset += readSync(this.#descriptor, buffer, 0, buffer.length, this.#offset);
    const lines = (this.#rest + buffer.toString('utf8')).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) process.stdout.write(`${this.#prefix}${line}\n`);
  }

  close() {
    this.show();
    if (this.#rest !== '') process.stdout.write(`${this.#prefix}${this.#rest}\n`);
    if (this.#descriptor !== null) closeSync(this.#descriptor);
  }
}
