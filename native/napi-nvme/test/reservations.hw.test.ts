/** Reservations between two hosts of one namespace, for real: through the kernel's NVMe/TCP to a target that has them (hw-test/nvme-tcp-target). */
import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { tool } from '../../../hw-test/guest/tools.js';
import { BLOCK_BYTES, type TargetHost, targetWithHosts } from '../../../hw-test/nvme-tcp-target/hosts.js';
import type { TargetProcess } from '../../../hw-test/nvme-tcp-target/start.js';
import {
  type BlockDeviceHandle,
  BlockEngine,
  BlockIoError,
  type IoBuffer,
  NvmeCommandError,
  NvmeDevice,
  Reservations,
  reservationAcquireCommand,
  reservationReportCommand,
} from '../lib/index.js';

const WRITE = 0x01;
const KEY = 0xa11ce_0000_0001n;
const OTHER_KEY = 0xb0b_0000_0002n;

let target: TargetProcess;
let engine: BlockEngine;
let hosts: readonly [TargetHost, TargetHost];
const cleanup: (() => unknown)[] = [];

/** One host's view: its device for commands, its reservations, its I/O. */
interface Side {
  readonly host: TargetHost;
  readonly device: NvmeDevice;
  readonly reservations: Reservations;
  readonly io: BlockDeviceHandle;
  readonly buffer: IoBuffer;
}
let a: Side;
let b: Side;

beforeAll(async () => {
  ({ target, hosts } = await targetWithHosts((step) => cleanup.push(step)));
});
afterAll(async () => {
  for (const step of cleanup.reverse()) await step();
});

async function side(host: TargetHost): Promise<Side> {
  const device = await NvmeDevice.open(host.namespace.genericPath!);
  const io = await engine.open(host.namespace.genericPath!);
  return { host, device, reservations: new Reservations(device), io, buffer: engine.allocate(64 * 1024) };
}

beforeEach(async () => {
  engine = new BlockEngine({ queueDepth: 8, pathRetryMsMax: 0 });
  [a, b] = [await side(hosts[0]), await side(hosts[1])];
});
afterEach(async () => {
  await target.heal();
  await Promise.all(hosts.map((host) => host.live()));
  await a.reservations.register(KEY, { ignoreExistingKey: true, persistThroughPowerLoss: 'off' });
  await a.reservations.clear(KEY);
  await Promise.all([a.device.close(), b.device.close(), engine.close()]);
});

async function failure<T extends Error>(kind: new (...args: never[]) => T, work: Promise<unknown>): Promise<T> {
  const outcome = await work.then(
    () => null,
    (error: unknown) => error,
  );
  if (outcome instanceof kind) return outcome;
  throw outcome ?? new Error('it should have failed');
}
const refused = (work: Promise<unknown>): Promise<NvmeCommandError> => failure(NvmeCommandError, work);

const write = ({ io, buffer }: Side, offset = 0): Promise<void> => io.write(offset, buffer, 0, BLOCK_BYTES);
const read = ({ io, buffer }: Side): Promise<void> => io.read(0, buffer, 0, BLOCK_BYTES);

async function conflicts(work: Promise<unknown>, words = 'reservation conflict'): Promise<void> {
  const error = await failure(BlockIoError, work);
  expect(error).toMatchObject({ nvmeStatus: { type: 'generic', words, doNotRetry: true }, doneBytes: 0 });
  expect(error.message).toContain(words);
}
const refusedByConflict = async (work: Promise<unknown>): Promise<void> =>
  expect(await refused(work)).toMatchObject({ code: 'EBUSY', status: { words: 'reservation conflict' } });

const registrant = ({ host }: Side, key: bigint, holdsReservation: boolean) => ({
  controllerId: 0xffff,
  hostId: host.hostId,
  key,
  holdsReservation,
});

describe('reservations', () => {
  it('are seen before anything is tried, as nvme-cli sees them', async () => {
    const support = await a.reservations.support();
    expect(support).toEqual({
      supported: true,
      reason: null,
      types: [
        'writeExclusive',
        'exclusiveAccess',
        'writeExclusiveRegistrants',
        'exclusiveAccessRegistrants',
        'writeExclusiveAllRegistrants',
        'exclusiveAccessAllRegistrants',
      ],
      persistThroughPowerLoss: true,
    });
    const json = async (what: string): Promise<Record<string, number>> =>
      JSON.parse(await tool('nvme', [what, a.host.namespace.genericPath!, '-o', 'json'])) as Record<string, number>;
    expect(Number((await json('id-ctrl'))['oncs']) & 0x20).toBe(0x20);
    expect(Number((await json('id-ns'))['rescap']) & 0x7f).toBe(0x7f);
    expect(await a.reservations.report()).toEqual({
      generation: expect.any(Number) as number,
      type: null,
      persistsThroughPowerLoss: false,
      registrants: [],
    });
  });

  // What a host that does not hold it may do, by the specification's table: unregistered, registered.
  it.each([
    ['writeExclusive', { read: true, write: false }, { read: true, write: false }],
    ['exclusiveAccess', { read: false, write: false }, { read: false, write: false }],
    ['writeExclusiveRegistrants', { read: true, write: false }, { read: true, write: true }],
    ['exclusiveAccessRegistrants', { read: false, write: false }, { read: true, write: true }],
    ['writeExclusiveAllRegistrants', { read: true, write: false }, { read: true, write: true }],
    ['exclusiveAccessAllRegistrants', { read: false, write: false }, { read: true, write: true }],
  ] as const)('of type %s keep the others out of what they are to be kept out of', async (type, stranger, member) => {
    const before = randomBytes(BLOCK_BYTES);
    new Uint8Array(a.buffer.buffer).set(before);
    await a.reservations.register(KEY);
    await a.reservations.acquire(KEY, type);
    await write(a);
    expect((await target.contents(0, BLOCK_BYTES)).equals(before)).toBe(true);
    new Uint8Array(b.buffer.buffer).fill(0xbb);

    const tryAll = async (may: { readonly read: boolean; readonly write: boolean }): Promise<void> => {
      for (const [work, allowed] of [
        [() => write(b, BLOCK_BYTES), may.write],
        [() => b.io.flush(), may.write],
        [() => read(b), may.read],
      ] as const)
        if (allowed) await work();
        else await conflicts(work());
    };
    await target.contents(BLOCK_BYTES, BLOCK_BYTES).then((bytes) => new Uint8Array(a.buffer.buffer).set(bytes));
    await tryAll(stranger);
    const untouched = await target.contents(BLOCK_BYTES, BLOCK_BYTES);
    expect(untouched.equals(Buffer.from(a.buffer.buffer, 0, BLOCK_BYTES))).toBe(true);
    await b.reservations.register(OTHER_KEY);
    const all = type.endsWith('AllRegistrants');
    expect(await b.reservations.report()).toMatchObject({
      type,
      registrants: [registrant(a, KEY, true), registrant(b, OTHER_KEY, all)],
    });
    new Uint8Array(b.buffer.buffer).set(randomBytes(BLOCK_BYTES));
    await tryAll(member);
    // A registrant of a reservation for all of them is a holder; of any other it is not.
    if (all) await b.reservations.acquire(OTHER_KEY, type);
    else await refusedByConflict(b.reservations.acquire(OTHER_KEY, type));
    await read(a);
    await write(a);
    await a.reservations.release(KEY, type);
    await write(b);
    await read(b);
  });

  it('are reported as nvme-cli reports them', async () => {
    await a.reservations.register(KEY, { persistThroughPowerLoss: 'on' });
    await b.reservations.register(OTHER_KEY);
    await b.reservations.acquire(OTHER_KEY, 'exclusiveAccess');
    const ours = await a.reservations.report();
    const seen = await tool('nvme', ['resv-report', a.host.namespace.genericPath!, '--eds', '-o', 'json']);
    const theirs = JSON.parse(seen) as Record<string, unknown>;
    const list = (theirs['regctlext'] ?? theirs['regctl_ext']) as Record<string, unknown>[];
    expect(theirs).toMatchObject({ gen: ours.generation, rtype: 2, regctl: 2, ptpls: 1 });
    expect(ours).toMatchObject({ type: 'exclusiveAccess', persistsThroughPowerLoss: true });
    expect(
      list.map(({ cntlid, rcsts, rkey, hostid }) => ({
        controllerId: cntlid,
        holdsReservation: (Number(rcsts) & 1) === 1,
        key: BigInt(rkey as number),
        hostId: String(hostid),
      })),
    ).toEqual(ours.registrants);
    // Hosts over fabrics have identifiers of 128 bits: the short form can't name them.
    expect(await refused(a.device.send(reservationReportCommand(1, 4096, false)))).toMatchObject({
      status: { words: 'host identifier has an inconsistent format' },
    });
  });

  it('are reported whole, however many have registered', async () => {
    await target.enrol(100, 7000n);
    await a.reservations.register(KEY);
    const { registrants } = await a.reservations.report();
    expect(registrants).toHaveLength(101);
    expect(registrants.map(({ key }) => key)).toEqual([
      ...Array.from({ length: 100 }, (_, i) => 7000n + BigInt(i)),
      KEY,
    ]);
  });

  it('are taken by preempting the holder, who is out at once and no registrant any more', async () => {
    await a.reservations.register(KEY);
    await a.reservations.acquire(KEY, 'writeExclusiveRegistrants');
    await b.reservations.register(OTHER_KEY);
    await b.reservations.preempt(OTHER_KEY, KEY, 'exclusiveAccess');
    expect(await b.reservations.report()).toMatchObject({
      type: 'exclusiveAccess',
      registrants: [registrant(b, OTHER_KEY, true)],
    });
    await conflicts(write(a));
    await conflicts(read(a));
    await refusedByConflict(a.reservations.acquire(KEY, 'exclusiveAccess'));
    await refusedByConflict(a.reservations.release(KEY, 'exclusiveAccess'));
    // Nobody has that key any more.
    await refusedByConflict(b.reservations.preempt(OTHER_KEY, KEY, 'exclusiveAccess'));
    await write(b);
  });

  it('of all registrants are preempted from all of them at once', async () => {
    await a.reservations.register(KEY);
    await a.reservations.acquire(KEY, 'exclusiveAccessAllRegistrants');
    await target.enrol(3, 7000n);
    await b.reservations.register(OTHER_KEY);
    await b.reservations.preempt(OTHER_KEY, 0n, 'writeExclusive');
    expect(await b.reservations.report()).toMatchObject({
      type: 'writeExclusive',
      registrants: [registrant(b, OTHER_KEY, true)],
    });
  });

  it.each([
    [false, 'reservation conflict'],
    [true, 'command aborted, a preempt and abort took the reservation'],
  ])('keep out what was under way when they were preempted (S4; with abort: %s)', async (abort, words) => {
    new Uint8Array(a.buffer.buffer).fill(0xaa);
    await a.reservations.register(KEY);
    await a.reservations.acquire(KEY, 'writeExclusive');
    await write(a);
    await target.hold({ set: 'io', opcode: WRITE, hostNqn: a.host.hostNqn });
    new Uint8Array(a.buffer.buffer).fill(0xee);
    const late = conflicts(write(a), words);
    await target.untilHeld(1);
    await b.reservations.register(OTHER_KEY);
    await b.reservations.preempt(OTHER_KEY, KEY, 'writeExclusive', { abort });
    new Uint8Array(b.buffer.buffer).fill(0xbb);
    await write(b);
    // With abort it has come back by itself; without, it goes on only now, and too late.
    if (abort) await late;
    await target.heal();
    await late;
    expect((await target.contents(0, BLOCK_BYTES)).every((byte) => byte === 0xbb)).toBe(true);
  });

  it('are released by their holder alone, by the right key and the right type', async () => {
    await a.reservations.register(KEY);
    await b.reservations.register(OTHER_KEY);
    await a.reservations.acquire(KEY, 'writeExclusive');
    await refusedByConflict(a.reservations.release(KEY + 1n, 'writeExclusive'));
    expect(await refused(a.reservations.release(KEY, 'exclusiveAccess'))).toMatchObject({
      code: 'EINVAL',
      command: 'reservation release',
      status: { words: 'invalid field in command' },
    });
    // Of no effect from who doesn't hold it.
    await b.reservations.release(OTHER_KEY, 'writeExclusive');
    await conflicts(write(b));
    await a.reservations.release(KEY, 'writeExclusive');
    expect(await a.reservations.report()).toMatchObject({
      type: null,
      registrants: [registrant(a, KEY, false), registrant(b, OTHER_KEY, false)],
    });
    await b.reservations.acquire(OTHER_KEY, 'exclusiveAccess');
    await conflicts(read(a));
  });

  it('want a registration, whose key is replaced only by who knows it or says that it need not', async () => {
    await refusedByConflict(a.reservations.acquire(KEY, 'writeExclusive'));
    await refusedByConflict(a.reservations.unregister(KEY));
    await a.reservations.register(KEY);
    await a.reservations.register(KEY);
    await refusedByConflict(a.reservations.register(KEY + 1n));
    await refusedByConflict(a.reservations.register(KEY + 1n, { replaces: KEY + 5n }));
    await a.reservations.register(KEY + 1n, { replaces: KEY });
    await a.reservations.register(KEY + 2n, { ignoreExistingKey: true });
    await refusedByConflict(a.reservations.acquire(KEY, 'writeExclusive'));
    await a.reservations.acquire(KEY + 2n, 'writeExclusive');
    await refusedByConflict(a.reservations.acquire(KEY + 2n, 'exclusiveAccess'));
    await conflicts(write(b));
    // A holder that unregisters lets go.
    await a.reservations.unregister(KEY + 2n);
    expect(await a.reservations.report()).toMatchObject({ type: null, registrants: [] });
    await write(b);
    const ignoring = { action: 'acquire', type: 'writeExclusive', currentKey: KEY, ignoreExistingKey: true } as const;
    expect((await refused(a.device.send(reservationAcquireCommand(1, ignoring)))).code).toBe('EINVAL');
  });

  it('end with every registration when they are cleared', async () => {
    await a.reservations.register(KEY);
    await a.reservations.acquire(KEY, 'exclusiveAccess');
    const { generation } = await a.reservations.report();
    await b.reservations.register(OTHER_KEY);
    await b.reservations.clear(OTHER_KEY);
    expect(await b.reservations.report()).toMatchObject({
      generation: generation + 2,
      type: null,
      registrants: [],
    });
    await write(b);
  });

  it.each(['on', 'off'] as const)('outlive a loss of power where that was asked for: %s', async (persist) => {
    await a.reservations.register(KEY, { persistThroughPowerLoss: persist });
    await a.reservations.acquire(KEY, 'writeExclusive');
    await target.powerLoss(hosts.length);
    await Promise.all(hosts.map((host) => host.live()));
    expect(await b.reservations.report()).toMatchObject(
      persist === 'on'
        ? { type: 'writeExclusive', persistsThroughPowerLoss: true, registrants: [registrant(a, KEY, true)] }
        : { type: null, persistsThroughPowerLoss: false, registrants: [] },
    );
    if (persist === 'on') await conflicts(write(b));
    else await write(b);
  });

  it('are known by name to who goes through the kernel’s block layer, too', async () => {
    await a.reservations.register(KEY);
    await a.reservations.acquire(KEY, 'writeExclusive');
    const block = await engine.open(b.host.namespace.blockPath, { access: 'block' });
    const error = await failure(BlockIoError, block.write(0, engine.allocate(4096), 0, 4096));
    expect(error).toMatchObject({ code: 'EBADE', nvmeStatus: null });
    expect(error.message).toContain('another host has reserved it');
  });
});
