import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { inodeNumber } from '../../common/ids.js';
import { type Attributes, FileType } from '../../fs/file-system-api.js';
import { invalEntry, invalInode, store } from './notify.js';
import { ReplyWriter } from './reply.js';

const attributes: Attributes = {
  ino: inodeNumber(2 ** 40 + 5),
  generation: 3,
  type: FileType.directory,
  mode: 0o1777,
  nlink: 2,
  uid: 1000,
  gid: 100,
  rdev: 0,
  sizeBytes: 2 ** 45 + 1,
  allocatedBytes: 513,
  atimeNs: -1n,
  mtimeNs: 1_000_000_001n,
  ctimeNs: 0n,
  birthtimeNs: 7_000_000_003n,
};
const view = (writer: ReplyWriter): DataView => new DataView(writer.bytes.buffer, 0, writer.lengthBytes);
const valid = { entrySeconds: 9, attributeSeconds: 10 };

describe('answers to the kernel', () => {
  it('attributes are struct fuse_attr_out: 104 bytes, times rounded down', () => {
    const writer = new ReplyWriter(4096).attr(attributes, 10, 4096);
    const out = view(writer);
    expect(writer.lengthBytes).toBe(104);
    expect(out.getBigUint64(0, true)).toBe(10n);
    expect(out.getBigUint64(16, true)).toBe(BigInt(2 ** 40 + 5));
    expect(out.getBigUint64(24, true)).toBe(BigInt(2 ** 45 + 1));
    expect(out.getBigUint64(32, true)).toBe(2n);
    expect([out.getBigInt64(40, true), out.getUint32(64, true)]).toEqual([-1n, 999_999_999]);
    expect([out.getBigInt64(48, true), out.getUint32(68, true)]).toEqual([1n, 1]);
    expect(out.getUint32(76, true)).toBe(0o041777);
    expect([out.getUint32(80, true), out.getUint32(84, true), out.getUint32(88, true)]).toEqual([2, 1000, 100]);
    expect(out.getUint32(96, true)).toBe(4096);
  });

  it('entries are 128 bytes, with both validities; none at all is an entry without a node', () => {
    const writer = new ReplyWriter(4096).entry(77, attributes, valid, 4096);
    expect(writer.lengthBytes).toBe(128);
    expect([0, 8, 16, 24].map((at) => view(writer).getBigUint64(at, true))).toEqual([77n, 0n, 9n, 10n]);
    writer.clear().noEntry(5);
    expect(writer.lengthBytes).toBe(128);
    expect([0, 8, 16, 24].map((at) => view(writer).getBigUint64(at, true))).toEqual([0n, 0n, 5n, 0n]);
  });

  it('statx tells the birth: 288 bytes', () => {
    const writer = new ReplyWriter(4096).statx(attributes, 10, 4096);
    expect(writer.lengthBytes).toBe(288);
    const birth = 32 + 64 + 16;
    expect(view(writer).getBigInt64(birth, true)).toBe(7n);
    expect(view(writer).getUint32(birth + 8, true)).toBe(3);
    expect(new ReplyWriter(4096).known(attributes, 10, 4096).lengthBytes).toBe(120);
  });

  it('the fixed ones have the lengths that the kernel wants', () => {
    const writer = new ReplyWriter(4096);
    expect(writer.clear().open(1, 3).lengthBytes).toBe(16);
    expect(writer.clear().count(7).lengthBytes).toBe(8);
    expect(writer.clear().offset(2 ** 40).lengthBytes).toBe(8);
    expect(
      writer.clear().statfs({
        blockBytes: 1,
        subBlockBytes: 4096,
        totalBytes: 8192,
        freeBytes: 4097,
        totalInodes: 3,
        freeInodes: 2,
        nameBytesMax: 255,
      }).lengthBytes,
    ).toBe(80);
    expect([0, 8, 16].map((at) => view(writer).getBigUint64(at, true))).toEqual([2n, 1n, 1n]);
    expect(writer.clear().lock({ type: 'read', offset: 4, length: null, pid: -1 }).lengthBytes).toBe(24);
    expect([view(writer).getBigUint64(8, true), view(writer).getUint32(20, true)]).toEqual([2n ** 63n - 1n, 0]);
    writer.clear().lock({ type: 'unlock', offset: 4, length: 6, pid: 5 });
    expect([view(writer).getBigUint64(8, true), view(writer).getUint32(16, true)]).toEqual([9n, 2]);
  });

  it('a listing holds whole entries, aligned, within its limit', () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ minLength: 1, maxLength: 40, unit: 'grapheme' }), { maxLength: 40 }),
        fc.integer({ min: 0, max: 3000 }),
        fc.boolean(),
        (names, limit, plus) => {
          const writer = new ReplyWriter(1 << 16);
          let taken = 0;
          for (const [i, name] of names.entries()) {
            const looked = i % 2 === 0 ? { node: i + 2, attributes, valid, blockBytes: 4096 } : null;
            const fits = plus
              ? writer.direntPlus(limit, name, i + 1, FileType.regular, i + 1, looked)
              : writer.dirent(limit, name, i + 1, FileType.regular, i + 1);
            if (!fits) break;
            taken++;
          }
          expect(writer.lengthBytes).toBeLessThanOrEqual(limit);
          const out = view(writer);
          const read: string[] = [];
          for (let at = 0; at < writer.lengthBytes; ) {
            if (plus) at += 128;
            const bytes = out.getUint32(at + 16, true);
            expect(Number(out.getBigUint64(at + 8, true))).toBe(read.length + 1);
            expect(out.getUint32(at + 20, true)).toBe(8);
            read.push(Buffer.from(writer.bytes.subarray(at + 24, at + 24 + bytes)).toString());
            at += (24 + bytes + 7) & ~7;
          }
          expect(read).toEqual(names.slice(0, taken));
        },
      ),
      { numRuns: 200 },
    );
  });

  it('notifications: attributes alone, a range, a name with its NUL, bytes put into pages', () => {
    expect(new BigInt64Array(invalInode(5, -1, 0).buffer)).toEqual(BigInt64Array.of(5n, -1n, 0n));
    expect(new BigInt64Array(invalInode(5, 4096, 100).buffer)).toEqual(BigInt64Array.of(5n, 4096n, 100n));
    const entry = Buffer.from(invalEntry(5, 'ä', true));
    expect([entry.length, entry.readUInt32LE(8), entry.readUInt32LE(12), entry.at(-1)]).toEqual([19, 2, 1, 0]);
    const pushed = Buffer.from(store(5, 4095, Uint8Array.of(7)));
    expect([pushed.length, pushed.readUInt32LE(16), pushed[24]]).toEqual([25, 1, 7]);
  });
});
