import { getSystemErrorName } from 'node:util';
import type { NvmeStatus } from './nvme-status.js';

/** A device refused, failed or fell short; says which operation, where, and with which errno. */
export class BlockIoError extends Error {
  override readonly name = 'BlockIoError';

  constructor(
    /** The errno's name: 'EIO', 'ENOSPC', 'EINVAL', … A short transfer is an EIO with `short` set. */
    readonly code: string,
    readonly syscall: 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes' | 'compare' | 'verify',
    readonly path: string,
    readonly offsetBytes: number,
    readonly lengthBytes: number,
    /** Bytes that were transferred before it failed. */
    readonly doneBytes: number,
    /** The device ended before the transfer did. */
    readonly short: boolean,
    detail: string,
    /** What the controller said; null where it was the kernel, or no controller is asked. */
    readonly nvmeStatus: NvmeStatus | null = null,
  ) {
    super(`${code}: ${detail}, ${syscall} of ${lengthBytes} bytes at ${offsetBytes} '${path}'`);
  }
}

/** A single NVMe command failed: refused by the controller (`status`), or by the kernel (`status` is null). */
export class NvmeCommandError extends Error {
  override readonly name = 'NvmeCommandError';

  constructor(
    /** The errno's name. */
    readonly code: string,
    readonly command: string,
    readonly path: string,
    readonly status: NvmeStatus | null,
    detail: string,
  ) {
    super(`${code}: ${detail}, ${command} '${path}'`);
  }
}

/** As Linux calls them: libuv has one name for two of them, and not the one that the kernel means. */
export function errnoName(errno: number): string {
  const name = getSystemErrorName(-errno);
  return name === 'ENOTSUP' ? 'EOPNOTSUPP' : name;
}
