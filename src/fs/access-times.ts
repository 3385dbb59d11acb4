/**
 * When a file was last read: as Linux's relatime has it. A read moves the atime when it is not later than mtime and ctime, or older than a day; so
 * reading something again and again costs nothing.
 *
 * A node that has the inode exclusively writes the time down at once. One that shares it remembers the time, shows it to those who ask here, and asks for
 * the inode when the time has got as old as a dirty inode may: no read waits for another node because of its atime, and who can't get the inode within
 * a moment lets it be. So of all times the atime alone may lag on other nodes; and it is lost when the inode is taken away meanwhile, which is for
 * a change, after which the next read counts again.
 */
import { TokenMode } from '../token-manager/token.js';
import type { Inode } from './inode.js';
import { pinInodes } from './pinning.js';
import { publishStatus, withSettledState } from './publishing.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

const DAY_NS = 86_400_000_000_000n;
/** Remembered at a time, and written down in one round. */
const PENDING_MAX = 4096;
const ROUND_MAX = 256;
/** How long the inode's other users may take to give it up for this. */
const PATIENCE_MS = 1000;

export class AccessTimes {
  readonly #volume: Volume;
  /** By when they were read, on the clock. */
  readonly #pending = new Map<Inode, number>();

  constructor(volume: Volume) {
    this.#volume = volume;
  }

  get #wanted(): boolean {
    return this.#volume.settings.accessTimes === 'relatime';
  }

  /** With its status pinned: whether a read would move its atime. */
  isDue(inode: Inode): boolean {
    if (!this.#wanted) return false;
    const atimeNs = inode.readAtNs ?? inode.atimeNs;
    return atimeNs <= inode.mtimeNs || atimeNs <= inode.ctimeNs || this.#volume.now() - atimeNs >= DAY_NS;
  }

  /** It has been read. With its status pinned, in one turn. */
  noteRead(inode: Inode): void {
    if (!inode.valid || !this.isDue(inode)) return;
    const { inodes, parts, clock } = this.#volume;
    const pins = parts.tokens.tryPin([inodes.statusItem(inode.ino, TokenMode.exclusive)]);
    if (pins === null) {
      if (this.#pending.size >= PENDING_MAX) return;
      inode.readAtNs = this.#volume.now();
      parts.stamps?.changed(inode.ino);
      this.#pending.set(inode, clock.nowMs());
      return;
    }
    try {
      this.#write(inode, this.#volume.now());
    } finally {
      publishStatus(this.#volume, inode.ino);
      pins.release();
    }
  }

  #write(inode: Inode, atNs: bigint): void {
    withSettledState(this.#volume, inode, () => {
      const transaction = new MetadataTransaction(this.#volume);
      inode.atimeNs = atNs;
      inode.readAtNs = null;
      transaction.times(inode);
      transaction.commit();
    });
  }

  /** What was read before `ms` on the clock is written down, as far as the inodes can be had; one that can't ends the round. */
  async settle(ms: number): Promise<void> {
    let count = 0;
    for (const [inode, readAtMs] of this.#pending) {
      if (readAtMs > ms || count++ >= ROUND_MAX) return;
      this.#pending.delete(inode);
      const atNs = inode.readAtNs;
      if (atNs === null || !inode.valid || inode.nlink === 0) continue;
      const { ino, generation } = inode;
      const pins = await pinInodes(this.#volume, [{ ino, status: TokenMode.exclusive }], { timeoutMs: PATIENCE_MS });
      try {
        const now = await this.#volume.inodes.load(ino);
        this.#volume.inodes.refresh(now);
        if (now.type !== 0 && now.generation === generation && now.atimeNs < atNs) this.#write(now, atNs);
      } finally {
        publishStatus(this.#volume, ino);
        pins.release();
      }
    }
  }
}
