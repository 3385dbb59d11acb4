import { constants } from 'node:fs';
import { SECTOR_BYTES } from '../../common/units.js';
import type { CheckReport } from '../../fs/check/check.js';
import { type FileSystem, FileType, ROOT } from '../../fs/file-system-api.js';
import { CROWD_PATH } from './operations.js';
import type { Progress } from './run-workload.js';
import { type Described, describe, type Tree } from './tree-model.js';
import type { Workload } from './workloads.js';

/**
 * Judges what a recovery has left.
 *
 * Names, links, attributes: as after some number of whole operations, at least those that were synced, at most those begun. That is more than POSIX asks for; the log keeps
 * the order (docs/log.md). So a rename is there or not, never half.
 * Contents: of each file for itself, nothing older than its last fsync. The size is one of those that it had since; each byte is one that was there since, or
 * zero where the file did not reach for a time. A sector that an unflushed write over it has torn may be unreadable (S1), none beside it.
 */
export interface FoundFile {
  readonly content: Uint8Array;
  /** Sectors that can't be read. */
  readonly unreadable: readonly number[];
}
export interface Found {
  readonly text: string;
  readonly files: ReadonlyMap<string, FoundFile>;
  readonly report: CheckReport;
}

/** Reads everything. */
export async function lookAt(fs: FileSystem): Promise<Omit<Found, 'report'>> {
  const found: Described[] = [];
  const files = new Map<string, FoundFile>();
  const byInode = new Map<number, FoundFile>();
  const walk = async (path: string): Promise<void> => {
    const { ino, type, nlink } = await fs.lstat(path === '' ? '/' : path, ROOT);
    const isLink = type === FileType.symlink;
    const xattrs = new Map<string, Uint8Array>();
    if (!isLink)
      for (const name of await fs.listXattrs(path === '' ? '/' : path, false, ROOT))
        xattrs.set(name, await fs.getXattr(path === '' ? '/' : path, false, name, ROOT));
    found.push({
      path,
      identity: ino,
      type: isLink ? 'symlink' : type === FileType.directory ? 'directory' : 'file',
      nlink: type === FileType.regular ? nlink : null,
      target: isLink ? await fs.readlink(path, ROOT) : null,
      xattrs,
    });
    if (type === FileType.regular) {
      const file = byInode.get(ino) ?? (await readFile(fs, path));
      byInode.set(ino, file);
      files.set(path, file);
    }
    if (type === FileType.directory)
      for (const { name } of await fs.readdir(path === '' ? '/' : path, ROOT))
        if (name !== '.' && name !== '..' && `${path}/${name}` !== CROWD_PATH) await walk(`${path}/${name}`);
  };
  await walk('');
  return { text: describe(found), files };
}

async function readFile(fs: FileSystem, path: string): Promise<FoundFile> {
  const file = await fs.open(path, constants.O_RDONLY, 0, ROOT);
  try {
    const { sizeBytes } = await file.stat();
    const content = new Uint8Array(sizeBytes);
    try {
      await file.read(0, content);
      return { content, unreadable: [] };
    } catch {
      // Sector by sector: the rest has to be right.
    }
    const unreadable: number[] = [];
    for (let at = 0; at < sizeBytes; at += SECTOR_BYTES)
      await file.read(at, content.subarray(at, Math.min(at + SECTOR_BYTES, sizeBytes))).catch(() => {
        unreadable.push(at / SECTOR_BYTES);
      });
    return { content, unreadable };
  } finally {
    await file.close();
  }
}

/** Null, or what is wrong. */
export function judge(workload: Workload, progress: Progress, found: Found, torn: boolean): string | null {
  const { problems, lostSubBlocks, lostInodes } = found.report;
  if (problems.length > 0) return `the check finds: ${problems.slice(0, 5).join('; ')}`;
  if (lostSubBlocks > 0 || lostInodes > 0) return `${lostSubBlocks} sub-blocks and ${lostInodes} inodes are lost`;
  let wrong: string | null = null;
  for (let state = progress.durable; state <= progress.begun; state++) {
    const tree = described(workload.states[state]!);
    if (tree.text !== found.text) continue;
    const fault = contentsFault(workload, progress, tree.files, found, torn);
    if (fault === null) return null;
    wrong ??= fault;
  }
  if (wrong !== null) return wrong;
  const [least, most] = [described(workload.states[progress.durable]!), described(workload.states[progress.begun]!)];
  return [
    `the tree is of none of the states ${progress.durable} to ${progress.begun}:`,
    found.text,
    `instead of at least:`,
    least.text,
    ...(most.text === least.text ? [] : ['and at most:', most.text]),
  ].join('\n');
}

const descriptions = new WeakMap<Tree, ReturnType<Tree['describe']>>();
function described(tree: Tree): ReturnType<Tree['describe']> {
  let description = descriptions.get(tree);
  if (description === undefined) {
    description = tree.describe();
    descriptions.set(tree, description);
  }
  return description;
}

function contentsFault(
  { states }: Workload,
  { begun, contents }: Progress,
  expected: ReadonlyMap<string, number>,
  found: Found,
  torn: boolean,
): string | null {
  for (const [path, id] of expected) {
    const versions = new Set<Uint8Array>();
    for (let state = contents.get(id) ?? 0; state <= begun; state++) {
      const inode = states[state]!.get(id);
      if (inode?.type === 'file') versions.add(inode.content);
    }
    const fault = contentFault([...versions], found.files.get(path)!, torn);
    if (fault !== null) return `${path}: ${fault}`;
  }
  return null;
}

function contentFault(
  versions: readonly Uint8Array[],
  { content, unreadable }: FoundFile,
  torn: boolean,
): string | null {
  if (unreadable.length === 0 && versions.some((version) => Buffer.compare(version, content) === 0)) return null;
  if (!versions.some(({ length }) => length === content.length))
    return `${content.length} bytes, instead of ${versions.map(({ length }) => length).join(' or ')}`;
  const bad = new Set(unreadable);
  for (let at = 0; at < content.length; at++) {
    const sector = Math.floor(at / SECTOR_BYTES);
    if (bad.has(sector)) {
      const start = sector * SECTOR_BYTES;
      const ofSector = versions.map((version) => Buffer.from(version.subarray(start, start + SECTOR_BYTES)));
      const isWritten = ofSector.some((bytes) => !bytes.equals(ofSector[0]!));
      if (!torn || !isWritten) return `sector ${sector} can't be read`;
      at = (sector + 1) * SECTOR_BYTES - 1;
      continue;
    }
    const byte = content[at];
    if (versions.some((version) => (at < version.length ? version[at] === byte : byte === 0))) continue;
    const allowed = versions.map((version) => (at < version.length ? version[at] : 'nothing'));
    return `byte ${at} is ${byte}, instead of ${allowed.join(' or ')}`;
  }
  return null;
}
