/** `holdfast nsd export`, `attach`, `detach`, `unexport` as an operator meets them, mistakes included, within one machine. */
import { existsSync, readdirSync } from 'node:fs';
import { disconnectSubsystem, Nvmet } from 'napi-nvme';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LoopDevice } from '../../hw-test/nvme-targets.js';
import { nsdCommand } from './nsd-paths-testing.js';

const MIB = 1 << 20;
const ADDRESS = process.env['HOLDFAST_HW_ADDRESS'] ?? '127.0.0.1';
const PORT = '4433';
const SUBSYSTEM = `nqn.2026-01.test.holdfast:paths-${process.pid}`;
const HOST = 'nqn.2026-01.test.holdfast:path-host';
const PLACE = ['--transport', 'tcp', '--address', ADDRESS, '--port', PORT];

const exports = (): readonly string[] => readdirSync('/sys/kernel/config/nvmet/subsystems');
const controllers = (): readonly string[] => readdirSync('/sys/class/nvme');

let device: LoopDevice;
beforeEach(() => {
  device = new LoopDevice(16 * MIB);
});
afterEach(async () => {
  await disconnectSubsystem(SUBSYSTEM);
  await new Nvmet().unexport(SUBSYSTEM);
  device.close();
});

const exported = (): Promise<string> =>
  nsdCommand('export', device.path, '--subsystem', SUBSYSTEM, '--host', HOST, ...PLACE);
const attached = (...more: readonly string[]): Promise<string> =>
  nsdCommand('attach', SUBSYSTEM, '--host', HOST, ...PLACE, ...more);

describe('a path to a namespace', () => {
  it('is exported, attached, given up and taken back, each once', async () => {
    const before = controllers();
    expect(await exported()).toContain(`is exported as ${SUBSYSTEM} over tcp at ${ADDRESS} port ${PORT}`);
    await expect(exported()).rejects.toMatchObject({ code: 'EEXIST', object: SUBSYSTEM });
    const made = JSON.parse(await attached('--lease', '20s', '--json')) as Record<string, unknown>;
    expect(made).toMatchObject({ subsystem: SUBSYSTEM, transport: 'tcp' });
    for (const file of [made['device'], made['characterDevice']]) expect(existsSync(String(file))).toBe(true);
    // What the kernel was told, in seconds: over before the lease is.
    const noticedS = 1.5 * Number(made['keepAliveS']);
    expect(noticedS + Number(made['fastIoFailS'])).toBeLessThan(20);
    expect(noticedS + Number(made['controllerLossS'])).toBeLessThan(20);
    await expect(attached()).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining(`attached already, by ${String(made['controller'])}`) as string,
    });
    expect(await nsdCommand('detach', SUBSYSTEM)).toContain('is detached');
    expect(controllers()).toEqual(before);
    await expect(nsdCommand('detach', SUBSYSTEM)).rejects.toThrow('it is not attached');
    expect(await nsdCommand('unexport', SUBSYSTEM)).toContain('is not exported any more');
    await expect(nsdCommand('unexport', SUBSYSTEM)).rejects.toThrow('there is no such export');
  });

  it('that cannot be made leaves nothing behind', async () => {
    const before = [exports(), controllers()];
    await expect(
      nsdCommand('export', '/dev/not-there', '--subsystem', SUBSYSTEM, '--host', HOST, ...PLACE),
    ).rejects.toThrow('/dev/not-there');
    await expect(attached()).rejects.toThrow('nobody listens there');
    expect([exports(), controllers()]).toEqual(before);
    await exported();
    // Another host than it is for.
    const stranger = nsdCommand('attach', SUBSYSTEM, '--host', `${HOST}-2`, ...PLACE);
    await expect(stranger).rejects.toMatchObject({ op: 'nsd.attach', object: SUBSYSTEM });
    expect(controllers()).toEqual(before[1]);
  });
});
