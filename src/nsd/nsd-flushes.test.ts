/**
 * What each flush of an NSD is for, one by one: with all of them nothing that was promised is lost at whatever moment the power goes, and with one left out
 * something is. (Those of intents: power-cut.test.ts.)
 */
import { describe, expect, test } from 'vitest';
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import { crc32c, crc32cSectors } from '../native/core.js';
import { type DeviceImage, type DeviceOp, DeviceRecord, extremeFates, IMAGE_CHUNK_BYTES } from './device-record.js';
import type { BlockDevice } from './nsd-api.js';
import { geometryOfDevice } from './nsd-layout.js';
import { NsdStore, type NsdStoreParts } from './nsd-store.js';
import { RecordingDevice } from './recording-device.js';
import { deviceBytesFor, mustAllocate, RamDevice, testMemory } from './testing.js';

const checksums = { sectors: crc32cSectors, bytes: (bytes: Uint8Array) => crc32c(bytes) };
const SECTORS = 40;
const DEVICE_BYTES = deviceBytesFor(SECTORS);
const { dataStart } = geometryOfDevice(DEVICE_BYTES);
const format = { uuid: '11111111-2222-4333-8444-555555555555', clusterId: 'c', failureGroup: 1, name: 'n' };
const FILE_SYSTEMS = ['a', 'b', 'c'].map((digit) => `${digit.repeat(8)}-2222-4333-8444-555555555555`);

/** The one that is left out does nothing, and says that it has. */
class Skipping implements BlockDevice {
  flushes = 0;
  constructor(
    private readonly inner: BlockDevice,
    private readonly leftOut: number,
  ) {}
  get lengthBytes(): number {
    return this.inner.lengthBytes;
  }
  get logicalBlockBytes(): number {
    return this.inner.logicalBlockBytes;
  }
  read: BlockDevice['read'] = (...args) => this.inner.read(...args);
  write: BlockDevice['write'] = (...args) => this.inner.write(...args);
  discard: BlockDevice['discard'] = (...args) => this.inner.discard(...args);
  close: BlockDevice['close'] = () => this.inner.close();
  async flush(): Promise<void> {
    if (this.flushes++ !== this.leftOut) await this.inner.flush();
  }
}

class Rig {
  readonly memory = testMemory(2 << 20);
  readonly #staging = mustAllocate(this.memory.arena, 16);
  readonly #sector = mustAllocate(this.memory.arena, 1);

  parts(device: BlockDevice): NsdStoreParts {
    return { device, pool: this.memory.pool, checksums, staging: this.#staging };
  }
  ram(image: DeviceImage = new Map()): RamDevice {
    return RamDevice.of(image, DEVICE_BYTES, this.memory.pool);
  }
  /** In one sector. */
  async write(store: NsdStore, sector: number, value: number, how: object = {}): Promise<void> {
    const { pool } = this.memory;
    pool.bytes.fill(value, this.#sector.offsetBytes, this.#sector.offsetBytes + SECTOR_BYTES);
    const crcs = new Uint32Array(1);
    crc32cSectors(pool.bytes, this.#sector.offsetBytes, 1, crcs, 0);
    await store.write(sector, this.#sector, { crcs, ...how });
  }
  /** Its value, or why it can't be read. */
  async read(store: NsdStore, sector: number): Promise<number | string> {
    try {
      await store.read(sector, this.#sector);
    } catch (error) {
      return FsError.from(error, 'read').reason;
    }
    return this.memory.pool.bytes[this.#sector.offsetBytes]!;
  }
}

/** As a power cut may leave it: each write that no flush has covered there, or not; and the place of each full of what nobody wrote. */
function* imagesAt(record: DeviceRecord, events: number, shreds: boolean): Generator<DeviceImage> {
  const pending = record.pending(events);
  for (const fate of extremeFates(Math.min(8, pending.length))) yield record.imageAt(events, fate);
  if (!shreds) return;
  const shredded = record.imageAt(events, () => 'absent');
  for (const op of pending) shred(shredded, op);
  yield shredded;
}
function shred(image: DeviceImage, op: DeviceOp): void {
  if (op.kind !== 'write') return;
  for (let at = 0; at < op.bytes.length; at += IMAGE_CHUNK_BYTES)
    image.set(op.offsetBytes + at, new Uint8Array(IMAGE_CHUNK_BYTES).fill(0xee));
}

interface Scenario {
  /** Done and durable before. */
  readonly before?: (rig: Rig, store: NsdStore) => Promise<void>;
  /** Says what has been promised so far. */
  readonly run: (rig: Rig, device: BlockDevice, promise: (what: number) => void) => Promise<void>;
  /** What is wrong with an NSD of which that was promised; `store`: null, it can't be opened. */
  readonly judge: (rig: Rig, store: NsdStore | null, promised: number, ram: RamDevice) => Promise<string | null>;
  /** In the order in which they come. */
  readonly flushes: readonly string[];
  /** What these are for another scenario shows. */
  readonly shownElsewhere?: readonly string[];
  /** Whatever was being written may be gone, and what was there before: what has two places is meant to survive that. */
  readonly shreds?: boolean;
}

const opened = async (rig: Rig, device: BlockDevice): Promise<NsdStore> => NsdStore.open(rig.parts(device));
const HEADERS = ["the header's copy", 'the header'];

const SCENARIOS: Readonly<Record<string, Scenario>> = {
  'a device that had an NSD becomes another one': {
    before: async (rig, store) => {
      await rig.write(store, 3, 7);
      await store.flush();
    },
    run: async (rig, device, promise) => {
      await NsdStore.format(rig.parts(device), { ...format, uuid: FILE_SYSTEMS[0]! });
      promise(1);
    },
    judge: async (rig, store, promised) => {
      if (store === null) return promised === 0 ? null : 'it is no NSD';
      const expected = store.uuid === format.uuid ? 7 : 0;
      if (promised === 1 && expected === 7) return 'it is still the old one';
      const found = await rig.read(store, 3);
      return found === expected ? null : `sector 3 is ${found} for ${expected}`;
    },
    flushes: ['the old headers are gone', 'checksums and intents', ...HEADERS],
    shownElsewhere: HEADERS,
  },

  'a header is changed, time and again': {
    run: async (rig, device, promise) => {
      const store = await opened(rig, device);
      promise(1);
      for (const [index, fsUuid] of FILE_SYSTEMS.entries()) {
        await store.assignTo(fsUuid);
        promise(index + 2);
      }
    },
    judge: async (_rig, store, promised) => {
      if (store === null) return 'it is no NSD any more';
      const found = store.header.fsUuid === null ? 0 : FILE_SYSTEMS.indexOf(store.header.fsUuid) + 1;
      return found >= promised - 1 ? null : `it belongs to number ${found} after ${promised - 1} was told`;
    },
    flushes: ['opening', ...HEADERS, ...HEADERS, ...HEADERS, "the last header's copy", 'the last header'],
    // Whoever changes it again would notice.
    shownElsewhere: ['opening', 'the last header'],
    shreds: true,
  },

  'a life goes on from what the one before had not flushed': {
    before: async (rig, store) => {
      await rig.write(store, 1, 7);
      await store.flush();
    },
    run: async (rig, device) => {
      const killed = await opened(rig, device);
      await rig.write(killed, 1, 9);
      await opened(rig, device);
    },
    judge: async (rig, store, _, ram) => {
      if (store === null) return 'it is no NSD any more';
      const found = await rig.read(store, 1);
      if (found === 7 || found === 9) return null;
      const there = new Set(ram.bytes.subarray((dataStart + 1) * SECTOR_BYTES, (dataStart + 2) * SECTOR_BYTES));
      return there.size === 1 ? `sector 1: ${found}, though it is whole` : null;
    },
    flushes: ['opening', ...HEADERS, 'an intent', 'before intents are forgotten', ...HEADERS],
    shownElsewhere: ['opening', ...HEADERS],
  },

  'a life ends in good order: nobody is told of a loss': {
    run: async (rig, device, promise) => {
      const store = await opened(rig, device);
      promise(store.life.life);
      await rig.write(store, 2, 5);
      await store.close();
      promise(-store.life.life);
    },
    judge: async (rig, store, promised) => {
      if (store === null) return 'it is no NSD any more';
      const isTold = store.life.wholeSince > Math.abs(promised);
      if (promised <= 0 && isTold && promised !== 0) return 'a loss is told, and there was none';
      if (isTold || promised === 0 || store.life.life === 1) return null;
      const found = await rig.read(store, 2);
      return found === 5 || store.life.life <= Math.abs(promised) ? null : `sector 2 is ${found}, and no loss is told`;
    },
    flushes: ['opening', ...HEADERS, 'at the end', ...HEADERS],
    shownElsewhere: ['opening', ...HEADERS],
  },

  'a flush is asked for': {
    run: async (rig, device, promise) => {
      const store = await opened(rig, device);
      await rig.write(store, 2, 5);
      await store.flush();
      promise(1);
    },
    judge: async (rig, store, promised) =>
      promised === 0 || (store !== null && (await rig.read(store, 2)) === 5) ? null : 'it is lost',
    flushes: ['opening', ...HEADERS, 'as asked'],
    shownElsewhere: ['opening', ...HEADERS],
  },

  'a write is to be durable when it ends': {
    run: async (rig, device, promise) => {
      const store = await opened(rig, device);
      await rig.write(store, 2, 5, { durable: true });
      promise(1);
      // The first write of a sector that checks itself, and a later one, before and after it is known as such.
      await rig.write(store, 4, 6, { durable: true, selfChecking: true });
      promise(2);
      await rig.write(store, 5, 6, { selfChecking: true });
      await rig.write(store, 5, 8, { durable: true, selfChecking: true });
      promise(3);
    },
    judge: async (rig, store, promised) => {
      for (const [index, [sector, value]] of [[2, 5] as const, [4, 6] as const, [5, 8] as const].entries())
        if (index < promised && (store === null || (await rig.read(store, sector)) !== value))
          return `sector ${sector} is lost`;
      return null;
    },
    flushes: ['opening', ...HEADERS, 'of what is checked', 'of what checks itself', 'of what is not yet known to'],
    shownElsewhere: ['opening', ...HEADERS],
  },
};

/** What goes wrong, wherever the power is cut; null: nothing. */
async function wrongWith(
  { before, run, judge, shreds = false }: Scenario,
  leftOut: number,
): Promise<{ wrong: string | null; flushes: number }> {
  const rig = new Rig();
  const ram = rig.ram();
  await NsdStore.format(rig.parts(ram), format);
  if (before !== undefined) {
    const store = await opened(rig, ram);
    await before(rig, store);
    await store.close();
  }
  const record = new DeviceRecord(ram.image());
  const device = new Skipping(new RecordingDevice(rig.ram(ram.image()), rig.memory.pool, record), leftOut);
  const promises: { readonly at: number; readonly what: number }[] = [{ at: 0, what: 0 }];
  await run(rig, device, (what) => promises.push({ at: record.events, what }));
  for (let events = 0; events <= record.events; events++) {
    const promised = promises.findLast(({ at }) => at <= events)!.what;
    for (const image of imagesAt(record, events, shreds)) {
      const left = rig.ram(image);
      const store = await opened(rig, left).catch(() => null);
      const wrong = await judge(rig, store, promised, left);
      if (wrong !== null)
        return { wrong: `after ${events} of ${record.events} events: ${wrong}`, flushes: device.flushes };
    }
  }
  return { wrong: null, flushes: device.flushes };
}

describe.each(Object.keys(SCENARIOS))('%s', (name) => {
  const scenario = SCENARIOS[name]!;
  const { flushes, shownElsewhere = [] } = scenario;
  test('with all flushes nothing that was promised is lost', async () => {
    expect(await wrongWith(scenario, -1)).toEqual({ wrong: null, flushes: flushes.length });
  });
  const needed = [...flushes.entries()].filter(([, what]) => !shownElsewhere.includes(what));
  test.each(needed)('flush %i is left out, %s: something is', async (index) => {
    expect((await wrongWith(scenario, index)).wrong).not.toBeNull();
  });
});
