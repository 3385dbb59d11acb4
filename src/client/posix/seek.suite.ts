import { constants } from 'node:fs';
import { expect } from 'vitest';
import type { Calls } from '../testing/posix-calls.js';
import { ownRule, type Rule, spaceRule } from '../testing/posix-rules.js';

const { O_RDWR } = constants;
const MIB = 1 << 20;

/** Data in the second and the fourth of five MiB: what every file system agrees on. */
async function striped(calls: Calls, path: string): Promise<void> {
  await calls.create(path);
  await calls.truncate(path, 5 * MIB);
  for (const at of [1, 3]) {
    await calls.writeAt(path, at * MIB, 'd', MIB);
    expect(await calls.seek(path, at * MIB, 'data')).toBe(at * MIB);
  }
}

export const seekRules: readonly Rule[] = [
  spaceRule('seek finds data and holes, from within them too', async ({ act, look }) => {
    await striped(look, 'file');
    const found = async (what: 'data' | 'hole', offsets: number[]) => {
      const all: (number | string)[] = [];
      for (const offset of offsets) all.push(await act.seek('file', offset, what));
      return all.map((at) => (typeof at === 'number' ? at / MIB : at));
    };
    expect(await found('data', [0, MIB - 1, MIB, 2 * MIB, 3 * MIB, 4 * MIB - 1])).toEqual([1, 1, 1, 3, 3, 4 - 1 / MIB]);
    expect(await found('data', [4 * MIB, 5 * MIB - 1])).toEqual(['ENXIO', 'ENXIO']);
    expect(await found('hole', [0, MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB - 1])).toEqual([0, 2, 2, 4, 4, 5 - 1 / MIB]);
  }),
  spaceRule('seek: behind the last byte is a hole, and ENXIO from the end on', async ({ act, look }) => {
    await look.create('file');
    expect(await act.seek('file', 0, 'data')).toBe('ENXIO');
    expect(await act.seek('file', 0, 'hole')).toBe('ENXIO');
    await look.write('file', 'text');
    expect(await act.seek('file', 3, 'data')).toBe(3);
    expect(await act.seek('file', 1, 'hole')).toBe(4);
    for (const at of [4, 5, 2 ** 40]) {
      expect(await act.seek('file', at, 'data')).toBe('ENXIO');
      expect(await act.seek('file', at, 'hole')).toBe('ENXIO');
    }
  }),
  spaceRule('seek sees at once what was written into a hole, and what was cut out', async ({ act, look }) => {
    await look.create('file');
    await look.truncate('file', 4 * MIB);
    expect(await act.seek('file', 0, 'data')).toBe('ENXIO');
    await look.writeAt('file', 2 * MIB, 'x', MIB);
    expect(await act.seek('file', 0, 'data')).toBe(2 * MIB);
    expect(await look.fallocate('file', O_RDWR, 'punchHole', 2 * MIB, MIB)).toBe('ok');
    expect(await act.seek('file', 0, 'data')).toBe('ENXIO');
    expect(await act.seek('file', 0, 'hole')).toBe(0);
  }),
  ownRule('seek: what has space is data, before anything was written to it', async ({ act, look }) => {
    await look.create('file');
    await look.truncate('file', 4 * MIB);
    expect(await look.fallocate('file', O_RDWR, 'allocate', MIB, MIB)).toBe('ok');
    expect(await act.seek('file', 0, 'data')).toBe(MIB);
    expect(await act.seek('file', MIB, 'hole')).toBe(2 * MIB);
  }),
];
