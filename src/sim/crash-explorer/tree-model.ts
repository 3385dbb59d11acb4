/**
 * What a tree of files should be after a list of operations: the oracle's own file system. Names, links, contents and attributes; no times, no permissions, no
 * errors but "this can't be done here", which keeps a workload out of the list.
 *
 * Invariant: a state is never changed: an operation makes a new one, which shares what is the same. So two states have the same contents of a file exactly
 * when they have the same array.
 */
export type ModelInode = ModelFile | ModelDirectory | ModelLink;
export interface ModelFile {
  readonly type: 'file';
  readonly nlink: number;
  readonly content: Uint8Array;
  readonly xattrs: ReadonlyMap<string, Uint8Array>;
}
export interface ModelDirectory {
  readonly type: 'directory';
  readonly names: ReadonlyMap<string, number>;
  readonly xattrs: ReadonlyMap<string, Uint8Array>;
}
export interface ModelLink {
  readonly type: 'symlink';
  readonly target: string;
}

/** It can't be done in this state. */
export class Impossible extends Error {}
function must<T>(value: T | null | undefined | false, why: string): T {
  if (value === null || value === undefined || value === false) throw new Impossible(why);
  return value;
}

const NONE: ReadonlyMap<string, Uint8Array> = new Map();
export const ROOT_ID = 1;

export class Tree {
  private constructor(
    private readonly inodes: ReadonlyMap<number, ModelInode>,
    private readonly nextId: number,
  ) {}

  static empty(): Tree {
    return new Tree(new Map([[ROOT_ID, { type: 'directory', names: new Map(), xattrs: NONE }]]), ROOT_ID + 1);
  }

  get(id: number): ModelInode | undefined {
    return this.inodes.get(id);
  }
  ids(): Iterable<number> {
    return this.inodes.keys();
  }

  /** @throws {Impossible} */
  lookUp(path: string): number {
    let id = ROOT_ID;
    for (const name of path.split('/').filter((part) => part !== '')) {
      const inode = this.inodes.get(id)!;
      id = must(inode.type === 'directory' && inode.names.get(name), `${path} is not there`);
    }
    return id;
  }
  has(path: string): boolean {
    try {
      this.lookUp(path);
      return true;
    } catch {
      return false;
    }
  }
  file(id: number): ModelFile {
    const inode = this.inodes.get(id);
    return must(inode?.type === 'file' && inode, 'is not a file');
  }

  #with(changes: readonly (readonly [number, ModelInode])[], nextId = this.nextId): Tree {
    const inodes = new Map(this.inodes);
    for (const [id, inode] of changes) inodes.set(id, inode);
    return new Tree(inodes, nextId);
  }
  #directory(id: number): ModelDirectory {
    const inode = this.inodes.get(id);
    return must(inode?.type === 'directory' && inode, 'is not a directory');
  }
  #parent(path: string): { readonly id: number; readonly name: string } {
    const at = path.lastIndexOf('/');
    const id = this.lookUp(path.slice(0, at));
    this.#directory(id);
    return { id, name: path.slice(at + 1) };
  }
  /** With an entry set, or taken away. */
  #entry(path: string, id: number | null): Tree {
    const parent = this.#parent(path);
    const directory = this.#directory(parent.id);
    const names = new Map(directory.names);
    if (id === null) names.delete(parent.name);
    else names.set(parent.name, id);
    return this.#with([[parent.id, { ...directory, names }]]);
  }
  #links(id: number, by: number): Tree {
    const file = this.inodes.get(id)!;
    return file.type === 'file' ? this.#with([[id, { ...file, nlink: file.nlink + by }]]) : this;
  }

  create(path: string, inode: ModelInode): Tree {
    this.#parent(path);
    if (this.has(path)) throw new Impossible(`${path} is there`);
    const id = this.nextId;
    return this.#with([[id, inode]], id + 1).#entry(path, id);
  }
  createFile(path: string): Tree {
    return this.create(path, { type: 'file', nlink: 1, content: new Uint8Array(0), xattrs: NONE });
  }
  mkdir(path: string): Tree {
    return this.create(path, { type: 'directory', names: new Map(), xattrs: NONE });
  }
  link(existing: string, path: string): Tree {
    const id = this.lookUp(existing);
    this.file(id);
    if (this.has(path)) throw new Impossible(`${path} is there`);
    return this.#entry(path, id).#links(id, 1);
  }
  unlink(path: string): Tree {
    const id = this.lookUp(path);
    if (this.inodes.get(id)!.type === 'directory') throw new Impossible('is a directory');
    return this.#entry(path, null).#links(id, -1);
  }
  rmdir(path: string): Tree {
    const id = this.lookUp(path);
    if (id === ROOT_ID || this.#directory(id).names.size > 0) throw new Impossible('is not empty');
    return this.#entry(path, null);
  }
  rename(from: string, to: string): Tree {
    const id = this.lookUp(from);
    this.#checkMove(from, to);
    if (!this.has(to)) return this.#entry(from, null).#entry(to, id);
    const over = this.lookUp(to);
    if (over === id) throw new Impossible('both are the same file');
    const isDirectory = this.inodes.get(id)!.type === 'directory';
    if (isDirectory !== (this.inodes.get(over)!.type === 'directory')) throw new Impossible('of two kinds');
    const without = isDirectory ? this.rmdir(to) : this.unlink(to);
    return without.#entry(from, null).#entry(to, id);
  }
  exchange(one: string, other: string): Tree {
    const ids = [this.lookUp(one), this.lookUp(other)] as const;
    if (ids[0] === ids[1]) throw new Impossible('both are the same file');
    this.#checkMove(one, other);
    this.#checkMove(other, one);
    return this.#entry(one, ids[1]).#entry(other, ids[0]);
  }
  #checkMove(from: string, to: string): void {
    if (to === from || to.startsWith(`${from}/`)) throw new Impossible('into itself');
    this.#parent(to);
  }

  /** With these bytes at this place; a gap reads as zeros. */
  write(id: number, offset: number, bytes: Uint8Array): Tree {
    const file = this.file(id);
    const content = new Uint8Array(Math.max(file.content.length, offset + bytes.length));
    content.set(file.content);
    content.set(bytes, offset);
    return this.#with([[id, { ...file, content }]]);
  }
  truncate(id: number, size: number): Tree {
    const file = this.file(id);
    const content = new Uint8Array(size);
    content.set(file.content.subarray(0, size));
    return this.#with([[id, { ...file, content }]]);
  }
  /** Zeros in a range of what is there. */
  zero(id: number, from: number, to: number): Tree {
    const file = this.file(id);
    const content = file.content.slice();
    content.fill(0, from, Math.min(to, content.length));
    return this.#with([[id, { ...file, content }]]);
  }
  setXattr(id: number, name: string, value: Uint8Array | null): Tree {
    const inode = this.inodes.get(id);
    const target = must(inode !== undefined && inode.type !== 'symlink' && inode, 'has no attributes');
    const xattrs = new Map(target.xattrs);
    if (value === null) must(xattrs.delete(name), 'has no such attribute');
    else xattrs.set(name, value);
    return this.#with([[id, { ...target, xattrs }]]);
  }

  /** Names, types, links, attributes and targets, but no contents of files; with where each file is. */
  describe(): { readonly text: string; readonly files: ReadonlyMap<string, number> } {
    const found: Described[] = [];
    const files = new Map<string, number>();
    const walk = (path: string, id: number): void => {
      const inode = this.inodes.get(id)!;
      if (inode.type === 'file') files.set(path, id);
      found.push({
        path,
        identity: id,
        type: inode.type,
        nlink: inode.type === 'file' ? inode.nlink : null,
        target: inode.type === 'symlink' ? inode.target : null,
        xattrs: inode.type === 'symlink' ? NONE : inode.xattrs,
      });
      if (inode.type === 'directory') for (const [name, child] of inode.names) walk(`${path}/${name}`, child);
    };
    walk('', ROOT_ID);
    return { text: describe(found), files };
  }
}

/** Of one name; `identity` is the same for names of the same inode. */
export interface Described {
  readonly path: string;
  readonly identity: number;
  readonly type: string;
  readonly nlink: number | null;
  readonly target: string | null;
  readonly xattrs: ReadonlyMap<string, Uint8Array>;
}

/** A text that two trees have in common exactly when they look the same. */
export function describe(found: Described[]): string {
  const numbers = new Map<number, number>();
  return found
    .sort((a, b) => (a.path < b.path ? -1 : 1))
    .map(({ path, identity, type, nlink, target, xattrs }) => {
      const number = numbers.get(identity) ?? numbers.size;
      numbers.set(identity, number);
      const parts = [`${path || '/'} is ${type} #${number}`];
      if (nlink !== null) parts.push(`${nlink} links`);
      if (target !== null)
        parts.push(`to ${target.length > 40 ? `${target.length} bytes ${target.slice(0, 8)}` : target}`);
      for (const [name, value] of [...xattrs].sort(([a], [b]) => (a < b ? -1 : 1)))
        parts.push(`${name}=${value.length}:${value[0]}`);
      return parts.join(', ');
    })
    .join('\n');
}
