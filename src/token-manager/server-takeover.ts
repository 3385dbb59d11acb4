import { conflicts } from './compatibility.js';
import { objectText } from './file-system-scope.js';
import { HIT_STRIDE, type ObjectKey, objectKey } from './holder-table.js';
import type { Member } from './members.js';
import { ServerLine } from './server-line.js';
import type { TokenMode } from './token.js';
import type { ClaimItem } from './token-messages.js';
import type { MemberIdentity, TokenView } from './token-server-events.js';

export abstract class ServerTakeover extends ServerLine {
  /** Whoever speaks as a new life has ended the older ones; they stay closed until they are said to have fallen. */
  protected meet(identity: MemberIdentity): Member | undefined {
    const known = this.members.find(identity);
    if (known !== undefined) {
      const lives = this.members.lives(identity.nodeId);
      return lives[lives.length - 1] === known ? known : undefined;
    }
    const member = this.members.meet(identity);
    if (member === undefined) return undefined;
    this.fired('memberMet');
    for (const life of this.members.lives(identity.nodeId)) if (life !== member) this.close(life);
    return member;
  }

  protected dropRequestsOf(member: Member): ObjectKey[] {
    const keys: ObjectKey[] = [];
    for (const request of member.requests.values()) {
      const revoking = (this.queues.get(request.key)?.revokes.length ?? 0) > 0;
      if (revoking) this.fired('requesterFallsMidRevoke');
      keys.push(request.key);
    }
    for (const request of [...member.requests.values()]) this.removeRequest(request);
    this.early = this.early.filter((e) => e.member !== member);
    member.claims = [];
    return keys;
  }

  /** No longer in the view, or fenced with a log to replay: it asks nothing, and what it holds is closed to everyone. */
  protected close(member: Member): void {
    if (member.state !== 'live') return;
    this.fired('memberClosed');
    member.state = 'closed';
    for (const key of this.dropRequestsOf(member)) this.advance(key);
  }

  /** I6: a life that we never met may hold something of a share that we take over, and can't tell: all of that waits. */
  protected closeUnmet(identity: MemberIdentity): void {
    const unmet = this.members.meetDead(identity);
    if (unmet === undefined) return;
    this.fired('memberMet');
    this.close(unmet);
    if (this.ownership.rebuilding) this.ownership.waitFor.add(unmet);
  }

  protected holdClosed(identity: MemberIdentity): void {
    this.closeUnmet(identity);
    for (const member of this.members.lives(identity.nodeId)) {
      if (member.identity.incarnation > identity.incarnation) continue;
      member.held = true;
      this.close(member);
    }
  }

  /** Fenced for good: tokens and requests fall, revocations sent to it count as answered. */
  protected fall(members: readonly Member[]): void {
    const keys = new Set<ObjectKey>();
    for (const member of members) {
      this.fired('memberFallen');
      for (const key of this.dropRequestsOf(member)) keys.add(key);
      for (const revoke of [...this.revokes.values()]) {
        if (revoke.member !== member.index) continue;
        this.fired('holderFallsMidRevoke');
        this.forgetRevoke(revoke);
        keys.add(revoke.key);
      }
      for (const key of [...this.table.keys()]) if (this.table.dropFrom(key, member.index)) keys.add(key);
      this.ownership.waitFor.delete(member);
    }
    for (const member of [...this.ownership.waitFor]) if (member.answer !== null) this.importAnswer(member);
    for (const key of keys) this.advance(key);
    this.settle();
  }

  /** A node that serves no tokens joins without a new epoch: it holds nothing yet, and may ask from now on. */
  protected admitJoined(view: TokenView): void {
    for (const identity of view.nodes) {
      const member = this.meet(identity);
      if (member !== undefined) member.inView = true;
    }
  }

  protected enterView(view: TokenView): void {
    if (view.epoch <= this.ownership.epoch) {
      if (view.epoch === this.ownership.epoch) this.admitJoined(view);
      return;
    }
    const changed = this.ownership.enter(view);
    const present = new Set<Member>();
    for (const identity of view.nodes) {
      const member = this.meet(identity);
      if (member === undefined) continue;
      member.inView = true;
      present.add(member);
    }
    for (const member of [...this.members.standing()]) {
      if (member.inView && !present.has(member)) this.close(member);
    }
    for (const identity of view.closed ?? []) this.closeUnmet(identity);
    if (changed) this.beginRebuild();
    for (const member of this.ownership.waitFor) {
      if (member.state === 'live') this.tell(member, { kind: 'ask', epoch: view.epoch });
    }
    this.settle();
  }

  /** T8: forgets what it can't vouch for, and asks every node that may hold something of it. */
  protected beginRebuild(): void {
    this.fired('rebuildBegun');
    for (const [key, queue] of [...this.queues]) {
      if (this.ownership.trusts(key)) continue;
      for (const revoke of queue.revokes) {
        this.revokes.delete(revoke.revokeId);
        if (revoke.reclaim) this.reclaims--;
      }
      queue.revokes = [];
      if (!this.ownership.owns(key)) {
        this.fired('ownershipLost');
        for (const request of queue.requests.slice()) {
          this.refuse(request.member, request.requestId, 'staleEpoch', []);
          this.removeRequest(request);
        }
      }
      if (queue.requests.length === 0) this.queues.delete(key);
    }
    for (const key of [...this.table.keys()]) if (!this.ownership.trusts(key)) this.table.dropObject(key);
    this.notes.dropUnless((key) => this.ownership.trusts(key));
    this.ownership.waitFor.clear();
    if (!this.ownership.serves) return;
    for (const member of this.members.standing()) {
      member.answer = null;
      this.ownership.waitFor.add(member);
    }
  }

  protected receiveClaims(member: Member, accepted: boolean): void {
    const claims = member.claims;
    member.claims = [];
    if (!accepted || !this.ownership.waitFor.has(member)) {
      this.fired('claimsOfOtherList');
      return;
    }
    member.answer = { claims, sinceMs: this.nowMs, reported: false };
    this.importAnswer(member);
    this.settle();
  }

  /**
   * A claim that contradicts another member's: that one may be fenced already, and the grant made by a server that had heard
   * of it before us. So it waits until the other falls; nothing is granted meanwhile. If that takes too long, I1 is broken.
   */
  protected importAnswer(member: Member): void {
    const { claims } = member.answer!;
    if (claims.some((claim) => this.contradicted(member, claim) !== null)) {
      this.fired('claimsWaitForFall');
      return;
    }
    for (const claim of claims) {
      const key = objectKey(claim.class, claim.object);
      // Where the table never lost its trust, it knows better: a grant may be on its way.
      if (!this.ownership.owns(key) || this.ownership.trusts(key)) continue;
      this.fired('claimTaken');
      const seq = Math.min(claim.seq, this.seq);
      const { start, end } = claim.range;
      this.table.assign(key, member.index, start, end, claim.mode, seq, member.seenSeq);
    }
    member.answer = null;
    this.ownership.waitFor.delete(member);
  }

  /** Who holds what the claim conflicts with, in words, or null. */
  protected contradicted(member: Member, claim: ClaimItem): string | null {
    for (const holder of this.contradicting(member, claim)) {
      const { nodeId: other, incarnation } = holder.identity;
      const what = `${objectText(claim.class, claim.object)} [${claim.range.start}, ${claim.range.end})`;
      return `node ${member.identity.nodeId} claims what node ${other} in life ${incarnation} holds: ${what}`;
    }
    return null;
  }

  protected contradicting(member: Member, claim: ClaimItem): Set<Member> {
    const found = new Set<Member>();
    const key = objectKey(claim.class, claim.object);
    if (!this.ownership.owns(key) || this.ownership.trusts(key)) return found;
    const hits: number[] = [];
    this.table.collect(key, claim.range.start, claim.range.end, hits);
    for (let i = 0; i < hits.length; i += HIT_STRIDE)
      if (hits[i] !== member.index && conflicts(claim.mode, hits[i + 1]! as TokenMode))
        found.add(this.members.at(hits[i]!));
    return found;
  }

  /** Which of them is right nobody can know: neither may go on (F7). One that is closed already serves nothing. */
  protected tellContradiction(member: Member, other: Member, claim: ClaimItem): void {
    const { class: tokenClass, object, mode, range } = claim;
    const about = { kind: 'contradiction', class: tokenClass, object, mode, range } as const;
    if (member.state === 'live') this.tell(member, { ...about, other: other.identity.nodeId });
    if (other.state === 'live') this.tell(other, { ...about, other: member.identity.nodeId });
  }

  protected reportContradictions(): void {
    this.contradictionDueMs = Number.POSITIVE_INFINITY;
    for (const member of this.ownership.waitFor) {
      const { answer } = member;
      if (answer === null || answer.reported) continue;
      const dueMs = answer.sinceMs + this.settings.contradictionMs;
      if (dueMs > this.nowMs) {
        this.contradictionDueMs = Math.min(this.contradictionDueMs, dueMs);
        continue;
      }
      answer.reported = true;
      this.fired('claimConflict');
      for (const claim of answer.claims) {
        const detail = this.contradicted(member, claim);
        if (detail === null) continue;
        this.violations.push({ type: 'violation', by: member.identity, detail });
        for (const other of this.contradicting(member, claim)) this.tellContradiction(member, other, claim);
      }
    }
  }

  protected settle(): void {
    if (!this.ownership.settleIfComplete()) return;
    this.fired('rebuildDone');
    for (const key of [...this.queues.keys()]) this.advance(key);
  }
}
