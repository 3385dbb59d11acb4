import { readFile, writeFile } from 'node:fs/promises';
import { getSystemErrorName } from 'node:util';
import { FsError, type Reason } from '../common/errors.js';
import { loadFuseAddon } from '../native/fuse.js';

/**
 * mount(2) and what belongs to a mount outside of its descriptor: its place in the table of mounts, its read-ahead, the kernel's
 * means to abort it. Nothing here touches the mount itself: the process that serves it would wait for itself.
 */
const MS_RDONLY = 1;
const MS_NOSUID = 2;
const MS_NODEV = 4;
const MS_NOEXEC = 8;
const MS_NOATIME = 1024;
const MNT_FORCE = 1;
const MNT_DETACH = 2;

export const MOUNT_TYPE = 'fuse.holdfast';

export interface MountOptions {
  /** What df and mount show as the source. */
  readonly source: string;
  readonly readOnly?: boolean;
  readonly noSuid?: boolean;
  readonly noDevices?: boolean;
  readonly noExecute?: boolean;
  readonly noAccessTimes?: boolean;
  /** Others than who mounted it (root). */
  readonly allowOther?: boolean;
  /** The kernel checks modes and ACLs that it has cached; without, nothing is checked for names that it has. */
  readonly kernelChecks?: boolean;
  readonly readBytesMax?: number;
}

const REASONS: Readonly<Record<string, readonly [Reason, string]>> = {
  ENOENT: ['notFound', 'the mount point does not exist'],
  ENOTDIR: ['notDirectory', 'the mount point is not a directory'],
  EPERM: ['notPermitted', 'mounting needs root (CAP_SYS_ADMIN)'],
  EACCES: ['accessDenied', 'no access to the mount point'],
  EBUSY: ['busy', 'the mount point is in use'],
  ENODEV: ['noDevice', 'this kernel has no FUSE'],
};

function failure(errno: number, op: string, object: string): FsError {
  const code = getSystemErrorName(-errno);
  const [reason, detail] = REASONS[code] ?? ['internal', code];
  return new FsError(reason, { op, object, detail });
}

/** The FUSE descriptor for a mount to come; the caller's to close. @throws {FsError} noDevice, accessDenied. */
export function openFuseDevice(): number {
  const fd = loadFuseAddon().openDevice();
  if (fd >= 0) return fd;
  const code = getSystemErrorName(fd);
  throw new FsError(code === 'EACCES' || code === 'EPERM' ? 'accessDenied' : 'noDevice', {
    op: 'mount.open',
    object: '/dev/fuse',
    detail: code === 'ENOENT' ? 'there is no /dev/fuse: load the module fuse' : code,
  });
}
export const closeDescriptor = (fd: number): void => {
  loadFuseAddon().closeDescriptor(fd);
};

/** `target`: a directory, as realpath has it. @throws {FsError} */
export async function mountFuse(device: number, target: string, options: MountOptions): Promise<void> {
  const flags =
    (options.readOnly === true ? MS_RDONLY : 0) |
    (options.noSuid === true ? MS_NOSUID : 0) |
    (options.noDevices === true ? MS_NODEV : 0) |
    (options.noExecute === true ? MS_NOEXEC : 0) |
    (options.noAccessTimes === true ? MS_NOATIME : 0);
  const rest = [
    ...(options.allowOther === true ? ['allow_other'] : []),
    ...(options.kernelChecks === false ? [] : ['default_permissions']),
    ...(options.readBytesMax === undefined ? [] : [`max_read=${options.readBytesMax}`]),
  ];
  const errno = await loadFuseAddon().mount(
    device,
    options.source,
    target,
    MOUNT_TYPE,
    flags,
    rest.map((option) => `,${option}`).join(''),
  );
  if (errno !== 0) throw failure(errno, 'mount', target);
}

/**
 * `lazy`: off the tree at once, gone when the last user is; `force`: aborts the connection first, whose users get errors.
 * @throws {FsError} busy, invalidArgument where nothing is mounted.
 */
export async function unmountFuse(target: string, how: { lazy?: boolean; force?: boolean } = {}): Promise<void> {
  const flags = (how.lazy === true ? MNT_DETACH : 0) | (how.force === true ? MNT_FORCE : 0);
  const errno = await loadFuseAddon().unmount(target, flags);
  if (errno === 0) return;
  const code = getSystemErrorName(-errno);
  if (code === 'EINVAL') throw new FsError('invalidArgument', { op: 'umount', object: target, detail: 'not mounted' });
  throw failure(errno, 'umount', target);
}

export interface MountEntry {
  /** The device number's minor half, which is the connection's number too. */
  readonly connection: number;
  readonly target: string;
  readonly type: string;
  readonly source: string;
}

const withoutEscapes = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/** The lines of /proc/self/mountinfo (proc(5)). */
export function parseMountInfo(text: string): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of text.split('\n')) {
    const [left, right] = line.split(' - ');
    if (left === undefined || right === undefined) continue;
    const device = left.split(' ')[2]?.split(':')[1];
    const target = left.split(' ')[4];
    const [type, source] = right.split(' ');
    if (device === undefined || target === undefined || type === undefined || source === undefined) continue;
    entries.push({ connection: Number(device), target: withoutEscapes(target), type, source: withoutEscapes(source) });
  }
  return entries;
}

/** Our mounts of this machine. Of several on one directory the last is on top. */
export async function fuseMounts(): Promise<MountEntry[]> {
  return parseMountInfo(await readFile('/proc/self/mountinfo', 'utf8')).filter(({ type }) => type === MOUNT_TYPE);
}

/** How far the kernel reads ahead of a sequential reader: INIT can only lower it. Needs the mount to be served. @throws {FsError} */
export async function setReadAhead(connection: number, bytes: number): Promise<void> {
  const file = `/sys/class/bdi/0:${connection}/read_ahead_kb`;
  try {
    await writeFile(file, String(Math.floor(bytes / 1024)));
  } catch (cause) {
    throw new FsError('internal', { op: 'mount.readAhead', object: file, detail: 'cannot be set', cause });
  }
}

/** Every request ends with ECONNABORTED, whoever serves it. Once aborted, nothing brings a mount back. @throws {FsError} notFound. */
export async function abortConnection(connection: number): Promise<void> {
  const file = `/sys/fs/fuse/connections/${connection}/abort`;
  const write = () => writeFile(file, '1');
  try {
    await write().catch(async () => {
      await loadFuseAddon().mountControl();
      await write();
    });
  } catch (cause) {
    throw new FsError('notFound', { op: 'mount.abort', object: file, detail: 'no such connection', cause });
  }
}
