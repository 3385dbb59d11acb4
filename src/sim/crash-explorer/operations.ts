import { constants } from 'node:fs';
import { type AllocateMode, type FileSystem, type OpenFile, ROOT } from '../../fs/file-system-api.js';
import { Impossible, type Tree } from './tree-model.js';

/**
 * What a workload is made of. Few names, and arguments chosen so that each kind meets the cases that differ in the code: inline, fragment and blocks,
 * over what exists, between directories, the last name of what is open. The kinds are those that CrashMonkey's ACE has (OSDI 2018), and exchange.
 *
 * A further kind is one more entry in `OPERATIONS`.
 */
const { O_CREAT, O_EXCL, O_RDWR, O_RDONLY, O_APPEND } = constants;

export interface Machine {
  readonly fs: FileSystem;
  /** Opened before the first operation, and not closed: /A/foo. */
  readonly held: OpenFile;
}
/** A model's state, and which of its inodes the long-lived handle has open. */
export interface ModelMachine {
  readonly tree: Tree;
  readonly held: number;
}

export interface Operation {
  /** Names it in a workload's id. */
  readonly id: string;
  readonly kind: string;
  /** @throws {Impossible} */
  model(state: ModelMachine, stamp: number): Tree;
  run(machine: Machine, stamp: number): Promise<void>;
  /** What an fsync after it would name. */
  readonly touches: string;
  /** It makes durable: everything, or all of the log and this file's data. */
  readonly durable?: 'all' | string;
}

/** Bytes that tell which write they are of: never zero. */
export function stamped(stamp: number, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = 1 + ((stamp * 53 + (offset + i) * 7 + ((offset + i) >> 9)) % 255);
  return bytes;
}
/** Through the handle that was open from the beginning. */
const HELD = 'held';

const idOf = (state: ModelMachine, path: string): number => (path === HELD ? state.held : state.tree.lookUp(path));
async function withFile<T>(
  { fs, held }: Machine,
  path: string,
  flags: number,
  body: (file: OpenFile) => Promise<T>,
): Promise<T> {
  if (path === HELD) return body(held);
  const file = await fs.open(path, flags, 0o644, ROOT);
  try {
    return await body(file);
  } finally {
    await file.close();
  }
}
const short = (path: string): string => path.replace(/^\//, '').replaceAll('/', '.') || 'root';

function creat(path: string): Operation {
  return {
    id: `creat-${short(path)}`,
    kind: 'creat',
    touches: path,
    model: ({ tree }) => tree.createFile(path),
    run: async ({ fs }) => (await fs.open(path, O_CREAT | O_EXCL | O_RDWR, 0o644, ROOT)).close(),
  };
}
function mkdir(path: string): Operation {
  return {
    id: `mkdir-${short(path)}`,
    kind: 'mkdir',
    touches: path,
    model: ({ tree }) => tree.mkdir(path),
    run: ({ fs }) => fs.mkdir(path, 0o755, ROOT),
  };
}
function link(existing: string, path: string): Operation {
  return {
    id: `link-${short(existing)}-${short(path)}`,
    kind: 'link',
    touches: path,
    model: ({ tree }) => tree.link(existing, path),
    run: ({ fs }) => fs.link(existing, path, ROOT),
  };
}
function symlink(target: string, path: string): Operation {
  return {
    id: `symlink-${short(path)}`,
    kind: 'symlink',
    touches: parentOf(path),
    model: ({ tree }) => tree.create(path, { type: 'symlink', target }),
    run: ({ fs }) => fs.symlink(target, path, ROOT),
  };
}
const parentOf = (path: string): string => path.slice(0, path.lastIndexOf('/')) || '/';

function rename(from: string, to: string): Operation {
  return {
    id: `rename-${short(from)}-${short(to)}`,
    kind: 'rename',
    touches: to,
    model: ({ tree }) => tree.rename(from, to),
    run: ({ fs }) => fs.rename(from, to, ROOT),
  };
}
function exchange(one: string, other: string): Operation {
  return {
    id: `exchange-${short(one)}-${short(other)}`,
    kind: 'rename',
    touches: other,
    model: ({ tree }) => tree.exchange(one, other),
    run: ({ fs }) => fs.rename(one, other, ROOT, { exchange: true }),
  };
}
function unlink(path: string): Operation {
  return {
    id: `unlink-${short(path)}`,
    kind: 'unlink',
    touches: parentOf(path),
    model: ({ tree }) => tree.unlink(path),
    run: ({ fs }) => fs.unlink(path, ROOT),
  };
}
function rmdir(path: string): Operation {
  return {
    id: `rmdir-${short(path)}`,
    kind: 'rmdir',
    touches: parentOf(path),
    model: ({ tree }) => tree.rmdir(path),
    run: ({ fs }) => fs.rmdir(path, ROOT),
  };
}
function write(path: string, offset: number, length: number): Operation {
  return {
    id: `write-${short(path)}-${offset}-${length}`,
    kind: 'write',
    touches: path,
    model: (state, stamp) => state.tree.write(idOf(state, path), offset, stamped(stamp, offset, length)),
    run: (machine, stamp) =>
      withFile(machine, path, O_RDWR, async (file) => void (await file.write(offset, stamped(stamp, offset, length)))),
  };
}
function append(path: string, length: number): Operation {
  return {
    id: `append-${short(path)}-${length}`,
    kind: 'append',
    touches: path,
    model: (state, stamp) => {
      const id = idOf(state, path);
      return state.tree.write(id, state.tree.file(id).content.length, stamped(stamp, 0, length));
    },
    run: (machine, stamp) =>
      withFile(
        machine,
        path,
        O_RDWR | O_APPEND,
        async (file) => void (await file.write(null, stamped(stamp, 0, length))),
      ),
  };
}
function truncate(path: string, size: number): Operation {
  return {
    id: `truncate-${short(path)}-${size}`,
    kind: 'truncate',
    touches: path,
    model: (state) => {
      const id = idOf(state, path);
      if (state.tree.file(id).content.length === size) throw new Impossible('has this size');
      return state.tree.truncate(id, size);
    },
    run: (machine) => withFile(machine, path, O_RDWR, (file) => file.truncate(size)),
  };
}
function fallocate(path: string, mode: AllocateMode, offset: number, length: number, keepSize = false): Operation {
  return {
    id: `${mode}${keepSize ? 'Keep' : ''}-${short(path)}-${offset}-${length}`,
    kind: 'fallocate',
    touches: path,
    model: (state) => {
      const id = idOf(state, path);
      const { tree } = state;
      const size = tree.file(id).content.length;
      const end = offset + length;
      const grown = end > size && !keepSize && mode !== 'punchHole' ? tree.truncate(id, end) : tree;
      return mode === 'allocate' ? grown : grown.zero(id, offset, end);
    },
    run: (machine) => withFile(machine, path, O_RDWR, (file) => file.allocate(mode, offset, length, { keepSize })),
  };
}
function setxattr(path: string, name: string, length: number | null): Operation {
  const value = (stamp: number): Uint8Array | null => (length === null ? null : stamped(stamp, 0, length));
  return {
    id: `setxattr-${short(path)}-${name.slice(5)}-${length ?? 'none'}`,
    kind: 'setxattr',
    touches: path,
    model: ({ tree }, stamp) => tree.setXattr(tree.lookUp(path), name, value(stamp)),
    run: ({ fs }, stamp) => fs.setXattr(path, true, name, value(stamp), ROOT),
  };
}
export function fsync(path: string): Operation {
  return {
    id: `fsync-${short(path)}`,
    kind: 'fsync',
    touches: path,
    durable: path,
    model: (state) => {
      const inode = state.tree.get(idOf(state, path));
      if (inode === undefined || inode.type === 'symlink') throw new Impossible('is not opened');
      return state.tree;
    },
    run: (machine) => withFile(machine, path, O_RDONLY, (file) => file.sync(false)),
  };
}
const sync: Operation = {
  id: 'sync',
  kind: 'sync',
  touches: '/',
  durable: 'all',
  model: ({ tree }) => tree,
  run: ({ fs }) => fs.sync(),
};

/** What is there when a workload begins, durably. Sizes: /foo a fragment, /A/foo inline (and open), /B/big a block and a fragment. */
export const SETUP: readonly Operation[] = [
  mkdir('/A'),
  mkdir('/B'),
  mkdir('/A/C'),
  mkdir('/E'),
  creat('/foo'),
  write('/foo', 0, 9_000),
  setxattr('/foo', 'user.big', 5_000),
  creat('/A/foo'),
  write('/A/foo', 0, 700),
  link('/A/foo', '/B/hard'),
  creat('/A/bar'),
  write('/A/bar', 0, 30_000),
  creat('/B/big'),
  write('/B/big', 0, 2 ** 20 + 5_000),
];
export const HELD_PATH = '/A/foo';
/** Many files that no workload knows of. */
export const CROWD_PATH = '/crowd';

/** Fsync of a file or directory; which of them make sense depends on the state. */
const SYNCED = ['/foo', '/A/foo', HELD, '/B/big', '/A', '/', '/new', '/D'];

export const OPERATIONS: readonly Operation[] = [
  creat('/new'),
  creat('/A/new'),
  creat('/D/new'),
  mkdir('/D'),
  mkdir('/A/D'),
  link('/foo', '/A/lnk'),
  link('/A/foo', '/lnk'),
  symlink('A/foo', '/A/sym'),
  symlink(`/${'t'.repeat(3_700)}`, '/sym'),
  rename('/foo', '/moved'),
  rename('/foo', '/A/foo'),
  rename('/A/bar', '/foo'),
  rename('/new', '/foo'),
  rename('/A/foo', '/B/foo'),
  rename('/A', '/moved'),
  rename('/A/C', '/E'),
  rename('/A/C', '/B/C'),
  exchange('/foo', '/A/foo'),
  exchange('/A', '/B'),
  unlink('/foo'),
  unlink('/A/foo'),
  unlink('/B/hard'),
  unlink('/B/big'),
  unlink('/new'),
  rmdir('/A/C'),
  rmdir('/E'),
  rmdir('/D'),
  write('/foo', 2_000, 4_096),
  write('/foo', 8_000, 3_000),
  write('/foo', 100_000, 500),
  write('/B/big', 500_000, 9_000),
  write('/new', 0, 6_000),
  write(HELD, 100, 200),
  write(HELD, 600, 8_000),
  append('/foo', 300),
  append('/A/foo', 4_000),
  append('/B/big', 5_000),
  truncate('/foo', 0),
  truncate('/foo', 5_000),
  truncate('/foo', 50_000),
  truncate('/B/big', 5_000),
  truncate('/A/foo', 20_000),
  truncate('/A/bar', 1_000),
  fallocate('/foo', 'allocate', 5_000, 40_000),
  fallocate('/A/foo', 'allocate', 0, 20_000, true),
  fallocate('/B/big', 'punchHole', 2 ** 20, 8_000),
  fallocate('/B/big', 'punchHole', 0, 2 ** 20),
  fallocate('/foo', 'punchHole', 1_000, 5_000),
  fallocate('/A/bar', 'zeroRange', 2_000, 40_000),
  setxattr('/foo', 'user.small', 40),
  setxattr('/foo', 'user.big', 6_000),
  setxattr('/foo', 'user.big', null),
  setxattr('/A', 'user.small', 40),
  ...SYNCED.map(fsync),
  sync,
];
