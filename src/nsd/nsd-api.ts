import type { NsdIndex } from '../common/ids.js';
import type { PoolSegment } from '../native/page-pool.js';

/** Consecutive sectors of one NSD, and where in the page pool their bytes are (or go). */
export interface SectorIo {
  readonly nsd: NsdIndex;
  /** First sector, counted from the NSD's first data sector. */
  readonly sector: number;
  /** Contiguous in the pool, a multiple of a sector. Several adjacent SectorIos make a scattered transfer. */
  readonly memory: PoolSegment;
}

/** The storage as the file system sees it: NSDs by index, wherever they are served. */
export interface NsdClientApi {
  /** Grouped by server, one request per server (split at WINDOW_BYTES_MAX); every sector's checksum verified as it landed. */
  read(ios: readonly SectorIo[], options?: NsdIoOptions): Promise<void>;
  /** Pages must stay stable until it resolves (S2). Resolves when every server has the bytes on its device, not flushed. */
  write(ios: readonly SectorIo[], options?: NsdIoOptions): Promise<void>;
  /** The devices' own flush, of the NSDs named. */
  flush(nsds: readonly NsdIndex[], options?: NsdIoOptions): Promise<void>;
  /** Contents become undefined-or-zero, checksums forgotten: reads give zeros. */
  discard(
    extents: readonly { nsd: NsdIndex; sector: number; sectorCount: number }[],
    options?: NsdIoOptions,
  ): Promise<void>;
}
export interface NsdIoOptions {
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** One open device: what napi-nvme, the simulator's disks and the fault port all look like. Offsets are the device's bytes. */
export interface BlockDevice {
  readonly lengthBytes: number;
  readonly logicalBlockBytes: number;
  /** @throws {FsError} deviceError (errno and offset in the detail), shortIo. */
  read(offsetBytes: number, memory: PoolSegment): Promise<void>;
  write(offsetBytes: number, memory: PoolSegment): Promise<void>;
  flush(): Promise<void>;
  discard(offsetBytes: number, lengthBytes: number): Promise<void>;
  close(): Promise<void>;
}
