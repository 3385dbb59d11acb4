import type { Device } from './device.js';
import { doAll } from './errors.js';
import {
  type NativeMemoryRegion,
  type NativeMemoryWindow,
  type NativeProtectionDomain,
  native,
  nativeCall,
} from './native.js';
import { SharedReceiveQueue, type SharedReceiveQueueOptions } from './shared-receive-queue.js';

/** What may be done to registered memory beside reading it locally. Remote write and atomics imply local write. */
export interface Access {
  /** The device may write into it for us: receives, RDMA reads, atomic results. */
  readonly localWrite?: boolean;
  readonly remoteRead?: boolean;
  readonly remoteWrite?: boolean;
  readonly remoteAtomic?: boolean;
  /** Memory windows may be bound on it. Nothing remote is allowed by that alone. */
  readonly windowBind?: boolean;
  /** Remote addresses count from 0 instead of from the memory's address. */
  readonly zeroBased?: boolean;
  /** The device may reorder its writes to it (PCIe); ignored where it can't. */
  readonly relaxedOrdering?: boolean;
}

/** A piece of a region: of at least one byte. */
export interface LocalSegment {
  readonly region: MemoryRegion;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** Memory of the peer, as it told us. */
export interface RemoteSegment {
  readonly address: number;
  readonly key: number;
}

export interface RegisterOptions extends Access {
  /** The part of the buffer that is registered; all of it unless said otherwise. */
  readonly offsetBytes?: number;
  readonly lengthBytes?: number;
}

/** @internal */
export function accessBits(access: Access): number {
  const { access: bits } = native().abi;
  let value = 0;
  if (access.localWrite || access.remoteWrite || access.remoteAtomic) value |= bits.localWrite;
  if (access.remoteRead) value |= bits.remoteRead;
  if (access.remoteWrite) value |= bits.remoteWrite;
  if (access.remoteAtomic) value |= bits.remoteAtomic;
  if (access.windowBind) value |= bits.windowBind;
  if (access.zeroBased) value |= bits.zeroBased;
  if (access.relaxedOrdering) value |= bits.relaxedOrdering;
  return value;
}

/**
 * A protection domain: regions, windows, shared receive queues and queue pairs work together only within one.
 * `close` closes everything that was made in it.
 */
export class ProtectionDomain {
  readonly device: Device;
  /** @internal */ readonly native: NativeProtectionDomain;
  readonly #regions = new Set<MemoryRegion>();
  readonly #windows = new Set<MemoryWindow>();
  readonly #receiveQueues = new Set<SharedReceiveQueue>();
  readonly #onClose: () => void;
  #closed = false;

  /** @internal Use `device.createProtectionDomain()`. */
  constructor(device: Device, nativeDomain: NativeProtectionDomain, onClose: () => void) {
    this.device = device;
    this.native = nativeDomain;
    this.#onClose = onClose;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Registers memory with the device, which pins it: counts against `ulimit -l`, takes about a millisecond per few hundred
   * megabytes, on this thread. Any ArrayBuffer that is neither resizable nor shared; for good performance one that begins at a
   * page's boundary. The memory stays while the region is open, whoever else lets go of it; don't transfer the buffer meanwhile.
   * @throws {RdmaError} ENOMEM at the limit on locked memory; EINVAL for access that the device doesn't have.
   */
  registerMemory(buffer: ArrayBuffer, options: RegisterOptions = {}): MemoryRegion {
    if (!(buffer instanceof ArrayBuffer)) throw new TypeError('registerMemory wants an ArrayBuffer');
    if ((buffer as ArrayBuffer & { resizable?: boolean }).resizable)
      throw new TypeError('a resizable ArrayBuffer can lose memory that the device writes into');
    const offsetBytes = options.offsetBytes ?? 0;
    if (!Number.isSafeInteger(offsetBytes) || offsetBytes < 0)
      throw new RangeError(`offsetBytes ${offsetBytes} is no offset`);
    const lengthBytes = options.lengthBytes ?? buffer.byteLength - offsetBytes;
    if (!Number.isSafeInteger(lengthBytes) || lengthBytes < 1 || offsetBytes + lengthBytes > buffer.byteLength)
      throw new RangeError(`${lengthBytes} bytes at ${offsetBytes} are not inside of ${buffer.byteLength} bytes`);
    const made = nativeCall(`${lengthBytes} bytes`, () =>
      this.native.registerMemory(buffer, offsetBytes, lengthBytes, accessBits(options)),
    );
    const region = new MemoryRegion(this, made, buffer, offsetBytes, lengthBytes, () => this.#regions.delete(region));
    this.#regions.add(region);
    return region;
  }

  /** A window of type 2, not yet bound to anything. @throws {RdmaError} EOPNOTSUPP where `limits.windowsType2` is false. */
  allocateWindow(): MemoryWindow {
    const made = nativeCall('memory window', () => this.native.allocateWindow());
    const window = new MemoryWindow(this, made, () => this.#windows.delete(window));
    this.#windows.add(window);
    return window;
  }

  createSharedReceiveQueue(options: SharedReceiveQueueOptions): SharedReceiveQueue {
    const queue = new SharedReceiveQueue(this, options, () => this.#receiveQueues.delete(queue));
    this.#receiveQueues.add(queue);
    return queue;
  }

  /**
   * Closes its windows, queue pairs, shared receive queues and regions, in this order, then itself. What refuses keeps nothing else
   * open; the domain stays, and may be closed again.
   */
  close(): void {
    if (this.#closed) return;
    const queuePairs = [...this.device.queuePairs.values()].filter((each) => each.protectionDomain === this);
    // Windows first: soft-RoCE waits for those that are bound when a queue pair goes.
    const inOrder = [...this.#windows, ...queuePairs, ...this.#receiveQueues, ...this.#regions];
    doAll(inOrder.map((each) => () => each.close()));
    nativeCall('protection domain', () => this.native.close());
    this.#closed = true;
    this.#onClose();
  }
}

/** Registered memory. The buffer stays alive while this is open. */
export class MemoryRegion {
  readonly protectionDomain: ProtectionDomain;
  readonly buffer: ArrayBuffer;
  /** Where in the buffer it begins. Segments count from here. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** What a peer names as remote address for the first byte. */
  readonly address: number;
  readonly localKey: number;
  readonly remoteKey: number;
  /** @internal */ readonly native: NativeMemoryRegion;
  /** @internal */ readonly slot: number;
  readonly #onClose: () => void;
  #closed = false;

  /** @internal */
  constructor(
    domain: ProtectionDomain,
    made: NativeMemoryRegion,
    buffer: ArrayBuffer,
    offsetBytes: number,
    lengthBytes: number,
    onClose: () => void,
  ) {
    this.protectionDomain = domain;
    this.native = made;
    this.buffer = buffer;
    this.offsetBytes = offsetBytes;
    this.lengthBytes = lengthBytes;
    this.slot = made.slot;
    this.address = made.address;
    this.localKey = made.localKey;
    this.remoteKey = made.remoteKey;
    this.#onClose = onClose;
  }

  get closed(): boolean {
    return this.#closed;
  }

  segment(offsetBytes = 0, lengthBytes = this.lengthBytes - offsetBytes): LocalSegment {
    return { region: this, offsetBytes, lengthBytes };
  }

  /** For a peer. Only useful if the region allows something remote, which windows on it do better. */
  remoteSegment(offsetBytes = 0): RemoteSegment {
    return { address: this.address + offsetBytes, key: this.remoteKey };
  }

  /**
   * Takes the memory away from the device. When this has returned, nothing lands in it any more; requests that named it and were not
   * done fail (`localProtectionError` here, `remoteAccessError` at a peer).
   * @throws {RdmaError} EBUSY while windows are bound on it: invalidate or close them first.
   */
  close(): void {
    if (this.#closed) return;
    nativeCall('memory region', () => this.native.close());
    this.#closed = true;
    this.#onClose();
  }
}

/**
 * A memory window of type 2: remote access to a range of a region for as long as it is bound, under a key of its own.
 * Bound by a work request (`queuePair.bindWindow`), ended by another (`invalidateLocal`), by a peer's `sendWithInvalidate`, or by `close`.
 * When a local invalidate has completed, or a receive says that the peer invalidated the key, no access under it lands any more.
 */
export class MemoryWindow {
  readonly protectionDomain: ProtectionDomain;
  /** @internal */ readonly native: NativeMemoryWindow;
  /** @internal */ readonly slot: number;
  readonly #onClose: () => void;
  #key: number;
  #closed = false;

  /** @internal */
  constructor(domain: ProtectionDomain, made: NativeMemoryWindow, onClose: () => void) {
    this.protectionDomain = domain;
    this.native = made;
    this.slot = made.slot;
    this.#key = made.key;
    this.#onClose = onClose;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** The key of the latest `bindWindow`; each makes another. */
  get key(): number {
    return this.#key;
  }

  /** @internal The lowest 8 bits are the user's to choose. */
  takeNextKey(): number {
    this.#key = ((this.#key & 0xffffff00) | ((this.#key + 1) & 0xff)) >>> 0;
    return this.#key;
  }

  /** Ends the window, bound or not: nothing lands through it after this has returned. */
  close(): void {
    if (this.#closed) return;
    nativeCall('memory window', () => this.native.close());
    this.#closed = true;
    this.#onClose();
  }
}
