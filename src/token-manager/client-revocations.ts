/**
 * Giving way: revocations by a server, our own releases, and shrinking. All take the same path: begin (nobody new is pinned),
 * drain, hand over to the handler, state what is still held.
 *
 * Invariants: T5 (it waits for older pins and older revocations only); T2 (what is stated is true when it is stated, and
 * grants newer than the revocation are not touched).
 */
import { type ByteRange, contains, overlaps } from '../common/byte-range.js';
import { ClientGrants } from './client-grants.js';
import { giveWay, type ObjectState, type Revoking, takesFrom } from './client-object.js';
import type { Link } from './client-state.js';
import { sameServer, serverOf } from './placement.js';
import { NEVER_SETTLED } from './range-map.js';
import { joinNotes } from './status-notes.js';
import { type StatusNote, TokenClass, TokenMode, type TokenObject } from './token.js';
import { type RevokeItem, STATEMENT_RANGES_MAX } from './token-messages.js';

export abstract class ClientRevocations extends ClientGrants {
  protected receiveRevoke(link: Link, item: RevokeItem): void {
    const state = this.objects[item.class]!.get(item.object);
    const { revokeId, keep, required } = item;
    if (state === undefined || !sameServer(state.server, link.identity)) {
      // T2: who asks for what we don't know is answered. Of an object that moved we tell the old server nothing.
      this.fired('revokeOfNothing');
      const server = state === undefined ? serverOf(this.servers, item.class, item.object) : undefined;
      const ranges = sameServer(server, link.identity) ? [required] : [];
      const { class: tokenClass, object } = item;
      const asOfSeq = link.seenSeq;
      this.tell(link, { kind: 'answer', revokeId, class: tokenClass, object, asOfSeq, mode: keep, ranges });
      return;
    }
    const heldUntilMs = state.held.size === 0 ? this.nowMs : state.grantedAtMs + this.settings.minHoldMs;
    const revoking: Revoking = {
      handle: ++this.serial,
      object: state,
      server: link.identity,
      revokeId,
      releaseId: null,
      required,
      desired: item.desired,
      give: required,
      keep,
      prompt: item.prompt,
      upToSeq: item.upToSeq,
      phase: 'held',
      beginsAtMs: heldUntilMs,
    };
    state.revokes.push(revoking);
    this.revokes.set(revoking.handle, revoking);
    if (heldUntilMs > this.nowMs) {
      this.fired('revokeWaitsForHold');
      this.wakeAt(heldUntilMs);
      return;
    }
    this.beginRevoke(revoking);
    this.runRevokes(state);
  }

  /** From here on nobody new is pinned in what it gives. */
  protected beginRevoke(revoking: Revoking): void {
    const state = revoking.object;
    this.revokes.delete(revoking.handle);
    revoking.handle = ++this.serial;
    this.revokes.set(revoking.handle, revoking);
    const { required } = revoking;
    const { tokenClass, object } = state;
    let sharing = revoking.keep === TokenMode.concurrentWrite && tokenClass === TokenClass.status;
    if (sharing && !this.writesConcurrently(object, required)) {
      revoking.keep = TokenMode.none;
      sharing = false;
    }
    const inTheWay = state.pins.filter((pin) => takesFrom(revoking, pin.mode));
    const working = this.working(tokenClass, object);
    // Its neighbours are nobody's to write to with others.
    const desired = sharing ? required : revoking.desired;
    revoking.give = giveWay(required, desired, working, inTheWay);
    if (!contains(revoking.required, revoking.give)) this.fired('revokeGivesMore');
    revoking.phase = 'draining';
    state.revokes = [...state.revokes.filter((r) => r !== revoking), revoking];
  }

  /** Overridden by a mutation in the tests. */
  protected mustWaitForPins(state: ObjectState, revoking: Revoking): boolean {
    return state.pinnedAgainst(revoking);
  }

  /** Hands over to the handler what no pin and no older revocation stands in the way of. */
  protected runRevokes(state: ObjectState): void {
    if (this.suspended) return;
    // Those that have begun ascend, so one pass does: what is looked at later is in nobody's way that was looked at before.
    const older: Revoking[] = [];
    for (const revoking of state.revokes.slice()) {
      if (revoking.phase === 'held') continue;
      if (revoking.phase === 'running') {
        older.push(revoking);
        continue;
      }
      const isInTheWay = (r: Revoking): boolean => overlaps(r.give, revoking.give);
      if (revoking.prompt && this.isInUse(state, revoking, older.filter(isInTheWay))) {
        this.keepInUse(revoking);
        continue;
      }
      if (older.some(isInTheWay)) {
        this.fired('revokeWaitsInLine');
        older.push(revoking);
        continue;
      }
      if (this.mustWaitForPins(state, revoking)) {
        this.fired('revokeWaitsForPins');
        older.push(revoking);
        continue;
      }
      const affected = state.affected(revoking);
      if (affected === null) {
        this.endRevoke(revoking);
        continue;
      }
      older.push(revoking);
      revoking.phase = 'running';
      const revocation = { class: state.tokenClass, object: state.object, range: affected, keep: revoking.keep };
      this.effects.push({ type: 'revoke', handle: revoking.handle, revocation });
    }
  }

  private isInUse(state: ObjectState, revoking: Revoking, older: readonly Revoking[]): boolean {
    return state.pinnedAgainst(revoking) || older.some((r) => r.phase === 'draining' && state.pinnedAgainst(r));
  }

  /** Nothing is given up, and that is the answer. */
  private keepInUse(revoking: Revoking): void {
    this.fired('revokeOfOpenFile');
    const { object: state, revokeId, keep } = revoking;
    this.revokes.delete(revoking.handle);
    state.revokes = state.revokes.filter((r) => r !== revoking);
    const link = this.linkOf(state);
    if (link !== undefined && sameServer(revoking.server ?? undefined, link.identity)) {
      const { tokenClass, object } = state;
      const asOfSeq = link.seenSeq;
      this.tell(link, { kind: 'answer', revokeId, class: tokenClass, object, asOfSeq, mode: keep, ranges: [] });
    }
    this.reconsider(state);
  }

  protected finishRevoke(revoking: Revoking, notes: readonly StatusNote[] = []): void {
    this.endRevoke(revoking, notes);
    this.runRevokes(revoking.object);
  }

  private endRevoke(revoking: Revoking, notes: readonly StatusNote[] = []): void {
    const { object: state, keep } = revoking;
    if (revoking.phase === 'running') {
      this.fired(state.affected(revoking) === null ? 'revokeCrossedByGrant' : 'revokeHandled');
      if (keep !== TokenMode.none) this.fired('downgraded');
    } else this.fired('revokeOfNothing');
    const link = this.linkOf(state);
    const before = state.held.size;
    this.revokes.delete(revoking.handle);
    state.revokes = state.revokes.filter((r) => r !== revoking);
    const stated = state.giveUp(revoking, state.revokes.length === 0 ? (link?.seenSeq ?? 0) : NEVER_SETTLED);
    this.pieces += state.held.size - before;
    for (const note of notes) this.tellNote(link, state.object, note);
    if (link !== undefined) {
      // A statement that leaves something out is still true; the server asks again for what it needs.
      const ranges = stated.slice(0, STATEMENT_RANGES_MAX);
      const { tokenClass, object } = state;
      const statement = { class: tokenClass, object, asOfSeq: link.seenSeq, mode: keep, ranges };
      if (sameServer(revoking.server ?? undefined, link.identity)) {
        this.tell(link, { kind: 'answer', revokeId: revoking.revokeId, ...statement });
      } else if (ranges.length > 0) this.tell(link, { kind: 'release', ...statement });
    }
    if (revoking.releaseId !== null) this.endRelease(revoking.releaseId);
    this.reconsider(state);
  }

  /** Remembered until it is seen to be in the inode: if the server goes before that, its successor is told (T8). */
  private tellNote(link: Link | undefined, object: TokenObject, note: StatusNote): void {
    const told = this.told.get(object) ?? new Map<number, StatusNote>();
    this.told.set(object, told);
    const before = told.get(note.offsetBytes);
    told.set(note.offsetBytes, before === undefined ? note : joinNotes(before, note));
    if (link !== undefined) this.tell(link, { kind: 'note', object, note });
  }

  protected releaseRange(releaseId: number | null, state: ObjectState | undefined, within: ByteRange): void {
    const free = state?.free(within) ?? [];
    if (releaseId !== null) {
      this.releases.set(releaseId, free.length + 1);
      this.endRelease(releaseId);
    }
    if (state === undefined || free.length === 0) return;
    const upToSeq = this.linkOf(state)?.seenSeq ?? 0;
    for (const give of free) {
      this.fired('releasedByUs');
      const revoking: Revoking = {
        handle: ++this.serial,
        object: state,
        server: null,
        revokeId: 0,
        releaseId,
        required: give,
        desired: give,
        give,
        keep: TokenMode.none,
        prompt: false,
        upToSeq,
        phase: 'draining',
        beginsAtMs: this.nowMs,
      };
      state.revokes.push(revoking);
      this.revokes.set(revoking.handle, revoking);
    }
    this.runRevokes(state);
  }

  protected endRelease(releaseId: number): void {
    const left = this.releases.get(releaseId)! - 1;
    this.releases.set(releaseId, left);
    if (left > 0) return;
    this.releases.delete(releaseId);
    this.effects.push({ type: 'released', releaseId });
  }

  /** Over the bound: objects that nobody used since the hand last passed are given back whole. */
  protected shrink(): void {
    let excess = this.pieces - this.settings.rangesMax;
    for (let looked = 0; excess > 0 && looked < 256; looked++) {
      this.shrinkCursor ??= this.states();
      const next = this.shrinkCursor.next();
      if (next.done === true) {
        this.shrinkCursor = null;
        continue;
      }
      const state = next.value;
      if (state.used) state.used = false;
      else if (state.idle && state.held.size > 0 && this.working(state.tokenClass, state.object) === null) {
        this.fired('shrunk');
        excess -= state.held.size;
        this.releaseRange(null, state, { start: 0, end: Number.MAX_SAFE_INTEGER });
      }
    }
  }
}
