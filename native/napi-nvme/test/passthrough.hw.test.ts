/** Commands passed through to the emulated namespaces, checked by other tools through the block device: dd and nvme-cli. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type BlockDeviceHandle,
  BlockEngine,
  BlockIoError,
  blockCommand,
  datasetManagementCommand,
  getFeaturesCommand,
  type IoBuffer,
  identifyCommand,
  makeCommand,
  NvmeCommandError,
  NvmeDevice,
  protectionInformation,
  Reservations,
  reservationReportCommand,
  STATUS,
  statusKey,
} from '../lib/index.js';

const namespaces = (process.env['HOLDFAST_HW_NVME'] ?? '').split(',').filter((name) => name !== '');
const MIB = 1 << 20;

let engine: BlockEngine;
beforeEach(() => {
  engine = new BlockEngine({ queueDepth: 32 });
});
afterEach(() => engine.close());

const tool = (command: string, ...args: string[]): Buffer =>
  execFileSync(command, args, { maxBuffer: 64 * MIB, stdio: ['ignore', 'pipe', 'pipe'] });
const json = (...args: string[]): Record<string, unknown> =>
  JSON.parse(tool('nvme', ...args, '-o', 'json').toString()) as Record<string, unknown>;
/** What the kernel's block device holds there. */
const ddRead = (path: string, offsetBytes: number, lengthBytes: number): Buffer =>
  tool(
    'dd',
    `if=${path}`,
    'iflag=direct,skip_bytes,count_bytes',
    `skip=${offsetBytes}`,
    `count=${lengthBytes}`,
    'bs=64k',
    'status=none',
  );
function ddWrite(path: string, offsetBytes: number, bytes: Uint8Array): void {
  const file = `/tmp/dd-${process.pid}`;
  fs.writeFileSync(file, bytes);
  tool(
    'dd',
    `if=${file}`,
    `of=${path}`,
    'oflag=direct,seek_bytes',
    `seek=${offsetBytes}`,
    'bs=64k',
    'conv=notrunc',
    'status=none',
  );
}
function fill(buffer: IoBuffer, at = 0, lengthBytes = buffer.lengthBytes): Buffer {
  const bytes = randomBytes(lengthBytes);
  new Uint8Array(buffer.buffer).set(bytes, at);
  return bytes;
}
const bytesOf = (buffer: IoBuffer, at: number, lengthBytes: number): Buffer =>
  Buffer.from(new Uint8Array(buffer.buffer).slice(at, at + lengthBytes));
async function failure(work: Promise<unknown>): Promise<BlockIoError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof BlockIoError) return error;
    throw error;
  }
  throw new Error('it should have failed');
}
async function refusal(work: Promise<unknown>): Promise<NvmeCommandError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof NvmeCommandError) return error;
    throw error;
  }
  throw new Error('it should have failed');
}

describe.each(namespaces)('the namespace %s', (path) => {
  let device: BlockDeviceHandle;
  beforeEach(async () => {
    device = await engine.open(path);
  });
  const generic = path.replace(/nvme(\d+n\d+)$/, 'ng$1');

  it('is worked with by commands, and says so', async () => {
    expect(device).toMatchObject({
      access: 'passthrough',
      kind: 'block',
      direct: true,
      readOnly: false,
      devicePath: generic,
    });
    const sectors = Number(fs.readFileSync(`/sys/class/block/${path.slice(5)}/size`, 'utf8'));
    expect(device.sizeBytes).toBe(sectors * 512);
    expect(device.namespace?.format.lbaBytes).toBe(device.logicalBlockBytes);
    expect(await device.refresh()).toBe(device.sizeBytes);
    const same = await engine.open(generic, { readOnly: true, access: 'passthrough' });
    expect(same).toMatchObject({ access: 'passthrough', sizeBytes: device.sizeBytes, readOnly: true });
    expect((await failure(same.write(0, engine.allocate(4096), 0, 4096))).code).toBe('EROFS');
    const block = await engine.open(path, { access: 'block' });
    expect(block).toMatchObject({ access: 'block', namespace: null, sizeBytes: device.sizeBytes });
  });

  it.each([true, false])(
    'holds what is written and gives what others wrote (registered memory: %s)',
    async (registered) => {
      const buffer = engine.allocate(4 * MIB, { registered });
      expect(buffer.registered).toBe(registered);
      for (const [offset, length] of [
        [0, 4096],
        [8192, 64 * 1024],
        [MIB + 4096, 3 * MIB],
        [device.sizeBytes - 4096 - (device.sizeBytes % 4096), 4096],
      ] as const) {
        const written = fill(buffer, 4096 * 3, Math.min(length, 3 * MIB));
        await device.write(offset, buffer, 4096 * 3, written.length);
        await device.flush();
        expect(ddRead(path, offset, written.length).equals(written)).toBe(true);
        const other = randomBytes(written.length);
        ddWrite(path, offset, other);
        await device.read(offset, buffer, 4096 * 5, other.length);
        expect(bytesOf(buffer, 4096 * 5, other.length).equals(other)).toBe(true);
      }
    },
  );

  it('reads what nvme-cli reads, in single blocks', async () => {
    const { logicalBlockBytes } = device;
    const buffer = engine.allocate(64 * 1024);
    const bytes = fill(buffer);
    await device.write(64 * 1024, buffer, 0, bytes.length);
    const first = (64 * 1024) / logicalBlockBytes + 3;
    const args = ['read', path, `--start-block=${first}`, '--block-count=1', `--data-size=${2 * logicalBlockBytes}`];
    const protection = device.namespace?.protectionType !== 0;
    const seen = tool('nvme', ...args, ...(protection ? ['--prinfo=8'] : []));
    expect(seen.equals(bytes.subarray(3 * logicalBlockBytes, 5 * logicalBlockBytes))).toBe(true);
  });

  it('takes memory at any dword', async () => {
    const buffer = engine.allocate(2 * MIB);
    const bytes = fill(buffer, 516, MIB);
    await device.write(MIB, buffer, 516, MIB);
    await device.read(MIB, buffer, MIB + 1028, MIB - 4096);
    expect(bytesOf(buffer, MIB + 1028, MIB - 4096).equals(bytes.subarray(0, MIB - 4096))).toBe(true);
    expect(ddRead(path, MIB, MIB).equals(bytes)).toBe(true);
    expect((await failure(device.read(0, buffer, 2, 4096))).code).toBe('EINVAL');
  });

  it('works on hundreds of operations at a time, larger and smaller than one command', async () => {
    const buffer = engine.allocate(16 * MIB);
    const bytes = fill(buffer);
    const lengths = [4096, 8192, 65_536, 528_384, MIB];
    const pieces: [number, number][] = [];
    for (let at = 0, i = 0; at < 16 * MIB; i++) {
      const length = Math.min(lengths[i % lengths.length]!, 16 * MIB - at);
      pieces.push([at, length]);
      at += length;
    }
    await Promise.all(pieces.map(([at, length]) => device.write(16 * MIB + at, buffer, at, length)));
    new Uint8Array(buffer.buffer).fill(0);
    await Promise.all(pieces.reverse().map(([at, length]) => device.read(16 * MIB + at, buffer, at, length)));
    expect(bytesOf(buffer, 0, 16 * MIB).equals(bytes)).toBe(true);
    expect(ddRead(path, 16 * MIB, MIB).equals(bytes.subarray(0, MIB))).toBe(true);
  });

  it('zeroes, discards, verifies and flushes', async () => {
    const buffer = engine.allocate(4 * MIB);
    fill(buffer);
    await device.write(4 * MIB, buffer, 0, 4 * MIB);
    await device.writeZeroes(4 * MIB + 8192, 2 * MIB);
    const seen = ddRead(path, 4 * MIB, 4 * MIB);
    expect(seen.subarray(8192, 8192 + 2 * MIB).every((byte) => byte === 0)).toBe(true);
    expect(seen.subarray(0, 8192).equals(bytesOf(buffer, 0, 8192))).toBe(true);
    expect(seen.subarray(8192 + 2 * MIB).equals(bytesOf(buffer, 8192 + 2 * MIB, 2 * MIB - 8192))).toBe(true);
    // Told of by the controller or not: the engine goes by what it tells, a single command tries.
    if (device.namespace?.can.verify) await device.verify(4 * MIB, 3 * MIB);
    else expect((await failure(device.verify(4 * MIB, 4096))).code).toBe('EOPNOTSUPP');
    const own = await NvmeDevice.open(generic);
    const first = (4 * MIB) / device.logicalBlockBytes;
    await own.send(blockCommand('verify', own.nsid!, { lba: first, blockCount: 8 }));
    await own.close();
    await device.discard(4 * MIB, 4 * MIB);
    await device.flush();
    await device.write(4 * MIB, buffer, 0, 4 * MIB);
    expect(ddRead(path, 4 * MIB, 4 * MIB).equals(bytesOf(buffer, 0, 4 * MIB))).toBe(true);
  });

  it('compares in the controller, where protection information leaves that to it', async () => {
    const buffer = engine.allocate(2 * MIB);
    fill(buffer);
    await device.write(0, buffer, 0, 2 * MIB);
    if (device.namespace?.can.compare !== true) {
      expect(device.namespace?.protectionType).not.toBe(0);
      expect((await failure(device.compare(0, buffer, 0, 4096))).code).toBe('EOPNOTSUPP');
      return;
    }
    expect(await device.compare(0, buffer, 0, 2 * MIB)).toBe(true);
    new Uint8Array(buffer.buffer)[MIB + 700] ^= 1;
    expect(await device.compare(0, buffer, 0, 2 * MIB)).toBe(false);
    expect(await device.compare(0, buffer, 0, MIB)).toBe(true);
  });

  it('ends where it ends: reads are short, writes have no space', async () => {
    const { sizeBytes, logicalBlockBytes } = device;
    const buffer = engine.allocate(MIB);
    await device.write(sizeBytes - 8 * logicalBlockBytes, buffer, 0, 8 * logicalBlockBytes);
    const end = await failure(device.read(sizeBytes - 2 * logicalBlockBytes, buffer, 0, 4 * logicalBlockBytes));
    expect(end).toMatchObject({ code: 'EIO', short: true, doneBytes: 2 * logicalBlockBytes, syscall: 'read' });
    expect(end.nvmeStatus).toMatchObject({ type: 'generic', words: 'LBA out of range', doNotRetry: true });
    expect(await failure(device.read(sizeBytes, buffer, 0, 4096))).toMatchObject({ short: true, doneBytes: 0 });
    const beyond = await failure(device.write(sizeBytes, buffer, 0, 4096));
    expect(beyond).toMatchObject({ code: 'ENOSPC', short: false });
    expect(beyond.message).toContain('LBA out of range');
    await device.read(0, buffer, 0, 4096);
  });

  it('says about itself what nvme-cli says', async () => {
    const own = await NvmeDevice.open(path);
    const compare = (ours: object, theirs: Record<string, unknown>, atLeast: number): void => {
      let compared = 0;
      for (const [name, value] of Object.entries(ours)) {
        if (!(name in theirs) || !['number', 'bigint', 'string'].includes(typeof value)) continue;
        compared++;
        expect([name, String(value).trim()]).toEqual([name, String(theirs[name]).trim()]);
      }
      expect(compared).toBeGreaterThanOrEqual(atLeast);
    };
    compare(await own.identifyController(), json('id-ctrl', path), 36);
    const namespace = await own.identifyNamespace();
    const theirs = json('id-ns', path);
    compare(namespace, theirs, 24);
    const formats = theirs['lbafs'] as { ms: number; ds: number; rp: number }[];
    expect(namespace.lbaFormats.map(({ lbaBytes, metadataBytes }) => [lbaBytes, metadataBytes])).toEqual(
      formats.map(({ ms, ds }) => [2 ** ds, ms]),
    );
    expect(own.nsid).toBe(device.namespace?.nsid);
    await own.close();
    expect((await refusal(own.identifyController())).code).toBe('EBADF');
  });

  it('has no reservations here, and says why before anything is tried', async () => {
    const own = await NvmeDevice.open(generic);
    const reservations = new Reservations(own);
    expect(await reservations.support()).toMatchObject({
      supported: false,
      reason: 'the controller has no reservations',
    });
    for (const call of [
      () => reservations.register(1n),
      () => reservations.unregister(1n),
      () => reservations.acquire(1n, 'writeExclusive'),
      () => reservations.preempt(1n, 2n, 'writeExclusive', { abort: true }),
      () => reservations.release(1n, 'writeExclusive'),
      () => reservations.clear(1n),
      () => reservations.report(),
    ])
      expect(await refusal(call())).toMatchObject({
        code: 'EOPNOTSUPP',
        message: expect.stringContaining('no reservations') as string,
      });
    const sent = await refusal(own.send(reservationReportCommand(own.nsid!)));
    expect(sent).toMatchObject({ code: 'EOPNOTSUPP', command: 'reservation report' });
    expect(statusKey(sent.status!.raw)).toBe(STATUS.invalidOpcode);
    await own.close();
  });

  it('refuses single commands in words', async () => {
    const own = await NvmeDevice.open(generic);
    const nsid = own.nsid!;
    const unsupported = await refusal(own.send(makeCommand('nonsense', 'io', { opcode: 0x7c, nsid })));
    expect(unsupported.status).toMatchObject({ type: 'generic', words: 'invalid command opcode' });
    const noPage = await refusal(own.logPage(0x7f, 512));
    expect(noPage.status?.words).toMatch(/invalid (log page|field)/);
    const elsewhere = await refusal(own.send(identifyCommand(0, 0xfffffff0)));
    expect(elsewhere).toMatchObject({ code: 'ENODEV', status: { words: 'invalid namespace or format' } });
    // The kernel itself guards the namespace of I/O commands.
    const other = await refusal(own.send(blockCommand('read', nsid + 1, { lba: 0, blockCount: 1, dataBytes: 4096 })));
    expect(other).toMatchObject({ code: 'EINVAL', status: null });
    const far = await refusal(own.send(blockCommand('verify', nsid, { lba: 2 ** 40, blockCount: 1 })));
    expect(statusKey(far.status!.raw)).toBe(STATUS.lbaOutOfRange);
    await own.send(
      datasetManagementCommand(
        nsid,
        [
          { lba: 0, blockCount: 8 },
          { lba: 64, blockCount: 8 },
        ],
        { deallocate: true },
      ),
    );
    expect((await own.send(getFeaturesCommand(0x07))).result).toBeGreaterThan(0);
    await own.close();
  });
});

describe('protection information', () => {
  const path = namespaces.find((name) => json('id-ns', name)['dps'] === 1);

  it.skipIf(path === undefined)(
    'is made and checked by the controller, and a block with another checksum is refused',
    async () => {
      const device = await engine.open(path!);
      expect(device.namespace?.protectionType).toBe(1);
      const buffer = engine.allocate(64 * 1024);
      const bytes = fill(buffer);
      await device.write(0, buffer, 0, bytes.length);
      const own = await NvmeDevice.open(path!);
      const read = await own.send(
        blockCommand('read', own.nsid!, { lba: 5, blockCount: 2, dataBytes: 1024, metadataBytes: 16 }),
      );
      const expected = protectionInformation(bytes.subarray(5 * 512, 7 * 512), 512, { referenceTag: 5 });
      expect(Buffer.from(read.metadata!).equals(Buffer.from(expected))).toBe(true);
      const wrong = Uint8Array.from(expected.subarray(0, 8));
      wrong[0]! ^= 0xff;
      await own.send(
        blockCommand('write', own.nsid!, { lba: 5, blockCount: 1, data: bytes.subarray(0, 512), metadata: wrong }),
      );
      const guard = await failure(device.read(0, buffer, 0, 8192));
      expect(guard).toMatchObject({
        code: 'EILSEQ',
        nvmeStatus: { type: 'media', words: 'end-to-end guard check error' },
      });
      const verify = (lba: number): Promise<unknown> =>
        own.send(
          blockCommand('verify', own.nsid!, {
            lba,
            blockCount: 1,
            protection: { checkGuard: true, checkReferenceTag: true, referenceTag: lba },
          }),
        );
      await verify(4);
      expect((await refusal(verify(5))).status?.words).toBe('end-to-end guard check error');
      const tag = Uint8Array.from(protectionInformation(bytes.subarray(0, 512), 512, { referenceTag: 77 }));
      await own.send(
        blockCommand('write', own.nsid!, { lba: 5, blockCount: 1, data: bytes.subarray(0, 512), metadata: tag }),
      );
      expect((await failure(device.read(0, buffer, 0, 8192))).nvmeStatus?.words).toBe(
        'end-to-end reference tag check error',
      );
      await device.write(0, buffer, 0, 8192);
      await device.read(0, buffer, 0, 8192);
      await own.close();
    },
  );
});

describe('a controller', () => {
  it('has namespaces, health, errors and firmware', async () => {
    const path = namespaces[0]!.replace(/n\d+$/, '');
    const controller = await NvmeDevice.open(path);
    expect(controller.nsid).toBeNull();
    const ids = await controller.namespaceIds();
    const own = await NvmeDevice.open(namespaces[0]!);
    expect(ids).toContain(own.nsid);
    await expect(controller.identifyNamespace()).rejects.toThrow(/several namespaces/);
    expect((await controller.identifyNamespace(own.nsid!)).sizeBytes).toBe((await own.identifyNamespace()).sizeBytes);
    await own.close();
    const smart = await controller.smartLog();
    const theirs = json('smart-log', path);
    expect(smart.temperatureKelvin).toBe(theirs['temperature']);
    expect(String(smart.dataUnitsWritten)).toBe(String(theirs['data_units_written']));
    expect(smart.usedPercent).toBe(theirs['percent_used']);
    const firmware = await controller.firmwareLog();
    expect(firmware.activeSlot).toBe(1);
    expect(JSON.stringify(json('fw-log', path))).toContain(`(${firmware.slots[0]?.revision}`);
    for (const entry of await controller.errorLog()) expect(entry.status.words).not.toBe('');
    await controller.close();
  });
});

describe('what is no namespace', () => {
  it.each(['/dev/null', '/dev/nvme0', '/dev/nvme-fabrics'])('%s is refused as a block device', async (path) => {
    await expect(engine.open(path)).rejects.toMatchObject({ code: 'ENOTBLK', path });
  });
  it.each(['/dev/null', '/etc/passwd', '/dev', '/dev/nvme-fabrics'])(
    '%s is refused as an NVMe device',
    async (path) => {
      await expect(NvmeDevice.open(path)).rejects.toMatchObject({ code: 'ENOTTY' });
    },
  );
});
