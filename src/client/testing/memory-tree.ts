import { FsError, type Reason } from '../../common/errors.js';
import { type InodeNumber, inodeNumber } from '../../common/ids.js';
import {
  type AttributeChanges,
  type Attributes,
  type Credentials,
  FileType,
  UNCHANGED_ID,
  type XattrSetOptions,
} from '../../fs/file-system-api.js';

/** Inodes in memory and the walk from a path to one of them, as POSIX says: links followed, permissions checked. */
export interface MemoryNode {
  readonly ino: InodeNumber;
  readonly generation: number;
  readonly type: FileType;
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  rdev: number;
  atimeNs: bigint;
  mtimeNs: bigint;
  ctimeNs: bigint;
  readonly birthtimeNs: bigint;
  bytes: Uint8Array;
  sizeBytes: number;
  readonly target: string;
  readonly xattrs: Map<string, Uint8Array>;
  readonly entries: Map<string, MemoryNode>;
  parent: MemoryNode | null;
  /** Open files; an inode without names lives as long as one is open. */
  opens: number;
}

/** Where a path leads: the directory, the last name in it, and what has that name (null: nothing). */
export interface Place {
  readonly directory: MemoryNode;
  readonly name: string;
  readonly node: MemoryNode | null;
  /** The path ended in a slash: it means a directory. */
  readonly wantsDirectory: boolean;
}

const LINKS_MAX = 40;
const NAME_BYTES_MAX = 255;
export const MAY_READ = 4;
export const MAY_WRITE = 2;
export const MAY_SEARCH = 1;

export const fail = (reason: Reason, op: string, object?: string): FsError => new FsError(reason, { op, object });

export function mayAccess(node: MemoryNode, who: Credentials, want: number): boolean {
  if (who.uid === 0) return (want & MAY_SEARCH) === 0 || node.type === FileType.directory || (node.mode & 0o111) !== 0;
  let shift = 0;
  if (who.uid === node.uid) shift = 6;
  else if (who.gid === node.gid || who.groups.includes(node.gid)) shift = 3;
  return ((node.mode >> shift) & want) === want;
}

export class MemoryTree {
  readonly root: MemoryNode;
  readonly #byIno = new Map<number, MemoryNode>();
  #nextIno = 2;

  constructor(readonly wallNs: () => bigint) {
    this.root = this.create(FileType.directory, 0o755, { uid: 0, gid: 0, groups: [], umask: 0 });
    this.root.parent = this.root;
  }

  get inodeCount(): number {
    return this.#byIno.size;
  }

  create(type: FileType, mode: number, who: Credentials, target = ''): MemoryNode {
    const now = this.wallNs();
    const node: MemoryNode = {
      ino: inodeNumber(this.#nextIno++),
      generation: 1,
      type,
      mode: type === FileType.symlink ? 0o777 : mode & 0o7777 & ~who.umask,
      nlink: type === FileType.directory ? 2 : 1,
      uid: who.uid,
      gid: who.gid,
      rdev: 0,
      atimeNs: now,
      mtimeNs: now,
      ctimeNs: now,
      birthtimeNs: now,
      bytes: new Uint8Array(0),
      sizeBytes: Buffer.byteLength(target),
      target,
      entries: new Map(),
      xattrs: new Map(),
      parent: null,
      opens: 0,
    };
    this.#byIno.set(node.ino, node);
    return node;
  }

  get(ino: number): MemoryNode | undefined {
    return this.#byIno.get(ino);
  }

  forgetUnused(node: MemoryNode): void {
    if (node.nlink === 0 && node.opens === 0) this.#byIno.delete(node.ino);
  }

  /** The place a path names. `follow`: through a link that is its last component. */
  walk(path: string, who: Credentials, op: string, follow: boolean): Place {
    if (!path.startsWith('/') || path.includes('\0')) throw fail('invalidArgument', op, path);
    if (Buffer.byteLength(path) > 4096) throw fail('nameTooLong', op, path);
    let directory = this.root;
    let names = path.split('/').filter((name) => name !== '');
    let wantsDirectory = path.endsWith('/') || path.endsWith('/.') || path.endsWith('/..');
    let links = 0;
    let node: MemoryNode | null = this.root;
    let name = '';
    while (names.length > 0) {
      name = names.shift()!;
      if (directory.type !== FileType.directory) throw fail('notDirectory', op, path);
      if (!mayAccess(directory, who, MAY_SEARCH)) throw fail('accessDenied', op, path);
      if (Buffer.byteLength(name) > NAME_BYTES_MAX) throw fail('nameTooLong', op, path);
      const last = names.length === 0;
      if (name === '.' || name === '..') node = name === '.' ? directory : directory.parent!;
      else node = directory.entries.get(name) ?? null;
      if (node !== null && node.type === FileType.symlink && (!last || follow || wantsDirectory)) {
        if (++links > LINKS_MAX) throw fail('tooManyLinks', op, path);
        if (node.target.startsWith('/')) directory = this.root;
        names = [...node.target.split('/').filter((n) => n !== ''), ...names];
        if (last && node.target.endsWith('/')) wantsDirectory = true;
        node = directory;
        name = '';
        continue;
      }
      if (last) break;
      if (node === null) throw fail('notFound', op, path);
      if (node.type !== FileType.directory) throw fail('notDirectory', op, path);
      directory = node;
    }
    if (node !== null && wantsDirectory && node.type !== FileType.directory) throw fail('notDirectory', op, path);
    return { directory, name, node, wantsDirectory };
  }

  find(path: string, who: Credentials, op: string, follow = true): MemoryNode {
    const { node } = this.walk(path, who, op, follow);
    if (node === null) throw fail('notFound', op, path);
    return node;
  }

  insert(directory: MemoryNode, name: string, node: MemoryNode): void {
    directory.entries.set(name, node);
    if (node.type === FileType.directory) {
      node.parent = directory;
      directory.nlink++;
    }
    directory.mtimeNs = directory.ctimeNs = this.wallNs();
    directory.sizeBytes = directory.entries.size;
  }

  /** Takes the name away; not the inode's count of links. */
  remove(directory: MemoryNode, name: string, node: MemoryNode): void {
    directory.entries.delete(name);
    if (node.type === FileType.directory) directory.nlink--;
    directory.mtimeNs = directory.ctimeNs = node.ctimeNs = this.wallNs();
    directory.sizeBytes = directory.entries.size;
  }

  /** One name less; the last one gone, the inode goes with its last open file. */
  dropLink(node: MemoryNode): void {
    node.nlink = node.type === FileType.directory ? 0 : node.nlink - 1;
    this.forgetUnused(node);
  }

  /** May names be changed here? A sticky directory lets only owners take away. */
  checkNames(directory: MemoryNode, who: Credentials, op: string, path: string, victim?: MemoryNode): void {
    if (!mayAccess(directory, who, MAY_WRITE | MAY_SEARCH)) throw fail('accessDenied', op, path);
    const sticky = (directory.mode & 0o1000) !== 0;
    if (sticky && victim !== undefined && who.uid !== 0 && who.uid !== victim.uid && who.uid !== directory.uid)
      throw fail('notPermitted', op, path);
  }

  change(node: MemoryNode, changes: AttributeChanges, who: Credentials, op: string, path?: string): Attributes {
    const owner = who.uid === 0 || who.uid === node.uid;
    if (!owner) throw fail('notPermitted', op, path);
    const uid = changes.uid === UNCHANGED_ID ? undefined : changes.uid;
    const gid = changes.gid === UNCHANGED_ID ? undefined : changes.gid;
    if (uid !== undefined && uid !== node.uid && who.uid !== 0) throw fail('notPermitted', op, path);
    if (changes.mode !== undefined) node.mode = changes.mode & 0o7777;
    node.uid = uid ?? node.uid;
    node.gid = gid ?? node.gid;
    const now = this.wallNs();
    if (changes.atimeNs !== undefined) node.atimeNs = changes.atimeNs === 'now' ? now : changes.atimeNs;
    if (changes.mtimeNs !== undefined) node.mtimeNs = changes.mtimeNs === 'now' ? now : changes.mtimeNs;
    node.ctimeNs = now;
    return this.attributes(node);
  }

  getXattr(node: MemoryNode, name: string): Uint8Array {
    const value = node.xattrs.get(name);
    if (value === undefined) throw fail('noAttribute', 'getxattr');
    return value;
  }
  setXattr(node: MemoryNode, name: string, value: Uint8Array | null, how: XattrSetOptions = {}): void {
    if (node.xattrs.has(name) && how.create === true) throw fail('exists', 'setxattr');
    if (!node.xattrs.has(name) && (how.replace === true || value === null)) throw fail('noAttribute', 'setxattr');
    if (value === null) node.xattrs.delete(name);
    else node.xattrs.set(name, value.slice());
    node.ctimeNs = this.wallNs();
  }

  attributes(node: MemoryNode): Attributes {
    const { ino, generation, type, mode, nlink, uid, gid, rdev, sizeBytes, atimeNs, mtimeNs, ctimeNs, birthtimeNs } =
      node;
    const allocatedBytes = Math.ceil(sizeBytes / 4096) * 4096;
    const times = { atimeNs, mtimeNs, ctimeNs, birthtimeNs };
    return { ino, generation, type, mode, nlink, uid, gid, rdev, sizeBytes, allocatedBytes, ...times };
  }
}
