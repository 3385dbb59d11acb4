/** NVMe over Fabrics within one machine: exported by its nvmet, connected to by its host, over loop, RDMA and TCP. */
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type Attached,
  addressOf,
  attach,
  HOST,
  LoopDevice,
  OTHER_HOST,
  SlowDevice,
  TRANSPORTS,
} from '../../../hw-test/nvme-targets.js';
import {
  BlockEngine,
  BlockIoError,
  connect,
  disconnect,
  disconnectSubsystem,
  discover,
  FabricsError,
  ioFailsAfterMs,
  listSubsystems,
  NvmeDevice,
  Nvmet,
  NvmetError,
  readController,
  setFeaturesCommand,
  timeoutsBelow,
  waitForNamespace,
} from '../lib/index.js';

const MIB = 1 << 20;
const nvmet = new Nvmet();
let engine: BlockEngine;
/** Undone after each test, the last first, whatever became of it. */
let cleanup: (() => unknown)[];

beforeEach(() => {
  engine = new BlockEngine({ queueDepth: 32, pathRetryMsMax: 0 });
  cleanup = [];
});
afterEach(async () => {
  await engine.close();
  for (const step of cleanup.reverse()) await step();
});

async function failure(work: Promise<unknown>): Promise<BlockIoError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof BlockIoError) return error;
    throw error;
  }
  throw new Error('it should have failed');
}
function loopDevice(lengthBytes: number, sectorBytes = 512): LoopDevice {
  const device = new LoopDevice(lengthBytes, sectorBytes);
  cleanup.push(() => device.close());
  return device;
}
async function attached(...args: Parameters<typeof attach>): Promise<Attached> {
  const made = await attach(...args);
  cleanup.push(() => made.detach());
  return made;
}
/** Asked again until it is so; the test's own time limit ends it. */
async function until(ask: () => Promise<boolean>): Promise<void> {
  while (!(await ask())) await new Promise((resolve) => setTimeout(resolve, 20));
}

describe.each(TRANSPORTS)('over %s', (transport) => {
  it('a namespace is exported, found, connected to, used, and gone again', async () => {
    const backing = loopDevice(32 * MIB, 4096);
    const timeouts = timeoutsBelow(16_000);
    const { nqn, controller, namespace } = await attached(transport, backing.path, { timeouts });
    const [exported] = (await nvmet.list()).filter((one) => one.nqn === nqn);
    expect(exported).toMatchObject({
      allowedHosts: [HOST],
      allowsAnyHost: false,
      namespaces: [{ nsid: 1, devicePath: backing.path, enabled: true }],
      ports: [addressOf(transport)],
    });
    const found = await discover({ ...addressOf(transport), hostNqn: HOST });
    expect(found.filter((entry) => entry.nqn === nqn)).toMatchObject([{ transport, subsystemType: 'nvme' }]);
    expect((await discover({ ...addressOf(transport), hostNqn: OTHER_HOST })).some((entry) => entry.nqn === nqn)).toBe(
      false,
    );

    const node = await readController(controller.name);
    expect(node).toMatchObject({
      transport,
      state: 'live',
      subsystemNqn: nqn,
      hostNqn: HOST,
      keepAliveS: timeouts.keepAliveS,
    });
    if (transport !== 'loop')
      expect(node).toMatchObject({
        fastIoFailS: timeouts.fastIoFailS,
        controllerLossS: timeouts.controllerLossS,
        reconnectDelayS: timeouts.reconnectDelayS,
      });
    const subsystem = (await listSubsystems()).find((one) => one.nqn === nqn);
    expect(subsystem?.namespaces).toMatchObject([
      { nsid: 1, lbaBytes: 4096, sizeBytes: 32 * MIB, paths: [{ controller: controller.name }] },
    ]);

    const device = await engine.open(namespace.blockPath);
    expect(device).toMatchObject({ access: 'passthrough', logicalBlockBytes: 4096, sizeBytes: 32 * MIB });
    const buffer = engine.allocate(2 * MIB);
    const bytes = randomBytes(2 * MIB);
    new Uint8Array(buffer.buffer).set(bytes);
    await device.write(MIB, buffer, 0, 2 * MIB);
    await device.flush();
    await device.writeZeroes(MIB + 4096, 8192);
    bytes.fill(0, 4096, 4096 + 8192);
    expect(
      fs
        .readFileSync(backing.file)
        .subarray(MIB, 3 * MIB)
        .equals(bytes),
    ).toBe(true);
    await device.read(MIB, buffer, 0, 2 * MIB);
    expect(Buffer.from(buffer.buffer).equals(bytes)).toBe(true);
    await device.discard(MIB, 4096);
    expect(await failure(device.read(32 * MIB, buffer, 0, 4096))).toMatchObject({ short: true });
    expect((await failure(device.write(32 * MIB, buffer, 0, 4096))).code).toBe('ENOSPC');
    await device.close();

    await expect(connect({ ...addressOf(transport), nqn, hostNqn: OTHER_HOST })).rejects.toBeInstanceOf(FabricsError);
    await disconnect(controller.name);
    expect(await readController(controller.name)).toBeNull();
    await expect(disconnect(controller.name)).rejects.toMatchObject({ code: 'ENOENT' });
    expect(await nvmet.unexport(nqn)).toBe(true);
    expect(await nvmet.unexport(nqn)).toBe(false);
    expect((await nvmet.list()).some((one) => one.nqn === nqn)).toBe(false);
  });

  it('a namespace that shrinks ends sooner, and one that grows ends later', async () => {
    const backing = loopDevice(16 * MIB);
    const { nqn, namespace } = await attached(transport, backing.path);
    const [device, before] = [await engine.open(namespace.blockPath), await engine.open(namespace.blockPath)];
    const buffer = engine.allocate(64 * 1024);
    await device.write(12 * MIB, buffer, 0, 64 * 1024);
    const resize = async (lengthBytes: number): Promise<void> => {
      backing.resize(lengthBytes);
      fs.writeFileSync(`/sys/kernel/config/nvmet/subsystems/${nqn}/namespaces/1/revalidate_size`, '1');
      await until(async () => (await device.refresh()) === lengthBytes);
    };
    await resize(8 * MIB);
    expect(await failure(device.read(12 * MIB, buffer, 0, 4096))).toMatchObject({ short: true, doneBytes: 0 });
    expect((await failure(device.write(12 * MIB, buffer, 0, 4096))).code).toBe('ENOSPC');
    await device.read(4 * MIB, buffer, 0, 4096);
    // Opened before, and not refreshed: it looks when something fails.
    expect(await failure(before.read(12 * MIB, buffer, 0, 4096))).toMatchObject({ short: true, doneBytes: 0 });
    expect(before.sizeBytes).toBe(8 * MIB);
    await resize(24 * MIB);
    await device.write(20 * MIB, buffer, 0, 64 * 1024);
    expect(device.sizeBytes).toBe(24 * MIB);
  });

  it('a namespace that becomes write protected refuses writes, goes on with reads, and says so to the next', async () => {
    const { namespace } = await attached(transport, loopDevice(16 * MIB).path);
    const device = await engine.open(namespace.blockPath);
    const buffer = engine.allocate(4096);
    await device.write(0, buffer, 0, 4096);
    const own = await NvmeDevice.open(namespace.genericPath!);
    await own.send(setFeaturesCommand(0x84, 1, 1));
    const error = await failure(device.write(0, buffer, 0, 4096));
    expect(error).toMatchObject({ code: 'EROFS', nvmeStatus: { words: 'namespace is write protected' } });
    await device.read(0, buffer, 0, 4096);
    const again = await engine.open(namespace.blockPath);
    expect(again).toMatchObject({ readOnly: true, namespace: { writeProtected: true } });
    expect((await failure(again.discard(0, 4096))).code).toBe('EROFS');
    await own.send(setFeaturesCommand(0x84, 1, 0));
    await device.write(0, buffer, 0, 4096);
    await own.close();
  });

  it('a namespace that vanishes fails what is asked of it, and nothing else', async () => {
    const { nqn, controller, namespace } = await attached(transport, loopDevice(16 * MIB).path);
    const other = await attached(transport, loopDevice(16 * MIB).path);
    const [device, healthy] = await Promise.all([
      engine.open(namespace.blockPath),
      engine.open(other.namespace.blockPath),
    ]);
    const buffer = engine.allocate(64 * 4096);
    const results: Promise<unknown>[] = [];
    for (let i = 0; i < 64; i++)
      results.push(device.write(i * 4096, buffer, i * 4096, 4096).catch((error: unknown) => error));
    fs.writeFileSync(`/sys/kernel/config/nvmet/subsystems/${nqn}/namespaces/1/enable`, '0');
    for (const result of await Promise.all(results))
      if (result !== undefined) expect(result).toBeInstanceOf(BlockIoError);
    const gone = await failure(device.read(0, buffer, 0, 4096));
    expect(['ENODEV', 'EIO', 'ENXIO']).toContain(gone.code);
    await healthy.write(0, buffer, 0, 4096);
    await disconnect(controller.name);
    expect(['ENODEV', 'ENXIO', 'EIO', 'EBADF']).toContain((await failure(device.write(0, buffer, 0, 4096))).code);
    await healthy.read(0, buffer, 0, 4096);
    await device.close();
  });
});

describe.each(TRANSPORTS.filter((transport) => transport !== 'loop'))('a target in trouble, over %s', (transport) => {
  const patient = { keepAliveS: 5, fastIoFailS: 30, controllerLossS: 60, reconnectDelayS: 1 };

  it('that doesn’t answer in time: the command is given up, and the next one goes', async () => {
    const slow = new SlowDevice(2500);
    cleanup.push(() => slow.close());
    const { namespace, controller } = await attached(transport, slow.path, { timeouts: patient });
    const hasty = new BlockEngine({ queueDepth: 4, commandTimeoutMs: 500, pathRetryMsMax: 0 });
    const device = await hasty.open(namespace.blockPath);
    const error = await failure(device.read(0, hasty.allocate(4096), 0, 4096));
    expect(error).toMatchObject({ code: 'ETIMEDOUT', nvmeStatus: null });
    await hasty.close();
    await until(async () => (await readController(controller.name))?.state === 'live');
    const calm = new BlockEngine({ commandTimeoutMs: 20_000, pathRetryMsMax: 20_000 });
    const again = await calm.open(namespace.blockPath);
    await again.read(0, calm.allocate(4096), 0, 4096);
    await calm.close();
  });

  it('that goes and comes back: nobody notices whose patience is longer', async () => {
    const { nqn, namespace, controller } = await attached(transport, loopDevice(16 * MIB).path, { timeouts: patient });
    const calm = new BlockEngine({ queueDepth: 8, pathRetryMsMax: 60_000 });
    cleanup.push(() => calm.close());
    const device = await calm.open(namespace.blockPath);
    const buffer = calm.allocate(8 * 4096);
    let writes = 0;
    let stop = false;
    const lane = async (index: number): Promise<void> => {
      for (; !stop; writes++) await device.write(index * 4096, buffer, index * 4096, 4096);
    };
    const lanes = Promise.all([0, 1, 2, 3, 4, 5, 6, 7].map(lane));
    const broken = lanes.then(() => undefined);
    const meanwhile = (ask: () => Promise<boolean>): Promise<void> => Promise.race([until(ask), broken]);
    const ports = fs.readdirSync('/sys/kernel/config/nvmet/ports');
    const link = ports
      .map((id) => `/sys/kernel/config/nvmet/ports/${id}/subsystems/${nqn}`)
      .find((file) => fs.existsSync(file))!;
    await meanwhile(() => Promise.resolve(writes > 20));
    fs.unlinkSync(link);
    await meanwhile(async () => (await readController(controller.name))?.state !== 'live');
    fs.symlinkSync(`/sys/kernel/config/nvmet/subsystems/${nqn}`, link);
    const before = writes;
    await meanwhile(() => Promise.resolve(writes > before + 20));
    stop = true;
    await lanes;
    expect((await readController(controller.name))?.state).toBe('live');
  });

  it('that stays away: I/O fails and the controller goes, within the times that were set', async () => {
    const timeouts = timeoutsBelow(8000);
    const { nqn, namespace, controller } = await attached(transport, loopDevice(16 * MIB).path, { timeouts });
    expect(ioFailsAfterMs(timeouts)).toBeLessThan(8000);
    const waiting = new BlockEngine({ pathRetryMsMax: 60_000 });
    cleanup.push(() => waiting.close());
    const device = await waiting.open(namespace.blockPath);
    const buffer = waiting.allocate(4096);
    await device.write(0, buffer, 0, 4096);
    await nvmet.unexport(nqn);
    await until(async () => (await readController(controller.name)) === null);
    expect(['ENODEV', 'ENXIO', 'EIO']).toContain((await failure(device.write(0, buffer, 0, 4096))).code);
  });

  it('unexport waits for commands under way; after it none can land, and the other server’s path is as it was (S4)', async () => {
    const slow = new SlowDevice(1500);
    cleanup.push(() => slow.close());
    const first = await attached(transport, slow.path, { timeouts: patient });
    const device = await engine.open(first.namespace.blockPath);
    const buffer = engine.allocate(4096);
    new Uint8Array(buffer.buffer).fill(0x5a);
    const settled: string[] = [];
    const held = device.write(0, buffer, 0, 4096).then(
      () => settled.push('write'),
      () => settled.push('write failed'),
    );
    const inFlight = (): boolean => {
      const [reads, writes] = fs
        .readFileSync(`/sys/class/block/${slow.path.slice(5)}/inflight`, 'utf8')
        .trim()
        .split(/\s+/);
      return Number(reads) + Number(writes) > 0;
    };
    await until(() => Promise.resolve(inFlight()));
    await nvmet.unexport(first.nqn);
    expect(inFlight()).toBe(false);
    const second = await attached(transport, slow.path, { timeouts: patient });
    const other = await engine.open(second.namespace.blockPath);
    const theirs = engine.allocate(4096);
    new Uint8Array(theirs.buffer).fill(0xa5);
    await other.write(0, theirs, 0, 4096);
    await held;
    expect((await failure(device.write(0, buffer, 0, 4096))).syscall).toBe('write');
    await other.read(0, theirs, 0, 4096);
    expect(new Uint8Array(theirs.buffer).every((byte) => byte === 0xa5)).toBe(true);
    expect(settled).toHaveLength(1);
  });
});

describe('what is refused', () => {
  it('nobody listens, nobody is there, nothing is exported, no such transport', async () => {
    const address = addressOf('tcp').address!;
    const nqn = 'nqn.2026-01.test.holdfast:nothing';
    await expect(connect({ transport: 'tcp', address, service: '4999', nqn })).rejects.toMatchObject({
      code: 'ECONNREFUSED',
      operation: 'connect',
    });
    await expect(discover({ transport: 'tcp', address, service: '4999' })).rejects.toMatchObject({
      code: 'ECONNREFUSED',
      operation: 'discover',
    });
    await expect(connect({ transport: 'tcp', address: '10.77.0.77', nqn, timeoutMs: 500 })).rejects.toMatchObject({
      code: expect.stringMatching(/ETIMEDOUT|EHOSTUNREACH/) as string,
    });
    const { nqn: there } = await attached('tcp', loopDevice(MIB).path);
    const missing = connect({ ...addressOf('tcp'), nqn, hostNqn: HOST });
    await expect(missing).rejects.toThrow(/nothing over tcp/);
    await expect(connect({ ...addressOf('tcp'), nqn: there, hostNqn: HOST })).rejects.toMatchObject({
      code: 'EALREADY',
    });
    await expect(disconnect('nvme0')).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('pcie') as string,
    });
    expect(await disconnectSubsystem('nqn.2026-01.test.holdfast:nobody')).toBe(0);
  });

  it('exports: a name in use, a device that is not there; and nothing is left of them', async () => {
    const backing = loopDevice(MIB);
    const { nqn } = await attached('tcp', backing.path);
    const before = await nvmet.list();
    const wanted = { subsystemNqn: nqn, devicePath: backing.path, allowedHosts: [HOST], port: addressOf('tcp') };
    await expect(nvmet.export(wanted)).rejects.toMatchObject({
      code: 'EEXIST',
      message: expect.stringContaining('already') as string,
    });
    const elsewhere = { ...wanted, subsystemNqn: `${nqn}-b`, allowedHosts: [OTHER_HOST] };
    await expect(nvmet.export({ ...elsewhere, devicePath: '/dev/not-there' })).rejects.toBeInstanceOf(NvmetError);
    const unbindable = { transport: 'tcp', address: '203.0.113.9', service: '4444' } as const;
    await expect(nvmet.export({ ...elsewhere, port: unbindable })).rejects.toThrow(/opening its port failed/);
    expect(await nvmet.list()).toEqual(before);
    expect(fs.readdirSync('/sys/kernel/config/nvmet/hosts')).not.toContain(OTHER_HOST);
    await nvmet.allowHost(nqn, OTHER_HOST);
    await nvmet.allowHost(nqn, OTHER_HOST);
    const second = await connect({ ...addressOf('tcp'), nqn, hostNqn: OTHER_HOST });
    expect((await waitForNamespace(second.name, 1)).sizeBytes).toBe(MIB);
  });
});
