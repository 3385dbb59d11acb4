import fs from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { bounded, untilFound } from './bounded.js';
import { SYSTEM_ROOTS, type SystemRoots } from './device-node.js';
import { getLogPageCommand, LOG_PAGE } from './nvme-commands.js';
import { NvmeDevice } from './nvme-device.js';
import {
  DISCOVERY_ENTRY_BYTES,
  DISCOVERY_HEADER_BYTES,
  type DiscoveryEntry,
  type DiscoveryLog,
  parseDiscoveryLog,
} from './nvme-logs.js';
import { listControllers, listSubsystems, type NvmeNamespaceNode, readController } from './nvme-topology.js';

/**
 * NVMe over Fabrics, the host's side: discover, connect, disconnect, through the kernel's /dev/nvme-fabrics.
 *
 * Fault model: no such device (module not loaded), a target that isn't there, doesn't answer, refuses; a connect that succeeds after
 * nobody waits any more (it is undone); controllers that vanish meanwhile. The kernel keeps a lost controller for 600 s unless told otherwise: use
 * `timeoutsBelow` with the time after which others may take over.
 */
export interface FabricsAddress {
  readonly transport: 'rdma' | 'tcp' | 'loop';
  /** An IP address; not for loop. */
  readonly address?: string;
  /** A port number, 4420 unless said otherwise; not for loop. */
  readonly service?: string;
  /** The address to connect from. */
  readonly hostAddress?: string;
}

/** In whole seconds, the kernel's unit. */
export interface FabricsTimeouts {
  readonly keepAliveS: number;
  /** From the loss of a path until its I/O fails, instead of waiting for the path. */
  readonly fastIoFailS: number;
  /** From the loss until the controller is given up. */
  readonly controllerLossS: number;
  readonly reconnectDelayS: number;
}

export interface ConnectOptions extends FabricsAddress {
  readonly nqn: string;
  /** Who we are; /etc/nvme/hostnqn unless said otherwise, and if there is none, the kernel makes one up. */
  readonly hostNqn?: string;
  /** A UUID. */
  readonly hostId?: string;
  readonly timeouts?: FabricsTimeouts;
  readonly ioQueues?: number;
  /** For the connect itself. */
  readonly timeoutMs?: number;
}

export interface ConnectedController {
  /** nvmeX. */
  readonly name: string;
  readonly path: string;
  readonly controllerId: number;
}

/** Connect, discover or disconnect failed; `code` is the errno's name. */
export class FabricsError extends Error {
  override readonly name = 'FabricsError';
  constructor(
    readonly code: string,
    readonly operation: 'discover' | 'connect' | 'disconnect',
    /** The target's address and name, or the controller's. */
    readonly target: string,
    detail: string,
    cause?: unknown,
  ) {
    super(`${code}: ${detail}, ${operation} ${target}`, cause === undefined ? {} : { cause });
  }
}

export const DISCOVERY_NQN = 'nqn.2014-08.org.nvmexpress.discovery';
export const FABRICS_PORT = '4420';
const NQN_LENGTH_MAX = 223;
const CONNECT_TIMEOUT_MS = 10_000;
const DISCONNECT_TIMEOUT_MS = 30_000;
const NODE_TIMEOUT_MS = 5000;
const DISCOVERY_RECORDS_MAX = 1024;
const DISCOVERY_ATTEMPTS = 5;
const LEASE_MS_MIN = 4000;

/**
 * Timeouts that have a lost path's I/O failed, and its controller given up, before `leaseMs` are over. The kernel notices a silent target
 * after one and a half keep-alive times (an interval of half of it, then the command's own timeout).
 */
export function timeoutsBelow(leaseMs: number): FabricsTimeouts {
  if (!Number.isSafeInteger(leaseMs) || leaseMs < LEASE_MS_MIN)
    throw new RangeError(`the kernel counts in seconds: a lease of at least ${LEASE_MS_MIN} ms is wanted`);
  const quarterS = Math.floor(leaseMs / 4000);
  return { keepAliveS: quarterS, fastIoFailS: quarterS, controllerLossS: 2 * quarterS, reconnectDelayS: 1 };
}

/** How long after a target's silence its I/O has failed at the latest. */
export const ioFailsAfterMs = ({ keepAliveS, fastIoFailS }: FabricsTimeouts): number =>
  keepAliveS * 1500 + fastIoFailS * 1000;

/** The line that the kernel wants. @throws {RangeError} for what would not be one option's value. */
export function connectLine(options: ConnectOptions): string {
  const { transport, timeouts } = options;
  if (!['rdma', 'tcp', 'loop'].includes(transport)) throw new RangeError(`no transport ${String(transport)}`);
  const pairs: [string, string | number | undefined][] = [
    ['transport', transport],
    ['traddr', transport === 'loop' ? undefined : ipAddress(options.address)],
    ['trsvcid', transport === 'loop' ? undefined : portNumber(options.service ?? FABRICS_PORT)],
    ['host_traddr', options.hostAddress === undefined ? undefined : ipAddress(options.hostAddress)],
    ['nqn', checkNqn(options.nqn)],
    ['hostnqn', options.hostNqn === undefined ? undefined : checkNqn(options.hostNqn)],
    ['hostid', options.hostId === undefined ? undefined : uuid(options.hostId)],
    ['nr_io_queues', options.ioQueues === undefined ? undefined : seconds('ioQueues', options.ioQueues, 1)],
  ];
  if (timeouts !== undefined) {
    const { keepAliveS, fastIoFailS, controllerLossS, reconnectDelayS } = timeouts;
    pairs.push(['keep_alive_tmo', seconds('keepAliveS', keepAliveS, 1)]);
    // The loop transport has no path to lose.
    if (transport !== 'loop')
      pairs.push(
        ['reconnect_delay', seconds('reconnectDelayS', reconnectDelayS, 1)],
        ['ctrl_loss_tmo', seconds('controllerLossS', controllerLossS, 0)],
        ['fast_io_fail_tmo', seconds('fastIoFailS', fastIoFailS, 0)],
      );
  }
  return pairs.flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`])).join(',');
}

/** An NVMe qualified name: at most 223 bytes, no blank, no comma, nothing that is not printable. */
export function checkNqn(nqn: string): string {
  if (typeof nqn !== 'string' || nqn.length > NQN_LENGTH_MAX || !/^nqn\.[!-+\--.0-~]+$/.test(nqn))
    throw new RangeError(`no NVMe qualified name: ${JSON.stringify(nqn)}`);
  return nqn;
}

function ipAddress(address: string | undefined): string {
  if (address === undefined || net.isIP(address) === 0) throw new RangeError(`no IP address: ${String(address)}`);
  return address;
}

function portNumber(service: string): string {
  if (!/^\d{1,5}$/.test(service) || Number(service) < 1 || Number(service) > 65_535)
    throw new RangeError(`no port number: ${service}`);
  return service;
}

function uuid(text: string): string {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)) throw new RangeError(`no UUID: ${text}`);
  return text;
}

function seconds(name: string, value: number, min: number): number {
  if (!Number.isInteger(value) || value < min || value > 86_400)
    throw new RangeError(`${name} is a whole number from ${min} to 86400`);
  return value;
}

/** This host's name in /etc/nvme/hostnqn; null where there is none. */
export async function hostNqn(file = '/etc/nvme/hostnqn'): Promise<string | null> {
  try {
    const text = (await fs.readFile(file, 'utf8')).trim();
    return text === '' ? null : checkNqn(text);
  } catch {
    return null;
  }
}

const describe = (options: ConnectOptions): string =>
  options.transport === 'loop'
    ? `${options.nqn} over loop`
    : `${options.nqn} over ${options.transport} at ${options.address} port ${options.service ?? FABRICS_PORT}`;

/** @throws {FabricsError} */
export async function connect(
  options: ConnectOptions,
  roots: SystemRoots = SYSTEM_ROOTS,
): Promise<ConnectedController> {
  return establish(options, 'connect', roots);
}

async function establish(
  options: ConnectOptions,
  operation: 'connect' | 'discover',
  roots: SystemRoots,
): Promise<ConnectedController> {
  const target = describe(options);
  const timeoutMs = options.timeoutMs ?? CONNECT_TIMEOUT_MS;
  const known = options.hostNqn ?? (await hostNqn()) ?? undefined;
  const line = connectLine(known === undefined ? options : { ...options, hostNqn: known });
  // The kernel's own attempt takes minutes where nobody answers, and can't be called off.
  if (options.transport === 'tcp') await reach(options, timeoutMs, operation, target);
  const attempt = writeFabrics(line, roots).catch((error: unknown) => {
    throw connectFailure(error, operation, target);
  });
  const undo = (made: ConnectedController): void => void disconnect(made.name, {}, roots).catch(() => undefined);
  try {
    return await bounded(attempt, timeoutMs, `${operation} ${target}`, undo);
  } catch (error) {
    if (error instanceof FabricsError || error instanceof RangeError) throw error;
    throw new FabricsError('ETIMEDOUT', operation, target, `the target does not answer within ${timeoutMs} ms`, error);
  }
}

async function writeFabrics(line: string, roots: SystemRoots): Promise<ConnectedController> {
  const file = await fs.open(path.join(roots.dev, 'nvme-fabrics'), 'r+');
  try {
    await file.write(line);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(256), 0, 256, null);
    const answer = buffer.toString('utf8', 0, bytesRead);
    const instance = /instance=(\d+)/.exec(answer)?.[1];
    const controllerId = /cntlid=(\d+)/.exec(answer)?.[1];
    if (instance === undefined || controllerId === undefined)
      throw new Error(`the kernel answers ${JSON.stringify(answer)}`);
    const name = `nvme${instance}`;
    return { name, path: path.join(roots.dev, name), controllerId: Number(controllerId) };
  } finally {
    await file.close();
  }
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'the kernel has no NVMe over Fabrics: load nvme-tcp or nvme-rdma',
  ENODEV: 'the kernel has no NVMe over Fabrics: load nvme-tcp or nvme-rdma',
  EACCES: 'this process may not connect controllers',
  EPERM: 'this process may not connect controllers',
  EINVAL: 'the kernel refuses the parameters, or the module of this transport is not loaded',
  EALREADY: 'it is connected already',
  ECONNREFUSED: 'nobody listens there, or the target refuses this host',
  ECONNRESET: 'the target closed the connection',
  EHOSTUNREACH: 'there is no way to that address',
  ENETUNREACH: 'there is no way to that network',
  EIO: 'the target refuses: no such subsystem, or this host is not allowed (the kernel’s log says which)',
  ETIMEDOUT: 'the target does not answer',
};

function connectFailure(error: unknown, operation: 'connect' | 'discover', target: string): FabricsError {
  const found = (error as { code?: unknown }).code;
  const code = typeof found === 'string' ? found : 'EIO';
  const told = error instanceof Error ? error.message : String(error);
  const detail = typeof found === 'string' ? (REASONS[code] ?? told) : told;
  return new FabricsError(code, operation, target, detail, error);
}

function reach(
  options: ConnectOptions,
  timeoutMs: number,
  operation: 'connect' | 'discover',
  target: string,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({
      host: options.address!,
      port: Number(options.service ?? FABRICS_PORT),
      ...(options.hostAddress === undefined ? {} : { localAddress: options.hostAddress }),
    });
    const fail = (error: unknown): void => {
      socket.destroy();
      reject(connectFailure(error, operation, target));
    };
    socket.setTimeout(timeoutMs, () => fail(Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })));
    socket.once('error', fail);
    socket.once('connect', () => {
      socket.destroy();
      resolve();
    });
  });
}

/** What a target offers. @throws {FabricsError} */
export async function discover(
  address: FabricsAddress & Pick<ConnectOptions, 'hostNqn' | 'hostId' | 'timeoutMs'>,
  roots: SystemRoots = SYSTEM_ROOTS,
): Promise<readonly DiscoveryEntry[]> {
  const options = { ...address, nqn: DISCOVERY_NQN };
  const controller = await establish(options, 'discover', roots);
  try {
    await untilFound(() => exists(controller.path), NODE_TIMEOUT_MS, `${controller.path} appears`);
    const device = await NvmeDevice.open(controller.path);
    try {
      return await readDiscoveryLog(device, describe(options));
    } finally {
      await device.close();
    }
  } finally {
    await disconnect(controller.name, {}, roots);
  }
}

/** Again from the start when it changed while it was read (Fabrics 1.1, section 5.3). */
async function readDiscoveryLog(device: NvmeDevice, target: string): Promise<readonly DiscoveryEntry[]> {
  const read = async (lengthBytes: number): Promise<DiscoveryLog> => {
    const { data } = await device.send(getLogPageCommand(LOG_PAGE.discovery, lengthBytes, { nsid: 0 }));
    return parseDiscoveryLog(data ?? new Uint8Array(0));
  };
  for (let attempt = 0; attempt < DISCOVERY_ATTEMPTS; attempt++) {
    const header = await read(DISCOVERY_HEADER_BYTES);
    if (header.recordCount === 0) return [];
    if (header.recordCount > DISCOVERY_RECORDS_MAX)
      throw new FabricsError('EOVERFLOW', 'discover', target, `the target claims ${header.recordCount} records`);
    const log = await read(DISCOVERY_HEADER_BYTES + header.recordCount * DISCOVERY_ENTRY_BYTES);
    if (log.generation === header.generation) return log.entries;
  }
  throw new FabricsError('EAGAIN', 'discover', target, 'the log changes faster than it can be read');
}

async function exists(file: string): Promise<true | null> {
  try {
    await fs.access(file);
    return true;
  } catch {
    return null;
  }
}

/** Gives a controller up; waits until it is gone. @throws {FabricsError} ENOENT when it isn't there, EINVAL for one of this machine's own */
export async function disconnect(
  controller: string,
  options: { readonly timeoutMs?: number } = {},
  roots: SystemRoots = SYSTEM_ROOTS,
): Promise<void> {
  const fail = (code: string, detail: string, cause?: unknown): FabricsError =>
    new FabricsError(code, 'disconnect', controller, detail, cause);
  if (!/^nvme\d+$/.test(controller)) throw fail('EINVAL', 'a controller is called nvmeX');
  const node = await readController(controller, roots);
  if (node === null) throw fail('ENOENT', 'there is no such controller');
  if (!['rdma', 'tcp', 'loop', 'fc'].includes(node.transport))
    throw fail('EINVAL', `it is connected by ${node.transport}, not over a fabric`);
  const timeoutMs = options.timeoutMs ?? DISCONNECT_TIMEOUT_MS;
  try {
    await bounded(
      fs.writeFile(path.join(roots.sys, 'class/nvme', controller, 'delete_controller'), '1'),
      timeoutMs,
      `disconnect ${controller}`,
    );
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    // Somebody else was quicker, or the kernel gave it up.
    if ((code === 'ENOENT' || code === 'ENODEV') && (await readController(controller, roots)) === null) return;
    throw fail(typeof code === 'string' ? code : 'EIO', error instanceof Error ? error.message : String(error), error);
  }
}

/** All controllers of a subsystem. @returns how many they were */
export async function disconnectSubsystem(nqn: string, roots: SystemRoots = SYSTEM_ROOTS): Promise<number> {
  const found = (await listControllers(roots)).filter(
    ({ subsystemNqn, transport }) => subsystemNqn === nqn && transport !== 'pcie',
  );
  for (const { name } of found)
    await disconnect(name, {}, roots).catch((error: unknown) => {
      if (!(error instanceof FabricsError) || error.code !== 'ENOENT') throw error;
    });
  return found.length;
}

/** Namespaces appear some time after connect has answered. @throws {TimeLimitError} */
export function waitForNamespace(
  controller: string,
  nsid: number,
  options: { readonly timeoutMs?: number } = {},
  roots: SystemRoots = SYSTEM_ROOTS,
): Promise<NvmeNamespaceNode> {
  const ask = async (): Promise<NvmeNamespaceNode | null> => {
    for (const { controllers, namespaces } of await listSubsystems(roots)) {
      if (!controllers.some(({ name }) => name === controller)) continue;
      const found = namespaces.find((one) => one.nsid === nsid && one.paths.some((p) => p.controller === controller));
      if (found === undefined || found.sizeBytes === 0) continue;
      if (
        (await exists(found.blockPath)) !== null &&
        found.genericPath !== null &&
        (await exists(found.genericPath)) !== null
      )
        return found;
    }
    return null;
  };
  return untilFound(ask, options.timeoutMs ?? NODE_TIMEOUT_MS, `namespace ${nsid} of ${controller} appears`);
}
