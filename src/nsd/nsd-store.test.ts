import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Counters } from '../common/counters.js';
import { FsError, type Reason } from '../common/errors.js';
import { SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { SegmentArena } from '../native/buffer-arena.js';
import { crc32cJs } from '../native/crc32c-js.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { checksumsJs } from './checksum-js.js';
import { FaultDevice, type FaultDeviceOptions } from './fault-device.js';
import { ENTRIES_PER_CHECKSUM_SECTOR, LOST_WORD, VERSION_AFTER_LOSS } from './nsd-layout.js';
import { NsdStore, type NsdStoreParts, newSectorStates } from './nsd-store.js';
import { deviceBytesFor, mustAllocate, RamDevice, testMemory, turn, until } from './testing.js';

const UUID = '11111111-2222-4333-8444-555555555555';
const FS = 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee';
const OTHER_FS = 'ffffffff-bbbb-4ccc-8ddd-eeeeeeeeeeee';
const FORMAT = { uuid: UUID, fsUuid: FS, clusterId: 'test-cluster', failureGroup: 7, name: 'nsd-1' };

interface Rig {
  readonly pool: PagePool;
  readonly arena: SegmentArena;
  readonly ram: RamDevice;
  readonly device: FaultDevice;
  readonly parts: NsdStoreParts;
  readonly counters: Counters;
  store: NsdStore;
}

async function rig(dataSectors = 40, options: FaultDeviceOptions = {}, cachedChecksumSectorsMax = 64): Promise<Rig> {
  const { pool, arena } = testMemory(4 << 20);
  const ram = new RamDevice(deviceBytesFor(dataSectors), pool);
  const device = new FaultDevice(ram, pool, mustAllocate(arena, 1), options);
  const counters = new Counters();
  const parts = {
    device,
    pool,
    checksums: checksumsJs,
    staging: mustAllocate(arena, 16),
    counters,
    cachedChecksumSectorsMax,
  };
  await NsdStore.format(parts, FORMAT);
  return { pool, arena, ram, device, parts, counters, store: await NsdStore.open(parts, { uuid: UUID, fsUuid: FS }) };
}

function fill(r: Rig, memory: PoolSegment, value: number): Uint32Array {
  const count = memory.lengthBytes / SECTOR_BYTES;
  const crcs = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    const at = memory.offsetBytes + i * SECTOR_BYTES;
    new Uint32Array(r.pool.buffer, at, SECTOR_BYTES / 4).fill(value + i);
    crcs[i] = crc32cJs(r.pool.bytes.subarray(at, at + SECTOR_BYTES));
  }
  return crcs;
}
async function write(r: Rig, sector: number, sectorCount: number, value: number): Promise<Uint32Array> {
  const memory = mustAllocate(r.arena, sectorCount);
  const versions = new Uint32Array(sectorCount);
  try {
    await r.store.write(sector, memory, { crcs: fill(r, memory, value), versionsOut: versions });
    return versions;
  } finally {
    r.arena.free(memory);
  }
}
/** The value each sector was filled with. */
async function read(r: Rig, sector: number, sectorCount: number): Promise<number[]> {
  const memory = mustAllocate(r.arena, sectorCount);
  r.pool.bytes.fill(0x5a, memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
  try {
    await r.store.read(sector, memory);
    return Array.from({ length: sectorCount }, (_, i) => {
      const words = new Uint32Array(r.pool.buffer, memory.offsetBytes + i * SECTOR_BYTES, SECTOR_BYTES / 4);
      expect(words.every((word) => word === words[0])).toBe(true);
      return words[0]!;
    });
  } finally {
    r.arena.free(memory);
  }
}
const reasonOf = async (work: Promise<unknown>): Promise<Reason | 'none'> =>
  work.then(
    () => 'none' as const,
    (error: unknown) => {
      if (FsError.is(error)) return error.reason;
      throw error;
    },
  );
async function reopen(r: Rig): Promise<void> {
  r.store = await NsdStore.open(r.parts, { uuid: UUID, fsUuid: FS });
}

describe('an NSD', () => {
  it('reads as zeros, without touching the device, where it was never written', async () => {
    const r = await rig();
    await write(r, 3, 1, 9);
    const before = r.device.operations.read;
    expect(await read(r, 10, 4)).toEqual([0, 0, 0, 0]);
    expect(r.device.operations.read).toBe(before);
  });

  it('gives back what was written, across runs of written and unwritten sectors, and after reopening', async () => {
    const r = await rig();
    await write(r, 2, 3, 100);
    await write(r, 7, 1, 200);
    expect(await read(r, 0, 9)).toEqual([0, 0, 100, 101, 102, 0, 0, 200, 0]);
    await reopen(r);
    expect(await read(r, 0, 9)).toEqual([0, 0, 100, 101, 102, 0, 0, 200, 0]);
  });

  it('counts the version of a sector up by one with every write, and goes on after a discard', async () => {
    const r = await rig();
    expect([...(await write(r, 5, 2, 1))]).toEqual([1, 1]);
    expect([...(await write(r, 5, 1, 2))]).toEqual([2]);
    await r.store.discard(5, 1);
    expect(await read(r, 5, 2)).toEqual([0, 2]);
    expect([...(await write(r, 5, 1, 3))]).toEqual([4]);
    const memory = mustAllocate(r.arena, 3);
    const states = newSectorStates(3);
    await r.store.read(4, memory, states);
    expect([...states.versions]).toEqual([0, 4, 1]);
    expect(states.crcs[0]).toBe(crc32cJs(new Uint8Array(SECTOR_BYTES)));
  });

  it('answers many concurrent small writes to neighbouring sectors with one checksum write', async () => {
    const r = await rig();
    await read(r, 0, 1);
    const before = r.counters.get('nsd.checksumSectorWrites');
    await Promise.all(Array.from({ length: 32 }, (_, i) => write(r, i, 1, 1000 + i)));
    expect(r.counters.get('nsd.checksumSectorWrites') - before).toBe(1);
    await reopen(r);
    expect(await read(r, 0, 32)).toEqual(Array.from({ length: 32 }, (_, i) => 1000 + i));
  });

  it('does not resolve a write before its checksum sector is on the device', async () => {
    const r = await rig();
    await read(r, 0, 1);
    const stall = r.device.inject({ operation: 'write', kind: 'stall', start: SECTOR_BYTES, end: 2 * SECTOR_BYTES });
    let resolved = false;
    const done = write(r, 4, 1, 5).then(() => {
      resolved = true;
    });
    await until(() => stall.stalledCount === 1);
    await turn();
    expect(resolved).toBe(false);
    stall.release();
    await done;
  });

  it('lets a later write to other sectors not hold up an earlier commit', async () => {
    const r = await rig();
    await read(r, 0, 1);
    const at = (sector: number): number => (r.store.geometry.dataStart + sector) * SECTOR_BYTES;
    const first = r.device.inject({ operation: 'write', kind: 'stall', start: at(1), end: at(2) });
    const second = r.device.inject({ operation: 'write', kind: 'stall', start: at(9), end: at(10) });
    const early = write(r, 1, 1, 1);
    await until(() => first.stalledCount === 1);
    first.release();
    await early;
    const late = write(r, 9, 1, 9);
    await until(() => second.stalledCount === 1);
    second.release();
    await late;
    expect(await read(r, 1, 1)).toEqual([1]);
  });

  it('lets two writes to one sector follow each other, and a read between them see either, never a mismatch', async () => {
    const r = await rig();
    const work: Promise<unknown>[] = [];
    const seen: Promise<number[]>[] = [];
    for (let i = 1; i <= 20; i++) {
      work.push(write(r, 6, 2, i * 10));
      seen.push(read(r, 6, 2));
    }
    await Promise.all(work);
    for (const [i, values] of (await Promise.all(seen)).entries())
      expect(values).toEqual([(i + 1) * 10, (i + 1) * 10 + 1]);
    expect(r.counters.get('nsd.checksumMismatches')).toBe(0);
  });

  it('keeps no more checksum sectors in memory than it was told, and loses nothing by it', async () => {
    const r = await rig(ENTRIES_PER_CHECKSUM_SECTOR * 6, {}, 2);
    for (let i = 0; i < 6; i++) await write(r, i * ENTRIES_PER_CHECKSUM_SECTOR + i, 1, 50 + i);
    for (let i = 0; i < 6; i++) expect(await read(r, i * ENTRIES_PER_CHECKSUM_SECTOR + i, 1)).toEqual([50 + i]);
    const spanning = ENTRIES_PER_CHECKSUM_SECTOR * 2 - 3;
    await write(r, spanning, 6, 900);
    expect(await read(r, spanning, 6)).toEqual([900, 901, 902, 903, 904, 905]);
    expect(r.counters.get('nsd.checksumSectorReads')).toBeGreaterThan(6);
  });

  it('refuses sectors that are not there, memory that is not whole sectors, and too few checksums', async () => {
    const r = await rig();
    const memory = mustAllocate(r.arena, 2);
    const crcs = fill(r, memory, 1);
    expect(await reasonOf(r.store.read(39, memory))).toBe('outOfRange');
    expect(await reasonOf(r.store.read(-1, memory))).toBe('outOfRange');
    expect(await reasonOf(r.store.read(0.5, memory))).toBe('outOfRange');
    expect(await reasonOf(r.store.write(39, memory, { crcs }))).toBe('outOfRange');
    expect(await reasonOf(r.store.discard(0, 41))).toBe('outOfRange');
    expect(await reasonOf(r.store.discard(3, 0))).toBe('outOfRange');
    expect(await reasonOf(r.store.read(0, { offsetBytes: memory.offsetBytes + 512, lengthBytes: 4096 }))).toBe(
      'invalidArgument',
    );
    expect(await reasonOf(r.store.read(0, { offsetBytes: memory.offsetBytes, lengthBytes: 100 }))).toBe(
      'invalidArgument',
    );
    expect(await reasonOf(r.store.read(0, { offsetBytes: 4 << 20, lengthBytes: 4096 }))).toBe('invalidArgument');
    expect(await reasonOf(r.store.write(0, memory, { crcs: crcs.subarray(0, 1) }))).toBe('invalidArgument');
  });

  it('waits for what is under way when it is closed, and refuses what comes after', async () => {
    const r = await rig();
    await read(r, 0, 1);
    const stall = r.device.inject({ operation: 'write', kind: 'stall', times: 1 });
    const writing = write(r, 1, 1, 1);
    await until(() => stall.stalledCount === 1);
    const closing = r.store.close();
    expect(await reasonOf(r.store.flush())).toBe('closed');
    expect(r.ram.closed).toBe(false);
    stall.release();
    await writing;
    await closing;
    expect(r.ram.closed).toBe(true);
    await r.store.close();
  });
});

describe('an NSD on a failing device', () => {
  it('reports the error of a data write, keeps the old bytes readable and goes on', async () => {
    const r = await rig();
    await write(r, 1, 1, 11);
    r.device.inject({ operation: 'write', kind: 'eio', times: 1 });
    expect(await reasonOf(write(r, 1, 1, 12))).toBe('deviceError');
    expect(await read(r, 1, 1)).toEqual([11]);
    await write(r, 1, 1, 13);
    expect(await read(r, 1, 1)).toEqual([13]);
  });

  it('reports a failed checksum write to every write that it was for', async () => {
    const r = await rig();
    await read(r, 0, 1);
    const rule = { operation: 'write', kind: 'eio', start: SECTOR_BYTES, end: 2 * SECTOR_BYTES, times: 1 } as const;
    r.device.inject(rule);
    const results = await Promise.all([reasonOf(write(r, 1, 1, 1)), reasonOf(write(r, 2, 1, 2))]);
    expect(results).toEqual(['deviceError', 'deviceError']);
    await write(r, 3, 1, 3);
    await reopen(r);
    // The next write of the sector carried the entries of the failed one.
    expect(await read(r, 1, 3)).toEqual([1, 2, 3]);
  });

  it('reports a full device as ENOSPC and a short read as shortIo', async () => {
    const r = await rig();
    r.device.inject({ operation: 'write', kind: 'enospc', times: 1 });
    expect(await reasonOf(write(r, 1, 1, 1))).toBe('noSpace');
    await write(r, 1, 2, 1);
    r.device.inject({ operation: 'read', kind: 'short', times: 1 });
    expect(await reasonOf(read(r, 1, 2))).toBe('shortIo');
    expect(await read(r, 1, 2)).toEqual([1, 2]);
  });

  it('reports bytes that changed on the device, naming NSD and sector, and counts them', async () => {
    const r = await rig();
    await write(r, 8, 3, 1);
    await r.device.corrupt((r.store.geometry.dataStart + 9) * SECTOR_BYTES + 77);
    const memory = mustAllocate(r.arena, 3);
    await expect(r.store.read(8, memory)).rejects.toMatchObject({
      reason: 'checksumMismatch',
      code: 'EIO',
      object: `nsd ${UUID} sector 9`,
    });
    expect(r.counters.get('nsd.checksumMismatches')).toBe(1);
  });

  it('notices a write that the device changed or lost silently', async () => {
    const r = await rig();
    r.device.inject({ operation: 'write', kind: 'flip', times: 1 });
    await write(r, 8, 1, 1);
    expect(await reasonOf(read(r, 8, 1))).toBe('checksumMismatch');
  });

  it('reports sectors as mismatching when their checksum sector is gone, and heals each with a write or a discard', async () => {
    const r = await rig();
    await write(r, 1, 3, 1);
    await r.device.corrupt(SECTOR_BYTES + 500);
    await reopen(r);
    expect(await reasonOf(read(r, 1, 1))).toBe('checksumMismatch');
    // Even what had never been written: nobody knows any more.
    expect(await reasonOf(read(r, 20, 1))).toBe('checksumMismatch');
    expect([...(await write(r, 1, 1, 71))]).toEqual([VERSION_AFTER_LOSS]);
    await r.store.discard(2, 1);
    await reopen(r);
    expect(await read(r, 1, 2)).toEqual([71, 0]);
    expect(await reasonOf(read(r, 3, 1))).toBe('checksumMismatch');
  });

  it('takes any version for a sector whose checksum is gone: the redo of a log record heals it (L2)', async () => {
    const r = await rig();
    await write(r, 1, 3, 1);
    await r.device.corrupt(SECTOR_BYTES + 500);
    await reopen(r);
    const words = new Uint32Array(2);
    await r.store.versions([{ sector: 1, sectorCount: 2 }], words);
    expect([...words]).toEqual([LOST_WORD, LOST_WORD]);
    const memory = mustAllocate(r.arena, 1);
    await r.store.write(1, memory, { crcs: fill(r, memory, 33), versions: Uint32Array.of(2) });
    await reopen(r);
    expect(await read(r, 1, 1)).toEqual([33]);
    expect([...(await write(r, 1, 1, 34))]).toEqual([3]);
  });

  it('does not believe an intact checksum sector of another place or of another NSD', async () => {
    const r = await rig(ENTRIES_PER_CHECKSUM_SECTOR * 2);
    await write(r, 1, 1, 1);
    await write(r, ENTRIES_PER_CHECKSUM_SECTOR + 1, 1, 2);
    r.ram.bytes.copyWithin(2 * SECTOR_BYTES, SECTOR_BYTES, 2 * SECTOR_BYTES);
    await reopen(r);
    expect(await read(r, 1, 1)).toEqual([1]);
    expect(await reasonOf(read(r, ENTRIES_PER_CHECKSUM_SECTOR + 1, 1))).toBe('checksumMismatch');
    const stale = r.ram.bytes.slice(SECTOR_BYTES, 2 * SECTOR_BYTES);
    await NsdStore.format(r.parts, { ...FORMAT, uuid: '99999999-2222-4333-8444-555555555555' });
    r.ram.bytes.set(stale, SECTOR_BYTES);
    r.store = await NsdStore.open(r.parts);
    expect(await reasonOf(read(r, 1, 1))).toBe('checksumMismatch');
  });

  it('survives any single changed byte of a checksum piece without ever giving wrong bytes', async () => {
    const r = await rig();
    await write(r, 0, 4, 40);
    await fc.assert(
      fc.asyncProperty(fc.nat(511), fc.integer({ min: 1, max: 255 }), async (at, mask) => {
        await r.device.corrupt(SECTOR_BYTES + at, mask);
        await reopen(r);
        expect(await reasonOf(read(r, 0, 4))).toBe('checksumMismatch');
        await r.device.corrupt(SECTOR_BYTES + at, mask);
        await reopen(r);
        expect(await read(r, 0, 4)).toEqual([40, 41, 42, 43]);
      }),
      { numRuns: 60 },
    );
  });
});

describe('the header of an NSD', () => {
  it('refuses an NSD of another file system, of none, and another NSD', async () => {
    const r = await rig();
    expect(await reasonOf(NsdStore.open(r.parts, { fsUuid: OTHER_FS }))).toBe('wrongNsd');
    expect(await reasonOf(NsdStore.open(r.parts, { fsUuid: null }))).toBe('wrongNsd');
    expect(await reasonOf(NsdStore.open(r.parts, { uuid: FS }))).toBe('wrongNsd');
    await r.store.assignTo(null);
    expect(await reasonOf(NsdStore.open(r.parts, { fsUuid: FS }))).toBe('wrongNsd');
    const free = await NsdStore.open(r.parts, { fsUuid: null });
    expect(free.header).toMatchObject({ ...FORMAT, fsUuid: null, generation: 4, dataSectorCount: 40 });
    await free.assignTo(OTHER_FS);
    expect((await NsdStore.open(r.parts, { fsUuid: OTHER_FS })).header.generation).toBe(6);
  });

  it('falls back to its copy at the end of the device, and needs one of the two', async () => {
    const r = await rig();
    await write(r, 1, 1, 5);
    await r.device.corrupt(100);
    await reopen(r);
    expect(await read(r, 1, 1)).toEqual([5]);
    expect(r.counters.get('nsd.headersBroken')).toBe(1);
    // Opening it to serve it has written both.
    await r.device.corrupt(100);
    await r.device.corrupt(r.store.geometry.headerCopy * SECTOR_BYTES + 100);
    expect(await reasonOf(NsdStore.open(r.parts))).toBe('wrongNsd');
    await r.device.corrupt(100);
    await reopen(r);
    expect(await read(r, 1, 1)).toEqual([5]);
  });

  it('notices any single changed byte', async () => {
    const r = await rig();
    await r.device.corrupt(r.store.geometry.headerCopy * SECTOR_BYTES);
    await fc.assert(
      fc.asyncProperty(fc.nat(SECTOR_BYTES - 1), fc.integer({ min: 1, max: 255 }), async (at, mask) => {
        await r.device.corrupt(at, mask);
        expect(await reasonOf(NsdStore.open(r.parts))).toBe('wrongNsd');
        await r.device.corrupt(at, mask);
      }),
      { numRuns: 60 },
    );
    await reopen(r);
  });

  it('opens through the copy when the first sector cannot be read, and reports the error when neither can', async () => {
    const r = await rig();
    const fault = r.device.inject({ operation: 'read', kind: 'eio', start: 0, end: 512 });
    await reopen(r);
    fault.release();
    r.device.inject({ operation: 'read', kind: 'eio' });
    expect(await reasonOf(NsdStore.open(r.parts))).toBe('deviceError');
  });

  it('is still found on a device that has grown, and refused on one that has shrunk', async () => {
    const r = await rig();
    const grown = new RamDevice(r.ram.lengthBytes + 10 * SECTOR_BYTES, r.pool);
    grown.bytes.set(r.ram.bytes);
    expect((await NsdStore.open({ ...r.parts, device: grown })).dataSectorCount).toBe(40);
    const shrunk = new RamDevice(r.ram.lengthBytes - 2 * SECTOR_BYTES, r.pool);
    shrunk.bytes.set(r.ram.bytes.subarray(0, shrunk.lengthBytes));
    expect(await reasonOf(NsdStore.open({ ...r.parts, device: shrunk }))).toBe('wrongNsd');
  });

  it('is of the old or of the new file system after a power cut in the midst of an assignment', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer(), fc.nat(3), async (seed, writesBefore) => {
        const r = await rig(4, { holdBack: true });
        const rules = [r.device.inject({ operation: writesBefore % 2 === 0 ? 'write' : 'flush', kind: 'stall' })];
        if (writesBefore > 1) rules[0]!.release();
        const assigning = reasonOf(r.store.assignTo(OTHER_FS));
        for (let i = 0; i < 3; i++) await turn();
        await r.device.powerCut(new SeededRandom(seed));
        await assigning;
        r.device.powerOn();
        for (const rule of rules) rule.release();
        expect([FS, OTHER_FS]).toContain((await NsdStore.open(r.parts)).header.fsUuid);
      }),
      { numRuns: 40 },
    );
  });

  it('refuses to format what is too small, and names that are too long, before it changes anything', async () => {
    const r = await rig();
    const tiny = { ...r.parts, device: new RamDevice(3 * SECTOR_BYTES, r.pool) };
    expect(await reasonOf(NsdStore.format(tiny, FORMAT))).toBe('invalidArgument');
    expect(await reasonOf(NsdStore.format(r.parts, { ...FORMAT, name: 'x'.repeat(129) }))).toBe('invalidArgument');
    expect(await reasonOf(NsdStore.format(r.parts, { ...FORMAT, uuid: 'nonsense' }))).toBe('invalidArgument');
    await reopen(r);
  });
});

describe('the lives of an NSD', () => {
  const lifeOf = ({ store }: Rig) => ({ life: store.life.life, wholeSince: store.life.wholeSince });

  it('are whole after one that ended in good order, and not after one that just ended', async () => {
    const r = await rig();
    expect(lifeOf(r)).toEqual({ life: 1, wholeSince: 1 });
    await r.store.close();
    r.ram.closed = false;
    await reopen(r);
    expect(lifeOf(r)).toEqual({ life: 2, wholeSince: 1 });
    await reopen(r);
    expect(lifeOf(r)).toEqual({ life: 3, wholeSince: 3 });
  });

  it('are whole while what keeps their unflushed writes is the same, and not when it is another one', async () => {
    const r = await rig();
    r.ram.keeper = OTHER_FS;
    await reopen(r);
    await reopen(r);
    expect(lifeOf(r)).toEqual({ life: 3, wholeSince: 2 });
    r.ram.keeper = FS;
    await reopen(r);
    expect(lifeOf(r)).toEqual({ life: 4, wholeSince: 4 });
  });

  it('do not end in good order when the last flush fails', async () => {
    const r = await rig();
    r.device.inject({ operation: 'flush', kind: 'eio', times: 1 });
    await r.store.close();
    expect(r.ram.closed).toBe(true);
    r.ram.closed = false;
    await reopen(r);
    expect(lifeOf(r)).toEqual({ life: 2, wholeSince: 2 });
  });

  it('begin when it is to be served: one that is only looked at is left as it is', async () => {
    const r = await rig();
    const before = r.ram.bytes.slice();
    const looked = await NsdStore.open(r.parts, { lookOnly: true });
    expect(Buffer.compare(r.ram.bytes, before)).toBe(0);
    await reopen(r);
    await looked.recover();
    expect(looked.life.life).toBe(3);
  });
});

describe('an NSD against a model', () => {
  const SECTORS = 24;
  const place = fc.record({ sector: fc.nat(SECTORS - 1), count: fc.integer({ min: 1, max: 6 }) });
  const step = fc.oneof(
    { weight: 6, arbitrary: place.map((p) => ({ kind: 'write' as const, ...p })) },
    { weight: 1, arbitrary: place.map((p) => ({ kind: 'discard' as const, ...p })) },
    { weight: 1, arbitrary: fc.constant({ kind: 'flush' as const, sector: 0, count: 1 }) },
    { weight: 1, arbitrary: fc.constant({ kind: 'reopen' as const, sector: 0, count: 1 }) },
    { weight: 3, arbitrary: place.map((p) => ({ kind: 'read' as const, ...p })) },
  );

  it('reads what was last written or zeros, whatever the order of writes, discards, flushes and reopenings', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
        const r = await rig(SECTORS);
        const model = new Array<number>(SECTORS).fill(0);
        let value = 1;
        for (const { kind, sector, count } of steps) {
          const end = Math.min(SECTORS, sector + count);
          if (kind === 'write') {
            await write(r, sector, end - sector, value * 100);
            for (let i = sector; i < end; i++) model[i] = value * 100 + i - sector;
            value++;
          } else if (kind === 'discard') {
            await r.store.discard(sector, end - sector);
            model.fill(0, sector, end);
          } else if (kind === 'flush') await r.store.flush();
          else if (kind === 'reopen') await reopen(r);
          else expect(await read(r, sector, end - sector)).toEqual(model.slice(sector, end));
        }
        expect(await read(r, 0, SECTORS)).toEqual(model);
      }),
      { numRuns: 60 },
    );
  });

  it('after a power cut every sector is old, new or reports checksumMismatch; what was flushed and left alone is there (S1, I8)', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 24 }),
        fc.integer(),
        fc.boolean(),
        async (steps, seed, midway) => {
          const r = await rig(SECTORS, { holdBack: true });
          /** Every value that a sector may have, the flushed one first. */
          const possible = Array.from({ length: SECTORS }, () => new Set([0]));
          const latest = new Array<number>(SECTORS).fill(0);
          let touched = false;
          let value = 1;
          const pending: Promise<unknown>[] = [];
          for (const { kind, sector, count } of steps) {
            const end = Math.min(SECTORS, sector + count);
            if (kind === 'write' || kind === 'discard') {
              touched = true;
              for (let i = sector; i < end; i++) {
                latest[i] = kind === 'discard' ? 0 : value * 100 + i - sector;
                possible[i]!.add(latest[i]!);
              }
              const work =
                kind === 'discard'
                  ? r.store.discard(sector, end - sector)
                  : write(r, sector, end - sector, value * 100);
              value++;
              pending.push(work);
            } else if (kind === 'flush') {
              await Promise.all(pending.splice(0));
              await r.store.flush();
              touched = false;
              for (let i = 0; i < SECTORS; i++) possible[i] = new Set([latest[i]!]);
            }
          }
          const ended = Promise.allSettled(pending);
          if (!midway) await ended;
          await r.device.powerCut(new SeededRandom(seed));
          await ended;
          r.device.powerOn();
          await reopen(r);
          for (let i = 0; i < SECTORS; i++) {
            const memory = mustAllocate(r.arena, 1);
            const reason = await reasonOf(r.store.read(i, memory));
            expect(['none', 'checksumMismatch']).toContain(reason);
            if (!touched) expect(reason).toBe('none');
            if (reason === 'none') expect([...possible[i]!]).toContain((await read(r, i, 1))[0]);
            r.arena.free(memory);
          }
        },
      ),
      { numRuns: 150 },
    );
  });
});
