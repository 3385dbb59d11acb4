import { CompletionQueue, type CompletionQueueOptions } from './completion-queue.js';
import { doAll, RdmaError } from './errors.js';
import { ProtectionDomain } from './memory.js';
import { type NativeAsyncEvent, type NativeDevice, native, nativeCall } from './native.js';
import type { QueuePair } from './queue-pair.js';

export interface DeviceName {
  /** 'mlx5_0', 'rxe0', … */
  readonly name: string;
  /** As 16 hexadecimal digits. */
  readonly nodeGuid: string;
  readonly nodeType: string;
  /** 'infiniband' for InfiniBand and RoCE, 'iwarp', … */
  readonly transport: string;
}

export interface Gid {
  readonly index: number;
  /** In the notation of an IPv6 address. */
  readonly gid: string;
  readonly type: 'ib' | 'roceV1' | 'roceV2';
  /** The network interface under it, for RoCE. */
  readonly netdev: string | null;
}

export interface Port {
  readonly number: number;
  readonly state: 'down' | 'init' | 'armed' | 'active' | 'activeDefer' | 'noPort';
  readonly linkLayer: 'ethernet' | 'infiniband' | 'unspecified';
  readonly activeMtuBytes: number;
  readonly maxMtuBytes: number;
  readonly lid: number;
  readonly maxMessageBytes: number;
  /** As the verbs number them. */
  readonly activeSpeed: number;
  readonly activeWidth: number;
  readonly gids: readonly Gid[];
}

export interface DeviceLimits {
  readonly firmwareVersion: string;
  readonly vendorId: number;
  readonly maxRegionBytes: number;
  readonly maxQueuePairs: number;
  /** Work requests per queue. */
  readonly maxWorkRequests: number;
  readonly maxSegments: number;
  readonly maxSegmentsRead: number;
  readonly maxCompletionQueues: number;
  readonly maxCompletionQueueDepth: number;
  readonly maxRegions: number;
  readonly maxWindows: number;
  readonly maxProtectionDomains: number;
  readonly maxSharedReceiveQueues: number;
  readonly maxSharedReceiveQueueWorkRequests: number;
  /** RDMA reads and atomics that a queue pair may have in flight to us; and from us. */
  readonly maxResponderResources: number;
  readonly maxInitiatorDepth: number;
  readonly atomics: 'none' | 'device' | 'global';
  /** Memory windows of type 2: bound by work request. */
  readonly windowsType2: boolean;
  readonly physicalPorts: number;
}

/** `ibv_event_type`, in words. */
export type AsyncEventType =
  | 'completionQueueError'
  | 'queuePairFatal'
  | 'queuePairRequestError'
  | 'queuePairAccessError'
  | 'communicationEstablished'
  | 'sendQueueDrained'
  | 'pathMigrated'
  | 'pathMigrationError'
  /** The device is gone, or about to go: close everything of it, the device last. */
  | 'deviceFatal'
  | 'portActive'
  | 'portError'
  | 'lidChange'
  | 'pkeyChange'
  | 'subnetManagerChange'
  | 'sharedReceiveQueueError'
  | 'sharedReceiveQueueLimitReached'
  | 'lastWorkRequestReached'
  | 'clientReregister'
  | 'gidChange'
  | 'workQueueFatal';

export interface AsyncEvent {
  readonly type: AsyncEventType;
  readonly queuePair: QueuePair | null;
  readonly port: number | null;
}

export type RdmaSupport =
  | { readonly usable: true; readonly devices: readonly DeviceName[] }
  /** `error` names what is missing, and `error.missing` which part of the machine it is. */
  | { readonly usable: false; readonly error: RdmaError };

/** Whether RDMA can be used on this machine, and what is missing if not. Never throws. */
export function rdmaSupport(): RdmaSupport {
  try {
    const devices = listDevices();
    return { usable: true, devices };
  } catch (error) {
    if (error instanceof RdmaError) return { usable: false, error };
    throw error;
  }
}

/** The RDMA devices of this machine, at least one. @throws {RdmaError} that names what is missing. */
export function listDevices(): readonly DeviceName[] {
  const addon = native();
  let devices: readonly DeviceName[];
  try {
    devices = addon.listDevices();
  } catch (cause) {
    throw new RdmaError(
      'ENODEV',
      'ibv_get_device_list',
      "RDMA can't be used here: the kernel module ib_uverbs is not loaded",
      {
        missing: 'module',
        cause,
      },
    );
  }
  if (devices.length === 0)
    throw new RdmaError(
      'ENODEV',
      'ibv_get_device_list',
      "RDMA can't be used here: there is no RDMA device (for RoCE in software: `rdma link add rxe0 type rxe netdev INTERFACE`)",
      { missing: 'device' },
    );
  return devices;
}

/** Memory for registration: at a page's boundary, all zeros. */
export function allocateMemory(lengthBytes: number): ArrayBuffer {
  if (!Number.isSafeInteger(lengthBytes) || lengthBytes < 1)
    throw new RangeError(`lengthBytes ${lengthBytes} is no length`);
  return nativeCall('memory', () => native().allocate(lengthBytes));
}

/** Objects of libibverbs and librdmacm that this process has, over all its threads: nothing may be left after everything was closed. */
export function liveObjects(): Readonly<Record<string, number>> {
  return native().liveObjects();
}

/**
 * An opened device. Owns the context, and through it everything made on it: `close` closes all of that first, in the
 * order that verbs want. One thread only; another thread opens the device again.
 *
 * Fault model: the device may vanish (`deviceFatal`; everything on it fails, closing works all the same).
 */
export class Device {
  readonly name: string;
  readonly limits: DeviceLimits;
  /** Port changes, removal, errors of queues. Called from the event loop. */
  onAsyncEvent: ((event: AsyncEvent) => void) | null = null;
  /** True after `deviceFatal`. */
  removed = false;
  /** @internal */ readonly native: NativeDevice;
  /** @internal */ readonly queuePairs = new Map<number, QueuePair>();
  /** @internal Draining or closed, with completions to come. */ readonly looking = new Set<QueuePair>();
  readonly #domains = new Set<ProtectionDomain>();
  readonly #completionQueues = new Set<CompletionQueue>();
  #closed = false;

  /** @throws {RdmaError} ENODEV when there is no device of that name. */
  static open(name: string): Device {
    if (typeof name !== 'string' || name === '') throw new TypeError('the name of a device is wanted');
    if (!listDevices().some((device) => device.name === name))
      throw new RdmaError('ENODEV', 'ibv_open_device', 'there is no such device', {
        object: `device ${name}`,
        missing: 'device',
      });
    return new Device(name);
  }

  private constructor(name: string) {
    this.name = name;
    const weak = new WeakRef(this);
    this.native = nativeCall(`device ${name}`, () =>
      native().openDevice(name, (event) => {
        const device = weak.deref();
        if (device !== undefined) device.#dispatch(event);
      }),
    );
    this.limits = this.native.limits as unknown as DeviceLimits;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Asked of the device each time. */
  ports(): readonly Port[] {
    return nativeCall(this.#object, () => this.native.ports()) as readonly Port[];
  }

  createProtectionDomain(): ProtectionDomain {
    const domain = new ProtectionDomain(
      this,
      nativeCall(this.#object, () => this.native.createProtectionDomain()),
      () => this.#domains.delete(domain),
    );
    this.#domains.add(domain);
    return domain;
  }

  createCompletionQueue(options: CompletionQueueOptions): CompletionQueue {
    const queue = new CompletionQueue(this, options, () => this.#completionQueues.delete(queue));
    this.#completionQueues.add(queue);
    return queue;
  }

  /**
   * Closes everything that was made on it, then the device, whatever of it refuses: the first refusal is thrown when all is done.
   * A second call does nothing.
   */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    doAll([
      ...[...this.#domains].map((domain) => () => domain.close()),
      ...[...this.#completionQueues].map((queue) => () => queue.close()),
      () => nativeCall(this.#object, () => this.native.close()),
    ]);
  }

  get #object(): string {
    return `device ${this.name}`;
  }

  #dispatch(event: NativeAsyncEvent): void {
    const queuePair = event.queuePair === undefined ? null : (this.queuePairs.get(event.queuePair) ?? null);
    const type = event.type as AsyncEventType;
    if (type === 'deviceFatal') {
      this.removed = true;
      for (const each of [...this.queuePairs.values()])
        each.fail(new RdmaError('ENODEV', type, 'the device is gone', { object: each.label }));
    } else if (
      queuePair !== null &&
      (type === 'queuePairFatal' || type === 'queuePairAccessError' || type === 'queuePairRequestError')
    ) {
      queuePair.fail(new RdmaError('EIO', type, 'the device put it into error', { object: queuePair.label }));
    }
    this.onAsyncEvent?.({ type, queuePair, port: event.port ?? null });
  }
}
