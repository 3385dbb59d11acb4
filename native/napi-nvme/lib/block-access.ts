import fs from 'node:fs/promises';
import { deviceNode, kernelTransferBytesMax, readAttribute } from './device-node.js';
import type { NativeGeometry } from './native.js';
import { NvmeDevice } from './nvme-device.js';
import type { IdentifyController, IdentifyNamespace, IdentifyNvmController, LbaFormat } from './nvme-identify.js';

/**
 * How a path is worked with: NVMe commands passed through, the kernel's block device, or a file; and why.
 *
 * Passing through is taken wherever it can be: a whole namespace, the kernel's character device for it, a ring with room for commands, the
 * right to use them, and a format that the engine writes. What can't be done that way is done through the block device.
 */
export type BlockAccess = 'passthrough' | 'block' | 'file';

/** What an NVMe namespace is, as far as its user should know. */
export interface NamespaceInfo {
  readonly nsid: number;
  readonly model: string;
  readonly serial: string;
  readonly firmware: string;
  readonly subsystemNqn: string;
  readonly nguid: string;
  readonly eui64: string;
  readonly format: LbaFormat;
  readonly protectionType: 0 | 1 | 2 | 3;
  readonly volatileWriteCache: boolean;
  readonly writeProtected: boolean;
  readonly transferBytesMax: number;
  readonly can: {
    readonly discard: boolean;
    readonly writeZeroes: boolean;
    readonly compare: boolean;
    readonly verify: boolean;
  };
}

export interface AccessChoice {
  readonly access: BlockAccess;
  readonly reason: string;
  /** What to open: of a namespace, the character or the block device, whichever name was given. */
  readonly path: string;
  readonly geometry: NativeGeometry | null;
  readonly namespace: NamespaceInfo | null;
}

export const ACCESS_WISHES = ['auto', 'passthrough', 'block'] as const;
export type AccessWish = (typeof ACCESS_WISHES)[number];

/** A namespace that can't be passed through, although nothing is wrong with it. */
class Unsuitable extends Error {}

export async function chooseAccess(
  path: string,
  wish: AccessWish,
  passesCommands: boolean,
  commandTimeoutMs: number,
): Promise<AccessChoice> {
  // What can't even be looked at is for open(2) to report.
  const node = await deviceNode(path).catch(() => null);
  const plain = (access: BlockAccess, reason: string, opened = path): AccessChoice => ({
    access,
    reason,
    path: opened,
    geometry: null,
    namespace: null,
  });
  if (node === null) return plain('file', 'not to be looked at');
  if (node.kind !== 'namespace') {
    const refusal = {
      file: 'a regular file',
      directory: 'a directory',
      block: 'a block device that is no NVMe namespace',
      partition: 'a partition: commands go to whole namespaces',
      controller: 'a controller, not one of its namespaces',
      other: 'no NVMe device',
    }[node.kind];
    if (wish === 'passthrough' || node.kind === 'controller' || (node.character && node.kind === 'other'))
      throw refused('ENOTBLK', refusal, path);
    return plain(node.kind === 'block' || node.kind === 'partition' ? 'block' : 'file', refusal);
  }
  const fallBack = (code: string, reason: string): AccessChoice => {
    if (wish === 'passthrough' || node.character || node.blockPath === null) throw refused(code, reason, path);
    return plain('block', reason);
  };
  if (wish === 'block') return node.character ? fallBack('ENOTBLK', 'a character device') : plain('block', 'asked for');
  if (!passesCommands) return fallBack('EOPNOTSUPP', 'the kernel has no io_uring commands (Linux 5.19)');
  if (node.genericPath === null) return fallBack('ENODEV', 'the kernel has no character device for the namespace');
  try {
    const { geometry, namespace } = await describe(
      node.genericPath,
      await kernelTransferBytesMax(node),
      commandTimeoutMs,
    );
    return { access: 'passthrough', reason: 'an NVMe namespace', path: node.genericPath, geometry, namespace };
  } catch (error) {
    if (error instanceof Unsuitable) return fallBack('EOPNOTSUPP', error.message);
    const code = (error as { code?: unknown }).code;
    if (code === 'EACCES' || code === 'EPERM') return fallBack(code, 'NVMe commands are not permitted to this process');
    throw error;
  }
}

async function describe(
  path: string,
  kernelBytesMax: number | null,
  timeoutMs: number,
): Promise<{ geometry: NativeGeometry; namespace: NamespaceInfo }> {
  const device = await NvmeDevice.open(path, { readOnly: true });
  try {
    const nsid = device.nsid;
    if (nsid === null) throw refused('ENODEV', 'not a namespace any more', path);
    const controller = await device.identifyController();
    const namespace = await device.identifyNamespace();
    const limits = await device.identifyNvmController();
    if (namespace.metadata !== 'none') await checkMetadata(device, controller, namespace);
    const geometry = geometryOf({ nsid, controller, namespace, limits, kernelBytesMax, timeoutMs });
    return { geometry, namespace: infoOf(controller, namespace, geometry) };
  } finally {
    await device.close();
  }
}

/** Metadata is left to the controller, which makes and strips it if it is protection information and nothing else. */
async function checkMetadata(
  device: NvmeDevice,
  controller: IdentifyController,
  namespace: IdentifyNamespace,
): Promise<void> {
  const { format, protection } = namespace;
  if (protection.type === 0 || format.metadataBytes !== 8)
    throw new Unsuitable(
      `its format has ${format.metadataBytes} bytes of metadata, which only the kernel's block layer fills`,
    );
  if (controller.has.extendedLbaFormats && !(await device.hasShortGuard(format.index)))
    throw new Unsuitable('its protection information has a long guard');
}

const MIB = 2 ** 20;
/** Where the controller has no limit of its own, nor the kernel: enough to keep any device busy. */
const TRANSFER_BYTES_DEFAULT = MIB;
const U32_MAX = 2 ** 32 - 1;

/** What the engine must know to write commands. Units of MDTS and its kin are the controller's smallest pages, taken as 4 KiB as the kernel does. */
export function geometryOf(of: {
  readonly nsid: number;
  readonly controller: IdentifyController;
  readonly namespace: IdentifyNamespace;
  readonly limits: IdentifyNvmController | null;
  readonly kernelBytesMax: number | null;
  readonly timeoutMs: number;
}): NativeGeometry {
  const { controller, namespace, limits } = of;
  const { lbaBytes } = namespace.format;
  const pages = (exponent: number): number | null => (exponent === 0 ? null : 4096 * 2 ** Math.min(exponent, 30));
  const blocks = (bytes: number): number => Math.min(Math.max(Math.floor(bytes / lbaBytes), 1), U32_MAX);
  if (lbaBytes < 512 || lbaBytes > 65_536) throw new Unsuitable(`its blocks have ${lbaBytes} bytes`);
  if (!Number.isSafeInteger(namespace.sizeBytes)) throw new RangeError('a namespace of more than 8 PiB');
  const transferBytes = Math.min(
    pages(controller.mdts) ?? Number.POSITIVE_INFINITY,
    of.kernelBytesMax ?? TRANSFER_BYTES_DEFAULT,
  );
  return {
    nsid: of.nsid,
    lbaBytes,
    lbaCount: Number(namespace.nsze),
    protectionType: namespace.protection.type,
    optionalCommands: controller.oncs,
    transferBlocksMax: Math.min(blocks(transferBytes), 65_536),
    boundaryBlocks: namespace.noiob,
    zeroesBlocksMax: blocks(pages(limits?.wzsl ?? 0) ?? transferBytes),
    verifyBlocksMax: blocks(pages(limits?.vsl ?? 0) ?? transferBytes),
    deallocateBlocksMax: limits === null || limits.dmrsl === 0 ? U32_MAX : limits.dmrsl,
    timeoutMs: of.timeoutMs,
  };
}

function infoOf(controller: IdentifyController, namespace: IdentifyNamespace, geometry: NativeGeometry): NamespaceInfo {
  const { has } = controller;
  return {
    nsid: geometry.nsid,
    model: controller.mn,
    serial: controller.sn,
    firmware: controller.fr,
    subsystemNqn: controller.subnqn,
    nguid: namespace.nguid,
    eui64: namespace.eui64,
    format: namespace.format,
    protectionType: namespace.protection.type,
    volatileWriteCache: has.volatileWriteCache,
    writeProtected: namespace.writeProtected,
    transferBytesMax: geometry.transferBlocksMax * geometry.lbaBytes,
    can: {
      discard: has.datasetManagement,
      writeZeroes: has.writeZeroes,
      compare: has.compare && namespace.protection.type === 0,
      verify: has.verify,
    },
  };
}

function refused(code: string, reason: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${reason}, open '${path}'`), { code, syscall: 'open', path });
}

/** How large it is now. Of a namespace the controller is asked, of a block device the kernel. */
export async function currentSizeBytes(path: string, access: BlockAccess): Promise<number> {
  if (access === 'file') return (await fs.stat(path)).size;
  if (access === 'block') {
    const { sysfs } = await deviceNode(path);
    const sectors = sysfs === null ? null : await readAttribute(sysfs, 'size');
    if (sectors === null) throw refused('ENODEV', 'the device is gone', path);
    return Number(sectors) * 512;
  }
  const device = await NvmeDevice.open(path, { readOnly: true });
  try {
    return (await device.identifyNamespace()).sizeBytes;
  } finally {
    await device.close();
  }
}
