import { constants } from 'node:fs';
import { beforeEach, describe, expect, test } from 'vitest';
import type { EntryId } from '../cache/cache-map.js';
import { PAGE_BYTES } from '../common/units.js';
import { TokenMode } from '../token-manager/token.js';
import { type FileSystem, type OpenFile, ROOT } from './file-system-api.js';
import { checkVolume, type TestNode, TestVolume, turns } from './testing.js';

/** Application threads grow a file by hits while the engine changes its inode: names come and go, and nothing that was written may. */
const { O_APPEND, O_CREAT, O_RDWR, O_WRONLY } = constants;

let node: TestNode;
let fs: FileSystem;
let file: OpenFile;
/** Size changes by the engine while write hits were allowed: a hit of another thread at this moment would be undone. */
let unsettled: number;

beforeEach(async () => {
  node = await (await TestVolume.create()).mount();
  fs = node.fs;
  unsettled = 0;
  const modes = new Map<EntryId, TokenMode>();
  const { map } = node;
  const setStatusMode = map.setStatusMode.bind(map);
  map.setStatusMode = (entry, mode) => {
    modes.set(entry, mode);
    setStatusMode(entry, mode);
  };
  const setEntryState = map.setEntryState.bind(map);
  map.setEntryState = (entry, state) => {
    if (modes.get(entry) === TokenMode.exclusive) unsettled++;
    setEntryState(entry, state);
  };
  await fs.mkdir('/d', 0o755, ROOT);
  file = await fs.open('/file', O_CREAT | O_RDWR, 0o644, ROOT);
  // In sequence: pages are made ready for hits in front of it.
  for (let at = 0; at < 100_000; at += 10_000) {
    await file.write(at, Buffer.alloc(10_000, 1));
    await turns();
  }
});

/** As an application's thread does it. */
function append(bytes: Uint8Array): void {
  expect(
    node.map.write(file.entry as EntryId, -1, bytes, node.map.entryState(file.entry as EntryId).mtimeNs + 1n),
  ).toBe(bytes.length);
}

describe('what hits wrote behind the end of file stays', () => {
  const cases: [string, () => Promise<void>][] = [
    ['unlink', () => fs.unlink('/file', ROOT)],
    ['link', () => fs.link('/file', '/d/other', ROOT)],
    ['rename', () => fs.rename('/file', '/d/file', ROOT)],
    [
      'a file renamed over it',
      async () => {
        await (await fs.open('/new', O_CREAT | O_RDWR, 0o644, ROOT)).close();
        await fs.rename('/new', '/file', ROOT);
      },
    ],
    [
      'unlink of one of two names',
      async () => {
        await fs.link('/file', '/d/other', ROOT);
        append(Buffer.alloc(1000, 3));
        await fs.unlink('/file', ROOT);
      },
    ],
    ['chmod', async () => void (await fs.setAttributes('/file', { mode: 0o600 }, true, ROOT))],
  ];
  test.each(cases)('%s', async (_, change) => {
    append(Buffer.alloc(1000, 2));
    const before = node.map.entryState(file.entry as EntryId).sizeBytes;
    await change();
    const { sizeBytes } = await file.stat();
    expect(sizeBytes).toBeGreaterThanOrEqual(before);
    const target = Buffer.alloc(sizeBytes);
    expect(await file.read(0, target)).toBe(sizeBytes);
    expect(target.subarray(100_000, 101_000).every((byte) => byte === 2)).toBe(true);
    expect(unsettled).toBe(0);
    // And hits go on.
    append(Buffer.alloc(10, 4));
    await file.close();
  });
});

test('nothing of another thread gets to the place where the engine is appending', async () => {
  // A page with room for hits, and space that can't grow where it is: the append waits for devices.
  const log = await fs.open('/log', O_CREAT | O_WRONLY | O_APPEND, 0o644, ROOT);
  const start = 2 * PAGE_BYTES - 1000;
  await log.write(null, Buffer.alloc(start, 1));
  const behind = await fs.open('/behind', O_CREAT | O_RDWR, 0o644, ROOT);
  await behind.write(0, Buffer.alloc(PAGE_BYTES, 2));
  const hit = (): number => Math.max(0, node.map.write(log.entry as EntryId, -1, Buffer.alloc(20, 9), 5n));
  let hitBytes = hit();
  expect(hitBytes).toBe(20);
  const appended = Buffer.alloc(50_000, 7);
  let over = false;
  const engine = log.write(null, appended).finally(() => {
    over = true;
  });
  while (!over) {
    await turns();
    // Whoever opens it, or changes its mode, publishes its status.
    await fs.setAttributes('/log', { mode: 0o600 }, true, ROOT);
    if (!over) hitBytes += hit();
  }
  const { offsetBytes } = await engine;
  const { sizeBytes } = await log.stat();
  expect(sizeBytes).toBe(start + appended.length + hitBytes);
  const bytes = Buffer.alloc(sizeBytes);
  await (await fs.open('/log', O_RDWR, 0, ROOT)).read(0, bytes);
  expect(bytes.subarray(offsetBytes, offsetBytes + appended.length).equals(appended)).toBe(true);
  expect(bytes.filter((byte) => byte === 9).length).toBe(hitBytes);
});

test('a file that is opened again while its last handle closes keeps what hits write to it', async () => {
  const { setEntryState } = node.map;
  await file.close();
  for (let round = 0; round < 20; round++) {
    const first = await fs.open('/file', O_RDWR, 0, ROOT);
    const at = (await first.stat()).sizeBytes;
    await first.write(at, Buffer.alloc(3000, round));
    const closing = first.close();
    for (let tick = 0; tick < round; tick++) await Promise.resolve();
    file = await fs.open('/file', O_RDWR, 0, ROOT);
    let grown = 0;
    for (let tick = 0; tick < 60; tick++) {
      await Promise.resolve();
      const hit = node.map.write(file.entry as EntryId, -1, Buffer.alloc(7, 9), 5n);
      if (hit > 0) grown += hit;
    }
    await closing;
    expect(node.map.entryState(file.entry as EntryId).sizeBytes).toBe(at + 3000 + grown);
    await file.close();
  }
  expect(unsettled).toBe(0);
  node.map.setEntryState = setEntryState;
});

test('a handle of a file that another node removed goes on hitting, and its number goes to nobody meanwhile', async () => {
  const volume = await TestVolume.create({ settings: { inodeBatch: 4 } });
  const [one, two] = [await volume.mount(1), await volume.mount(2)];
  const removed = await one.fs.open('/removed', O_CREAT | O_RDWR, 0o644, ROOT);
  await removed.write(0, Buffer.alloc(4 * PAGE_BYTES, 1));
  await removed.close();
  const stale = await two.fs.open('/removed', O_RDWR, 0, ROOT);
  for (let at = 0; at < 4; at++) await stale.write(at * PAGE_BYTES, Buffer.alloc(PAGE_BYTES, 2));
  const entry = stale.entry as EntryId;
  const target = Buffer.alloc(PAGE_BYTES);
  await stale.write(0, Buffer.alloc(PAGE_BYTES, 2));
  expect(two.map.read(entry, 0, target)).toBe(PAGE_BYTES);
  expect(two.map.write(entry, 0, Buffer.alloc(10, 3), 5n)).toBe(10);
  await one.fs.unlink('/removed', ROOT);
  // Whatever becomes free meanwhile.
  for (let i = 0; i < 12; i++) {
    await volume.clock.advance(10_000);
    const file = await one.fs.open(`/f${i}`, O_CREAT | O_RDWR, 0o644, ROOT);
    expect(file.ino).not.toBe(stale.ino);
    await file.write(0, Buffer.alloc(4 * PAGE_BYTES, 7));
    await file.close();
    await one.fs.unlink(`/f${i}`, ROOT);
  }
  await stale.write(0, Buffer.alloc(PAGE_BYTES, 4));
  expect(two.map.write(entry, 0, Buffer.alloc(10, 9), 5n)).toBe(10);
  expect(two.map.read(entry, 0, target)).toBe(PAGE_BYTES);
  expect([target[0], target[10]]).toEqual([9, 4]);
  await stale.close();
  await one.fs.unmount();
  await two.fs.unmount();
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostInodes: 0, lostSubBlocks: 0 });
});
