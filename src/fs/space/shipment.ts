/** What is said between a node that frees, the allocation manager, and whoever holds the region (S6). See shipments.ts, region-machine.ts. */
import type { NodeId, NsdIndex } from '../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import { copiesOf } from '../../nsd/copies.js';
import { type Extent, type Geometry, regionOf } from '../layout.js';
import { LOG_SLOTS } from '../log/log-table.js';

/** Extents of one region, to be marked as free there by whoever holds the region. */
export interface Shipment {
  readonly region: number;
  /** Of the log that says that they are on their way. */
  readonly slot: number;
  /** Grows from shipment to shipment of a slot, for ever: applied in its order, and once. */
  readonly sequence: number;
  readonly extents: readonly Extent[];
}

/** In one shipment, and so in one record of the log. */
export const SHIPMENT_EXTENTS_MAX = 256;
export const SEQUENCE_MAX = 2 ** 48 - 1;

/** What came off a wire is believed in nothing. Null: it is about what it says. */
export function shipmentFault({ region, slot, sequence, extents }: Shipment, geometry: Geometry): string | null {
  if (region >= geometry.regionCount) return `region ${region}`;
  if (slot >= LOG_SLOTS || sequence < 1 || sequence > SEQUENCE_MAX) return `sequence ${sequence} of slot ${slot}`;
  if (extents.length < 1 || extents.length > SHIPMENT_EXTENTS_MAX) return `${extents.length} extents`;
  for (const { nsd, sector, count } of extents) {
    const inBlock = count >= 1 && (sector % SUB_BLOCKS_PER_BLOCK) + count <= SUB_BLOCKS_PER_BLOCK;
    const isThere = (copy: NsdIndex): boolean => sector < (geometry.nsdBlocks[copy] ?? 0) * SUB_BLOCKS_PER_BLOCK;
    if (!inBlock || regionOf(geometry, sector) !== region || !copiesOf(nsd).every(isThere))
      return `${count} sub-blocks at ${sector} of NSD ${nsd} in region ${region}`;
  }
  return null;
}

/** *notMine*: the region isn't held there, or not any more; nothing was done. *silent*: nobody knows whether it was. */
export type ShipmentAnswer = 'applied' | 'notMine' | 'silent';

/** Roughly what is free in a region: sub-blocks, and how many there may be in a row. Null: more than was said before. */
export interface RegionReport {
  readonly region: number;
  readonly free: { readonly subBlocks: number; readonly inRow: number } | null;
}

/** For the manager. */
export interface RegionAsk {
  readonly regionCount: number;
  /** Of a region's sectors in the allocation map's file. */
  readonly regionBytes: number;
  /** So many sub-blocks in a row are wanted, at one place or at two; 0: nothing, this is a report only. */
  readonly count: number;
  /** Near this region. */
  readonly first: number;
  /** Were had before, in vain. */
  readonly tried: readonly number[];
  readonly reports: readonly RegionReport[];
}

export type RegionAnswer =
  /** Nobody else holds it. */
  | { readonly kind: 'free'; readonly region: number }
  | { readonly kind: 'held'; readonly region: number; readonly holder: NodeId }
  /** As far as it knows. */
  | { readonly kind: 'full' };

export const REPORTS_MAX = 1024;
export const TRIED_MAX = 16;
export const HOLDERS_ASKED_MAX = 1024;
