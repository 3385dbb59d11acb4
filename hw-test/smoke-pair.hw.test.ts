/** Two machines over one network: RDMA both ways, and each attaches the other's namespace. The same file runs on both. */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { hardware } from './guest/environment.js';
import { barrier, publish, receive } from './guest/exchange.js';
import { connectNamespace, disconnect, exportNamespace } from './guest/nvmet.js';
import {
  PERFTEST_DEADLINE_MS,
  perftestArguments,
  perftestBandwidth,
  perftestLatency,
  perftestRow,
} from './guest/perftest.js';
import { background, listening, tool } from './guest/tools.js';

const environment = hardware();
const { guest, address, peer } = environment;
const other = 3 - guest;
const MARK_BYTES = 65_536;

beforeAll(() => barrier('start'));
afterAll(() => barrier('end'));

test.each([1, 2])('rping from the other guest is answered by guest %i', async (server) => {
  if (guest === server) {
    const answering = background('rping', ['-s', '-C', '10', '-a', address]);
    publish(`rping.${server}`);
    // A server's exit status is that of an unexpected end when its client leaves first; what counts is what the client saw.
    await receive(`rping.${server}.done`);
    await answering.stop();
  } else {
    await receive(`rping.${server}`);
    // It listens a moment after it was started, and says so to nobody: refused until then.
    const ping = () => tool('rping', ['-c', '-v', '-C', '10', '-a', peer]).catch(String);
    await expect.poll(ping).toContain('rdma-ping-9');
    publish(`rping.${server}.done`);
  }
});

/** Guest 1 serves a perftest program `rounds` times, guest 2 gets the figures. */
async function acrossGuests<T>(
  name: string,
  program: string,
  extra: readonly string[],
  measure: (run: () => Promise<number[]>) => Promise<T>,
): Promise<T | null> {
  const args = perftestArguments(extra);
  let round = 0;
  if (guest === 2) {
    const result = await measure(async () => {
      round++;
      publish(`${name}.wanted.${round}`, true);
      await receive(`${name}.listening.${round}`);
      try {
        return perftestRow(await tool(program, [...args, peer], PERFTEST_DEADLINE_MS));
      } finally {
        publish(`${name}.over.${round}`);
      }
    });
    publish(`${name}.wanted.${round + 1}`, false);
    return result;
  }
  for (;;) {
    round++;
    if (!(await receive<boolean>(`${name}.wanted.${round}`))) return null;
    const server = background(program, args);
    await listening(18515);
    publish(`${name}.listening.${round}`);
    await receive(`${name}.over.${round}`);
    await server.stop();
  }
}

test('perftest gives the figures between guests', async () => {
  const latency = await acrossGuests('latency', 'ib_send_lat', ['-s', '64', '-n', '500', '-e'], perftestLatency);
  const read = await acrossGuests('read', 'ib_read_bw', ['-s', '1048576', '-n', '50', '-t', '16'], perftestBandwidth);
  if (guest === 1) return;
  console.log(
    `baseline: between guests ib_send_lat 64 B ${latency?.typicalUs} us with events, 1 MiB reads ${read?.megabytesPerSecond} MB/s`,
  );
  expect(latency?.typicalUs).toBeGreaterThan(0);
  expect(read?.megabytesPerSecond).toBeGreaterThan(0);
});

test.each(['rdma', 'tcp'] as const)(
  "what one guest writes to the other's namespace over %s is on the other's device",
  async (transport) => {
    const device = environment.nvme[1];
    if (device === undefined) throw new Error('no namespace may be written to here: name some with --nvme');
    const nqn = (of: number) => `holdfast-pair-${transport}-${of}`;
    const target = { device, transport, port: 4420, portId: 1 };
    const takeBack = exportNamespace({ ...target, nqn: nqn(guest), address });
    try {
      await barrier(`${transport}.exported`);
      const remote = await connectNamespace({ ...target, nqn: nqn(other), address: peer }, ['--ctrl-loss-tmo=10']);
      const mark = randomBytes(MARK_BYTES);
      const descriptor = openSync(remote, 'rs+');
      writeSync(descriptor, mark, 0, MARK_BYTES, 0);
      closeSync(descriptor);
      publish(`${transport}.mark.${guest}`, mark.toString('base64'));
      const theirs = Buffer.from(await receive<string>(`${transport}.mark.${other}`), 'base64');
      const local = openSync(device, 'r');
      const found = Buffer.alloc(MARK_BYTES);
      readSync(local, found, 0, MARK_BYTES, 0);
      closeSync(local);
      expect(found.equals(theirs)).toBe(true);
      await disconnect(nqn(other));
      await barrier(`${transport}.disconnected`);
    } finally {
      takeBack();
    }
  },
);
