import type { ChildProcess } from 'node:child_process';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { RdmaError } from '../lib/index.js';
import { ended, MIB, PeerClient, Setup, startPeer } from './support.js';

/** Between two processes; between two guests where HOLDFAST_HW_GUESTS is 2: the other runs peer.mjs at this port. */
const PORT = 18_515;
const apart = process.env['HOLDFAST_HW_GUESTS'] === '2';
const host = apart ? process.env['HOLDFAST_HW_PEER'] : undefined;
const options = host === undefined ? {} : { host };

let setup: Setup;
let process_: ChildProcess | null = null;
let peer: PeerClient;

async function connectPatiently(): Promise<PeerClient> {
  // The other guest may still be booting.
  for (let attempt = 0; ; attempt++) {
    try {
      return await PeerClient.connect(setup, PORT, options);
    } catch (error) {
      if (attempt >= 60) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

beforeAll(async () => {
  if (!apart) process_ = await startPeer(PORT);
  setup = new Setup();
  (await connectPatiently()).end.close();
});
afterAll(async () => {
  if (apart) await (await PeerClient.connect(setup, PORT, options)).ask({ op: 'exit' });
  setup.close();
  process_?.kill();
});
beforeEach(async () => {
  peer = await PeerClient.connect(setup, PORT, options);
});
afterEach(() => peer.end.close());

const remote = (offset: number): { address: number; key: number } => ({
  address: peer.address + offset,
  key: peer.key,
});

describe('another process', () => {
  it('answers messages, and its memory is written and read', async () => {
    for (let i = 0; i < 50; i++)
      expect(await peer.ask({ op: 'echo', text: `ping ${i}` })).toMatchObject({ text: `ping ${i}` });
    setup.bytes.set(Buffer.from('written from afar'), 8192);
    peer.end.pair.write(setup.region.segment(8192, 17), remote(4096), { id: 1 });
    expect((await peer.end.post(1)).status).toBe('success');
    expect(await peer.ask({ op: 'look', offset: 4096, length: 17 })).toMatchObject({ text: 'written from afar' });
    await peer.ask({ op: 'fill', byte: 0x5a, offset: MIB, length: MIB });
    peer.end.pair.read(setup.region.segment(MIB, MIB), remote(MIB), { id: 2 });
    expect((await peer.end.post(2)).status).toBe('success');
    expect(setup.bytes.subarray(MIB, 2 * MIB).every((byte) => byte === 0x5a)).toBe(true);
    peer.end.pair.fetchAndAdd(setup.region.segment(8192, 8), remote(0), 7n, { id: 3 });
    peer.end.pair.compareAndSwap(setup.region.segment(8200, 8), remote(0), 7n, 0n, { id: 4 });
    expect([(await peer.end.post(3)).status, (await peer.end.completion(4)).status]).toEqual(['success', 'success']);
    expect(new DataView(setup.memory).getBigUint64(8200, true)).toBe(7n);
  });

  it('is told by immediate data, in a message and behind a write; fences, inline pieces; its receives come from a shared queue', async () => {
    const other = await PeerClient.connect(setup, PORT, {
      ...options,
      privateData: new Uint8Array([1]),
      maxInlineBytes: 64,
    });
    const at = (offset: number) => ({ address: other.address + offset, key: other.key });
    const { pair } = other.end;
    expect(await other.ask({ op: 'echo', text: 'a' }, { immediate: 99 })).toMatchObject({ text: 'a', immediate: 99 });
    expect(await other.ask({ op: 'echo', text: 'b' }, { pieces: true })).toMatchObject({ text: 'b', immediate: null });
    setup.bytes.set(Buffer.from('behind a fence'), 8192);
    pair.writeWithImmediate(setup.region.segment(8192, 14), at(4096), 4711, { id: 1, signalled: false });
    pair.read(setup.region.segment(12_288, 14), at(4096), { id: 2, signalled: false });
    pair.write(setup.region.segment(12_288, 14), at(20_480), { id: 3, fence: true });
    expect((await other.end.post(3)).status).toBe('success');
    expect(await other.ask({ op: 'look', offset: 20_480, length: 14 })).toEqual({ text: 'behind a fence' });
    for (let i = 0; i < 40; i++) await other.ask({ op: 'echo', text: `${i}` });
    expect(await other.ask({ op: 'noted' })).toEqual({ immediates: [4711] });
    other.end.close();
  });

  it('opens a window for a transfer, and closes it, from either side', async () => {
    const bound = await peer.ask({ op: 'bind', offset: 65_536, length: 4096, access: { remoteWrite: true } });
    expect(bound).toMatchObject({ status: 'success' });
    const window = { address: bound['address'] as number, key: bound['key'] as number };
    setup.bytes.fill(0x41, 8192, 8192 + 4096);
    peer.end.pair.write(setup.region.segment(8192, 4096), window, { id: 1 });
    expect((await peer.end.post(1)).status).toBe('success');
    // It is for writing.
    const invalidated = await peer.ask({ op: 'echo', text: 'done' }, { invalidateKey: window.key });
    // Soft-RoCE invalidates without saying so in the completion.
    expect([window.key, null]).toContain(invalidated['invalidatedKey']);
    const refused = await PeerClient.connect(setup, PORT, options);
    refused.end.pair.write(setup.region.segment(8192, 64), window, { id: 1 });
    expect((await refused.end.post(1)).status).toBe('remoteAccessError');
    refused.end.close();
    const again = await peer.ask({ op: 'bind', offset: 65_536, length: 4096, access: { remoteWrite: true } });
    expect(again['key']).not.toBe(window.key);
    expect(await peer.ask({ op: 'invalidate' })).toMatchObject({ status: 'success' });
    setup.bytes.fill(0x42, 8192, 8192 + 4096);
    peer.end.pair.write(
      setup.region.segment(8192, 4096),
      { address: window.address, key: again['key'] as number },
      { id: 2 },
    );
    expect((await peer.end.post(2)).status).toBe('remoteAccessError');
    const other = await PeerClient.connect(setup, PORT, options);
    expect(await other.ask({ op: 'look', offset: 65_536, length: 3 })).toEqual({ text: 'AAA' });
    other.end.close();
  });
});

describe('what goes wrong', () => {
  it('connection refused: nobody listens', async () => {
    await expect(setup.connect(PORT + 1, options)).rejects.toMatchObject({
      code: 'ECONNREFUSED',
      operation: 'rdma_connect',
    });
  });

  it('connection rejected: with the reason that the peer gives', async () => {
    const error = await setup.connect(PORT, { ...options, privateData: new Uint8Array([0xff]) }).then(
      () => null,
      (reason: RdmaError) => reason,
    );
    expect(error).toMatchObject({ code: 'ECONNREFUSED' });
    expect(Buffer.from(error?.privateData as Uint8Array).toString()).toMatch(/^not you\0*$/);
  });

  it('wrong remote key: an error here, nothing written there', async () => {
    await peer.ask({ op: 'fill', byte: 0x30, offset: 16_384, length: 64 });
    setup.bytes.fill(0x31, 8192, 8192 + 64);
    peer.end.pair.write(
      setup.region.segment(8192, 64),
      { address: peer.address + 16_384, key: peer.key ^ 0x55 },
      { id: 1 },
    );
    peer.end.pair.write(setup.region.segment(8192, 64), remote(16_384), { id: 2 });
    expect(await peer.end.post(1)).toMatchObject({ status: 'remoteAccessError', operation: 'write' });
    expect(await peer.end.completion(2)).toMatchObject({ status: 'flushed', operation: 'write' });
    expect(peer.end.pair.failure).toMatchObject({ workStatus: 'remoteAccessError', workOperation: 'write' });
    expect(peer.end.pair.state).toBe('error');
    const other = await PeerClient.connect(setup, PORT, options);
    expect(await other.ask({ op: 'look', offset: 16_384, length: 4 })).toEqual({ text: '0000' });
    // Beyond the end of its memory.
    other.end.pair.read(
      setup.region.segment(8192, 64),
      { address: other.address + 4 * MIB - 32, key: other.key },
      { id: 3 },
    );
    expect((await other.end.post(3)).status).toBe('remoteAccessError');
    other.end.close();
  });

  it('full receive queue: bounded retries, then an error', async () => {
    const { receives } = (await peer.ask({ op: 'stall' })) as { receives: number };
    expect(receives).toBeGreaterThan(0);
    setup.bytes.set(Buffer.from('{"op":"none"}'), 8192);
    // Its answers need receives of ours.
    for (let i = 0; i < 32; i++) peer.end.pair.receive(setup.region.segment(16_384 + i * 64, 64), 500 + i);
    for (let i = 0; i < 32; i++) peer.end.pair.send(setup.region.segment(8192, 13), { id: i });
    peer.end.pair.post();
    const failed = await peer.end.completionThat(
      ({ operation, status }) => operation === 'send' && status !== 'success',
    );
    expect(failed.status).toBe('receiverNotReadyRetryExceeded');
    expect(failed.id).toBeGreaterThanOrEqual(receives);
    expect((await peer.end.completion(31)).status).toBe('flushed');
  });

  it('queue pair error there: our requests fail, and the reason is known', async () => {
    // Where the peer's device says nothing, the watchdog does.
    const there = await PeerClient.connect(setup, PORT, { ...options, sendDeadlineMs: 2000 });
    setup.bytes.set(Buffer.from('{"op":"error"}'), 8192);
    there.end.pair.send(setup.region.segment(8192, 14), { id: 1 });
    there.end.pair.post();
    await there.end.completion(1);
    let last = 'success';
    for (let id = 2; id < 2000 && last === 'success'; id++) {
      there.end.pair.write(setup.region.segment(8192, 64), { address: there.address + 32_768, key: there.key }, { id });
      last = (await there.end.post(id)).status;
    }
    expect(['retryExceeded', 'remoteOperationError', 'flushed']).toContain(last);
    expect(there.end.pair.failure).not.toBeNull();
    there.end.close();
  });

  it('deregistration there while we write: an error, and nothing lands after it', async () => {
    await peer.ask({ op: 'deregister', afterMs: 50 });
    setup.bytes.fill(0x77, MIB, 2 * MIB);
    let failed: string | null = null;
    for (let i = 0; failed === null; i++) {
      peer.end.pair.write(setup.region.segment(MIB, MIB), remote(MIB), { id: i });
      const { status } = await peer.end.post(i);
      if (status !== 'success') failed = status;
    }
    expect(failed).toBe('remoteAccessError');
    const other = await PeerClient.connect(setup, PORT, options);
    expect(await other.ask({ op: 'look', offset: MIB, length: 4 })).toEqual({ text: '\0\0\0\0' });
    other.end.close();
  });

  it('deregistration here while it is written: what is not done fails, the memory is left alone', async () => {
    const buffer = new ArrayBuffer(MIB);
    const region = setup.domain.registerMemory(buffer, { localWrite: true });
    await peer.ask({ op: 'fill', byte: 0x66, offset: MIB, length: MIB });
    for (let i = 0; i < 100; i++) peer.end.pair.read(region.segment(0, MIB), remote(MIB), { id: i });
    peer.end.pair.post();
    region.close();
    new Uint8Array(buffer).fill(1);
    const statuses: string[] = [];
    for (let i = 0; i < 100; i++) statuses.push((await peer.end.completion(i)).status);
    // Between processes of one machine soft-RoCE may do them all before `post` returns.
    if (apart) expect(statuses.at(-1)).not.toBe('success');
    for (const status of statuses)
      expect(['success', 'localProtectionError', 'localQueuePairOperationError', 'flushed']).toContain(status);
    await peer.end.pair.drain();
    expect(new Uint8Array(buffer).every((byte) => byte === 1)).toBe(true);
  });

  it('the watchdog ends a request that nobody answers', async () => {
    const [left, right] = await setup.pair({ sendDeadlineMs: 40, rnrRetryCount: 6 });
    // No receive there, and a long time between the retries: longer than the deadline.
    left.pair.send(setup.region.segment(0, 64), { id: 1 });
    for (let i = 2; i < 20; i++) left.pair.send(setup.region.segment(0, 64), { id: i });
    left.pair.post();
    const first = await left.completion(1);
    expect(first.status).not.toBe('success');
    expect(['ETIMEDOUT', 'EIO']).toContain(left.pair.failure?.code);
    for (let i = 2; i < 20; i++) expect((await left.completion(i)).status).toBe('flushed');
    left.close();
    right.close();
  });
});

describe('a process that dies', () => {
  it('killed in the middle of a transfer: everything outstanding comes back, and a new one is connected to', async () => {
    const { pair } = peer.end;
    await peer.ask({ op: 'die', afterMs: 100 });
    let nextId = 0;
    let nextDone = 0;
    let broken = 0;
    // Sixteen in flight, until one fails.
    while (broken === 0) {
      while (nextId - nextDone < 16) {
        pair.write(setup.region.segment(0, MIB), remote(MIB), { id: nextId });
        nextId++;
      }
      pair.post();
      if ((await peer.end.completion(nextDone++)).status !== 'success') broken++;
    }
    for (; nextDone < nextId; nextDone++) await peer.end.completion(nextDone);
    expect([pair.sendsOutstanding, peer.end.arrived]).toEqual([0, []]);
    expect(['ECONNRESET', 'EIO', 'ETIMEDOUT']).toContain(pair.failure?.code);
    if (process_ !== null) {
      await ended(process_);
      process_ = await startPeer(PORT);
    }
    const again = await connectPatiently();
    expect(await again.ask({ op: 'echo', text: 'alive' })).toMatchObject({ text: 'alive' });
    again.end.close();
  });
});
