import { invariant } from '../common/assert.js';
import { type ByteRange, overlaps, roundOut, WHOLE } from '../common/byte-range.js';
import { SECTOR_BYTES } from '../common/units.js';
import { RangeSet } from './range-set.js';

/**
 * What the kernel may hold of one inode's bytes, and how it is taken back: rules M1 to M4 for data. A pure machine, one per inode:
 * step(event) -> effects, to be carried out in their order. docs/mount.md has its states as a table.
 *
 * The kernel holds pages of *cached* handles (read-only ones, and mappings of any), and locks the pages of a READ until it is answered. A *drop* takes
 * a range back: notifications, cut around READs that are parked (they own no valid page), in rounds until nothing that was answered meanwhile is left.
 *
 * Invariants
 * - The kernel may hold only what is held here under a token (I2): `mayHold` is within the tokens, and a token leaves only after `revoked`.
 * - No notification waits for a READ that waits for a token (M2): of a READ that overlaps one under way nothing is parked.
 * - A WRITE is applied when the kernel has none of its pages, and none is on its way there (M1): nobody reads old bytes after new ones, and no dirty page of a
 *   mapping is laundered over it later. While it has its token no READ waits for another token with locks on its pages.
 * - With a writable handle open, pages are there only under exclusive tokens (M3).
 * Fault model: READs and completions come in any order; a notification may take as long as the kernel likes, for what is not parked here.
 */
export type DataEvent =
  /** A READ. `cached`: its bytes go into the kernel's pages. */
  | { readonly type: 'read'; readonly id: number; readonly range: ByteRange; readonly cached: boolean }
  /** Bytes that are to be put into the kernel's pages unasked, which takes the locks of those pages: in all else like a READ. */
  | { readonly type: 'push'; readonly id: number; readonly range: ByteRange }
  /** The answer to a READ is written: from here on the kernel holds it. */
  | { readonly type: 'served'; readonly id: number }
  /** A READ's deadline, or its caller's end: nothing if it isn't parked any more. */
  | { readonly type: 'giveUp'; readonly id: number; readonly error: ReadError }
  /**
   * A WRITE that may be applied now: its pages are pinned under an exclusive token until `apply`. `silent`: a truncation by the kernel, which drops the pages
   * itself when it is answered, and would hold a notification up until then.
   */
  | { readonly type: 'write'; readonly id: number; readonly range: ByteRange; readonly silent?: boolean }
  /** That WRITE is in the cache, or has failed. */
  | { readonly type: 'applied'; readonly id: number }
  /** A page of a writable mapping, written back by the kernel. Never parked: an invalidation may wait for it. */
  | { readonly type: 'laundered'; readonly id: number; readonly range: ByteRange }
  /** What is held now, more than before; `wants`: the READs whose wish is fulfilled by it, and over. */
  | { readonly type: 'granted'; readonly held: HeldTokens; readonly wants: readonly number[] }
  /** Somebody else needs a range; `keepShared`: to read only. Nothing of it is pinned. */
  | { readonly type: 'revoke'; readonly id: number; readonly range: ByteRange; readonly keepShared: boolean }
  /** That revoke is over: what is held now. */
  | { readonly type: 'released'; readonly id: number; readonly held: HeldTokens }
  /** A revoke's deadline is near: READs that keep it from ending are refused. */
  | { readonly type: 'late'; readonly id: number }
  | { readonly type: 'notified'; readonly notification: number }
  | { readonly type: 'writableOpened'; readonly id: number }
  | { readonly type: 'writableClosed' };

/** `shared` is everything that may be read, what is exclusive too. */
export interface HeldTokens {
  readonly shared: readonly ByteRange[];
  readonly exclusive: readonly ByteRange[];
}

/** `again`: the kernel asks anew, page by page. */
export type ReadError = 'again' | 'failed' | 'interrupted';

export type DataEffect =
  /** Fetch under the token that is held, answer, then `served`. */
  | { readonly type: 'serve'; readonly id: number }
  | { readonly type: 'refuse'; readonly id: number; readonly error: ReadError }
  /** A parked READ needs a token; in place of what it wanted before. */
  | { readonly type: 'want'; readonly id: number; readonly range: ByteRange; readonly exclusive: boolean }
  | { readonly type: 'unwant'; readonly id: number }
  /** Put the bytes of a WRITE into the cache; of one that came as `write`, `applied` is told when that is done. READs of its pages wait that long. */
  | { readonly type: 'apply'; readonly id: number }
  /** Answered by `notified`. */
  | { readonly type: 'notify'; readonly notification: number; readonly range: ByteRange }
  /** A laundered page for which there is no token any more: its bytes are lost, and its writer is told. */
  | { readonly type: 'lost'; readonly id: number }
  /** The kernel has none of it: flush, then release. */
  | { readonly type: 'revoked'; readonly id: number }
  /** The writable open may be answered. */
  | { readonly type: 'opened'; readonly id: number };

interface Read {
  readonly range: ByteRange;
  readonly cached: boolean;
  /** Unasked: it has no locks on pages, and waits for others'. */
  readonly pushes: boolean;
  state: 'parked' | 'working';
  wants: 'nothing' | 'shared' | 'exclusive';
  /** Arrived while a WRITE of its pages was being applied: what it may do next is seen when that is over. */
  afterApply: boolean;
}

interface Drop {
  readonly kind: 'revoke' | 'write' | 'open';
  readonly id: number;
  /** All that is to be taken back. */
  readonly target: RangeSet;
  /** A revoke's: READs that need no more than that go on. */
  readonly keepShared: boolean;
  readonly underWay: Map<number, ByteRange>;
  /** Answered since the round began: to go in the next one. */
  readonly again: RangeSet;
  late: boolean;
  /** The kernel has given all back. Of a revoke: its token has not left yet; of a write: it is being applied. */
  dropped: boolean;
}

export class DataMachine {
  #shared = new RangeSet();
  #exclusive = new RangeSet();
  readonly #reads = new Map<number, Read>();
  readonly #drops = new Set<Drop>();
  readonly #mayHold = new RangeSet();
  /** That were asked for; those of them that were answered. */
  #writableHandles = 0;
  #openedHandles = 0;
  #nextNotification = 1;
  #effects: DataEffect[] = [];

  step(event: DataEvent): DataEffect[] {
    this.#effects = [];
    switch (event.type) {
      case 'read':
        this.#read(event.id, roundOut(event.range), event.cached, false);
        break;
      case 'push':
        this.#read(event.id, roundOut(event.range), true, true);
        break;
      case 'served':
        this.#served(event.id);
        break;
      case 'giveUp':
        if (this.#reads.get(event.id)?.state === 'parked') this.#refuse(event.id, event.error);
        break;
      case 'write':
        this.#write(event.id, roundOut(event.range), event.silent === true);
        break;
      case 'applied':
        this.#applied(event.id);
        break;
      case 'laundered':
        if (!this.#exclusive.covers(roundOut(event.range))) this.#effects.push({ type: 'lost', id: event.id });
        else this.#effects.push({ type: 'apply', id: event.id });
        break;
      case 'granted':
        this.#hold(event.held);
        // Should it not do any more (a revoke came), they wish anew.
        for (const id of event.wants) {
          const read = this.#reads.get(id);
          if (read !== undefined) read.wants = 'nothing';
        }
        this.#goOn();
        break;
      case 'revoke':
        this.#revoke(event.id, roundOut(event.range), event.keepShared);
        break;
      case 'released':
        this.#released(event.id, event.held);
        break;
      case 'late':
        for (const drop of this.#drops) if (drop.kind === 'revoke' && drop.id === event.id) drop.late = true;
        break;
      case 'notified':
        this.#notified(event.notification);
        break;
      case 'writableOpened':
        this.#writableOpened(event.id);
        break;
      case 'writableClosed':
        invariant(this.#openedHandles > 0, 'more writable handles closed than opened');
        this.#writableHandles--;
        this.#openedHandles--;
        this.#goOn();
        break;
    }
    return this.#effects;
  }

  /** What the kernel may hold, for the guard's list and for tests. */
  get mayHold(): Iterable<ByteRange> {
    return this.#mayHold;
  }
  /** Whether READs into the kernel's pages need exclusive tokens now (M3). */
  get wantsExclusive(): boolean {
    return this.#writableHandles > 0;
  }
  get isIdle(): boolean {
    return this.#reads.size === 0 && this.#drops.size === 0;
  }

  // READs

  #needsExclusive(read: Read): boolean {
    return read.cached && this.#writableHandles > 0;
  }
  /** Whether a token that isn't leaving covers it. */
  #isCovered(read: Read): boolean {
    const exclusive = this.#needsExclusive(read);
    if (!(exclusive ? this.#exclusive : this.#shared).covers(read.range)) return false;
    for (const drop of this.#drops) {
      if (drop.kind === 'revoke' && !(drop.keepShared && !exclusive) && drop.target.overlaps(read.range)) return false;
    }
    return true;
  }
  /** It would bring pages back that are dropped for a WRITE. Only for as long as that takes. */
  #waitsForWrite(read: Read): boolean {
    if (!read.cached) return false;
    return [...this.#drops].some((drop) => drop.kind === 'write' && drop.target.overlaps(read.range));
  }
  #mayServe(read: Read): boolean {
    return this.#isCovered(read) && !this.#waitsForWrite(read);
  }
  #isPage(read: Read): boolean {
    return read.range.end - read.range.start <= SECTOR_BYTES;
  }

  #read(id: number, range: ByteRange, cached: boolean, pushes: boolean): void {
    invariant(!this.#reads.has(id), `READ ${id} comes twice`);
    const read: Read = { range, cached, pushes, state: 'parked', wants: 'nothing', afterApply: false };
    this.#reads.set(id, read);
    if (this.#mayServe(read)) this.#serve(id, read);
    else if (this.#isBeingApplied(read)) {
      read.afterApply = true;
      this.#parkOrSplit(id, read);
    } else if (cached && !pushes && this.#isInTheWay(read)) this.#letThrough(id, read);
    else this.#park(id, read);
  }
  #parkOrSplit(id: number, read: Read): void {
    if (this.#holdsUpWrite(read) && !this.#isPage(read) && !read.pushes) this.#refuse(id, 'again');
    else this.#park(id, read);
  }
  /** That ends by itself, whatever is parked. */
  #isBeingApplied(read: Read): boolean {
    if (!read.cached) return false;
    return [...this.#drops].some((drop) => drop.kind === 'write' && drop.dropped && drop.target.overlaps(read.range));
  }

  /** Its page locks may hold up a notification under way, or a WRITE that has its token while it waits for another. */
  #isInTheWay(read: Read): boolean {
    if (this.#holdsUpWrite(read)) return true;
    for (const other of this.#reads.values()) {
      if (other.pushes && other.state === 'working' && overlaps(other.range, read.range)) return true;
    }
    for (const drop of this.#drops) {
      for (const range of drop.underWay.values()) if (overlaps(range, read.range)) return true;
    }
    return false;
  }
  /** At once, one way or the other (M2). What is being taken back is still held, and what is answered is taken back again. */
  #letThrough(id: number, read: Read): void {
    const tooLate = [...this.#drops].some((drop) => drop.late && drop.target.overlaps(read.range));
    if (tooLate) this.#refuse(id, 'failed');
    else if (this.#isCoveredOrGoing(read)) this.#serve(id, read);
    else this.#refuse(id, 'again');
  }
  /** Each byte is covered as for any READ, or will be taken back by a drop that hasn't ended, and is held until then. */
  #isCoveredOrGoing(read: Read): boolean {
    const exclusive = this.#needsExclusive(read);
    const stays = new RangeSet([read.range]);
    for (const drop of this.#drops) {
      if (!drop.dropped) for (const range of drop.target) stays.remove(range);
      else if (!(drop.keepShared && !exclusive) && drop.target.overlaps(read.range)) return false;
    }
    // A store through a mapping may happen at any moment that a page is there, if there is a mapping (M3).
    const going = this.#openedHandles > 0 && exclusive ? this.#exclusive : this.#shared;
    const staying = exclusive ? this.#exclusive : this.#shared;
    return going.covers(read.range) && [...stays].every((range) => staying.covers(range));
  }
  #park(id: number, read: Read): void {
    read.state = 'parked';
    const wants = this.#isCovered(read) ? 'nothing' : this.#needsExclusive(read) ? 'exclusive' : 'shared';
    if (read.wants === wants) return;
    if (wants === 'nothing') this.#leaveQueue(id, read);
    else this.#effects.push({ type: 'want', id, range: read.range, exclusive: wants === 'exclusive' });
    read.wants = wants;
  }
  #leaveQueue(id: number, read: Read): void {
    if (read.wants !== 'nothing') this.#effects.push({ type: 'unwant', id });
    read.wants = 'nothing';
  }
  #serve(id: number, read: Read): void {
    this.#leaveQueue(id, read);
    read.state = 'working';
    this.#effects.push({ type: 'serve', id });
    if (!read.pushes) return;
    for (const [other, parked] of [...this.#reads]) {
      const locked = parked.cached && !parked.pushes && parked.state === 'parked';
      if (locked && overlaps(parked.range, read.range)) this.#letThrough(other, parked);
    }
  }
  #refuse(id: number, error: ReadError): void {
    const read = this.#reads.get(id)!;
    invariant(error !== 'again' || !this.#isPage(read), 'a single page cannot be asked for in smaller pieces');
    this.#leaveQueue(id, read);
    this.#reads.delete(id);
    this.#effects.push({ type: 'refuse', id, error });
  }

  #served(id: number): void {
    const read = this.#reads.get(id);
    invariant(read?.state === 'working', `READ ${id} is answered, and was not to be`);
    this.#reads.delete(id);
    if (!read.cached) return;
    this.#mayHold.add(read.range);
    for (const drop of [...this.#drops]) {
      if (drop.dropped) continue;
      for (const part of drop.target.within(read.range)) drop.again.add(part);
      if (drop.underWay.size === 0 && drop.target.overlaps(read.range)) this.#nextRound(drop);
    }
  }

  /** After tokens came or are to go, or a drop ended: whatever may be served now is, the others wish for what they need by now. */
  #goOn(): void {
    for (const [id, read] of [...this.#reads]) {
      // One that was served may have turned others away.
      if (read.state !== 'parked' || !this.#reads.has(id)) continue;
      if (this.#mayServe(read)) this.#serve(id, read);
      else if (read.afterApply && !this.#isBeingApplied(read)) {
        read.afterApply = false;
        if (this.#isInTheWay(read)) this.#letThrough(id, read);
        else this.#park(id, read);
      } else this.#parkOrSplit(id, read);
    }
  }
  /** A READ of several pages that waits for another token, with locks on pages of a WRITE that has its own (M1). */
  #holdsUpWrite(read: Read): boolean {
    if (!read.cached || this.#isCovered(read)) return false;
    return [...this.#drops].some((drop) => drop.kind === 'write' && drop.target.overlaps(read.range));
  }

  // Tokens

  #hold(held: HeldTokens): void {
    this.#shared = new RangeSet(held.shared);
    this.#exclusive = new RangeSet(held.exclusive);
    for (const range of this.#mayHold) {
      invariant(this.#shared.covers(range), 'the kernel holds pages without a token');
    }
  }

  #revoke(id: number, range: ByteRange, keepShared: boolean): void {
    const drop = this.#newDrop('revoke', id, new RangeSet([range]), keepShared);
    this.#goOn();
    // Without writable handles there is nothing in the kernel that a shared token doesn't cover.
    if (!keepShared || this.#writableHandles > 0) {
      this.#startDrop(drop);
      return;
    }
    drop.dropped = true;
    this.#effects.push({ type: 'revoked', id });
  }

  #released(id: number, held: HeldTokens): void {
    for (const drop of this.#drops) {
      if (drop.kind !== 'revoke' || drop.id !== id) continue;
      invariant(drop.dropped, `revoke ${id} is over before the kernel gave its pages back`);
      this.#drops.delete(drop);
    }
    this.#hold(held);
    this.#goOn();
  }

  // WRITEs

  #write(id: number, range: ByteRange, silent: boolean): void {
    invariant(this.#exclusive.covers(range), `WRITE ${id} is applied without its token`);
    const drop = this.#newDrop('write', id, new RangeSet([range]), false);
    this.#goOn();
    if (silent) this.#maybeDone(drop);
    else this.#startDrop(drop);
  }

  #applied(id: number): void {
    for (const drop of this.#drops) {
      if (drop.kind !== 'write' || drop.id !== id) continue;
      invariant(drop.dropped, `WRITE ${id} was applied before the kernel gave its pages back`);
      this.#drops.delete(drop);
    }
    this.#goOn();
  }

  #writableOpened(id: number): void {
    this.#writableHandles++;
    this.#goOn();
    // What is there under a shared token could be stored into through a mapping (M3).
    const stays = new RangeSet(this.#exclusive);
    for (const drop of this.#drops) if (drop.keepShared) for (const range of drop.target) stays.remove(range);
    this.#startDrop(this.#newDrop('open', id, new RangeSet([WHOLE]).without(stays), false));
  }

  // Drops

  #newDrop(kind: Drop['kind'], id: number, target: RangeSet, keepShared: boolean): Drop {
    const drop: Drop = {
      kind,
      id,
      target,
      keepShared,
      underWay: new Map(),
      again: new RangeSet(),
      late: false,
      dropped: false,
    };
    this.#drops.add(drop);
    return drop;
  }
  #startDrop(drop: Drop): void {
    for (const range of this.#mayHold.intersection(drop.target)) drop.again.add(range);
    this.#nextRound(drop);
  }

  #nextRound(drop: Drop): void {
    // What a parked READ has locked is no valid page. What another drop has taken back meanwhile is gone too.
    for (const { state, cached, pushes, range } of this.#reads.values()) {
      if (cached && state === 'parked' && !pushes) this.#mayHold.remove(range);
    }
    const round = this.#mayHold.intersection(drop.again);
    drop.again.clear();
    for (const range of round) {
      const notification = this.#nextNotification++;
      drop.underWay.set(notification, range);
      this.#effects.push({ type: 'notify', notification, range });
    }
    if (drop.underWay.size === 0) this.#maybeDone(drop);
  }

  #notified(notification: number): void {
    for (const drop of this.#drops) {
      const range = drop.underWay.get(notification);
      if (range === undefined) continue;
      drop.underWay.delete(notification);
      for (const gone of new RangeSet([range]).without(drop.again)) this.#mayHold.remove(gone);
      if (drop.underWay.size === 0) {
        if (drop.again.isEmpty) this.#maybeDone(drop);
        else this.#nextRound(drop);
      }
      // Those that waited for this one.
      for (const other of this.#drops) {
        if (other.kind !== 'write' && other !== drop && !other.dropped && other.underWay.size === 0) {
          this.#maybeDone(other);
        }
      }
      return;
    }
  }

  #maybeDone(drop: Drop): void {
    for (const read of this.#reads.values()) {
      // Its answer will bring pages that are to go: it is waited for, then they are notified. It waits for no token.
      if (read.state === 'working' && read.cached && drop.target.overlaps(read.range)) return;
    }
    if (drop.kind !== 'write') {
      // Another drop's notification there: a READ in its way could not be answered any more once the token has left, or a store is possible.
      for (const other of this.#drops) {
        for (const range of other.underWay.values()) if (drop.target.overlaps(range)) return;
      }
    }
    if (drop.kind === 'revoke') {
      drop.dropped = true;
      this.#effects.push({ type: 'revoked', id: drop.id });
      return;
    }
    if (drop.kind === 'write') {
      if (drop.dropped) return;
      drop.dropped = true;
      this.#effects.push({ type: 'apply', id: drop.id });
      return;
    }
    this.#drops.delete(drop);
    this.#openedHandles++;
    this.#effects.push({ type: 'opened', id: drop.id });
    this.#goOn();
  }
}
