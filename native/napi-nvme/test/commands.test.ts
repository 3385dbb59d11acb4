/** What can be known of commands without a device: their bytes, how ranges are split, what statuses mean, what is refused. */
import fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { geometryOf } from '../lib/block-access.js';
import {
  BlockEngine,
  BlockIoError,
  blockCommand,
  datasetManagementCommand,
  decodeStatus,
  flushCommand,
  getFeaturesCommand,
  getLogPageCommand,
  guardOf,
  identifyCommand,
  makeCommand,
  type NvmeCommand,
  NvmeCommandError,
  NvmeDevice,
  protectionInformation,
  reservationAcquireCommand,
  reservationRegisterCommand,
  reservationReleaseCommand,
  reservationReportCommand,
  STATUS,
  setFeaturesCommand,
} from '../lib/index.js';
import { type NativeGeometry, native } from '../lib/native.js';
import { parseIdentifyController, parseIdentifyNamespace, parseNamespaceList } from '../lib/nvme-identify.js';
import { parseDiscoveryLog, parseErrorLog, parseFirmwareLog, parseSmartLog } from '../lib/nvme-logs.js';
import { errnoOfStatus, isPassing } from '../lib/nvme-status.js';
import { failureOf, type Operation, type OperationName, outcomeOf } from '../lib/opened-device.js';
import { parseReservationReport } from '../lib/reservations.js';

const GEOMETRY: NativeGeometry = {
  nsid: 7,
  lbaBytes: 512,
  lbaCount: 1_000_000,
  protectionType: 0,
  optionalCommands: 0xffff,
  transferBlocksMax: 256,
  boundaryBlocks: 0,
  zeroesBlocksMax: 1024,
  verifyBlocksMax: 2048,
  deallocateBlocksMax: 4096,
  timeoutMs: 5000,
};

interface Sent {
  readonly opcode: number;
  readonly nsid: number;
  readonly address: number;
  readonly dataBytes: number;
  readonly dwords: readonly number[];
  readonly timeoutMs: number;
}

function read(bytes: Uint8Array, at = 0): Sent {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, 72);
  return {
    opcode: view.getUint8(0),
    nsid: view.getUint32(4, true),
    address: Number(view.getBigUint64(24, true)),
    dataBytes: view.getUint32(36, true),
    dwords: [0, 1, 2, 3, 4, 5].map((index) => view.getUint32(40 + index * 4, true)),
    timeoutMs: view.getUint32(64, true),
  };
}

type Encoded = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes' | 'compare' | 'verify';
function encode(
  geometry: NativeGeometry,
  name: Encoded,
  offsetBytes: number,
  lengthBytes: number,
  address = 0,
): Sent[] {
  const bytes = native().encodeCommands(geometry, native().abi[name], offsetBytes, lengthBytes, address);
  const stride = name === 'discard' ? 72 + 16 : 72;
  return Array.from({ length: bytes.length / stride }, (_, index) => read(bytes, index * stride));
}

describe('the commands of the engine', () => {
  it.each([
    ['read', 0x02],
    ['write', 0x01],
    ['compare', 0x05],
  ] as const)('%s: opcode, namespace, first block, number of blocks less one, data, timeout', (name, opcode) => {
    expect(encode(GEOMETRY, name, 512 * 10, 512 * 8, 0x1000)).toEqual([
      { opcode, nsid: 7, address: 0x1000, dataBytes: 4096, dwords: [10, 0, 7, 0, 0, 0], timeoutMs: 5000 },
    ]);
  });

  it.each([
    ['writeZeroes', 0x08],
    ['verify', 0x0c],
  ] as const)('%s: the same without data', (name, opcode) => {
    expect(encode(GEOMETRY, name, 512 * 10, 512 * 8)).toEqual([
      { opcode, nsid: 7, address: 0, dataBytes: 0, dwords: [10, 0, 7, 0, 0, 0], timeoutMs: 5000 },
    ]);
  });

  it('flush has nothing but its namespace', () => {
    expect(encode(GEOMETRY, 'flush', 0, 0)).toEqual([
      { opcode: 0, nsid: 7, address: 0, dataBytes: 0, dwords: [0, 0, 0, 0, 0, 0], timeoutMs: 5000 },
    ]);
  });

  it('discard is a dataset management command with one range to deallocate', () => {
    const bytes = native().encodeCommands(GEOMETRY, native().abi.discard, 512 * 100, 512 * 4000, 0);
    expect(read(bytes)).toMatchObject({ opcode: 9, dataBytes: 16, dwords: [0, 4, 0, 0, 0, 0] });
    const range = new DataView(bytes.buffer, bytes.byteOffset + 72, 16);
    expect([range.getUint32(0, true), range.getUint32(4, true), range.getBigUint64(8, true)]).toEqual([0, 4000, 100n]);
    expect(encode(GEOMETRY, 'discard', 0, 512 * 9000)).toHaveLength(3);
  });

  it('carry block addresses of 64 bits, and count in blocks of 4096 bytes where a block has them', () => {
    const far = { ...GEOMETRY, lbaBytes: 4096, lbaCount: 2 ** 41 };
    const [sent] = encode(far, 'read', (2 ** 40 - 1) * 4096, 8192);
    expect(sent).toMatchObject({ dataBytes: 8192, dwords: [0xffffffff, 0xff, 1, 0, 0, 0] });
  });

  it('are split at what one command may carry', () => {
    const sent = encode(GEOMETRY, 'write', 512 * 3, 512 * 600, 0x10000);
    expect(sent.map(({ dwords, dataBytes, address }) => [dwords[0], dwords[2], dataBytes, address])).toEqual([
      [3, 255, 131_072, 0x10000],
      [259, 255, 131_072, 0x10000 + 131_072],
      [515, 87, 45_056, 0x10000 + 262_144],
    ]);
    const counts = (name: Encoded): number[] =>
      encode(GEOMETRY, name, 0, 512 * 5000).map(({ dwords }) => dwords[2]! + 1);
    expect(counts('writeZeroes')).toEqual([1024, 1024, 1024, 1024, 904]);
    expect(counts('verify')).toEqual([2048, 2048, 904]);
  });

  it('never have more blocks than their field holds', () => {
    const wide = { ...GEOMETRY, transferBlocksMax: 2 ** 32 - 1, zeroesBlocksMax: 2 ** 32 - 1 };
    expect(encode(wide, 'read', 0, 512 * 70_000).map(({ dwords }) => dwords[2]! + 1)).toEqual([65_536, 4464]);
    expect(encode(wide, 'writeZeroes', 0, 512 * 70_000)).toHaveLength(2);
  });

  it('are split at the boundary of optimal I/O, when they carry data', () => {
    const bounded = { ...GEOMETRY, boundaryBlocks: 100 };
    const first = (name: Encoded): number[] =>
      encode(bounded, name, 512 * 90, 512 * 130).map(({ dwords }) => dwords[0]!);
    expect(first('read')).toEqual([90, 100, 200]);
    expect(first('writeZeroes')).toEqual([90]);
  });

  it('are split at the end of the namespace, so that the part within is done', () => {
    const sent = encode({ ...GEOMETRY, lbaCount: 1000 }, 'read', 512 * 996, 512 * 8);
    expect(sent.map(({ dwords }) => [dwords[0], dwords[2]! + 1])).toEqual([
      [996, 4],
      [1000, 4],
    ]);
  });

  it('leave protection information to the controller: made on writes, checked and stripped on reads', () => {
    const bits = (type: number, name: Encoded): [number, number] => {
      const [sent] = encode({ ...GEOMETRY, protectionType: type }, name, 512 * 9, 512);
      return [sent!.dwords[2]! >>> 26, sent!.dwords[4]!];
    };
    // Action, guard, application tag, reference tag; then the reference tag.
    expect(bits(1, 'read')).toEqual([0b1101, 9]);
    expect(bits(2, 'write')).toEqual([0b1101, 9]);
    expect(bits(3, 'read')).toEqual([0b1100, 0]);
    expect(bits(1, 'verify')).toEqual([0b0101, 9]);
    expect(bits(1, 'writeZeroes')).toEqual([0b1000, 9]);
    expect(() => encode({ ...GEOMETRY, protectionType: 1 }, 'compare', 0, 512)).toThrow(/EOPNOTSUPP|ENOTSUP/);
  });

  it('that the controller lacks are not sent', () => {
    const bare = { ...GEOMETRY, optionalCommands: 0 };
    for (const name of ['compare', 'discard', 'writeZeroes', 'verify'] as const)
      expect(() => encode(bare, name, 0, 512)).toThrow(/ENOTSUP|EOPNOTSUPP/);
    for (const name of ['read', 'write', 'flush'] as const) expect(encode(bare, name, 0, 512)).toHaveLength(1);
  });

  it('are refused when geometry or range make no sense', () => {
    const bad = (change: Partial<Record<keyof NativeGeometry, unknown>>): (() => unknown) => {
      return () => encode({ ...GEOMETRY, ...change } as NativeGeometry, 'read', 0, 512);
    };
    expect(bad({ nsid: 0 })).toThrow(RangeError);
    expect(bad({ lbaBytes: 520 })).toThrow(RangeError);
    expect(bad({ lbaBytes: 131_072 })).toThrow(RangeError);
    expect(bad({ lbaCount: -1 })).toThrow(RangeError);
    expect(bad({ protectionType: 4 })).toThrow(RangeError);
    expect(bad({ transferBlocksMax: 0 })).toThrow(RangeError);
    expect(bad({ timeoutMs: 'soon' })).toThrow(TypeError);
    expect(() => encode(null as unknown as NativeGeometry, 'read', 0, 512)).toThrow(TypeError);
    expect(() => encode(GEOMETRY, 'read', 100, 512)).toThrow(/EINVAL/);
    expect(() => encode(GEOMETRY, 'read', 0, Number.NaN)).toThrow(RangeError);
    expect(() => encode(GEOMETRY, 'read', 0, 2 ** 50)).toThrow(/more commands/);
  });
});

describe('single commands', () => {
  const sent = ({ bytes }: NvmeCommand): Sent => read(bytes);

  it('identify', () => {
    expect(sent(identifyCommand(0, 3))).toMatchObject({ opcode: 6, nsid: 3, dwords: [0, 0, 0, 0, 0, 0] });
    expect(sent(identifyCommand(6, 0, 1))).toMatchObject({ opcode: 6, nsid: 0, dwords: [6, 1 << 24, 0, 0, 0, 0] });
    expect(identifyCommand(1).dataBytes).toBe(4096);
  });

  it('get log page, in dwords and at an offset', () => {
    expect(sent(getLogPageCommand(2, 512))).toMatchObject({ opcode: 2, nsid: 0xffffffff });
    expect(sent(getLogPageCommand(2, 512)).dwords.slice(0, 4)).toEqual([0x007f0002, 0, 0, 0]);
    const large = getLogPageCommand(0x70, 2 ** 20, { offsetBytes: 2 ** 33 + 4, retain: true, specific: 1 });
    expect(sent(large).dwords.slice(0, 4)).toEqual([0xffff8170, 3, 4, 2]);
    expect(() => getLogPageCommand(2, 510)).toThrow(RangeError);
    expect(() => getLogPageCommand(2, 512, { offsetBytes: 2 })).toThrow(RangeError);
    expect(() => getLogPageCommand(256, 512)).toThrow(RangeError);
  });

  it('features', () => {
    expect(sent(getFeaturesCommand(7))).toMatchObject({ opcode: 0x0a, dwords: [7, 0, 0, 0, 0, 0] });
    expect(sent(setFeaturesCommand(0x84, 1, 2))).toMatchObject({ opcode: 9, nsid: 1, dwords: [0x84, 2, 0, 0, 0, 0] });
  });

  it('reads and writes with everything they can say', () => {
    const command = blockCommand('write', 1, {
      lba: 2 ** 32 + 5,
      blockCount: 65_536,
      forceUnitAccess: true,
      limitedRetry: true,
      data: new Uint8Array(8),
      metadata: new Uint8Array(3),
      protection: { checkApplicationTag: true, applicationTag: 0x1234, applicationTagMask: 0xff00, referenceTag: 99 },
    });
    expect(sent(command)).toMatchObject({ opcode: 1, nsid: 1, dwords: [5, 1, 0xc800ffff, 0, 99, 0xff001234] });
    expect([command.dataBytes, command.metadataBytes, command.set]).toEqual([8, 3, 'io']);
    expect(sent(flushCommand(4))).toMatchObject({ opcode: 0, nsid: 4 });
    for (const fields of [
      { lba: -1, blockCount: 1 },
      { lba: 0, blockCount: 0 },
      { lba: 0, blockCount: 65_537 },
      { lba: 0.5, blockCount: 1 },
    ])
      expect(() => blockCommand('read', 1, fields)).toThrow(RangeError);
  });

  it('dataset management with many ranges', () => {
    const command = datasetManagementCommand(
      1,
      [
        { lba: 1, blockCount: 2 },
        { lba: 2 ** 40, blockCount: 3 },
      ],
      {
        deallocate: true,
        integralWrite: true,
      },
    );
    expect(sent(command)).toMatchObject({ opcode: 9, dwords: [1, 6, 0, 0, 0, 0] });
    const ranges = new DataView(command.data!.buffer);
    expect([ranges.getUint32(20, true), ranges.getBigUint64(24, true)]).toEqual([3, 1n << 40n]);
    expect(() => datasetManagementCommand(1, [], {})).toThrow(RangeError);
    expect(() => datasetManagementCommand(1, new Array(257).fill({ lba: 0, blockCount: 1 }), {})).toThrow(RangeError);
  });

  it('reservations: register, replace, unregister', () => {
    const register = reservationRegisterCommand(1, {
      action: 'register',
      newKey: 0x1122334455667788n,
      persistThroughPowerLoss: 'on',
    });
    expect(sent(register)).toMatchObject({ opcode: 0x0d, nsid: 1, dwords: [0xc0000000, 0, 0, 0, 0, 0] });
    expect(Buffer.from(register.data!).toString('hex')).toBe('00000000000000008877665544332211');
    const replace = reservationRegisterCommand(1, {
      action: 'replace',
      currentKey: 1n,
      newKey: 2n,
      ignoreExistingKey: true,
    });
    expect(sent(replace).dwords[0]).toBe(2 + 8);
    expect(
      sent(reservationRegisterCommand(1, { action: 'unregister', currentKey: 1n, persistThroughPowerLoss: 'off' }))
        .dwords[0],
    ).toBe(0x80000001);
  });

  it('reservations: acquire, preempt, preempt and abort, release, clear, report', () => {
    const type = 'exclusiveAccessRegistrants';
    const acquire = reservationAcquireCommand(1, { action: 'acquire', type, currentKey: 5n });
    expect(sent(acquire)).toMatchObject({ opcode: 0x11, dwords: [0x400, 0, 0, 0, 0, 0] });
    expect(acquire.data).toHaveLength(16);
    const preempt = reservationAcquireCommand(1, {
      action: 'preempt',
      type: 'writeExclusive',
      currentKey: 5n,
      preemptKey: 6n,
    });
    expect([sent(preempt).dwords[0], preempt.data![8]]).toEqual([0x101, 6]);
    expect(
      sent(reservationAcquireCommand(1, { action: 'preemptAndAbort', type, currentKey: 5n, ignoreExistingKey: true }))
        .dwords[0],
    ).toBe(0x40a);
    const release = reservationReleaseCommand(1, {
      action: 'release',
      type: 'writeExclusiveAllRegistrants',
      currentKey: 5n,
    });
    expect(sent(release)).toMatchObject({ opcode: 0x15, dwords: [0x500, 0, 0, 0, 0, 0] });
    expect(
      sent(reservationReleaseCommand(1, { action: 'clear', type: 'writeExclusive', currentKey: 5n })).dwords[0],
    ).toBe(0x101);
    expect(sent(reservationReportCommand(1))).toMatchObject({ opcode: 0x0e, dwords: [1023, 1, 0, 0, 0, 0] });
    expect(() => reservationReportCommand(1, 63)).toThrow(RangeError);
    expect(() => reservationRegisterCommand(1, { action: 'register', newKey: -1n })).toThrow(RangeError);
    expect(() => reservationRegisterCommand(1, { action: 'register', newKey: 1n << 64n })).toThrow(RangeError);
  });

  it('refuse fields that do not fit', () => {
    expect(() => makeCommand('x', 'io', { opcode: 256 })).toThrow(RangeError);
    expect(() => makeCommand('x', 'io', { opcode: 1, cdw10: -1 })).toThrow(RangeError);
    expect(() => makeCommand('x', 'io', { opcode: 1, nsid: 2 ** 32 })).toThrow(RangeError);
  });

  it('are refused by the addon when they are no commands', () => {
    const { sendCommand } = native();
    const command = new Uint8Array(72);
    expect(() => sendCommand(-1, false, command, 0, null, 0, null)).toThrow(RangeError);
    expect(() => sendCommand(0, false, new Uint8Array(64), 0, null, 0, null)).toThrow(TypeError);
    expect(() => sendCommand(0, false, command, 2 ** 30, null, 0, null)).toThrow(RangeError);
    expect(() => sendCommand(0, false, command, 1, new Uint8Array(2), 0, null)).toThrow(RangeError);
    expect(() => sendCommand(0, false, command, 1, 'x' as unknown as Uint8Array, 0, null)).toThrow(TypeError);
    expect(() => sendCommand(987_654, false, command, 0, null, 0, null)).toThrow(/EBADF/);
  });

  it('to what is no NVMe device come back with the kernel’s errno', async () => {
    const file = fs.openSync('/dev/null', 'r');
    try {
      const { errno } = await native().sendCommand(file, false, identifyCommand(1).bytes, 4096, null, 0, null);
      expect([22, 25]).toContain(errno);
      expect(native().namespaceId(file)).toBe(0);
    } finally {
      fs.closeSync(file);
    }
  });
});

describe('a status in words', () => {
  it.each([
    [0x4080, 'generic', 'LBA out of range', true, false, 'EIO'],
    [0x0001, 'generic', 'invalid command opcode', false, false, 'EOPNOTSUPP'],
    [0x400b, 'generic', 'invalid namespace or format', true, false, 'ENODEV'],
    [0x6020, 'generic', 'namespace is write protected', true, true, 'EROFS'],
    [0x0083, 'generic', 'reservation conflict', false, false, 'EBUSY'],
    [0x0181, 'command', 'invalid protection information', false, false, 'EIO'],
    [0x0281, 'media', 'unrecovered read error', false, false, 'EIO'],
    [0x0282, 'media', 'end-to-end guard check error', false, false, 'EILSEQ'],
    [0x0303, 'path', 'asymmetric access transition', false, false, 'EIO'],
    [0x0370, 'path', 'host path error', false, false, 'EIO'],
    [0x0742, 'vendor', 'vendor specific status 0x742', false, false, 'EIO'],
    [0x04ab, 'reserved', 'unknown status 0x4ab', false, false, 'EIO'],
  ])('0x%s', (raw, type, words, doNotRetry, more, code) => {
    expect(decodeStatus(raw)).toMatchObject({ type, words, doNotRetry, more, code: raw & 0xff });
    expect(errnoOfStatus(raw)).toBe(code);
  });

  it('means something else of a connect', () => {
    expect(decodeStatus(0x0184, 'connect').words).toBe('connect: this host is not allowed');
    expect(decodeStatus(0x1881).retryDelay).toBe(3);
  });

  it('passes when it is the path’s and the controller does not forbid to try again', () => {
    expect([0x370, 0x371, 0x303, 0x021].map(isPassing)).toEqual([true, true, true, true]);
    expect([0x4370, 0x301, 0x281, 0x080, 0].map(isPassing)).toEqual([false, false, false, false, false]);
  });
});

describe('what a completion means', () => {
  const operation = (name: OperationName, access = 'passthrough'): Operation =>
    ({
      name,
      device: { path: '/dev/x', access, sizeBytes: 12_288 },
      offsetBytes: 4096,
      lengthBytes: 8192,
    }) as unknown as Operation;
  const failed = (name: OperationName, errno: number, done: number, status: number, access?: string): BlockIoError => {
    const outcome = outcomeOf(operation(name, access), errno, done, status);
    if (!(outcome instanceof BlockIoError)) throw new Error(`it is ${outcome}`);
    return outcome;
  };

  it('done, short, or failed with the controller’s words', () => {
    expect(outcomeOf(operation('read'), 0, 8192, 0)).toBe('done');
    expect(outcomeOf(operation('flush'), 0, 0, 0)).toBe('done');
    expect(failed('read', 5, 4096, 0x4000 | STATUS.lbaOutOfRange)).toMatchObject({
      code: 'EIO',
      short: true,
      doneBytes: 4096,
    });
    expect(failed('write', 5, 4096, STATUS.lbaOutOfRange)).toMatchObject({ code: 'ENOSPC', short: false });
    expect(failed('writeZeroes', 5, 0, STATUS.lbaOutOfRange)).toMatchObject({ code: 'ENOSPC' });
    expect(failed('discard', 5, 0, STATUS.lbaOutOfRange)).toMatchObject({ code: 'EINVAL' });
    // What Linux's target says of it; within the device it is what it says.
    expect(failed('read', 5, 0, STATUS.internalError)).toMatchObject({ code: 'EIO', short: false });
    const shrunk = operation('write');
    (shrunk.device as { sizeBytes: number }).sizeBytes = 8192;
    expect(failureOf(shrunk, 5, 0, STATUS.internalError)).toMatchObject({ code: 'ENOSPC' });
    const readOnly = failed('write', 5, 0, STATUS.namespaceWriteProtected);
    expect(readOnly).toMatchObject({ code: 'EROFS', nvmeStatus: { type: 'generic' } });
    expect(readOnly.message).toBe(
      "EROFS: the command failed: namespace is write protected (generic status 0x20), write of 8192 bytes at 4096 '/dev/x'",
    );
  });

  it('passing, where a path is in trouble', () => {
    expect(outcomeOf(operation('write'), 5, 0, STATUS.hostPath)).toBe('passing');
    // EINTR: under way when its controller was reset or lost its path.
    for (const errno of [4, 11, 22]) expect(outcomeOf(operation('write'), errno, 0, 0)).toBe('passing');
    expect(failureOf(operation('write'), 4, 0, 0)).toMatchObject({ code: 'EIO', nvmeStatus: null });
    expect(failureOf(operation('write'), 5, 0, STATUS.hostPath)).toMatchObject({ code: 'EIO' });
    expect(failureOf(operation('write'), 11, 0, 0)).toMatchObject({ code: 'ENODEV' });
    expect(failed('write', 11, 0, 0, 'block')).toMatchObject({ code: 'EAGAIN' });
  });

  it('given up or without a path, in the kernel', () => {
    expect(failed('read', 110, 0, 0)).toMatchObject({ code: 'ETIMEDOUT' });
    expect(failed('read', 95, 0, 0)).toMatchObject({ code: 'EOPNOTSUPP', nvmeStatus: null });
    expect(failed('read', 5, 0, 0, 'block')).toMatchObject({ code: 'EIO', nvmeStatus: null });
    const reserved = failed('write', 52, 0, 0, 'block');
    expect(reserved.message).toMatch(/^EBADE: the device failed: another host has reserved it, write of/);
  });
});

describe('identify data', () => {
  function namespaceBytes(): Uint8Array {
    const bytes = new Uint8Array(4096);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, 1000n, true);
    bytes[25] = 1;
    bytes[26] = 0x11;
    bytes[29] = 0x09;
    bytes[31] = 0x83;
    bytes[99] = 1;
    view.setUint16(46, 128, true);
    view.setUint32(128, 9 << 16, true);
    view.setUint32(132, (2 << 24) | (12 << 16) | 8, true);
    return bytes;
  }

  it('of a namespace: its format, its size, its protection', () => {
    const parsed = parseIdentifyNamespace(namespaceBytes());
    expect(parsed).toMatchObject({
      sizeBytes: 4_096_000,
      metadata: 'extended',
      protection: { type: 1, first: true },
      writeProtected: true,
      noiob: 128,
      reservationTypes: ['persistThroughPowerLoss', 'writeExclusive'],
      format: { index: 1, lbaBytes: 4096, metadataBytes: 8, performance: 'good', inUse: true },
    });
    expect(parsed.lbaFormats[0]).toMatchObject({ lbaBytes: 512, inUse: false });
    const missing = namespaceBytes();
    missing[26] = 5;
    expect(() => parseIdentifyNamespace(missing)).toThrow(RangeError);
    expect(() => parseIdentifyNamespace(new Uint8Array(100))).toThrow(RangeError);
  });

  it('of a controller; text that is not printable goes to no terminal', () => {
    const bytes = new Uint8Array(4096);
    bytes.set(Buffer.from('SN\u001b[2J    '), 4);
    bytes[77] = 5;
    new DataView(bytes.buffer).setUint32(80, 0x10400, true);
    new DataView(bytes.buffer).setUint16(520, 0x2d, true);
    bytes[260] = 0x0f;
    expect(parseIdentifyController(bytes)).toMatchObject({
      sn: 'SN?[2J',
      version: '1.4.0',
      mdts: 5,
      firmware: { slotCount: 7, slotOneReadOnly: true },
      has: { compare: true, datasetManagement: true, writeZeroes: true, reservations: true, verify: false },
    });
  });

  it('gives the engine its limits: the least of controller and kernel, never nothing', () => {
    const controller = parseIdentifyController(new Uint8Array(4096));
    const namespace = parseIdentifyNamespace(namespaceBytes());
    const of = { nsid: 1, controller, namespace, limits: null, kernelBytesMax: null, timeoutMs: 1 };
    expect(geometryOf(of)).toMatchObject({
      transferBlocksMax: 256,
      zeroesBlocksMax: 256,
      deallocateBlocksMax: 2 ** 32 - 1,
      boundaryBlocks: 128,
    });
    const small = { ...of, controller: { ...controller, mdts: 2 }, kernelBytesMax: 1 << 20 };
    expect(geometryOf(small)).toMatchObject({ transferBlocksMax: 4, zeroesBlocksMax: 4 });
    const limits = { vsl: 3, wzsl: 10, wusl: 0, dmrl: 0, dmrsl: 77, dmsl: 0n };
    expect(geometryOf({ ...small, limits, kernelBytesMax: 4096 })).toMatchObject({
      transferBlocksMax: 1,
      verifyBlocksMax: 8,
      zeroesBlocksMax: 1024,
      deallocateBlocksMax: 77,
    });
    expect(geometryOf({ ...of, kernelBytesMax: 1 })).toMatchObject({ transferBlocksMax: 1 });
  });

  it('of the list of namespaces', () => {
    const bytes = new Uint8Array(4096);
    new DataView(bytes.buffer).setUint32(0, 3, true);
    new DataView(bytes.buffer).setUint32(4, 9, true);
    expect(parseNamespaceList(bytes)).toEqual([3, 9]);
  });
});

describe('logs and reports', () => {
  it('health', () => {
    const bytes = new Uint8Array(512);
    bytes[0] = 8;
    new DataView(bytes.buffer).setUint16(1, 323, true);
    new DataView(bytes.buffer).setBigUint64(56, 1n, true);
    expect(parseSmartLog(bytes)).toMatchObject({
      temperatureKelvin: 323,
      dataUnitsWritten: 1n << 64n,
      criticalWarning: { readOnly: true, temperature: false },
    });
    expect(() => parseSmartLog(new Uint8Array(10))).toThrow(RangeError);
  });

  it('errors, without the empty places', () => {
    const bytes = new Uint8Array(128);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(64, 5n, true);
    view.setUint16(64 + 12, 0x80 << 1, true);
    view.setBigUint64(64 + 16, 99n, true);
    expect(parseErrorLog(bytes)).toMatchObject([{ errorCount: 5n, lba: 99n, status: { words: 'LBA out of range' } }]);
  });

  it('firmware', () => {
    const bytes = new Uint8Array(512);
    bytes[0] = 0x21;
    bytes.set(Buffer.from('FW1     FW2'), 8);
    expect(parseFirmwareLog(bytes)).toEqual({
      activeSlot: 1,
      nextSlot: 2,
      slots: [
        { slot: 1, revision: 'FW1' },
        { slot: 2, revision: 'FW2' },
      ],
    });
  });

  it('discovery: no more records than there are bytes, whatever it claims', () => {
    const bytes = new Uint8Array(2048);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, 4n, true);
    view.setBigUint64(8, 2n ** 63n, true);
    bytes.set([3, 1, 2, 1], 1024);
    bytes.set(Buffer.from('4420'), 1024 + 32);
    bytes.set(Buffer.from('nqn.x'), 1024 + 256);
    bytes.set(Buffer.from('10.0.0.1'), 1024 + 512);
    const log = parseDiscoveryLog(bytes);
    expect(log.entries).toEqual([
      {
        transport: 'tcp',
        addressFamily: 'ipv4',
        subsystemType: 'nvme',
        secureChannel: 'required',
        portId: 0,
        controllerId: 0,
        service: '4420',
        nqn: 'nqn.x',
        address: '10.0.0.1',
      },
    ]);
    expect(() => parseDiscoveryLog(bytes.subarray(0, 100))).toThrow(RangeError);
  });

  it('reservations', () => {
    const bytes = new Uint8Array(192);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, 12, true);
    bytes[4] = 3;
    view.setUint16(5, 5, true);
    bytes[9] = 1;
    view.setUint16(64, 7, true);
    bytes[66] = 1;
    view.setBigUint64(72, 0xabcdn, true);
    bytes.fill(0x11, 80, 96);
    const report = parseReservationReport(bytes);
    expect(report).toMatchObject({
      generation: 12,
      type: 'writeExclusiveRegistrants',
      registrantCount: 5,
      persistsThroughPowerLoss: true,
    });
    expect(report.registrants).toHaveLength(2);
    expect(report.registrants[0]).toEqual({
      controllerId: 7,
      holdsReservation: true,
      key: 0xabcdn,
      hostId: '11'.repeat(16),
    });
    bytes[4] = 99;
    expect(() => parseReservationReport(bytes)).toThrow(/unknown type/);
    expect(() => parseReservationReport(new Uint8Array(3))).toThrow(RangeError);
  });
});

describe('protection information', () => {
  it('has the checksum of its standard', () => {
    // The check value of CRC-16/T10-DIF.
    expect(guardOf(Buffer.from('123456789'))).toBe(0xd0db);
    const made = protectionInformation(new Uint8Array(1024), 512, { referenceTag: 0xffffffff, applicationTag: 2 });
    expect(Buffer.from(made).toString('hex')).toBe('00000002ffffffff0000000200000000');
    expect(() => protectionInformation(new Uint8Array(100), 512, { referenceTag: 0 })).toThrow(RangeError);
  });
});

describe('without a device', () => {
  it('an NVMe device is not opened where there is none, nor anything else in its place', async () => {
    for (const path of ['/dev/null', '/dev', import.meta.filename ?? '/etc/passwd'])
      await expect(NvmeDevice.open(path)).rejects.toBeInstanceOf(NvmeCommandError);
    await expect(NvmeDevice.open('/dev/nvme-that-is-not-there')).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('passing commands through is refused for what is no namespace, and a wish must be one', async () => {
    const engine = new BlockEngine({ queueDepth: 1 });
    const file = '/etc/passwd';
    await expect(engine.open(file, { readOnly: true, access: 'passthrough' })).rejects.toMatchObject({
      code: 'ENOTBLK',
      message: expect.stringContaining('a regular file') as string,
    });
    await expect(engine.open(file, { access: 'direct' as 'auto' })).rejects.toThrow(TypeError);
    const device = await engine.open(file, { readOnly: true });
    expect(device).toMatchObject({ access: 'file', accessReason: 'a regular file', devicePath: file, namespace: null });
    expect(await device.refresh()).toBe(fs.statSync(file).size);
    const buffer = engine.allocate(4096);
    for (const work of [device.compare(0, buffer, 0, 4096), device.verify(0, 4096)])
      await expect(work).rejects.toMatchObject({ code: 'EOPNOTSUPP' });
    await engine.close();
    for (const options of [{ commandTimeoutMs: 0 }, { pathRetryMsMax: -1 }])
      expect(() => new BlockEngine(options)).toThrow(RangeError);
  });
});
