import { constants } from 'node:os';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { loadFuseAddon } from '../../native/fuse.js';
import { HEADER_BYTES, NAME_BYTES_MAX, Opcode } from './protocol.js';
import { type Request, RequestMemory } from './request.js';

const full = process.env['HOLDFAST_TEST_FULL'] !== undefined;
const { EBADF, EFBIG, EILSEQ, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOSYS, ESTALE } = constants.errno;

/** Bytes of the struct behind the header, names, and whether bulk follows. */
const SHAPES: Readonly<Record<keyof typeof Opcode, readonly [number, number, ('write' | 'xattr')?]>> = {
  lookup: [0, 1],
  getattr: [16, 0],
  setattr: [88, 0],
  readlink: [0, 0],
  symlink: [0, 2],
  mknod: [16, 1],
  mkdir: [8, 1],
  unlink: [0, 1],
  rmdir: [0, 1],
  rename: [8, 2],
  link: [8, 1],
  open: [8, 0],
  read: [40, 0],
  write: [40, 0, 'write'],
  statfs: [0, 0],
  release: [24, 0],
  fsync: [16, 0],
  setxattr: [16, 1, 'xattr'],
  getxattr: [8, 1],
  listxattr: [8, 0],
  removexattr: [0, 1],
  flush: [24, 0],
  opendir: [8, 0],
  readdir: [40, 0],
  releasedir: [24, 0],
  fsyncdir: [16, 0],
  getlk: [48, 0],
  setlk: [48, 0],
  setlkw: [48, 0],
  access: [8, 0],
  create: [16, 1],
  fallocate: [32, 0],
  readdirplus: [40, 0],
  rename2: [16, 2],
  lseek: [24, 0],
  copyFileRange: [56, 0],
  syncfs: [8, 0],
  tmpfile: [16, 1],
  statx: [24, 0],
  copyFileRange64: [56, 0],
};

interface Parts {
  readonly opcode: number;
  readonly node?: bigint;
  readonly body?: Uint8Array;
  readonly names?: readonly (string | Uint8Array)[];
  readonly tail?: Uint8Array;
}

function bytesOf({ opcode, node = 1n, body = new Uint8Array(0), names = [], tail = new Uint8Array(0) }: Parts): Buffer {
  const parts = [
    Buffer.alloc(HEADER_BYTES),
    body,
    ...names.flatMap((name) => [Buffer.from(name as string), Buffer.alloc(1)]),
    tail,
  ];
  const bytes = Buffer.concat(parts);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(opcode, 4);
  bytes.writeBigUInt64LE(node, 16);
  return bytes;
}

function decode(bytes: Uint8Array): Request {
  // In the midst of other bytes, so that reading behind the end would show.
  const memory = new ArrayBuffer(bytes.length + 128);
  new Uint8Array(memory).fill(0xee).set(bytes, 64);
  return new RequestMemory(memory).decode(64, bytes.length);
}
const errnoOf = (bytes: Uint8Array): number => {
  const request = decode(bytes);
  return request.op === 'refused' ? request.errno : 0;
};

const u64s = (...values: bigint[]): Uint8Array => new Uint8Array(BigUint64Array.from(values).buffer);

/** A request of any known opcode whose lengths fit, with any bytes in its struct. */
const wellFormed = fc
  .constantFrom(...(Object.keys(SHAPES) as (keyof typeof Opcode)[]))
  .chain((op) => {
    const [fixed, names, tail] = SHAPES[op];
    return fc.record({
      op: fc.constant(op),
      body: fc.uint8Array({ minLength: fixed, maxLength: fixed }),
      names: fc.array(fc.stringMatching(/^[a-z]{1,20}$/), { minLength: names, maxLength: names }),
      tail: tail === undefined ? fc.constant(new Uint8Array(0)) : fc.uint8Array({ maxLength: 100 }),
    });
  })
  .map(({ op, body, names, tail }) => {
    const [, , kind] = SHAPES[op];
    const view = new DataView(body.buffer, body.byteOffset, body.length);
    if (kind === 'write') view.setUint32(16, tail.length, true);
    if (kind === 'xattr') view.setUint32(0, tail.length, true);
    return bytesOf({ opcode: Opcode[op], body, names, tail });
  });

describe('requests from the kernel', () => {
  it('any bytes decode or are refused, and the reader in C refuses no less than lengths demand', () => {
    const { checkRequest } = loadFuseAddon();
    const anything = fc
      .record({
        opcode: fc.nat(60),
        lengthOff: fc.constantFrom(0, 0, 0, 1, -1),
        rest: fc.uint8Array({ maxLength: 200 }),
      })
      .map(({ opcode, lengthOff, rest }) => {
        const bytes = bytesOf({ opcode, body: rest });
        bytes.writeUInt32LE(bytes.length + lengthOff, 0);
        return bytes;
      });
    fc.assert(
      fc.property(fc.oneof(anything, wellFormed, fc.uint8Array({ maxLength: 60 })), (bytes) => {
        const request = decode(bytes);
        const fit = checkRequest(bytes);
        if (request.op === 'refused') expect(request.errno).toBeGreaterThan(0);
        else expect(fit).toBe(0);
        if (fit !== 0) expect(request.op).toBe('refused');
        if (
          'name' in request &&
          request.op !== 'getxattr' &&
          request.op !== 'setxattr' &&
          request.op !== 'removexattr'
        ) {
          expect(request.name).not.toMatch(/^$|^\.\.?$|\/|\0/);
        }
        for (const [key, value] of Object.entries(request)) {
          if (typeof value === 'number') expect([key, Number.isSafeInteger(value) && value >= 0]).toEqual([key, true]);
        }
      }),
      { numRuns: full ? 20_000 : 500 },
    );
  });

  it('one that fits is never refused for its length; one byte more or less always is', () => {
    const { checkRequest } = loadFuseAddon();
    fc.assert(
      fc.property(wellFormed, fc.boolean(), (bytes, longer) => {
        expect(checkRequest(bytes)).toBe(0);
        expect([EIO, ENOSYS]).not.toContain(errnoOf(bytes));
        const other = longer ? Buffer.concat([bytes, Buffer.from('x')]) : Buffer.from(bytes.subarray(0, -1));
        if (other.length < HEADER_BYTES) return;
        other.writeUInt32LE(other.length, 0);
        expect(checkRequest(other)).toBe(2);
        expect(decode(other).op).toBe('refused');
      }),
      { numRuns: full ? 10_000 : 300 },
    );
  });

  it('an unknown opcode is ENOSYS, a header that is cut off EIO', () => {
    expect(errnoOf(bytesOf({ opcode: 37 }))).toBe(ENOSYS);
    expect(errnoOf(bytesOf({ opcode: 4096 }))).toBe(ENOSYS);
    expect(errnoOf(new Uint8Array(39))).toBe(EIO);
  });

  it('names are one component of UTF-8, 255 bytes at most', () => {
    const errno = (name: string | Uint8Array) => errnoOf(bytesOf({ opcode: Opcode.lookup, names: [name] }));
    expect(errno('x'.repeat(NAME_BYTES_MAX))).toBe(0);
    expect(errno('x'.repeat(NAME_BYTES_MAX + 1))).toBe(ENAMETOOLONG);
    expect(errno('ä'.repeat(128))).toBe(ENAMETOOLONG);
    expect(errno('')).toBe(ENOENT);
    expect(errno('.')).toBe(EINVAL);
    expect(errno('..')).toBe(EINVAL);
    expect(errno('a/b')).toBe(EINVAL);
    expect(errno(Uint8Array.of(0x61, 0xff))).toBe(EILSEQ);
    expect(decode(bytesOf({ opcode: Opcode.lookup, names: ['\ufffd'] }))).toMatchObject({ name: '\ufffd' });
  });

  it('a temporary file has no name of its own, whatever comes as one', () => {
    const body = new Uint8Array(Uint32Array.of(2, 0o100600, 0o22, 0).buffer);
    expect(decode(bytesOf({ opcode: Opcode.tmpfile, body, names: ['/'] }))).toMatchObject({
      op: 'tmpfile',
      mode: 0o100600,
    });
  });

  it('offsets that no file reaches: nothing to read there, too big to write, foreign handles and nodes', () => {
    const far = 2n ** 62n;
    expect(decode(bytesOf({ opcode: Opcode.read, body: u64s(7n, far, 4096n, 0n, 0n) }))).toMatchObject({
      op: 'read',
      offset: Number.MAX_SAFE_INTEGER,
    });
    const write = (handle: bigint, offset: bigint) =>
      errnoOf(bytesOf({ opcode: Opcode.write, body: u64s(handle, offset, 1n, 0n, 0n), tail: Uint8Array.of(1) }));
    expect(write(7n, 2n ** 53n - 2n)).toBe(0);
    expect(write(7n, 2n ** 53n - 1n)).toBe(EFBIG);
    expect(write(7n, far)).toBe(EFBIG);
    expect(write(far, 0n)).toBe(EBADF);
    expect(errnoOf(bytesOf({ opcode: Opcode.readlink, node: far }))).toBe(ESTALE);
  });

  it('locks: whole files, the last byte included, to the end of any file, nothing backwards', () => {
    const lock = (start: bigint, end: bigint, type = 1n, flags = 0n) =>
      decode(
        bytesOf({ opcode: Opcode.setlkw, body: u64s(3n, 2n ** 64n - 5n, start, end, type | (99n << 32n), flags) }),
      );
    expect(lock(10n, 19n)).toMatchObject({
      op: 'setlk',
      wait: true,
      handle: 3,
      owner: 2n ** 64n - 5n,
      type: 'write',
      offset: 10,
      length: 10,
      pid: 99,
      flock: false,
    });
    expect(lock(10n, 2n ** 63n - 1n)).toMatchObject({ length: null });
    expect(lock(0n, 2n ** 63n - 1n, 0n, 1n)).toMatchObject({ type: 'read', flock: true });
    expect(lock(10n, 9n)).toMatchObject({ op: 'refused', errno: EINVAL });
    expect(lock(0n, 1n, 3n)).toMatchObject({ op: 'refused', errno: EINVAL });
  });

  it('changes of attributes: only what is named, times before 1970 too', () => {
    const body = Buffer.alloc(88);
    const size = 8;
    const mtime = 32;
    const atimeNow = 128;
    body.writeUInt32LE(size | mtime | atimeNow, 0);
    body.writeBigUInt64LE(12345n, 16);
    body.writeBigInt64LE(-1n, 40);
    body.writeUInt32LE(999_999_999, 60);
    expect(decode(bytesOf({ opcode: Opcode.setattr, body }))).toMatchObject({
      op: 'setattr',
      handle: null,
      wishes: { size: 12345, mtimeNs: -1n, atimeNs: 'now', mode: undefined, uid: undefined, ctimeNs: undefined },
    });
    body.writeUInt32LE(1_000_000_000, 60);
    expect(errnoOf(bytesOf({ opcode: Opcode.setattr, body }))).toBe(EINVAL);
  });

  it('bytes of a write are a view of the slot: nothing is copied', () => {
    const memory = new ArrayBuffer(4096);
    const bytes = bytesOf({ opcode: Opcode.write, body: u64s(1n, 0n, 3n, 0n, 0n), tail: Buffer.from('abc') });
    new Uint8Array(memory).set(bytes);
    const request = new RequestMemory(memory).decode(0, bytes.length);
    if (request.op !== 'write') throw new Error('not a write');
    expect(request.data.buffer).toBe(memory);
    expect(Buffer.from(request.data).toString()).toBe('abc');
  });
});
