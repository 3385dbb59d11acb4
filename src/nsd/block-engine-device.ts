import { readFileSync } from 'node:fs';
import { type BlockDeviceHandle, type BlockEngine, BlockIoError, type IoBuffer, type OpenOptions } from 'napi-nvme';
import { FsError, type Reason } from '../common/errors.js';
import type { Logger } from '../common/logger.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { BlockDevice } from './nsd-api.js';

/**
 * Devices of this machine, through napi-nvme: what is read lands in the page pool, what is written leaves from there, no copy.
 *
 * One `PoolEngine` per thread: an io_uring with the pool registered, over which all its devices work. Fault model: every errno becomes
 * an FsError that names it with offset and device; the pool may stay unregistered (limit on locked memory), which is slower, works, and
 * is said in the log once.
 */
export class PoolEngine {
  readonly #buffer: IoBuffer;

  /** `engine` is this object's from here on. */
  constructor(
    private readonly engine: BlockEngine,
    pool: PagePool,
    logger?: Logger,
  ) {
    this.#buffer = engine.attach(pool.buffer);
    if (!this.#buffer.registered)
      logger?.warn(
        { errno: this.#buffer.notRegisteredBecause, poolBytes: pool.lengthBytes },
        'the page pool is not registered with io_uring; raise the limit on locked memory (LimitMEMLOCK)',
      );
  }

  /** Whether the kernel has the pool registered. */
  get registered(): boolean {
    return this.#buffer.registered;
  }

  /** @throws {FsError} notFound, accessDenied, deviceError, … as the system says. */
  async open(path: string, options: OpenOptions = {}, keeper = bootId()): Promise<BlockEngineDevice> {
    try {
      return new BlockEngineDevice(await this.engine.open(path, options), this.#buffer, keeper);
    } catch (error) {
      throw asFsError(error, 'device.open', path);
    }
  }

  /** Waits for what is under way, closes the devices. */
  close(): Promise<void> {
    return this.engine.close();
  }
}

export class BlockEngineDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly logicalBlockBytes: number;

  constructor(
    readonly handle: BlockDeviceHandle,
    private readonly buffer: IoBuffer,
    readonly keeper: string | undefined,
  ) {
    this.lengthBytes = handle.sizeBytes;
    this.logicalBlockBytes = handle.logicalBlockBytes;
  }

  async read(offsetBytes: number, memory: PoolSegment): Promise<void> {
    try {
      await this.handle.read(offsetBytes, this.buffer, memory.offsetBytes, memory.lengthBytes);
    } catch (error) {
      throw asFsError(error, 'device.read', this.handle.path);
    }
  }
  async write(offsetBytes: number, memory: PoolSegment, durable = false): Promise<void> {
    try {
      await this.handle.write(offsetBytes, this.buffer, memory.offsetBytes, memory.lengthBytes, durable);
    } catch (error) {
      throw asFsError(error, 'device.write', this.handle.path);
    }
  }
  async flush(): Promise<void> {
    try {
      await this.handle.flush();
    } catch (error) {
      throw asFsError(error, 'device.flush', this.handle.path);
    }
  }
  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    try {
      await this.handle.discard(offsetBytes, lengthBytes);
    } catch (error) {
      throw asFsError(error, 'device.discard', this.handle.path);
    }
  }
  close(): Promise<void> {
    return this.handle.close();
  }
}

/** The kernel keeps what this process wrote, and so does a device of this machine, until the machine loses power. */
function bootId(): string | undefined {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return undefined;
  }
}

const REASON_OF_ERRNO: Readonly<Record<string, Reason>> = {
  ENOSPC: 'noSpace',
  EDQUOT: 'noSpace',
  EROFS: 'readOnly',
  ENOENT: 'notFound',
  EACCES: 'accessDenied',
  EPERM: 'notPermitted',
  EISDIR: 'isDirectory',
  EBUSY: 'busy',
  ENOTBLK: 'badConfiguration',
  EAGAIN: 'queueFull',
  EBADF: 'closed',
  EINVAL: 'invalidArgument',
  EFAULT: 'invalidArgument',
  EOPNOTSUPP: 'notSupported',
};

function asFsError(error: unknown, op: string, path: string): FsError {
  if (error instanceof BlockIoError) {
    // Of an open device it means that another host has reserved it: this one is shut out, and asking again won't help.
    const shutOut = error.code === 'EBUSY';
    const known = shutOut ? 'deviceError' : (REASON_OF_ERRNO[error.code] ?? 'deviceError');
    const reason = error.short ? 'shortIo' : known;
    return new FsError(reason, { op, object: path, detail: error.message, cause: error });
  }
  if (error instanceof Error && 'code' in error && typeof error.code === 'string')
    return new FsError(REASON_OF_ERRNO[error.code] ?? 'deviceError', {
      op,
      object: path,
      detail: error.message,
      cause: error,
    });
  return FsError.from(error, op, path);
}
