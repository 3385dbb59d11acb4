import fc from 'fast-check';
import { expect, it } from 'vitest';
import { SeededRandom } from '../common/random.js';
import { type DeviceOp, DeviceRecord, extremeFates, type Fate, randomFates } from './device-record.js';

const write = (offsetBytes: number, value: number, lengthBytes = 4096): DeviceOp => ({
  kind: 'write',
  offsetBytes,
  bytes: new Uint8Array(lengthBytes).fill(value),
});
const done = (record: DeviceRecord, op: DeviceOp): number => {
  const begun = record.begin(op);
  record.end(begun);
  return begun;
};
const at = (record: DeviceRecord, events: number, fate: Fate, place = 0): number[] => {
  const chunk = record.imageAt(events, () => fate).get(place) ?? new Uint8Array(4096);
  return Array.from({ length: 8 }, (_, block) => chunk[block * 512]!);
};
const eight = (value: number): number[] => new Array<number>(8).fill(value);

it('a flush covers what had ended before it began, once it has ended, and nothing else', () => {
  const record = new DeviceRecord();
  done(record, write(0, 1));
  const late = record.begin(write(4096, 2));
  const flush = record.begin({ kind: 'flush' });
  record.end(late);
  done(record, write(8192, 3));
  expect(record.pending()).toHaveLength(3);
  record.end(flush);
  expect(record.pending()).toHaveLength(2);
  expect(at(record, record.events, 'absent')).toEqual(eight(1));
  expect(at(record, record.events, 'absent', 4096)).toEqual(eight(0));
  expect(at(record, record.events - 1, 'absent')).toEqual(eight(0));
  expect(at(record, record.events, 'present', 8192)).toEqual(eight(3));
});

it('a durable write is covered once it has ended, and what is written after it is not', () => {
  const record = new DeviceRecord();
  done(record, write(0, 1));
  const begun = record.begin({ ...write(0, 2), durable: true } as DeviceOp);
  expect(at(record, record.events, 'absent')).toEqual(eight(0));
  record.end(begun);
  expect(record.pending()).toHaveLength(1);
  expect(at(record, record.events, 'absent')).toEqual(eight(2));
  expect(at(record, record.events, 'present')).toEqual(eight(2));
  done(record, write(0, 3));
  record.compact();
  expect(at(record, record.events, 'absent')).toEqual(eight(2));
});

it('a torn op has whole blocks of 512 bytes, a discard too', () => {
  const record = new DeviceRecord(new Map([[0, new Uint8Array(4096).fill(9)]]));
  const even: Fate = (block) => block % 2 === 0;
  done(record, write(0, 1));
  expect(at(record, record.events, even)).toEqual([1, 9, 1, 9, 1, 9, 1, 9]);
  record.cut(() => 'present');
  done(record, { kind: 'discard', offsetBytes: 0, lengthBytes: 4096 });
  expect(at(record, record.events, even)).toEqual([0, 1, 0, 1, 0, 1, 0, 1]);
});

it('the extremes are none, all, each alone, and all but each', () => {
  const shapes = (count: number): string[] =>
    extremeFates(count).map((fate) =>
      Array.from({ length: count }, (_, i) => (fate({ kind: 'flush' }, i) === 'present' ? '1' : '0')).join(''),
    );
  expect(shapes(0)).toEqual(['']);
  expect(shapes(1)).toEqual(['0', '1']);
  expect(shapes(2)).toEqual(['00', '11', '10', '01']);
  expect(shapes(3)).toEqual(['000', '111', '100', '010', '001', '011', '101', '110']);
});

it('gives the same image with and without what is covered forgotten, and the same one for the same seed', () => {
  const op = fc.oneof(
    fc.record({ place: fc.nat(3), value: fc.integer({ min: 1, max: 255 }) }),
    fc.constant('flush' as const),
  );
  fc.assert(
    fc.property(fc.array(op, { maxLength: 30 }), fc.nat(), (ops, seed) => {
      const [kept, compacted] = [new DeviceRecord(), new DeviceRecord()];
      for (const one of ops)
        for (const record of [kept, compacted]) {
          done(record, one === 'flush' ? { kind: 'flush' } : write(one.place * 4096, one.value));
          if (record === compacted) record.compact();
        }
      const image = (record: DeviceRecord): string => {
        const chunks = record.imageAt(record.events, randomFates(new SeededRandom(seed)));
        return [0, 1, 2, 3]
          .map((i) => Buffer.from(chunks.get(i * 4096) ?? new Uint8Array(4096)).toString('hex'))
          .join();
      };
      expect(image(compacted) === image(kept)).toBe(true);
      expect(compacted.pending().length).toBe(kept.pending().length);
    }),
    { numRuns: 50 },
  );
});
