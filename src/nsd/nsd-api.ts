import type { NsdIndex } from '../common/ids.js';
import type { PoolSegment } from '../native/page-pool.js';

/** Consecutive sectors of one NSD, and where in the page pool their bytes are (or go). */
export interface SectorIo {
  readonly nsd: NsdIndex;
  /** First sector, counted from the NSD's first data sector. */
  readonly sector: number;
  /** Contiguous in the pool, a multiple of a sector. Several adjacent SectorIos make a scattered transfer. */
  readonly memory: PoolSegment;
  /**
   * One per sector. A read fills it in. A write sets the sectors' versions to it (L2; each 1 to SECTOR_VERSION_MAX), so that the same
   * write may come twice, and is refused with staleVersion, its whole request before anything is written, if any sector's last
   * write was later. Without: a write counts each version up by one.
   */
  readonly versions?: Uint32Array;
  /**
   * Of a write: a durable log record holds the same full sectors and is the write's intent (S1), so that the NSD makes none. After a
   * crash the sector may be torn (checksumMismatch) until the log's redo has written it again.
   */
  readonly logged?: true;
  /**
   * Of a write: a file says that these sectors are its bytes, those that were never written too, which read as zeros. So these as well are as they were or as they
   * become after a crash (S1); without, a sector written for the first time may be torn (checksumMismatch).
   */
  readonly exposed?: true;
  /** Of a write: the sectors check themselves, as a log's do. The NSD keeps neither checksum nor version for them, and makes no intent. */
  readonly selfChecking?: true;
}

export interface NsdExtent {
  readonly nsd: NsdIndex;
  readonly sector: number;
  readonly sectorCount: number;
}

/** What an NSD knows of sectors without reading them, one element per sector. */
export interface SectorVersions {
  /** 0: never written, or (if it doesn't read as zeros) not known any more: a write with any version is taken. */
  readonly versions: Uint32Array;
  /** 1: never written or discarded, reads as zeros; else 0. A hole's version is the discard's: only a later one is taken. */
  readonly zeros: Uint8Array;
}

/** The storage as the file system sees it: NSDs by index, wherever they are served. */
export interface NsdClientApi {
  /** Grouped by server, one request per server (split at WINDOW_BYTES_MAX); every sector's checksum verified as it landed. */
  read(ios: readonly SectorIo[], options?: NsdIoOptions): Promise<void>;
  /** Pages must stay stable until it resolves (S2). Resolves when every server has the bytes on its device, not flushed. */
  write(ios: readonly SectorIo[], options?: NsdWriteOptions): Promise<void>;
  /** The devices' own flush, of the NSDs named. */
  flush(nsds: readonly NsdIndex[], options?: NsdFlushOptions): Promise<void>;
  /** Contents become undefined-or-zero, checksums forgotten: reads give zeros. */
  discard(extents: readonly NsdExtent[], options?: NsdIoOptions): Promise<void>;
  /** In the order of the extents. Whether the bytes still have their checksum, only a read can tell. */
  versions(extents: readonly NsdExtent[], options?: NsdIoOptions): Promise<SectorVersions>;
  /**
   * How often so far, as this node has noticed, writes that the NSD had not flushed may have been lost though their server lives again (it lost
   * power and came back, or another took over). Writes are durable if this is the same before they began and after a flush that began
   * when they had ended; if it isn't, they must be done again, or whoever waits for them told (I10).
   */
  lossesOf(nsd: NsdIndex): number;
}
export interface NsdIoOptions {
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}
export interface NsdWriteOptions extends NsdIoOptions {
  /**
   * With a flush in the same request, for this, in a word (counted): what is written is durable when it resolves. It is a flush of these sectors
   * only; whoever needs others to be durable flushes.
   */
  readonly flush?: string | undefined;
}
export interface NsdFlushOptions extends NsdIoOptions {
  /** What for, in a word: counted. */
  readonly why?: string;
}

/** One open device: what napi-nvme, the simulator's disks and the fault port all look like. Offsets are the device's bytes. */
export interface BlockDevice {
  /**
   * UUID of what keeps writes that are not flushed when this process dies: the machine's boot, as a rule. Who finds another one there than an
   * earlier life had, or none, must take that life's unflushed writes for lost.
   */
  readonly keeper?: string | undefined;
  readonly lengthBytes: number;
  readonly logicalBlockBytes: number;
  /** @throws {FsError} deviceError (errno and offset in the detail), shortIo. */
  read(offsetBytes: number, memory: PoolSegment): Promise<void>;
  /** `durable`: these bytes are on the medium when it resolves, whatever becomes of other writes. */
  write(offsetBytes: number, memory: PoolSegment, durable?: boolean): Promise<void>;
  flush(): Promise<void>;
  discard(offsetBytes: number, lengthBytes: number): Promise<void>;
  close(): Promise<void>;
}
