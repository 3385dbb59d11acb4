import { type ChildProcess, spawn } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ADDRESS, End, ended, Setup } from './support.js';

/**
 * rdma-core's own programs as peers. rping's protocol: the client tells where its data is (address, key, length, 16 bytes in network
 * order); the server reads it, says so with a message of any content; the client tells where its sink is; the server writes the data
 * there, says so; and again. The message is a text that ends with a zero byte.
 */
let setup: Setup;
beforeAll(() => {
  setup = new Setup();
});
afterAll(() => setup.close());

const PING_BYTES = 64;
const INFO_BYTES = 16;
// In our memory.
const SEND_AT = 0;
const RECEIVE_AT = 256;
const SOURCE_AT = 4096;
const SINK_AT = 8192;

function start(program: string, ...args: string[]): { child: ChildProcess; output: () => string } {
  // Its standard output is a pipe: without stdbuf we would see nothing before the end.
  const child = spawn('stdbuf', ['-oL', program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream?.on('data', (chunk) => (text += String(chunk)));
  return { child, output: () => text };
}

function tell(at: number, address: number, key: number, lengthBytes: number): void {
  const info = new DataView(setup.memory, at, INFO_BYTES);
  info.setBigUint64(0, BigInt(address));
  info.setUint32(8, key);
  info.setUint32(12, lengthBytes);
}

let nextId = 1;
async function receiveThen(end: End, act: () => void): Promise<void> {
  const id = nextId++;
  end.pair.receive(setup.region.segment(RECEIVE_AT, INFO_BYTES), id);
  act();
  end.pair.post();
  expect((await end.completion(id)).status).toBe('success');
}

/** Tries until the program listens. */
async function connectPatiently(port: number, prepare: (end: End) => void = () => {}): Promise<End> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await setup.connect(port, { maxReceive: 16, maxSend: 16, prepare });
    } catch (error) {
      if (attempt >= 50) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

/** The next connection request, accepted, with receives posted before. */
function acceptOne(port: number, receives: number): Promise<End> {
  const listener = setup.channel.createId();
  listener.bind(ADDRESS, port);
  const accepted = new Promise<End>((resolve, reject) => {
    listener.onEvent = (event) => {
      if (event.type !== 'connectRequest') return;
      const end = new End(setup, event.request.id, { maxReceive: 64 });
      for (let i = 0; i < receives; i++)
        end.pair.receive(setup.region.segment(RECEIVE_AT + i * 1024, 1024), 10_000 + i);
      end.pair.post();
      event.request.id.accept({ queuePair: end.pair }).then(() => resolve(end), reject);
      listener.close();
    };
  });
  listener.listen();
  return accepted;
}

describe('rping', () => {
  it('is served by us', async () => {
    const accepting = acceptOne(7601, 1);
    const { child, output } = start(
      'rping',
      '-c',
      '-a',
      ADDRESS,
      '-p',
      '7601',
      '-C',
      '5',
      '-v',
      '-V',
      '-S',
      String(PING_BYTES),
    );
    const end = await accepting;
    const info = (): { address: number; key: number; lengthBytes: number } => {
      const view = new DataView(setup.memory, RECEIVE_AT, INFO_BYTES);
      return { address: Number(view.getBigUint64(0)), key: view.getUint32(8), lengthBytes: view.getUint32(12) };
    };
    let receiveId = 10_000;
    const nextInfo = async (): Promise<ReturnType<typeof info>> => {
      expect(await end.completion(receiveId)).toMatchObject({ status: 'success', lengthBytes: INFO_BYTES });
      const told = info();
      receiveId++;
      end.pair.receive(setup.region.segment(RECEIVE_AT, 1024), receiveId);
      end.pair.post();
      return told;
    };
    for (let round = 0; round < 5; round++) {
      const source = await nextInfo();
      end.pair.read(setup.region.segment(SINK_AT, source.lengthBytes), source, { id: 1 });
      expect((await end.post(1)).status).toBe('success');
      const text = Buffer.from(setup.memory, SINK_AT, source.lengthBytes);
      expect(text.toString('latin1')).toContain(`rdma-ping-${round}: `);
      end.pair.send(setup.region.segment(SEND_AT, INFO_BYTES), { id: 2 });
      expect((await end.post(2)).status).toBe('success');
      const sink = await nextInfo();
      end.pair.write(setup.region.segment(SINK_AT, text.indexOf(0) + 1), sink, { id: 3 });
      end.pair.send(setup.region.segment(SEND_AT, INFO_BYTES), { id: 4 });
      end.pair.post();
      expect([(await end.completion(3)).status, (await end.completion(4)).status]).toEqual(['success', 'success']);
    }
    expect(await ended(child)).toBe(0);
    for (let round = 0; round < 5; round++) expect(output()).toContain(`ping data: rdma-ping-${round}: `);
    end.close();
  });

  it('serves us', async () => {
    const { child, output } = start(
      'rping',
      '-s',
      '-a',
      ADDRESS,
      '-p',
      '7602',
      '-C',
      '5',
      '-v',
      '-S',
      String(PING_BYTES),
    );
    const end = await connectPatiently(7602);
    for (let round = 0; round < 5; round++) {
      const text = `rdma-ping-${round}: from JavaScript`;
      setup.bytes.fill(0, SOURCE_AT, SOURCE_AT + PING_BYTES);
      setup.bytes.set(Buffer.from(text), SOURCE_AT);
      setup.bytes.fill(0, SINK_AT, SINK_AT + PING_BYTES);
      await receiveThen(end, () => {
        tell(SEND_AT, setup.region.address + SOURCE_AT, setup.region.remoteKey, PING_BYTES);
        end.pair.send(setup.region.segment(SEND_AT, INFO_BYTES), { signalled: false });
      });
      await receiveThen(end, () => {
        tell(SEND_AT, setup.region.address + SINK_AT, setup.region.remoteKey, PING_BYTES);
        end.pair.send(setup.region.segment(SEND_AT, INFO_BYTES), { signalled: false });
      });
      expect(Buffer.from(setup.memory, SINK_AT, text.length).toString()).toBe(text);
    }
    end.id.disconnect();
    end.close();
    await ended(child);
    expect(output()).toContain('server ping data: rdma-ping-4: from JavaScript');
  });
});

describe('ucmatose', () => {
  it('connects to us, exchanges messages, disconnects', async () => {
    const accepting = acceptOne(7603, 10);
    const { child, output } = start('ucmatose', '-s', ADDRESS, '-p', '7603', '-c', '1', '-C', '10', '-S', '100');
    const end = await accepting;
    for (let i = 0; i < 10; i++) end.pair.send(setup.region.segment(SEND_AT, 100), { id: i });
    end.pair.post();
    for (let i = 0; i < 10; i++) {
      expect(await end.completion(i)).toMatchObject({ status: 'success' });
      expect(await end.completion(10_000 + i)).toMatchObject({ status: 'success', lengthBytes: 100 });
    }
    // It waits for us to do the same.
    if (!end.events.includes('disconnected')) end.id.disconnect();
    expect(await ended(child)).toBe(0);
    expect(output()).toContain('test complete');
    end.close();
  });

  it('accepts us, exchanges messages, disconnects', async () => {
    const { child, output } = start('ucmatose', '-p', '7604', '-c', '1', '-C', '10', '-S', '100');
    const end = await connectPatiently(7604, (prepared) => {
      for (let i = 0; i < 10; i++) prepared.pair.receive(setup.region.segment(RECEIVE_AT + i * 128, 128), 100 + i);
      prepared.pair.post();
    });
    for (let i = 0; i < 10; i++) end.pair.send(setup.region.segment(SEND_AT, 100), { id: i });
    end.pair.post();
    for (let i = 0; i < 10; i++) {
      expect(await end.completion(100 + i)).toMatchObject({ status: 'success', lengthBytes: 100 });
      expect((await end.completion(i)).status).toBe('success');
    }
    end.close();
    expect(await ended(child)).toBe(0);
    expect(output()).toContain('test complete');
  });
});
