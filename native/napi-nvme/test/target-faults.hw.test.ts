/** What no emulated device does: never answer, or answer what nobody expects. Through the kernel's NVMe/TCP (hw-test/nvme-tcp-target). */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { BLOCK_BYTES, type TargetHost, targetWithHosts } from '../../../hw-test/nvme-tcp-target/hosts.js';
import type { TargetProcess } from '../../../hw-test/nvme-tcp-target/start.js';
import {
  BlockEngine,
  BlockIoError,
  blockCommand,
  getFeaturesCommand,
  makeCommand,
  NvmeCommandError,
  NvmeDevice,
} from '../lib/index.js';

const READ = 0x02;
const WRITE = 0x01;
/** Which the kernel doesn't send by itself. */
const GET_FEATURES = 0x0a;
const KEEP_ALIVE_FEATURE = 0x0f;

let target: TargetProcess;
let host: TargetHost;
const cleanup: (() => unknown)[] = [];

beforeAll(async () => {
  const made = await targetWithHosts((step) => cleanup.push(step));
  target = made.target;
  host = made.hosts[0];
});
afterAll(async () => {
  for (const step of cleanup.reverse()) await step();
});
afterEach(async () => {
  await target.heal();
  await host.live();
});

async function failure<T extends Error>(kind: new (...args: never[]) => T, work: Promise<unknown>): Promise<T> {
  const outcome = await work.then(
    () => null,
    (error: unknown) => error,
  );
  if (outcome instanceof kind) return outcome;
  throw outcome ?? new Error('it should have failed');
}

describe('a target that never answers', () => {
  it('costs one command its time limit, and the next goes when it has come to its senses', async () => {
    await target.hold({ set: 'io', opcode: READ, hostNqn: host.hostNqn });
    const engine = new BlockEngine({ queueDepth: 4, commandTimeoutMs: 500, pathRetryMsMax: 0 });
    const device = await engine.open(host.namespace.genericPath!);
    const buffer = engine.allocate(4096);
    const error = await failure(BlockIoError, device.read(0, buffer, 0, 4096));
    expect(error).toMatchObject({ code: 'ETIMEDOUT', syscall: 'read', doneBytes: 0, nvmeStatus: null });
    await target.heal();
    await host.live();
    await device.read(0, buffer, 0, 4096);
    await engine.close();
  });

  it.each(['admin', 'io'] as const)('ends a single command of the %s kind at its time limit, too', async (set) => {
    const device = await NvmeDevice.open(host.namespace.genericPath!);
    await target.hold({ set, opcode: set === 'admin' ? GET_FEATURES : READ, hostNqn: host.hostNqn });
    const command =
      set === 'admin'
        ? makeCommand('get features', 'admin', { opcode: GET_FEATURES, cdw10: KEEP_ALIVE_FEATURE, timeoutMs: 500 })
        : blockCommand('read', 1, { lba: 0, blockCount: 1, dataBytes: BLOCK_BYTES, timeoutMs: 500 });
    const sent = failure(NvmeCommandError, device.send(command));
    await target.untilHeld(1);
    // Held until the kernel has given it up: the connection is new then.
    const error = await sent;
    expect(error).toMatchObject({ code: 'ETIMEDOUT', command: command.name, status: null });
    await target.heal();
    await host.live();
    expect((await device.send(getFeaturesCommand(KEEP_ALIVE_FEATURE))).result).toBeGreaterThan(0);
    await device.close();
  });
});

describe('a target that answers with an odd status', () => {
  const open = async (pathRetryMsMax: number) => {
    const engine = new BlockEngine({ queueDepth: 4, pathRetryMsMax });
    return { engine, device: await engine.open(host.namespace.genericPath!), buffer: engine.allocate(4096) };
  };

  it.each([
    ['media', 'unrecovered read error', 0x281, 'EIO'],
    ['media', 'access denied', 0x4286, 'EACCES'],
    ['generic', 'internal error', 0x6006, 'EIO'],
    ['generic', 'admin command media is not ready', 0x1024, 'EIO'],
    ['generic', 'capacity exceeded', 0x4081, 'ENOSPC'],
    ['command', 'attempted write to a read-only range', 0x4182, 'EROFS'],
    ['vendor', 'vendor specific status 0x7c1', 0x47c1, 'EIO'],
    ['reserved', 'unknown status 0x4ab', 0x44ab, 'EIO'],
    ['path', 'asymmetric access transition', 0x4303, 'EIO'],
  ])('%s: %s', async (type, words, status, code) => {
    const { engine, device, buffer } = await open(60_000);
    await target.refuse({ set: 'io', opcode: WRITE, hostNqn: host.hostNqn }, status);
    const error = await failure(BlockIoError, device.write(0, buffer, 0, 4096));
    expect(error).toMatchObject({
      code,
      syscall: 'write',
      nvmeStatus: {
        raw: status,
        type,
        words,
        doNotRetry: (status & 0x4000) !== 0,
        more: (status & 0x2000) !== 0,
        retryDelay: (status >> 11) & 3,
      },
    });
    expect(error.message).toContain(words);
    await device.write(0, buffer, 0, 4096);
    await engine.close();
  });

  it('a passing one is waited out, and only within the time for that', async () => {
    const patient = await open(60_000);
    await target.refuse({ set: 'io', opcode: WRITE, hostNqn: host.hostNqn }, 0x303, 3);
    await patient.device.write(0, patient.buffer, 0, 4096);
    await patient.engine.close();
    const hasty = await open(0);
    await target.refuse({ set: 'io', opcode: WRITE, hostNqn: host.hostNqn }, 0x303);
    const error = await failure(BlockIoError, hasty.device.write(0, hasty.buffer, 0, 4096));
    expect(error).toMatchObject({ code: 'EIO', nvmeStatus: { words: 'asymmetric access transition' } });
    await hasty.engine.close();
  });

  it('the same of an admin command', async () => {
    const device = await NvmeDevice.open(host.namespace.genericPath!);
    await target.refuse({ set: 'admin', opcode: GET_FEATURES, hostNqn: host.hostNqn }, 0x47d2);
    expect(await failure(NvmeCommandError, device.send(getFeaturesCommand(KEEP_ALIVE_FEATURE)))).toMatchObject({
      code: 'EIO',
      command: 'get features',
      status: { type: 'vendor', words: 'vendor specific status 0x7d2' },
    });
    await device.close();
  });
});
