/** What is not an inode's: the copies of the superblock, and the table of logs. */
import { FsError } from '../../../common/errors.js';
import { nsdIndex } from '../../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../../common/units.js';
import { durably } from '../../durable.js';
import { allNsds, type Extent, LOG_TABLE, RESERVED_BLOCKS } from '../../layout.js';
import { findLogTable } from '../../log/log-reader.js';
import { decodeDescriptor, LOG_SLOTS, type LogDescriptor, LogState, slotRange } from '../../log/log-table.js';
import { decodeSuperblock, encodeSuperblock } from '../../superblock.js';
import type { Volume } from '../../volume.js';
import { READ_RUN } from '../check-storage.js';
import { detailOf, UNREADABLE } from '../inodes.js';
import type { InodePass } from './inode-pass.js';
import type { Fault } from './look-at-inode.js';
import type { OnlineContext } from './online-context.js';
import type { SpacePass } from './space-pass.js';

/** A log's descriptor is its node's for as long as that has the file system mounted. */
const DESCRIPTOR_TIMEOUT_MS = 500;

export async function lookAtSystem(context: OnlineContext, { space }: InodePass, fourth: SpacePass): Promise<void> {
  const { volume } = context;
  for (const nsd of allNsds(volume.geometry)) {
    fourth.system.push({ nsd, sector: 0, count: RESERVED_BLOCKS * SUB_BLOCKS_PER_BLOCK });
    if (volume.copyStates.stateOf(nsd) !== 'up') context.notChecked('copies', 1);
    else await lookAtSuperblock(context, nsd);
  }
  for (const { pieces } of await descriptors(context))
    for (const extent of pieces) {
      space.claim(extent);
      fourth.system.push(extent);
    }
}

/** Nobody writes it while it is mounted, so it needs no token: what is there now stays. */
async function lookAtSuperblock(context: OnlineContext, nsd: number): Promise<void> {
  const { volume } = context;
  const image = encodeSuperblock(volume.superblock, volume.checksums);
  const place = nsdIndex(nsd);
  const copy = await context.view().readOne(place, 0);
  if (copy !== null && Buffer.compare(copy, image) === 0) return;
  const isMended = context.options.repair === true;
  if (isMended)
    await durably(volume.parts.nsds, [place], 'mendedSuperblock', () =>
      volume.writeSectors(place, 0, 1, (bytes) => bytes.set(image)),
    );
  const fault: Fault = {
    kind: 'superblockCopy',
    object: `superblock copy on NSD ${nsd}`,
    ino: null,
    detail: superblockFault(volume, copy),
  };
  context.report(fault, isMended);
}

function superblockFault({ superblock, checksums }: Volume, copy: Uint8Array | null): string {
  if (copy === null) return UNREADABLE;
  try {
    const { fsUuid, generation } = decodeSuperblock(copy, checksums);
    if (fsUuid !== superblock.fsUuid) return `is of file system ${fsUuid}`;
    return `generation ${generation} instead of ${superblock.generation}, or of other content`;
  } catch (error) {
    return detailOf(error);
  }
}

/** Those that can be believed. */
async function descriptors(context: OnlineContext): Promise<LogDescriptor[]> {
  const { volume } = context;
  const { fsId, geometry, checksums, superblock, parts } = volume;
  const found: LogDescriptor[] = [];
  let table: Extent;
  try {
    table = await findLogTable({ ...parts, fsId, geometry, inodeFile: superblock.inodeFile });
  } catch (error) {
    // Its inode is looked at among the others.
    if (FsError.is(error) && (error.reason === 'corrupt' || error.reason === 'checksumMismatch')) return found;
    throw error;
  }
  const decode = (sector: Uint8Array | null, slot: number): LogDescriptor | string => {
    try {
      return sector === null ? UNREADABLE : decodeDescriptor(sector, slot, fsId, geometry, checksums);
    } catch (error) {
      return detailOf(error);
    }
  };
  for (let at = 0; at < LOG_SLOTS; at += READ_RUN) {
    const view = context.view();
    const sectors = await view.read({ nsd: table.nsd, sector: table.sector + at, count: READ_RUN });
    const uneven = new Set([...view.uneven.values()].map(({ sector }) => sector));
    for (const [i, sector] of sectors.entries()) {
      const slot = at + i;
      const seen = decode(sector, slot);
      if (typeof seen !== 'string') {
        found.push(seen);
        noteState(context, seen);
      }
      if (typeof seen !== 'string' && !uneven.has(table.sector + slot)) continue;
      // Whoever has it in use keeps its token.
      if (typeof seen !== 'string' && isInUse(context, seen)) continue;
      const items = [volume.dataItem(LOG_TABLE, slotRange(slot))];
      await context.confirm({ items, timeoutMs: DESCRIPTOR_TIMEOUT_MS }, async (under) => {
        const now = decode(await under.readOne(table.nsd, table.sector + slot), slot);
        return typeof now === 'string'
          ? [{ kind: 'logDescriptorDamaged', object: `log ${slot}`, ino: null, detail: now }]
          : [];
      });
    }
  }
  return found;
}

function isInUse({ volume: { parts } }: OnlineContext, { state, owner }: LogDescriptor): boolean {
  if (state !== LogState.open && state !== LogState.creating) return false;
  const isOwn = owner.nodeId === parts.nodeId && owner.incarnation === parts.incarnation;
  return isOwn || parts.lives.state(owner.nodeId, owner.incarnation) === 'here';
}

function noteState(context: OnlineContext, descriptor: LogDescriptor): void {
  const { state } = descriptor;
  if (state === LogState.unused || state === LogState.clean) return;
  context.notChecked(isInUse(context, descriptor) ? 'logs' : 'logsLeft', 1);
}
