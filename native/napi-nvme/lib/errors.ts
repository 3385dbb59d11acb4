import { getSystemErrorName } from 'node:util';

/** A device refused, failed or fell short; says which operation, where, and with which errno. */
export class BlockIoError extends Error {
  override readonly name = 'BlockIoError';

  constructor(
    /** The errno's name: 'EIO', 'ENOSPC', 'EINVAL', … A short transfer is an EIO with `short` set. */
    readonly code: string,
    readonly syscall: 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes',
    readonly path: string,
    readonly offsetBytes: number,
    readonly lengthBytes: number,
    /** Bytes that were transferred before it failed. */
    readonly doneBytes: number,
    /** The device ended before the transfer did. */
    readonly short: boolean,
    detail: string,
  ) {
    super(`${code}: ${detail}, ${syscall} of ${lengthBytes} bytes at ${offsetBytes} '${path}'`);
  }
}

export const errnoName = (errno: number): string => getSystemErrorName(-errno);
