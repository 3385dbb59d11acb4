import { readdir, realpath } from 'node:fs/promises';
import { constants } from 'node:os';
import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import type { MountedFileSystem } from '../fs/mount.js';
import { FUSE_SESSION_DEFAULTS, FuseSession, type FuseSessionSettings } from './fuse-session.js';
import { Guard } from './guard.js';
import { KernelMount } from './kernel-mount.js';
import {
  abortConnection,
  closeDescriptor,
  fuseMounts,
  type MountOptions,
  mountFuse,
  openFuseDevice,
  setReadAhead,
  unmountFuse,
} from './mount-point.js';

/**
 * One mount, from mount(2) to the end of its session. Owns the descriptor, the ledger, and the word that the file system has with the kernel.
 *
 * Fault model: it may be unmounted, or its connection aborted, by anybody at any time: `gone` resolves then, and nothing is left. When this process can't serve
 * any more, `close` takes back what the kernel keeps first: an abort alone leaves it readable.
 */
export interface FuseMountParts {
  readonly fileSystem: MountedFileSystem;
  /** As df shows it. */
  readonly name: string;
  readonly target: string;
  readonly options?: Omit<MountOptions, 'source'>;
  readonly settings?: Partial<FuseSessionSettings>;
  readonly readTimeoutMs?: number;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
}

const AGREE_TIMEOUT_MS = 10_000;
/** For the kernel to give everything back, at the end. */
const DROP_TIMEOUT_MS = 3000;

export class FuseMount {
  readonly sinceMs = Date.now();
  readonly kernel: KernelMount;
  readonly session: FuseSession;
  readonly #parts: FuseMountParts;
  readonly #device: number;
  readonly #ledger: number;
  #connection: number | null = null;
  #guard: Guard | null = null;
  #ending: Promise<void> | null = null;
  #closing: Promise<void> | null = null;
  /** Resolves when nothing of it is left. */
  readonly gone: Promise<void>;

  private constructor(parts: FuseMountParts) {
    this.#parts = parts;
    const { fileSystem, clock, counters, logger } = parts;
    const settings = { ...FUSE_SESSION_DEFAULTS, ...parts.settings };
    this.#device = openFuseDevice();
    this.#ledger = FuseSession.createLedger(settings);
    this.kernel = new KernelMount({
      inodes: fileSystem.inodes,
      syncAll: () => fileSystem.sync(),
      clock,
      counters,
      logger,
      ...(parts.readTimeoutMs === undefined ? {} : { readTimeoutMs: parts.readTimeoutMs }),
    });
    this.session = new FuseSession([this.#device], this.#ledger, new ArrayBuffer(4096), settings, this.kernel);
    this.kernel.attach(this.session);
    this.gone = this.kernel.ended$.then(() => this.#end());
  }

  /** @throws {FsError} notFound, notDirectory, notEmpty, busy, noDevice, accessDenied, notPermitted */
  static async start(parts: FuseMountParts): Promise<FuseMount> {
    const target = await checkedTarget(parts.target);
    const mount = new FuseMount({ ...parts, target });
    try {
      await mount.#start();
      return mount;
    } catch (error) {
      await mount.close();
      throw error;
    }
  }

  get target(): string {
    return this.#parts.target;
  }
  get guard(): Guard | null {
    return this.#guard;
  }
  get connection(): number | null {
    return this.#connection;
  }

  async #start(): Promise<void> {
    const { fileSystem, target, name, options, clock, settings } = this.#parts;
    const readBytesMax = settings?.readAheadBytes ?? FUSE_SESSION_DEFAULTS.readAheadBytes;
    fileSystem.setKernel(this.kernel);
    await mountFuse(this.#device, target, {
      allowOther: true,
      noSuid: true,
      noDevices: true,
      ...options,
      source: name,
    });
    this.session.start();
    let late = (): void => undefined;
    const timer = clock.after(AGREE_TIMEOUT_MS, () => late());
    const tooLate = new Promise<never>((_, reject) => {
      late = () =>
        reject(new FsError('deadlinePassed', { op: 'mount', object: target, detail: 'the kernel says nothing' }));
    });
    try {
      await Promise.race([this.kernel.agreed$, tooLate]);
    } finally {
      timer.cancel();
    }
    this.#connection = (await fuseMounts()).findLast((one) => one.target === target)?.connection ?? null;
    if (this.#connection !== null) {
      const guarded = { device: this.#device, ledger: this.#ledger, target, connection: this.#connection };
      this.#guard = new Guard(guarded, this.#parts.logger);
      this.#guard.start();
      // Slower without, no worse.
      await setReadAhead(this.#connection, readBytesMax).catch((error: unknown) =>
        this.#parts.logger.warn({ target, error: String(error) }, 'the read-ahead of a mount cannot be set'),
      );
    }
  }

  /** Off the tree. @throws {FsError} busy: programs use it. */
  async unmount(how: { lazy?: boolean; force?: boolean } = {}): Promise<void> {
    await unmountFuse(this.target, how);
    if (how.lazy !== true) await this.gone;
  }

  /** The lease is out, or not: meanwhile the kernel keeps nothing (I2). */
  suspend(): void {
    this.kernel.suspend();
  }
  resume(): void {
    this.kernel.resume();
  }

  /** Whatever uses it: programs get errors from now on. */
  close(): Promise<void> {
    if (this.#closing === null && this.#ending === null) this.session.refuse(constants.errno.ENOTCONN);
    this.#closing ??= this.#close();
    return this.#closing;
  }
  async #close(): Promise<void> {
    if (this.#ending !== null) return this.#ending;
    const { clock, logger, target } = this.#parts;
    const mounted = this.#connection !== null;
    if (mounted) {
      const dropped = this.kernel.dropEverything();
      await Promise.race([dropped, new Promise((resolve) => clock.after(DROP_TIMEOUT_MS, () => resolve(undefined)))]);
      await unmountFuse(target, { lazy: true }).catch(() => undefined);
      await abortConnection(this.#connection!).catch((error: unknown) => {
        // Nobody used it: it has gone with its place in the tree.
        if (!FsError.is(error) || error.reason !== 'notFound')
          logger.warn({ target, error: String(error) }, 'a mount could not be aborted');
      });
      // Those that had waited for requests of programs return now.
      await Promise.race([
        this.kernel.dropEverything(),
        new Promise((resolve) => clock.after(DROP_TIMEOUT_MS, () => resolve(undefined))),
      ]);
    } else await unmountFuse(target, { lazy: true }).catch(() => undefined);
    await this.#end();
  }

  #end(): Promise<void> {
    this.#ending ??= this.#endOnce();
    return this.#ending;
  }
  async #endOnce(): Promise<void> {
    this.#parts.fileSystem.setKernel(null);
    await this.#guard?.farewell();
    await this.session.close();
    closeDescriptor(this.#device);
    closeDescriptor(this.#ledger);
    await this.kernel.closeHandles();
  }
}

/** Where it is mounted, without links. What a dead daemon left there goes. */
async function checkedTarget(target: string): Promise<string> {
  const op = 'mount';
  const errorOf = (error: unknown): FsError => {
    const code = (error as NodeJS.ErrnoException).code;
    const reason =
      code === 'ENOENT'
        ? 'notFound'
        : code === 'ENOTDIR'
          ? 'notDirectory'
          : code === 'EACCES'
            ? 'accessDenied'
            : 'internal';
    const details: Record<string, string> = {
      notFound: 'the mount point does not exist',
      notDirectory: 'the mount point is not a directory',
    };
    return new FsError(reason, { op, object: target, detail: details[reason] ?? code, cause: error });
  };
  if (!target.startsWith('/'))
    throw new FsError('invalidArgument', { op, object: target, detail: 'a mount point is named by its whole path' });
  await leaveDead(target);
  const resolved = await realpath(target).catch((error: unknown) => Promise.reject(errorOf(error)));
  if ((await fuseMounts()).some((one) => one.target === resolved))
    throw new FsError('busy', { op, object: resolved, detail: 'it is mounted there already' });
  const names = await readdir(resolved).catch((error: unknown) => Promise.reject(errorOf(error)));
  if (names.length > 0) throw new FsError('notEmpty', { op, object: resolved, detail: 'the mount point is not empty' });
  return resolved;
}

/** A mount that nobody serves any more answers ENOTCONN to everything, for ever. */
async function leaveDead(target: string): Promise<void> {
  const mounted = (await fuseMounts()).some((one) => one.target === target);
  if (!mounted) return;
  const dead = await readdir(target).then(
    () => false,
    (error: unknown) => (error as NodeJS.ErrnoException).code === 'ENOTCONN',
  );
  if (dead) await unmountFuse(target, { lazy: true });
}
