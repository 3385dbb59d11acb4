import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

/** The program of calls.c, compiled once for a test file. */
export class CallsCompiler {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'holdfast-calls-'));
  readonly #built: Promise<unknown>;
  readonly #programs: CallsProgram[] = [];
  constructor() {
    const source = fileURLToPath(new URL('./calls.c', import.meta.url));
    this.#built = promisify(execFile)('cc', ['-O1', '-Wall', '-o', this.#binary, source]);
  }
  get #binary(): string {
    return path.join(this.#directory, 'calls');
  }
  async start(): Promise<CallsProgram> {
    await this.#built;
    const program = new CallsProgram(spawn(this.#binary, { stdio: ['pipe', 'pipe', 'inherit'] }));
    this.#programs.push(program);
    return program;
  }
  async end(): Promise<void> {
    await Promise.all(this.#programs.map((program) => program.kill()));
    rmSync(this.#directory, { recursive: true });
  }
}

export class CallsProgram {
  readonly #waiting: ((line: string) => void)[] = [];
  readonly #gone: Promise<void>;
  constructor(readonly child: ChildProcess) {
    createInterface({ input: child.stdout! }).on('line', (line) => this.#waiting.shift()?.(line));
    this.#gone = new Promise((resolve) => {
      child.on('close', () => {
        for (const tell of this.#waiting.splice(0)) tell('gone');
        resolve();
      });
    });
  }
  /** The answer's line: a number, `error ERRNO`, or `gone`. */
  run(line: string): Promise<string> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      this.child.stdin!.write(`${line}\n`);
    });
  }
  async kill(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.#gone;
  }
}
