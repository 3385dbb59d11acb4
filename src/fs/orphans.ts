/**
 * Inodes without a name that somebody may still have open. The node that took the last name owes the freeing; it is done when no node
 * has the inode open, which its open token tells (open-tokens.ts). And files whose space behind their end goes in steps (in-steps.ts).
 *
 * Invariants: an inode is freed under its exclusive status, open and data tokens, by whoever finds it without names and of the right
 * generation: never twice, never while it is open anywhere. Nothing is held while others' closes are waited for.
 * Fault model: the node that owes it leaves or dies: the last of those who have it open frees it (`offer`, at its last close), or,
 * when nobody has, whoever replays that node's log takes it over (`take`). A dead opener's token falls, and the wait ends.
 */
import { setMaxListeners } from 'node:events';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import type { OpOptions } from './file-system-api.js';
import { orphanStep } from './in-steps.js';
import type { Inode } from './inode.js';
import { FREE_INODE } from './inode-format.js';
import { Mutex } from './mutex.js';
import { aloneItem } from './open-tokens.js';
import type { InodeRef } from './pinning.js';
import { MetadataTransaction } from './transaction.js';
import type { Volume } from './volume.js';

const RETRY_MIN_MS = 50;
const RETRY_MAX_MS = 5_000;

export class Orphans {
  readonly #volume: Volume;
  /** What this node owes. */
  readonly #owed = new Map<InodeNumber, InodeRef>();
  /** Tries that wait for nobody's close. */
  readonly #tries = new Set<Promise<boolean>>();
  /** Of what takes several of them, one at a time: so many as are under way bound what is on its way back to the map. */
  readonly #steps = new Mutex();
  #finished = false;
  readonly #stop = new AbortController();

  constructor(volume: Volume) {
    this.#volume = volume;
    // One listener per inode that waits.
    setMaxListeners(0, this.#stop.signal);
  }

  /** Inodes that wait to be freed by this node. */
  get size(): number {
    return this.#owed.size;
  }

  /**
   * This node frees it, when nobody has it open any more: it took its last name, or replayed the log of one that did.
   * @returns when the first try has ended; the rest goes on by itself.
   */
  take({ ino, generation }: InodeRef): Promise<void> {
    if (this.#owed.get(ino)?.generation === generation) return Promise.resolve();
    const ref = { ino, generation };
    this.#owed.set(ino, ref);
    const first = this.#try(ref);
    void this.#pursue(ref, first);
    return first.then(
      () => undefined,
      () => undefined,
    );
  }

  /** At a last close: frees it if it has no names and nobody else has it open, or owes the freeing. */
  async offer(ref: InodeRef): Promise<void> {
    if (this.#owed.has(ref.ino)) return;
    await this.#try(ref).catch((error: unknown) => {
      this.#volume.parts.logger.debug({ ...ref, error: String(error) }, 'left to others');
    });
  }

  /** What can be freed without waiting for anybody's close is, or the time is over. */
  async attempted(timeoutMs: number): Promise<void> {
    if (this.#tries.size === 0) return;
    await new Promise<void>((resolve) => {
      const timer = this.#volume.clock.after(timeoutMs, resolve);
      void Promise.allSettled([...this.#tries]).then(() => {
        timer.cancel();
        resolve();
      });
    });
  }

  /** Before unmounting: what others have open is left to them. */
  async finish(timeoutMs: number): Promise<void> {
    const owed = [...this.#owed.values()];
    this.stop();
    for (const ref of owed) this.#try(ref).catch(() => undefined);
    await this.attempted(timeoutMs);
    // What takes longer is for others to go on with (settlement.ts), from the step that is under way.
    this.#finished = true;
    await this.#steps.run(() => Promise.resolve());
  }

  stop(): void {
    this.#stop.abort();
  }

  /** False: somebody has it open. */
  #try(ref: InodeRef): Promise<boolean> {
    const running = this.#inSteps(ref).then(
      () => true,
      (error: unknown) => {
        if (FsError.is(error) && error.reason === 'tokenRefused') return false;
        throw error;
      },
    );
    this.#tries.add(running);
    void running.then(
      () => this.#tries.delete(running),
      () => this.#tries.delete(running),
    );
    return running;
  }

  async #inSteps(ref: InodeRef): Promise<void> {
    const volume = this.#volume;
    const step = (options?: OpOptions): Promise<boolean> =>
      volume.change(() => orphanStep(volume, ref, options), options);
    const timeoutMs = volume.settings.regionTimeoutMs;
    for (let more = await step(); more; )
      more = await this.#steps.run(async () => {
        if (this.#finished || volume.fenced) throw new FsError('closed', { op: 'unlink', object: `inode ${ref.ino}` });
        await volume.betweenSteps();
        return step({ timeoutMs });
      });
  }

  /** What was cut has lost its last name meanwhile, or is open here. Null: it is as it was to be, whoever did that. */
  #left({ ino, generation }: InodeRef): Inode | null {
    const inode = this.#volume.inodes.get(ino);
    if (inode?.generation !== generation || inode.nlink > 0 || inode.type === FREE_INODE) return null;
    return inode;
  }

  /** It is gone, whoever freed it. */
  #settled({ ino, generation }: InodeRef): void {
    const volume = this.#volume;
    if (volume.log?.ends.orphans.get(ino) !== generation) return;
    const transaction = new MetadataTransaction(volume);
    transaction.looseEnd({ kind: 'orphanSettled', ino, generation });
    transaction.commit();
  }

  #pause(delayMs: number): Promise<void> {
    const { signal } = this.#stop;
    return new Promise((resolve) => {
      const over = (): void => {
        timer.cancel();
        signal.removeEventListener('abort', over);
        resolve();
      };
      const timer = this.#volume.clock.after(delayMs, over);
      signal.addEventListener('abort', over);
    });
  }

  /**
   * Nobody has it open any more. Asked for even when this node is about to leave: those who have it open know then that somebody wants
   * to be alone with it, which makes the last of them look (`offer`).
   */
  async #alone(ino: InodeNumber): Promise<void> {
    const { signal } = this.#stop;
    const wait = new AbortController();
    const item = aloneItem(this.#volume, ino);
    // Its neighbours may be others' for as long as this takes.
    const items = [{ ...item, desired: item.required }];
    const { tokens } = this.#volume.parts;
    const alone = tokens.acquire(items, {
      patient: true,
      timeoutMs: Number.POSITIVE_INFINITY,
      signal: wait.signal,
    });
    const stop = (): void => wait.abort();
    signal.addEventListener('abort', stop);
    if (signal.aborted) stop();
    try {
      (await alone).release();
    } finally {
      signal.removeEventListener('abort', stop);
    }
  }

  async #pursue(ref: InodeRef, first: Promise<boolean>): Promise<void> {
    const { signal } = this.#stop;
    let retryMs = RETRY_MIN_MS;
    let running = first;
    for (;;) {
      try {
        if (await running) {
          const inode = this.#left(ref);
          if (inode === null) {
            this.#settled(ref);
            break;
          }
          // Its last close here gives it to us again.
          if (inode.orphan && inode.openCount > 0) break;
          // Nothing came of it: whatever stands in its way is given time.
          await this.#pause(retryMs);
          retryMs = Math.min(2 * retryMs, RETRY_MAX_MS);
        } else {
          this.#volume.counters.add('fs.orphansWait');
          await this.#alone(ref.ino);
          retryMs = RETRY_MIN_MS;
        }
      } catch (error) {
        if (signal.aborted || this.#volume.fenced) break;
        this.#volume.parts.logger.warn(
          { ...ref, error: String(error) },
          'an inode without names could not be freed yet',
        );
        await this.#pause(retryMs);
        retryMs = Math.min(2 * retryMs, RETRY_MAX_MS);
      }
      if (signal.aborted) break;
      running = this.#try(ref);
    }
    if (this.#owed.get(ref.ino) === ref) this.#owed.delete(ref.ino);
  }
}
