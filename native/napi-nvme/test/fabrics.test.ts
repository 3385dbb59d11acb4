/** Fabrics, exports and the view of sysfs without any of them: lines, limits, order of steps, what is refused. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { bounded, untilFound } from '../lib/bounded.js';
import { deviceNode, kernelTransferBytesMax } from '../lib/device-node.js';
import { checkNqn, connectLine } from '../lib/fabrics.js';
import {
  type ConfigFs,
  connect,
  disconnect,
  hostNqn,
  ioFailsAfterMs,
  listControllers,
  listSubsystems,
  Nvmet,
  timeoutsBelow,
} from '../lib/index.js';

let root: string;
beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'napi-nvme-'));
});
afterEach(() => fs.rmSync(root, { recursive: true, force: true }));

const NQN = 'nqn.2026-01.test.holdfast:a';

describe('a connect', () => {
  it('is one line of options', () => {
    const line = connectLine({
      transport: 'rdma',
      address: '10.0.0.1',
      hostAddress: '10.0.0.2',
      nqn: NQN,
      hostNqn: `${NQN}-host`,
      hostId: '11111111-2222-4333-8444-555555555555',
      timeouts: { keepAliveS: 2, fastIoFailS: 3, controllerLossS: 4, reconnectDelayS: 1 },
      ioQueues: 2,
    });
    expect(line).toBe(
      `transport=rdma,traddr=10.0.0.1,trsvcid=4420,host_traddr=10.0.0.2,nqn=${NQN},hostnqn=${NQN}-host,` +
        'hostid=11111111-2222-4333-8444-555555555555,nr_io_queues=2,keep_alive_tmo=2,reconnect_delay=1,ctrl_loss_tmo=4,fast_io_fail_tmo=3',
    );
    const timeouts = timeoutsBelow(20_000);
    expect(connectLine({ transport: 'loop', nqn: NQN, timeouts })).toBe(`transport=loop,nqn=${NQN},keep_alive_tmo=5`);
    expect(connectLine({ transport: 'tcp', address: '::1', service: '1', nqn: NQN })).toBe(
      `transport=tcp,traddr=::1,trsvcid=1,nqn=${NQN}`,
    );
  });

  it('takes nothing that would be a second option, or no option at all', () => {
    const good = { transport: 'tcp', address: '10.0.0.1', nqn: NQN } as const;
    for (const change of [
      { transport: 'carrier-pigeon' },
      { address: 'host.example' },
      { address: undefined },
      { address: '10.0.0.1,ctrl_loss_tmo=0' },
      { service: '0' },
      { service: '4420,x=1' },
      { nqn: 'nqn.x,y=1' },
      { nqn: 'nqn.x y' },
      { nqn: 'nqn.x\n' },
      { nqn: 'x' },
      { nqn: `nqn.${'x'.repeat(220)}` },
      { hostNqn: 'me' },
      { hostId: 'me' },
      { ioQueues: 0 },
      { timeouts: { keepAliveS: 0, fastIoFailS: 1, controllerLossS: 1, reconnectDelayS: 1 } },
      { timeouts: { keepAliveS: 1, fastIoFailS: -1, controllerLossS: 1, reconnectDelayS: 1 } },
    ])
      expect(() => connectLine({ ...good, ...change } as Parameters<typeof connectLine>[0])).toThrow(RangeError);
    expect(checkNqn(NQN)).toBe(NQN);
  });

  it('has I/O failed and the controller gone before the lease is over', () => {
    for (const leaseMs of [4000, 5000, 8000, 10_000, 15_500, 60_000]) {
      const timeouts = timeoutsBelow(leaseMs);
      expect(ioFailsAfterMs(timeouts)).toBeLessThan(leaseMs);
      expect(timeouts.keepAliveS * 1500 + timeouts.controllerLossS * 1000).toBeLessThan(leaseMs);
      expect(Math.min(...Object.values(timeouts))).toBeGreaterThanOrEqual(1);
    }
    for (const leaseMs of [0, 3999, 1.5, Number.NaN]) expect(() => timeoutsBelow(leaseMs)).toThrow(RangeError);
  });

  it('says what is missing where there are no fabrics', async () => {
    const roots = { sys: root, dev: root };
    await expect(connect({ transport: 'loop', nqn: NQN }, roots)).rejects.toMatchObject({
      code: 'ENOENT',
      operation: 'connect',
      message: expect.stringContaining('load nvme-tcp or nvme-rdma') as string,
    });
    // The kernel's answer is not believed unseen.
    fs.writeFileSync(path.join(root, 'nvme-fabrics'), '');
    await expect(connect({ transport: 'loop', nqn: NQN }, roots)).rejects.toThrow(/the kernel answers/);
  });

  it('is undone only for controllers of fabrics', async () => {
    const roots = { sys: root, dev: root };
    await expect(disconnect('../../etc', {}, roots)).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(disconnect('nvme7', {}, roots)).rejects.toMatchObject({ code: 'ENOENT' });
    const folder = path.join(root, 'class/nvme/nvme7');
    fs.mkdirSync(folder, { recursive: true });
    fs.writeFileSync(path.join(folder, 'subsysnqn'), `${NQN}\n`);
    fs.writeFileSync(path.join(folder, 'transport'), 'pcie\n');
    await expect(disconnect('nvme7', {}, roots)).rejects.toThrow(/connected by pcie/);
    fs.writeFileSync(path.join(folder, 'transport'), 'tcp\n');
    await disconnect('nvme7', {}, roots);
    expect(fs.readFileSync(path.join(folder, 'delete_controller'), 'utf8')).toBe('1');
  });

  it('knows who this host is, if anybody said', async () => {
    const file = path.join(root, 'hostnqn');
    expect(await hostNqn(file)).toBeNull();
    fs.writeFileSync(file, `${NQN}\n`);
    expect(await hostNqn(file)).toBe(NQN);
  });
});

describe('waiting', () => {
  it('ends at its limit, and what comes later is handed on', async () => {
    let finish: (value: string) => void = () => undefined;
    const slow = new Promise<string>((resolve) => {
      finish = resolve;
    });
    const late = new Promise<string>((resolve) => {
      void bounded(slow, 1, 'something slow', resolve).catch((error: { code: string }) => finish(error.code));
    });
    expect(await late).toBe('ETIMEDOUT');
    expect(await bounded(Promise.resolve(5), 1000, 'nothing')).toBe(5);
    await expect(bounded(Promise.resolve(5), 0, 'nothing')).rejects.toThrow(RangeError);
    let asked = 0;
    expect(await untilFound(() => Promise.resolve(asked++ === 2 ? 'there' : null), 60_000, 'it')).toBe('there');
    await expect(untilFound(() => Promise.resolve(null), 0, 'it appears')).rejects.toThrow(/it appears/);
  });
});

/** nvmet's folders in memory: what was done, in order; one step may fail. */
class MemoryConfigFs implements ConfigFs {
  readonly nodes = new Map<string, string | null>([
    ['subsystems', null],
    ['hosts', null],
    ['ports', null],
  ]);
  readonly done: string[] = [];
  failAt: string | null = null;

  async exists(file: string): Promise<boolean> {
    return this.nodes.has(file);
  }
  async list(folder: string): Promise<string[]> {
    const children = [...this.nodes.keys()].filter((name) => path.dirname(name) === folder);
    return children.map((name) => path.basename(name));
  }
  async read(file: string): Promise<string> {
    return this.nodes.get(file) ?? '';
  }
  async write(file: string, text: string): Promise<void> {
    this.#step(`write ${file} ${text}`);
    this.nodes.set(file, text);
  }
  async mkdir(folder: string): Promise<void> {
    this.#step(`mkdir ${folder}`);
    if (this.nodes.has(folder)) throw Object.assign(new Error('EEXIST'), { code: 'EEXIST' });
    this.nodes.set(folder, null);
    if (/^subsystems\/[^/]+$/.test(folder))
      for (const name of ['namespaces', 'allowed_hosts']) this.nodes.set(`${folder}/${name}`, null);
    if (/^ports\/[^/]+$/.test(folder)) this.nodes.set(`${folder}/subsystems`, null);
  }
  async rmdir(folder: string): Promise<void> {
    this.#step(`rmdir ${folder}`);
    for (const name of [...this.nodes.keys()])
      if (name === folder || name.startsWith(`${folder}/`)) this.nodes.delete(name);
  }
  async link(target: string, file: string): Promise<void> {
    this.#step(`link ${file}`);
    this.nodes.set(file, target);
  }
  async unlink(file: string): Promise<void> {
    this.#step(`unlink ${file}`);
    this.nodes.delete(file);
  }
  #step(what: string): void {
    if (this.failAt !== null && what.startsWith(this.failAt)) {
      this.failAt = null;
      throw Object.assign(new Error('the kernel says no'), { code: 'EIO' });
    }
    this.done.push(what);
  }
}

describe('an export', () => {
  const wanted = {
    subsystemNqn: NQN,
    devicePath: '/dev/nvme0n1',
    allowedHosts: ['nqn.2026-01.test.holdfast:h1', 'nqn.2026-01.test.holdfast:h2'],
    port: { transport: 'tcp', address: '10.0.0.1' },
  } as const;

  it('is made of a subsystem, its namespace, its hosts and a port, and opened last', async () => {
    const config = new MemoryConfigFs();
    const nvmet = new Nvmet(config);
    await nvmet.export(wanted);
    expect(config.nodes.get(`subsystems/${NQN}/attr_allow_any_host`)).toBe('0');
    expect(config.done.at(-1)).toBe(`link ports/1/subsystems/${NQN}`);
    expect(await nvmet.list()).toEqual([
      {
        nqn: NQN,
        allowedHosts: wanted.allowedHosts,
        allowsAnyHost: false,
        namespaces: [{ nsid: 1, devicePath: '/dev/nvme0n1', enabled: true, uuid: '' }],
        ports: [{ id: 1, transport: 'tcp', address: '10.0.0.1', service: '4420' }],
      },
    ]);
    await nvmet.export({ ...wanted, subsystemNqn: `${NQN}2` });
    await nvmet.export({ ...wanted, subsystemNqn: `${NQN}3`, port: { transport: 'rdma', address: '10.0.0.1' } });
    expect(await config.list('ports')).toEqual(['1', '2']);
  });

  it('is undone when a step fails, whichever it is', async () => {
    const reference = new MemoryConfigFs();
    await new Nvmet(reference).export(wanted);
    for (const step of reference.done) {
      const config = new MemoryConfigFs();
      config.failAt = step;
      await expect(new Nvmet(config).export(wanted)).rejects.toMatchObject({ code: 'EIO', operation: 'export' });
      expect([...config.nodes.keys()]).toEqual(['subsystems', 'hosts', 'ports']);
    }
  });

  it('leaves alone what has its name already', async () => {
    const config = new MemoryConfigFs();
    const nvmet = new Nvmet(config);
    await nvmet.export(wanted);
    const before = [...config.nodes];
    await expect(nvmet.export(wanted)).rejects.toMatchObject({ code: 'EEXIST' });
    expect([...config.nodes]).toEqual(before);
  });

  it('is taken away in the order of rule S4: namespace disabled, unlinked from its ports, hosts removed', async () => {
    const config = new MemoryConfigFs();
    const nvmet = new Nvmet(config);
    await nvmet.export(wanted);
    config.done.length = 0;
    expect(await nvmet.unexport(NQN)).toBe(true);
    expect(config.done).toEqual([
      `write subsystems/${NQN}/namespaces/1/enable 0`,
      `unlink ports/1/subsystems/${NQN}`,
      ...wanted.allowedHosts.map((host) => `unlink subsystems/${NQN}/allowed_hosts/${host}`),
      `rmdir subsystems/${NQN}/namespaces/1`,
      `rmdir subsystems/${NQN}`,
      ...wanted.allowedHosts.map((host) => `rmdir hosts/${host}`),
      'rmdir ports/1',
    ]);
    expect(await nvmet.unexport(NQN)).toBe(false);
  });

  it('whose namespace does not drain is not called shut out', async () => {
    const config = new MemoryConfigFs();
    const nvmet = new Nvmet(config);
    await nvmet.export(wanted);
    let end: () => void = () => undefined;
    config.write = () =>
      new Promise<void>((resolve) => {
        end = resolve;
      });
    await expect(nvmet.unexport(NQN, { timeoutMs: 5 })).rejects.toMatchObject({
      code: 'ETIMEDOUT',
      operation: 'unexport',
    });
    expect(config.nodes.has(`ports/1/subsystems/${NQN}`)).toBe(true);
    end();
  });

  it('is refused for names and paths that are none', async () => {
    const nvmet = new Nvmet(new MemoryConfigFs());
    for (const change of [
      { subsystemNqn: 'nqn.a/../../b' },
      { subsystemNqn: 'x' },
      { allowedHosts: ['nqn.a/b'] },
      { devicePath: 'relative' },
      { devicePath: '/dev/a\nb' },
      { nsid: 0 },
      { serial: 'x'.repeat(21) },
      { model: 'ä' },
    ])
      await expect(nvmet.export({ ...wanted, ...change })).rejects.toThrow(RangeError);
  });

  it('says what is missing where there is no nvmet', async () => {
    const config = new MemoryConfigFs();
    config.nodes.clear();
    const nvmet = new Nvmet(config);
    for (const work of [nvmet.export(wanted), nvmet.unexport(NQN), nvmet.list(), nvmet.allowHost(NQN, NQN)])
      await expect(work).rejects.toMatchObject({
        code: 'ENODEV',
        message: expect.stringContaining('load nvmet') as string,
      });
  });
});

describe('sysfs', () => {
  function write(file: string, text: string): void {
    fs.mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
    fs.writeFileSync(path.join(root, file), `${text}\n`);
  }

  it('shows subsystems with controllers, namespaces and paths, and nothing where there is nothing', async () => {
    const roots = { sys: root, dev: '/dev' };
    expect(await listSubsystems(roots)).toEqual([]);
    expect(await listControllers(roots)).toEqual([]);
    write('class/nvme-subsystem/nvme-subsys0/subsysnqn', NQN);
    for (const name of ['nvme0', 'nvme10', 'nvme2']) {
      write(`class/nvme-subsystem/nvme-subsys0/${name}/.keep`, '');
      write(`class/nvme/${name}/subsysnqn`, NQN);
      write(`class/nvme/${name}/state`, name === 'nvme2' ? 'connecting' : 'live');
      write(`class/nvme/${name}/transport`, 'tcp');
      write(`class/nvme/${name}/kato`, '5');
      write(`class/nvme/${name}/ctrl_loss_tmo`, 'off');
    }
    write('class/nvme-subsystem/nvme-subsys0/nvme0n1/.keep', '');
    write('class/nvme/nvme0/nvme0c0n1/ana_state', 'optimized');
    write('class/nvme/nvme2/nvme0c2n1/ana_state', 'inaccessible');
    write('class/block/nvme0n1/nsid', '4');
    write('class/block/nvme0n1/size', '2048');
    write('class/block/nvme0n1/ro', '1');
    write('class/block/nvme0n1/queue/logical_block_size', '4096');
    const [subsystem] = await listSubsystems(roots);
    expect(subsystem?.controllers.map(({ name, state }) => [name, state])).toEqual([
      ['nvme0', 'live'],
      ['nvme2', 'connecting'],
      ['nvme10', 'live'],
    ]);
    expect(subsystem?.controllers[0]).toMatchObject({ keepAliveS: 5, controllerLossS: null, path: '/dev/nvme0' });
    expect(subsystem?.namespaces).toMatchObject([
      {
        name: 'nvme0n1',
        nsid: 4,
        sizeBytes: 1 << 20,
        lbaBytes: 4096,
        readOnly: true,
        genericPath: null,
        paths: [
          { controller: 'nvme0', anaState: 'optimized' },
          { controller: 'nvme2', anaState: 'inaccessible' },
        ],
      },
    ]);
  });

  it('tells what a path is without opening it, and how much a command may carry', async () => {
    expect(await deviceNode('/etc/passwd')).toMatchObject({ kind: 'file', character: false });
    expect(await deviceNode('/etc')).toMatchObject({ kind: 'directory' });
    expect(await deviceNode('/dev/null')).toMatchObject({ kind: 'other', character: true });
    const node = {
      path: '/dev/nvme0n1',
      kind: 'namespace',
      sysfs: null,
      character: false,
      blockPath: '/dev/nvme0n1',
      genericPath: null,
    } as const;
    const roots = { sys: root, dev: '/dev' };
    expect(await kernelTransferBytesMax(node, roots)).toBeNull();
    write('class/block/nvme0n1/queue/max_hw_sectors_kb', '512');
    write('class/block/nvme0n1/queue/max_segments', '127');
    expect(await kernelTransferBytesMax(node, roots)).toBe(126 * 4096);
    write('class/block/nvme0n1/queue/max_segments', '1');
    expect(await kernelTransferBytesMax(node, roots)).toBe(4096);
  });
});
