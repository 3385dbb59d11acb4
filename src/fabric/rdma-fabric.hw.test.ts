import { afterEach, expect, test } from 'vitest';
import type { Counters } from '../common/counters.js';
import { incarnation, nodeId } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { createPagePool } from '../native/core.js';
import type { PagePool } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import type { TransportAddress } from './link.js';
import { RdmaTransport } from './rdma-transport.js';
import { openRdmaPort } from './rdma-verbs.js';
import { failure, realClock, type TestNode, testNode } from './test-support.js';

/** The fabric over real verbs: two nodes in one process, each with a device context and a pool of its own. */
const host = process.env['HOLDFAST_HW_ADDRESS'] ?? '127.0.0.1';
const device = process.env['HOLDFAST_HW_RDMA'] ?? null;
const ok = { timeoutMs: 60_000 };
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

function pagePool(): PagePool {
  const pool = createPagePool(8 << 20);
  closers.push(() => pool.close());
  return pool;
}

async function pair() {
  const addresses = new Map<number, TransportAddress>();
  const make = (id: number): TestNode => {
    const made = testNode({
      node: id,
      pool: pagePool(),
      addresses,
      transport: (pool: PagePool, counters: Counters) =>
        new RdmaTransport({
          self: { nodeId: nodeId(id), incarnation: incarnation(1) },
          clusterId: 'test-cluster',
          pool,
          port: openRdmaPort(pool, { device }),
          clock: realClock,
          counters,
          logger: silentLogger,
        }),
    });
    closers.push(() => made.fabric.close());
    return made;
  };
  const [one, two] = [make(1), make(2)];
  addresses.set(1, await one.fabric.listen({ host, port: 0 }));
  addresses.set(2, await two.fabric.listen({ host, port: 0 }));
  return { one, two };
}

const fill = (pool: PagePool, seed: number) => {
  for (let i = 0; i < pool.lengthBytes; i++) pool.bytes[i] = (i * 7 + (i >> 9) + seed) & 0xff;
};

test('requests of all sizes are answered over verbs, in both directions and in order', async () => {
  const { one, two } = await pair();
  const seen: number[] = [];
  two.fabric.handleRequests(MessageType.ping, ({ body }) => {
    seen.push(Buffer.from(body).readUInt32LE(0));
    return body;
  });
  one.fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const bodies = Array.from({ length: 200 }, (_, i) => {
    const body = Buffer.alloc([4, 64, 5000, 70_000, 262_144][i % 5]!, i & 0xff);
    body.writeUInt32LE(i, 0);
    return body;
  });
  const there = one.fabric.peer(nodeId(2));
  const answers = await Promise.all(bodies.map((body) => there.request(MessageType.ping, body, ok)));
  answers.forEach((answer, i) => {
    expect(bodies[i]!.equals(Buffer.from(answer))).toBe(true);
  });
  expect(seen).toEqual(bodies.map((_, i) => i));
  const back = two.fabric.peer(nodeId(1));
  expect(Buffer.from(await back.request(MessageType.ping, bodies[1]!, ok)).equals(bodies[1]!)).toBe(true);
});

test('bulk goes one-sided in both directions, whatever its scatter, and copies nothing', async () => {
  const { one, two } = await pair();
  fill(one.pool, 1);
  fill(two.pool, 9);
  two.fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const peer = one.fabric.peer(nodeId(2));
  await peer.request(MessageType.ping, Buffer.from('up'), ok);
  const scatter = Array.from({ length: 48 }, (_, i) => ({ offsetBytes: i * 32_768, lengthBytes: 16_384 }));
  const total = 48 * 16_384;
  const into = two.fabric.expose(nodeId(1), scatter, 'write');
  await peer.writeRemote(into.remote, 0, [{ offsetBytes: 4_000_000, lengthBytes: total }]);
  const landed = Buffer.concat(
    scatter.map((s) => two.pool.bytes.subarray(s.offsetBytes, s.offsetBytes + s.lengthBytes)),
  );
  expect(landed.equals(Buffer.from(one.pool.bytes.subarray(4_000_000, 4_000_000 + total)))).toBe(true);
  await into.close();
  const from = two.fabric.expose(nodeId(1), [{ offsetBytes: 1_600_000, lengthBytes: 1 << 20 }], 'read');
  await peer.readRemote(from.remote, 0, [{ offsetBytes: 0, lengthBytes: 1 << 20 }]);
  const source = Buffer.from(two.pool.bytes.subarray(1_600_000, 1_600_000 + (1 << 20)));
  expect(source.equals(Buffer.from(one.pool.bytes.subarray(0, 1 << 20)))).toBe(true);
  await from.close();
  expect(one.counters.get('fabric.rdma.bytesWritten')).toBe(total);
  expect(one.counters.get('fabric.rdma.bytesRead')).toBe(1 << 20);
  expect(one.counters.get('fabric.rdma.keysAsked')).toBe(0);
  for (const node of [one, two]) expect(node.counters.get('fabric.rdma.bytesCopied')).toBe(0);
  expect(one.counters.get('fabric.linksAdopted')).toBe(1);
});

test('a closed window can not be used any more: nothing lands, and the session goes on over another link', async () => {
  const { one, two } = await pair();
  two.fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const peer = one.fabric.peer(nodeId(2));
  await peer.request(MessageType.ping, Buffer.from('up'), ok);
  const window = two.fabric.expose(nodeId(1), [{ offsetBytes: 0, lengthBytes: 1 << 20 }], 'write');
  one.pool.bytes.fill(3);
  await window.close();
  const late = await failure(peer.writeRemote(window.remote, 0, [{ offsetBytes: 0, lengthBytes: 1 << 20 }]));
  expect(late.reason).toBe('wrongKeyWindow');
  expect(two.pool.bytes.every((byte) => byte === 0)).toBe(true);
  expect(one.counters.get('fabric.linkEnd.remoteAccessError')).toBe(1);
  expect(Buffer.from(await peer.request(MessageType.ping, Buffer.from('on'), ok)).toString()).toBe('on');
});
