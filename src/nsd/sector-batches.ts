import { FsError } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { WINDOW_BYTES_MAX } from '../fabric/fabric.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { NSD_REQUEST_SECTORS_MAX, NSD_VERSIONS_SECTORS_MAX, type SectorExtent } from '../protocol/nsd-messages.js';
import type { NsdExtent, SectorIo } from './nsd-api.js';
import { checkMemory } from './pool-memory.js';

/** Cuts what a caller asks of the NSDs into requests: what one NSD is asked at once, within the limits of a message and of a window. */
export interface Batch {
  readonly nsd: NsdIndex;
  readonly extents: SectorExtent[];
  readonly segments: PoolSegment[];
  sectorCount: number;
  /** All writes of a batch are, or none; in the same way all or none name versions. */
  readonly logged: boolean;
  readonly exposed: boolean;
  readonly selfChecking: boolean;
  /** Sectors of the batch from `index` on have their versions in `words` from `at` on. */
  readonly versions: {
    readonly index: number;
    readonly words: Uint32Array;
    readonly at: number;
    readonly count: number;
  }[];
}

/** Scatter of one window. */
const WINDOW_SEGMENTS_MAX = 64;

/** By NSD, in the order given; adjacent sectors and adjacent memory merged; split where a request would be too large. */
export function batchesOf(op: 'nsd.read' | 'nsd.write', ios: readonly SectorIo[], pool: PagePool): Batch[] {
  const open = new Map<number, Batch>();
  const batches: Batch[] = [];
  for (const { nsd, sector, memory, versions, logged = false, exposed = false, selfChecking = false } of ios) {
    checkMemory(op, memory, pool);
    const total = memory.lengthBytes / SECTOR_BYTES;
    checkSectors(op, nsd, sector, total);
    if (selfChecking && versions !== undefined)
      throw new FsError('invalidArgument', { op, detail: 'sectors that check themselves have no versions' });
    if (versions !== undefined && versions.length !== total)
      throw new FsError('invalidArgument', {
        op,
        object: `nsd ${nsd} sector ${sector}`,
        detail: `${versions.length} versions for ${total} sectors`,
      });
    // What a write says about its sectors it says for its whole request; a read's reply has the versions anyway.
    const said = (versions === undefined ? 0 : 1) + (logged ? 2 : 0) + (selfChecking ? 4 : 0) + (exposed ? 8 : 0);
    const kind = nsd * 16 + (op === 'nsd.read' ? 0 : said);
    for (let done = 0; done < total; ) {
      const offsetBytes = memory.offsetBytes + done * SECTOR_BYTES;
      let batch = open.get(kind);
      if (batch !== undefined && !hasRoom(batch, offsetBytes)) batch = undefined;
      if (batch === undefined) {
        batch = { nsd, extents: [], segments: [], sectorCount: 0, logged, exposed, selfChecking, versions: [] };
        open.set(kind, batch);
        batches.push(batch);
      }
      const sectorCount = Math.min(total - done, NSD_REQUEST_SECTORS_MAX - batch.sectorCount);
      if (versions !== undefined)
        batch.versions.push({ index: batch.sectorCount, words: versions, at: done, count: sectorCount });
      append(batch, sector + done, sectorCount, offsetBytes);
      done += sectorCount;
    }
  }
  return batches;
}

/** What one NSD is asked about its versions at once. */
export interface VersionBatch {
  readonly nsd: NsdIndex;
  readonly extents: SectorExtent[];
  sectorCount: number;
  /** The batch's sectors from `at` on are the caller's from `index` on. */
  readonly places: { readonly index: number; readonly at: number; readonly count: number }[];
}
export function versionBatches(extents: readonly NsdExtent[]): { batches: VersionBatch[]; sectorCount: number } {
  const open = new Map<NsdIndex, VersionBatch>();
  const batches: VersionBatch[] = [];
  let index = 0;
  for (const { nsd, sector, sectorCount } of extents) {
    checkSectors('nsd.versions', nsd, sector, sectorCount);
    for (let done = 0; done < sectorCount; ) {
      let batch = open.get(nsd);
      if (batch === undefined || batch.sectorCount >= NSD_VERSIONS_SECTORS_MAX) {
        batch = { nsd, extents: [], sectorCount: 0, places: [] };
        open.set(nsd, batch);
        batches.push(batch);
      }
      const count = Math.min(sectorCount - done, NSD_VERSIONS_SECTORS_MAX - batch.sectorCount);
      batch.places.push({ index, at: batch.sectorCount, count });
      batch.extents.push({ sector: sector + done, sectorCount: count });
      batch.sectorCount += count;
      done += count;
      index += count;
    }
  }
  return { batches, sectorCount: index };
}

/** The versions that a batch of writes names, or undefined. */
export function versionsNamed(batch: Batch): Uint32Array | undefined {
  if (batch.versions.length === 0) return undefined;
  const all = new Uint32Array(batch.sectorCount);
  for (const { index, words, at, count } of batch.versions) all.set(words.subarray(at, at + count), index);
  return all;
}
/** Tells whoever asked for versions of a read. */
export function tellVersions(batch: Batch, versions: Uint32Array): void {
  for (const { index, words, at, count } of batch.versions) words.set(versions.subarray(index, index + count), at);
}

function hasRoom(batch: Batch, offsetBytes: number): boolean {
  if (batch.sectorCount >= NSD_REQUEST_SECTORS_MAX || batch.sectorCount * SECTOR_BYTES >= WINDOW_BYTES_MAX)
    return false;
  const last = batch.segments.at(-1);
  const adjacent = last !== undefined && last.offsetBytes + last.lengthBytes === offsetBytes;
  return adjacent || batch.segments.length < WINDOW_SEGMENTS_MAX;
}

function append(batch: Batch, sector: number, sectorCount: number, offsetBytes: number): void {
  const lengthBytes = sectorCount * SECTOR_BYTES;
  const lastExtent = batch.extents.at(-1);
  if (lastExtent !== undefined && lastExtent.sector + lastExtent.sectorCount === sector)
    batch.extents[batch.extents.length - 1] = {
      sector: lastExtent.sector,
      sectorCount: lastExtent.sectorCount + sectorCount,
    };
  else batch.extents.push({ sector, sectorCount });
  const lastSegment = batch.segments.at(-1);
  if (lastSegment !== undefined && lastSegment.offsetBytes + lastSegment.lengthBytes === offsetBytes)
    batch.segments[batch.segments.length - 1] = {
      offsetBytes: lastSegment.offsetBytes,
      lengthBytes: lastSegment.lengthBytes + lengthBytes,
    };
  else batch.segments.push({ offsetBytes, lengthBytes });
  batch.sectorCount += sectorCount;
}

/** Pieces of a batch in which sectors and memory are both contiguous. */
export function contiguous(batch: Batch): { sector: number; memory: PoolSegment; index: number }[] {
  const pieces: { sector: number; memory: PoolSegment; index: number }[] = [];
  let index = 0;
  let segment = 0;
  let inSegment = 0;
  for (const extent of batch.extents) {
    for (let done = 0; done < extent.sectorCount; ) {
      const { offsetBytes, lengthBytes } = batch.segments[segment]!;
      const sectorCount = Math.min(extent.sectorCount - done, lengthBytes / SECTOR_BYTES - inSegment);
      const memory = { offsetBytes: offsetBytes + inSegment * SECTOR_BYTES, lengthBytes: sectorCount * SECTOR_BYTES };
      pieces.push({ sector: extent.sector + done, memory, index });
      done += sectorCount;
      index += sectorCount;
      inSegment += sectorCount;
      if (inSegment * SECTOR_BYTES === lengthBytes) {
        segment++;
        inSegment = 0;
      }
    }
  }
  return pieces;
}

export function sectorAt(extents: readonly SectorExtent[], index: number): number {
  for (const { sector, sectorCount } of extents) {
    if (index < sectorCount) return sector + index;
    index -= sectorCount;
  }
  return -1;
}

export function checkSectors(op: string, nsd: NsdIndex, sector: number, sectorCount: number): void {
  const whole = Number.isSafeInteger(sector) && Number.isSafeInteger(sectorCount);
  if (!whole || sector < 0 || sectorCount < 1 || !Number.isSafeInteger(sector + sectorCount))
    throw new FsError('outOfRange', { op, object: `nsd ${nsd} sector ${sector}`, detail: `${sectorCount} sectors` });
}
