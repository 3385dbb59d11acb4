import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';

/**
 * The daemon's side of a mount's guard (guard-main.ts): starts it with duplicates of the descriptors, starts another one if it ends, and says farewell.
 * Invariant: from `start` to `farewell` a guard is there or is being started; it sees the daemon's end by its standard input's.
 */
const AGAIN_MS = 1000;

function program(): string {
  const here = path.dirname(fileURLToPath(import.meta.url));
  // From src/mount when run by a test runner, beside this file when built.
  const found = [path.join(here, 'guard-main.js'), path.resolve(here, '../../dist/src/mount/guard-main.js')].find(
    (file) => existsSync(file),
  );
  if (found === undefined)
    throw new FsError('notFound', { op: 'mount.guard', object: 'guard-main.js', detail: 'the guard is not built' });
  return found;
}

export interface GuardedMount {
  readonly device: number;
  readonly ledger: number;
  readonly target: string;
  readonly connection: number;
}

export class Guard {
  readonly #mount: GuardedMount;
  readonly #logger: Logger;
  #child: ChildProcess | null = null;
  #over = false;
  #again: NodeJS.Timeout | null = null;

  constructor(mount: GuardedMount, logger: Logger) {
    this.#mount = mount;
    this.#logger = logger;
  }

  start(): void {
    const { device, ledger, target, connection } = this.#mount;
    // A group of its own: what ends the daemon's group is not for it.
    const child = spawn(process.execPath, [program(), target, String(connection)], {
      stdio: ['pipe', 'ignore', 'inherit', device, ledger],
      detached: true,
      cwd: '/',
    });
    this.#child = child;
    child.stdin!.on('error', () => undefined);
    child.unref();
    const ended = (how: unknown): void => {
      if (this.#over || this.#child !== child) return;
      this.#child = null;
      this.#logger.error({ target, how: String(how) }, 'the guard of a mount has ended; another one is started');
      this.#again = setTimeout(() => this.start(), AGAIN_MS);
      this.#again.unref();
    };
    child.on('exit', (code, signal) => ended(signal ?? code));
    child.on('error', ended);
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** The mount is over, in good order. Resolves when the guard has gone, and its descriptors with it. */
  async farewell(): Promise<void> {
    this.#over = true;
    if (this.#again !== null) clearTimeout(this.#again);
    const child = this.#child;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.ref();
    child.stdin!.end('over\n');
    await gone;
  }
}
