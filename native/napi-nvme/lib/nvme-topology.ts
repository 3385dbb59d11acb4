import fs from 'node:fs/promises';
import path from 'node:path';
import { readAttribute, SYSTEM_ROOTS, type SystemRoots } from './device-node.js';

/**
 * The NVMe subsystems of this machine, their controllers (paths to them) and namespaces, as the kernel's sysfs has them. Nothing is opened and
 * no controller is asked, so this answers at once whatever state the paths are in. What vanishes while it is looked at is left out.
 */
export interface NvmeNamespacePath {
  readonly controller: string;
  /** Of asymmetric access: optimized, non-optimized, inaccessible, …; null where there is none. */
  readonly anaState: string | null;
}

export interface NvmeNamespaceNode {
  /** nvmeXnY. */
  readonly name: string;
  readonly nsid: number;
  readonly blockPath: string;
  readonly genericPath: string | null;
  readonly sizeBytes: number;
  readonly lbaBytes: number;
  readonly wwid: string | null;
  readonly uuid: string | null;
  readonly nguid: string | null;
  readonly readOnly: boolean;
  readonly paths: readonly NvmeNamespacePath[];
}

export interface NvmeControllerNode {
  /** nvmeX. */
  readonly name: string;
  readonly path: string;
  readonly transport: string;
  /** As the transport writes it: a PCI address, or `traddr=…,trsvcid=…`. */
  readonly address: string;
  /** live, connecting, resetting, deleting, … */
  readonly state: string;
  readonly controllerId: number | null;
  readonly subsystemNqn: string;
  readonly hostNqn: string | null;
  readonly model: string;
  readonly serial: string;
  readonly firmware: string;
  /** Null where the transport has none. */
  readonly keepAliveS: number | null;
  readonly controllerLossS: number | null;
  readonly fastIoFailS: number | null;
  readonly reconnectDelayS: number | null;
}

export interface NvmeSubsystemNode {
  readonly name: string;
  readonly nqn: string;
  readonly model: string;
  readonly serial: string;
  readonly controllers: readonly NvmeControllerNode[];
  readonly namespaces: readonly NvmeNamespaceNode[];
}

const CONTROLLER = /^nvme\d+$/;
const NAMESPACE = /^nvme\d+n\d+$/;
const PATH = /^nvme\d+c\d+n\d+$/;

export async function listSubsystems(roots: SystemRoots = SYSTEM_ROOTS): Promise<NvmeSubsystemNode[]> {
  const folder = path.join(roots.sys, 'class/nvme-subsystem');
  const names = await list(folder);
  const made = await Promise.all(names.map((name) => subsystem(path.join(folder, name), roots)));
  return made.filter((one) => one !== null);
}

export async function listControllers(roots: SystemRoots = SYSTEM_ROOTS): Promise<NvmeControllerNode[]> {
  const names = (await list(path.join(roots.sys, 'class/nvme'))).filter((name) => CONTROLLER.test(name));
  const made = await Promise.all(names.map((name) => readController(name, roots)));
  return made.filter((one) => one !== null);
}

/** Null when it isn't there. */
export async function readController(
  name: string,
  roots: SystemRoots = SYSTEM_ROOTS,
): Promise<NvmeControllerNode | null> {
  const folder = path.join(roots.sys, 'class/nvme', name);
  const get = (attribute: string): Promise<string | null> => readAttribute(folder, attribute);
  const nqn = await get('subsysnqn');
  if (nqn === null) return null;
  return {
    name,
    path: path.join(roots.dev, name),
    transport: (await get('transport')) ?? 'unknown',
    address: (await get('address')) ?? '',
    state: (await get('state')) ?? 'gone',
    controllerId: wholeNumber(await get('cntlid')),
    subsystemNqn: nqn,
    hostNqn: await get('hostnqn'),
    model: (await get('model')) ?? '',
    serial: (await get('serial')) ?? '',
    firmware: (await get('firmware_rev')) ?? '',
    keepAliveS: wholeNumber(await get('kato')),
    controllerLossS: wholeNumber(await get('ctrl_loss_tmo')),
    fastIoFailS: wholeNumber(await get('fast_io_fail_tmo')),
    reconnectDelayS: wholeNumber(await get('reconnect_delay')),
  };
}

async function subsystem(folder: string, roots: SystemRoots): Promise<NvmeSubsystemNode | null> {
  const nqn = await readAttribute(folder, 'subsysnqn');
  if (nqn === null) return null;
  const entries = await list(folder);
  const controllers = (
    await Promise.all(entries.filter((name) => CONTROLLER.test(name)).map((name) => readController(name, roots)))
  ).filter((one) => one !== null);
  // With several paths a namespace stands at the subsystem and its paths at the controllers, else it stands at its controller.
  const found = new Map<string, NvmeNamespacePath[]>(
    entries.filter((name) => NAMESPACE.test(name)).map((name) => [name, []]),
  );
  for (const { name: controller } of controllers) {
    const controllerFolder = path.join(roots.sys, 'class/nvme', controller);
    for (const entry of await list(controllerFolder)) {
      if (!NAMESPACE.test(entry) && !PATH.test(entry)) continue;
      const name = entry.replace(/c\d+n/, 'n');
      const anaState = await readAttribute(path.join(controllerFolder, entry), 'ana_state');
      found.set(name, [...(found.get(name) ?? []), { controller, anaState }]);
    }
  }
  const namespaces = (await Promise.all([...found].map(([name, paths]) => namespace(name, paths, roots)))).filter(
    (one) => one !== null,
  );
  return {
    name: path.basename(folder),
    nqn,
    model: (await readAttribute(folder, 'model')) ?? '',
    serial: (await readAttribute(folder, 'serial')) ?? '',
    controllers,
    namespaces: namespaces.sort((a, b) => a.nsid - b.nsid),
  };
}

async function namespace(
  name: string,
  paths: readonly NvmeNamespacePath[],
  roots: SystemRoots,
): Promise<NvmeNamespaceNode | null> {
  const folder = path.join(roots.sys, 'class/block', name);
  const nsid = wholeNumber(await readAttribute(folder, 'nsid'));
  if (nsid === null) return null;
  const generic = name.replace('nvme', 'ng');
  const hasGeneric = (await readAttribute(path.join(roots.sys, 'class/nvme-generic', generic), 'dev')) !== null;
  return {
    name,
    nsid,
    blockPath: path.join(roots.dev, name),
    genericPath: hasGeneric ? path.join(roots.dev, generic) : null,
    sizeBytes: (wholeNumber(await readAttribute(folder, 'size')) ?? 0) * 512,
    lbaBytes: wholeNumber(await readAttribute(path.join(folder, 'queue'), 'logical_block_size')) ?? 512,
    wwid: await readAttribute(folder, 'wwid'),
    uuid: await readAttribute(folder, 'uuid'),
    nguid: await readAttribute(folder, 'nguid'),
    readOnly: (await readAttribute(folder, 'ro')) === '1',
    paths,
  };
}

async function list(folder: string): Promise<string[]> {
  try {
    return (await fs.readdir(folder)).sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  } catch {
    return [];
  }
}

function wholeNumber(text: string | null): number | null {
  return text !== null && /^-?\d+$/.test(text) ? Number(text) : null;
}
