import { describe, expect, test } from 'vitest';
import { inodeNumber, nsdIndex } from '../../common/ids.js';
import { below, SeededRandom } from '../../common/random.js';
import { nextSectorVersion } from '../../common/sector-version.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { checksumsJs } from '../../nsd/checksum-js.js';
import { ExtentSet } from './extent-set.js';
import { LogMachine } from './log-machine.js';
import {
  decodeTransaction,
  encodeTransaction,
  type LogRecord,
  type SectorRecord,
  TransactionWriter,
} from './log-records.js';
import { encodeGroup, type LogGroup, LogScan, PAYLOAD_BYTES, type ScannedLog, sectorsFor } from './log-sectors.js';
import { LoggedSectors } from './logged-sectors.js';
import { LooseEnds } from './loose-ends.js';
import { RecordTable } from './record-table.js';
import { isMadeAnew, NOT_READ, redoSector } from './redo.js';
import { RedoPlan } from './redo-plan.js';
import { applyRuns, sectorDelta } from './sector-delta.js';

const IDENTITY = { fsId: 77n, slot: 3, generation: 5 };
const CAPACITY = 32;
const nsd = nsdIndex(0);

function randomImage(random: SeededRandom, from?: Uint8Array): Uint8Array {
  const image = from?.slice() ?? new Uint8Array(SECTOR_BYTES);
  for (let i = 0; i < 1 + below(random, 6); i++) {
    const at = 8 + below(random, SECTOR_BYTES - 80);
    for (let j = 0; j < 1 + below(random, 60); j++) image[at + j] = below(random, 256);
  }
  return image;
}

describe('deltas', () => {
  test('what changed, applied to what was, gives what is; the CRC is nobody’s business', () => {
    const random = new SeededRandom(1);
    for (let round = 0; round < 300; round++) {
      const before = randomImage(random);
      const after = randomImage(random, before);
      after[5] = 99;
      const image = before.slice();
      applyRuns(image, sectorDelta(before, after));
      image[5] = 99;
      expect(image).toEqual(after);
      const fromZeros = new Uint8Array(SECTOR_BYTES);
      applyRuns(fromZeros, sectorDelta(null, after));
      fromZeros[5] = 99;
      expect(fromZeros).toEqual(after);
    }
  });
});

describe('records', () => {
  const records: LogRecord[] = [
    { kind: 'reset', transactions: 3 },
    { kind: 'limbo', extents: [{ nsd, sector: 300, count: 200 }] },
    { kind: 'settled', extents: [{ nsd, sector: 300, count: 1 }] },
    { kind: 'numbersTaken', first: inodeNumber(70), count: 12 },
    { kind: 'numbersSettled', first: inodeNumber(71), count: 1 },
    { kind: 'orphan', ino: inodeNumber(99), generation: 4 },
    { kind: 'orphanSettled', ino: inodeNumber(99), generation: 4 },
    {
      kind: 'sector',
      sector: {
        nsd,
        sector: 2 ** 33 + 5,
        base: 17,
        full: true,
        raw: false,
        runs: [{ offsetBytes: 8, bytes: Uint8Array.of(1, 2, 3, 4) }],
      },
    },
  ];

  test('come back as they were written', () => {
    const decoded = decodeTransaction(encodeTransaction(records).subarray(4));
    const plain = (record: LogRecord): LogRecord =>
      record.kind === 'sector' ? { kind: 'sector', sector: { ...record.sector, runs: record.sector.runs } } : record;
    expect(decoded.map(plain)).toEqual(records);
  });

  test('a file of many blocks that is cut off is as many records as it takes', () => {
    const extents = Array.from({ length: 2500 }, (_, block) => ({ nsd, sector: block * 256, count: 256 }));
    const decoded = decodeTransaction(encodeTransaction([{ kind: 'limbo', extents }]).subarray(4));
    expect(decoded.flatMap((record) => (record.kind === 'limbo' ? record.extents : []))).toEqual(extents);
    expect(decoded.length).toBe(3);
  });

  test('of rubbish there are none: every cut and most flips are refused, none makes the decoder fail otherwise', () => {
    const bytes = encodeTransaction(records).subarray(4);
    for (let length = 1; length < bytes.length; length++) {
      try {
        decodeTransaction(bytes.slice(0, length));
      } catch (error) {
        expect(error).toMatchObject({ reason: 'badFrame' });
      }
    }
    const random = new SeededRandom(7);
    for (let round = 0; round < 2000; round++) {
      const damaged = bytes.slice();
      damaged[below(random, damaged.length)]! ^= 1 << below(random, 8);
      try {
        decodeTransaction(damaged);
      } catch (error) {
        expect(error).toMatchObject({ reason: 'badFrame' });
      }
    }
  });
});

/** A log on a device of its own, written by the machine. */
class Device {
  readonly sectors = new Map<number, Uint8Array>();
  write(group: LogGroup, generation = IDENTITY.generation, only?: (place: number) => boolean): void {
    const memory = new Uint8Array(group.sectorCount * SECTOR_BYTES);
    encodeGroup(group, { ...IDENTITY, generation }, checksumsJs, memory);
    for (let place = 0; place < group.sectorCount; place++) {
      if (only !== undefined && !only(place)) continue;
      const sector = memory.slice(place * SECTOR_BYTES, (place + 1) * SECTOR_BYTES);
      this.sectors.set((group.first + place) % CAPACITY, sector);
    }
  }
  scan(from: number) {
    const scan = new LogScan({ from, capacity: CAPACITY, identity: IDENTITY, checksums: checksumsJs, geometry: null });
    for (let n = from; n < from + CAPACITY; n++) scan.take([this.sectors.get(n % CAPACITY) ?? null]);
    return scan.finish();
  }
}

const transaction = (number: number, bytes = 20): Uint8Array =>
  encodeTransaction([
    {
      kind: 'sector',
      sector: {
        nsd,
        sector: number,
        base: 1,
        full: true,
        raw: false,
        runs: [{ offsetBytes: 8, bytes: new Uint8Array(bytes).fill(1) }],
      },
    },
  ]);
/** Each of its transactions is one record. */
const numbersOf = ({ records }: ScannedLog): number[] =>
  Array.from({ length: records.transactions }, (_, index) => records.record(index).sector);

describe('the log on its device', () => {
  test('is read from the tail on, around the end of its space, past what it needs no more', () => {
    const device = new Device();
    const machine = new LogMachine({ capacitySectors: CAPACITY, groupSectorsMax: 4 }, 0);
    let next = 1;
    const durable: number[] = [];
    let announced = 0;
    for (let round = 0; round < 60; round++) {
      for (let i = 0; i < 3; i++) machine.step({ type: 'append', bytes: transaction(next++, 2000) });
      let effects = machine.step({ type: 'force', sequence: machine.appended });
      while (effects.length > 0) {
        const write = effects.find(({ type }) => type === 'write');
        if (write?.type !== 'write') break;
        device.write(write.group);
        effects = machine.step({ type: 'written' });
      }
      durable.push(machine.durable);
      expect(machine.durable).toBe(machine.appended);
      const scanned = device.scan(announced);
      expect(scanned.head).toBe(machine.head);
      expect(numbersOf(scanned).at(-1)).toBe(machine.appended);
      machine.step({ type: 'trim', needed: Math.max(1, machine.durable - 4) });
      announced = machine.tail;
      machine.step({ type: 'tailAnnounced', tail: announced });
    }
    expect(machine.head).toBeGreaterThan(3 * CAPACITY);
  });

  test('one group is on its way at a time, and the next takes everything that came meanwhile', () => {
    const machine = new LogMachine({ capacitySectors: CAPACITY, groupSectorsMax: 8 }, 0);
    machine.step({ type: 'append', bytes: transaction(1) });
    expect(machine.step({ type: 'force', sequence: 1 })).toMatchObject([{ type: 'write' }]);
    for (let i = 2; i <= 10; i++) machine.step({ type: 'append', bytes: transaction(i) });
    expect(machine.step({ type: 'force', sequence: 10 })).toEqual([]);
    const after = machine.step({ type: 'written' });
    expect(after[0]).toEqual({ type: 'durable', sequence: 1 });
    expect(after[1]).toMatchObject({ type: 'write', group: { transactions: { length: 9 } } });
  });

  test('never writes over what recovery may need, and says that it is full', () => {
    const machine = new LogMachine({ capacitySectors: 4, groupSectorsMax: 2 }, 0);
    for (let i = 1; i <= 2; i++) {
      machine.step({ type: 'append', bytes: transaction(i, PAYLOAD_BYTES - 200) });
      expect(machine.step({ type: 'force', sequence: i })[0]?.type).toBe('write');
      machine.step({ type: 'written' });
    }
    for (let i = 3; i <= 4; i++) machine.step({ type: 'append', bytes: transaction(i, PAYLOAD_BYTES - 200) });
    machine.step({ type: 'force', sequence: 4 });
    machine.step({ type: 'written' });
    machine.step({ type: 'append', bytes: transaction(5, PAYLOAD_BYTES - 200) });
    expect(machine.step({ type: 'force', sequence: 5 })).toEqual([{ type: 'full' }]);
    // What is trimmed counts when the descriptor says so, durably.
    expect(machine.step({ type: 'trim', needed: 3 })).toEqual([]);
    expect(machine.step({ type: 'force', sequence: 5 })).toEqual([{ type: 'full' }]);
    expect(machine.step({ type: 'tailAnnounced', tail: machine.tail })).toMatchObject([{ type: 'write' }]);
  });

  test('a torn end, a hole, another generation and rotten bits end it there', () => {
    const group = (first: number, numbers: number[], bytes = 20): LogGroup => {
      const transactions = numbers.map((number) => transaction(number, bytes));
      const sectorCount = sectorsFor(transactions.reduce((sum, { length }) => sum + length, 0));
      return { first, sectorCount, tail: 0, transactions };
    };
    const whole = (): Device => {
      const device = new Device();
      device.write(group(0, [1, 2]));
      device.write(group(1, [3, 4, 5], 3000));
      return device;
    };
    expect(numbersOf(whole().scan(0))).toEqual([1, 2, 3, 4, 5]);
    const torn = new Device();
    torn.write(group(0, [1, 2]));
    torn.write(group(1, [3, 4, 5], 3000), IDENTITY.generation, (place) => place !== 1);
    expect(torn.scan(0)).toMatchObject({ ended: expect.stringContaining('torn end') });
    expect(numbersOf(torn.scan(0))).toEqual([1, 2]);
    const stale = whole();
    stale.write(group(0, [1, 2]), IDENTITY.generation - 1);
    expect(stale.scan(0)).toMatchObject({ records: { transactions: 0, length: 0 }, head: 0 });
    const rotten = whole();
    rotten.sectors.get(2)![100]! ^= 1;
    expect(numbersOf(rotten.scan(0))).toEqual([1, 2]);
    const hole = whole();
    hole.sectors.delete(0);
    expect(numbersOf(hole.scan(0))).toEqual([]);
    // Of these only the hole says that something is lost that had been durable.
    expect(hole.scan(0).hole).toBe('sectors 0 to 0 are lost');
    for (const device of [whole(), torn, rotten]) expect(device.scan(0).hole).toBeNull();
  });
});

/** A sector, its NSD, and the records that a holder of its token makes. */
class History {
  readonly records: SectorRecord[] = [];
  losses = 0;
  readonly sectors = new LoggedSectors(() => this.losses);
  version = 3;
  inPlace: Uint8Array = new Uint8Array(SECTOR_BYTES);
  memory: Uint8Array = new Uint8Array(SECTOR_BYTES);
  readonly states: { version: number; image: Uint8Array }[] = [{ version: 3, image: new Uint8Array(SECTOR_BYTES) }];
  readonly place = { nsd, sector: 9 };

  constructor(readonly random: SeededRandom) {
    this.sectors.learn(9, this.version);
  }
  change(): void {
    this.memory = randomImage(this.random, this.memory);
    const writer = new TransactionWriter();
    this.sectors.record(this.place, this.memory, 0, writer);
    for (const record of decodeTransaction(writer.finish().subarray(4)))
      if (record.kind === 'sector') this.records.push(record.sector);
    this.sectors.appended(this.records.length);
  }
  writeInPlace(): void {
    const write = this.sectors.beginWrite(this.place);
    this.version = write.version;
    this.inPlace = this.memory.slice();
    this.states.push({ version: this.version, image: this.inPlace });
    this.sectors.endWrite(write, true);
  }
  flush(): number[] {
    return this.sectors.flushed(this.sectors.unflushedOn(this.sectors.unflushedNsds()));
  }
}
const whole = (image: Uint8Array): Uint8Array => {
  const copy = new Uint8Array(SECTOR_BYTES);
  copy.set(image);
  return withoutCrc(copy);
};
const withoutCrc = (image: Uint8Array): Uint8Array => {
  const copy = image.slice();
  copy.fill(0, 4, 8);
  return copy;
};

describe('redo (L2, L3)', () => {
  test('from whatever write in place the device still has, it comes to the last record; and again, to the same', () => {
    const random = new SeededRandom(11);
    for (let round = 0; round < 200; round++) {
      const history = new History(random);
      for (let i = 0; i < 12; i++)
        if (below(random, 3) > 0) history.change();
        else history.writeInPlace();
      if (history.records.length === 0) continue;
      for (const { version, image } of history.states) {
        const present = { version, bytes: image };
        const redone = redoSector(history.records, present);
        const result = redone.kind === 'write' ? redone.image : image;
        expect(redone.kind).not.toBe('unfit');
        expect(withoutCrc(result)).toEqual(withoutCrc(history.memory));
        if (redone.kind !== 'write') continue;
        expect(redoSector(history.records, { version: redone.version, bytes: redone.image }).kind).toBe('current');
      }
    }
  });

  test('a sector torn by the last write in place is made anew; by a write of somebody later, it is left', () => {
    const history = new History(new SeededRandom(5));
    for (let i = 0; i < 3; i++) history.change();
    history.writeInPlace();
    history.change();
    history.writeInPlace();
    const torn = redoSector(history.records, { version: history.version, bytes: null });
    expect(torn).toMatchObject({ kind: 'write' });
    if (torn.kind === 'write') expect(withoutCrc(torn.image)).toEqual(withoutCrc(history.memory));
    expect(redoSector(history.records, { version: history.version + 1, bytes: null }).kind).toBe('current');
  });

  test('what is made anew comes to the same whether it was read, could not be, or was not asked for', () => {
    const random = new SeededRandom(12);
    let anew = 0;
    for (let round = 0; round < 100; round++) {
      const history = new History(random);
      for (let i = 0; i < 12; i++)
        if (below(random, 3) > 0) history.change();
        else history.writeInPlace();
      for (const { version, image } of history.states) {
        if (!isMadeAnew(history.records, version)) continue;
        anew++;
        const of = (bytes: Uint8Array | null) => redoSector(history.records, { version, bytes });
        expect(of(NOT_READ)).toMatchObject({ kind: 'write' });
        expect(of(NOT_READ)).toEqual(of(image));
        expect(of(NOT_READ)).toEqual(of(null));
      }
      // At the version that redo gives it, only its bytes say whether it is torn.
      const last = history.records.at(-1);
      if (last !== undefined) expect(isMadeAnew(history.records, nextSectorVersion(last.base))).toBe(false);
    }
    expect(anew).toBeGreaterThan(50);
  });

  test('L3: what is torn while it is redone is made anew by the next redo, however often', () => {
    const history = new History(new SeededRandom(7));
    history.change();
    history.writeInPlace();
    let version = history.version;
    for (let powerCut = 0; powerCut < 3; powerCut++) {
      const redone = redoSector(history.records, { version, bytes: null });
      expect(redone).toMatchObject({ kind: 'write' });
      if (redone.kind === 'write') version = redone.version;
    }
    expect(version).toBe(history.version);
  });

  test('what another node wrote since is not touched, and the logs of two holders are put in order', () => {
    const random = new SeededRandom(6);
    const first = new History(random);
    first.change();
    first.writeInPlace();
    const second = new History(random);
    second.sectors.learn(9, first.version);
    second.memory = first.memory.slice();
    second.change();
    second.change();
    const plan = new RedoPlan();
    plan.add(RecordTable.of([second.records.map((sector) => ({ kind: 'sector', sector }) as const)]));
    plan.add(RecordTable.of([first.records.map((sector) => ({ kind: 'sector', sector }) as const)]));
    const planned = plan.sectors().at(0);
    // A power cut took the first one's write in place.
    const redone = redoSector(planned.records, { version: 3, bytes: new Uint8Array(SECTOR_BYTES) });
    expect(redone.kind).toBe('write');
    if (redone.kind === 'write') expect(withoutCrc(redone.image)).toEqual(withoutCrc(second.memory));
    expect(redoSector(first.records, { version: first.version + 1, bytes: first.inPlace }).kind).toBe('current');
  });

  test('a patch that was made on a version that never was is not applied', () => {
    const record: SectorRecord = { nsd, sector: 9, base: 8, full: false, raw: false, runs: [] };
    expect(redoSector([record], { version: 3, bytes: new Uint8Array(SECTOR_BYTES) }).kind).toBe('unfit');
    expect(redoSector([record], { version: 8, bytes: null }).kind).toBe('unfit');
  });

  test('sub-blocks that came into limbo are not written again', () => {
    const plan = new RedoPlan();
    const sector: SectorRecord = { nsd, sector: 9, base: 1, full: true, raw: false, runs: [] };
    const ends = plan.add(
      RecordTable.of([
        [{ kind: 'sector', sector }],
        [{ kind: 'sector', sector: { ...sector, sector: 10 } }],
        [{ kind: 'limbo', extents: [{ nsd, sector: 8, count: 4 }] }],
        [{ kind: 'sector', sector: { ...sector, sector: 20 } }],
        [{ kind: 'sector', sector: { ...sector, sector: 10, base: 5 } }],
      ]),
    );
    // What came behind it is of a new life of that sub-block.
    expect(plan.sectors().runFrom(0, 9)).toMatchObject([{ sector: 10, records: [{ base: 5 }] }]);
    expect(plan.sectors().at(1).sector).toBe(20);
    expect(ends.limbo.extents()).toEqual([{ nsd, sector: 8, count: 4 }]);
  });
});

describe('sectors on their way', () => {
  test('recovery needs a sector’s first record until its NSD was flushed after the write in place', () => {
    const history = new History(new SeededRandom(2));
    history.change();
    history.change();
    expect(history.sectors.needed()).toBe(1);
    history.writeInPlace();
    history.change();
    expect(history.sectors.needed()).toBe(1);
    expect(history.flush()).toEqual([]);
    expect(history.sectors.needed()).toBe(3);
  });

  test('what its NSD lost before the flush is dirty again, with its first record, and written at a later version', () => {
    const history = new History(new SeededRandom(4));
    history.change();
    history.writeInPlace();
    const { version } = history;
    history.losses++;
    expect(whole(history.sectors.newest(9, version - 1)!)).toEqual(withoutCrc(history.memory));
    expect(history.sectors.newest(9, version)).toBeUndefined();
    expect(history.flush()).toEqual([9]);
    expect(history.sectors.needed()).toBe(1);
    expect(history.sectors.dirty(9)).toMatchObject({ byImage: true, first: 1 });
    expect(whole(history.sectors.latest(9)!)).toEqual(withoutCrc(history.memory));
    history.change();
    history.writeInPlace();
    expect(history.version).toBeGreaterThan(version);
    expect(history.sectors.needed()).toBe(1);
    expect(history.flush()).toEqual([]);
    expect(history.sectors.needed()).toBe(Number.POSITIVE_INFINITY);
  });

  test('a loss that is noticed between the beginning of a write and its end counts', () => {
    const history = new History(new SeededRandom(5));
    history.change();
    const write = history.sectors.beginWrite(history.place);
    history.losses++;
    history.sectors.endWrite(write, true);
    expect(history.flush()).toEqual([9]);
  });

  test('a loss that is noticed while what came later is on its way brings back nothing older', () => {
    const history = new History(new SeededRandom(8));
    history.change();
    history.writeInPlace();
    history.losses++;
    history.change();
    const write = history.sectors.beginWrite(history.place);
    // Whoever waits for it to be durable has to wait for that write.
    expect(history.flush()).toEqual([9]);
    expect(history.sectors.isUndurable(9)).toBe(true);
    expect(history.sectors.dirty(9)).toBeUndefined();
    expect(whole(history.sectors.newest(9, history.version - 1)!)).toEqual(withoutCrc(history.memory));
    expect(history.sectors.needed()).toBe(1);
    history.sectors.endWrite(write, true);
    expect(history.sectors.dirty(9)).toBeUndefined();
    expect(history.flush()).toEqual([]);
    expect(history.sectors.needed()).toBe(Number.POSITIVE_INFINITY);
    // A read that began before that may end now.
    expect(history.sectors.isPast(9, history.version - 1)).toBe(true);
    expect(history.sectors.isPast(9, write.version)).toBe(false);
  });

  test('a loss that is noticed while what came later fails to be written leaves what came later', () => {
    const history = new History(new SeededRandom(9));
    history.change();
    history.writeInPlace();
    history.losses++;
    history.change();
    const write = history.sectors.beginWrite(history.place);
    history.flush();
    history.sectors.endWrite(write, false);
    expect(history.sectors.dirty(9)).toMatchObject({ first: 1 });
    expect(whole(history.sectors.latest(9)!)).toEqual(withoutCrc(history.memory));
  });

  test('what was freed meanwhile is not written again, nor its version kept', () => {
    const history = new History(new SeededRandom(6));
    history.change();
    const write = history.sectors.beginWrite(history.place);
    history.sectors.drop(9);
    history.sectors.endWrite(write, true);
    history.losses++;
    expect(history.flush()).toEqual([]);
    expect(history.sectors.needed()).toBe(Number.POSITIVE_INFINITY);
    expect(history.sectors.knows(9)).toBe(false);
  });

  test('a version that is not needed any more is forgotten when nothing of the sector is on its way', () => {
    const history = new History(new SeededRandom(7));
    history.change();
    history.writeInPlace();
    history.sectors.forget(9);
    expect(history.sectors.knows(9)).toBe(true);
    history.flush();
    expect(history.sectors.knows(9)).toBe(false);
  });

  test('a write in place that failed leaves it as dirty as before, what came meanwhile included', () => {
    const history = new History(new SeededRandom(3));
    history.change();
    const write = history.sectors.beginWrite(history.place);
    history.change();
    history.sectors.endWrite(write, false);
    expect(history.sectors.needed()).toBe(1);
    expect(history.records[1]).toMatchObject({ full: true, base: 4 });
  });
});

describe('loose ends', () => {
  test('a snapshot says the same as what it was made of', () => {
    const random = new SeededRandom(4);
    const ends = new LooseEnds();
    for (let i = 0; i < 400; i++) {
      const first = below(random, 250);
      const extent = {
        nsd: nsdIndex(below(random, 2)),
        sector: 256 * below(random, 4) + first,
        count: 1 + below(random, 6),
      };
      ends.apply({ kind: below(random, 2) === 0 ? 'limbo' : 'settled', extents: [extent] });
      const ino = inodeNumber(100 + below(random, 50));
      ends.apply({ kind: below(random, 2) === 0 ? 'numbersTaken' : 'numbersSettled', first: ino, count: 3 });
      ends.apply({ kind: below(random, 2) === 0 ? 'orphan' : 'orphanSettled', ino, generation: 1 });
    }
    const again = new LooseEnds();
    again.apply({ kind: 'orphan', ino: inodeNumber(5), generation: 1 });
    for (const change of ends.snapshot(1 << 20).flat()) again.apply(change);
    expect(again.limbo.extents()).toEqual(ends.limbo.extents());
    expect([...again.numbers].sort()).toEqual([...ends.numbers].sort());
    expect(new Map([...again.orphans].sort())).toEqual(new Map([...ends.orphans].sort()));
  });

  test('a snapshot in several transactions counts when the last of them is there; until then what was before does', () => {
    const before = new LooseEnds();
    const after = new LooseEnds();
    for (let i = 0; i < 40; i++) {
      before.apply({ kind: 'limbo', extents: [{ nsd, sector: 256 * i, count: 3 }] });
      after.apply({ kind: 'limbo', extents: [{ nsd, sector: 256 * i + 9, count: 1 }] });
      after.apply({ kind: 'orphan', ino: inodeNumber(50 + i), generation: i });
    }
    expect(after.limboBytes).toBe(40 * 12);
    const parts = after.snapshot(200).map((part) => decodeTransaction(encodeTransaction(part).subarray(4)));
    expect(parts.length).toBeGreaterThan(4);
    const behind: LogRecord[] = [{ kind: 'limbo', extents: [{ nsd, sector: 4, count: 1 }] }];
    for (let there = 0; there <= parts.length; there++) {
      const read = new RedoPlan().add(RecordTable.of([...before.snapshot(1 << 20), ...parts.slice(0, there)]));
      const expected = there === parts.length ? after : before;
      expect(read.limbo.extents()).toEqual(expected.limbo.extents());
      expect(read.orphans).toEqual(expected.orphans);
    }
    const read = new RedoPlan().add(RecordTable.of([...before.snapshot(1 << 20), ...parts, behind]));
    expect(read.limbo.count).toBe(41);
  });

  test('a set of sub-blocks is what a set of numbers is', () => {
    const random = new SeededRandom(8);
    const set = new ExtentSet();
    const model = new Set<number>();
    for (let i = 0; i < 2000; i++) {
      const first = below(random, 256);
      const extent = { nsd, sector: 256 * below(random, 3) + first, count: 1 + below(random, 256 - first) };
      const present = below(random, 2) === 0;
      if (present) set.add(extent);
      else set.remove(extent);
      for (let at = extent.sector; at < extent.sector + extent.count; at++)
        if (present) model.add(at);
        else model.delete(at);
      expect(set.count).toBe(model.size);
      expect(set.runs).toBe(set.extents().length);
    }
    const listed = set.extents().flatMap(({ sector, count }) => Array.from({ length: count }, (_, i) => sector + i));
    expect(listed).toEqual([...model].sort((a, b) => a - b));
  });
});
