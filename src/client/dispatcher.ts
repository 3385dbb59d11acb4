import { constants } from 'node:fs';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, inodeNumber } from '../common/ids.js';
import type {
  Credentials,
  DirectoryEntry,
  FileSystem,
  FileType,
  OpenFile,
  OpOptions,
  XattrCalls,
} from '../fs/file-system-api.js';
import { Cancel } from './cancel.js';
import { copyFile, makeDirectories, readWhole, toChanges, writeWhole } from './compound-ops.js';
import { attributesToWire, type OpArgs, type OpName, type OpResult, type Reply, type XattrTarget } from './ops.js';
import { packEntries } from './packed-entries.js';
import { SessionLocks } from './session-locks.js';

/**
 * The engine's side of every client: executes operations against the file system and owns, per session, the open handles,
 * the listings in progress and the credentials.
 *
 * Invariants: a handle number is never reused within a session; when a session ends, what runs is aborted, then every
 * handle is closed; requests in flight and handles are bounded. Fault model: sessions may ask anything in any order
 * (arguments were checked by the transport); an error of one call never touches another.
 */
export interface DispatcherLimits {
  readonly inFlightMax: number;
  readonly handlesMax: number;
  /** The longest single read, whatever is asked for. */
  readonly readBytesMax: number;
}
export const DEFAULT_LIMITS: DispatcherLimits = { inFlightMax: 1024, handlesMax: 65_536, readBytesMax: 1 << 30 };

/** Snapshots of large directories being listed, per session; the one that was not asked for longest goes first. */
const LISTINGS_MAX = 16;
/** Above this a read first asks for the size, so that a huge length on a small file costs no huge buffer. */
const TRUSTED_READ_BYTES = 1 << 20;

/** A file system that can open an inode without its name: what durable handles need after a rename. */
export interface InodeOpener {
  openInode(ino: InodeNumber, generation: number, flags: number, credentials: Credentials): Promise<OpenFile>;
}
const canOpenInode = (fs: FileSystem): fs is FileSystem & InodeOpener =>
  'openInode' in fs && typeof fs.openInode === 'function';

export class Dispatcher {
  readonly #sessions = new Set<DispatcherSession>();

  constructor(
    readonly fileSystem: FileSystem,
    readonly counters: Counters,
    readonly limits: DispatcherLimits = DEFAULT_LIMITS,
    /** What the op `counters` answers. */
    readonly report: () => Record<string, number> = () => counters.snapshot(),
  ) {}

  openSession(credentials: Credentials): DispatcherSession {
    const session = new DispatcherSession(this, credentials, () => this.#sessions.delete(session));
    this.#sessions.add(session);
    return session;
  }

  get sessionCount(): number {
    return this.#sessions.size;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#sessions].map((session) => session.end()));
  }
}

type Handlers = {
  readonly [K in OpName]: (
    args: OpArgs<K>,
    payload: Uint8Array | undefined,
    cancel: Cancel,
  ) => Promise<OpResult<K> | WithPayload<K>> | OpResult<K> | WithPayload<K>;
};

const WRITABLE = constants.O_WRONLY | constants.O_RDWR;
const EMPTY = new Uint8Array(0);
const NOTHING = {} as const;

/** With options of one operation beside the signal, which is still made when asked for. */
const withOptions = <T extends object>(cancel: Cancel, options: T): T & OpOptions => ({
  ...options,
  get signal() {
    return cancel.signal;
  },
});

/** A result with bytes beside it. */
class WithPayload<K extends OpName> {
  constructor(
    readonly result: OpResult<K>,
    readonly payload: Uint8Array,
  ) {}
}

export class DispatcherSession {
  readonly #files = new Map<number, OpenFile>();
  readonly #listings = new Map<number, DirectoryEntry[]>();
  readonly #running = new Map<Promise<unknown>, Cancel>();
  readonly #locks = new SessionLocks();
  readonly #handlers: Handlers;
  #nextHandle = 1;
  #nextCursor = 1;
  #opening = 0;
  #ending: Promise<boolean> | null = null;

  constructor(
    readonly dispatcher: Dispatcher,
    readonly credentials: Credentials,
    readonly onEnd: () => void,
  ) {
    this.#handlers = this.#makeHandlers();
  }

  get handleCount(): number {
    return this.#files.size;
  }

  async execute<K extends OpName>(
    op: K,
    args: OpArgs<K>,
    payload?: Uint8Array,
    signal?: AbortSignal,
  ): Promise<Reply<K>> {
    const cancel = new Cancel();
    if (signal === undefined) return this.executeUntil(cancel, op, args, payload);
    if (signal.aborted) throw new FsError('aborted', { op });
    const abort = (): void => cancel.abort(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    try {
      return await this.executeUntil(cancel, op, args, payload);
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  /**
   * For transports that have something by which to cancel each call: it is the call's own, and the session's end aborts it too.
   */
  async executeUntil<K extends OpName>(
    cancel: Cancel,
    op: K,
    args: OpArgs<K>,
    payload?: Uint8Array,
  ): Promise<Reply<K>> {
    const { counters, limits } = this.dispatcher;
    if (this.#ending !== null) throw new FsError('closed', { op, detail: 'the session has ended' });
    if (this.#running.size >= limits.inFlightMax) {
      counters.add('client.refusedQueueFull');
      throw new FsError('queueFull', { op, detail: `more than ${limits.inFlightMax} operations in flight` });
    }
    if (cancel.aborted) throw new FsError('aborted', { op });
    counters.add('client.calls');
    const run = this.#run(op, args, payload, cancel);
    this.#running.set(run, cancel);
    try {
      return await run;
    } catch (error) {
      counters.add('client.failedCalls');
      if (cancel.aborted && !FsError.is(error)) throw new FsError('aborted', { op, cause: error });
      throw FsError.from(error, op);
    } finally {
      this.#running.delete(run);
    }
  }

  async #run<K extends OpName>(
    op: K,
    args: OpArgs<K>,
    payload: Uint8Array | undefined,
    cancel: Cancel,
  ): Promise<Reply<K>> {
    const handler = this.#handlers[op] as Handlers[K];
    const value = await handler(args, payload, cancel);
    if (value instanceof WithPayload) return { result: value.result as OpResult<K>, payload: value.payload };
    return { result: value as OpResult<K> };
  }

  /** Aborts what runs, waits for it, closes every handle. Errors of closing are counted: nobody is left to be told. */
  async end(): Promise<void> {
    this.#ending ??= this.#end(false);
    await this.#ending;
  }
  /** The same; first what was written through its handles is made durable. @returns whether it is. */
  endSaved(): Promise<boolean> {
    this.#ending ??= this.#end(true);
    return this.#ending;
  }

  async #end(save: boolean): Promise<boolean> {
    for (const cancel of this.#running.values()) cancel.abort();
    await Promise.allSettled(this.#running.keys());
    const written = save ? [...this.#files.values()].filter(({ flags }) => (flags & WRITABLE) !== 0) : [];
    const saved = await Promise.allSettled(written.map((file) => file.sync(false)));
    const closed = await Promise.allSettled([...this.#files.values()].map((file) => file.close()));
    for (const outcome of closed) if (outcome.status === 'rejected') this.dispatcher.counters.add('client.closeErrors');
    this.#files.clear();
    this.#listings.clear();
    this.onEnd();
    return save && saved.every(({ status }) => status === 'fulfilled');
  }

  #file(handle: number, op: OpName): OpenFile {
    const file = this.#files.get(handle);
    if (file === undefined) throw new FsError('badHandle', { op, detail: `handle ${handle} is not open` });
    return file;
  }

  /** The calls about extended attributes of what is meant: an open file, or what a path names. */
  #xattrs({ path, follow, handle }: XattrTarget, op: OpName): XattrCalls<[]> {
    if (handle !== undefined) return this.#file(handle, op);
    if (path === undefined) throw new FsError('invalidArgument', { op, detail: 'neither a path nor a handle' });
    const fs = this.dispatcher.fileSystem;
    const links = follow !== false;
    return {
      getXattr: (name, who, options) => fs.getXattr(path, links, name, who, options),
      listXattrs: (who, options) => fs.listXattrs(path, links, who, options),
      setXattr: (name, value, who, options) => fs.setXattr(path, links, name, value, who, options),
    };
  }

  /** Opens under the limit; the handle is installed only if the session still lives. */
  async #install(handle: number, open: () => Promise<OpenFile>, op: OpName): Promise<OpenFile> {
    const { handlesMax } = this.dispatcher.limits;
    if (this.#files.size + this.#opening >= handlesMax)
      throw new FsError('tooManyOpenFiles', { op, detail: `${handlesMax} handles are open in this session` });
    this.#opening++;
    try {
      const file = await open();
      if (this.#ending !== null) {
        await file.close();
        throw new FsError('closed', { op, detail: 'the session has ended' });
      }
      this.#files.set(handle, file);
      return file;
    } finally {
      this.#opening--;
    }
  }

  async #reopen(args: OpArgs<'reopen'>): Promise<OpenFile> {
    const { fileSystem } = this.dispatcher;
    const flags = args.flags & ~(constants.O_CREAT | constants.O_EXCL | constants.O_TRUNC);
    if (canOpenInode(fileSystem))
      return fileSystem.openInode(inodeNumber(args.ino), args.generation, flags, this.credentials);
    const file = await fileSystem.open(args.path, flags, 0, this.credentials);
    const found = await file.stat();
    if (found.ino === args.ino && found.generation === args.generation) return file;
    await file.close();
    throw new FsError('staleHandle', { op: 'reopen', object: args.path, detail: 'another file has this name now' });
  }

  #listing(entries: DirectoryEntry[], from: number, cursor: number | null): Reply<'readdir'> & { payload: Uint8Array } {
    const { payload, next } = packEntries(entries, from);
    if (next >= entries.length) {
      if (cursor !== null) this.#listings.delete(cursor);
      return { result: { cursor: null, next }, payload };
    }
    const at = cursor ?? this.#nextCursor++;
    this.#listings.delete(at);
    this.#listings.set(at, entries);
    if (this.#listings.size > LISTINGS_MAX) this.#listings.delete(this.#listings.keys().next().value ?? at);
    return { result: { cursor: at, next }, payload };
  }

  #makeHandlers(): Handlers {
    const { fileSystem: fs, limits, report } = this.dispatcher;
    const who = this.credentials;
    const done = async (work: Promise<unknown>): Promise<Record<string, never>> => {
      await work;
      return NOTHING;
    };
    return {
      open: async ({ path, flags, mode, identify, deny, busyTimeoutMs }, _payload, cancel) => {
        const handle = this.#nextHandle++;
        const file = await this.#install(
          handle,
          () => fs.open(path, flags, mode, who, withOptions(cancel, { deny, busyTimeoutMs })),
          'open',
        );
        let generation = 0;
        try {
          if (identify === true) ({ generation } = await file.stat());
        } catch (error) {
          // Nobody is told its number, so nobody would close it.
          this.#files.delete(handle);
          await file.close().catch(() => undefined);
          throw error;
        }
        return { handle, ino: file.ino, generation, entry: file.entry, flags: file.flags, atimeDue: file.atimeDue };
      },
      close: ({ handle }) => {
        // Closing what is not open is no error here: a repeated close finds its work done. Clients check their own state.
        const file = this.#files.get(handle);
        this.#files.delete(handle);
        return done(file === undefined ? Promise.resolve() : this.#locks.close(file));
      },
      read: async ({ handle, offset, length }, _payload, cancel) => {
        const file = this.#file(handle, 'read');
        let room = Math.min(length, limits.readBytesMax);
        if (room > TRUSTED_READ_BYTES) {
          const { sizeBytes } = await file.stat(cancel);
          room = Math.min(room, Math.max(TRUSTED_READ_BYTES, sizeBytes - offset));
        }
        const bytes = new Uint8Array(room);
        const count = await file.read(offset, bytes, cancel);
        return new WithPayload<'read'>(NOTHING, count === room ? bytes : bytes.subarray(0, count));
      },
      bring: async ({ handle, offset, length }, _payload, cancel) => ({
        length: await this.#file(handle, 'bring').bring(offset, Math.min(length, limits.readBytesMax), cancel),
      }),
      write: async ({ handle, offset }, payload, cancel) => {
        const written = await this.#file(handle, 'write').write(offset, payload ?? EMPTY, cancel);
        return { offset: written.offsetBytes, length: written.lengthBytes };
      },
      truncateHandle: ({ handle, size }, _payload, cancel) =>
        done(this.#file(handle, 'truncateHandle').truncate(size, cancel)),
      allocate: ({ handle, mode, offset, length, keepSize }, _payload, cancel) =>
        done(this.#file(handle, 'allocate').allocate(mode, offset, length, withOptions(cancel, { keepSize }))),
      copyRange: async ({ handle, offset, to, toOffset, length }, _payload, cancel) => {
        const target = this.#file(to, 'copyRange');
        return {
          length: await this.#file(handle, 'copyRange').copyRange(offset, target, toOffset, length, cancel),
        };
      },
      linkHandle: ({ handle, to }, _payload, cancel) => done(this.#file(handle, 'linkHandle').link(to, who, cancel)),
      seek: async ({ handle, offset, what }, _payload, cancel) => ({
        offset: await this.#file(handle, 'seek').seek(offset, what, cancel),
      }),
      statHandle: async ({ handle }, _payload, cancel) =>
        attributesToWire(await this.#file(handle, 'statHandle').stat(cancel)),
      setAttributesHandle: async ({ handle, changes }, _payload, cancel) => {
        const file = this.#file(handle, 'setAttributesHandle');
        return attributesToWire(await file.setAttributes(toChanges(changes), who, cancel));
      },
      sync: ({ handle, dataOnly }, _payload, cancel) => done(this.#file(handle, 'sync').sync(dataOnly, cancel)),
      lock: ({ handle, ...args }, _payload, cancel) => done(this.#locks.lock(this.#file(handle, 'lock'), args, cancel)),
      unlock: ({ handle, ...args }, _payload, cancel) =>
        done(this.#locks.unlock(this.#file(handle, 'unlock'), args, cancel)),
      getLock: ({ handle, ...args }, _payload, cancel) => this.#locks.test(this.#file(handle, 'getLock'), args, cancel),
      hint: ({ handle, kind, offset, length }) => {
        this.#files.get(handle)?.hint(kind, offset, length);
        return NOTHING;
      },
      reopen: async (args) => {
        const open = this.#files.get(args.handle);
        if (open !== undefined) return { entry: open.entry };
        this.#nextHandle = Math.max(this.#nextHandle, args.handle + 1);
        const file = await this.#install(args.handle, () => this.#reopen(args), 'reopen');
        return { entry: file.entry };
      },
      readFile: async ({ path, flags, limit }, _payload, cancel) => {
        const room = Math.min(limit, limits.readBytesMax);
        const bytes = await readWhole(fs, path, flags, room, who, cancel);
        if (bytes === null) return { complete: false };
        return new WithPayload<'readFile'>({ complete: true }, bytes);
      },
      writeFile: ({ path, flags, mode, sync, changes }, payload, cancel) =>
        done(writeWhole(fs, path, { flags, mode, sync, changes }, payload ?? EMPTY, who, cancel)),
      stat: async ({ path, follow, stamped }, _payload, cancel) => {
        const now = fs.tryStat?.(path, follow, who) ?? null;
        if (now === null)
          return attributesToWire(await (follow ? fs.stat(path, who, cancel) : fs.lstat(path, who, cancel)));
        const wire = attributesToWire(now.attributes);
        return stamped === true && now.stamps !== null ? { ...wire, stamps: now.stamps } : wire;
      },
      access: ({ path, mode }, _payload, cancel) => done(fs.access(path, mode, who, cancel)),
      mkdir: async ({ path, mode, recursive }, _payload, cancel) => {
        if (recursive) return { first: await makeDirectories(fs, path, mode, who, cancel) };
        await fs.mkdir(path, mode, who, cancel);
        return { first: path };
      },
      rmdir: ({ path }, _payload, cancel) => done(fs.rmdir(path, who, cancel)),
      unlink: ({ path }, _payload, cancel) => done(fs.unlink(path, who, cancel)),
      mknod: ({ path, type, mode, rdev }, _payload, cancel) =>
        done(fs.mknod(path, type as FileType, mode, rdev, who, cancel)),
      rename: ({ from, to, noReplace, exchange }, _payload, cancel) =>
        done(fs.rename(from, to, who, withOptions(cancel, { noReplace, exchange }))),
      link: ({ from, to }, _payload, cancel) => done(fs.link(from, to, who, cancel)),
      symlink: ({ target, path }, _payload, cancel) => done(fs.symlink(target, path, who, cancel)),
      readlink: async ({ path }, _payload, cancel) => ({ target: await fs.readlink(path, who, cancel) }),
      realpath: async ({ path }, _payload, cancel) => ({ path: await fs.realpath(path, who, cancel) }),
      readdir: async ({ path }, _payload, cancel) => {
        const page = this.#listing(await fs.readdir(path, who, cancel), 0, null);
        return new WithPayload<'readdir'>(page.result, page.payload);
      },
      readdirMore: ({ cursor, from }) => {
        const entries = this.#listings.get(cursor);
        if (entries === undefined)
          throw new FsError('badHandle', { op: 'readdir', detail: 'this listing is no longer kept' });
        const page = this.#listing(entries, from, cursor);
        return new WithPayload<'readdirMore'>(page.result, page.payload);
      },
      setAttributes: async ({ path, changes, follow }, _payload, cancel) =>
        attributesToWire(await fs.setAttributes(path, toChanges(changes), follow, who, cancel)),
      truncate: ({ path, size }, _payload, cancel) => done(fs.truncate(path, size, who, cancel)),
      sharedWrite: async ({ path, on }, _payload, cancel) => ({ on: await fs.sharedWrite(path, on, who, cancel) }),
      locate: ({ path, offset, length }, _payload, cancel) => fs.locate(path, offset, length, who, cancel),
      statfs: async ({ path }, _payload, cancel) => {
        await fs.stat(path, who, cancel);
        return { ...(await fs.statfs(cancel)) };
      },
      copyFile: ({ from, to, mode }, _payload, cancel) => done(copyFile(fs, from, to, mode, who, cancel)),
      getXattr: async ({ name, ...target }, _payload, cancel) =>
        new WithPayload<'getXattr'>(NOTHING, await this.#xattrs(target, 'getXattr').getXattr(name, who, cancel)),
      listXattrs: async (target, _payload, cancel) => ({
        names: await this.#xattrs(target, 'listXattrs').listXattrs(who, cancel),
      }),
      setXattr: ({ name, create, replace, ...target }, payload, cancel) =>
        done(
          this.#xattrs(target, 'setXattr').setXattr(
            name,
            payload ?? EMPTY,
            who,
            withOptions(cancel, { create, replace }),
          ),
        ),
      removeXattr: ({ name, ...target }, _payload, cancel) =>
        done(this.#xattrs(target, 'removeXattr').setXattr(name, null, who, cancel)),
      syncAll: () => done(fs.sync()),
      counters: () => report(),
    };
  }
}
