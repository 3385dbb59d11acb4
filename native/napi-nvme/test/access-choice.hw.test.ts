/** How the engine works with a path, chosen by itself and said: NVMe commands where they go, else the block device. */
import { execFileSync } from 'node:child_process';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LoopDevice, run } from '../../../hw-test/nvme-targets.js';
import { type BlockDeviceHandle, BlockEngine } from '../lib/index.js';

const [namespace] = (process.env['HOLDFAST_HW_NVME'] ?? '').split(',');
const generic = namespace!.replace(/nvme(\d+n\d+)$/, 'ng$1');

let engine: BlockEngine;
beforeEach(() => {
  engine = new BlockEngine({ queueDepth: 4 });
});
afterEach(() => engine.close());

/** That what was chosen works, too. */
async function worksWith(device: BlockDeviceHandle): Promise<void> {
  const buffer = engine.allocate(8192);
  const bytes = new Uint8Array(buffer.buffer);
  bytes.fill(0x3c, 0, 4096);
  await device.write(4096, buffer, 0, 4096);
  await device.flush();
  await device.read(4096, buffer, 4096, 4096);
  expect(bytes.subarray(4096).every((byte) => byte === 0x3c)).toBe(true);
}

describe('a path is worked with', () => {
  it('by commands where it is a whole namespace, by the block layer where it is a part of one', async () => {
    const whole = await engine.open(namespace!);
    expect(whole).toMatchObject({ access: 'passthrough', accessReason: 'an NVMe namespace', devicePath: generic });
    run('addpart', namespace!, '1', '2048', '2048');
    try {
      const part = `${namespace}p1`;
      const device = await engine.open(part);
      expect(device).toMatchObject({
        access: 'block',
        accessReason: 'a partition: commands go to whole namespaces',
        devicePath: part,
        sizeBytes: 2048 * 512,
        namespace: null,
      });
      await worksWith(device);
      await device.close();
      await expect(engine.open(part, { access: 'passthrough' })).rejects.toMatchObject({ code: 'ENOTBLK', path: part });
    } finally {
      run('delpart', namespace!, '1');
    }
  });

  it('by the block layer where it is another kind of block device', async () => {
    const loop = new LoopDevice(1 << 20);
    try {
      const device = await engine.open(loop.path);
      expect(device).toMatchObject({ access: 'block', accessReason: 'a block device that is no NVMe namespace' });
      await worksWith(device);
      await device.close();
    } finally {
      loop.close();
    }
  });

  it('by the block layer where commands are not permitted, by nothing where only they would do', () => {
    const program = `
      import { BlockEngine } from 'napi-nvme';
      const engine = new BlockEngine();
      const { access, accessReason } = await engine.open('${namespace}', { readOnly: true });
      const refused = await engine.open('${generic}', { readOnly: true }).catch(({ code, message }) => ({ code, message }));
      console.log(JSON.stringify({ access, accessReason, refused }));
      await engine.close();`;
    const node = [process.execPath, '--input-type=module', '--eval', program];
    const seen = execFileSync('setpriv', ['--bounding-set=-sys_admin', '--inh-caps=-sys_admin', ...node], {
      cwd: process.env['HOLDFAST_HW_PROJECT'] ?? process.cwd(),
      encoding: 'utf8',
    });
    expect(JSON.parse(seen)).toEqual({
      access: 'block',
      accessReason: 'NVMe commands are not permitted to this process',
      refused: {
        code: 'EACCES',
        message: `EACCES: NVMe commands are not permitted to this process, open '${generic}'`,
      },
    });
  });

  // Which the guests have for this.
  it.skipIf(process.env['HOLDFAST_HW'] !== 'guest')(
    'by the block layer where blocks have metadata that is no protection information',
    async () => {
      const device = await engine.open('/dev/nvme0n4');
      expect(device).toMatchObject({
        access: 'block',
        accessReason: "its format has 16 bytes of metadata, which only the kernel's block layer fills",
      });
      await worksWith(device);
      await expect(engine.open('/dev/ng0n4')).rejects.toMatchObject({ code: 'EOPNOTSUPP', path: '/dev/ng0n4' });
    },
  );
});
