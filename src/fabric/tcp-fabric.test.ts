import { afterEach, expect, test } from 'vitest';
import { nodeId } from '../common/ids.js';
import { MessageType } from '../protocol/message-types.js';
import type { TransportAddress } from './link.js';
import { type TestNode, type TestNodeOptions, testNode } from './test-support.js';

const open: TestNode[] = [];
afterEach(async () => {
  for (const node of open.splice(0)) await node.fabric.close();
});

async function pair(a: Partial<TestNodeOptions> = {}, b: Partial<TestNodeOptions> = {}) {
  const addresses = new Map<number, TransportAddress>();
  const one = testNode({ node: 1, addresses, ...a });
  const two = testNode({ node: 2, addresses, ...b });
  open.push(one, two);
  addresses.set(1, await one.fabric.listen({ host: '127.0.0.1', port: 0 }));
  addresses.set(2, await two.fabric.listen({ host: '127.0.0.1', port: 0 }));
  return { one, two, addresses };
}

const text = (value: string) => Buffer.from(value);
const str = (value: Uint8Array) => Buffer.from(value).toString();

test('a request is answered over TCP, in both directions', async () => {
  const { one, two } = await pair();
  two.fabric.handleRequests(MessageType.ping, ({ body, from }) => text(`${from.nodeId}:${str(body)}`));
  one.fabric.handleRequests(MessageType.ping, async ({ body }) => text(`back ${str(body)}`));
  const there = await one.fabric.peer(nodeId(2)).request(MessageType.ping, text('hello'), { timeoutMs: 5000 });
  expect(str(there)).toBe('1:hello');
  const back = await two.fabric.peer(nodeId(1)).request(MessageType.ping, text('again'), { timeoutMs: 5000 });
  expect(str(back)).toBe('back again');
});

test('bytes written and read remotely land in the segments named, whatever their scatter', async () => {
  const { one, two } = await pair();
  for (let i = 0; i < one.pool.lengthBytes; i++) one.pool.bytes[i] = (i * 7) & 0xff;
  const segments = [
    { offsetBytes: 8192, lengthBytes: 700_001 },
    { offsetBytes: 2_000_000, lengthBytes: 300_000 },
    { offsetBytes: 100, lengthBytes: 5 },
  ];
  const window = two.fabric.expose(nodeId(1), segments, 'write');
  const local = [
    { offsetBytes: 3_000_000, lengthBytes: 6 },
    { offsetBytes: 0, lengthBytes: 1_000_000 },
  ];
  await one.fabric.peer(nodeId(2)).writeRemote(window.remote, 0, local);
  const sent = Buffer.concat(local.map((s) => one.pool.bytes.subarray(s.offsetBytes, s.offsetBytes + s.lengthBytes)));
  const landed = Buffer.concat(
    segments.map((s) => two.pool.bytes.subarray(s.offsetBytes, s.offsetBytes + s.lengthBytes)),
  );
  expect(Buffer.compare(sent, landed)).toBe(0);
  await window.close();

  const readable = two.fabric.expose(nodeId(1), segments, 'read');
  const into = [{ offsetBytes: 1_500_000, lengthBytes: 1_000_000 }];
  await one.fabric.peer(nodeId(2)).readRemote(readable.remote, 6, into);
  expect(Buffer.compare(one.pool.bytes.subarray(1_500_000, 2_500_000), landed.subarray(6))).toBe(0);
});
