/**
 * What a server answers to our requests: grants and refusals.
 *
 * Fault model: grants of requests that were voided or given up are given back or kept unpinned; a grant that isn't what was
 * asked for is refused, and the operation fails.
 */
import { type ByteRange, contains, range } from '../common/byte-range.js';
import type { ObjectState } from './client-object.js';
import { ClientOperations } from './client-operations.js';
import type { Link } from './client-state.js';
import { covers, join } from './compatibility.js';
import { sameServer, serverOf } from './placement.js';
import { type FlatPieces, NEVER_SETTLED, STRIDE } from './range-map.js';
import { joinNotes } from './status-notes.js';
import { type StatusNote, TokenClass, TokenMode } from './token.js';
import { type GrantedRange, type GrantItem, type RefusalItem, STATEMENT_RANGES_MAX } from './token-messages.js';

export abstract class ClientGrants extends ClientOperations {
  protected receiveGrant(link: Link, item: GrantItem): void {
    if (item.seq <= link.seenSeq) {
      this.fired('grantInvalid');
      return;
    }
    link.seenSeq = item.seq;
    const notes = link.notes.filter(({ object }) => item.class === TokenClass.status && item.object === object);
    link.notes = [];
    this.highestSeq = Math.max(this.highestSeq, item.seq);
    const request = this.requests.get(item.requestId);
    if (request === undefined || !sameServer(request.object.server, link.identity)) {
      this.refuseGrant(link, item, notes);
      return;
    }
    const { group, object: state } = request;
    const asAsked =
      item.class === group.class &&
      item.object === group.object &&
      item.parts.length === group.parts.length &&
      group.parts.every((p, i) => {
        const granted = item.parts[i]!;
        return (
          covers(granted.mode, p.mode) && contains(granted.range, p.required) && contains(p.desired, granted.range)
        );
      });
    this.endRequest(request);
    if (!asAsked) {
      this.fired('grantInvalid');
      this.refuseGrant(link, item, notes);
      if (request.waiter !== null) this.fail(request.waiter, 'internal', []);
      this.reconsider(state);
      return;
    }
    for (const part of item.parts) {
      if (state.tokenClass === TokenClass.status) this.seen(state, part, notes);
      this.hold(state, part.range, part.mode, item.seq);
    }
    state.grantedAtMs = this.nowMs;
    const waiting = request.waiter;
    if (waiting === null) this.fired('grantForNobody');
    else if (
      waiting.waitsOn !== state ||
      waiting.next !== request.groupIndex ||
      waiting.behindRevoke ||
      this.suspended
    ) {
      this.fired('grantKeptForLater');
    } else {
      // Pinned in this very step, ahead of any revocation that follows the grant (T3).
      this.pinGroup(waiting, state, group);
      this.passRevokes(waiting, state);
      this.fired(waiting.behindRevoke ? 'pinnedBehindRevoke' : 'pinnedAtGrant');
    }
    this.reconsider(state);
  }

  /**
   * Whoever is granted more than concurrent-write has what we told of the sector with the grant, or it is in the inode. Who had concurrent-write and is alone
   * now takes what others told into the inode before anybody uses it.
   */
  private seen(state: ObjectState, { mode, range: at }: GrantedRange, notes: readonly { note: StatusNote }[]): void {
    const told = this.told.get(state.object);
    const isIn = (offset: number): boolean => at.start <= offset && offset < at.end;
    const due = new Map<number, StatusNote>();
    // What was exclusive before has been taken in, and may have changed since.
    const isNew = (offset: number): boolean => {
      const own: FlatPieces = [];
      state.held.collect(offset, offset + 1, own);
      return own[2] !== TokenMode.exclusive;
    };
    for (const { note } of notes)
      if (isIn(note.offsetBytes) && isNew(note.offsetBytes)) due.set(note.offsetBytes, note);
    if (mode !== TokenMode.concurrentWrite && told !== undefined) {
      for (const [offset, note] of told) {
        if (!isIn(offset)) continue;
        told.delete(offset);
        // It may have crossed the grant.
        const other = due.get(offset);
        if (mode === TokenMode.exclusive) due.set(offset, other === undefined ? note : joinNotes(other, note));
      }
      if (told.size === 0) this.told.delete(state.object);
    }
    if (mode !== TokenMode.exclusive) return;
    const theirs = [...due.values()];
    const own: FlatPieces = [];
    state.held.collect(at.start, at.end, own);
    let raised = false;
    for (let i = 0; i < own.length; i += STRIDE) raised ||= own[i + 2] === TokenMode.concurrentWrite;
    if (!raised && theirs.length === 0) return;
    this.fired('gathered');
    this.gathered.push({ type: 'gathered', object: state.object, range: at, notes: theirs });
  }

  protected hold(state: ObjectState, at: ByteRange, mode: TokenMode, seq: number): void {
    const own: FlatPieces = [];
    state.held.collect(at.start, at.end, own);
    const list: FlatPieces = [];
    let reached = at.start;
    for (let i = 0; i < own.length; i += STRIDE) {
      if (own[i]! > reached) list.push(reached, own[i]!, mode, seq);
      list.push(own[i]!, own[i + 1]!, join(own[i + 2]! as TokenMode, mode), seq);
      reached = own[i + 1]!;
    }
    if (reached < at.end) list.push(reached, at.end, mode, seq);
    const before = state.held.size;
    // Future revocations mean everything up to here; only one that has come already tells old pieces from new.
    state.held.replace(at.start, at.end, list, state.revokes.length === 0 ? seq : NEVER_SETTLED);
    this.pieces += state.held.size - before;
  }

  /** Of a request that we no longer know (voided when the object moved): what it gives is given back at once. */
  protected refuseGrant(link: Link, item: GrantItem, notes: readonly { note: StatusNote }[]): void {
    // Nobody has taken them in: whatever we state of the sectors next doesn't mean that they are in the inodes.
    for (const { note } of notes) this.tell(link, { kind: 'note', object: item.object, note });
    const state = this.objects[item.class]!.get(item.object);
    const server = state === undefined ? serverOf(this.servers, item.class, item.object) : state.server;
    if (!sameServer(server, link.identity)) {
      this.fired('itemFromOtherServer');
      return;
    }
    this.fired('grantUnknown');
    const ranges: ByteRange[] = [];
    for (const part of item.parts) {
      const own: FlatPieces = [];
      state?.held.collect(part.range.start, part.range.end, own);
      let from = part.range.start;
      for (let i = 0; i < own.length; i += STRIDE) {
        if (from < own[i]!) ranges.push(range(from, own[i]!));
        from = own[i + 1]!;
      }
      if (from < part.range.end) ranges.push(range(from, part.range.end));
    }
    const { class: tokenClass, object } = item;
    for (let i = 0; i < ranges.length; i += STATEMENT_RANGES_MAX) {
      const some = ranges.slice(i, i + STATEMENT_RANGES_MAX);
      const mode = TokenMode.none;
      this.tell(link, { kind: 'release', class: tokenClass, object, asOfSeq: link.seenSeq, mode, ranges: some });
    }
  }

  protected receiveRefusal(link: Link, item: RefusalItem): void {
    const request = this.requests.get(item.requestId);
    if (request === undefined || !sameServer(request.object.server, link.identity)) return;
    const { object: state, waiter } = request;
    this.endRequest(request);
    switch (item.reason) {
      case 'staleEpoch':
        this.fired('refusedEpoch');
        state.retryAtMs = this.nowMs + this.settings.retryMs;
        this.wakeAt(state.retryAtMs);
        break;
      case 'aborted':
        this.fired('cancelAcknowledged');
        break;
      case 'tokenDeadline':
        this.fired('refusedDeadline');
        if (waiter !== null) this.fail(waiter, 'tokenDeadline', item.blockers);
        break;
      case 'tokenRefused':
        this.fired('refusedNowait');
        if (waiter !== null) this.fail(waiter, 'tokenRefused', item.blockers);
        break;
      default:
        this.fired('refusedInvalid');
        if (waiter !== null) this.fail(waiter, item.reason, item.blockers);
    }
    this.reconsider(state);
  }
}
