import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import type { MountedFileSystem } from '../fs/mount.js';
import type { FuseMount } from '../mount/fuse-mount.js';
import type { MountOptions } from '../mount/mount-point.js';

/**
 * The mounts of one daemon: one file system is mounted at a time, in one place (its kernel's word is one). The addon is loaded when
 * somebody mounts: a node without FUSE is a node.
 */
export interface MountRequest {
  /** Of the file system. */
  readonly name: string;
  readonly target: string;
  readonly options: Omit<MountOptions, 'source'>;
}
export interface MountLine {
  readonly name: string;
  readonly target: string;
  readonly sinceMs: number;
  readonly options: string[];
  readonly files: number;
  readonly nodes: number;
  readonly counters: Record<string, number>;
}

interface Mounted {
  readonly request: MountRequest;
  readonly mount: FuseMount;
}

export class Mounts {
  readonly #parts: { readonly clock: Clock; readonly counters: Counters; readonly logger: Logger };
  readonly #open: (name: string) => Promise<MountedFileSystem>;
  #mounted: Mounted | null = null;
  #starting = false;

  constructor(
    parts: { readonly clock: Clock; readonly counters: Counters; readonly logger: Logger },
    open: (name: string) => Promise<MountedFileSystem>,
  ) {
    this.#parts = parts;
    this.#open = open;
  }

  /** @throws {FsError} busy: it is mounted already; and what FuseMount.start throws. */
  async mount(request: MountRequest): Promise<MountLine> {
    const { name } = request;
    if (this.#mounted !== null || this.#starting) {
      const where = this.#mounted === null ? 'being mounted' : `mounted on ${this.#mounted.mount.target}`;
      throw new FsError('busy', { op: 'mount', object: name, detail: `this node has it ${where} already` });
    }
    this.#starting = true;
    try {
      const { FuseMount } = await import('../mount/fuse-mount.js');
      const fileSystem = await this.#open(name);
      const mount = await FuseMount.start({ ...this.#parts, fileSystem, ...request });
      const mounted = { request, mount };
      this.#mounted = mounted;
      void mount.gone.then(() => {
        this.#parts.logger.info({ name, target: mount.target }, 'unmounted from the tree');
        if (this.#mounted === mounted) this.#mounted = null;
      });
      this.#parts.logger.info({ name, target: mount.target }, 'mounted on the tree');
      return this.#line(mounted);
    } finally {
      this.#starting = false;
    }
  }

  /** @throws {FsError} notFound, busy */
  async unmount(target: string, how: { lazy: boolean; force: boolean }): Promise<void> {
    const mounted = this.#mounted;
    if (mounted === null || mounted.mount.target !== target)
      throw new FsError('notFound', { op: 'umount', object: target, detail: 'this node has nothing mounted there' });
    if (how.force) await mounted.mount.close();
    else await mounted.mount.unmount({ lazy: how.lazy });
  }

  list(): MountLine[] {
    return this.#mounted === null ? [] : [this.#line(this.#mounted)];
  }
  #line({ request, mount }: Mounted): MountLine {
    const { readOnly, noSuid, noDevices, noExecute, noAccessTimes } = request.options;
    const options = [
      readOnly === true ? 'ro' : 'rw',
      ...(noSuid === false ? ['suid'] : []),
      ...(noDevices === false ? ['dev'] : []),
      ...(noExecute === true ? ['noexec'] : []),
      ...(noAccessTimes === true ? ['noatime'] : []),
    ];
    const { requests, ...native } = mount.session.counters();
    return {
      name: request.name,
      target: mount.target,
      sinceMs: mount.sinceMs,
      options,
      files: mount.kernel.handles.size,
      nodes: mount.kernel.nodes.size,
      counters: { ...native, requests: requests.reduce((sum, one) => sum + one, 0) },
    };
  }

  suspend(): void {
    this.#mounted?.mount.suspend();
  }
  resume(): void {
    this.#mounted?.mount.resume();
  }
  /** Before the engine ends, or when it has: programs get errors. */
  async close(): Promise<void> {
    await this.#mounted?.mount.close();
  }
}
