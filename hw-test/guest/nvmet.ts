/** The kernel's NVMe target through configfs, and connecting to it, for tests that need a namespace on a fabric. */
import { mkdirSync, readdirSync, readFileSync, rmdirSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { tool } from './tools.js';

const NVMET = '/sys/kernel/config/nvmet';

export interface TargetOptions {
  readonly nqn: string;
  readonly device: string;
  readonly transport: 'rdma' | 'tcp' | 'loop';
  readonly address: string;
  readonly port: number;
  /** Of the port in configfs; two targets at a time need two. */
  readonly portId: number;
}

/** Exports a block device; returns how to take it back. */
export function exportNamespace({ nqn, device, transport, address, port, portId }: TargetOptions): () => void {
  const subsystem = path.join(NVMET, 'subsystems', nqn);
  const namespace = path.join(subsystem, 'namespaces/1');
  const portFolder = path.join(NVMET, 'ports', `${portId}`);
  const link = path.join(portFolder, 'subsystems', nqn);
  mkdirSync(subsystem);
  writeFileSync(path.join(subsystem, 'attr_allow_any_host'), '1');
  mkdirSync(namespace);
  writeFileSync(path.join(namespace, 'device_path'), device);
  writeFileSync(path.join(namespace, 'enable'), '1');
  mkdirSync(portFolder);
  writeFileSync(path.join(portFolder, 'addr_trtype'), transport);
  if (transport !== 'loop') {
    writeFileSync(path.join(portFolder, 'addr_adrfam'), 'ipv4');
    writeFileSync(path.join(portFolder, 'addr_traddr'), address);
    writeFileSync(path.join(portFolder, 'addr_trsvcid'), `${port}`);
  }
  symlinkSync(subsystem, link);
  return () => {
    unlinkSync(link);
    rmdirSync(portFolder);
    writeFileSync(path.join(namespace, 'enable'), '0');
    rmdirSync(namespace);
    rmdirSync(subsystem);
  };
}

/** Connects and waits for the block device of the first namespace. */
export async function connectNamespace(
  options: Omit<TargetOptions, 'device' | 'portId'>,
  extra: readonly string[] = [],
): Promise<string> {
  const { nqn, transport, address, port } = options;
  const where = transport === 'loop' ? [] : ['-a', address, '-s', `${port}`];
  await tool('nvme', ['connect', '-t', transport, '-n', nqn, ...where, ...extra]);
  const endMs = performance.now() + 30_000;
  for (;;) {
    const device = namespaceOf(nqn);
    if (device !== null) return device;
    if (performance.now() > endMs) throw new Error(`${nqn} is connected but has no namespace`);
    await pause(25);
  }
}

/** The block device's name is the subsystem's or the controller's, depending on whether paths are shared: sysfs knows. */
function namespaceOf(nqn: string): string | null {
  const subsystems = '/sys/class/nvme-subsystem';
  for (const name of readdirSync(subsystems)) {
    const folder = path.join(subsystems, name);
    if (readFileSync(path.join(folder, 'subsysnqn'), 'utf8').trim() !== nqn) continue;
    const controllers = readdirSync(folder).filter((entry) => /^nvme\d+$/.test(entry));
    for (const where of [folder, ...controllers.map((controller) => path.join(folder, controller))]) {
      const found = readdirSync(where).find((entry) => /^nvme\d+n\d+$/.test(entry));
      if (found !== undefined) return `/dev/${found}`;
    }
  }
  return null;
}

/**
 * I/O to a lost controller fails after this time. Without it, I/O over RDMA waits for the reconnect, which ctrl-loss-tmo bounds only between
 * attempts: one attempt at a host that is off takes the connection manager over a minute. This nvme-cli has no option for it.
 */
export function failFast(nqn: string, seconds: number) {
  for (const name of readdirSync('/sys/class/nvme')) {
    const folder = path.join('/sys/class/nvme', name);
    if (readFileSync(path.join(folder, 'subsysnqn'), 'utf8').trim() === nqn) {
      writeFileSync(path.join(folder, 'fast_io_fail_tmo'), `${seconds}`);
    }
  }
}

export async function disconnect(nqn: string) {
  await tool('nvme', ['disconnect', '-n', nqn]);
}
