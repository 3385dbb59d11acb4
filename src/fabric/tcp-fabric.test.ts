import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import ts from 'typescript';
import { afterEach, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { nodeId } from '../common/ids.js';
import { heapPagePool } from '../native/page-pool.js';
import { MessageType } from '../protocol/message-types.js';
import type { TransportAddress } from './link.js';
import { TcpTransport } from './tcp-link.js';
import { failure, type TestNode, type TestNodeOptions, testNode } from './test-support.js';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

function node(options: TestNodeOptions): TestNode {
  const made = testNode(options);
  closers.push(() => made.fabric.close());
  return made;
}

async function pair(a: Partial<TestNodeOptions> = {}, b: Partial<TestNodeOptions> = {}) {
  const addresses = new Map<number, TransportAddress>();
  const one = node({ node: 1, addresses, ...a });
  const two = node({ node: 2, addresses, ...b });
  addresses.set(1, await one.fabric.listen({ host: '127.0.0.1', port: 0 }));
  addresses.set(2, await two.fabric.listen({ host: 'localhost', port: 0 }));
  return { one, two, addresses };
}

/** A wire between two nodes that can be cut, altered, and counted. */
async function proxy(target: TransportAddress) {
  const sockets = new Set<net.Socket>();
  const wire = {
    forwardedBytes: 0,
    onData: (chunk: Buffer): Buffer | null => chunk,
    cut: () => {
      for (const socket of sockets) socket.resetAndDestroy();
      sockets.clear();
    },
    address: { host: '127.0.0.1', port: 0 },
  };
  const server = net.createServer((inward) => {
    const outward = net.connect(target.port, '127.0.0.1');
    for (const socket of [inward, outward]) {
      sockets.add(socket);
      socket.on('error', () => undefined);
    }
    inward.on('data', (chunk) => {
      const data = wire.onData(chunk);
      wire.forwardedBytes += chunk.length;
      if (data !== null && !outward.destroyed && !outward.write(data)) {
        inward.pause();
        outward.once('drain', () => inward.resume());
      }
    });
    outward.on('data', (chunk) => inward.write(chunk));
    inward.on('close', () => outward.destroy());
    outward.on('close', () => inward.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  wire.address.port = (server.address() as net.AddressInfo).port;
  closers.push(() => {
    wire.cut();
    server.close();
  });
  return wire;
}

const text = (value: string) => Buffer.from(value);
const str = (value: Uint8Array) => Buffer.from(value).toString();
const ok = { timeoutMs: 30_000 };
const gather = (of: TestNode, segments: readonly { offsetBytes: number; lengthBytes: number }[]) =>
  Buffer.concat(segments.map((s) => of.pool.bytes.subarray(s.offsetBytes, s.offsetBytes + s.lengthBytes)));

test('a request is answered over TCP, in both directions', async () => {
  const { one, two } = await pair();
  two.fabric.handleRequests(MessageType.ping, ({ body, from }) => text(`${from.nodeId}:${str(body)}`));
  one.fabric.handleRequests(MessageType.ping, async ({ body }) => text(`back ${str(body)}`));
  const there = await one.fabric.peer(nodeId(2)).request(MessageType.ping, text('hello'), ok);
  expect(str(there)).toBe('1:hello');
  const back = await two.fabric.peer(nodeId(1)).request(MessageType.ping, text('again'), ok);
  expect(str(back)).toBe('back again');
});

test('bytes written and read remotely land in the segments named, whatever their scatter', async () => {
  const { one, two } = await pair();
  for (let i = 0; i < one.pool.lengthBytes; i++) one.pool.bytes[i] = (i * 7 + (i >> 9)) & 0xff;
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
  const landed = gather(two, segments);
  expect(gather(one, local).equals(landed)).toBe(true);
  await window.close();

  const readable = two.fabric.expose(nodeId(1), segments, 'read');
  const into = [{ offsetBytes: 1_500_000, lengthBytes: 1_000_000 }];
  await one.fabric.peer(nodeId(2)).readRemote(readable.remote, 6, into);
  expect(gather(one, into).equals(landed.subarray(6))).toBe(true);
});

test('a transfer through a closed window is refused and changes nothing on either side', async () => {
  const { one, two } = await pair();
  two.pool.bytes.fill(9);
  const segment = [{ offsetBytes: 0, lengthBytes: 4096 }];
  const peer = one.fabric.peer(nodeId(2));
  for (const access of ['read', 'write'] as const) {
    const window = two.fabric.expose(nodeId(1), segment, access);
    await window.close();
    const moved =
      access === 'read' ? peer.readRemote(window.remote, 0, segment) : peer.writeRemote(window.remote, 0, segment);
    expect((await failure(moved)).reason).toBe('wrongKeyWindow');
  }
  expect(one.pool.bytes.subarray(0, 4096).every((byte) => byte === 0)).toBe(true);
  expect(two.pool.bytes.subarray(0, 4096).every((byte) => byte === 9)).toBe(true);
});

test('large and small messages, one-way and requests, keep their order over TCP', async () => {
  const { one, two } = await pair();
  const got: number[] = [];
  const note = (body: Uint8Array) => got.push(Buffer.from(body).readUInt32LE(0));
  two.fabric.handleMessages(MessageType.tokenToClient, ({ body }) => {
    note(body);
  });
  two.fabric.handleRequests(MessageType.ping, ({ body }) => {
    note(body);
    return body;
  });
  const peer = one.fabric.peer(nodeId(2));
  const replies: Promise<Uint8Array>[] = [];
  for (let i = 0; i < 400; i++) {
    const body = Buffer.alloc([4, 64, 5000, 70_000, 262_144][i % 5]!, i & 0xff);
    body.writeUInt32LE(i, 0);
    if (i % 3 === 0) replies.push(peer.request(MessageType.ping, body, ok));
    else peer.send(MessageType.tokenToClient, body);
    if (i % 50 === 49) await replies.at(-1);
  }
  const answered = await Promise.all(replies);
  await peer.request(MessageType.ping, Buffer.alloc(4), ok);
  expect(got.slice(0, 400)).toEqual(Array.from({ length: 400 }, (_, i) => i));
  answered.forEach((body, k) => {
    const i = 3 * k;
    const expected = Buffer.alloc([4, 64, 5000, 70_000, 262_144][i % 5]!, i & 0xff);
    expected.writeUInt32LE(i, 0);
    expect(expected.equals(Buffer.from(body))).toBe(true);
  });
});

test('more bytes of replies than may be under way at once all arrive', async () => {
  const { one, two } = await pair();
  two.fabric.handleRequests(MessageType.ping, ({ body }) => Buffer.alloc(256 * 1024, body[0]));
  const peer = one.fabric.peer(nodeId(2));
  const asked = Array.from({ length: 200 }, (_, i) => peer.request(MessageType.ping, Buffer.from([i]), ok));
  const sums = (await Promise.all(asked)).map((reply) => [reply.length, reply[0], reply.at(-1)]);
  expect(sums).toEqual(Array.from({ length: 200 }, (_, i) => [256 * 1024, i, i]));
  expect(two.counters.get('fabric.linksAdopted')).toBe(1);
});

test('a connection killed in the midst of bulk is replaced, and the transfers end right', async () => {
  const { one, two, addresses } = await pair();
  const wire = await proxy(addresses.get(2)!);
  addresses.set(2, wire.address);
  addresses.delete(1);
  for (let i = 0; i < one.pool.lengthBytes; i++) one.pool.bytes[i] = (i * 13 + (i >> 8)) & 0xff;
  two.fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const peer = one.fabric.peer(nodeId(2));
  await peer.request(MessageType.ping, text('up'), ok);
  const all = [{ offsetBytes: 0, lengthBytes: 4 << 20 }];
  const window = two.fabric.expose(nodeId(1), all, 'write');
  const cutAt = [1, 2, 3].map((k) => wire.forwardedBytes + k * 1_500_000);
  wire.onData = (chunk) => {
    if (cutAt.length > 0 && wire.forwardedBytes > cutAt[0]!) {
      cutAt.shift();
      wire.cut();
      return null;
    }
    return chunk;
  };
  const moved = Promise.all([
    peer.writeRemote(window.remote, 0, all),
    peer.request(MessageType.ping, text('amid'), ok),
  ]);
  await moved;
  expect(cutAt).toEqual([]);
  expect(gather(two, all).equals(gather(one, all))).toBe(true);
  expect(one.counters.get('fabric.linksAdopted')).toBe(4);
});

test('a bit flipped on the wire is noticed, and what it struck is sent again', async () => {
  const { one, two, addresses } = await pair();
  const wire = await proxy(addresses.get(2)!);
  addresses.set(2, wire.address);
  addresses.delete(1);
  two.fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const peer = one.fabric.peer(nodeId(2));
  await peer.request(MessageType.ping, text('up'), ok);
  let flips = 3;
  wire.onData = (chunk) => {
    if (flips > 0 && chunk.length > 200 && chunk.readUInt16LE(0) === 0x4648) {
      flips--;
      chunk[150]! ^= 0x10;
    }
    return chunk;
  };
  const body = Buffer.alloc(1000, 7);
  for (let i = 0; i < 10; i++) {
    body.writeUInt32LE(i, 0);
    expect(Buffer.from(await peer.request(MessageType.ping, body, ok)).equals(body)).toBe(true);
  }
  expect(flips).toBe(0);
  expect(two.counters.get('fabric.linkEnd.badChecksum')).toBe(3);
});

test('frames recorded on the wire and played again are refused, and executed once', async () => {
  const { one, two, addresses } = await pair();
  const wire = await proxy(addresses.get(2)!);
  addresses.set(2, wire.address);
  addresses.delete(1);
  const executed: string[] = [];
  two.fabric.handleRequests(MessageType.ping, ({ body }) => {
    executed.push(str(body));
    return body;
  });
  const peer = one.fabric.peer(nodeId(2));
  await peer.request(MessageType.ping, text('first'), ok);
  let replayed = false;
  wire.onData = (chunk) => {
    if (replayed || chunk[3] !== 2) return chunk;
    replayed = true;
    return Buffer.concat([chunk, chunk]);
  };
  await peer.request(MessageType.ping, text('second'), ok);
  await peer.request(MessageType.ping, text('third'), ok);
  expect(executed).toEqual(['first', 'second', 'third']);
  expect(two.counters.get('fabric.refusedReplay')).toBe(1);
});

test('someone who speaks something else is shown the door, and the others are served', async () => {
  const { one, two, addresses } = await pair();
  two.fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const stranger = net.connect(addresses.get(2)!.port, '127.0.0.1');
  stranger.on('error', () => undefined);
  stranger.resume();
  const gone = new Promise((resolve) => stranger.once('close', resolve));
  stranger.write('GET / HTTP/1.1\r\nHost: holdfast\r\n\r\n'.padEnd(300));
  await gone;
  expect(two.counters.get('fabric.refusedHandshake.malformed')).toBe(1);
  expect(str(await one.fabric.peer(nodeId(2)).request(MessageType.ping, text('fine'), ok))).toBe('fine');
});

test('a node without an address is reached once it has dialled', async () => {
  const addresses = new Map<number, TransportAddress>();
  const server = node({ node: 1, addresses });
  addresses.set(1, await server.fabric.listen({ host: '127.0.0.1', port: 0 }));
  const client = node({ node: 2, addresses });
  client.fabric.handleRequests(MessageType.ping, () => text('here'));
  server.fabric.handleRequests(MessageType.ping, () => text('there'));
  const early = server.fabric.peer(nodeId(2)).request(MessageType.ping, text(''), ok);
  await client.fabric.peer(nodeId(1)).request(MessageType.ping, text(''), ok);
  expect(str(await early)).toBe('here');
});

test('an address in use is refused with a clear error', async () => {
  const { two, addresses } = await pair();
  const error = await failure(two.fabric.listen({ host: '127.0.0.1', port: addresses.get(1)!.port }));
  expect(error.reason).toBe('identityTaken');
});

test('a node is a peer of itself, with the same promises', async () => {
  const one = node({ node: 1 });
  const order: string[] = [];
  one.fabric.handleMessages(MessageType.tokenToClient, ({ body }) => {
    order.push(str(body));
  });
  one.fabric.handleRequests(MessageType.ping, async ({ body }) => {
    order.push(str(body));
    if (str(body) === 'bad') throw new FsError('noSpace', { op: 'x' });
    return body;
  });
  const self = one.fabric.peer(nodeId(1));
  self.send(MessageType.tokenToClient, text('a'));
  const asked = self.request(MessageType.ping, text('b'), ok);
  self.send(MessageType.tokenToClient, text('c'));
  expect(order).toEqual([]);
  expect(str(await asked)).toBe('b');
  expect(order).toEqual(['a', 'b', 'c']);
  expect((await failure(self.request(MessageType.ping, text('bad'), ok))).reason).toBe('noSpace');
  one.pool.bytes.fill(5, 0, 100);
  const window = one.fabric.expose(nodeId(1), [{ offsetBytes: 1000, lengthBytes: 100 }], 'write');
  await self.writeRemote(window.remote, 10, [{ offsetBytes: 0, lengthBytes: 90 }]);
  expect(one.pool.bytes.subarray(1010, 1100).every((byte) => byte === 5)).toBe(true);
  await window.close();
  expect((await failure(self.writeRemote(window.remote, 0, [{ offsetBytes: 0, lengthBytes: 1 }]))).reason).toBe(
    'wrongKeyWindow',
  );
});

/** This folder as JavaScript, for processes and threads that the test runner doesn't serve. */
function compiled(): string {
  const source = fileURLToPath(new URL('../', import.meta.url));
  const root = mkdtempSync(path.join(tmpdir(), 'holdfast-fabric-'));
  closers.push(() => rmSync(root, { recursive: true }));
  writeFileSync(path.join(root, 'package.json'), '{"type":"module"}');
  symlinkSync(path.join(source, '../native'), path.join(root, 'native'));
  for (const folder of ['common', 'protocol', 'native', 'fabric']) {
    mkdirSync(path.join(root, 'src', folder), { recursive: true });
    for (const file of readdirSync(path.join(source, folder))) {
      if (!file.endsWith('.ts') || file.endsWith('.test.ts')) continue;
      const { outputText } = ts.transpileModule(readFileSync(path.join(source, folder, file), 'utf8'), {
        compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
      });
      writeFileSync(path.join(root, 'src', folder, file.replace(/\.ts$/, '.js')), outputText);
    }
  }
  const main = path.join(root, 'peer.js');
  writeFileSync(
    main,
    `import { parentPort } from 'node:worker_threads';
     import { testNode } from './src/fabric/test-support.js';
     const { fabric, pool } = testNode({ node: 2 });
     pool.bytes.fill(0x33);
     const read = fabric.expose(1, [{ offsetBytes: 0, lengthBytes: 1 << 20 }], 'read');
     const write = fabric.expose(1, [{ offsetBytes: 1 << 20, lengthBytes: 1 << 20 }], 'write');
     const hex = (window) => Buffer.from(window.remote).toString('hex');
     fabric.handleRequests(30, ({ body }) => {
       let sum = 0;
       for (let i = 1 << 20; i < 2 << 20; i++) sum += pool.bytes[i];
       return Buffer.from(String(sum) + ' ' + Buffer.from(body));
     });
     const { port } = await fabric.listen({ host: '127.0.0.1', port: 0 });
     const message = { port, read: hex(read), write: hex(write) };
     if (parentPort) parentPort.postMessage(message); else process.send(message);`,
  );
  return main;
}

test.each(['process', 'worker thread'])('two fabrics in different places talk: the other in a %s', async (place) => {
  const file = compiled();
  const other = place === 'process' ? fork(file, { execArgv: [] }) : new Worker(file);
  closers.push(() => ('terminate' in other ? other.terminate() : other.kill()));
  const [{ port, read, write }] = (await once(other, 'message')) as [{ port: number; read: string; write: string }];
  const one = node({ node: 1, addresses: new Map([[2, { host: '127.0.0.1', port }]]) });
  const peer = one.fabric.peer(nodeId(2));
  await peer.readRemote(Buffer.from(read, 'hex'), 0, [{ offsetBytes: 4096, lengthBytes: 1 << 20 }]);
  expect(one.pool.bytes.subarray(4096, 4096 + (1 << 20)).every((byte) => byte === 0x33)).toBe(true);
  one.pool.bytes.fill(2);
  await peer.writeRemote(Buffer.from(write, 'hex'), 0, [{ offsetBytes: 0, lengthBytes: 1 << 20 }]);
  expect(str(await peer.request(MessageType.ping, text('bytes'), ok))).toBe(`${2 << 20} bytes`);
  // It goes without a word; what is asked then fails at its deadline, and nothing else happens.
  if ('terminate' in other) await other.terminate();
  else other.kill('SIGKILL');
  expect((await failure(peer.request(MessageType.ping, text('x'), { timeoutMs: 200 }))).reason).toBe('deadlinePassed');
});

test('a worker thread may end at any time with connections open', async () => {
  // The addon alone: workers can't load TypeScript, and what matters is who frees what.
  const file = new URL(
    `../../native/tcp/${process.env['HOLDFAST_NATIVE'] === 'asan' ? 'build-asan' : 'build'}/Release/tcp.node`,
    import.meta.url,
  ).pathname;
  const script = `
    const { parentPort, workerData } = require('node:worker_threads');
    const addon = require(workerData.file);
    const noop = () => undefined;
    const engine = addon.createEngine(new ArrayBuffer(65536), [noop, noop, noop, noop, noop],
      new Uint32Array(16), new Uint32Array(16));
    const [error, , port] = addon.listen(engine, '127.0.0.1', 0, 16);
    if (error) throw new Error('listen');
    for (let i = 0; i < 5; i++) addon.dial(engine, '127.0.0.1', port);
    addon.openWindow(engine, 1, 2, new Float64Array([0, 4096]));
    setTimeout(() => parentPort.postMessage(port), 5);
    setInterval(noop, 1000);
  `;
  for (const how of ['terminate', 'disconnect'] as const) {
    const worker = new Worker(script, { eval: true, workerData: { file } });
    const port = await new Promise<number>((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    const socket = net.connect(port, '127.0.0.1');
    socket.on('error', () => undefined);
    await new Promise((resolve) => socket.once('connect', resolve));
    if (how === 'disconnect') socket.destroy();
    await worker.terminate();
    socket.destroy();
  }
});

test('closing a fabric under traffic leaves nothing behind', async () => {
  const { one, two } = await pair();
  two.fabric.handleRequests(MessageType.ping, ({ body }) => body);
  const peer = one.fabric.peer(nodeId(2));
  await peer.request(MessageType.ping, text('x'), ok);
  const window = two.fabric.expose(nodeId(1), [{ offsetBytes: 0, lengthBytes: 4 << 20 }], 'write');
  const all = [{ offsetBytes: 0, lengthBytes: 4 << 20 }];
  const pending = [
    peer.writeRemote(window.remote, 0, all),
    peer.request(MessageType.ping, new Uint8Array(200_000), ok),
    peer.writeRemote(window.remote, 0, all),
  ].map((promise) => failure(promise));
  await one.fabric.close();
  for (const error of await Promise.all(pending)) expect(error.reason).toBe('closed');
  await one.fabric.close();
  await window.close();
});

test('a transport that was closed refuses to dial, to listen and to name windows', async () => {
  const transport = new TcpTransport(heapPagePool(4096));
  transport.close();
  const { signal } = new AbortController();
  expect((await failure(transport.dial({ host: '127.0.0.1', port: 1 }, signal))).reason).toBe('closed');
});
