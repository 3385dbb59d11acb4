import { expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { below, SeededRandom } from '../common/random.js';
import { type FileSystem, FileType, ROOT } from './file-system-api.js';
import { checkVolume, TestVolume } from './testing.js';

/** What may be answered when others change the same names. */
const EXPECTED = new Set(['ENOENT', 'EEXIST', 'EINVAL', 'ENOTEMPTY', 'ENOTDIR', 'EISDIR']);

async function count(fs: FileSystem, path: string): Promise<{ files: number; directories: number }> {
  const total = { files: 0, directories: 0 };
  for (const { name, type } of await fs.readdir(path === '' ? '/' : path, ROOT)) {
    if (type !== FileType.directory) {
      total.files++;
      continue;
    }
    const inside = await count(fs, `${path}/${name}`);
    total.files += inside.files;
    total.directories += inside.directories + 1;
  }
  return total;
}

test('T4: directories moved and exchanged by three nodes at once end as a tree, with nothing lost and nobody stuck', async () => {
  const volume = await TestVolume.create();
  const nodes = [await volume.mount(1), await volume.mount(2), await volume.mount(3)];
  const random = new SeededRandom(4);
  const names = ['a', 'b', 'c', 'd'];
  const { fs: first } = nodes[0]!;
  for (const name of names) {
    await first.mkdir(`/${name}`, 0o755, ROOT);
    await first.mkdir(`/${name}/in`, 0o755, ROOT);
    await first.symlink('x', `/${name}/file`, ROOT);
  }
  const before = await count(first, '');
  const path = (): string => {
    const depth = 1 + below(random, 3);
    const parts = Array.from({ length: depth }, () => (below(random, 3) === 0 ? 'in' : names[below(random, 4)]!));
    return `/${parts.join('/')}${below(random, 8) === 0 ? '/file' : ''}`;
  };
  const answers = new Map<string, number>();
  await Promise.all(
    nodes.flatMap(({ fs }) =>
      [0, 1].map(async () => {
        for (let i = 0; i < 150; i++) {
          // Nothing is replaced, so that everything is there at the end.
          const how = below(random, 2) === 0 ? { exchange: true } : { noReplace: true };
          const answer = await fs.rename(path(), path(), ROOT, how).then(
            () => 'ok',
            (error: unknown) => (FsError.is(error) ? error.code : String(error)),
          );
          answers.set(answer, (answers.get(answer) ?? 0) + 1);
        }
      }),
    ),
  );
  for (const answer of answers.keys()) expect(answer === 'ok' || EXPECTED.has(answer)).toBe(true);
  expect(answers.get('ok')).toBeGreaterThan(10);
  expect(answers.get('EINVAL')).toBeGreaterThan(0);
  for (const { fs } of nodes) expect(await count(fs, '')).toEqual(before);
  for (const { fs } of nodes) await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
});
