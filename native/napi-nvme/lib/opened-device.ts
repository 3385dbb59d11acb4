import { existsSync } from 'node:fs';
import { type AccessChoice, type BlockAccess, currentSizeBytes, type NamespaceInfo } from './block-access.js';
import { BlockIoError, blockLayerWords, errnoName } from './errors.js';
import type { NativeTarget } from './native.js';
import { decodeStatus, errnoOfStatus, isPassing, STATUS, statusKey } from './nvme-status.js';

/** Memory that operations may name. */
export interface IoBuffer {
  readonly buffer: ArrayBuffer;
  readonly lengthBytes: number;
  /** Whether the kernel has it registered. */
  readonly registered: boolean;
  /** Why not: an errno's name, ENOMEM for the limit on locked memory; null if it is, or if it wasn't wanted. */
  readonly notRegisteredBecause: string | null;
}

/** @internal */
export interface AttachedBuffer extends IoBuffer {
  readonly engine: DeviceEngine;
  readonly slot: number;
  readonly addressModulo: number;
  inFlight: number;
  detached: boolean;
}

/** @internal */
export type OperationName = BlockIoError['syscall'];

/** @internal */
export interface Operation {
  name: OperationName;
  device: OpenedDevice;
  buffer: AttachedBuffer | null;
  offsetBytes: number;
  bufferOffsetBytes: number;
  lengthBytes: number;
  /** Of a write. */
  durable: boolean;
  /** When it fails for a passing reason after this, it has failed; 0 = it has not failed yet. */
  deadlineMs: number;
  retries: number;
  resolve: () => void;
  reject: (error: Error) => void;
}

/**
 * What a completion means for who asked: done, an error, or a passing trouble of the path, to be tried again. Reads beyond the end are
 * short and writes beyond it ENOSPC, as they are of the kernel's block devices. @internal
 */
export function outcomeOf(
  operation: Operation,
  errno: number,
  doneBytes: number,
  rawStatus: number,
): 'done' | 'passing' | BlockIoError {
  const { name, device, lengthBytes } = operation;
  if (errno === 0 && (doneBytes === lengthBytes || name === 'flush')) return 'done';
  if (
    device.access === 'passthrough' &&
    (rawStatus === 0 ? errno === EINTR || isWithoutPath(errno) : isPassing(rawStatus))
  )
    return 'passing';
  return failureOf(operation, errno, doneBytes, rawStatus);
}

/** The error of what outcomeOf said or called passing. @internal */
export function failureOf(operation: Operation, errno: number, doneBytes: number, rawStatus: number): BlockIoError {
  const { name, device, offsetBytes, lengthBytes } = operation;
  const failed = (code: string, short: boolean, detail: string): BlockIoError => {
    const status = rawStatus === 0 ? null : decodeStatus(rawStatus);
    return new BlockIoError(code, name, device.path, offsetBytes, lengthBytes, doneBytes, short, detail, status);
  };
  const ended = `the device ended after ${doneBytes} bytes`;
  if (errno === 0) return failed('EIO', true, ended);
  const after = doneBytes > 0 ? ` after ${doneBytes} bytes` : '';
  if (rawStatus !== 0) {
    const { words, type } = decodeStatus(rawStatus);
    const detail = `the command failed${after}: ${words} (${type} status 0x${statusKey(rawStatus).toString(16)})`;
    const key = statusKey(rawStatus);
    const beyond = offsetBytes + lengthBytes > device.sizeBytes;
    const outOfRange = key === STATUS.lbaOutOfRange || (key === STATUS.internalError && beyond);
    if (!outOfRange) return failed(errnoOfStatus(rawStatus), false, detail);
    if (name === 'write' || name === 'writeZeroes') return failed('ENOSPC', false, detail);
    return name === 'discard' ? failed('EINVAL', false, detail) : failed('EIO', true, `${ended}: ${words}`);
  }
  if (device.access === 'passthrough') {
    if (errno === ETIMEDOUT)
      return failed('ETIMEDOUT', false, `the kernel gave the command up${after}: it took too long`);
    if (errno === EINTR)
      return failed('EIO', false, `the controller was reset, or lost its path, with the command under way${after}`);
    if (isWithoutPath(errno)) return failed('ENODEV', false, `the kernel has no path to the namespace${after}`);
  }
  if (errno === EFAULT && operation.buffer?.buffer.byteLength === 0)
    return failed('EFAULT', false, 'the buffer was detached behind our back');
  const words = device.access === 'block' ? blockLayerWords(errno) : null;
  return failed(errnoName(errno), false, `the device failed${after}${words === null ? '' : `: ${words}`}`);
}

/**
 * Whether its size decides what a failure means: Linux's target doesn't look at ranges itself, and what its block layer refuses is an internal
 * error to it. @internal
 */
export const mayHaveShrunk = (operation: Operation, rawStatus: number): boolean =>
  statusKey(rawStatus) === STATUS.internalError && operation.device.access === 'passthrough';

/** What is wrong in itself doesn't get as far as the kernel; it refuses like this while a namespace has no usable path. */
const isWithoutPath = (errno: number): boolean => errno === EINVAL || errno === EAGAIN;

const EINTR = 4;
const EAGAIN = 11;
const EFAULT = 14;
const EINVAL = 22;
const ETIMEDOUT = 110;

/** What the kernel or the device would refuse, or worse, would not. @internal */
export function checkPlace(
  device: OpenedDevice,
  buffer: AttachedBuffer | null,
  offsetBytes: number,
  bufferOffsetBytes: number,
  lengthBytes: number,
): { readonly code: string; readonly detail: string } | null {
  const refuse = (code: string, detail: string) => ({ code, detail });
  const whole = Number.isSafeInteger(offsetBytes) && Number.isSafeInteger(lengthBytes);
  if (!whole || offsetBytes < 0 || lengthBytes <= 0 || !Number.isSafeInteger(offsetBytes + lengthBytes))
    return refuse('EINVAL', 'offset and length are no byte range');
  const { logicalBlockBytes, memoryAlignBytes, direct } = device;
  // Through the page cache files have no blocks; block devices always do for what isn't a transfer.
  if (
    (direct || (buffer === null && device.kind === 'block')) &&
    (offsetBytes % logicalBlockBytes || lengthBytes % logicalBlockBytes)
  )
    return refuse('EINVAL', `not whole blocks of ${logicalBlockBytes} bytes`);
  if (buffer === null) return null;
  if (buffer.detached) return refuse('EFAULT', 'the buffer is detached');
  const within = Number.isSafeInteger(bufferOffsetBytes) && bufferOffsetBytes >= 0;
  if (!within || bufferOffsetBytes + lengthBytes > buffer.lengthBytes) return refuse('EFAULT', 'outside of the buffer');
  if (direct && (buffer.addressModulo + bufferOffsetBytes) % memoryAlignBytes !== 0)
    return refuse('EINVAL', `memory is not aligned to ${memoryAlignBytes} bytes`);
  return null;
}

/** An opened device. All offsets and lengths are bytes; with `direct` they are whole logical blocks. */
export interface BlockDeviceHandle {
  /** As it was given. */
  readonly path: string;
  readonly kind: 'block' | 'file';
  /** How it is worked with: NVMe commands passed through, the kernel's block device, or a file. */
  readonly access: BlockAccess;
  /** Why that way. */
  readonly accessReason: string;
  /** What is opened: of a namespace that commands are passed to, its character device. */
  readonly devicePath: string;
  /** With access `passthrough`. */
  readonly namespace: NamespaceInfo | null;
  /** When it was opened, or when `refresh` looked last. */
  readonly sizeBytes: number;
  readonly logicalBlockBytes: number;
  readonly physicalBlockBytes: number;
  /** What direct I/O asks of memory addresses. */
  readonly memoryAlignBytes: number;
  /** False where the file system refused O_DIRECT: then everything goes through the page cache. */
  readonly direct: boolean;
  readonly readOnly: boolean;
  readonly closed: boolean;
  /** @throws {BlockIoError} with `short` set when the device ends before the transfer. */
  read(offsetBytes: number, buffer: IoBuffer, bufferOffsetBytes: number, lengthBytes: number): Promise<void>;
  /** `durable`: these bytes are on the medium when it resolves, as after a flush; of other writes that says nothing. */
  write(
    offsetBytes: number,
    buffer: IoBuffer,
    bufferOffsetBytes: number,
    lengthBytes: number,
    durable?: boolean,
  ): Promise<void>;
  /** Everything written before is durable when it resolves. */
  flush(): Promise<void>;
  /** Gives the space back; what is read there afterwards is the device's affair (zeros from files). */
  discard(offsetBytes: number, lengthBytes: number): Promise<void>;
  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void>;
  /** Whether the device holds exactly these bytes, compared by the controller. Passthrough only: EOPNOTSUPP elsewhere. */
  compare(offsetBytes: number, buffer: IoBuffer, bufferOffsetBytes: number, lengthBytes: number): Promise<boolean>;
  /** The controller reads and checks, and sends nothing. Passthrough only. */
  verify(offsetBytes: number, lengthBytes: number): Promise<void>;
  /** Asks the device for its size again: files grow, namespaces and volumes may do either. @returns the new `sizeBytes` */
  refresh(): Promise<number>;
  /** Waits for its operations. A second call waits for the same. */
  close(): Promise<void>;
}

/** What a device needs of its engine. @internal */
export interface DeviceEngine {
  start(
    name: OperationName,
    device: OpenedDevice,
    offsetBytes: number,
    buffer: IoBuffer | null,
    bufferOffsetBytes: number,
    lengthBytes: number,
    durable?: boolean,
  ): Promise<void>;
}

/** @internal */
export class OpenedDevice implements BlockDeviceHandle {
  readonly logicalBlockBytes: number;
  readonly memoryAlignBytes: number;
  readonly direct: boolean;
  #sizeBytes: number;
  #operations = 0;
  #closing: Promise<void> | null = null;
  #idle: (() => void) | null = null;

  constructor(
    private readonly engine: DeviceEngine,
    readonly path: string,
    readonly target: NativeTarget,
    private readonly choice: AccessChoice,
    private readonly release: (device: OpenedDevice) => void,
  ) {
    this.#sizeBytes = target.sizeBytes;
    this.logicalBlockBytes = target.logicalBlockBytes;
    this.memoryAlignBytes = target.memoryAlignBytes;
    this.direct = target.direct;
  }

  get kind(): 'block' | 'file' {
    return this.target.block ? 'block' : 'file';
  }
  get access(): BlockAccess {
    return this.choice.access;
  }
  get accessReason(): string {
    return this.choice.reason;
  }
  get devicePath(): string {
    return this.choice.path;
  }
  get namespace(): NamespaceInfo | null {
    return this.choice.namespace;
  }
  get sizeBytes(): number {
    return this.#sizeBytes;
  }
  get physicalBlockBytes(): number {
    return this.target.physicalBlockBytes;
  }
  get readOnly(): boolean {
    return this.target.readOnly;
  }
  get closed(): boolean {
    return this.#closing !== null;
  }

  read(offsetBytes: number, buffer: IoBuffer, bufferOffsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('read', this, offsetBytes, buffer, bufferOffsetBytes, lengthBytes);
  }
  write(
    offsetBytes: number,
    buffer: IoBuffer,
    bufferOffsetBytes: number,
    lengthBytes: number,
    durable = false,
  ): Promise<void> {
    return this.engine.start('write', this, offsetBytes, buffer, bufferOffsetBytes, lengthBytes, durable);
  }
  flush(): Promise<void> {
    return this.engine.start('flush', this, 0, null, 0, 0);
  }
  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('discard', this, offsetBytes, null, 0, lengthBytes);
  }
  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('writeZeroes', this, offsetBytes, null, 0, lengthBytes);
  }
  async compare(
    offsetBytes: number,
    buffer: IoBuffer,
    bufferOffsetBytes: number,
    lengthBytes: number,
  ): Promise<boolean> {
    try {
      await this.engine.start('compare', this, offsetBytes, buffer, bufferOffsetBytes, lengthBytes);
      return true;
    } catch (error) {
      const status = error instanceof BlockIoError ? error.nvmeStatus : null;
      if (status !== null && statusKey(status.raw) === STATUS.compareFailure) return false;
      throw error;
    }
  }
  verify(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.engine.start('verify', this, offsetBytes, null, 0, lengthBytes);
  }

  async refresh(): Promise<number> {
    this.#sizeBytes = await currentSizeBytes(this.choice.path, this.access);
    return this.#sizeBytes;
  }

  /** Whether the kernel still has it; asked only when a path is in trouble. @internal */
  isPresent(): boolean {
    return existsSync(this.choice.path);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }
  async #close(): Promise<void> {
    if (this.#operations > 0)
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    this.release(this);
  }

  /** @internal */
  began(): void {
    this.#operations++;
  }
  /** @internal */
  ended(): void {
    this.#operations--;
    if (this.#operations === 0) this.#idle?.();
  }
}
