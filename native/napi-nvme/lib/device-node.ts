import fs from 'node:fs/promises';
import path from 'node:path';

/**
 * What a path leads to, as the kernel's sysfs tells it: nothing is opened, since opening some devices already does something.
 *
 * `namespace` is an NVMe namespace by either of its names: the block device /dev/nvmeXnY or the character device /dev/ngXnY.
 */
export type DeviceNodeKind = 'file' | 'directory' | 'block' | 'partition' | 'namespace' | 'controller' | 'other';

export interface DeviceNode {
  readonly path: string;
  readonly kind: DeviceNodeKind;
  /** Its folder in sysfs; null for what has none. */
  readonly sysfs: string | null;
  readonly character: boolean;
  /** Of a namespace: /dev/nvmeXnY and /dev/ngXnY, each null where the kernel has none. */
  readonly blockPath: string | null;
  readonly genericPath: string | null;
}

/** Where the kernel's views are; others only in tests. */
export interface SystemRoots {
  readonly sys: string;
  readonly dev: string;
}
export const SYSTEM_ROOTS: SystemRoots = { sys: '/sys', dev: '/dev' };

// Numbers of devices as glibc packs them.
export const major = (rdev: bigint): bigint => ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
export const minor = (rdev: bigint): bigint => (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);

/** @throws the system's error when the path leads nowhere. */
export async function deviceNode(devicePath: string, roots: SystemRoots = SYSTEM_ROOTS): Promise<DeviceNode> {
  const stats = await fs.stat(devicePath, { bigint: true });
  const plain = (kind: DeviceNodeKind): DeviceNode => ({
    path: devicePath,
    kind,
    sysfs: null,
    character: false,
    blockPath: null,
    genericPath: null,
  });
  if (stats.isFile()) return plain('file');
  if (stats.isDirectory()) return plain('directory');
  const character = stats.isCharacterDevice();
  if (!character && !stats.isBlockDevice()) return plain('other');
  const numbers = `${major(stats.rdev)}:${minor(stats.rdev)}`;
  const sysfs = await realPath(path.join(roots.sys, 'dev', character ? 'char' : 'block', numbers));
  const made = { ...plain(character ? 'other' : 'block'), sysfs, character };
  if (sysfs === null) return made;
  if (character) {
    const subsystem = path.basename((await realPath(path.join(sysfs, 'subsystem'))) ?? '');
    if (subsystem === 'nvme') return { ...made, kind: 'controller' };
    return subsystem === 'nvme-generic' ? { ...made, ...(await namespaceNames(sysfs, roots)) } : made;
  }
  if ((await readAttribute(sysfs, 'partition')) !== null) return { ...made, kind: 'partition' };
  return /^nvme\d+n\d+$/.test(path.basename(sysfs)) ? { ...made, ...(await namespaceNames(sysfs, roots)) } : made;
}

async function namespaceNames(
  sysfs: string,
  roots: SystemRoots,
): Promise<Pick<DeviceNode, 'kind' | 'blockPath' | 'genericPath'>> {
  const number = path.basename(sysfs).replace(/^(nvme|ng)/, '');
  const [blockPath, genericPath] = await Promise.all([
    nodeOf(path.join(roots.sys, 'class/block', `nvme${number}`), roots),
    nodeOf(path.join(roots.sys, 'class/nvme-generic', `ng${number}`), roots),
  ]);
  return { kind: 'namespace', blockPath, genericPath };
}

/** The device file of a folder in sysfs, if it is there and is that device. */
async function nodeOf(folder: string, roots: SystemRoots): Promise<string | null> {
  const numbers = await readAttribute(folder, 'dev');
  if (numbers === null) return null;
  const file = path.join(roots.dev, path.basename(folder));
  try {
    const { rdev } = await fs.stat(file, { bigint: true });
    return `${major(rdev)}:${minor(rdev)}` === numbers ? file : null;
  } catch {
    return null;
  }
}

/** One line of sysfs; null where the attribute isn't there or can't be read just now. */
export async function readAttribute(folder: string, name: string): Promise<string | null> {
  try {
    return (await fs.readFile(path.join(folder, name), 'utf8')).trim();
  } catch {
    return null;
  }
}

async function realPath(file: string): Promise<string | null> {
  try {
    return await fs.realpath(file);
  } catch {
    return null;
  }
}

/** Bytes that one command to this namespace may carry as the kernel sees it; null where it doesn't say. */
export async function kernelTransferBytesMax(
  node: DeviceNode,
  roots: SystemRoots = SYSTEM_ROOTS,
): Promise<number | null> {
  if (node.blockPath === null) return null;
  const queue = path.join(roots.sys, 'class/block', path.basename(node.blockPath), 'queue');
  const [kib, segments] = await Promise.all([
    readAttribute(queue, 'max_hw_sectors_kb'),
    readAttribute(queue, 'max_segments'),
  ]);
  if (kib === null || segments === null || !/^\d+$/.test(kib) || !/^\d+$/.test(segments)) return null;
  // Memory that begins within a page touches one page more than it fills.
  return Math.max(Math.min(Number(kib) * 1024, (Number(segments) - 1) * 4096), 4096);
}
