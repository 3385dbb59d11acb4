/**
 * The owner's side of files that were declared shared-write: what other nodes ask for is done here, under this node's tokens and in its cache.
 *
 * A file stays open here for a moment after it was last asked for. Bounded in number; a file that is to be freed somewhere waits that moment.
 */
import { constants } from 'node:fs';
import type { Timer } from '../../common/clock.js';
import { FsError } from '../../common/errors.js';
import type { InodeNumber } from '../../common/ids.js';
import { type OpenFile, ROOT } from '../file-system-api.js';
import { InodeFlag } from '../inode-format.js';
import type { FsOpenFile } from '../open-file.js';
import { openInode } from '../operations/open.js';
import type { Volume } from '../volume.js';
import { SHARED_BYTES_MAX, type SharedReply, type SharedRequest } from './shared-io.js';

const IDLE_MS = 1_000;
const FILES_MAX = 1_024;
const ELSEWHERE = new Set(['staleHandle', 'tokenRefused', 'closed']);

interface Served {
  readonly file: Promise<FsOpenFile>;
  users: number;
  timer: Timer | null;
}

export class SharedService {
  readonly #volume: Volume;
  readonly #files = new Map<string, Served>();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  async serve(request: SharedRequest): Promise<SharedReply> {
    if (request.lengthBytes > SHARED_BYTES_MAX)
      throw new FsError('invalidArgument', { op: 'sharedIo', detail: `${request.lengthBytes} bytes` });
    // One for each kind of writer: whose write it is decides over setuid bits.
    const key = `${request.ino}/${request.generation}/${request.uid}/${request.gid}/${request.groups.join()}`;
    const known = this.#files.get(key);
    if (known === undefined && request.op !== 'sync' && this.#files.size >= FILES_MAX) return null;
    const served = known ?? this.#open(key, request);
    served.users++;
    served.timer?.cancel();
    served.timer = null;
    try {
      const file = await served.file;
      this.#volume.counters.add('fs.sharedServed');
      if (request.op !== 'sync' && !this.#isShared(request.ino)) return null;
      return await perform(file, request);
    } catch (error) {
      // Removed, or about to be, or whoever has it open denies it to others: they go on by themselves.
      if (FsError.is(error) && ELSEWHERE.has(error.reason)) return null;
      throw error;
    } finally {
      served.users--;
      if (served.users === 0) this.#idle(key, served);
    }
  }

  #open(key: string, request: SharedRequest): Served {
    // Who may do it was decided where it was opened.
    const served = { file: this.#openAs(request), users: 0, timer: null };
    served.file.catch(() => this.#files.delete(key));
    this.#files.set(key, served);
    return served;
  }

  async #openAs({ ino, generation, uid, gid, groups }: SharedRequest): Promise<FsOpenFile> {
    const volume = this.#volume;
    const as = uid === 0 ? ROOT : { uid, gid, groups, umask: 0 };
    return openInode(volume, { ino, generation }, constants.O_RDWR, as, undefined, 'trusted');
  }

  /** Unknown while it is being given up: then it is done all the same, under tokens that are asked for anew. */
  #isShared(ino: InodeNumber): boolean {
    const inode = this.#volume.inodes.get(ino);
    return inode === undefined || (inode.flags & InodeFlag.sharedWrite) !== 0;
  }

  #idle(key: string, served: Served): void {
    served.timer = this.#volume.clock.after(IDLE_MS, () => {
      if (served.users > 0 || this.#files.get(key) !== served) return;
      this.#files.delete(key);
      void served.file
        .then((file) => file.leave())
        .catch((error: unknown) => {
          this.#volume.parts.logger.warn(
            { error: String(error) },
            'a file served for others could not be closed cleanly',
          );
        });
    });
  }
}

async function perform(file: OpenFile, request: SharedRequest): Promise<SharedReply> {
  const { op, offsetBytes, lengthBytes, bytes, dataOnly } = request;
  const nothing = new Uint8Array(0);
  if (op === 'read') {
    const target = new Uint8Array(lengthBytes);
    const count = await file.read(offsetBytes ?? 0, target);
    return { offsetBytes: offsetBytes ?? 0, lengthBytes: count, bytes: target.subarray(0, count) };
  }
  if (op === 'write') return { ...(await file.write(offsetBytes, bytes)), bytes: nothing };
  await file.sync(dataOnly);
  return { offsetBytes: 0, lengthBytes: 0, bytes: nothing };
}
