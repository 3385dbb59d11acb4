/** open, with everything that O_* asks for. */
import { constants } from 'node:fs';
import { sleep } from '../../common/clock.js';
import { FsError } from '../../common/errors.js';
import type { InodeNumber } from '../../common/ids.js';
import { TokenMode, type TokenPins } from '../../token-manager/token.js';
import { truncateFile } from '../file-io.js';
import {
  type Credentials,
  FileType,
  isNameless,
  type OpenFile,
  type OpenOptions,
  type OpOptions,
} from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { FIRST_USER_INODE, ROOT_DIRECTORY } from '../layout.js';
import type { LeafEntry } from '../leaf-format.js';
import { FsOpenFile } from '../open-file.js';
import { checkShare, type OpenUse, tryHoldOpen } from '../open-tokens.js';
import { walk, walkToExisting } from '../path-walk.js';
import { checkAccess, isOwner, READ, WRITE } from '../permissions.js';
import { type InodeRef, loadRef, pinInodes } from '../pinning.js';
import { NO_OWNERS } from '../shared/shared-io.js';
import type { Volume } from '../volume.js';
import { createNameless } from './create-nameless.js';
import { createNode } from './create-node.js';

const op = 'open';
const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOATIME, O_NOFOLLOW, O_RDONLY, O_TRUNC, O_WRONLY } = constants;
/** How often a file may be removed between finding and opening it before we say so. */
const TRIES = 64;
/** Between looks at a file that others have open. */
const BUSY_RETRY_MIN_MS = 5;
const BUSY_RETRY_MAX_MS = 200;

const busy = (path: string, cause: FsError): FsError =>
  new FsError('busy', { op, object: path, detail: 'others have it open, or deny it', cause });

export async function open(
  volume: Volume,
  path: string,
  flags: number,
  mode: number,
  credentials: Credentials,
  options: OpenOptions | undefined,
): Promise<OpenFile> {
  if ((flags & 3) === 3) throw new FsError('invalidArgument', { op, object: path, detail: 'no access mode' });
  if ((flags & O_CREAT) !== 0 && (flags & O_DIRECTORY) !== 0)
    throw new FsError('invalidArgument', { op, object: path, detail: 'O_CREAT with O_DIRECTORY' });
  if (isNameless(flags)) return openNameless(volume, path, flags, mode, credentials, options);
  const exclusive = (flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0;
  const followLast = (flags & O_NOFOLLOW) === 0 && !exclusive;
  const nameOnly = (flags & O_CREAT) !== 0;
  const use = { flags, deny: options?.deny };
  const request = { op, credentials, followLast, nameOnly, options };
  let refused: InodeNumber | null = null;
  const busyUntilMs = volume.clock.nowMs() + (options?.busyTimeoutMs ?? 0);
  let retryMs = BUSY_RETRY_MIN_MS;
  for (let attempt = 1; ; attempt++) {
    const { parent, name, target, trailingSlash } = await walk(volume, path, request);
    // What open makes is a file.
    if (nameOnly && trailingSlash && parent !== null) throw new FsError('isDirectory', { op, object: path });
    if (target !== null) {
      if (exclusive) throw new FsError('exists', { op, object: path });
      try {
        return await openExisting(volume, target, path, use, credentials, options);
      } catch (error) {
        if (!FsError.is(error)) throw error;
        // Refused: somebody is alone with it, since its last name went, which a second look shows; or denies what we want.
        if (error.reason === 'tokenRefused') {
          if (refused === target.ino) {
            if (volume.clock.nowMs() >= busyUntilMs) throw busy(path, error);
            if (options?.signal?.aborted === true) throw new FsError('aborted', { op, object: path });
            await sleep(volume.clock, retryMs);
            retryMs = Math.min(2 * retryMs, BUSY_RETRY_MAX_MS);
          }
          refused = target.ino;
        } else if (error.reason !== 'staleHandle' || attempt >= TRIES) throw error;
        continue;
      }
    }
    if ((flags & O_CREAT) === 0 || parent === null) throw new FsError('notFound', { op, object: path });
    let opened: OpenFile | null = null;
    const onCreated = (inode: Inode): void => {
      opened = new FsOpenFile(volume, inode, flags, credentials, held(volume, inode.ino, use), use.deny);
    };
    const type = FileType.regular;
    const existing = await createNode(volume, parent, name, { op, path, type, mode, credentials, options, onCreated });
    if (opened !== null) return opened;
    if (existing !== null && exclusive) throw new FsError('exists', { op, object: path });
    // Somebody else made it between the look-up and our tokens: open theirs.
  }
}

/** O_TMPFILE: freed at its last close, unless it got a name, which O_EXCL forbids. */
async function openNameless(
  volume: Volume,
  path: string,
  flags: number,
  mode: number,
  credentials: Credentials,
  options: OpenOptions | undefined,
): Promise<OpenFile> {
  if ((flags & 3) === O_RDONLY || (flags & O_CREAT) !== 0)
    throw new FsError('invalidArgument', { op, object: path, detail: 'a file without a name is for writing' });
  const use = { flags, deny: options?.deny };
  const { target } = await walkToExisting(volume, path, { op, credentials, followLast: true, options });
  if (target.type !== FileType.directory) throw new FsError('notDirectory', { op, object: path });
  const node = { op, path, type: FileType.regular, mode, credentials, options };
  return createNameless(volume, target, node, (inode) => {
    inode.linkable = (flags & O_EXCL) === 0;
    return new FsOpenFile(
      volume,
      inode,
      flags,
      credentials,
      held(volume, inode.ino, use),
      use.deny,
      ownersFor(options),
    );
  });
}

/**
 * Opens what a handle once knew, whatever it is called by now: a client's handle outlives its daemon.
 * @throws {FsError} staleHandle when the inode is gone, or has no name any more.
 */
export async function openInode(
  volume: Volume,
  ref: InodeRef,
  flags: number,
  credentials: Credentials,
  options: OpOptions | undefined,
  /** 'trusted': whoever asks for it was allowed to, elsewhere. 'again': the same, of a file that is open here, whether it has a name or not. */
  how: 'checked' | 'trusted' | 'again' = 'checked',
): Promise<FsOpenFile> {
  volume.checkOpen(op);
  const object = `inode ${ref.ino}`;
  if ((flags & 3) === 3) throw new FsError('invalidArgument', { op, object, detail: 'no access mode' });
  // The maps and the inode file are nobody's to open.
  if (ref.ino < FIRST_USER_INODE && ref.ino !== ROOT_DIRECTORY) throw new FsError('notPermitted', { op, object });
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.shared, open: { flags } }], options);
  try {
    const inode = await loadRef(volume, ref, op);
    if (inode.nlink === 0 && !(how === 'again' && inode.openCount > 0))
      throw new FsError('staleHandle', { op, object, detail: 'has been removed' });
    const writes = (flags & 3) !== O_RDONLY;
    if (inode.isDirectory && writes) throw new FsError('isDirectory', { op, object });
    if (inode.type === FileType.symlink) throw new FsError('tooManyLinks', { op, object });
    if (how === 'checked')
      checkAccess(inode, credentials, ((flags & 3) !== O_WRONLY ? READ : 0) | (writes ? WRITE : 0), op, object);
    checkOpenable(inode, op, object);
    volume.inodes.refresh(inode);
    const open = held(volume, ref.ino, { flags });
    // What others asked for is done here, and not sent on.
    return new FsOpenFile(
      volume,
      inode,
      flags,
      credentials,
      open,
      undefined,
      how === 'checked' ? undefined : NO_OWNERS,
    );
  } finally {
    pins.release();
  }
}

/** Fifos, sockets and devices are names here; what is behind them is in some kernel, which opens them itself. */
function checkOpenable(inode: Inode, op: string, object: string): void {
  if (inode.type === FileType.regular || inode.type === FileType.directory) return;
  throw new FsError('noDevice', { op, object, detail: 'the library opens files and directories' });
}

/** A kernel keeps what it reads: that must be covered by this node's own tokens. */
const ownersFor = (options: OpOptions | undefined) => (options?.fromKernel ? NO_OWNERS : undefined);

/** With its open token pinned already. @throws {FsError} staleHandle when somebody is about to free it. */
function held(volume: Volume, ino: InodeNumber, use: OpenUse): TokenPins {
  checkShare(volume, ino, use);
  const open = tryHoldOpen(volume, ino, use);
  if (open === null) throw new FsError('staleHandle', { op, object: `inode ${ino}`, detail: 'is about to be freed' });
  return open;
}

async function openExisting(
  volume: Volume,
  target: LeafEntry,
  path: string,
  use: OpenUse,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<OpenFile> {
  const { flags, deny } = use;
  const writes = (flags & 3) !== O_RDONLY || (flags & O_TRUNC) !== 0;
  if ((flags & O_DIRECTORY) !== 0 && target.type !== FileType.directory)
    throw new FsError('notDirectory', { op, object: path });
  if (target.type === FileType.symlink) throw new FsError('tooManyLinks', { op, object: path, detail: 'O_NOFOLLOW' });
  if (target.type === FileType.directory && (writes || (flags & O_CREAT) !== 0))
    throw new FsError('isDirectory', { op, object: path });
  const pins = await pinInodes(volume, [{ ino: target.ino, status: TokenMode.shared, open: use }], options);
  let file: FsOpenFile;
  let truncates = false;
  try {
    const inode = await loadRef(volume, target, op);
    // Its last name went while it stays open somewhere here: the path has to be walked again.
    if (inode.nlink === 0) throw new FsError('staleHandle', { op, object: path });
    // Who may not write may not keep others from it.
    const mask = ((flags & 3) !== O_WRONLY ? READ : 0) | (writes || deny !== undefined ? WRITE : 0);
    checkAccess(inode, credentials, mask, op, path);
    checkOpenable(inode, op, path);
    if ((flags & O_NOATIME) !== 0 && !isOwner(inode, credentials))
      throw new FsError('notPermitted', { op, object: path, detail: 'O_NOATIME is for the owner' });
    volume.inodes.refresh(inode);
    file = new FsOpenFile(volume, inode, flags, credentials, held(volume, target.ino, use), deny, ownersFor(options));
    if (!writes && inode.type === FileType.regular) volume.neighbours.opened(inode.ino);
    truncates = (flags & O_TRUNC) !== 0 && inode.type === FileType.regular;
    if (truncates) {
      try {
        pins.release();
        await truncateFile(volume, { ...target, inode, credentials, movesAtime: true }, 0, options);
      } catch (error) {
        await file.close();
        throw error;
      }
    }
  } finally {
    if (!truncates) pins.release();
  }
  return file;
}
