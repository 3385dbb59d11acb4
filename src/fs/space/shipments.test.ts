import { constants } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { nsdIndex } from '../../common/ids.js';
import { below, SeededRandom } from '../../common/random.js';
import { BLOCK_BYTES } from '../../common/units.js';
import { type FileSystem, ROOT } from '../file-system-api.js';
import { freedThrough, setFreedThrough } from '../map-formats.js';
import { checkVolume, type TestNode, TestVolume, type TestVolumeOptions, turns } from '../testing.js';
import type { Shipment, ShipmentAnswer } from './shipment.js';

const { O_CREAT, O_RDWR, O_RDONLY } = constants;

async function put(fs: FileSystem, path: string, content: Uint8Array): Promise<void> {
  const file = await fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT);
  try {
    await file.write(0, content);
    await file.sync(false);
  } finally {
    await file.close();
  }
}
async function get(fs: FileSystem, path: string): Promise<Buffer> {
  const file = await fs.open(path, O_RDONLY, 0, ROOT);
  const content = Buffer.alloc((await file.stat()).sizeBytes);
  await file.read(0, content);
  await file.close();
  return content;
}
const filled = (content: Uint8Array, byte: number): boolean => content.every((one) => one === byte);
const sum = (nodes: readonly TestNode[], counter: string): number =>
  nodes.reduce((total, node) => total + node.counters.get(counter), 0);

/** Nothing was freed twice, nothing is lost, everything fits together. */
async function expectSound(volume: TestVolume, everybody: readonly TestNode[]): Promise<void> {
  expect(sum(everybody, 'fs.freesDisagreed')).toBe(0);
  expect(await checkVolume(volume)).toMatchObject({ problems: [], lostSubBlocks: 0, lostInodes: 0 });
}

/** Node 1 has written files, node 2 is there: what node 2 removes lies in node 1's region. */
async function twoNodes(options: TestVolumeOptions = {}) {
  const volume = await TestVolume.create({ blocks: [64, 64], poolPages: 4096, mkfs: { regionBlocks: 64 }, ...options });
  const [holder, source] = [await volume.mount(1), await volume.mount(2)];
  for (let i = 0; i < 6; i++) await put(holder.fs, `/f${i}`, Buffer.alloc(BLOCK_BYTES, i + 1));
  return { volume, holder, source };
}
/** What it has freed goes back. */
const freeNow = async ({ fs }: TestNode): Promise<void> => void (await fs.settle(0));

describe('S6: frees shipped to the holder of their region', () => {
  test('a node that removes what another one goes on making takes no region away from it', async () => {
    const volume = await TestVolume.create({ blocks: [40, 40], poolPages: 4096, mkfs: { regionBlocks: 8 } });
    const [maker, remover] = [await volume.mount(1), await volume.mount(2)];
    for (let i = 0; i < 4; i++) await put(maker.fs, `/f${i}`, Buffer.alloc(BLOCK_BYTES, 1));
    const before = maker.counters.get('fs.regionsLost');
    // Several times of what there is.
    for (let i = 4; i < 160; i++) {
      await put(maker.fs, `/f${i}`, Buffer.alloc(BLOCK_BYTES, i & 0xff));
      await remover.fs.unlink(`/f${i - 4}`, ROOT);
      await freeNow(remover);
    }
    expect(maker.counters.get('fs.regionsLost')).toBe(before);
    expect(remover.counters.get('fs.extentsShipped')).toBeGreaterThan(100);
    expect(maker.counters.get('fs.shipmentsApplied')).toBe(remover.counters.get('fs.shipments'));
    for (let i = 156; i < 160; i++) expect(filled(await get(remover.fs, `/f${i}`), i & 0xff)).toBe(true);
    for (const { fs } of [maker, remover]) await fs.unmount();
    await expectSound(volume, [maker, remover]);
  });

  test('more than one shipment of one sector go one after the other', async () => {
    const volume = await TestVolume.create({ blocks: [64], poolPages: 4096, mkfs: { regionBlocks: 64 } });
    const [holder, source] = [await volume.mount(1), await volume.mount(2)];
    // Every other one stays, so that what is freed is in pieces.
    for (let i = 0; i < 700; i++) await put(holder.fs, `/f${i}`, Buffer.alloc(5000, i & 0xff));
    const sequences: number[] = [];
    volume.space.onShip = (_, shipment, deliver) => {
      sequences.push(shipment.sequence);
      return deliver();
    };
    for (let i = 0; i < 700; i += 2) await source.fs.unlink(`/f${i}`, ROOT);
    await freeNow(source);
    expect(sequences.length).toBeGreaterThan(1);
    expect([...new Set(sequences)].sort((a, b) => a - b)).toEqual(sequences);
    for (const { fs } of [holder, source]) await fs.unmount();
    await expectSound(volume, [holder, source]);
  });

  test('where nobody holds the region, or nobody answers for the manager, the token is taken', async () => {
    const { volume, holder, source } = await twoNodes();
    await holder.fs.unmount();
    await source.fs.unlink('/f0', ROOT);
    await freeNow(source);
    const again = await volume.mount(1);
    volume.space.away = true;
    await again.fs.unlink('/f1', ROOT);
    await freeNow(again);
    expect(sum([source, again], 'fs.shipments')).toBe(0);
    await put(again.fs, '/new', Buffer.alloc(BLOCK_BYTES, 9));
    for (const { fs } of [source, again]) await fs.unmount();
    await expectSound(volume, [holder, source, again]);
  });

  test('a full file system has room as soon as another node has removed something from it', async () => {
    const volume = await TestVolume.create({ blocks: [24, 24], poolPages: 4096, mkfs: { regionBlocks: 8 } });
    const nodes = [await volume.mount(1), await volume.mount(2), await volume.mount(3)];
    const [one, two, three] = nodes as [TestNode, TestNode, TestNode];
    const written: string[] = [];
    for (let full = 0; full < 2; )
      for (const { fs } of [one, two]) {
        const path = `/f${written.length}`;
        try {
          await put(fs, path, Buffer.alloc(BLOCK_BYTES, written.length + 1));
          written.push(path);
        } catch (error) {
          expect(error).toMatchObject({ code: 'ENOSPC' });
          full++;
        }
      }
    for (let round = 0; round < 4; round++) {
      await expect(put(one.fs, '/more', Buffer.alloc(BLOCK_BYTES, 1))).rejects.toMatchObject({ code: 'ENOSPC' });
      await three.fs.unlink(written[round]!, ROOT);
      await put([one, two][round % 2]!.fs, `/again${round}`, Buffer.alloc(BLOCK_BYTES, 70 + round));
    }
    for (let round = 0; round < 4; round++)
      expect(filled(await get(three.fs, `/again${round}`), 70 + round)).toBe(true);
    for (const { fs } of nodes) await fs.unmount();
    await expectSound(volume, nodes);
  });

  test('statfs counts what arrived elsewhere', async () => {
    const { volume, holder, source } = await twoNodes();
    const third = await volume.mount(3);
    const before = await third.fs.statfs();
    await source.fs.unlink('/f0', ROOT);
    const after = await third.fs.statfs();
    expect(after.freeBytes - before.freeBytes).toBeGreaterThanOrEqual(BLOCK_BYTES);
    for (const { fs } of [holder, source, third]) await fs.unmount();
    await expectSound(volume, [holder, source, third]);
  });

  test('a holder that has given the region up says so, and the next one is asked for', async () => {
    const { volume, holder, source } = await twoNodes();
    const third = await volume.mount(3);
    const asked: number[] = [];
    volume.space.onShip = async (to, _, deliver) => {
      asked.push(to);
      if (asked.length === 1) {
        // On its way the region goes to somebody else.
        await holder.tokens.revokeAll();
        await third.fs.unlink('/f5', ROOT);
        volume.space.away = true;
        await freeNow(third);
        volume.space.away = false;
      }
      return deliver();
    };
    await source.fs.unlink('/f0', ROOT);
    await freeNow(source);
    expect(asked).toContain(3);
    expect(source.counters.get('fs.shipmentsRefused')).toBeGreaterThan(0);
    expect(third.counters.get('fs.shipmentsApplied')).toBeGreaterThan(0);
    for (const { fs } of [holder, source, third]) await fs.unmount();
    await expectSound(volume, [holder, source, third]);
  });
});

describe('a shipment is applied once', () => {
  test('when its answer was lost and the source takes the region to see for itself', async () => {
    const { volume, holder, source } = await twoNodes();
    volume.space.onShip = async (_, __, deliver) => {
      await deliver();
      return 'silent';
    };
    await source.fs.unlink('/f0', ROOT);
    await freeNow(source);
    expect(source.counters.get('fs.shipmentsTaken')).toBeGreaterThan(0);
    for (const { fs } of [holder, source]) await fs.unmount();
    await expectSound(volume, [holder, source]);
  });

  test('when it comes again, after the space is in use again', async () => {
    const { volume, holder, source } = await twoNodes({ blocks: [14, 14] });
    const late: (() => Promise<ShipmentAnswer>)[] = [];
    volume.space.onShip = async (_, __, deliver) => {
      late.push(deliver);
      const [first] = await Promise.all([deliver(), deliver()]);
      return first!;
    };
    await source.fs.unlink('/f0', ROOT);
    await freeNow(source);
    for (let i = 10; ; i++)
      try {
        await put(holder.fs, `/f${i}`, Buffer.alloc(BLOCK_BYTES, i));
      } catch (error) {
        expect(error).toMatchObject({ code: 'ENOSPC' });
        break;
      }
    expect(late.length).toBeGreaterThan(0);
    for (const deliver of late) expect(await deliver()).toBe('applied');
    expect(holder.counters.get('fs.shipmentsRepeated')).toBeGreaterThanOrEqual(2 * late.length);
    await expect(put(holder.fs, '/more', Buffer.alloc(BLOCK_BYTES, 1))).rejects.toMatchObject({ code: 'ENOSPC' });
    expect(filled(await get(source.fs, '/f10'), 10)).toBe(true);
    for (const { fs } of [holder, source]) await fs.unmount();
    await expectSound(volume, [holder, source]);
  });

  test('when it never arrived, and comes after the source has done it itself', async () => {
    const { volume, holder, source } = await twoNodes();
    const late: (() => Promise<ShipmentAnswer>)[] = [];
    volume.space.onShip = async (_, __, deliver) => {
      late.push(deliver);
      return 'silent';
    };
    await source.fs.unlink('/f0', ROOT);
    await freeNow(source);
    // The region is the holder's again, and what was freed is in use.
    for (let i = 0; i < 40; i++) await put(holder.fs, `/g${i}`, Buffer.alloc(BLOCK_BYTES, 100 + i));
    for (const deliver of late) expect(await deliver()).toBe('applied');
    for (let i = 0; i < 40; i++) expect(filled(await get(source.fs, `/g${i}`), 100 + i)).toBe(true);
    for (const { fs } of [holder, source]) await fs.unmount();
    await expectSound(volume, [holder, source]);
  });

  /** At which step of a shipment somebody dies. */
  const moments = ['before it is sent', 'when it has been applied', 'after the answer'] as const;
  for (const moment of moments)
    for (const dying of ['source', 'holder'] as const)
      test(`when its ${dying} dies ${moment}`, async () => {
        const { volume, holder, source } = await twoNodes();
        const third = await volume.mount(3);
        const victim = dying === 'source' ? source : holder;
        const late: (() => Promise<ShipmentAnswer>)[] = [];
        let struck!: () => void;
        const met = new Promise<void>((resolve) => {
          struck = resolve;
        });
        let over = false;
        volume.space.onShip = async (_, __, deliver) => {
          if (over) return deliver();
          late.push(deliver);
          if (moment !== 'before it is sent') await deliver();
          if (moment === 'after the answer') {
            over = true;
            void turns().then(struck);
            return 'applied';
          }
          // Nothing of the victim reaches anybody from here on.
          victim.nsds.cut();
          over = true;
          if (dying === 'holder') await volume.bury(victim);
          struck();
          return dying === 'source' ? new Promise<ShipmentAnswer>(() => undefined) : 'silent';
        };
        await source.fs.unlink('/f0', ROOT);
        const freed = freeNow(source).catch(() => undefined);
        await met;
        if (dying === 'source' || moment === 'after the answer') await volume.bury(victim);
        if (dying === 'holder') await freed;
        for (let i = 0; i < 20; i++) await put(third.fs, `/g${i}`, Buffer.alloc(BLOCK_BYTES, 100 + i));
        // What a dead node had sent may still come.
        for (const deliver of late) await deliver();
        for (let i = 0; i < 20; i++) expect(filled(await get(third.fs, `/g${i}`), 100 + i)).toBe(true);
        const rest = [holder, source, third].filter((node) => node !== victim);
        for (const { fs } of rest) await fs.unmount();
        await expectSound(volume, rest);
      });

  test.each([true, false])('when the power fails for all of them, it having been applied: %s', async (applied) => {
    const { volume, holder, source } = await twoNodes();
    let struck!: () => void;
    const met = new Promise<void>((resolve) => {
      struck = resolve;
    });
    volume.space.onShip = async (_, __, deliver) => {
      if (applied) await deliver();
      struck();
      return new Promise<ShipmentAnswer>(() => undefined);
    };
    await source.fs.unlink('/f0', ROOT);
    void freeNow(source).catch(() => undefined);
    await met;
    volume.powerOff([holder, source]);
    volume.space.onShip = null;
    const next = await volume.mount(4);
    for (let i = 1; i < 6; i++) expect(filled(await get(next.fs, `/f${i}`), i + 1)).toBe(true);
    await next.fs.unmount();
    await expectSound(volume, [next]);
  });

  test('places in a log never come again: a later life of a slot is not taken for an earlier one', async () => {
    const { volume, holder, source } = await twoNodes();
    const sequences: number[] = [];
    volume.space.onShip = (_, { sequence }, deliver) => {
      sequences.push(sequence);
      return deliver();
    };
    let present = source;
    for (let life = 0; life < 4; life++) {
      await present.fs.unlink(`/f${life}`, ROOT);
      await freeNow(present);
      // Once in order, once not.
      if (life % 2 === 0) await volume.bury(present);
      else await present.fs.unmount();
      present = await volume.mount(2);
    }
    expect(sequences.length).toBeGreaterThanOrEqual(4);
    expect([...sequences].sort((a, b) => a - b)).toEqual(sequences);
    for (const { fs } of [holder, present]) await fs.unmount();
    await expectSound(volume, [holder, present]);
  });
});

test('what is no shipment is refused, and changes nothing', async () => {
  const { volume, holder, source } = await twoNodes();
  const good: Shipment = {
    region: 0,
    slot: 1,
    sequence: 5,
    extents: [{ nsd: nsdIndex(0), sector: 300, count: 1 }],
  };
  const extent = good.extents[0]!;
  const bad: Partial<Shipment>[] = [
    { region: 1 },
    { slot: 256 },
    { sequence: 0 },
    { sequence: 2 ** 48 },
    { extents: [] },
    { extents: [{ ...extent, nsd: nsdIndex(2) }] },
    { extents: [{ ...extent, sector: 64 * 256 }] },
    { extents: [{ ...extent, sector: 300, count: 250 }] },
    { extents: [{ ...extent, count: 0 }] },
    { extents: Array.from({ length: 257 }, () => extent) },
  ];
  for (const change of bad)
    await expect(holder.fs.applyShipment({ ...good, ...change })).rejects.toMatchObject({ code: 'EINVAL' });
  // It holds none of it.
  expect(await source.fs.applyShipment(good)).toBe('notMine');
  for (const { fs } of [holder, source]) await fs.unmount();
  await expectSound(volume, [holder, source]);
});

test('the marks of a sector are six bytes for each slot, and nobody else is touched', () => {
  const sector = new Uint8Array(4096);
  setFreedThrough(sector, 0, 1);
  setFreedThrough(sector, 255, 2 ** 48 - 1);
  setFreedThrough(sector, 7, 2 ** 40 + 3);
  expect([0, 1, 7, 254, 255].map((slot) => freedThrough(sector, slot))).toEqual([1, 0, 2 ** 40 + 3, 0, 2 ** 48 - 1]);
  expect(sector.subarray(0, 2560).every((byte) => byte === 0)).toBe(true);
});

/** What may become of a message. */
async function fate(
  random: SeededRandom,
  deliver: () => Promise<ShipmentAnswer>,
  late: (() => Promise<ShipmentAnswer>)[],
) {
  switch (below(random, 8)) {
    case 0:
      late.push(deliver);
      return 'silent' as const;
    case 1:
      await deliver();
      return 'silent' as const;
    case 2:
      late.push(deliver);
      return deliver();
    case 3:
      return (await Promise.all([deliver(), deliver()]))[0]!;
    case 4:
      for (let i = below(random, 30); i > 0; i--) await turns();
      return deliver();
    default:
      return deliver();
  }
}

const seeds = process.env.HOLDFAST_TEST_FULL === '1' ? 60 : 4;
test.each(Array.from({ length: seeds }, (_, i) => i + 1))(
  'whatever is lost, repeated or late, and whoever dies: each sub-block is freed once (seed %d)',
  async (seed) => {
    const random = new SeededRandom(seed);
    const volume = await TestVolume.create({
      blocks: [40, 36],
      poolPages: 4096,
      mkfs: { regionBlocks: 8, logBytes: 512 * 1024 },
      seed,
    });
    const everybody: TestNode[] = [];
    const mount = async (id: number): Promise<TestNode> => {
      const node = await volume.mount(id, { freeQueueMax: 4 });
      everybody.push(node);
      return node;
    };
    const alive = new Map<number, TestNode>();
    for (const id of [1, 2, 3]) alive.set(id, await mount(id));
    const late: (() => Promise<ShipmentAnswer>)[] = [];
    volume.space.onShip = (_, __, deliver) => fate(random, deliver, late);
    const content = new Map<string, { byte: number; length: number }>();
    const anyNode = (): TestNode => [...alive.values()][below(random, alive.size)]!;
    const anyName = (): string | undefined => [...content.keys()][below(random, content.size)];
    for (let i = 0; i < 160; i++) {
      const { fs } = anyNode();
      const name = anyName();
      const what = below(random, 10);
      if (name !== undefined && (what < 4 || content.size > 24)) {
        await fs.unlink(name, ROOT);
        content.delete(name);
      } else if (what < 8) {
        const length = [3_000, 30_000, 300_000, BLOCK_BYTES][below(random, 4)]!;
        try {
          await put(fs, `/f${i}`, Buffer.alloc(length, i));
          content.set(`/f${i}`, { byte: i & 0xff, length });
        } catch (error) {
          expect(error).toMatchObject({ code: 'ENOSPC' });
          await fs.unlink(`/f${i}`, ROOT);
        }
      } else if (what === 8) await volume.clock.advance(1000);
      if (below(random, 12) === 0) volume.space.away = !volume.space.away;
      if (below(random, 20) === 0) volume.space.managerDies();
      if (late.length > 0 && below(random, 3) === 0) await late.splice(below(random, late.length), 1)[0]!();
      if (below(random, 40) === 0) {
        const [id, node] = [...alive][below(random, alive.size)]!;
        // Everything that is promised is synced; the rest is a directory entry away.
        await fs.sync();
        for (const other of alive.values()) await other.fs.sync();
        await volume.bury(node);
        alive.set(id, await mount(id));
      }
    }
    volume.space.away = false;
    const { fs } = anyNode();
    for (const [name, { byte, length }] of content) {
      const bytes = await get(fs, name);
      expect([name, bytes.length, filled(bytes, byte)]).toEqual([name, length, true]);
    }
    for (const node of alive.values()) await node.fs.unmount();
    for (const deliver of late) await deliver();
    expect(sum(everybody, 'fs.shipments')).toBeGreaterThan(0);
    await expectSound(volume, everybody);
  },
);
