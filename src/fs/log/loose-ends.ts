/**
 * What a node has begun with the maps of the file system and not yet brought to an end; it is in the node's log, so that who
 * recovers the node can end it.
 *
 * - limbo: sub-blocks that the allocation map says are in use and no logged pointer names: allocated for data that is not exposed yet, or cut
 *   off and not yet given back. Recovery frees them.
 * - shipped: the same, on their way to whoever holds the region, as a shipment with a sequence; the region's mark in the map says whether it has
 *   been applied (S6). Recovery frees what has not.
 * - numbers: inode numbers that the inode map says are in use and no inode has: in stock, or on their way back. Recovery gives them back.
 * - orphans: inodes without a name that somebody had open. Recovery frees them when nobody has them open any more.
 */
import type { InodeNumber } from '../../common/ids.js';
import { inodeNumber } from '../../common/ids.js';
import type { Extent } from '../layout.js';
import { ExtentSet } from './extent-set.js';

/** A change of them, as a record says it; several of one transaction count in their order. */
export type LooseEnd =
  | { readonly kind: 'limbo' | 'settled'; readonly extents: readonly Extent[] }
  /** From limbo on their way, of one region; `arrived`: the map says that they are free, durably. */
  | { readonly kind: 'shipped' | 'arrived'; readonly sequence: number; readonly extents: readonly Extent[] }
  | { readonly kind: 'numbersTaken' | 'numbersSettled'; readonly first: InodeNumber; readonly count: number }
  | { readonly kind: 'orphan' | 'orphanSettled'; readonly ino: InodeNumber; readonly generation: number }
  /** A snapshot: what so many transactions say, this one the first, is all there is. They follow each other; one that is not complete says nothing. */
  | { readonly kind: 'reset'; readonly transactions: number };

export class LooseEnds {
  readonly limbo = new ExtentSet();
  /** By sequence. Those of several regions may have the same one. */
  readonly shipped = new Map<number, ExtentSet>();
  readonly numbers = new Set<InodeNumber>();
  readonly orphans = new Map<InodeNumber, number>();

  apply(change: LooseEnd): void {
    switch (change.kind) {
      case 'limbo':
        for (const extent of change.extents) this.limbo.add(extent);
        break;
      case 'settled':
        for (const extent of change.extents) this.limbo.remove(extent);
        break;
      case 'shipped': {
        const set = this.shipped.get(change.sequence) ?? new ExtentSet();
        this.shipped.set(change.sequence, set);
        for (const extent of change.extents) {
          this.limbo.remove(extent);
          set.add(extent);
        }
        break;
      }
      case 'arrived': {
        const set = this.shipped.get(change.sequence);
        for (const extent of change.extents) set?.remove(extent);
        if (set?.count === 0) this.shipped.delete(change.sequence);
        break;
      }
      case 'numbersTaken':
        for (let i = 0; i < change.count; i++) this.numbers.add(inodeNumber(change.first + i));
        break;
      case 'numbersSettled':
        for (let i = 0; i < change.count; i++) this.numbers.delete(inodeNumber(change.first + i));
        break;
      case 'orphan':
        this.orphans.set(change.ino, change.generation);
        break;
      case 'orphanSettled':
        this.orphans.delete(change.ino);
        break;
      case 'reset':
        this.limbo.clear();
        this.shipped.clear();
        this.numbers.clear();
        this.orphans.clear();
        break;
    }
  }

  get empty(): boolean {
    return this.limbo.count === 0 && this.shipped.size === 0 && this.numbers.size === 0 && this.orphans.size === 0;
  }

  /** Of limbo in a snapshot. */
  get limboBytes(): number {
    return this.limbo.runs * EXTENT_BYTES;
  }

  /** All of it as changes, after a reset: for transactions of about so many bytes. */
  snapshot(lengthBytes: number): LooseEnd[][] {
    const parts: LooseEnd[][] = [];
    let part: LooseEnd[] = [];
    let left = lengthBytes;
    for (const change of this.#changes()) {
      const bytes = 'extents' in change ? change.extents.length * EXTENT_BYTES : 0;
      left -= bytes + RECORD_BYTES;
      if (left < 0 && part.length > 0) {
        parts.push(part);
        part = [];
        left = lengthBytes - bytes - RECORD_BYTES;
      }
      part.push(change);
    }
    parts.push(part);
    parts[0]!.unshift({ kind: 'reset', transactions: parts.length });
    return parts;
  }

  #changes(): LooseEnd[] {
    const changes: LooseEnd[] = [];
    const extents = this.limbo.extents();
    for (let at = 0; at < extents.length; at += EXTENTS_MAX)
      changes.push({ kind: 'limbo', extents: extents.slice(at, at + EXTENTS_MAX) });
    for (const [sequence, set] of this.shipped) {
      const sent = set.extents();
      for (let at = 0; at < sent.length; at += EXTENTS_MAX)
        changes.push({ kind: 'shipped', sequence, extents: sent.slice(at, at + EXTENTS_MAX) });
    }
    for (const { first, count } of runsOf(this.numbers)) changes.push({ kind: 'numbersTaken', first, count });
    for (const [ino, generation] of this.orphans) changes.push({ kind: 'orphan', ino, generation });
    return changes;
  }
}

/** In one record. */
export const EXTENTS_MAX = 1024;
/** Of an extent in a record. */
export const EXTENT_BYTES = 12;
/** Of a record without extents, at most. */
const RECORD_BYTES = 16;

export function runsOf(numbers: Iterable<InodeNumber>): { first: InodeNumber; count: number }[] {
  const runs: { first: InodeNumber; count: number }[] = [];
  for (const ino of [...numbers].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last !== undefined && last.first + last.count === ino && last.count < 0xffff) last.count++;
    else runs.push({ first: ino, count: 1 });
  }
  return runs;
}
