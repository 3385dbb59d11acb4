import { constants } from 'node:fs';
import { FsError } from '../../common/errors.js';
import { type AllocateMode, type Credentials, type FileSystem, O_TMPFILE } from '../../fs/file-system-api.js';
import { directClient } from '../connect-socket.js';
import type { FileSystemClient } from '../file-system-client.js';

/**
 * Calls as the suites in ../posix make them, against the library and, where that can be, against the kernel (local-calls.ts). What
 * only acts answers 'ok' or the name of the errno; what looks answers what it sees, and fails when it can't.
 */
export type Time = bigint | 'now' | 'omit';
export interface Seen {
  /** S_IFMT bits. */
  readonly type: number;
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly rdev: number;
  readonly ino: number;
  readonly atime: bigint;
  readonly mtime: bigint;
  readonly ctime: bigint;
}

/** With or without FALLOC_FL_KEEP_SIZE; punchHole has it always. */
export type Allocation = AllocateMode | 'allocateKeepSize' | 'zeroRangeKeepSize';

export interface Calls {
  /** The same calls by somebody else. */
  as(user: Partial<Credentials>): Calls;
  /** A new empty file. */
  create(path: string, mode?: number): Promise<string>;
  open(path: string, flags: number, mode?: number): Promise<string>;
  write(path: string, text: string): Promise<string>;
  mkdir(path: string, mode?: number): Promise<string>;
  mkfifo(path: string, mode?: number): Promise<string>;
  /** `mode` with the type's bits. */
  mknod(path: string, mode: number, rdev?: number): Promise<string>;
  symlink(target: string, path: string): Promise<string>;
  link(existing: string, path: string): Promise<string>;
  rename(from: string, to: string, how?: 'noReplace' | 'exchange'): Promise<string>;
  unlink(path: string): Promise<string>;
  rmdir(path: string): Promise<string>;
  chmod(path: string, mode: number): Promise<string>;
  fchmod(path: string, mode: number): Promise<string>;
  chown(path: string, uid: number, gid: number): Promise<string>;
  fchown(path: string, uid: number, gid: number): Promise<string>;
  lchown(path: string, uid: number, gid: number): Promise<string>;
  utimes(path: string, atime: Time, mtime: Time): Promise<string>;
  lutimes(path: string, atime: Time, mtime: Time): Promise<string>;
  truncate(path: string, size: number): Promise<string>;
  ftruncate(path: string, flags: number, size: number): Promise<string>;
  access(path: string, mode: number): Promise<string>;
  setxattr(path: string, name: string, value: Uint8Array, how?: 'create' | 'replace'): Promise<string>;
  removexattr(path: string, name: string): Promise<string>;
  fallocate(path: string, flags: number, how: Allocation, offset: number, length: number): Promise<string>;
  /** Where it is found, or the errno. */
  seek(path: string, offset: number, what: 'data' | 'hole'): Promise<number | string>;
  /** O_TMPFILE and more flags, and then a name for it, if one is given. */
  nameless(dir: string, flags: number, mode: number, to: string | null): Promise<string>;
  /** The same letter, many times. */
  writeAt(path: string, offset: number, letter: string, count: number): Promise<string>;
  readAt(path: string, offset: number, length: number): Promise<string>;
  read(path: string): Promise<string>;
  stat(path: string): Promise<Seen>;
  lstat(path: string): Promise<Seen>;
  readdir(path: string): Promise<string[]>;
  readlink(path: string): Promise<string>;
  getxattr(path: string, name: string): Promise<Uint8Array>;
  listxattr(path: string): Promise<string[]>;
}

export const ROOT_USER: Credentials = { uid: 0, gid: 0, groups: [], umask: 0 };

/** 'ok', or the errno that a call failed with. */
export async function code(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return 'ok';
  } catch (error) {
    const found = error as { code?: string };
    if (typeof found.code !== 'string' || (!FsError.is(error) && !found.code.startsWith('E'))) throw error;
    return found.code;
  }
}

/** What a call gives, or the errno that it failed with. */
export async function answer<T>(work: Promise<T>): Promise<T | string> {
  let given: T | undefined;
  const failed = await code(
    work.then((value) => {
      given = value;
    }),
  );
  return failed === 'ok' ? given! : failed;
}

/** The library's, on one node. */
export class LibraryCalls implements Calls {
  readonly #clients: Map<string, FileSystemClient>;
  readonly #client: FileSystemClient;

  constructor(
    readonly fs: FileSystem,
    readonly dir: string,
    readonly user: Credentials = ROOT_USER,
    clients = new Map<string, FileSystemClient>(),
  ) {
    this.#clients = clients;
    const key = JSON.stringify(user);
    this.#client = clients.get(key) ?? directClient(fs, { credentials: user });
    clients.set(key, this.#client);
  }
  as(user: Partial<Credentials>): Calls {
    return new LibraryCalls(this.fs, this.dir, { ...ROOT_USER, ...user }, this.#clients);
  }
  in(dir: string): LibraryCalls {
    return new LibraryCalls(this.fs, dir, this.user, this.#clients);
  }
  #at(path: string): string {
    return `${this.dir}/${path}`;
  }

  create(path: string, mode = 0o644) {
    return this.open(path, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, mode);
  }
  open(path: string, flags: number, mode = 0o644) {
    return code(this.#client.open(this.#at(path), flags, mode).then((handle) => handle.close()));
  }
  write(path: string, text: string) {
    return code(this.#client.writeFile(this.#at(path), text, { flag: constants.O_WRONLY }));
  }
  mkdir(path: string, mode = 0o755) {
    return code(this.#client.mkdir(this.#at(path), mode));
  }
  mkfifo(path: string, mode = 0o644) {
    return code(this.#client.mkfifo(this.#at(path), mode));
  }
  mknod(path: string, mode: number, rdev = 0) {
    return code(this.#client.mknod(this.#at(path), mode, rdev));
  }
  symlink(target: string, path: string) {
    return code(this.#client.symlink(target, this.#at(path)));
  }
  link(existing: string, path: string) {
    return code(this.#client.link(this.#at(existing), this.#at(path)));
  }
  rename(from: string, to: string, how?: 'noReplace' | 'exchange') {
    return code(this.#client.rename(this.#at(from), this.#at(to), how === undefined ? {} : { [how]: true }));
  }
  unlink(path: string) {
    return code(this.#client.unlink(this.#at(path)));
  }
  rmdir(path: string) {
    return code(this.#client.rmdir(this.#at(path)));
  }
  chmod(path: string, mode: number) {
    return code(this.#client.chmod(this.#at(path), mode));
  }
  async fchmod(path: string, mode: number) {
    await using handle = await this.#client.open(this.#at(path), 'r');
    return await code(handle.chmod(mode));
  }
  chown(path: string, uid: number, gid: number) {
    return code(this.#client.chown(this.#at(path), uid, gid));
  }
  async fchown(path: string, uid: number, gid: number) {
    await using handle = await this.#client.open(this.#at(path), 'r');
    return await code(handle.chown(uid, gid));
  }
  lchown(path: string, uid: number, gid: number) {
    return code(this.#client.lchown(this.#at(path), uid, gid));
  }
  utimes(path: string, atime: Time, mtime: Time) {
    return code(this.#client.utimes(this.#at(path), atime, mtime));
  }
  lutimes(path: string, atime: Time, mtime: Time) {
    return code(this.#client.lutimes(this.#at(path), atime, mtime));
  }
  truncate(path: string, size: number) {
    return code(this.#client.truncate(this.#at(path), size));
  }
  ftruncate(path: string, flags: number, size: number) {
    return code(
      this.#client.open(this.#at(path), flags).then(async (handle) => {
        await using open = handle;
        await open.truncate(size);
      }),
    );
  }
  fallocate(path: string, flags: number, how: Allocation, offset: number, length: number) {
    const keepSize = how.endsWith('KeepSize');
    const mode = how.replace('KeepSize', '') as AllocateMode;
    return code(
      this.#client.open(this.#at(path), flags).then(async (handle) => {
        await using open = handle;
        await open.fallocate(offset, length, { mode, keepSize });
      }),
    );
  }
  async seek(path: string, offset: number, what: 'data' | 'hole') {
    await using handle = await this.#client.open(this.#at(path), 'r');
    return answer(handle.seek(offset, what));
  }
  access(path: string, mode: number) {
    return code(this.#client.access(this.#at(path), mode));
  }
  setxattr(path: string, name: string, value: Uint8Array, how?: 'create' | 'replace') {
    return code(this.#client.lsetxattr(this.#at(path), name, value, how === undefined ? {} : { [how]: true }));
  }
  removexattr(path: string, name: string) {
    return code(this.#client.lremovexattr(this.#at(path), name));
  }
  nameless(dir: string, flags: number, mode: number, to: string | null) {
    return code(
      this.#client.open(this.#at(dir), O_TMPFILE | flags, mode).then(async (handle) => {
        await using open = handle;
        if (to !== null) await open.link(this.#at(to));
      }),
    );
  }
  writeAt(path: string, offset: number, letter: string, count: number) {
    return code(
      this.#client.open(this.#at(path), 'r+').then(async (handle) => {
        await using open = handle;
        await open.write(Buffer.alloc(count, letter), 0, count, offset);
      }),
    );
  }
  async readAt(path: string, offset: number, length: number) {
    await using handle = await this.#client.open(this.#at(path), 'r');
    const bytes = Buffer.alloc(length);
    const { bytesRead } = await handle.read(bytes, 0, length, offset);
    return bytes.toString('latin1', 0, bytesRead);
  }
  read(path: string) {
    return this.#client.readFile(this.#at(path), 'utf8');
  }
  async stat(path: string) {
    return this.#seen(await this.#client.stat(this.#at(path), { bigint: true }));
  }
  async lstat(path: string) {
    return this.#seen(await this.#client.lstat(this.#at(path), { bigint: true }));
  }
  #seen(stats: Awaited<ReturnType<FileSystemClient['lstat']>> | { readonly atimeNs: bigint }): Seen {
    const s = stats as unknown as Record<string, bigint>;
    const number = (name: string): number => Number(s[name]);
    return {
      type: number('mode') & constants.S_IFMT,
      mode: number('mode') & 0o7777,
      nlink: number('nlink'),
      uid: number('uid'),
      gid: number('gid'),
      size: number('size'),
      rdev: number('rdev'),
      ino: number('ino'),
      atime: s['atimeNs']!,
      mtime: s['mtimeNs']!,
      ctime: s['ctimeNs']!,
    };
  }
  async readdir(path: string) {
    return (await this.#client.readdir(this.#at(path))).sort();
  }
  readlink(path: string) {
    return this.#client.readlink(this.#at(path));
  }
  getxattr(path: string, name: string) {
    return this.#client.lgetxattr(this.#at(path), name);
  }
  async listxattr(path: string) {
    return (await this.#client.llistxattr(this.#at(path))).sort();
  }
}
