import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process';
import { constants, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Credentials } from '../../fs/file-system-api.js';
import { type Allocation, answer, type Calls, code, ROOT_USER, type Seen, type Time } from './posix-calls.js';

/**
 * The kernel's answers to the suites in ../posix, on a local directory: the oracle. A child process makes the calls, since it changes
 * its user with each of them, and node has no call for half of them.
 */
const SCRIPT = fileURLToPath(new URL('local-calls.py', import.meta.url));

/** The rules are those of this Linux and later ones. */
const RELEASE_MIN = [6, 6] as const;
/** What a directory that can be asked does; others (overlays, containers without rights, other file systems) have rules of their own. */
const PROBES: readonly (readonly [string, ...unknown[]])[] = [
  ['mkdir', 'a', 0o755],
  ['mknod', 'a/device', constants.S_IFCHR | 0o644, 0x0102],
  ['open', 'a/file', constants.O_CREAT | constants.O_WRONLY, 0o644],
  ['chown', 'a/file', 65_534, 65_533],
  ['setxattr', 'a/file', 'user.a', '00', 0],
  ['setxattr', 'a/device', 'trusted.a', '00', 0],
  ['setxattr', 'a', 'system.posix_acl_default', '0200000001000700ffffffff04000700ffffffff20000700ffffffff', 0],
  ['rename', 'a/file', 'a/device', 2],
  ['stat', 'a'],
];

/** With FALLOC_FL_KEEP_SIZE 1, FALLOC_FL_PUNCH_HOLE 2, FALLOC_FL_COLLAPSE_RANGE 8, ZERO_RANGE 16, INSERT_RANGE 32. */
const ALLOCATIONS: Readonly<Record<Allocation, number>> = {
  allocate: 0,
  allocateKeepSize: 1,
  punchHole: 3,
  collapseRange: 8,
  zeroRange: 16,
  zeroRangeKeepSize: 17,
  insertRange: 32,
};
const SPACE_PROBES: readonly (readonly [string, ...unknown[]])[] = [
  ['open', 'file', constants.O_CREAT | constants.O_WRONLY, 0o644],
  ...[0, 1, 3, 16, 17].map((mode) => ['fallocate', 'file', constants.O_RDWR, mode, 0, 1 << 20] as const),
];

/** Whether the kernel's answers about files in a directory of this user's can be had: as root, on a plain local file system. */
export function canAskKernel(): boolean {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  if (process.platform !== 'linux' || process.getuid?.() !== 0 || !existsSync(SCRIPT)) return false;
  if (major < RELEASE_MIN[0] || (major === RELEASE_MIN[0] && minor < RELEASE_MIN[1])) return false;
  const answers = probe(PROBES);
  return answers !== null && (answers[PROBES.length - 1]!.value as Seen).nlink === 2;
}

/** Whether those about holes and space can be had, too. */
export const canAskAboutSpace = (): boolean => canAskKernel() && probe(SPACE_PROBES) !== null;

/** The answers, or null when one of them is a refusal. */
function probe(probes: readonly (readonly [string, ...unknown[]])[]): { value?: unknown; code?: string }[] | null {
  const cwd = mkdtempSync(join(tmpdir(), 'holdfast-probe-'));
  try {
    const input = probes.map(([call, ...args]) => `${JSON.stringify({ user: ROOT_USER, call, args })}\n`).join('');
    const { status, stdout } = spawnSync('python3', [SCRIPT], { cwd, input, encoding: 'utf8' });
    if (status !== 0) return null;
    const answers = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { value?: unknown; code?: string });
    return answers.length !== probes.length || answers.some(({ code }) => code !== undefined) ? null : answers;
  } finally {
    rmSync(cwd, { recursive: true });
  }
}

export class LocalKernel {
  readonly #child: ChildProcessWithoutNullStreams = spawn('python3', [SCRIPT]);
  readonly #waiting: { resolve: (line: string) => void; reject: (error: Error) => void }[] = [];

  constructor() {
    createInterface({ input: this.#child.stdout }).on('line', (line) => this.#waiting.shift()?.resolve(line));
    let said = '';
    this.#child.stderr.on('data', (text: Buffer) => (said += text.toString()));
    this.#child.on('close', () => {
      for (const { reject } of this.#waiting.splice(0))
        reject(new Error(`the child that calls the kernel ended: ${said}`));
    });
  }

  async call(user: Credentials, call: string, args: readonly unknown[]): Promise<unknown> {
    const line = await new Promise<string>((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#child.stdin.write(`${JSON.stringify({ user, call, args })}\n`);
    });
    const answer = JSON.parse(line) as { value?: unknown; code?: string };
    if (answer.code === undefined) return answer.value;
    // libuv's name for the same number.
    const name = answer.code === 'EOPNOTSUPP' ? 'ENOTSUP' : answer.code;
    throw Object.assign(new Error(`${name}, ${call} ${args.join(' ')}`), { code: name });
  }

  close(): void {
    this.#child.stdin.end();
  }
}

const RENAME_FLAGS = { noReplace: 1, exchange: 2 } as const;
const XATTR_FLAGS = { create: 1, replace: 2 } as const;

export class LocalCalls implements Calls {
  constructor(
    readonly kernel: LocalKernel,
    readonly dir: string,
    readonly user: Credentials = ROOT_USER,
  ) {}
  as(user: Partial<Credentials>): Calls {
    return new LocalCalls(this.kernel, this.dir, { ...ROOT_USER, ...user });
  }
  #at(path: string): string {
    return `${this.dir}/${path}`;
  }
  #do(call: string, ...args: unknown[]): Promise<string> {
    return code(this.kernel.call(this.user, call, args));
  }
  #ask(call: string, ...args: unknown[]): Promise<unknown> {
    return this.kernel.call(this.user, call, args);
  }

  create(path: string, mode = 0o644) {
    return this.open(path, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, mode);
  }
  open(path: string, flags: number, mode = 0o644) {
    return this.#do('open', this.#at(path), flags, mode);
  }
  write(path: string, text: string) {
    return this.#do('write', this.#at(path), text);
  }
  mkdir(path: string, mode = 0o755) {
    return this.#do('mkdir', this.#at(path), mode);
  }
  mkfifo(path: string, mode = 0o644) {
    return this.mknod(path, constants.S_IFIFO | mode);
  }
  mknod(path: string, mode: number, rdev = 0) {
    return this.#do('mknod', this.#at(path), mode, rdev);
  }
  symlink(target: string, path: string) {
    return this.#do('symlink', target, this.#at(path));
  }
  link(existing: string, path: string) {
    return this.#do('link', this.#at(existing), this.#at(path));
  }
  rename(from: string, to: string, how?: 'noReplace' | 'exchange') {
    return this.#do('rename', this.#at(from), this.#at(to), how === undefined ? 0 : RENAME_FLAGS[how]);
  }
  unlink(path: string) {
    return this.#do('unlink', this.#at(path));
  }
  rmdir(path: string) {
    return this.#do('rmdir', this.#at(path));
  }
  chmod(path: string, mode: number) {
    return this.#do('chmod', this.#at(path), mode);
  }
  fchmod(path: string, mode: number) {
    return this.#do('fchmod', this.#at(path), mode);
  }
  chown(path: string, uid: number, gid: number) {
    return this.#do('chown', this.#at(path), uid, gid);
  }
  fchown(path: string, uid: number, gid: number) {
    return this.#do('fchown', this.#at(path), uid, gid);
  }
  lchown(path: string, uid: number, gid: number) {
    return this.#do('lchown', this.#at(path), uid, gid);
  }
  utimes(path: string, atime: Time, mtime: Time) {
    return this.#do('utimens', this.#at(path), atime.toString(), mtime.toString(), true);
  }
  lutimes(path: string, atime: Time, mtime: Time) {
    return this.#do('utimens', this.#at(path), atime.toString(), mtime.toString(), false);
  }
  truncate(path: string, size: number) {
    return this.#do('truncate', this.#at(path), size);
  }
  ftruncate(path: string, flags: number, size: number) {
    return this.#do('ftruncate', this.#at(path), flags, size);
  }
  fallocate(path: string, flags: number, how: Allocation, offset: number, length: number) {
    return this.#do('fallocate', this.#at(path), flags, ALLOCATIONS[how], offset, length);
  }
  seek(path: string, offset: number, what: 'data' | 'hole') {
    return answer(this.#ask('seek', this.#at(path), offset, what) as Promise<number>);
  }
  access(path: string, mode: number) {
    return this.#do('access', this.#at(path), mode);
  }
  setxattr(path: string, name: string, value: Uint8Array, how?: 'create' | 'replace') {
    const hex = Buffer.from(value).toString('hex');
    return this.#do('setxattr', this.#at(path), name, hex, how === undefined ? 0 : XATTR_FLAGS[how]);
  }
  removexattr(path: string, name: string) {
    return this.#do('removexattr', this.#at(path), name);
  }
  nameless(dir: string, flags: number, mode: number, to: string | null) {
    return this.#do('nameless', this.#at(dir), flags, mode, to === null ? null : this.#at(to));
  }
  writeAt(path: string, offset: number, letter: string, count: number) {
    return this.#do('write_at', this.#at(path), offset, letter, count);
  }
  async readAt(path: string, offset: number, length: number) {
    return (await this.#ask('read_at', this.#at(path), offset, length)) as string;
  }
  async read(path: string) {
    return (await this.#ask('read', this.#at(path))) as string;
  }
  async stat(path: string) {
    return seen(await this.#ask('stat', this.#at(path)));
  }
  async lstat(path: string) {
    return seen(await this.#ask('lstat', this.#at(path)));
  }
  async readdir(path: string) {
    return (await this.#ask('readdir', this.#at(path))) as string[];
  }
  async readlink(path: string) {
    return (await this.#ask('readlink', this.#at(path))) as string;
  }
  async getxattr(path: string, name: string) {
    return Buffer.from((await this.#ask('getxattr', this.#at(path), name)) as string, 'hex');
  }
  async listxattr(path: string) {
    return (await this.#ask('listxattr', this.#at(path))) as string[];
  }
}

function seen(answer: unknown): Seen {
  const { atime, mtime, ctime, ...rest } = answer as Omit<Seen, 'atime' | 'mtime' | 'ctime'> &
    Record<'atime' | 'mtime' | 'ctime', string>;
  return { ...rest, atime: BigInt(atime), mtime: BigInt(mtime), ctime: BigInt(ctime) };
}
