/** Puts a mounted file system together: reads the superblock, the maps' inodes, and connects the parts. */

import type { PageCacheApi } from '../cache/page-cache-api.js';
import type { Stamps } from '../cache/stamps.js';
import { FsError } from '../common/errors.js';
import { type InodeNumber, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { BufferArena, PagePool } from '../native/page-pool.js';
import type { Checksums } from '../nsd/checksums.js';
import { ALWAYS_UP, type CopyStates } from '../nsd/copy-states.js';
import { withCopies } from '../nsd/mirrored-nsds.js';
import type { NsdClientApi } from '../nsd/nsd-api.js';
import { Allocator } from './allocator.js';
import type { FileBacking } from './backing.js';
import { loadForCut } from './block-map.js';
import { FreeQueue } from './free-queue.js';
import { Inode } from './inode.js';
import { InodeAhead } from './inode-ahead.js';
import { decodeInode, FREE_INODE } from './inode-format.js';
import { InodeNumbers } from './inode-numbers.js';
import { InodeTable } from './inode-table.js';
import { ALLOCATION_MAP, INODE_MAP } from './layout.js';
import { LogClaim } from './log-claim.js';
import { type MountedFileSystem, MountedFs } from './mounted-file-system.js';
import { Neighbours } from './neighbours.js';
import { Orphans } from './orphans.js';
import { DEFAULT_FS_SETTINGS, type FsSettings } from './settings.js';
import { NO_OWNERS, type SharedOwners } from './shared/shared-io.js';
import { SharedService } from './shared/shared-service.js';
import { Shipments } from './space/shipments.js';
import { NO_PEERS, type SpacePeers } from './space-peers.js';
import { checkWritable, decodeSuperblock, fsIdOf, type Superblock } from './superblock.js';
import { type Lives, NOBODY_ELSE, type NsdServers, Volume, type VolumeParts } from './volume.js';

export type { MountedFileSystem } from './mounted-file-system.js';

export interface MountOptions
  extends Omit<VolumeParts, 'settings' | 'peers' | 'lives' | 'copyStates' | 'servers' | 'owners' | 'stamps'> {
  /** Made over `backing`, which is bound to the file system here: the circle is closed at mount. */
  readonly cache: PageCacheApi;
  readonly backing: FileBacking;
  readonly settings?: Partial<FsSettings>;
  /** Absent: nobody else has it mounted. */
  readonly peers?: SpacePeers;
  /** Absent: whoever left a log behind is gone. */
  readonly lives?: Lives;
  /** Absent: nobody knows. */
  readonly servers?: NsdServers;
  /** Absent: files have no owners but their users. */
  readonly owners?: SharedOwners;
  /** Absent: every NSD has everything, and nobody could be told otherwise. */
  readonly copyStates?: CopyStates;
  /** Absent: nobody remembers answers. */
  readonly stamps?: Stamps | undefined;
  /** What the caller believes is there; refused when the superblock says otherwise. */
  readonly fsUuid?: string | undefined;
  readonly nsdUuids?: readonly string[] | undefined;
}

/** How many NSDs are tried for a good superblock when the caller doesn't say how many there are. */
const SUPERBLOCK_TRIES = 4;

/** Needs 1 MiB of staging at least: a fragment on the move is in it. */
export async function mountFileSystem(options: MountOptions): Promise<MountedFileSystem> {
  const {
    cache,
    backing,
    settings,
    fsUuid,
    nsdUuids,
    peers,
    lives,
    servers,
    owners,
    copyStates = ALWAYS_UP,
    stamps = null,
    ...rest
  } = options;
  const { nsds, counters, logger } = rest;
  const parts = { ...rest, nsds: withCopies({ nsds, states: copyStates, counters, logger }) };
  const superblock = await readSuperblock(parts, nsdUuids?.length);
  checkIdentity(superblock, fsUuid, nsdUuids);
  checkWritable(superblock, 'mount');
  const volume = new Volume(
    {
      ...parts,
      settings: { ...DEFAULT_FS_SETTINGS, ...settings },
      peers: peers ?? NO_PEERS,
      lives: lives ?? NOBODY_ELSE,
      servers: servers ?? (() => null),
      owners: owners ?? NO_OWNERS,
      copyStates,
      stamps,
    },
    superblock,
    fsIdOf(superblock.fsUuid),
  );
  volume.cache = cache;
  if (stamps !== null) cache.setRevokeListener((ino) => stamps.changed(ino));
  volume.backing = backing;
  volume.inodes = new InodeTable(volume);
  volume.allocator = new Allocator(volume);
  volume.frees = new FreeQueue(volume);
  volume.shipments = new Shipments(volume);
  volume.numbers = new InodeNumbers(volume);
  volume.neighbours = new Neighbours(volume);
  volume.ahead = new InodeAhead(volume);
  volume.orphans = new Orphans(volume);
  volume.shared = new SharedService(volume);
  backing.bind(volume);
  try {
    await LogClaim.recoverLeft(volume);
    await volume.inodes.start();
    for (const ino of [ALLOCATION_MAP, INODE_MAP]) await attachMap(volume, ino);
    cache.setRevokeHook(ALLOCATION_MAP, async (range) => {
      volume.allocator.forget(range);
    });
    volume.claim = await LogClaim.take(volume);
    await volume.claim.settleLeft();
  } catch (error) {
    await giveUp(volume);
    throw error;
  }
  volume.parts.logger.info({ name: superblock.name, fsUuid: superblock.fsUuid }, 'file system mounted');
  return new MountedFs(volume);
}

/** A mount that failed leaves nothing in memory, and its log closed if that can be: else it is redone like that of one who died. */
async function giveUp(volume: Volume): Promise<void> {
  volume.closed = true;
  await volume.claim?.close().catch((error: unknown) => {
    volume.parts.logger.warn({ error: String(error) }, 'the log of a mount that failed could not be closed');
  });
  volume.cache.dropEverything();
  for (const { file } of volume.systemFiles.values()) file?.detach();
  await volume.cache.close().catch((error: unknown) => {
    volume.parts.logger.warn({ error: String(error) }, 'the cache of a mount that failed could not be closed');
  });
}

/** The maps were laid out by mkfs and never move: their inodes are read once, without a token. */
async function attachMap(volume: Volume, ino: InodeNumber): Promise<void> {
  const home = await volume.inodes.find(ino);
  if (home === null) throw new FsError('corrupt', { op: 'mount', object: `inode ${ino}`, detail: 'does not exist' });
  const inode = new Inode(ino);
  const fields = await volume.readSectors(home.nsd, home.sector, 1, (bytes) =>
    decodeInode(ino, bytes, volume.fsId, volume.geometry, volume.checksums),
  );
  if (fields === null || fields.type === FREE_INODE)
    throw new FsError('corrupt', {
      op: 'mount',
      object: `inode ${ino}`,
      detail: 'a map of the file system is missing',
    });
  inode.assign(fields);
  inode.home = home;
  inode.valid = true;
  await loadForCut(volume, inode, 0);
  volume.systemFiles.set(ino, inode);
  const { sizeBytes, mtimeNs, ctimeNs } = inode;
  inode.file = volume.cache.attach(ino, { sizeBytes, mtimeNs, ctimeNs });
}

interface SuperblockReader {
  readonly nsds: NsdClientApi;
  readonly arena: BufferArena;
  readonly pool: PagePool;
  readonly checksums: Checksums;
}

/** The copy with the greatest generation among those that can be read. @throws {FsError} what the first one failed with. */
export async function readSuperblock(parts: SuperblockReader, nsdCount = SUPERBLOCK_TRIES): Promise<Superblock> {
  let best: Superblock | null = null;
  let failure: unknown = null;
  for (let index = 0; index < nsdCount; index++) {
    const memory = await parts.arena.allocate(SECTOR_BYTES);
    try {
      const io = { offsetBytes: memory.offsetBytes, lengthBytes: SECTOR_BYTES };
      await parts.nsds.read([{ nsd: nsdIndex(index), sector: 0, memory: io }]);
      const sector = parts.pool.bytes.slice(io.offsetBytes, io.offsetBytes + SECTOR_BYTES);
      const found = decodeSuperblock(sector, parts.checksums);
      if (best === null || found.generation > best.generation) best = found;
    } catch (error) {
      failure ??= error;
    } finally {
      parts.arena.free(memory);
    }
    if (best !== null && index + 1 >= Math.min(best.nsds.length, SUPERBLOCK_TRIES)) break;
  }
  if (best === null)
    throw (
      failure ??
      new FsError('corrupt', { op: 'mount', object: 'superblock', detail: 'there is no NSD to read it from' })
    );
  return best;
}

function checkIdentity(
  superblock: Superblock,
  fsUuid: string | undefined,
  nsdUuids: readonly string[] | undefined,
): void {
  const wrong = (detail: string) => new FsError('wrongFormat', { op: 'mount', object: superblock.name, detail });
  if (fsUuid !== undefined && fsUuid.toLowerCase() !== superblock.fsUuid)
    throw wrong(`it is ${superblock.fsUuid}, not ${fsUuid}`);
  if (nsdUuids === undefined) return;
  superblock.nsds.forEach((nsd, index) => {
    if (nsdUuids[index]?.toLowerCase() !== nsd.uuid)
      throw wrong(`NSD ${index} is ${nsd.uuid}, ${nsdUuids[index] ?? 'none'} was named`);
  });
}
