import { constants } from 'node:fs';
import { FsError } from '../common/errors.js';
import type { AttributeChanges, Credentials, FileSystem, OpenFile, OpOptions } from '../fs/file-system-api.js';
import { FileType } from '../fs/file-system-api.js';
import type { OpArgs, WireChanges } from './ops.js';

/**
 * Operations that are several of the file system's, done on the engine's side so that they cost the client one exchange.
 * An error says at which step it happened (`op`: open, read, write, fsync), as node's own compound functions do.
 */
const COPY_BYTES = 64 << 20;
/** Read beyond the size that stat told, to see the end of file without a second read. */
const PROBE_BYTES = 1;
/** First room for files that say they are empty and may not be. */
const UNKNOWN_SIZE_BYTES = 16_384;

async function step<T>(op: string, object: string | undefined, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const known = FsError.from(error, op);
    // A step on a handle has no path; what failed below (an NSD's sector, an inode) is said all the same.
    const below = object === undefined && known.object !== undefined ? `, ${known.object}` : '';
    const detail = below === '' ? known.detail : `${known.detail ?? known.reason}${below}`;
    throw new FsError(known.reason, { op, object, detail, cause: known });
  }
}

/** Closes whatever the outcome of `use`; an error of `use` wins over one of closing. */
async function withOpen<T>(file: OpenFile, use: (file: OpenFile) => Promise<T>): Promise<T> {
  let result: T;
  try {
    result = await use(file);
  } catch (error) {
    await file.close().catch(() => undefined);
    throw error;
  }
  await step('close', undefined, file.close());
  return result;
}

/** The whole file, or null when it is larger than `limitBytes`. */
export async function readWhole(
  fs: FileSystem,
  path: string,
  flags: number,
  limitBytes: number,
  who: Credentials,
  until: OpOptions,
): Promise<Uint8Array | null> {
  const file = await step('open', path, fs.open(path, flags, 0o666, who, until));
  return withOpen(file, async () => {
    const { sizeBytes, type } = await step('fstat', undefined, file.stat(until));
    if (type === FileType.directory) throw new FsError('isDirectory', { op: 'read' });
    if (sizeBytes > limitBytes) return null;
    let bytes = new Uint8Array((sizeBytes === 0 ? UNKNOWN_SIZE_BYTES : sizeBytes) + PROBE_BYTES);
    let filled = 0;
    for (;;) {
      const count = await step('read', undefined, file.read(filled, bytes.subarray(filled), until));
      filled += count;
      // One read that ends short saw the end of file; only then are the bytes of one moment.
      if (count === 0 || filled < bytes.length) return bytes.subarray(0, filled);
      if (filled > limitBytes) return null;
      const grown = new Uint8Array(bytes.length * 2);
      grown.set(bytes);
      bytes = grown;
    }
  });
}

export async function writeAll(file: OpenFile, bytes: Uint8Array, append: boolean, until: OpOptions): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    const rest = done === 0 ? bytes : bytes.subarray(done);
    const { lengthBytes } = await file.write(append ? null : done, rest, until);
    if (lengthBytes === 0) throw new FsError('internal', { op: 'write', detail: 'a write made no progress' });
    done += lengthBytes;
  }
}

export async function writeWhole(
  fs: FileSystem,
  path: string,
  { flags, mode, sync, changes }: Omit<OpArgs<'writeFile'>, 'path'>,
  bytes: Uint8Array,
  who: Credentials,
  until: OpOptions,
): Promise<void> {
  const file = await step('open', path, fs.open(path, flags, mode, who, until));
  await withOpen(file, async () => {
    await step('write', undefined, writeAll(file, bytes, (flags & constants.O_APPEND) !== 0, until));
    if (changes !== undefined) await step('futime', undefined, file.setAttributes(toChanges(changes), who, until));
    if (sync) await step('fsync', undefined, file.sync(false, until));
  });
}

/** As mkdir -p. @returns the first directory made, null when all were there. */
export async function makeDirectories(
  fs: FileSystem,
  path: string,
  mode: number,
  who: Credentials,
  until: OpOptions,
): Promise<string | null> {
  const names = path.split('/').filter((name) => name !== '');
  const prefix = (count: number): string => `/${names.slice(0, count).join('/')}`;
  // Downwards from the first directory that is missing: usually the last one or none, so look from the end.
  let have = names.length;
  let first: string | null = null;
  while (have > 0) {
    try {
      await fs.mkdir(prefix(have), mode, who, until);
      first = prefix(have);
      break;
    } catch (error) {
      if (!FsError.is(error)) throw error;
      if (error.code === 'EEXIST') {
        const found = await fs.stat(prefix(have), who, until);
        if (found.type === FileType.directory) break;
        throw new FsError(have === names.length ? 'exists' : 'notDirectory', { op: 'mkdir', object: path });
      }
      if (error.code !== 'ENOENT') throw error;
      have--;
    }
  }
  for (let count = have + 1; count <= names.length; count++) {
    try {
      await fs.mkdir(prefix(count), mode, who, until);
      first ??= prefix(count);
    } catch (error) {
      // Somebody else, here or on another node, was making the same tree.
      if (!FsError.is(error) || error.code !== 'EEXIST') throw error;
    }
  }
  return first;
}

export async function copyFile(
  fs: FileSystem,
  from: string,
  to: string,
  mode: number,
  who: Credentials,
  until: OpOptions,
): Promise<void> {
  if ((mode & constants.COPYFILE_FICLONE_FORCE) !== 0)
    throw new FsError('notSupported', { op: 'copyfile', object: from, detail: 'no clones in this format' });
  const source = await fs.open(from, constants.O_RDONLY, 0, who, until);
  await withOpen(source, async () => {
    const found = await source.stat(until);
    if (found.type === FileType.directory) throw new FsError('isDirectory', { op: 'copyfile', object: from });
    const exclusive = (mode & constants.COPYFILE_EXCL) !== 0 ? constants.O_EXCL : 0;
    const flags = constants.O_WRONLY | constants.O_CREAT | exclusive;
    const target = await fs.open(to, flags, found.mode, who, until);
    await withOpen(target, async () => {
      const existing = await target.stat(until);
      if (existing.ino === found.ino) return;
      // Not O_TRUNC at open: a copy onto itself would be emptied.
      await target.truncate(0, until);
      try {
        for (let at = 0; ; ) {
          const count = await source.copyRange(at, target, at, COPY_BYTES, until);
          if (count === 0) break;
          at += count;
        }
      } catch (error) {
        // Half a copy is none, as node's own has it.
        await fs.unlink(to, who).catch(() => undefined);
        throw error;
      }
      if ((existing.mode & 0o7777) !== (found.mode & 0o7777) && (who.uid === 0 || who.uid === existing.uid))
        await target.setAttributes({ mode: found.mode & 0o7777 }, who, until);
    });
  });
}

const wireTime = (time: string): bigint | 'now' => (time === 'now' ? 'now' : BigInt(time));

export function toChanges(changes: WireChanges): AttributeChanges {
  return {
    ...(changes.mode === undefined ? {} : { mode: changes.mode }),
    ...(changes.uid === undefined ? {} : { uid: changes.uid }),
    ...(changes.gid === undefined ? {} : { gid: changes.gid }),
    ...(changes.atimeNs === undefined ? {} : { atimeNs: wireTime(changes.atimeNs) }),
    ...(changes.mtimeNs === undefined ? {} : { mtimeNs: wireTime(changes.mtimeNs) }),
  };
}
