import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants, mkdtempSync, readFileSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { FUSE_SESSION_DEFAULTS, FuseSession, type FuseSessionSettings } from '../fuse-session.js';
import {
  abortConnection,
  closeDescriptor,
  fuseMounts,
  type MountOptions,
  mountFuse,
  openFuseDevice,
  unmountFuse,
} from '../mount-point.js';
import type { MemoryFileSystem } from './memory-file-system.js';

const CAP_SYS_ADMIN = 1n << 21n;

/** Whether this process may mount at all: root in a container may not. */
export function canMount(): boolean {
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK);
    const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
    return effective !== undefined && (BigInt(`0x${effective}`) & CAP_SYS_ADMIN) !== 0n;
  } catch {
    return false;
  }
}

/**
 * A mount in a directory of its own, served by this process; programs that use it are other processes (`MountClient`). Whatever
 * becomes of this process, the mount goes: a shell waits for the end of its standard input and unmounts then.
 */
export class Mounted {
  private constructor(
    readonly directory: string,
    readonly session: FuseSession,
    readonly ledger: number,
    readonly device: number,
    readonly connection: number,
    private readonly watch: ChildProcess,
  ) {}
  readonly #clients: MountClient[] = [];

  static async start(
    fs: MemoryFileSystem,
    settings: Partial<FuseSessionSettings> = {},
    options: Partial<MountOptions> = {},
    pool = new ArrayBuffer(1 << 16),
  ): Promise<Mounted> {
    const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-mount-'));
    const watch = spawn('sh', ['-c', `read -r _; umount -l '${directory}'; rmdir '${directory}'`], {
      stdio: ['pipe', 'ignore', 'ignore'],
      detached: true,
    });
    const all = { ...FUSE_SESSION_DEFAULTS, nodesMax: 1 << 16, handlesMax: 1 << 10, ...settings };
    const device = openFuseDevice();
    const ledger = FuseSession.createLedger(all);
    const session = new FuseSession([device], ledger, pool, all, fs);
    fs.session = session;
    await mountFuse(device, directory, { source: 'test', allowOther: true, ...options });
    session.start();
    await fs.until(() => fs.agreement !== null || fs.endedWith !== null);
    const entry = (await fuseMounts()).findLast(({ target }) => target === directory);
    if (entry === undefined) throw new Error(`${directory} is not in the table of mounts`);
    return new Mounted(directory, session, ledger, device, entry.connection, watch);
  }

  async client(): Promise<MountClient> {
    const client = await MountClient.start(this.directory);
    this.#clients.push(client);
    return client;
  }

  async stop(): Promise<void> {
    await unmountFuse(this.directory, { lazy: true }).catch(() => undefined);
    await abortConnection(this.connection).catch(() => undefined);
    for (const client of this.#clients) client.kill();
    await Promise.all(this.#clients.map((client) => client.gone));
    await this.session.close();
    closeDescriptor(this.device);
    closeDescriptor(this.ledger);
    this.watch.kill();
    rmdirSync(this.directory);
  }
}

const CLIENT = `
const fs = require('node:fs');
const path = require('node:path');
const kept = {};
process.on('message', async ({ id, body, args }) => {
  try {
    const f = (0, eval)('(' + body + ')');
    process.send({ id, value: await f({ fs, dir: process.argv[1], kept, path }, ...args) });
  } catch (error) {
    process.send({ id, error: { code: error.code, message: error.message } });
  }
});
process.send({ id: 0 });
`;

interface ClientTools {
  fs: typeof import('node:fs');
  path: typeof import('node:path');
  dir: string;
  /** What one call leaves for the next: open files. */
  kept: Record<string, unknown>;
}

/** A process that uses the mount: functions are sent to it as text, so they see nothing but their arguments. */
export class MountClient {
  #next = 1;
  readonly #waiting = new Map<number, { resolve(value: unknown): void; reject(error: unknown): void }>();
  readonly gone: Promise<void>;
  #isGone = false;

  private constructor(readonly child: ChildProcess) {
    this.gone = new Promise((resolve) => {
      child.on('close', () => {
        this.#isGone = true;
        for (const { reject } of this.#waiting.values()) reject(new Error('the client is gone'));
        resolve();
      });
    });
    child.on('message', (message: { id: number; value?: unknown; error?: { code: string; message: string } }) => {
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.error === undefined) waiting?.resolve(message.value);
      else waiting?.reject(Object.assign(new Error(message.error.message), { code: message.error.code }));
    });
  }

  static async start(directory: string): Promise<MountClient> {
    const child = spawn(process.execPath, ['-e', CLIENT, directory], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      // An operation that waits holds a thread, and what a test does meanwhile needs others.
      env: { PATH: process.env['PATH'] ?? '', UV_THREADPOOL_SIZE: '16' },
    });
    const client = new MountClient(child);
    await new Promise((resolve, reject) => client.#waiting.set(0, { resolve, reject }));
    return client;
  }

  run<A extends unknown[], T>(body: (tools: ClientTools, ...args: A) => T | Promise<T>, ...args: A): Promise<T> {
    const id = this.#next++;
    return new Promise<T>((resolve, reject) => {
      if (this.#isGone) {
        reject(new Error('the client is gone'));
        return;
      }
      this.#waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
      this.child.send({ id, body: body.toString(), args });
    });
  }

  kill(): void {
    this.child.kill('SIGKILL');
  }
}
