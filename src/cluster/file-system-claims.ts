/**
 * Who uses a file system as a whole, in the cluster store: everybody who has it mounted, or one who checks or repairs it, or one who is making it.
 *
 * Invariant: a mount and a repair never go on both. Each writes its own key first and looks for the other's then, so that of two at the same time at least one
 * sees the other and gives way.
 * Fault model: whoever holds a claim may die at any moment. Keys of mounts and of checks go with the lease. A repair's stays, because what it leaves is for the next
 * repair and not for a mount; the next repair takes it over from a life that is gone. So stays that of a making, as evidence that what its NSDs say they
 * belong to never came to be.
 */
import { z } from 'zod';
import { FsError } from '../common/errors.js';
import type { ClusterStore, StoreLease } from './cluster-store.js';

interface Life {
  readonly nodeId: number;
  readonly incarnation: number;
}

export interface ClaimedFileSystem {
  readonly uuid: string;
  readonly name: string;
}

export interface ClaimParts {
  readonly store: ClusterStore;
  readonly self: Life;
  /** Of the node's present life. */
  readonly lease: () => StoreLease;
  /** Neither in the view nor being expelled. */
  readonly isGone: (life: Life) => boolean;
}

const holderSchema = z.object({ nodeId: z.number(), incarnation: z.number() });
const repairSchema = holderSchema.extend({ repairs: z.boolean() });
const makingSchema = holderSchema.extend({ failed: z.boolean() });

const USERS_PREFIX = 'claims/users/';
const ALONE_PREFIX = 'claims/alone/';
const MAKING_PREFIX = 'claims/making/';
const ATTEMPTS_MAX = 16;

export interface AloneClaim {
  /** A repair has come to its end: the file system may be mounted. */
  done(): Promise<void>;
  /** Nothing was changed. */
  giveUp(): Promise<void>;
}

export class FileSystemClaims {
  readonly #parts: ClaimParts;

  constructor(parts: ClaimParts) {
    this.#parts = parts;
  }

  /** For the time of a mount. @throws {FsError} busy: it is being checked or repaired, or a repair was cut off */
  async use({ uuid, name }: ClaimedFileSystem): Promise<() => Promise<void>> {
    const { store, self, lease, isGone } = this.#parts;
    const key = `${USERS_PREFIX}${uuid}/${self.nodeId}.${self.incarnation}`;
    await store.put(key, JSON.stringify(self), lease());
    const release = async (): Promise<void> => {
      await store.delete(key);
    };
    try {
      const alone = await this.#alone(uuid);
      if (alone === null) return release;
      const busy = (detail: string): FsError => new FsError('busy', { op: 'mount', object: name, detail });
      if (!isGone(alone)) throw busy(`node ${alone.nodeId} ${alone.repairs ? 'repairs' : 'checks'} it`);
      throw busy(`a repair of it was cut off: run holdfast fs check ${name} --repair`);
    } catch (error) {
      await release().catch(() => undefined);
      throw error;
    }
  }

  /** For a check, or a repair, whose claim stays until it has come to its end. @throws {FsError} busy: somebody has it mounted, or checks it */
  async takeAlone({ uuid, name }: ClaimedFileSystem, repairs: boolean): Promise<AloneClaim> {
    const { store, self, lease, isGone } = this.#parts;
    const key = `${ALONE_PREFIX}${uuid}`;
    const busy = (detail: string): FsError => new FsError('busy', { op: 'fs.check', object: name, detail });
    const present = await this.#takeKey(uuid, repairs, busy);
    const mine = JSON.stringify({ ...self, repairs: repairs || present?.repairs === true });
    // What a repair that was cut off has left is there still when nothing has come of this.
    const giveUp = async (): Promise<void> => {
      if (present?.repairs === true) await store.put(key, JSON.stringify(present));
      else await store.delete(key);
    };
    try {
      if (!repairs && present === null) await store.put(key, mine, lease());
      const { entries } = await store.list(`${USERS_PREFIX}${uuid}/`);
      // The lease of one that was expelled may still run: what it left is in its log, and redone.
      const users = entries.flatMap(({ value }) => parsed(holderSchema, value) ?? []).filter((life) => !isGone(life));
      if (users.length > 0)
        throw busy(`node ${users.map(({ nodeId }) => nodeId).join(', ')} has it mounted: unmount it first`);
      return { giveUp, done: async () => void (await store.delete(key)) };
    } catch (error) {
      await giveUp().catch(() => undefined);
      throw error;
    }
  }

  /** What was there, of a life that is gone. */
  async #takeKey(
    uuid: string,
    repairs: boolean,
    busy: (detail: string) => FsError,
  ): Promise<z.output<typeof repairSchema> | null> {
    const { store, self, isGone } = this.#parts;
    const key = `${ALONE_PREFIX}${uuid}`;
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      const entry = await store.get(key);
      const present = entry === null ? null : parsed(repairSchema, entry.value);
      const own = present !== null && present.nodeId === self.nodeId && present.incarnation === self.incarnation;
      if (present !== null && !own && !isGone(present))
        throw busy(`node ${present.nodeId} ${present.repairs ? 'repairs' : 'checks'} it`);
      const value = JSON.stringify({ ...self, repairs: repairs || present?.repairs === true });
      if ((await store.compareAndSwap(key, entry?.revision ?? 0, value)).ok) return present;
    }
    throw busy('others claim it all the time');
  }

  async #alone(uuid: string): Promise<z.output<typeof repairSchema> | null> {
    const entry = await this.#parts.store.get(`${ALONE_PREFIX}${uuid}`);
    return entry === null ? null : parsed(repairSchema, entry.value);
  }

  /** Before the first NSD is claimed for it. */
  async beginMaking(uuid: string): Promise<void> {
    const { store, self } = this.#parts;
    await store.put(`${MAKING_PREFIX}${uuid}`, JSON.stringify({ ...self, failed: false }));
  }
  /** It has its record, or never will. */
  async endMaking(uuid: string, failed: boolean): Promise<void> {
    const { store, self } = this.#parts;
    if (failed) await store.put(`${MAKING_PREFIX}${uuid}`, JSON.stringify({ ...self, failed }));
    else await store.delete(`${MAKING_PREFIX}${uuid}`);
  }
  /** Its making failed, or was cut off; whether it has a record all the same is for the caller to see. */
  async wasNeverMade(uuid: string): Promise<boolean> {
    const entry = await this.#parts.store.get(`${MAKING_PREFIX}${uuid}`);
    const making = entry === null ? null : parsed(makingSchema, entry.value);
    return making !== null && (making.failed || this.#parts.isGone(making));
  }
}

function parsed<T>(schema: z.ZodType<T>, text: string): T | null {
  try {
    return schema.safeParse(JSON.parse(text)).data ?? null;
  } catch {
    return null;
  }
}
