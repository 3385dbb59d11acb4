import type { ClusterView, Membership } from '../cluster/membership-api.js';
import { type Clock, sleep } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { NodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import { readSuperblock } from '../fs/mount.js';
import type { MountedFileSystem } from '../fs/mounted-file-system.js';
import { recoverLife } from '../fs/recovery.js';
import { checkWritable, fsIdOf } from '../fs/superblock.js';
import type { LifeState } from '../fs/volume.js';
import type { BufferArena, PagePool } from '../native/page-pool.js';
import type { Checksums } from '../nsd/checksums.js';
import type { NsdClientApi } from '../nsd/nsd-api.js';
import type { FileSystemIdentity } from './node.js';

/**
 * A node's part in the recovery of others (F1): redoing the log of a dead one, in every file system, before its tokens fall; and when they have
 * fallen, settling what it left unfinished in the file system that is mounted here.
 *
 * Fault model: what fails is begun again by whoever drives the expulsion, which may be somebody else by then (L3). An NSD that nobody serves is
 * waited for: others may have its file system mounted, and must not go on before the log has been redone.
 */
interface Parts {
  readonly self: NodeId;
  readonly storage: (identity: FileSystemIdentity) => NsdClientApi;
  readonly fileSystems: () => Promise<readonly FileSystemIdentity[]>;
  readonly membership: Membership;
  readonly arena: BufferArena;
  readonly pool: PagePool;
  readonly checksums: Checksums;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly mounted: () => MountedFileSystem | null;
}

interface Life {
  readonly nodeId: number;
  readonly incarnation: number;
}

/** Not all nodes at once: whoever comes later finds nothing left to do. */
const SETTLE_STEP_MS = 100;
const SETTLE_RETRY_MS = 2_000;
const SETTLE_ATTEMPTS_MAX = 30;

export class NodeRecovery {
  readonly #parts: Parts;
  /** Those under way, and those done that are still being expelled. */
  readonly #redone = new Map<string, Promise<void>>();
  #stopped = false;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  stop(): void {
    this.#stopped = true;
  }

  /** Its NSD servers refuse it everywhere by now. Resolves when its logs have been redone, durably. */
  redo(life: Life): Promise<void> {
    const key = `${life.nodeId}.${life.incarnation}`;
    const present = this.#redone.get(key);
    if (present !== undefined) return present;
    const done = this.#redoAll(life);
    this.#redone.set(key, done);
    done.catch(() => this.#redone.delete(key));
    return done;
  }

  async #redoAll(life: Life): Promise<void> {
    const { storage: storageOf, fileSystems, arena, pool, checksums, counters, logger } = this.#parts;
    // Another node may drive the expulsion by now, and be through with it while this one waited for an NSD.
    const goOn = (): void => {
      if (!this.#stopped && lifeState(this.#parts.membership.view, life.nodeId, life.incarnation) !== 'gone') return;
      throw new FsError('staleEpoch', {
        op: 'log.redo',
        object: `node ${life.nodeId}, incarnation ${life.incarnation}`,
        detail: 'its log has been redone by others',
      });
    };
    for (const identity of await fileSystems()) {
      const { nsds: uuids, name } = identity;
      const storage = { nsds: storageOf(identity), arena, pool, checksums };
      const superblock = await readSuperblock(storage, uuids.length);
      checkWritable(superblock, 'recovery');
      const { geometry, fsUuid, inodeFile } = superblock;
      const volume = { ...storage, geometry, fsId: fsIdOf(fsUuid), inodeFile, logger, counters, goOn };
      const recovered = await recoverLife(volume, life);
      logger.info({ life, fileSystem: name, ...recovered }, 'the log of a node that is gone has been redone');
    }
  }

  viewChanged(view: ClusterView, previous: ClusterView): void {
    for (const life of previous.expelling)
      if (lifeState(view, life.nodeId, life.incarnation) === 'gone') {
        this.#redone.delete(`${life.nodeId}.${life.incarnation}`);
        void this.#settle();
      }
  }

  async #settle(): Promise<void> {
    const { clock, membership, logger, mounted, self } = this.#parts;
    const place = [...membership.view.nodes.keys()].indexOf(self);
    await sleep(clock, SETTLE_STEP_MS * Math.max(0, place));
    for (let attempt = 1; attempt <= SETTLE_ATTEMPTS_MAX && !this.#stopped; attempt++) {
      try {
        await mounted()?.settleLeft();
        return;
      } catch (error) {
        if (mounted() === null || this.#stopped) return;
        logger.warn({ error: String(error) }, 'what a dead node left unfinished could not be settled yet');
        await sleep(clock, SETTLE_RETRY_MS);
      }
    }
  }
}

export function lifeState({ nodes, expelling }: ClusterView, nodeId: number, incarnation: number): LifeState {
  for (const node of nodes.values()) if (node.nodeId === nodeId && node.incarnation === incarnation) return 'here';
  const leaving = expelling.some((life) => life.nodeId === nodeId && life.incarnation === incarnation);
  return leaving ? 'expelling' : 'gone';
}
