/** A namespace that another host has reserved, as an NSD server meets it (hw-test/nvme-tcp-target). */
import { BlockEngine, NvmeDevice, Reservations } from 'napi-nvme';
import { afterEach, expect, it } from 'vitest';
import { targetWithHosts } from '../../hw-test/nvme-tcp-target/hosts.js';
import { createPagePool } from '../native/core.js';
import { PoolEngine } from './block-engine-device.js';

const SEGMENT = { offsetBytes: 0, lengthBytes: 4096 };
const KEY = 1n;
const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

it.each(['auto', 'block'] as const)(
  'a namespace that another host has reserved fails at once, and says so (access: %s)',
  async (access) => {
    const { target, hosts } = await targetWithHosts((step) => undo.push(step));
    const pool = createPagePool(1 << 20);
    undo.push(() => pool.close());
    const devices = new PoolEngine(new BlockEngine({ queueDepth: 4 }), pool);
    undo.push(() => devices.close());
    const device = await devices.open(hosts[1].namespace.blockPath, { access });
    pool.bytes.fill(0x11, 0, SEGMENT.lengthBytes);
    await device.write(0, SEGMENT);
    const other = await NvmeDevice.open(hosts[0].namespace.genericPath!);
    undo.push(() => other.close());
    const reservations = new Reservations(other);
    await reservations.register(KEY);
    await reservations.acquire(KEY, 'writeExclusive');
    pool.bytes.fill(0x22, 0, SEGMENT.lengthBytes);
    await expect(device.write(0, SEGMENT)).rejects.toMatchObject({
      code: 'EIO',
      reason: 'deviceError',
      retry: 'no',
      object: hosts[1].namespace.blockPath,
      detail: expect.stringMatching(/reservation conflict|another host has reserved it/) as string,
    });
    expect((await target.contents(0, SEGMENT.lengthBytes)).every((byte) => byte === 0x11)).toBe(true);
    await device.read(0, SEGMENT);
    await reservations.release(KEY, 'writeExclusive');
    await device.write(0, SEGMENT);
  },
);
