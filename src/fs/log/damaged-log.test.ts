import { constants } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Counters } from '../../common/counters.js';
import { inodeNumber, nsdIndex } from '../../common/ids.js';
import { type Logger, silentLogger } from '../../common/logger.js';
import { fuzzRuns } from '../../common/testing/fuzz.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { firstCopy, mirrored } from '../../nsd/copies.js';
import { repairFileSystem } from '../check/repair.js';
import { ROOT } from '../file-system-api.js';
import type { Geometry } from '../layout.js';
import { sealSector } from '../sector.js';
import { fsIdOf } from '../superblock.js';
import { checkParts, checkVolume, TEST_FS_UUID, type TestNode, TestVolume, testChecksums } from '../testing.js';
import { findLogTable, readDescriptors, readLog } from './log-reader.js';
import { encodeTransaction, type LogRecord } from './log-records.js';
import { encodeGroup, LogScan } from './log-sectors.js';
import { LogSpace } from './log-space.js';
import { encodeDescriptor } from './log-table.js';
import { recordFault } from './record-bounds.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;

const about = (nsd: number, sector: number): LogRecord => ({
  kind: 'sector',
  sector: {
    nsd: nsdIndex(nsd),
    sector,
    base: 0,
    full: true,
    raw: false,
    runs: [{ offsetBytes: 40, bytes: new Uint8Array(64).fill(0xbd) }],
  },
});
const space = (kind: 'limbo' | 'settled', nsd: number, sector: number, count = 1): LogRecord => ({
  kind,
  extents: [{ nsd: nsdIndex(nsd), sector, count }],
});

/** Of a file system of two NSDs of 64 blocks. */
const IMPOSSIBLE: Record<string, LogRecord> = {
  'a sector behind the end of its NSD': about(0, 64 * 256),
  'a sector far behind it': about(1, 2 ** 45),
  'an NSD that is none of its': about(2, 300),
  'a second copy on one that is none of its': about(mirrored(nsdIndex(0), nsdIndex(9)), 300),
  'two copies on one NSD': about(mirrored(nsdIndex(1), nsdIndex(1)), 300),
  'the superblock': about(0, 0),
  'space behind the end of its NSD': space('limbo', 1, 64 * 256, 3),
  'space in the block of the superblock': space('settled', 1, 7),
  'a shipment of space on no NSD': {
    kind: 'shipped',
    sequence: 4,
    extents: [{ nsd: nsdIndex(90), sector: 300, count: 1 }],
  },
  'numbers behind the last inode': { kind: 'numbersTaken', first: inodeNumber(2 ** 40), count: 9 },
  'an orphan that no inode can be': { kind: 'orphan', ino: inodeNumber(2 ** 50), generation: 1 },
};

async function logOf(volume: TestVolume, { fs, life }: TestNode) {
  const { fsUuid, geometry, inodeFile } = fs.superblock;
  const logs = { ...volume.storage(), fsId: fsIdOf(fsUuid), geometry, inodeFile };
  const table = await findLogTable(logs);
  const descriptors = await readDescriptors(logs, table);
  const descriptor = descriptors.find((one) => one?.owner.nodeId === life.nodeId)!;
  const { slot, generation, pieceSectors, pieces } = descriptor;
  const places = new LogSpace(pieceSectors, pieces);
  const placeOf = (number: number) => places.runs(number, 1)[0]!;
  const read = () => readLog(logs, descriptor);
  /** Behind what is there, as the node itself would have. */
  const write = async (transactions: readonly (readonly LogRecord[])[]): Promise<void> => {
    const { head } = await read();
    const memory = new Uint8Array(SECTOR_BYTES);
    const group = {
      first: head,
      sectorCount: 1,
      tail: descriptor.tail,
      transactions: transactions.map(encodeTransaction),
    };
    encodeGroup(group, { fsId: logs.fsId, slot, generation }, testChecksums, memory);
    const { nsd, sector } = placeOf(head);
    volume.nsds.setSector(nsd, sector, memory);
  };
  return { table, descriptor, identity: { fsId: logs.fsId, slot, generation }, placeOf, read, write };
}

/** A node that has synced a file and made a directory that is only in its log. */
async function leftBehind(logger: Logger = silentLogger) {
  const volume = await TestVolume.create({ logger });
  const node = await volume.mount(1, { inodeWriteBehindMs: 3_600_000 });
  const file = await node.fs.open('/f', O_CREAT | O_RDWR, 0o644, ROOT);
  await file.write(0, Buffer.alloc(30_000, 7));
  await file.sync(false);
  await node.fs.mkdir('/d', 0o755, ROOT);
  await node.fs.sync();
  return { volume, node, log: await logOf(volume, node) };
}

async function hasAll(node: TestNode): Promise<void> {
  const file = await node.fs.open('/f', O_RDONLY, 0, ROOT);
  const bytes = Buffer.alloc(30_000);
  await file.read(0, bytes);
  expect(bytes.equals(Buffer.alloc(30_000, 7))).toBe(true);
  await file.close();
  expect((await node.fs.stat('/d', ROOT)).nlink).toBe(2);
}

describe.each(Object.entries(IMPOSSIBLE))('a record about %s', (_, record) => {
  test('is refused before anything is redone by it, named, and nothing else is lost', async () => {
    const errors: unknown[] = [];
    const { volume, node, log } = await leftBehind({
      ...silentLogger,
      error: (fields: unknown) => void errors.push(fields),
    } as Logger);
    const there = await volume.mount(2);
    await log.write([[about(0, 3000)], [record]]);
    expect((await log.read()).hole).toMatch(/the group at sector \d+ is refused: .+/);
    await volume.bury(node);
    expect(errors).toContainEqual(expect.objectContaining({ why: expect.stringMatching(/is refused/) }));
    await hasAll(there);
    expect(volume.nsds.sector(nsdIndex(0), 3000)).toEqual(new Uint8Array(SECTOR_BYTES));
    await there.fs.unmount();
    expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
  });
});

test('a log with such a record is named by a check, and a repair goes on without it', async () => {
  const { volume, node, log } = await leftBehind();
  await log.write([[about(5, 300)]]);
  volume.powerOff([node]);
  const found = (await checkVolume(volume)).findings.find(({ kind }) => kind === 'logHole');
  expect(found?.detail).toMatch(/sector 300 of NSD 5/);
  await repairFileSystem({ ...checkParts(volume), logger: silentLogger, counters: new Counters() }, 2);
  expect(await checkVolume(volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
  const again = await volume.mount(3);
  await hasAll(again);
  await again.fs.unmount();
});

/** Of a log of a node that is gone. */
async function outdated() {
  const { volume, node, log } = await leftBehind();
  volume.powerOff([node]);
  const { table, descriptor } = log;
  const place = [firstCopy(table.nsd), table.sector + descriptor.slot] as const;
  const before = encodeDescriptor({ ...descriptor, generation: descriptor.generation - 1 }, fsIdOf(TEST_FS_UUID), 1);
  sealSector(before, testChecksums);
  volume.nsds.setSector(...place, before);
  return { volume, descriptor };
}

test('a descriptor of an old generation is found out by whoever mounts, and counted', async () => {
  const { volume } = await outdated();
  const there = await volume.mount(2);
  expect(there.counters.get('recovery.logHoles')).toBe(1);
  await there.fs.unmount();
});

test('a descriptor of an old generation is found out by what its log has of a later one: that is a hole, and is named', async () => {
  const { volume, descriptor } = await outdated();
  const found = (await checkVolume(volume)).findings.find(({ kind }) => kind === 'logHole');
  expect(found).toMatchObject({ object: `log ${descriptor.slot}` });
  expect(found?.detail).toMatch(/sector \d+ is of generation \d+, its descriptor of \d+/);
  const report = await repairFileSystem({ ...checkParts(volume), logger: silentLogger, counters: new Counters() }, 2);
  expect(report).toMatchObject({ findings: [] });
  expect(report.mended.map(({ kind }) => kind)).toContain('logHole');
  expect(await checkVolume(volume)).toMatchObject({ findings: [], lostSubBlocks: 0, lostInodes: 0 });
});

const geometry: Geometry = {
  nsdCount: 2,
  nsdBlocks: [64, 64],
  regionBlocks: 64,
  regionCount: 1,
  segmentCount: 4,
  failureGroups: [0, 1],
  metadataCopies: 1,
};

test('whatever the sectors of a log say, even under good checksums, what is believed of them can be there', async () => {
  const { node, volume, log } = await leftBehind();
  const { head, tail } = await log.read();
  const sectors = new Map<number, Uint8Array>();
  for (let n = tail; n < head; n++) {
    const { nsd, sector } = log.placeOf(n);
    sectors.set(n, volume.nsds.sector(nsd, sector));
  }
  await node.fs.unmount();
  const edit = fc.record({
    sector: fc.integer({ min: tail, max: head - 1 }),
    at: fc.oneof(fc.integer({ min: 8, max: 200 }), fc.nat(SECTOR_BYTES - 1)),
    value: fc.nat(255),
    seal: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 12 }), (edits) => {
      const damaged = new Map(sectors);
      for (const { sector, at, value, seal } of edits) {
        const bytes = damaged.get(sector)!.slice();
        bytes[at] = value;
        if (seal) sealSector(bytes, testChecksums);
        damaged.set(sector, bytes);
      }
      const scan = new LogScan({
        from: tail,
        capacity: 64,
        identity: log.identity,
        checksums: testChecksums,
        geometry,
      });
      for (let n = tail; n < tail + 64; n++) scan.take([damaged.get(n) ?? null]);
      const scanned = scan.finish();
      expect(scanned.head).toBeLessThanOrEqual(head);
      const { records } = scanned;
      for (let i = 0; i < records.length; i++)
        expect(recordFault({ kind: 'sector', sector: records.record(i) }, geometry)).toBeNull();
      for (const { change } of records.ends) expect(recordFault(change, geometry)).toBeNull();
    }),
    fuzzRuns(300, 1),
  );
});
