/** The logs, as a check sees them: where they are, whether they are at their end, and whether what is in them is whole. */
import { SECTOR_BYTES } from '../../common/units.js';
import { type Extent, LOG_TABLE } from '../layout.js';
import { type LogVolume, readLog } from '../log/log-reader.js';
import { decodeDescriptor, encodeDescriptor, LOG_SLOTS, type LogDescriptor, LogState } from '../log/log-table.js';
import type { Scan } from './scan.js';

const STATE_WORDS = {
  [LogState.creating]: 'its space was being taken',
  [LogState.open]: 'it has not been redone',
  [LogState.replayed]: 'what its node left unfinished has not been settled',
};

export class RecordedLogs {
  readonly #scan: Scan;
  /** Where the table is. */
  table: Extent | null = null;
  /** As they were read; null: damaged. */
  descriptors: readonly (LogDescriptor | null)[] = [];
  /** Where they lie. */
  readonly extents: Extent[] = [];
  readonly #toEnd: { readonly descriptor: LogDescriptor; readonly head: number }[] = [];

  constructor(scan: Scan) {
    this.#scan = scan;
  }

  get volume(): LogVolume {
    const { storage, fsId, geometry, superblock } = this.#scan;
    return { ...storage.parts, nsds: storage.readOnly, fsId, geometry, inodeFile: superblock.inodeFile };
  }

  async read(): Promise<void> {
    const scan = this.#scan;
    this.table = scan.system.get(LOG_TABLE)?.blocks.get(0) ?? null;
    const { table } = this;
    if (table === null) return;
    const descriptors: (LogDescriptor | null)[] = [];
    await scan.storage.each(table, LOG_SLOTS, (sector, slot) => descriptors.push(this.#decode(sector, slot)));
    this.descriptors = descriptors;
    for (const [slot, descriptor] of this.descriptors.entries()) {
      if (descriptor === null) {
        scan.report(
          'logDescriptorDamaged',
          { object: `log ${slot}` },
          'its descriptor is damaged: if its node had logged what it had not written in place, that is lost',
          'made unused, its space freed',
          async (edits) => edits.put(table.nsd, table.sector + slot, new Uint8Array(SECTOR_BYTES)),
        );
        continue;
      }
      for (const extent of descriptor.pieces) {
        scan.claim(extent);
        this.extents.push(extent);
      }
      if (descriptor.state === LogState.unused || descriptor.state === LogState.clean) continue;
      await this.#look(descriptor);
    }
  }

  #decode(sector: Uint8Array | null, slot: number): LogDescriptor | null {
    const { fsId, geometry, checksums } = this.#scan;
    if (sector === null) return null;
    try {
      return decodeDescriptor(sector, slot, fsId, geometry, checksums);
    } catch {
      // Whoever asks says so, as of a sector that is missing.
      return null;
    }
  }

  async #look(descriptor: LogDescriptor): Promise<void> {
    if (descriptor.state === LogState.creating) {
      this.#toEnd.push({ descriptor, head: 0 });
      return;
    }
    const scanned = await readLog(this.volume, descriptor);
    this.#toEnd.push({ descriptor, head: scanned.head });
    const hole = scanned.hole ?? scanned.later;
    if (hole !== null)
      this.#scan.report(
        'logHole',
        { object: `log ${descriptor.slot}` },
        `${hole}: what node ${descriptor.owner.nodeId} logged from there on is lost`,
      );
  }

  /** At the end: what they left unfinished has been mended as lost space, numbers and orphans by then. */
  check(): void {
    const scan = this.#scan;
    const { table } = this;
    if (table === null) return;
    for (const { descriptor, head } of this.#toEnd)
      scan.report(
        'logNotEnded',
        { object: `log ${descriptor.slot}` },
        `of node ${descriptor.owner.nodeId}: ${STATE_WORDS[descriptor.state as keyof typeof STATE_WORDS]}`,
        'brought to its end',
        async (edits) => {
          const ended = { ...descriptor, state: LogState.clean, tail: head, settledEnds: 0 };
          edits.put(table.nsd, table.sector + descriptor.slot, encodeDescriptor(ended, scan.fsId, 1));
        },
      );
  }
}
