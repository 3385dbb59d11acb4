/** Other people's programs in a test: run to their end, or in the background until stopped; with a deadline, and with what they printed when they fail. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';

const TOOL_DEADLINE_MS = 60_000;

/** What the program printed on its standard output. */
export function tool(program: string, args: readonly string[], deadlineMs = TOOL_DEADLINE_MS): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(
      program,
      args,
      { timeout: deadlineMs, killSignal: 'SIGKILL', maxBuffer: 16 << 20 },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else
          reject(
            new Error(
              `${program} ${args.join(' ')}: ${error.killed ? `not done in ${deadlineMs} ms` : `ended with ${error.code}`}\n${stdout}${stderr}`,
            ),
          );
      },
    );
  });
}

export interface BackgroundTool {
  readonly process: ChildProcess;
  output(): string;
  /** Waits for its own end. */
  ended(deadlineMs?: number): Promise<number | null>;
  stop(): Promise<void>;
}

export function background(program: string, args: readonly string[]): BackgroundTool {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  const collect = (chunk: Buffer) => {
    output += chunk.toString();
  };
  child.stdout.on('data', collect);
  child.stderr.on('data', collect);
  const closed = new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  closed.catch(() => undefined);
  return {
    process: child,
    output: () => output,
    async ended(deadlineMs = TOOL_DEADLINE_MS) {
      const timer = setTimeout(() => child.kill('SIGKILL'), deadlineMs);
      const code = await closed;
      clearTimeout(timer);
      return code;
    },
    async stop() {
      child.kill('SIGKILL');
      await closed.catch(() => undefined);
    },
  };
}

/** Until somebody on this machine listens on a TCP port. */
export async function listening(port: number, deadlineMs = TOOL_DEADLINE_MS) {
  const wanted = new RegExp(`:${port.toString(16).toUpperCase().padStart(4, '0')} \\S+ 0A `);
  const endMs = performance.now() + deadlineMs;
  while (!['/proc/net/tcp', '/proc/net/tcp6'].some((table) => wanted.test(readFileSync(table, 'utf8')))) {
    if (performance.now() > endMs) throw new Error(`nobody listens on port ${port}`);
    await pause(25);
  }
}
