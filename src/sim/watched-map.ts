import type { Coverage, EntryId } from '../cache/cache-map.js';
import { TwinCacheMap } from '../cache/cache-map-twin.js';
import type { InodeNumber } from '../common/ids.js';
import { TokenMode } from '../token-manager/token.js';

/** What one entry of a node's cache map lets hits rely on. */
export interface Published {
  readonly ino: InodeNumber;
  status: TokenMode;
  coverage: readonly Coverage[];
}

/** The cache map with a window: what is published, kept beside it as the engine said it, for the checks of I2. */
export class WatchedCacheMap extends TwinCacheMap {
  readonly published = new Map<EntryId, Published>();
  leaseDeadlineMs = 0;
  /** Set by every change; the checks reset it. */
  changed = false;
  /** Told of sizes set while write hits are allowed: one of another thread at that moment would be undone. */
  onUnsettled: (ino: InodeNumber) => void = () => undefined;

  sizeNow(entry: EntryId): number {
    return super.entryState(entry).sizeBytes;
  }

  override openEntry(ino: InodeNumber, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): EntryId | null {
    const entry = super.openEntry(ino, state);
    if (entry !== null) this.published.set(entry, { ino, status: TokenMode.none, coverage: [] });
    return entry;
  }
  override closeEntry(entry: EntryId): void {
    super.closeEntry(entry);
    this.published.delete(entry);
  }
  override setStatusMode(entry: EntryId, mode: TokenMode): void {
    super.setStatusMode(entry, mode);
    this.published.get(entry)!.status = mode;
    this.changed = true;
  }
  override setEntryState(entry: EntryId, state: { sizeBytes: number; mtimeNs: bigint; ctimeNs: bigint }): void {
    const published = this.published.get(entry)!;
    if (published.status === TokenMode.exclusive) this.onUnsettled(published.ino);
    super.setEntryState(entry, state);
  }
  override setCoverage(entry: EntryId, ranges: readonly Coverage[]): void {
    super.setCoverage(entry, ranges);
    this.published.get(entry)!.coverage = ranges.slice();
    this.changed = true;
  }
  override setLeaseDeadline(deadlineMs: number): void {
    super.setLeaseDeadline(deadlineMs);
    this.leaseDeadlineMs = deadlineMs;
  }
}
