import { constants } from 'node:fs';
import { expect } from 'vitest';
import type { Allocation } from '../testing/posix-calls.js';
import { ownRule, type Rule, spaceRule } from '../testing/posix-rules.js';

const { O_RDONLY, O_RDWR, O_WRONLY } = constants;
const MIB = 1 << 20;

export const fallocateRules: readonly Rule[] = [
  spaceRule('fallocate makes a file longer, with zeros, and changes nothing that is there', async ({ act, look }) => {
    await look.create('file');
    await look.write('file', 'text');
    for (const [offset, length, size] of [
      [0, 2, 4],
      [1, 10, 11],
      [5000, 5000, 10_000],
      [MIB, 3 * MIB, 4 * MIB],
    ] as const) {
      expect(await act.fallocate('file', O_RDWR, 'allocate', offset, length)).toBe('ok');
      expect(await look.stat('file')).toMatchObject({ size });
    }
    expect((await look.read('file')).startsWith('text\0\0\0')).toBe(true);
  }),
  spaceRule('fallocate that keeps the size does so', async ({ act, look }) => {
    await look.create('file');
    await look.write('file', 'text');
    for (const how of ['allocateKeepSize', 'zeroRangeKeepSize', 'punchHole'] as const)
      expect(await act.fallocate('file', O_WRONLY, how, 4, 2 * MIB)).toBe('ok');
    expect(await look.stat('file')).toMatchObject({ size: 4 });
    expect(await look.read('file')).toBe('text');
  }),
  ...(['punchHole', 'zeroRange', 'zeroRangeKeepSize'] as const).map((how) =>
    spaceRule(`fallocate: ${how} makes zeros of exactly the range`, async ({ act, look }) => {
      await look.create('file');
      await look.write('file', 'abcdefghijkl');
      expect(await act.fallocate('file', O_RDWR, how, 3, 4)).toBe('ok');
      expect(await look.read('file')).toBe('abc\0\0\0\0hijkl');
      for (const [offset, length] of [
        [0, 3 * MIB],
        [MIB - 5000, 10_000],
        [2 * MIB + 1, 4095],
      ] as const) {
        await look.writeAt('file', 0, 'x', 3 * MIB);
        expect(await act.fallocate('file', O_RDWR, how, offset, length)).toBe('ok');
        expect(await look.stat('file')).toMatchObject({ size: 3 * MIB });
        expect(await look.readAt('file', 0, 3 * MIB)).toBe(
          'x'.repeat(offset) + '\0'.repeat(length) + 'x'.repeat(3 * MIB - offset - length),
        );
      }
    }),
  ),
  spaceRule('fallocate: zeroRange makes a file longer', async ({ act, look }) => {
    await look.create('file');
    await look.write('file', 'text');
    expect(await act.fallocate('file', O_RDWR, 'zeroRange', 2, 10)).toBe('ok');
    expect(await look.read('file')).toBe(`te${'\0'.repeat(10)}`);
  }),
  spaceRule('fallocate moves mtime and ctime', async ({ act, look, moved }) => {
    await look.create('file');
    await look.writeAt('file', 0, 'x', MIB);
    for (const how of ['allocate', 'punchHole', 'zeroRange'] as const)
      expect(await moved('file', () => act.fallocate('file', O_RDWR, how, 4096, 2 * MIB))).toBe('mc');
  }),
  spaceRule('fallocate: EBADF without writing, EINVAL for no bytes, EFBIG beyond the last', async ({ act, look }) => {
    await look.create('file');
    expect(await act.fallocate('file', O_RDONLY, 'allocate', 0, 1)).toBe('EBADF');
    expect(await act.fallocate('file', O_RDWR, 'allocate', 0, 0)).toBe('EINVAL');
    expect(await act.fallocate('file', O_RDWR, 'punchHole', 5, 0)).toBe('EINVAL');
    expect(await act.fallocate('file', O_RDWR, 'allocate', Number.MAX_SAFE_INTEGER - 10, 9)).toBe('EFBIG');
    expect(await look.stat('file')).toMatchObject({ size: 0 });
  }),
  ownRule(
    'fallocate: ENOSPC when there is too little for the range, and nothing of it is kept',
    async ({ act, look }) => {
      await look.create('file');
      await look.write('file', 'text');
      expect(await act.fallocate('file', O_RDWR, 'allocate', 0, 2 ** 40)).toBe('ENOSPC');
      expect(await act.fallocate('file', O_RDWR, 'allocateKeepSize', 0, 300 * MIB)).toBe('ENOSPC');
      expect(await look.stat('file')).toMatchObject({ size: 4 });
      expect(await look.read('file')).toBe('text');
    },
  ),
  ownRule('fallocate: EOPNOTSUPP for what would move bytes', async ({ act, look }) => {
    await look.create('file');
    await look.truncate('file', 4 * MIB);
    for (const how of ['collapseRange', 'insertRange'] satisfies Allocation[])
      expect(await act.fallocate('file', O_RDWR, how, MIB, MIB)).toBe('ENOTSUP');
  }),
];
