import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { type LockRequest, type OpenFile, ROOT } from '../file-system-api.js';
import { type TestNode, TestVolume } from '../testing.js';

const { O_CREAT, O_RDONLY, O_RDWR, O_WRONLY } = constants;

async function two(): Promise<{ volume: TestVolume; one: TestNode; other: TestNode }> {
  const volume = await TestVolume.create();
  const [one, other] = [await volume.mount(1), await volume.mount(2)];
  await (await one.fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT)).close();
  return { volume, one, other };
}
const request = (
  kind: LockRequest['kind'],
  process: LockRequest['process'],
  offsetBytes = 0,
  lengthBytes = 0,
): LockRequest => ({ kind, process, offsetBytes, lengthBytes });
const open = (node: TestNode, flags = O_RDWR): Promise<OpenFile> => node.fs.open('/f', flags, 0, ROOT);

test('fcntl: a process has its locks on all nodes until it closes any handle of the file', async () => {
  const { one, other } = await two();
  const [a, second, b] = [await open(one), await open(one, O_RDONLY), await open(other)];
  const [mine, theirs] = [a.locks!.newProcess(11), b.locks!.newProcess(22)];
  await a.locks!.lock(request('process', mine, 10, 10), 'write', false);
  // The process itself is not in its own way, through whatever handle.
  await second.locks!.lock(request('process', mine, 15, 1), 'read', false);
  await expect(b.locks!.lock(request('process', theirs, 19, 5), 'write', false)).rejects.toMatchObject({
    code: 'EAGAIN',
  });
  expect(await b.locks!.test(request('process', theirs, 0, 0), 'read')).toEqual({
    type: 'write',
    offsetBytes: 10,
    lengthBytes: 5,
    pid: 11,
    node: 1,
  });
  await b.locks!.lock(request('process', theirs, 20), 'write', false);
  expect(await a.locks!.test(request('process', mine, 30, 1), 'write')).toMatchObject({ pid: 22, lengthBytes: 0 });
  let got = false;
  const waits = b.locks!.lock(request('process', theirs, 0, 20), 'write', true).then(() => {
    got = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  expect(got).toBe(false);
  await second.locks!.release(mine);
  await second.close();
  await waits;
  await expect(a.locks!.lock(request('process', mine, 5, 1), 'read', false)).rejects.toMatchObject({ code: 'EAGAIN' });
});

test('a lock needs a handle that is open for it; flock needs none', async () => {
  const { one } = await two();
  const [reader, writer] = [await open(one, O_RDONLY), await open(one, O_WRONLY)];
  const who = reader.locks!.newProcess(1);
  await expect(reader.locks!.lock(request('process', who), 'write', false)).rejects.toMatchObject({ code: 'EBADF' });
  await expect(writer.locks!.lock(request('process', who), 'read', false)).rejects.toMatchObject({ code: 'EBADF' });
  await reader.locks!.lock(request('flock', who), 'write', false);
  await expect(writer.locks!.lock(request('flock', who), 'read', false)).rejects.toMatchObject({ code: 'EAGAIN' });
  await reader.close();
  await writer.locks!.lock(request('flock', who), 'read', false);
});

test('the locks of a handle are its own, and a wait ends with its handle', async () => {
  const { one, other } = await two();
  const [a, b] = [await open(one), await open(other)];
  const who = a.locks!.newProcess(1);
  await a.locks!.lock(request('handle', who, 0, 10), 'write', false);
  // Not even the process may, through another way.
  await expect(a.locks!.lock(request('process', who, 0, 1), 'read', false)).rejects.toMatchObject({ code: 'EAGAIN' });
  expect(await a.locks!.test(request('process', who, 0, 1), 'read')).toMatchObject({ pid: -1 });
  const waits = b.locks!.lock(request('handle', who, 5, 1), 'read', true);
  await b.close();
  await expect(waits).rejects.toMatchObject({ code: 'EBADF' });
  const aborter = new AbortController();
  const c = await open(other);
  const aborted = c.locks!.lock(request('handle', who, 5, 1), 'read', true, { signal: aborter.signal });
  aborter.abort();
  await expect(aborted).rejects.toMatchObject({ code: 'ABORT_ERR' });
  await a.close();
  await c.locks!.lock(request('handle', who, 5, 1), 'read', false);
  await expect(a.locks!.lock(request('handle', who), 'read', false)).rejects.toMatchObject({ code: 'EBADF' });
});

test('the locks of a dead node fall with it', async () => {
  const { volume, one, other } = await two();
  const [a, b] = [await open(one), await open(other)];
  await a.locks!.lock(request('process', a.locks!.newProcess(1)), 'write', false);
  await b.locks!.lock(request('flock', b.locks!.newProcess(1)), 'write', false);
  const waits = b.locks!.lock(request('process', b.locks!.newProcess(2)), 'write', true);
  volume.bury(one);
  await waits;
});

test('what one node locks alone costs no message', async () => {
  const { volume, one } = await two();
  const file = await open(one);
  const who = file.locks!.newProcess(1);
  await file.locks!.lock(request('process', who), 'write', false);
  const before = volume.lockServer.messages;
  for (let i = 0; i < 100; i++) {
    await file.locks!.unlock(request('process', who));
    await file.locks!.lock(request('process', who, i, 10), 'write', false);
    await file.locks!.lock(request('flock', who), 'write', false);
  }
  await file.close();
  expect(volume.lockServer.messages).toBe(before);
});
