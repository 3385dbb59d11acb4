/**
 * The bytes of several files on their way to their places in one write to each NSD: small files that are written out one after the other are mostly
 * neighbours on the NSDs too, and a request for each would cost many times what the bytes do.
 *
 * Invariants: a file is in it once, none waits for another one's bytes or its own turn (no move of its fragment is under way), and each is a transfer of its inode
 * until its write has ended. Fault model: what goes to one NSD is a write of its own, so that one that is away holds up only what is meant for it. When a
 * device refuses, each file is written again by itself, and has the error that is its own.
 */
import { deferred } from '../common/deferred.js';
import { FsError, type Reason } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';
import { writeData } from './data-writer.js';
import { FileType } from './file-system-api.js';
import type { Inode } from './inode.js';
import type { FileIo } from './unflushed.js';
import type { Volume } from './volume.js';

/** Not of one of the files: trying each by itself would only take as long again. */
const OF_ALL: ReadonlySet<Reason> = new Set(['deadlinePassed', 'nsdUnavailable', 'fenced', 'closed', 'aborted']);

interface ToOneNsd {
  readonly ios: FileIo[];
  readonly ended: ReturnType<typeof deferred<void>>;
  files: number;
}

export class JoinedWrites {
  readonly #volume: Volume;
  readonly #inodes = new Set<Inode>();
  readonly #writes = new Map<NsdIndex, ToOneNsd>();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  /** Whether a file's bytes can go this way now. */
  takes(inode: Inode): boolean {
    return (
      inode.type === FileType.regular &&
      inode.holdsDataBack &&
      !inode.isInline &&
      inode.syncBytesLeft === 0 &&
      !inode.transfersHeldUp &&
      this.#volume.logged.isEmpty &&
      !this.#inodes.has(inode)
    );
  }

  /** Resolves when its bytes are where they belong. */
  add(inode: Inode, ios: readonly FileIo[]): Promise<void> {
    this.#inodes.add(inode);
    return inode.transfer(() => writeData(this.#volume, inode, [], ios, () => this.#join(ios)));
  }

  /** In the turn in which they were added. */
  start(): void {
    for (const { ios, ended, files } of this.#writes.values()) {
      // Neighbours beside each other: one run for the device.
      ios.sort((a, b) => a.sector - b.sector);
      this.#volume.parts.nsds.write(ios).then(ended.resolve, ended.reject);
      this.#volume.counters.add('fs.joinedWrites');
      this.#volume.counters.add('fs.joinedFiles', files);
    }
  }

  async #join(ios: readonly FileIo[]): Promise<void> {
    const nsd = ios[0]!.nsd;
    // Blocks of a file that is as large as that are better off alone.
    if (ios.some((io) => io.nsd !== nsd)) return this.#volume.parts.nsds.write(ios);
    let joined = this.#writes.get(nsd);
    if (joined === undefined) this.#writes.set(nsd, (joined = { ios: [], ended: deferred<void>(), files: 0 }));
    joined.ios.push(...ios);
    joined.files++;
    try {
      await joined.ended.promise;
    } catch (error) {
      if (joined.files === 1 || (FsError.is(error) && OF_ALL.has(error.reason))) throw error;
      await this.#volume.parts.nsds.write(ios);
    }
  }
}
