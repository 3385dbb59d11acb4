import {
  FILE_SYSTEM_NUMBER_MAX,
  type FileSystemNumber,
  fileSystemNumber,
  type NodeId,
  type NsdIndex,
  nodeId,
  nsdIndex,
} from '../common/ids.js';
import { ByteReader, ByteWriter } from './codec.js';
import { uuidFromBytes, uuidToBytes } from './nsd-messages.js';

/**
 * What nodes say about allocation regions (fs/space): questions to the allocation manager, and frees shipped to a region's holder. Fault model: any
 * bytes may arrive; what a shipment is about the file system checks.
 */
export interface RegionQuestion {
  readonly fileSystem: FileSystemNumber;
  readonly regionCount: number;
  readonly regionBytes: number;
  readonly count: number;
  readonly first: number;
  readonly tried: readonly number[];
  readonly reports: readonly {
    readonly region: number;
    readonly free: { readonly subBlocks: number; readonly inRow: number } | null;
  }[];
}

/** Who serves the tokens of the allocation map answers; anybody else says *unknown*. */
export type RegionReply =
  | { readonly kind: 'unknown' | 'none' | 'full' }
  | { readonly kind: 'free'; readonly region: number }
  | { readonly kind: 'held'; readonly region: number; readonly holder: NodeId };

const KINDS = ['unknown', 'none', 'full', 'free', 'held'] as const;
const TRIED_MAX = 64;
const REPORTS_MAX = 4096;
const REGIONS_MAX = 4096;
const EXTENTS_MAX = 1024;
const UNKNOWN = 0xffff_ffff;

export function encodeRegionQuestion(question: RegionQuestion): Uint8Array {
  const { fileSystem, regionCount, regionBytes, count, first, tried, reports } = question;
  const w = new ByteWriter().u32(fileSystem).u32(regionCount).u32(regionBytes).u16(count).u32(first).u16(tried.length);
  for (const region of tried) w.u32(region);
  w.u16(reports.length);
  for (const { region, free } of reports)
    w.u32(region)
      .u32(free?.subBlocks ?? UNKNOWN)
      .u16(free?.inRow ?? 0);
  return w.finish();
}

export function decodeRegionQuestion(body: Uint8Array): RegionQuestion {
  const r = new ByteReader(body, 'fsRegion body');
  const fileSystem = fileSystemOf(r);
  const regionCount = r.u32();
  const regionBytes = r.u32();
  const count = r.u16();
  const first = r.u32();
  if (regionCount === 0 || regionBytes === 0 || first >= regionCount) throw r.bad(`region ${first} of ${regionCount}`);
  const tried = Array.from({ length: bounded(r, TRIED_MAX) }, () => r.u32());
  const reports = Array.from({ length: bounded(r, REPORTS_MAX) }, () => {
    const region = r.u32();
    const subBlocks = r.u32();
    const inRow = r.u16();
    return { region, free: subBlocks === UNKNOWN ? null : { subBlocks, inRow } };
  });
  r.end();
  return { fileSystem, regionCount, regionBytes, count, first, tried, reports };
}

function fileSystemOf(r: ByteReader): FileSystemNumber {
  const number = r.u32();
  if (number > FILE_SYSTEM_NUMBER_MAX) throw r.bad(`file system ${number}`);
  return fileSystemNumber(number);
}

function bounded(r: ByteReader, max: number): number {
  const count = r.u16();
  if (count > max) throw r.bad(`${count} of at most ${max}`);
  return count;
}

export function encodeRegionReply(reply: RegionReply): Uint8Array {
  const w = new ByteWriter().u8(KINDS.indexOf(reply.kind));
  if (reply.kind === 'free') w.u32(reply.region);
  if (reply.kind === 'held') w.u32(reply.region).u16(reply.holder);
  return w.finish();
}
export function decodeRegionReply(body: Uint8Array): RegionReply {
  const r = new ByteReader(body, 'fsRegion reply');
  const code = r.u8();
  const kind = KINDS[code];
  if (kind === undefined) throw r.bad(`kind ${code}`);
  let reply: RegionReply;
  if (kind === 'free') reply = { kind, region: r.u32() };
  else if (kind === 'held') reply = { kind, region: r.u32(), holder: nodeId(r.u16()) };
  else reply = { kind };
  r.end();
  return reply;
}

export interface HoldersQuestion {
  readonly fileSystem: FileSystemNumber;
  readonly regionBytes: number;
  readonly regions: readonly number[];
}
export function encodeHoldersQuestion({ fileSystem, regionBytes, regions }: HoldersQuestion): Uint8Array {
  const w = new ByteWriter().u32(fileSystem).u32(regionBytes).u16(regions.length);
  for (const region of regions) w.u32(region);
  return w.finish();
}
export function decodeHoldersQuestion(body: Uint8Array): HoldersQuestion {
  const r = new ByteReader(body, 'fsHolders body');
  const fileSystem = fileSystemOf(r);
  const regionBytes = r.u32();
  if (regionBytes === 0) throw r.bad('regions of no bytes');
  const regions = Array.from({ length: bounded(r, REGIONS_MAX) }, () => r.u32());
  r.end();
  return { fileSystem, regionBytes, regions };
}

/** Null: who was asked doesn't serve the map's tokens, or doesn't know all of them yet. */
export function encodeHoldersReply(holders: readonly (NodeId | null)[] | null): Uint8Array {
  const w = new ByteWriter().u8(holders === null ? 0 : 1).u16(holders?.length ?? 0);
  for (const holder of holders ?? []) w.u16(holder ?? 0);
  return w.finish();
}
export function decodeHoldersReply(body: Uint8Array): (NodeId | null)[] | null {
  const r = new ByteReader(body, 'fsHolders reply');
  const known = r.u8();
  if (known > 1) throw r.bad(`known ${known}`);
  const holders = Array.from({ length: bounded(r, REGIONS_MAX) }, () => {
    const node = r.u16();
    return node === 0 ? null : nodeId(node);
  });
  r.end();
  return known === 0 ? null : holders;
}

export interface ShipmentMessage {
  readonly fsUuid: string;
  readonly fileSystem: FileSystemNumber;
  /** Whoever receives it passes it on to this node, if it has a link with it: nodes that are never dialled. Null: it is meant itself. */
  readonly relayTo: NodeId | null;
  readonly timeoutMs: number;
  readonly shipment: {
    readonly region: number;
    readonly slot: number;
    readonly sequence: number;
    readonly extents: readonly { readonly nsd: NsdIndex; readonly sector: number; readonly count: number }[];
  };
}
export function encodeShipment({ fsUuid, fileSystem, relayTo, timeoutMs, shipment }: ShipmentMessage): Uint8Array {
  const w = new ByteWriter()
    .raw(uuidToBytes(fsUuid))
    .u32(fileSystem)
    .u16(relayTo ?? 0)
    .u32(timeoutMs);
  w.u32(shipment.region).u16(shipment.slot).u64(shipment.sequence).u16(shipment.extents.length);
  for (const { nsd, sector, count } of shipment.extents) w.u16(nsd).u64(sector).u16(count);
  return w.finish();
}
export function decodeShipment(body: Uint8Array): ShipmentMessage {
  const r = new ByteReader(body, 'fsShip body');
  const fsUuid = uuidFromBytes(r.raw(16));
  const fileSystem = fileSystemOf(r);
  const relay = r.u16();
  const timeoutMs = r.u32();
  const region = r.u32();
  const slot = r.u16();
  const sequence = r.u64();
  const extents = Array.from({ length: bounded(r, EXTENTS_MAX) }, () => ({
    nsd: nsdIndex(r.u16()),
    sector: r.u64(),
    count: r.u16(),
  }));
  r.end();
  const relayTo = relay === 0 ? null : nodeId(relay);
  return { fsUuid, fileSystem, relayTo, timeoutMs, shipment: { region, slot, sequence, extents } };
}

export const encodeShipmentReply = (applied: boolean): Uint8Array => new ByteWriter(1).u8(applied ? 1 : 0).finish();
export function decodeShipmentReply(body: Uint8Array): boolean {
  const r = new ByteReader(body, 'fsShip reply');
  const applied = r.u8();
  if (applied > 1) throw r.bad(`applied ${applied}`);
  r.end();
  return applied === 1;
}
