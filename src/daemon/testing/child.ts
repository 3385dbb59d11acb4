import { type ChildProcess, fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * Programs of the tests in processes of their own. They run as they were built (dist/), talk over node's own channel, and are
 * killed by their process id when their test ends, however it ends.
 *
 * Fault model: a program may end at any time; whoever waits for its word is then told how it ended and what it said on stderr.
 */
export interface Child {
  readonly process: ChildProcess;
  /** The next message of that kind, or the first one that nobody has taken yet. @throws when the program ends before. */
  message<T extends { kind: string } = { kind: string }>(kind: string): Promise<T>;
  /** Whether a message of that kind is there to be taken. */
  has(kind: string): boolean;
  send(message: object): void;
  /** Code or signal. */
  readonly exited: Promise<number | string>;
  /** SIGKILL, and until it is gone. */
  kill(): Promise<void>;
}

export const projectRoot = ((): string => {
  let directory = path.dirname(fileURLToPath(import.meta.url));
  while (!existsSync(path.join(directory, 'package-lock.json'))) directory = path.dirname(directory);
  return directory;
})();
export const built = (file: string): string => path.join(projectRoot, 'dist', 'src', file);

const STDERR_KEPT = 8000;

/** Starts a program, by its path from src/ without the ending or by an absolute path. */
export function startChild(program: string, args: readonly string[] = []): Child {
  const file = path.isAbsolute(program) ? program : built(`${program}.js`);
  const child = fork(file, args, {
    cwd: projectRoot,
    execArgv: ['--enable-source-maps'],
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  });
  let stderr = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-STDERR_KEPT);
  });
  const arrived: { kind: string }[] = [];
  const waiting: { kind: string; resolve: (message: { kind: string }) => void; reject: (why: Error) => void }[] = [];
  let ended: number | string | null = null;
  const endError = (): Error => new Error(`${path.basename(file)} ended with ${ended}: ${stderr}`);
  const exited = new Promise<number | string>((resolve) => {
    // 'close' comes after the last of stderr; messages may be dispatched up to then.
    child.on('close', (code, signal) => {
      ended = code ?? signal ?? 'nothing';
      for (const { reject } of waiting.splice(0)) reject(endError());
      resolve(ended);
    });
  });
  child.on('error', () => undefined);
  child.on('message', (message) => {
    const { kind } = message as { kind: string };
    const at = waiting.findIndex((one) => one.kind === kind);
    if (at >= 0) waiting.splice(at, 1)[0]!.resolve(message as { kind: string });
    else arrived.push(message as { kind: string });
  });
  return {
    process: child,
    exited,
    has: (kind) => arrived.some((message) => message.kind === kind),
    message: <T extends { kind: string }>(kind: string) => {
      const at = arrived.findIndex((one) => one.kind === kind);
      if (at >= 0) return Promise.resolve(arrived.splice(at, 1)[0] as T);
      if (ended !== null) return Promise.reject(endError());
      return new Promise<T>((resolve, reject) => {
        waiting.push({ kind, resolve: resolve as (message: { kind: string }) => void, reject });
      });
    },
    send: (message) => {
      if (child.connected) child.send(message, () => undefined);
    },
    kill: async () => {
      if (ended === null) child.kill('SIGKILL');
      await exited;
    },
  };
}

/** In a program: its arguments, as the test gave them. */
export function argument<T>(): T {
  return JSON.parse(process.argv[2] ?? 'null') as T;
}

/** In a program: says something, and resolves when it is out. */
export function tell(message: { readonly kind: string; readonly [field: string]: unknown }): Promise<void> {
  return new Promise((resolve, reject) => {
    process.send!(message, undefined, {}, (error) => (error === null ? resolve() : reject(error)));
  });
}

/** In a program: the next message of the test of that kind. */
export function hear<T extends { kind: string } = { kind: string }>(kind: string): Promise<T> {
  return new Promise((resolve) => {
    const listener = (message: unknown): void => {
      if ((message as { kind: string }).kind !== kind) return;
      process.off('message', listener);
      resolve(message as T);
    };
    process.on('message', listener);
  });
}
