import { constants } from 'node:fs';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FsError } from '../../common/errors.js';
import { inodeNumber } from '../../common/ids.js';
import { fuzzRuns } from '../../common/testing/fuzz.js';
import { RANGE_END } from '../../common/units.js';
import {
  decodeSharedCall,
  decodeSharedReply,
  encodeSharedCall,
  encodeSharedReply,
} from '../../protocol/shared-io-messages.js';
import { type Credentials, type OpenFile, ROOT } from '../file-system-api.js';
import { checkVolume, TEST_FS_UUID, type TestNode, TestVolume, turns } from '../testing.js';
import { VolatileVolume, writeBehind } from '../testing-flushes.js';

const { O_APPEND, O_CREAT, O_RDONLY, O_RDWR } = constants;
const sound = { problems: [], lostSubBlocks: 0, lostInodes: 0 };
const open = ({ fs }: TestNode, path = '/d/f', flags = O_RDWR, who = ROOT): Promise<OpenFile> =>
  fs.open(path, O_CREAT | flags, 0o644, who);
async function textOf(file: OpenFile): Promise<string> {
  const bytes = Buffer.alloc(10_000);
  return bytes.toString('latin1', 0, await file.read(0, bytes));
}
const served = (node: TestNode): number => node.counters.get('fs.sharedServed');

/** Three nodes, the first owns; a directory whose files are shared. */
async function three(): Promise<{ volume: TestVolume; nodes: [TestNode, TestNode, TestNode] }> {
  const volume = await TestVolume.create();
  volume.sharedOwner = 1;
  const nodes: [TestNode, TestNode, TestNode] = [await volume.mount(1), await volume.mount(2), await volume.mount(3)];
  await nodes[1].fs.mkdir('/d', 0o777, { ...ROOT, umask: 0 });
  expect(await nodes[1].fs.sharedWrite('/d', true, ROOT)).toBe(true);
  return { volume, nodes };
}
async function finish(volume: TestVolume, nodes: readonly TestNode[]): Promise<void> {
  for (const { fs } of nodes) await fs.unmount();
  expect(await checkVolume(volume)).toMatchObject(sound);
}

test('a shared file is read and written through its owner, and the others cache nothing of it', async () => {
  const { volume, nodes } = await three();
  const files = [await open(nodes[0]), await open(nodes[1]), await open(nodes[2])];
  expect(files.map(({ entry }) => entry === null)).toEqual([false, true, true]);
  for (let round = 0; round < 5; round++)
    await Promise.all(files.map((file, i) => file.write((round * 3 + i) * 10, Buffer.from(`record ${round}${i}\n`))));
  const texts = await Promise.all(files.map(textOf));
  expect(new Set(texts).size).toBe(1);
  for (let round = 0; round < 5; round++)
    for (let i = 0; i < 3; i++) expect(texts[0]).toContain(`record ${round}${i}\n`);
  expect(served(nodes[0])).toBe(12);
  for (const node of [nodes[1], nodes[2]]) expect(node.cache.get(files[0]!.ino)?.dirty ?? false).toBe(false);
  const appender = await open(nodes[2], '/d/f', O_RDWR | O_APPEND);
  const [a, b] = await Promise.all([appender.write(0, Buffer.from('xx')), files[1]!.write(null, Buffer.from('yy'))]);
  expect([a.offsetBytes, b.offsetBytes].sort((x, y) => x - y)).toEqual([150, 152]);
  expect((await files[1]!.stat()).sizeBytes).toBe(154);
  // What fits into no message is done under tokens, and seen all the same.
  await files[2]!.write(0, Buffer.alloc(200_000, 0x7a));
  expect((await textOf(files[1]!)).startsWith('zzzz')).toBe(true);
  for (const file of [...files, appender]) await file.close();
  await volume.clock.advance(2_000);
  await finish(volume, nodes);
});

test('what is made in such a directory is so, as its owner says; the flag changes under open handles', async () => {
  const { volume, nodes } = await three();
  const [one, two, three_] = nodes;
  await two.fs.mkdir('/d/sub', 0o755, ROOT);
  expect(await three_.fs.sharedWrite('/d/sub', undefined, ROOT)).toBe(true);
  const stranger: Credentials = { ...ROOT, uid: 7, gid: 7 };
  await expect(two.fs.sharedWrite('/d', false, stranger)).rejects.toMatchObject({ code: 'EPERM' });
  expect(await two.fs.sharedWrite('/d', undefined, stranger)).toBe(true);
  const files = [await open(two), await open(three_)];
  for (let i = 0; i < 6; i++) {
    await nodes[i % 3]!.fs.sharedWrite('/d/f', i % 2 === 1, ROOT);
    for (const [at, file] of files.entries()) await file.write(i * 4 + at * 2, Buffer.from(`${i}${at}`));
    expect(await textOf(files[i % 2]!)).toBe(await textOf(files[(i + 1) % 2]!));
  }
  expect(await textOf(files[0]!)).toBe('000110112021303140415051');
  expect(served(one)).toBeGreaterThan(0);
  for (const file of files) await file.close();
  await volume.clock.advance(2_000);
  await finish(volume, nodes);
});

test('a file without names is read and written where it is open; setuid goes with a stranger’s write', async () => {
  const { volume, nodes } = await three();
  const stranger: Credentials = { uid: 7, gid: 7, groups: [], umask: 0 };
  const file = await open(nodes[1], '/d/f', O_RDWR, stranger);
  await nodes[2].fs.setAttributes('/d/f', { mode: 0o6777 }, true, ROOT);
  await file.write(0, Buffer.from('text'));
  expect(served(nodes[0])).toBe(1);
  expect((await nodes[2].fs.stat('/d/f', ROOT)).mode).toBe(0o777);
  await volume.clock.advance(2_000);
  await nodes[2].fs.unlink('/d/f', ROOT);
  await file.write(4, Buffer.from(' and more'));
  expect(await textOf(file)).toBe('text and more');
  await file.close();
  await finish(volume, nodes);
});

test('a member of the file’s group keeps its setgid bit through the owner, and only such a one', async () => {
  const { volume, nodes } = await three();
  const member: Credentials = { uid: 7, gid: 7, groups: [9, 5, 5], umask: 0 };
  const stranger: Credentials = { ...member, groups: [9] };
  const file = await open(nodes[1], '/d/f', O_RDWR, member);
  const strange = await open(nodes[1], '/d/f', O_RDWR, stranger);
  const modeAfter = async (by: OpenFile): Promise<number> => {
    await nodes[2].fs.setAttributes('/d/f', { mode: 0o2666, gid: 5 }, true, ROOT);
    await by.write(0, Buffer.from('text'));
    return (await nodes[2].fs.stat('/d/f', ROOT)).mode;
  };
  expect(await modeAfter(file)).toBe(0o2666);
  expect(await modeAfter(strange)).toBe(0o666);
  expect(served(nodes[0])).toBe(2);
  for (const one of [file, strange]) await one.close();
  await volume.clock.advance(2_000);
  await finish(volume, nodes);
});

test('I8, I10: a sync through the owner is durable; what the owner took along unsynced the next sync tells, once', async () => {
  const { volume, nodes } = await three();
  const [one, two] = nodes;
  const file = await open(two);
  await file.write(0, Buffer.from('kept'));
  await file.sync(false);
  await file.write(4, Buffer.from('lost'));
  volume.sharedOwner = 3;
  await volume.bury(one);
  expect((await textOf(file)).startsWith('kept')).toBe(true);
  await expect(file.sync(false)).rejects.toMatchObject({ code: 'EIO', reason: 'writesLost' });
  await file.sync(false);
  await file.write(4, Buffer.from('anew'));
  expect(served(nodes[2])).toBeGreaterThan(0);
  await file.sync(true);
  volume.powerOff([two, nodes[2]]);
  const last = await volume.mount(4);
  expect(await textOf(await open(last, '/d/f', O_RDONLY))).toBe('keptanew');
  await finish(volume, [last]);
});

test('I10: what an NSD lost while the owner had the file closed the next sync tells', async () => {
  const it = await VolatileVolume.create();
  it.volume.sharedOwner = 1;
  const [owner, other] = [await it.mount(1), await it.mount(2)];
  await other.fs.mkdir('/d', 0o777, ROOT);
  await other.fs.sharedWrite('/d', true, ROOT);
  const file = await open(other);
  for (let i = 0; i < 8; i++) await file.write(i * 40_000, Buffer.alloc(40_000, 'x'));
  expect(served(owner)).toBe(8);
  await writeBehind(owner, file.ino);
  owner.cache.get(file.ino)!.hint('dontNeed', { start: 0, end: RANGE_END });
  it.nsds.powerCut();
  const lost = { reason: 'writesLost' };
  // Its tokens leave the owner, who finds the loss; nobody is there who could be told.
  await other.fs.stat('/d/f', ROOT);
  await it.volume.clock.advance(2_000);
  await expect(file.sync(false)).rejects.toMatchObject(lost);
  await file.sync(false);
  await file.close();
  for (const { fs } of [owner, other]) await fs.unmount();
  expect(await it.check()).toBeNull();
});

test('I10: an owner that died and is there again, as another life, has not synced what the one before took along', async () => {
  const { volume, nodes } = await three();
  const file = await open(nodes[1]);
  await file.write(0, Buffer.from('lost'));
  await volume.bury(nodes[0]);
  const again = await volume.mount(1);
  await expect(file.sync(false)).rejects.toMatchObject({ code: 'EIO', reason: 'writesLost' });
  await file.write(0, Buffer.from('kept'));
  await file.sync(false);
  expect(served(again)).toBe(2);
  await file.close();
  await volume.clock.advance(2_000);
  await finish(volume, [again, nodes[1], nodes[2]]);
});

test('the owner dies under a write: one at an offset is done again, an append whose outcome nobody knows is told', async () => {
  const { volume, nodes } = await three();
  const [one, two] = nodes;
  const file = await open(two);
  let asked = 0;
  const dead: (() => void)[] = [];
  volume.onShared = () => {
    asked++;
    return new Promise((_, reject) => {
      dead.push(() => reject(new FsError('fenced', { op: 'sharedIo', object: 'node 1' })));
    });
  };
  const positioned = file.write(0, Buffer.from('again'));
  const read = textOf(file);
  const append = file.write(null, Buffer.from('perhaps'));
  const told = expect(append).rejects.toMatchObject({ reason: 'fenced' });
  while (asked < 3) await turns();
  volume.onShared = null;
  volume.sharedOwner = null;
  await volume.bury(one);
  for (const die of dead) die();
  expect(await positioned).toEqual({ offsetBytes: 0, lengthBytes: 5 });
  await told;
  expect(['', 'again']).toContain(await read);
  expect(await textOf(file)).toBe('again');
  // An owner that lives may still do it: then nobody does it a second time.
  volume.sharedOwner = 3;
  volume.onShared = () => Promise.reject(new FsError('deadlinePassed', { op: 'sharedIo' }));
  await expect(file.write(0, Buffer.from('x'))).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  volume.onShared = null;
  await file.close();
  await volume.clock.advance(2_000);
  await finish(volume, [two, nodes[2]]);
});

test('what goes to an owner and back decodes to what was encoded, and other bytes are refused', () => {
  const request = {
    op: 'write',
    ino: inodeNumber(2 ** 36),
    generation: 2 ** 32 - 1,
    offsetBytes: null,
    lengthBytes: 0,
    bytes: new Uint8Array([1, 2, 3]),
    uid: 1000,
    gid: 0xffff_fffe,
    groups: [0, 7, 2 ** 32 - 1],
    dataOnly: true,
  } as const;
  const call = { fsUuid: TEST_FS_UUID, incarnation: 2 ** 40, request };
  expect(decodeSharedCall(encodeSharedCall(call))).toEqual(call);
  const reply = { offsetBytes: 2 ** 50, lengthBytes: 3, bytes: new Uint8Array([9]) };
  for (const one of [reply, null]) expect(decodeSharedReply(encodeSharedReply(one))).toEqual(one);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 90 }), (body) => {
      for (const decode of [decodeSharedCall, decodeSharedReply])
        try {
          decode(body);
        } catch (error) {
          expect(FsError.is(error) && error.reason).toBe('badFrame');
        }
    }),
    fuzzRuns(500),
  );
});
