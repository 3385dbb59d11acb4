import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import { crc32c, crc32cSectors } from '../native/core.js';
import {
  type DeviceImage,
  type DeviceOp,
  DeviceRecord,
  extremeFates,
  type Fate,
  randomFates,
} from './device-record.js';
import type { BlockDevice } from './nsd-api.js';
import { geometryOfDevice } from './nsd-layout.js';
import { NsdStore, type NsdStoreParts, newSectorStates } from './nsd-store.js';
import { RecordingDevice } from './recording-device.js';
import { deviceBytesFor, mustAllocate, RamDevice, testMemory, turn } from './testing.js';

/**
 * S1 at power cuts: whatever is done to an NSD, whenever the power goes, and whatever of the unflushed writes is there, torn or not; also
 * when it goes again while the NSD is being opened.
 */
const checksums = { sectors: crc32cSectors, bytes: (bytes: Uint8Array) => crc32c(bytes) };
const SECTORS = 40;
const DEVICE_BYTES = deviceBytesFor(SECTORS);
const GEOMETRY = geometryOfDevice(DEVICE_BYTES);

/** One write or discard of one sector, in the order in which they take effect. */
interface Change {
  readonly value: number;
  version: number;
  readonly logged: boolean;
  /** Said to be; of discards that needs not be said. */
  readonly exposed: boolean;
  readonly begunAt: number;
  endedAt: number;
}
interface Flush {
  readonly begunAt: number;
  readonly endedAt: number;
}

type FlushKind = 'asked' | 'intents' | 'clearing' | 'opening';

/** Leaves out one kind of flush: the mistake that the tests must notice. */
class FlushSkipper implements BlockDevice {
  asked = 0;
  opening = false;
  #intentsWritten = false;
  readonly seen = new Set<FlushKind>();

  constructor(
    private readonly inner: BlockDevice,
    readonly skip: FlushKind | null,
  ) {}
  get lengthBytes(): number {
    return this.inner.lengthBytes;
  }
  get logicalBlockBytes(): number {
    return this.inner.logicalBlockBytes;
  }
  read: BlockDevice['read'] = (...args) => this.inner.read(...args);
  write: BlockDevice['write'] = async (offsetBytes, memory, durable) => {
    const sector = offsetBytes / SECTOR_BYTES;
    await this.inner.write(offsetBytes, memory, durable);
    if (sector >= GEOMETRY.intentStart && sector < GEOMETRY.dataStart) this.#intentsWritten = true;
  };
  discard: BlockDevice['discard'] = (...args) => this.inner.discard(...args);
  async flush(): Promise<void> {
    const kind = this.opening ? 'opening' : this.#intentsWritten ? 'intents' : this.asked > 0 ? 'asked' : 'clearing';
    this.#intentsWritten = false;
    this.seen.add(kind);
    if (kind === this.skip && this.asked === 0) await Promise.resolve();
    else await this.inner.flush();
  }
  close(): Promise<void> {
    return this.inner.close();
  }
}

class Rig {
  readonly #memory = testMemory(2 << 20);
  readonly counters = new Counters();
  readonly changes: Change[][] = Array.from({ length: SECTORS }, () => []);
  readonly flushes: Flush[] = [];
  record = new DeviceRecord();
  skipper!: FlushSkipper;
  store!: NsdStore;
  #value = 0;

  #parts(device: BlockDevice): NsdStoreParts {
    const { pool, arena } = this.#memory;
    this.#staging ??= mustAllocate(arena, 8);
    return { device, pool, checksums, staging: this.#staging, counters: this.counters };
  }
  #staging: ReturnType<typeof mustAllocate> | null = null;

  static async make(skip: FlushKind | null = null): Promise<Rig> {
    const rig = new Rig();
    const ram = new RamDevice(DEVICE_BYTES, rig.#memory.pool);
    const format = { uuid: '11111111-2222-4333-8444-555555555555', clusterId: 'c', failureGroup: 1, name: 'n' };
    await NsdStore.format(rig.#parts(ram), format);
    await rig.open(ram.image(), skip);
    return rig;
  }

  async open(image: DeviceImage, skip: FlushKind | null = null): Promise<void> {
    const { pool } = this.#memory;
    this.record = new DeviceRecord(image);
    this.skipper = new FlushSkipper(
      new RecordingDevice(RamDevice.of(image, DEVICE_BYTES, pool), pool, this.record),
      skip,
    );
    this.skipper.opening = true;
    this.store = await NsdStore.open(this.#parts(this.skipper));
    this.skipper.opening = false;
  }

  async write(sector: number, count: number, { logged = false, exposed = false } = {}): Promise<void> {
    const { pool, arena } = this.#memory;
    const memory = mustAllocate(arena, count);
    const crcs = new Uint32Array(count);
    const versionsOut = new Uint32Array(count);
    const mine: Change[] = [];
    for (let i = 0; i < count; i++) {
      const value = ++this.#value;
      new Uint32Array(pool.buffer, memory.offsetBytes + i * SECTOR_BYTES, SECTOR_BYTES / 4).fill(value);
      crcs[i] = crcOf(value);
      const begunAt = this.record.events;
      const change = { value, version: -1, logged, exposed, begunAt, endedAt: Number.POSITIVE_INFINITY };
      this.changes[sector + i]!.push(change);
      mine.push(change);
    }
    await this.store.write(sector, memory, { crcs, versionsOut, logged, exposed });
    for (const [i, change] of mine.entries()) {
      change.endedAt = this.record.events;
      change.version = versionsOut[i]!;
    }
    arena.free(memory);
  }
  async discard(sector: number, count: number): Promise<void> {
    const mine = Array.from({ length: count }, (_, i) => {
      const change = {
        value: 0,
        version: -1,
        logged: false,
        exposed: true,
        begunAt: this.record.events,
        endedAt: Number.POSITIVE_INFINITY,
      };
      this.changes[sector + i]!.push(change);
      return change;
    });
    await this.store.discard(sector, count);
    for (const change of mine) change.endedAt = this.record.events;
  }
  async flush(): Promise<void> {
    const begunAt = this.record.events;
    this.skipper.asked++;
    await this.store.flush();
    this.skipper.asked--;
    this.flushes.push({ begunAt, endedAt: this.record.events });
  }

  /** What every sector may be after a power cut after so many events, the flushed state first. */
  allowed(events: number): { before: number; later: Change[] }[] {
    let durableAt = -1;
    for (const { begunAt, endedAt } of this.flushes) if (endedAt <= events) durableAt = Math.max(durableAt, begunAt);
    return this.changes.map((changes) => {
      const durable = changes.filter(({ endedAt }) => endedAt <= durableAt);
      return {
        before: durable.at(-1)?.value ?? 0,
        later: changes.slice(durable.length).filter(({ begunAt }) => begunAt <= events),
      };
    });
  }

  /** All of it is in use, and durable. */
  async fill(): Promise<void> {
    for (let at = 0; at < SECTORS; at += 8) await this.write(at, 8);
    await this.flush();
  }

  /** Opens what the power cut has left, and says what is wrong with it, if anything is. */
  async judge(events: number, fate: (op: DeviceOp, index: number) => Fate): Promise<string | null> {
    const { pool, arena } = this.#memory;
    const image = this.record.imageAt(events, fate);
    const ram = RamDevice.of(image, DEVICE_BYTES, pool);
    const store = await NsdStore.open(this.#parts(ram));
    const memory = mustAllocate(arena, 1);
    try {
      for (const [sector, { before, later }] of this.allowed(events).entries()) {
        const states = newSectorStates(1);
        const reason = await store.read(sector, memory, states).then(
          () => 'none',
          (error: unknown) => FsError.from(error, 'read').reason,
        );
        const words = new Uint32Array(pool.buffer, memory.offsetBytes, SECTOR_BYTES / 4);
        const possible = [before, ...later.map(({ value }) => value)];
        if (reason === 'none') {
          // Half of a write that a log has may leave the hole that was there before what it was written over: the log's redo makes it whole.
          const isHole = words[0] === 0 && later.some(({ logged }) => logged);
          if (!words.every((word) => word === words[0]) || (!isHole && !possible.includes(words[0]!)))
            return `sector ${sector} reads ${words[0]}, not one of ${possible}`;
          const change = later.find(({ value }) => value === words[0]);
          if (words[0] !== 0 && change !== undefined && change.version >= 0 && states.versions[0] !== change.version)
            return `sector ${sector} has version ${states.versions[0]}, not ${change.version}`;
          continue;
        }
        if (reason !== 'checksumMismatch') return `sector ${sector} fails with ${reason}`;
        if (later.length === 0) return `sector ${sector} mismatches, and nobody was writing it`;
        // Nothing protects what was zeros and not exposed, and the log what it says it does; else only bytes that are neither may mismatch.
        const wereZeros = possible.includes(0);
        if ((wereZeros && !later.every(({ exposed }) => exposed)) || later.some(({ logged }) => logged)) continue;
        if (before === 0 && later.length === 1) return `sector ${sector} mismatches, and was zeros that somebody had`;
        const at = (GEOMETRY.dataStart + sector) * SECTOR_BYTES;
        const there = new Uint32Array(ram.bytes.slice(at, at + SECTOR_BYTES).buffer);
        const whole = there.every((word) => word === there[0]);
        if (whole && possible.includes(there[0]!) && there[0] !== 0)
          return `sector ${sector} mismatches, though it is whole (${there[0]})`;
      }
      return null;
    } finally {
      arena.free(memory);
    }
  }
}

const crcs = new Map<number, number>();
function crcOf(value: number): number {
  let crc = crcs.get(value);
  if (crc === undefined) {
    crc = crc32c(new Uint8Array(new Uint32Array(SECTOR_BYTES / 4).fill(value).buffer));
    crcs.set(value, crc);
  }
  return crc;
}

const place = fc.record({ sector: fc.nat(SECTORS - 1), count: fc.integer({ min: 1, max: 5 }) });
const step = fc.oneof(
  { weight: 8, arbitrary: place.map((p) => ({ kind: 'write' as const, ...p })) },
  { weight: 2, arbitrary: place.map((p) => ({ kind: 'logged' as const, ...p })) },
  { weight: 4, arbitrary: place.map((p) => ({ kind: 'exposed' as const, ...p })) },
  { weight: 2, arbitrary: place.map((p) => ({ kind: 'discard' as const, ...p })) },
  { weight: 2, arbitrary: fc.constant({ kind: 'flush' as const, sector: 0, count: 1 }) },
  { weight: 3, arbitrary: fc.constant({ kind: 'wait' as const, sector: 0, count: 1 }) },
  { weight: 4, arbitrary: fc.constant({ kind: 'turn' as const, sector: 0, count: 1 }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

async function run(rig: Rig, steps: readonly Step[]): Promise<void> {
  const underWay: Promise<void>[] = [];
  for (const { kind, sector, count } of steps) {
    const sectors = Math.min(count, SECTORS - sector);
    if (kind === 'write' || kind === 'logged' || kind === 'exposed')
      underWay.push(rig.write(sector, sectors, { logged: kind === 'logged', exposed: kind === 'exposed' }));
    else if (kind === 'discard') underWay.push(rig.discard(sector, sectors));
    else if (kind === 'flush') underWay.push(rig.flush());
    else if (kind === 'turn') await turn();
    else await Promise.all(underWay.splice(0));
  }
  await Promise.all(underWay);
}

describe('an NSD after a power cut', () => {
  it('has every sector as it was flushed, as it was written later, or torn in itself: never other bytes, never hurt from beside (S1, I8)', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 30 }), fc.nat(), async (steps, seed) => {
        const rig = await Rig.make();
        if (seed % 2 === 0) await rig.fill();
        await run(rig, steps);
        const random = new SeededRandom(seed);
        for (let i = 0; i < 6; i++) {
          const events = Math.floor(random.next() * (rig.record.events + 1));
          expect(await rig.judge(events, randomFates(random))).toBe(null);
        }
      }),
      { numRuns: 40 },
    );
  });

  it('has them so with none, all, one or all but one of the unflushed writes, at each moment of a small history', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 2, maxLength: 6 }), fc.boolean(), async (steps, inUse) => {
        const rig = await Rig.make();
        if (inUse) await rig.fill();
        const from = rig.record.events;
        await run(rig, steps);
        for (let events = from; events <= rig.record.events; events++)
          for (const fate of extremeFates(Math.min(6, rig.record.pending(events).length)))
            expect(await rig.judge(events, fate)).toBe(null);
      }),
      { numRuns: 8 },
    );
  });

  it('is opened again after dying in the midst of being opened, with the same result (L3, I9)', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 20 }), fc.nat(), async (steps, seed) => {
        const rig = await Rig.make();
        if (seed % 2 === 0) await rig.fill();
        await run(rig, steps);
        const random = new SeededRandom(seed);
        const events = Math.floor(random.next() * (rig.record.events + 1));
        const allowed = rig.allowed(events);
        await rig.open(rig.record.imageAt(events, randomFates(random)));
        rig.allowed = () => allowed;
        for (let i = 0; i < 4; i++) {
          const again = Math.floor(random.next() * (rig.record.events + 1));
          expect(await rig.judge(again, randomFates(random))).toBe(null);
        }
      }),
      { numRuns: 25 },
    );
  });
});

/** Whether some history and some power cut in it show a mistake. */
async function isNoticed(
  skip: FlushKind,
  look: (rig: Rig, random: SeededRandom) => Promise<string | null>,
): Promise<boolean> {
  const seen = new Set<FlushKind>();
  const steps = fc.array(step, { minLength: 10, maxLength: 40 });
  const found = await fc.check(
    fc.asyncProperty(steps, fc.nat(), async (some, seed) => {
      const rig = await Rig.make(skip);
      await rig.fill();
      await run(rig, some);
      for (const kind of rig.skipper.seen) seen.add(kind);
      return (await look(rig, new SeededRandom(seed))) === null;
    }),
    { numRuns: 200, seed: 7, endOnFailure: true },
  );
  expect(seen).toContain(skip === 'opening' ? 'intents' : skip);
  return found.failed;
}
async function somewhere(rig: Rig, random: SeededRandom): Promise<string | null> {
  for (let i = 0; i < 12; i++) {
    const wrong = await rig.judge(Math.floor(random.next() * (rig.record.events + 1)), randomFates(random));
    if (wrong !== null) return wrong;
  }
  return null;
}
async function whileOpening(skip: FlushKind | null, rig: Rig, random: SeededRandom): Promise<string | null> {
  const events = Math.floor(random.next() * (rig.record.events + 1));
  const allowed = rig.allowed(events);
  await rig.open(rig.record.imageAt(events, randomFates(random)), skip);
  rig.allowed = () => allowed;
  return somewhere(rig, random);
}

describe('each flush of an NSD matters: a power cut shows that it is left out', () => {
  it('after the intents, before the data goes out', async () => {
    expect(await isNoticed('intents', somewhere)).toBe(true);
  });
  it('before intents are cleared to make room for others', async () => {
    expect(await isNoticed('clearing', somewhere)).toBe(true);
  });
  it('at the end of opening, before the intents are forgotten', async () => {
    expect(await isNoticed('opening', (rig, random) => whileOpening('opening', rig, random))).toBe(true);
  });
});
