/**
 * The soft-RoCE device taken away and brought back. Its removal waits in the kernel, where nothing can end it, until every process has let go
 * of the device; so who holds it is said when that takes too long, and a test that failed gives the device back to those after it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { tool } from './tools.js';

const REMOVAL_MS = 60_000;
const LOOK_MS = 20;
const DIAGNOSIS_MS = 5000;
const ENTRIES = '/sys/class/infiniband_verbs';

export class RdmaDevice {
  /** A removal that has not ended. */
  #removal: { readonly process: ChildProcess; readonly over: Promise<string | null> } | null = null;

  constructor(
    readonly name: string,
    readonly netdev: string,
  ) {}

  /** From the call on: resolves when everybody has let go of it. @throws {Error} that says who has not. */
  async remove(deadlineMs = REMOVAL_MS): Promise<void> {
    this.beginRemoval();
    await this.removed(deadlineMs);
  }

  beginRemoval(): void {
    if (this.#removal !== null) throw new Error(`${this.name} is being removed already`);
    const process = spawn('rdma', ['link', 'delete', this.name], { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    process.stderr.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const over = new Promise<string | null>((resolve) => {
      process.on('error', (error) => resolve(error.message));
      process.on('close', (code) => resolve(code === 0 ? null : `ended with ${code}: ${said}`));
    });
    this.#removal = { process, over };
  }

  /** Until the removal has come to the verbs: from here on the kernel waits for those who have the device open. */
  async verbsGone(deadlineMs = REMOVAL_MS): Promise<void> {
    const endMs = performance.now() + deadlineMs;
    while (verbsEntry(this.name) !== null) {
      if (performance.now() > endMs) throw await this.#held('its verbs do not go', deadlineMs);
      await pause(LOOK_MS);
    }
  }

  async removed(deadlineMs = REMOVAL_MS): Promise<void> {
    const removal = this.#removal;
    if (removal === null) return;
    const late = new AbortController();
    const outcome = await Promise.race([
      removal.over,
      pause(deadlineMs, 'late' as const, { signal: late.signal }).catch(() => null),
    ]);
    late.abort();
    if (outcome === 'late') throw await this.#held('it is not gone', deadlineMs);
    this.#removal = null;
    if (outcome !== null) throw new Error(`rdma link delete ${this.name}: ${outcome}`);
  }

  async add(): Promise<void> {
    await tool('rdma', ['link', 'add', this.name, 'type', 'rxe', 'netdev', this.netdev]);
  }

  /** As it was before the test, however that ended; once nobody holds what was being removed. */
  async restore(deadlineMs = REMOVAL_MS): Promise<void> {
    await this.removed(deadlineMs);
    if (!existsSync(`/sys/class/infiniband/${this.name}`)) await this.add();
  }

  async #held(what: string, deadlineMs: number): Promise<Error> {
    return new Error(`${this.name}, after ${deadlineMs} ms: ${what}\n${await whoHolds()}`);
  }
}

/** Where the verbs of a device are in sysfs; null: it has none (any more). */
export function verbsEntry(name: string): string | null {
  for (const entry of existsSync(ENTRIES) ? readdirSync(ENTRIES) : []) {
    if (textOf(`${ENTRIES}/${entry}/ibdev`).trim() === name) return `${ENTRIES}/${entry}`;
  }
  return null;
}

/** The processes that have verbs open, what their threads are in, what the kernel counts, and what it said. */
async function whoHolds(): Promise<string> {
  const lines: string[] = [];
  for (const pid of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
    const held = linksOf(`/proc/${pid}/fd`).filter((target) => target.includes('infiniband'));
    const command = textOf(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').slice(0, 200);
    const removes = command.startsWith('rdma link delete');
    if (held.length === 0 && !removes) continue;
    lines.push(`process ${pid} (${command}) has ${held.join(', ') || 'nothing'}`);
    for (const thread of namesIn(`/proc/${pid}/task`)) {
      const stack = textOf(`/proc/${pid}/task/${thread}/stack`)
        .split('\n')
        .slice(0, removes ? 12 : 3);
      lines.push(`  thread ${thread}: ${stack.filter((line) => line !== '').join(' | ')}`);
    }
  }
  const asked: [string, string[]][] = [
    ['rdma', ['resource', 'show']],
    ['rdma', ['resource', 'show', 'qp']],
    ['rdma', ['resource', 'show', 'cm_id']],
    ['dmesg', []],
  ];
  for (const [program, args] of asked) {
    const answer = await tool(program, args, DIAGNOSIS_MS).catch(String);
    lines.push(`${[program, ...args].join(' ')}:\n${answer.trim().split('\n').slice(-20).join('\n')}`);
  }
  return lines.join('\n');
}

/** Processes and threads end while they are looked at: then there is nothing of them. */
function orNothing<T>(look: () => T, nothing: T): T {
  try {
    return look();
  } catch {
    return nothing;
  }
}
const textOf = (file: string): string => orNothing(() => readFileSync(file, 'utf8'), '');
const namesIn = (folder: string): string[] => orNothing(() => readdirSync(folder), []);
const linksOf = (folder: string): string[] =>
  namesIn(folder).map((name) => orNothing(() => readlinkSync(`${folder}/${name}`), ''));
