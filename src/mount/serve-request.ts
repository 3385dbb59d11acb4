import { constants as fsConstants } from 'node:fs';
import { constants } from 'node:os';
import { range } from '../common/byte-range.js';
import { FsError } from '../common/errors.js';
import { inodeNumber } from '../common/ids.js';
import {
  type AllocateMode,
  type Attributes,
  type Credentials,
  FileType,
  O_TMPFILE,
  type OpOptions,
} from '../fs/file-system-api.js';
import type { KernelFileHandle } from '../fs/inode-calls.js';
import type { FileHandle } from './handles.js';
import type { KernelMount, UnderWay } from './kernel-mount.js';
import type { KernelNode } from './kernel-nodes.js';
import { OpenReplyFlag, WriteFlag } from './wire/protocol.js';
import type { Validity } from './wire/reply.js';
import type { Header, Request } from './wire/request.js';

/**
 * What each request of the kernel means. Answers by itself, or throws what is answered as an errno; nothing is answered twice.
 * Memory for answers is shared: it is cleared and filled in the turn in which it is sent.
 * Rights were checked by the kernel (default_permissions): what is asked here is done in the name of whoever asked.
 */
type Matching<R, Op> = R extends { readonly op: infer O } ? (Op extends O ? R : never) : never;
type Of<Op extends Request['op']> = Matching<Request, Op>;

const { O_APPEND, O_DSYNC, O_EXCL, O_NOATIME, O_RDONLY, O_SYNC, O_TRUNC, O_WRONLY } = fsConstants;
const { ENOENT, ENOMEM, ENOSYS, ERANGE } = constants.errno;
/** Of open(2)'s flags, what matters to us beside the access. */
const KEPT_FLAGS = O_SYNC | O_DSYNC | O_NOATIME;
const BLOCK_BYTES = 1 << 17;
/** What longer requests bring lies in large buffers, of which there are few. */
const SMALL_BYTES = 4096;
/** Nothing is kept of names and attributes. */
const ASK_AGAIN: Validity = { entrySeconds: 0, attributeSeconds: 0 };
/** A FLUSH is answered after so long, whatever becomes of its locks (M7): a dying process waits for it. */
const FLUSH_LOCKS_MS = 2000;
const RENAME_NOREPLACE = 1;
const RENAME_EXCHANGE = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const XATTR_CREATE = 1;
const XATTR_REPLACE = 2;

const who = ({ uid, gid }: Header, umask = 0): Credentials => ({ uid, gid, groups: [], umask, checked: true });
const isWritable = (flags: number): boolean => (flags & 3) !== O_RDONLY;
const optionsOf = (underWay: UnderWay): OpOptions => ({
  get signal() {
    return underWay.signal;
  },
});

export async function serveRequest(mount: KernelMount, request: Request, underWay: UnderWay): Promise<void> {
  const { session, reply, nodes, inodes } = mount;
  const { id } = underWay;
  const { header } = request;
  const options = optionsOf(underWay);
  const node = nodes.get(header.node);
  const entry = async (attributes: Attributes): Promise<void> => {
    await mount.pushSize(attributes);
    const child = nodes.lookedUp(attributes);
    session.answerWith(id, reply.clear().entry(child.id, attributes, ASK_AGAIN, BLOCK_BYTES));
  };
  const attr = async (attributes: Attributes): Promise<void> => {
    await mount.pushSize(attributes);
    session.answerWith(id, reply.clear().attr(attributes, 0, BLOCK_BYTES));
  };
  const done = (): void => {
    session.answer(id, 0);
  };
  switch (request.op) {
    case 'lookup': {
      const attributes = await inodes.lookup(node, request.name, who(header), options);
      if (attributes === null) session.answer(id, ENOENT);
      else await entry(attributes);
      return;
    }
    case 'getattr':
      return attr(await inodes.stat(node, options));
    case 'statx': {
      const attributes = await inodes.stat(node, options);
      await mount.pushSize(attributes);
      session.answerWith(id, reply.clear().statx(attributes, 0, BLOCK_BYTES));
      return;
    }
    case 'setattr':
      return setAttributes(mount, node, request, underWay);
    case 'readlink':
      session.answerBytes(id, Buffer.from(await inodes.readlink(node, options)));
      return;
    case 'symlink':
      return entry(await inodes.symlink(node, request.name, request.target, who(header), options));
    case 'mkdir':
      return entry(await inodes.mkdir(node, request.name, request.mode, who(header, request.umask), options));
    case 'mknod':
      return entry(await makeNode(mount, node, request, options));
    case 'unlink':
    case 'rmdir':
      await inodes.remove(request.op, node, request.name, who(header), options);
      return done();
    case 'rename': {
      const { flags } = request;
      if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) !== 0) throw refused('rename', `flags ${flags}`);
      const how = { noReplace: (flags & RENAME_NOREPLACE) !== 0, exchange: (flags & RENAME_EXCHANGE) !== 0 };
      const to = nodes.get(request.toDirectory);
      const renamed = {
        get signal() {
          return underWay.signal;
        },
        ...how,
      };
      await inodes.rename(node, request.name, to, request.toName, who(header), renamed);
      return done();
    }
    case 'link':
      return entry(await inodes.link(nodes.get(request.existing), node, request.name, who(header), options));
    case 'open':
      return openFile(mount, node, request, underWay);
    case 'create':
    case 'tmpfile':
      return createFile(mount, node, request, underWay);
    case 'read':
      return read(mount, node, request, underWay);
    case 'write':
      return write(mount, node, request, underWay);
    case 'flush':
      await flush(mount, node, request);
      return done();
    case 'release': {
      const handle = mount.handles.takeFile(request.handle);
      done();
      if (handle !== undefined) await closeFile(mount, handle);
      return;
    }
    case 'fsync':
      await mount.handles.file(request.handle).file.sync(request.dataOnly, options);
      return done();
    case 'opendir': {
      const handle = mount.handles.addDirectory({ node, listing: null });
      if (!session.answerWith(id, reply.clear().open(handle, 0))) mount.handles.takeDirectory(handle);
      return;
    }
    case 'readdir':
    case 'readdirplus':
      return readDirectory(mount, node, request, underWay);
    case 'releasedir':
      mount.handles.takeDirectory(request.handle);
      return done();
    case 'fsyncdir':
      await inodes.syncDirectory();
      return done();
    case 'syncfs':
      await mount.parts.syncAll();
      return done();
    case 'statfs': {
      const statistics = await inodes.statfs();
      session.answerWith(id, reply.clear().statfs(statistics));
      return;
    }
    case 'access':
      // The kernel has what it needs to check, and does (default_permissions).
      session.answer(id, ENOSYS);
      return;
    case 'getxattr': {
      const value = await inodes.getXattr(node, request.name, who(header), options);
      return answerSized(mount, id, value, request.size);
    }
    case 'listxattr': {
      const names = await inodes.listXattrs(node, who(header), options);
      return answerSized(mount, id, Buffer.from(names.map((name) => `${name}\0`).join('')), request.size);
    }
    case 'setxattr': {
      const { flags } = request;
      const how = { create: (flags & XATTR_CREATE) !== 0, replace: (flags & XATTR_REPLACE) !== 0 };
      // Its bytes are those of the request, which is over when it is answered.
      await inodes.setXattr(node, request.name, request.value.slice(), who(header), how);
      return done();
    }
    case 'removexattr':
      await inodes.setXattr(node, request.name, null, who(header));
      return done();
    case 'getlk':
    case 'setlk':
      return lock(mount, node, request, underWay);
    case 'fallocate':
      await allocate(mount.handles.file(request.handle).file, request, options);
      return done();
    case 'lseek': {
      const { file } = mount.handles.file(request.handle);
      if (request.whence !== SEEK_DATA && request.whence !== SEEK_HOLE)
        throw refused('lseek', `whence ${request.whence}`);
      const found = await file.seek(request.offset, request.whence === SEEK_DATA ? 'data' : 'hole', options);
      session.answerWith(id, reply.clear().offset(found));
      return;
    }
    case 'copyFileRange': {
      const from = mount.handles.file(request.handle).file;
      const to = mount.handles.file(request.toHandle).file;
      // A count of 32 bits.
      const length = Math.min(request.length, request.wide ? Number.MAX_SAFE_INTEGER : 2 ** 31);
      const copied = await from.copyRange(request.offset, to, request.toOffset, length, options);
      session.answerWith(id, request.wide ? reply.clear().offset(copied) : reply.clear().count(copied));
      return;
    }
    case 'refused':
      session.answer(id, request.errno);
      return;
  }
}

const refused = (op: string, detail: string): FsError => new FsError('invalidArgument', { op, detail });

function answerSized({ session, reply }: KernelMount, id: number, value: Uint8Array, size: number): void {
  if (size === 0) session.answerWith(id, reply.clear().count(value.length));
  else if (value.length > size) session.answer(id, ERANGE);
  else session.answerBytes(id, value);
}

// Attributes

async function setAttributes(
  mount: KernelMount,
  node: KernelNode,
  { header, handle, wishes }: Of<'setattr'>,
  underWay: UnderWay,
): Promise<void> {
  const options = optionsOf(underWay);
  const { mode, uid, gid, size, atimeNs, mtimeNs } = wishes;
  if (size !== undefined) await truncate(mount, node, header, handle, size, underWay);
  const changes = {
    ...(mode === undefined ? {} : { mode }),
    ...(uid === undefined ? {} : { uid }),
    ...(gid === undefined ? {} : { gid }),
    ...(atimeNs === undefined ? {} : { atimeNs }),
    // A truncation has set it: what comes with it is the kernel's own idea of the same time.
    ...(mtimeNs === undefined || size !== undefined ? {} : { mtimeNs }),
  };
  const attributes =
    Object.keys(changes).length === 0
      ? await mount.inodes.stat(node, options)
      : await mount.inodes.setAttributes(node, changes, who(header), options);
  if (size === undefined) await mount.pushSize(attributes);
  else node.sizeFloor = 0;
  mount.session.answerWith(underWay.id, mount.reply.clear().attr(attributes, 0, BLOCK_BYTES));
}

async function truncate(
  mount: KernelMount,
  node: KernelNode,
  header: Header,
  handle: number | null,
  size: number,
  underWay: UnderWay,
): Promise<void> {
  // The kernel drops what is cut when it has the answer. Until then it writes no page of a mapping back, so that a token may be held up by us who wait for
  // another: then we give up (EINTR).
  const waiting = new AbortController();
  const giveUp = (): void => waiting.abort();
  underWay.signal.addEventListener('abort', giveUp, { once: true });
  node.cuts.add(giveUp);
  const options = { signal: waiting.signal, kernelTruncates: true } as const;
  try {
    const opened = handle === null ? null : mount.handles.file(handle);
    if (opened?.writable) {
      await opened.file.truncate(size, options);
      return;
    }
    const file = await mount.inodes.open(node, O_WRONLY, who(header), true, options);
    try {
      await file.truncate(size, options);
    } finally {
      await file.close();
    }
  } finally {
    node.cuts.delete(giveUp);
  }
}

const TYPES: ReadonlyMap<number, FileType> = new Map([
  [0, FileType.regular],
  [0o100000, FileType.regular],
  [0o010000, FileType.fifo],
  [0o020000, FileType.characterDevice],
  [0o060000, FileType.blockDevice],
  [0o140000, FileType.socket],
]);

function makeNode(
  mount: KernelMount,
  node: KernelNode,
  { header, name, mode, rdev, umask }: Of<'mknod'>,
  options: OpOptions,
) {
  const type = TYPES.get(mode & 0o170000);
  if (type === undefined) throw refused('mknod', `mode ${mode.toString(8)}`);
  return mount.inodes.mknod(node, name, type, mode & 0o7777, rdev, who(header, umask), options);
}

// Files

async function openFile(
  mount: KernelMount,
  node: KernelNode,
  { header, flags }: Of<'open'>,
  underWay: UnderWay,
): Promise<void> {
  const options = optionsOf(underWay);
  const kept = (flags & 3) | (flags & KEPT_FLAGS);
  const file = await mount.inodes.open(node, kept, who(header), true, options);
  try {
    if ((flags & O_TRUNC) !== 0) {
      if (isWritable(flags)) await file.truncate(0, options);
      else await truncateOpened(mount, node, header, options);
    }
  } catch (error) {
    await file.close().catch(() => undefined);
    throw error;
  }
  await handOut(mount, node, file, flags, underWay, (handle, replyFlags) =>
    mount.reply.clear().open(handle, replyFlags),
  );
}
async function truncateOpened(mount: KernelMount, node: KernelNode, header: Header, options: OpOptions): Promise<void> {
  const file = await mount.inodes.open(node, O_WRONLY, who(header), true, options);
  try {
    await file.truncate(0, options);
  } finally {
    await file.close();
  }
}

async function createFile(
  mount: KernelMount,
  node: KernelNode,
  request: Of<'create' | 'tmpfile'>,
  underWay: UnderWay,
): Promise<void> {
  const { header, flags, mode, umask } = request;
  const options = optionsOf(underWay);
  const access = flags & (3 | KEPT_FLAGS | O_EXCL | O_TRUNC);
  const permissions = mode & 0o7777;
  const { file, attributes } =
    request.op === 'create'
      ? await mount.inodes.create(node, request.name, access, permissions, who(header, umask), options)
      : await mount.inodes.createNameless(node, access | O_TMPFILE, permissions, who(header, umask), options);
  const child = mount.nodes.lookedUp(attributes);
  await handOut(mount, child, file, flags, underWay, (handle, replyFlags) =>
    mount.reply.clear().entry(child.id, attributes, ASK_AGAIN, BLOCK_BYTES).open(handle, replyFlags),
  );
}

/** A handle for the kernel. Those that may write pass its pages by (M1); mappings of them use pages that are held exclusively (M3). */
async function handOut(
  mount: KernelMount,
  node: KernelNode,
  file: KernelFileHandle,
  flags: number,
  { id }: UnderWay,
  body: (handle: number, replyFlags: number) => KernelMount['reply'],
): Promise<void> {
  const writable = isWritable(flags);
  node.files.add(file);
  if (!writable) node.readers++;
  const pages = mount.pagesOf(node);
  if (writable) await pages.writableOpened();
  const opened: FileHandle = { node, file, writable };
  const handle = mount.handles.addFile(opened);
  const replyFlags = OpenReplyFlag.keepCache | (writable ? OpenReplyFlag.directIo : 0);
  if (mount.session.answerWith(id, body(handle, replyFlags))) return;
  // Whoever asked for it is gone.
  mount.handles.takeFile(handle);
  await closeFile(mount, opened);
}

export async function closeFile(mount: KernelMount, { node, file, writable }: FileHandle): Promise<void> {
  if (writable) node.pages?.writableClosed();
  node.files.delete(file);
  if (!writable) node.readers--;
  // What it may have to say about lost writes was said to who synced it; nobody hears of a RELEASE.
  await file.close().catch((error: unknown) => {
    mount.parts.logger.warn({ ino: node.ino, error: String(error) }, 'closing a file of the mount failed');
  });
}

async function read(mount: KernelMount, node: KernelNode, request: Of<'read'>, underWay: UnderWay): Promise<void> {
  const { file } = mount.handles.file(request.handle);
  const { offset, size, cached } = request;
  if (cached) return mount.readPages(underWay.id, node, file, range(offset, offset + size));
  const bytes = mount.takeBytes(size);
  try {
    const count = await file.read(offset, bytes.subarray(0, size), optionsOf(underWay));
    mount.session.answerBytes(underWay.id, bytes.subarray(0, count));
  } finally {
    mount.giveBytes(bytes);
  }
}

async function write(mount: KernelMount, node: KernelNode, request: Of<'write'>, underWay: UnderWay): Promise<void> {
  const { file } = mount.handles.file(request.handle);
  const { offset, data, writeFlags, flags } = request;
  if ((writeFlags & WriteFlag.cache) !== 0) return launder(mount, node, file, offset, data, underWay.id);
  // Where an append goes is not the kernel's to know (M5).
  const at = (flags & O_APPEND) !== 0 ? null : offset;
  const large = data.length > SMALL_BYTES;
  if (large && mount.tooManyLarge) {
    mount.count('refusedForRoom');
    mount.session.answer(underWay.id, ENOMEM);
    return;
  }
  if (large) mount.largeUnderWay++;
  try {
    const { lengthBytes } = await file.write(at, data, optionsOf(underWay));
    mount.session.answerWith(underWay.id, mount.reply.clear().count(lengthBytes));
  } finally {
    if (large) mount.largeUnderWay--;
  }
}

/** A page of a mapping (M3): at once, under whatever token is there. */
function launder(
  mount: KernelMount,
  node: KernelNode,
  file: KernelFileHandle,
  offset: number,
  data: Uint8Array,
  id: number,
): Promise<void> {
  mount.count('laundered');
  return new Promise((resolve, reject) => {
    const apply = (): void => {
      file.writeHeld(offset, data).then(() => {
        mount.session.answerWith(id, mount.reply.clear().count(data.length));
        resolve();
      }, reject);
    };
    const lost = (): void => reject(new FsError('writesLost', { op: 'mount', object: `inode ${node.ino}` }));
    mount.pagesOf(node).laundered(range(offset, offset + data.length), apply, lost);
  });
}

const FALLOCATE: Readonly<Record<number, { mode: AllocateMode; keepSize: boolean }>> = {
  0: { mode: 'allocate', keepSize: false },
  1: { mode: 'allocate', keepSize: true },
  3: { mode: 'punchHole', keepSize: true },
  16: { mode: 'zeroRange', keepSize: false },
  17: { mode: 'zeroRange', keepSize: true },
};

async function allocate(file: KernelFileHandle, request: Of<'fallocate'>, options: OpOptions): Promise<void> {
  const how = FALLOCATE[request.mode];
  if (how === undefined) throw new FsError('notSupported', { op: 'fallocate', detail: `mode ${request.mode}` });
  const signal = {
    get signal() {
      return options.signal;
    },
    keepSize: how.keepSize,
  };
  await file.allocate(how.mode, request.offset, request.length, signal);
}

// Locks

async function flush(mount: KernelMount, node: KernelNode, { handle, owner }: Of<'flush'>): Promise<void> {
  const { file } = mount.handles.file(handle);
  const closing = mount.owners.closes(owner, node.ino);
  if (closing === null || file.locks === undefined) return;
  const released = file.locks.release(closing).catch(() => undefined);
  await Promise.race([
    released,
    new Promise((resolve) => mount.parts.clock.after(FLUSH_LOCKS_MS, () => resolve(undefined))),
  ]);
}

async function lock(
  mount: KernelMount,
  node: KernelNode,
  request: Of<'getlk' | 'setlk'>,
  underWay: UnderWay,
): Promise<void> {
  const { session, reply, owners } = mount;
  const { locks } = mount.handles.file(request.handle).file;
  if (locks === undefined) throw new FsError('noLocks', { op: 'lock', object: `inode ${node.ino}` });
  const { owner: key, pid, type, offset, length, flock } = request;
  const wants = request.op === 'setlk' && type !== 'unlock' && !flock;
  const process = wants ? owners.locking(key, pid, node.ino, locks) : owners.of(key, pid, locks).owner;
  const kind = flock ? 'flock' : 'process';
  const wish = { kind, process, offsetBytes: offset, lengthBytes: length ?? 0 } as const;
  const options = optionsOf(underWay);
  if (request.op === 'getlk') {
    const found = type === 'unlock' ? null : await locks.test(wish, type, options);
    const none = { type: 'unlock', offset, length, pid: 0 } as const;
    const answer = found === null ? none : { ...found, offset: found.offsetBytes, length: found.lengthBytes || null };
    session.answerWith(underWay.id, reply.clear().lock(answer));
    return;
  }
  if (type === 'unlock') await locks.unlock(wish, options);
  else await locks.lock(wish, type, request.wait, options);
  session.answer(underWay.id, 0);
}

// Directories

async function readDirectory(
  mount: KernelMount,
  node: KernelNode,
  request: Of<'readdir' | 'readdirplus'>,
  underWay: UnderWay,
): Promise<void> {
  const handle = mount.handles.directory(request.handle);
  if (request.offset === 0 || handle.listing === null)
    handle.listing = await mount.inodes.list(node, optionsOf(underWay));
  const { parent, entries } = handle.listing;
  const reply = mount.reply.clear();
  const put = (name: string, ino: number, type: FileType, next: number): boolean =>
    request.op === 'readdir'
      ? reply.dirent(request.size, name, ino, type, next)
      : reply.direntPlus(request.size, name, ino, type, next, null);
  const all = entries.length + 2;
  for (let at = request.offset; at < all; at++) {
    const more =
      at === 0
        ? put('.', node.ino, FileType.directory, 1)
        : at === 1
          ? put('..', inodeNumber(parent), FileType.directory, 2)
          : put(entries[at - 2]!.name, entries[at - 2]!.ino, entries[at - 2]!.type, at + 1);
    if (!more) break;
  }
  mount.session.answerWith(underWay.id, reply);
}
