/** All that the other suites stand on, seen with the native tools; and the figures that theirs are ratios of. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { characterDevice, hardware } from './guest/environment.js';
import { connectNamespace, disconnect, exportNamespace } from './guest/nvmet.js';
import { fioRandomReads, perftestBandwidth, perftestLatency, perftestPair } from './guest/perftest.js';
import { background, tool } from './guest/tools.js';

const environment = hardware();

/** Writes through the block device, past the page cache, and gives what was written. */
function writeMark(device: string, lengthBytes = 65_536): Buffer {
  const mark = randomBytes(lengthBytes);
  const descriptor = openSync(device, 'r+');
  writeSync(descriptor, mark, 0, mark.length, 0);
  closeSync(descriptor);
  execFileSync('blockdev', ['--flushbufs', device]);
  return mark;
}

function readBack(device: string, lengthBytes = 65_536): Buffer {
  return execFileSync('dd', [`if=${device}`, `bs=${lengthBytes}`, 'count=1', 'iflag=direct', 'status=none'], {
    maxBuffer: 2 * lengthBytes,
  });
}

function namespace(index: number): string {
  const device = environment.nvme[index];
  if (device === undefined) throw new Error('no namespace may be written to here: name some with --nvme');
  return device;
}

describe('RDMA', () => {
  test('the port is active', async () => {
    expect(await tool('rdma', ['link', 'show', `${environment.rdma}/1`])).toContain('state ACTIVE');
    expect(await tool('ibv_devinfo', ['-d', environment.rdma])).toContain('PORT_ACTIVE');
  });

  test('rping goes round within one machine', async () => {
    const server = background('rping', ['-s', '-C', '5', '-a', environment.address]);
    await expect
      .poll(() => tool('rping', ['-c', '-v', '-C', '5', '-a', environment.address]).catch(String), { timeout: 20_000 })
      .toContain('rdma-ping-4');
    await server.ended();
  });

  test('perftest gives the figures to compare with', async () => {
    const polling = await perftestLatency(() => perftestPair('ib_send_lat', ['-s', '64', '-n', '1000']));
    const events = await perftestLatency(() => perftestPair('ib_send_lat', ['-s', '64', '-n', '1000', '-e']));
    const large = (program: string) =>
      perftestBandwidth(() => perftestPair(program, ['-s', '1048576', '-n', '200', '-t', '16']));
    const { megabytesPerSecond: read } = await large('ib_read_bw');
    const { megabytesPerSecond: write } = await large('ib_write_bw');
    const { messagesPerSecond: messages } = await perftestBandwidth(
      () => perftestPair('ib_send_bw', ['-s', '64', '-n', '20000', '-t', '64']),
      'messages',
    );
    console.log(`baseline: ib_send_lat 64 B ${polling.typicalUs} us polling, ${events.typicalUs} us with events`);
    console.log(`baseline: 1 MiB reads ${read} MB/s, writes ${write} MB/s; 64 B messages ${Math.round(messages)}/s`);
    expect(Math.min(polling.typicalUs, events.typicalUs, read, write, messages)).toBeGreaterThan(0);
  });
});

describe('NVMe', () => {
  test('namespaces with 512 and 4096 bytes per LBA and with protection information are there', async () => {
    const formats = [];
    for (const device of environment.nvme) {
      const identified = JSON.parse(await tool('nvme', ['id-ns', device, '-o', 'json'])) as {
        flbas: number;
        dps: number;
        lbafs: { ms: number; ds: number }[];
      };
      const format = identified.lbafs[identified.flbas & 15]!;
      formats.push(`${2 ** format.ds}+${format.ms} type ${identified.dps & 7}`);
    }
    if (environment.kind === 'guest') expect(formats).toEqual(['512+0 type 0', '4096+0 type 0', '512+8 type 1']);
    else expect(formats).not.toEqual([]);
  });

  test('what the block device wrote is what a command on the character device reads', async () => {
    const device = namespace(0);
    const mark = writeMark(device);
    const read = execFileSync('nvme', ['read', characterDevice(device), '-s', '0', '-c', '7', '-z', '4096'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    expect(read.subarray(0, 4096).equals(mark.subarray(0, 4096))).toBe(true);
  });

  test('fio reads by passthrough and through the block device', async () => {
    const device = namespace(0);
    const passthrough = await fioRandomReads(characterDevice(device), 32);
    const single = await fioRandomReads(characterDevice(device), 1);
    const block = await fioRandomReads(device, 32);
    console.log(
      `baseline: 4 KiB random reads ${passthrough.iops}/s by passthrough at depth 32, ${single.iops}/s at depth 1 (${single.p50Us} us)`,
    );
    console.log(`baseline: 4 KiB random reads ${block.iops}/s through the block device at depth 32`);
    expect(Math.min(passthrough.iops, single.iops, block.iops)).toBeGreaterThan(0);
  });
});

describe('NVMe over fabrics', () => {
  const transports = environment.loop ? (['rdma', 'tcp', 'loop'] as const) : (['rdma', 'tcp'] as const);
  test.each(transports)('a namespace exported over %s reads the same as the device under it', async (transport) => {
    const device = namespace(1);
    const mark = writeMark(device);
    const target = {
      nqn: `holdfast-smoke-${transport}`,
      device,
      transport,
      address: environment.address,
      port: 4420,
      portId: 1,
    };
    const takeBack = exportNamespace(target);
    try {
      const remote = await connectNamespace(target);
      expect(readBack(remote).equals(mark)).toBe(true);
      const { iops } = await fioRandomReads(characterDevice(remote), 32, 2);
      console.log(`baseline: 4 KiB random reads ${iops}/s by passthrough at depth 32 over ${transport}`);
      await disconnect(target.nqn);
    } finally {
      takeBack();
    }
  });

  test('nvme-loop is there where it could be built', () => {
    const loaded = readFileSync('/proc/modules', 'utf8').includes('nvme_loop ');
    if (environment.kind === 'guest') expect(loaded).toBe(environment.loop);
  });
});

test('a core dump lands where the host finds it', async () => {
  const folder = path.join(environment.share, `guest${environment.guest}`, 'cores');
  const victim = background('bash', ['-c', 'ulimit -c unlimited; kill -SEGV $$']);
  await victim.ended();
  if (environment.kind === 'native') return;
  const core = readdirSync(folder).find((name) => name.startsWith('core.bash.'));
  expect(core).toBeDefined();
  expect(statSync(path.join(folder, core!)).size).toBeGreaterThan(4096);
  rmSync(path.join(folder, core!));
});
