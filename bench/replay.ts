/**
 * A full log of 64 MiB, redone. The log is made here, group by group, of what creating files writes: for each of them an inode as a whole, and a
 * patch of its directory's leaf. One NSD in a file, the store alone: no network is in it.
 */
import { randomUUID } from 'node:crypto';
import { closeSync, ftruncateSync, openSync } from 'node:fs';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { BlockEngine } from 'napi-nvme';
import { Counters } from '../src/common/counters.js';
import { nsdIndex } from '../src/common/ids.js';
import { silentLogger } from '../src/common/logger.js';
import { SECTOR_BYTES } from '../src/common/units.js';
import { systemClock } from '../src/daemon/system-clock.js';
import { findLogTable, readDescriptors, writeDescriptor } from '../src/fs/log/log-reader.js';
import { encodeTransaction, type LogRecord } from '../src/fs/log/log-records.js';
import { encodeGroup, sectorsFor } from '../src/fs/log/log-sectors.js';
import { LogSpace } from '../src/fs/log/log-space.js';
import { LogState } from '../src/fs/log/log-table.js';
import { blocksOf, createFileSystem } from '../src/fs/mkfs.js';
import { readSuperblock } from '../src/fs/mount.js';
import { recoverLife } from '../src/fs/recovery.js';
import { fsIdOf } from '../src/fs/superblock.js';
import { SegmentArena } from '../src/native/buffer-arena.js';
import { crc32c, crc32cSectors, createPagePool } from '../src/native/core.js';
import type { PagePool } from '../src/native/page-pool.js';
import { PoolEngine } from '../src/nsd/block-engine-device.js';
import type { NsdClientApi } from '../src/nsd/nsd-api.js';
import { readsAsZeros, versionOf } from '../src/nsd/nsd-layout.js';
import { NsdStore } from '../src/nsd/nsd-store.js';

const MIB = 2 ** 20;
const FILE_BYTES = 2048 * MIB;
const LOG_BYTES = 64 * MIB;
const GROUP_SECTORS = 64;
const INODE_BYTES = 200;
const LEAF_PATCH_BYTES = 48;
/** Files whose leaves are one sector. */
const FILES_PER_LEAF = 64;
const LIFE = { nodeId: 77, incarnation: 1 };

/** The one NSD, without network and tokens. */
function clientOf(store: NsdStore, pool: PagePool): NsdClientApi {
  return {
    read: async (ios) => {
      for (const { sector, memory, versions } of ios) {
        const count = memory.lengthBytes / SECTOR_BYTES;
        const states = { crcs: new Uint32Array(count), versions: new Uint32Array(count) };
        await store.read(sector, memory, states);
        versions?.set(states.versions.map(versionOf));
      }
    },
    write: async (ios) => {
      await Promise.all(
        ios.map(({ sector, memory, versions, logged }) => {
          const crcs = new Uint32Array(memory.lengthBytes / SECTOR_BYTES);
          crc32cSectors(pool.bytes, memory.offsetBytes, crcs.length, crcs, 0);
          return store.write(sector, memory, { crcs, versions, logged: logged === true });
        }),
      );
    },
    flush: () => store.flush(),
    discard: async (extents) => {
      for (const { sector, sectorCount } of extents) await store.discard(sector, sectorCount);
    },
    versions: async (extents) => {
      const words = new Uint32Array(extents.reduce((sum, { sectorCount }) => sum + sectorCount, 0));
      await store.versions(
        extents.map(({ sector, sectorCount }) => ({ sector, sectorCount })),
        words,
      );
      return { versions: words.map(versionOf), zeros: Uint8Array.from(words, (word) => +readsAsZeros(word)) };
    },
    lossesOf: () => 0,
  };
}

function* transactions(firstSector: number): Generator<Uint8Array> {
  const nsd = nsdIndex(0);
  for (let file = 0; ; file++) {
    const leaf = firstSector + Math.floor(file / FILES_PER_LEAF) * (FILES_PER_LEAF + 1);
    const slot = file % FILES_PER_LEAF;
    const bytes = (length: number): Uint8Array => new Uint8Array(length).fill(1 + (file % 255));
    const records: LogRecord[] = [
      {
        kind: 'sector',
        sector: {
          nsd,
          sector: leaf,
          base: 0,
          full: slot === 0,
          raw: false,
          runs: [{ offsetBytes: 64 + slot * LEAF_PATCH_BYTES, bytes: bytes(LEAF_PATCH_BYTES) }],
        },
      },
      {
        kind: 'sector',
        sector: {
          nsd,
          sector: leaf + 1 + slot,
          base: 0,
          full: true,
          raw: false,
          runs: [{ offsetBytes: 40, bytes: bytes(INODE_BYTES) }],
        },
      },
    ];
    yield encodeTransaction(records);
  }
}

export async function replay(
  directory: string,
  row: (what: string, figure: string, ratio: number | null, goal: string) => void,
): Promise<void> {
  const file = path.join(directory, 'replay');
  const fd = openSync(file, 'w');
  ftruncateSync(fd, FILE_BYTES);
  closeSync(fd);
  const pool = createPagePool(32 * MIB);
  const checksums = { sectors: crc32cSectors, bytes: (bytes: Uint8Array) => crc32c(bytes) };
  const engine = new PoolEngine(new BlockEngine({ queueDepth: 64 }), pool);
  const parts = {
    device: await engine.open(file),
    pool,
    checksums,
    staging: { offsetBytes: 0, lengthBytes: MIB },
  };
  const uuid = randomUUID();
  await NsdStore.format(parts, { uuid, clusterId: 'bench', failureGroup: 1, name: 'replay' });
  const store = await NsdStore.open(parts);
  await store.recover();
  const nsds = clientOf(store, pool);
  const arena = new SegmentArena({ offsetBytes: MIB, lengthBytes: 16 * MIB });
  const fsUuid = randomUUID();
  await createFileSystem({
    nsds: [{ uuid, blocks: blocksOf(store.dataSectorCount), failureGroup: 1 }],
    fsUuid,
    name: 'replay',
    nsdClient: nsds,
    arena,
    pool,
    checksums,
    clock: systemClock,
    expectedNodes: 1,
    logBytes: LOG_BYTES,
  });
  const { geometry, inodeFile } = await readSuperblock({ nsds, arena, pool, checksums }, 1);
  const counters = new Counters();
  const storage = { nsds, arena, pool, checksums };
  const volume = { ...storage, fsId: fsIdOf(fsUuid), geometry, inodeFile, logger: silentLogger, counters };
  const table = await findLogTable(volume);
  const descriptor = (await readDescriptors(volume, table)).find((found) => found?.state === LogState.clean)!;
  const opened = { ...descriptor, state: LogState.open, owner: LIFE, generation: descriptor.generation + 1 };
  const space = new LogSpace(descriptor.pieceSectors, descriptor.pieces);
  const { tail: from, slot } = descriptor;
  const identity = { fsId: volume.fsId, slot, generation: opened.generation };
  // The file system's other half: nothing of it is in use.
  const made = transactions(Math.floor((blocksOf(store.dataSectorCount) * 256) / 2));
  const memory = await arena.allocate(GROUP_SECTORS * SECTOR_BYTES);
  let count = 0;
  for (let at = 0; at + GROUP_SECTORS <= space.capacitySectors; at += GROUP_SECTORS) {
    const group: Uint8Array[] = [];
    let bytes = 0;
    for (let next = made.next().value as Uint8Array; ; next = made.next().value as Uint8Array) {
      group.push(next);
      bytes += next.length;
      if (sectorsFor(bytes + next.length) > GROUP_SECTORS) break;
    }
    count += group.length;
    const sectorCount = sectorsFor(bytes);
    if (sectorCount !== GROUP_SECTORS) throw new Error('a group is as long as it can be');
    encodeGroup(
      { first: from + at, sectorCount, tail: from, transactions: group },
      identity,
      checksums,
      pool.bytes.subarray(memory.offsetBytes, memory.offsetBytes + sectorCount * SECTOR_BYTES),
    );
    for (const run of space.runs(from + at, sectorCount))
      await nsds.write([
        {
          nsd: run.nsd,
          sector: run.sector,
          memory: { offsetBytes: memory.offsetBytes + run.at * SECTOR_BYTES, lengthBytes: run.count * SECTOR_BYTES },
          logged: true,
        },
      ]);
  }
  await nsds.flush([nsdIndex(0)]);
  arena.free(memory);
  const seconds: number[] = [];
  const processor: number[] = [];
  let sectors = 0;
  for (let round = 0; round < 3; round++) {
    await writeDescriptor(volume, table, opened);
    const started = performance.now();
    const used = process.cpuUsage();
    const recovered = await recoverLife(volume, LIFE);
    seconds.push((performance.now() - started) / 1000);
    const { user, system } = process.cpuUsage(used);
    processor.push((user + system) / 1e6);
    if (recovered.transactions !== count) throw new Error(`${recovered.transactions} of ${count} transactions found`);
    sectors = Math.max(sectors, recovered.sectorsRedone);
  }
  const again = `again, with nothing to write, ${seconds.at(-1)!.toFixed(2)} s`;
  const work = `processor time ${processor[0]!.toFixed(2)} and ${processor.at(-1)!.toFixed(2)} s`;
  const detail = `at most 1 s; ${count} transactions, ${sectors} sectors; ${again}; ${work}`;
  row('replay of a full log of 64 MiB', `${seconds[0]!.toFixed(2)} s`, null, detail);
  await store.close();
}
