import { MessageChannel, type MessagePort } from 'node:worker_threads';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { MessageBatch } from './message-batch.js';

/** Which messages go together, and that all of them arrive in their order. */
let here: MessagePort;
let there: MessagePort;
let batches: number[][];
let arrived: (count: number) => Promise<void>;

beforeEach(() => {
  ({ port1: here, port2: there } = new MessageChannel());
  batches = [];
  let told = (): void => undefined;
  there.on('message', (messages: number[]) => {
    batches.push(messages);
    told();
  });
  arrived = (count) =>
    new Promise((resolve) => {
      told = () => batches.flat().length >= count && resolve();
      told();
    });
});
afterEach(() => here.close());

test('outside of a turn that brought several, each leaves at once', async () => {
  const out = new MessageBatch<number>(here);
  for (const message of [1, 2, 3]) out.post(message);
  await arrived(3);
  expect(batches).toEqual([[1], [2], [3]]);
});

test('those who are told in one turn and ask again at once ask together', async () => {
  const out = new MessageBatch<number>(here);
  const told = [1, 2, 3].map((message) => Promise.resolve().then(() => out.post(message)));
  out.expect(3);
  await Promise.all(told);
  await arrived(3);
  out.post(4);
  await arrived(4);
  expect(batches).toEqual([[1, 2, 3], [4]]);
});

test('who does not ask again is not waited for', async () => {
  const out = new MessageBatch<number>(here);
  out.expect(3);
  await Promise.resolve();
  out.post(1);
  await arrived(1);
  out.post(2);
  await arrived(2);
  expect(batches).toEqual([[1], [2]]);
});

test('answers of one turn go together, at most so many', async () => {
  const out = new MessageBatch<number>(here, 4);
  await Promise.resolve();
  for (let message = 1; message <= 6; message++) out.post(message);
  await arrived(6);
  expect(batches).toEqual([
    [1, 2, 3, 4],
    [5, 6],
  ]);
});

test('buffers go along', async () => {
  const channel = new MessageChannel();
  const out = new MessageBatch<Uint8Array<ArrayBuffer>>(channel.port1, 2);
  const bytes = [Uint8Array.of(1), Uint8Array.of(2)];
  for (const one of bytes) out.post(one, [one.buffer]);
  const received = await new Promise<Uint8Array[]>((resolve) => channel.port2.on('message', resolve));
  channel.port1.close();
  expect(received).toEqual([Uint8Array.of(1), Uint8Array.of(2)]);
  expect(bytes.map(({ byteLength }) => byteLength)).toEqual([0, 0]);
});
