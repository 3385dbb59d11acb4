import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { WHOLE } from '../common/byte-range.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { ROOT } from './file-system-api.js';
import { segmentOf } from './layout.js';
import { type TestNode, TestVolume, turns } from './testing.js';

const { O_CREAT, O_RDONLY, O_RDWR } = constants;
const FILES = 48;

async function write(node: TestNode, path: string): Promise<void> {
  const file = await node.fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.from(path.repeat(1000)));
  await file.close();
}
async function read(node: TestNode, path: string): Promise<void> {
  const file = await node.fs.open(path, O_RDONLY, 0, ROOT);
  const bytes = Buffer.alloc(path.length * 1000);
  await file.read(0, bytes);
  await file.close();
  expect(bytes.toString()).toBe(path.repeat(1000));
}
async function twoNodes(): Promise<{ writer: TestNode; reader: TestNode; paths: string[] }> {
  const volume = await TestVolume.create();
  const writer = await volume.mount(1);
  const reader = await volume.mount(2);
  const paths = Array.from({ length: FILES }, (_, i) => `/file-${i}`);
  for (const path of paths) await write(writer, path);
  return { writer, reader, paths };
}
const holdsData = (node: TestNode, ino: number, mode: TokenMode): boolean =>
  node.tokens.heldRange(TokenClass.data, ino, 0, mode) !== null;

test('T4: the data tokens of new files come with their numbers, a batch at a time', async () => {
  const volume = await TestVolume.create();
  const writer = await volume.mount(1);
  await write(writer, '/first');
  await turns();
  const requests = writer.tokens.requests;
  for (let i = 0; i < FILES; i++) await write(writer, `/file-${i}`);
  expect(writer.tokens.requests - requests).toBe(0);
});

test('neighbours that are read one after the other are asked for in runs', async () => {
  const { writer, reader, paths } = await twoNodes();
  // The arbiter of these tests takes from holders no more than is required; open tokens stay where files may be open.
  await writer.tokens.revokeAll();
  const segment = segmentOf((await reader.fs.stat('/file-0', ROOT)).ino);
  await writer.tokens.revoke({ class: TokenClass.open, object: segment, range: WHOLE, keep: TokenMode.none });
  const requests = reader.tokens.requests;
  for (const path of paths) await read(reader, path);
  // Of each run of 16: the first file's own request, then all the others'; and the status tokens of a run of 64.
  expect(reader.tokens.requests - requests).toBeLessThanOrEqual(10);
});

test('neighbours that are read side by side are read from the device once', async () => {
  const { writer, reader, paths } = await twoNodes();
  await writer.tokens.revokeAll();
  await reader.fs.stat('/', ROOT);
  const reads = reader.counters.get('fs.inodeReads');
  await Promise.all(paths.map((path) => read(reader, path)));
  expect(reader.counters.get('fs.inodeReads') - reads).toBeLessThanOrEqual(FILES / 16 + 1);
});

test('who looks at attributes, or reads one file again and again, takes no data token of its neighbours', async () => {
  const { writer, reader, paths } = await twoNodes();
  const inos = await Promise.all(paths.map(async (path) => (await reader.fs.stat(path, ROOT)).ino));
  for (let i = 0; i < 3; i++) await read(reader, '/file-20');
  await turns();
  for (const [i, ino] of inos.entries()) expect(holdsData(writer, ino, TokenMode.exclusive)).toBe(i !== 20);
});

test('a run is asked for once: what a writer takes back stays with it', async () => {
  const { writer, reader, paths } = await twoNodes();
  for (const path of paths) await read(reader, path);
  await write(writer, '/file-20');
  const { ino } = await writer.fs.stat('/file-20', ROOT);
  for (const path of ['/file-18', '/file-19', '/file-21']) await read(reader, path);
  await turns();
  expect(holdsData(writer, ino, TokenMode.exclusive)).toBe(true);
});
