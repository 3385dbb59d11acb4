import { SECTOR_BYTES } from '../common/units.js';
import type { PoolSegment } from '../native/page-pool.js';
import { uuidToBytes } from '../protocol/nsd-messages.js';
import { type HeaderParts, writeHeaders } from './header-pair.js';
import {
  encodeChecksumSector,
  encodeHeader,
  geometryOf,
  geometryOfDevice,
  type NsdHeader,
  newEntries,
} from './nsd-layout.js';

export interface NsdFormatOptions {
  readonly uuid: string;
  readonly fsUuid?: string | null;
  readonly clusterId: string;
  readonly failureGroup: number;
  readonly name: string;
}

/** See NsdStore.format. */
export async function formatNsd(parts: HeaderParts, options: NsdFormatOptions): Promise<NsdHeader> {
  const { device, pool, checksums, staging } = parts;
  const { dataSectorCount, intentSectorCount } = geometryOfDevice(device.lengthBytes);
  const header: NsdHeader = {
    uuid: options.uuid,
    fsUuid: options.fsUuid ?? null,
    clusterId: options.clusterId,
    failureGroup: options.failureGroup,
    name: options.name,
    dataSectorCount,
    intentSectorCount,
    generation: 1,
    life: 0,
    wholeSince: 1,
    keeper: null,
    ended: true,
  };
  const geometry = geometryOf(header);
  const first: PoolSegment = { offsetBytes: staging.offsetBytes, lengthBytes: SECTOR_BYTES };
  // Checks the options before anything is overwritten.
  encodeHeader(header, checksums, pool.bytes, first.offsetBytes);
  pool.bytes.fill(0, first.offsetBytes, first.offsetBytes + SECTOR_BYTES);
  await device.write(0, first);
  await device.write(geometry.headerCopy * SECTOR_BYTES, first);
  await device.flush();
  const nsd = uuidToBytes(header.uuid);
  const entries = newEntries();
  const sectorsAtOnce = Math.floor(staging.lengthBytes / SECTOR_BYTES);
  for (let index = 0; index < geometry.checksumSectorCount; index += sectorsAtOnce) {
    const count = Math.min(sectorsAtOnce, geometry.checksumSectorCount - index);
    for (let i = 0; i < count; i++) {
      const place = { nsd, index: index + i };
      encodeChecksumSector(place, entries, checksums, pool.bytes, staging.offsetBytes + i * SECTOR_BYTES);
    }
    const memory = { offsetBytes: staging.offsetBytes, lengthBytes: count * SECTOR_BYTES };
    await device.write((1 + index) * SECTOR_BYTES, memory);
  }
  // Intents of an earlier life would be taken for this one's, if it had the same UUID.
  pool.bytes.fill(0, staging.offsetBytes, staging.offsetBytes + sectorsAtOnce * SECTOR_BYTES);
  for (let i = 0; i < geometry.intentSectorCount; i += sectorsAtOnce) {
    const count = Math.min(sectorsAtOnce, geometry.intentSectorCount - i);
    const memory = { offsetBytes: staging.offsetBytes, lengthBytes: count * SECTOR_BYTES };
    await device.write((geometry.intentStart + i) * SECTOR_BYTES, memory);
  }
  await device.flush();
  await writeHeaders(parts, header);
  return header;
}
