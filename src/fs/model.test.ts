import { constants } from 'node:fs';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { type FileSystem, ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume } from './testing.js';

/**
 * Random operations, on one or two nodes, against a tree in memory that says what POSIX says; afterwards the NSDs are checked and mounted
 * again.
 */
const { O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_APPEND } = constants;

type Node =
  | { kind: 'file'; content: Buffer; links: number }
  | { kind: 'dir'; entries: Map<string, Node> }
  | { kind: 'link'; target: string };
function fail(code: string): never {
  throw Object.assign(new Error(code), { code });
}

class Model {
  readonly root: Node & { kind: 'dir' } = { kind: 'dir', entries: new Map() };

  #dir(names: string[]): Node & { kind: 'dir' } {
    let node: Node = this.root;
    for (const name of names) {
      if (node.kind !== 'dir') fail('ENOTDIR');
      node = node.entries.get(name) ?? fail('ENOENT');
    }
    return node.kind === 'dir' ? node : fail('ENOTDIR');
  }
  #split(path: string): { dir: Node & { kind: 'dir' }; name: string; node: Node | undefined; names: string[] } {
    const names = path.split('/').filter(Boolean);
    const name = names.pop()!;
    const dir = this.#dir(names);
    return { dir, name, node: dir.entries.get(name), names };
  }
  write(path: string, flags: number, offset: number, content: Buffer): number {
    const { dir, name, node } = this.#split(path);
    if (node !== undefined && flags & O_EXCL) fail('EEXIST');
    if (node?.kind === 'dir') fail('EISDIR');
    if (node?.kind === 'link') fail('ELOOP');
    const file = (node ?? { kind: 'file', content: Buffer.alloc(0), links: 1 }) as Node & { kind: 'file' };
    dir.entries.set(name, file);
    if (flags & O_TRUNC) file.content = Buffer.alloc(0);
    const at = flags & O_APPEND ? file.content.length : offset;
    if (content.length > 0) {
      const grown = Buffer.alloc(Math.max(file.content.length, at + content.length));
      file.content.copy(grown);
      content.copy(grown, at);
      file.content = grown;
    }
    return file.content.length;
  }
  read(path: string): Buffer {
    const { node } = this.#split(path);
    if (node === undefined) fail('ENOENT');
    if (node.kind === 'dir') fail('EISDIR');
    return node.kind === 'file' ? node.content : fail('ELOOP');
  }
  truncate(path: string, size: number): void {
    const { node } = this.#split(path);
    if (node === undefined) fail('ENOENT');
    if (node.kind === 'dir') fail('EISDIR');
    if (node.kind === 'link') fail('ELOOP');
    const content = Buffer.alloc(size);
    node.content.copy(content);
    node.content = content;
  }
  mkdir(path: string): void {
    const { dir, name, node } = this.#split(path);
    if (node !== undefined) fail('EEXIST');
    dir.entries.set(name, { kind: 'dir', entries: new Map() });
  }
  rmdir(path: string): void {
    const { dir, name, node } = this.#split(path);
    if (node === undefined) fail('ENOENT');
    if (node.kind !== 'dir') fail('ENOTDIR');
    if (node.entries.size > 0) fail('ENOTEMPTY');
    dir.entries.delete(name);
  }
  unlink(path: string): void {
    const { dir, name, node } = this.#split(path);
    if (node === undefined) fail('ENOENT');
    if (node.kind === 'dir') fail('EISDIR');
    if (node.kind === 'file') node.links--;
    dir.entries.delete(name);
  }
  link(from: string, to: string): void {
    const source = this.#split(from);
    if (source.node === undefined) fail('ENOENT');
    const target = this.#split(to);
    if (target.node !== undefined) fail('EEXIST');
    if (source.node.kind === 'dir') fail('EPERM');
    if (source.node.kind === 'file') source.node.links++;
    target.dir.entries.set(target.name, source.node);
  }
  rename(from: string, to: string, how: 'replace' | 'noReplace' | 'exchange'): void {
    const source = this.#split(from);
    const target = this.#split(to);
    if (source.node === undefined) fail('ENOENT');
    if (how === 'noReplace' && target.node !== undefined) fail('EEXIST');
    if (how === 'exchange' && target.node === undefined) fail('ENOENT');
    if (from.startsWith(`${to}/`)) fail(how === 'exchange' ? 'EINVAL' : 'ENOTEMPTY');
    if (source.node.kind === 'dir' && `${to}/`.startsWith(`${from}/`) && to !== from) fail('EINVAL');
    if (source.node === target.node) return;
    if (how === 'exchange') {
      source.dir.entries.set(source.name, target.node!);
      target.dir.entries.set(target.name, source.node);
      return;
    }
    if (target.node !== undefined) {
      if (source.node.kind === 'dir' && target.node.kind !== 'dir') fail('ENOTDIR');
      if (source.node.kind !== 'dir' && target.node.kind === 'dir') fail('EISDIR');
      if (target.node.kind === 'dir' && target.node.entries.size > 0) fail('ENOTEMPTY');
      if (target.node.kind === 'file') target.node.links--;
    }
    source.dir.entries.delete(source.name);
    target.dir.entries.set(target.name, source.node);
  }
  readdir(path: string): string[] {
    return [...this.#dir(path.split('/').filter(Boolean)).entries.keys()].sort();
  }
}

const name = fc.constantFrom('a', 'b', 'c', 'd');
const path = fc.array(name, { minLength: 1, maxLength: 3 }).map((names) => `/${names.join('/')}`);
const how = fc.constantFrom('replace' as const, 'replace' as const, 'noReplace' as const, 'exchange' as const);
const size = fc.oneof(
  fc.nat(200),
  fc.constantFrom(3455, 3456, 3457, 4095, 4096, 4097, 16384, 65536, 1 << 20, (1 << 20) + 1),
  fc.nat(2_500_000),
);
const operation = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      op: fc.constant('write' as const),
      path,
      flags: fc.constantFrom(0, O_EXCL, O_TRUNC, O_APPEND),
      offset: size,
      length: size,
    }),
  },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('read' as const), path }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('truncate' as const), path, size }) },
  { weight: 5, arbitrary: fc.record({ op: fc.constant('mkdir' as const), path }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('rmdir' as const), path }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('unlink' as const), path }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('link' as const), path, to: path }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('rename' as const), path, to: path, how }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('readdir' as const), path: fc.oneof(path, fc.constant('/')) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('revoke' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('sync' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('wait' as const), ms: fc.nat(8000) }) },
);
type Step = typeof operation extends fc.Arbitrary<infer T> ? T & { node?: number } : never;

let fill = 1;
async function run(step: Step, fs: FileSystem, model: Model | null): Promise<unknown> {
  switch (step.op) {
    case 'write': {
      const content = Buffer.alloc(step.length, fill);
      if (model !== null) return model.write(step.path, step.flags, step.offset, content);
      const file = await fs.open(step.path, O_CREAT | O_RDWR | constants.O_NOFOLLOW | step.flags, 0o644, ROOT);
      await file.write(step.offset, content);
      const { sizeBytes } = await file.stat();
      await file.close();
      return sizeBytes;
    }
    case 'read': {
      if (model !== null) return digest(model.read(step.path));
      const file = await fs.open(step.path, O_RDONLY | constants.O_NOFOLLOW, 0, ROOT);
      try {
        if ((await file.stat()).type === 2) return await file.read(0, Buffer.alloc(1));
        const target = Buffer.alloc((await file.stat()).sizeBytes + 1);
        return digest(target.subarray(0, await file.read(0, target)));
      } finally {
        await file.close();
      }
    }
    case 'truncate':
      return model !== null ? model.truncate(step.path, step.size) : fs.truncate(step.path, step.size, ROOT);
    case 'mkdir':
      return model !== null ? model.mkdir(step.path) : fs.mkdir(step.path, 0o755, ROOT);
    case 'rmdir':
      return model !== null ? model.rmdir(step.path) : fs.rmdir(step.path, ROOT);
    case 'unlink':
      return model !== null ? model.unlink(step.path) : fs.unlink(step.path, ROOT);
    case 'link':
      return model !== null ? model.link(step.path, step.to) : fs.link(step.path, step.to, ROOT);
    case 'rename':
      return model !== null
        ? model.rename(step.path, step.to, step.how)
        : fs.rename(step.path, step.to, ROOT, { [step.how]: true });
    case 'readdir':
      return model !== null ? model.readdir(step.path) : (await fs.readdir(step.path, ROOT)).map((e) => e.name).sort();
    default:
      return undefined;
  }
}
const digest = (content: Buffer): string => {
  const runs: string[] = [];
  for (let at = 0; at < content.length; ) {
    let end = at;
    while (end < content.length && content[end] === content[at]) end++;
    runs.push(`${content[at]}*${end - at}`);
    at = end;
  }
  return runs.join(' ');
};
const outcome = async (body: () => Promise<unknown>): Promise<unknown> => {
  try {
    return { value: (await body()) ?? null };
  } catch (error) {
    const { code } = error as { code?: string };
    if (
      code === undefined ||
      code === 'EIO' ||
      code === 'EUCLEAN' ||
      (FsError.is(error) && error.reason === 'internal')
    )
      throw error;
    return { code };
  }
};

async function compareTrees(fs: FileSystem, model: Model, at: string): Promise<void> {
  const names = (await fs.readdir(at === '' ? '/' : at, ROOT)).map((entry) => entry.name).sort();
  expect(names).toEqual(model.readdir(at));
  for (const entry of names) {
    const full = `${at}/${entry}`;
    const { type } = await fs.lstat(full, ROOT);
    if (type === 2) await compareTrees(fs, model, full);
    else expect(await run({ op: 'read', path: full }, fs, null)).toBe(await run({ op: 'read', path: full }, fs, model));
  }
}

for (const nodes of [1, 2])
  test(`random operations on ${nodes} node(s) give what POSIX says, and a sound file system`, async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(operation, fc.nat(nodes - 1)), { minLength: 5, maxLength: 60 }),
        async (steps) => {
          const volume = await TestVolume.create({ blocks: [96, 80, 96] });
          const mounted: TestNode[] = [];
          for (let i = 0; i < nodes; i++) mounted.push(await volume.mount(i + 1));
          const model = new Model();
          for (const [step, node] of steps) {
            const { fs, tokens } = mounted[node]!;
            if (step.op === 'revoke') await tokens.revokeAll();
            else if (step.op === 'sync') await fs.sync();
            else if (step.op === 'wait') await volume.clock.advance(step.ms);
            else {
              fill = (fill % 250) + 1;
              const expected = await outcome(() => run(step, fs, model));
              expect(await outcome(() => run(step, fs, null)), JSON.stringify(step)).toEqual(expected);
            }
          }
          for (const { fs } of mounted) await fs.unmount();
          const report = await checkVolume(volume);
          expect(report.problems).toEqual([]);
          expect(report).toMatchObject({ lostSubBlocks: 0, lostInodes: 0 });
          const again = await volume.mount(7);
          await compareTrees(again.fs, model, '');
          await again.fs.unmount();
        },
      ),
      {
        numRuns: Number(process.env['FS_MODEL_RUNS'] ?? 40),
        ...(process.env['FS_MODEL_SEED'] === undefined ? {} : { seed: Number(process.env['FS_MODEL_SEED']) }),
      },
    );
  });
