/**
 * One open file of this node, as far as it is served through its owner: a file declared shared-write that another node owns.
 *
 * Which way an operation goes is no matter of correctness: whoever does it does so under the file's tokens. So whatever stands in the way (the
 * owner hasn't it mounted, the flag went, the operation is long) has it done here. Null means that.
 * Fault model: the owner dies. A read is done here then. A write at an offset is done again, here, once the owner's life is over (F1: nothing of it
 * reaches an NSD any more); as long as it isn't, and for appends always, the caller is told, and nobody knows whether it was done. What the owner had
 * acknowledged and not yet synced may be lost with it: the next sync of this handle says so, once (I10).
 */
import { FsError } from '../../common/errors.js';
import type { Credentials, OpOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { InodeFlag } from '../inode-format.js';
import type { Volume } from '../volume.js';
import {
  type Owner,
  SHARED_BYTES_MAX,
  SHARED_GROUPS_MAX,
  type SharedOwners,
  type SharedReply,
  type SharedRequest,
} from './shared-io.js';

const EMPTY = new Uint8Array(0);

export class SharedHandle {
  readonly #volume: Volume;
  readonly #inode: Inode;
  readonly #generation: number;
  readonly #credentials: Credentials;
  /** Its further groups as they are sent. */
  readonly #groups: readonly number[];
  readonly #owners: SharedOwners;
  /** As it was when this node last had the inode. */
  #isShared = false;
  /** Lives that have something of this handle's that was not synced. */
  readonly #unsynced = new Map<string, Owner>();

  constructor(volume: Volume, inode: Inode, credentials: Credentials, owners: SharedOwners) {
    this.#owners = owners;
    this.#volume = volume;
    this.#inode = inode;
    this.#generation = inode.generation;
    this.#credentials = credentials;
    this.#groups = [...new Set(credentials.groups)].sort((a, b) => a - b);
    this.#look();
  }

  /** Whether others serve it, as far as is known. */
  get isElsewhere(): boolean {
    this.#look();
    return this.#isShared && this.#owners.ownerOf(this.#inode.ino) !== null;
  }

  #look(): void {
    const inode = this.#inode;
    if (inode.valid && inode.generation === this.#generation)
      this.#isShared = (inode.flags & InodeFlag.sharedWrite) !== 0;
  }

  #owner(lengthBytes: number): Owner | null {
    if (!this.isElsewhere || lengthBytes === 0 || lengthBytes > SHARED_BYTES_MAX) return null;
    if (this.#groups.length > SHARED_GROUPS_MAX) return null;
    return this.#owners.ownerOf(this.#inode.ino);
  }

  async #ask(
    owner: Owner,
    what: Pick<SharedRequest, 'op' | 'offsetBytes'> & Partial<SharedRequest>,
    options: OpOptions | undefined,
  ): Promise<SharedReply> {
    const { uid, gid } = this.#credentials;
    const rest = { lengthBytes: 0, bytes: EMPTY, uid, gid, groups: this.#groups, dataOnly: false };
    const request = { ...rest, ino: this.#inode.ino, generation: this.#generation, ...what };
    this.#volume.counters.add('fs.sharedRequests');
    const reply = await this.#owners.ask(owner, request, options?.signal);
    // The next one is done here, and sees how it is.
    if (reply === null && what.op !== 'sync') this.#isShared = false;
    return reply;
  }

  async read(offsetBytes: number, target: Uint8Array, options: OpOptions | undefined): Promise<number | null> {
    const owner = this.#owner(target.length);
    if (owner === null) return null;
    try {
      const lengthBytes = target.length;
      const reply = await this.#ask(owner, { op: 'read', offsetBytes, lengthBytes }, options);
      if (reply === null) return null;
      target.set(reply.bytes);
      return reply.bytes.length;
    } catch (error) {
      if (!isUncertain(error)) throw error;
      return null;
    }
  }

  async write(
    offsetBytes: number | null,
    bytes: Uint8Array,
    options: OpOptions | undefined,
  ): Promise<{ offsetBytes: number; lengthBytes: number } | null> {
    const owner = this.#owner(bytes.length);
    if (owner === null) return null;
    const key = `${owner.nodeId}/${owner.incarnation}`;
    try {
      const reply = await this.#ask(owner, { op: 'write', offsetBytes, bytes }, options);
      if (reply === null) return null;
      this.#unsynced.set(key, owner);
      return { offsetBytes: reply.offsetBytes, lengthBytes: reply.lengthBytes };
    } catch (error) {
      if (!isUncertain(error)) throw error;
      if (offsetBytes === null || this.#owners.isThere(owner)) throw error;
      return null;
    }
  }

  /** What was written through owners is durable. @throws {FsError} writesLost, once, for what may have gone with one of them. */
  async sync(dataOnly: boolean, options: OpOptions | undefined): Promise<void> {
    let lost: unknown = null;
    for (const [key, owner] of [...this.#unsynced]) {
      this.#unsynced.delete(key);
      try {
        const reply = await this.#ask(owner, { op: 'sync', offsetBytes: 0, dataOnly }, options);
        // Null from that life: it left the file to others since, in good order, and all of it was durable before (log.md). From a later life of the
        // node: nobody knows how the other one ended.
        if (reply === null && !this.#owners.isThere(owner)) lost = new FsError('fenced', { op: 'sharedIo' });
      } catch (error) {
        if (!isUncertain(error) || this.#owners.isThere(owner)) {
          this.#unsynced.set(key, owner);
          throw error;
        }
        lost = error;
      }
    }
    if (lost === null) return;
    const detail = 'the node that this file was written through is gone, and what was not synced perhaps with it';
    throw new FsError('writesLost', { op: 'fsync', object: `inode ${this.#inode.ino}`, detail, cause: lost });
  }
}

/** The fabric's own failures: whether the owner has done it is not known. */
function isUncertain(error: unknown): boolean {
  if (!FsError.is(error)) return false;
  return ['fenced', 'deadlinePassed', 'unreachable', 'connectionLost', 'closed', 'staleEpoch'].includes(error.reason);
}
