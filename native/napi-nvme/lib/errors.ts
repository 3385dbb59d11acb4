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

/** As Linux calls them: libuv has one name for two of them, not the one that the kernel means, and none for some of the block layer's. */
export function errnoName(errno: number): string {
  const name = BLOCK_LAYER.get(errno)?.name ?? getSystemErrorName(-errno);
  return name === 'ENOTSUP' ? 'EOPNOTSUPP' : name;
}

/** What Linux's block layer means by errnos that it uses for something else than they are called; null for the others. */
export const blockLayerWords = (errno: number): string | null => BLOCK_LAYER.get(errno)?.words ?? null;

const BLOCK_LAYER: ReadonlyMap<number, { readonly name: string; readonly words: string }> = new Map([
  [52, { name: 'EBADE', words: 'another host has reserved it' }],
  [61, { name: 'ENODATA', words: 'its medium is faulty there' }],
  [67, { name: 'ENOLINK', words: 'its transport failed' }],
  [84, { name: 'EILSEQ', words: 'its protection information is wrong' }],
  [121, { name: 'EREMOTEIO', words: 'it refused the command' }],
]);
