/**
 * The token server's knowledge of nodes: which lives of them it has met, which are closed or have fallen, and whether its
 * table can be trusted for an object after the list of servers has changed (T8).
 *
 * Owns: members, the history of lists since the table was last complete, and who has yet to tell what it holds. Invariants:
 * a fallen life never comes back; an object is trusted only if this life of this server owned it under every list since the
 * last complete one, or everybody who may hold it has claimed. Fault model: messages of older lives and early or late claims.
 */
import { type Epoch, epoch, type Incarnation, type NodeId } from '../common/ids.js';
import { classOfKey, type MemberIndex, type ObjectKey, objectOfKey } from './holder-table.js';
import { listFingerprint, type ServerIdentity, sameList, sameServer, serverOf } from './placement.js';
import type { QueuedRequest } from './request-queue.js';
import type { ClaimEndItem, ClaimItem, ToClientItem } from './token-messages.js';
import type { MemberIdentity, TokenView } from './token-server-events.js';

export interface Member {
  readonly index: MemberIndex;
  readonly identity: MemberIdentity;
  /** closed: dead as far as the view knows, and what it held conflicts with everyone until it falls (I6). */
  state: 'live' | 'closed' | 'fallen';
  /** `holdClosed` was called: only `released` lets it fall. */
  held: boolean;
  inView: boolean;
  /** What it has seen of our grants: every later statement of it is at least as new. */
  seenSeq: number;
  readonly requests: Map<number, QueuedRequest>;
  /** Claims of an answer that has not ended yet. */
  claims: ClaimItem[];
  /** Complete, but contradicting another member's holdings. */
  answer: { readonly claims: readonly ClaimItem[]; readonly sinceMs: number; reported: boolean } | null;
  /** Items of the present step; null when there are none. */
  outbox: ToClientItem[] | null;
}

export class Members {
  readonly #byNode = new Map<NodeId, Member[]>();
  readonly #byIndex: Member[] = [];
  /** The newest life of each node that has fallen. */
  readonly #fallenUpTo = new Map<NodeId, Incarnation>();

  at(index: MemberIndex): Member {
    return this.#byIndex[index]!;
  }

  /** Not fallen, in the order in which they were met. */
  *standing(): Generator<Member> {
    for (const lives of this.#byNode.values()) yield* lives;
  }

  find(identity: MemberIdentity): Member | undefined {
    return this.#byNode.get(identity.nodeId)?.find((m) => m.identity.incarnation === identity.incarnation);
  }

  /** A member for a life that is not known yet; undefined if it or a newer one has been met or seen to end. */
  meet(identity: MemberIdentity): Member | undefined {
    const newest = this.lives(identity.nodeId).at(-1);
    if (newest !== undefined && newest.identity.incarnation >= identity.incarnation) return undefined;
    if ((this.#fallenUpTo.get(identity.nodeId) ?? 0) >= identity.incarnation) return undefined;
    return this.#add(identity);
  }

  /** A member for a dead life that we never met, but that may hold something of what we take over. */
  meetDead(identity: MemberIdentity): Member | undefined {
    if (this.find(identity) !== undefined) return undefined;
    if ((this.#fallenUpTo.get(identity.nodeId) ?? 0) >= identity.incarnation) return undefined;
    return this.#add(identity);
  }

  #add(identity: MemberIdentity): Member {
    const member: Member = {
      index: this.#byIndex.length,
      identity: { nodeId: identity.nodeId, incarnation: identity.incarnation },
      state: 'live',
      held: false,
      inView: false,
      seenSeq: 0,
      requests: new Map(),
      claims: [],
      answer: null,
      outbox: null,
    };
    this.#byIndex.push(member);
    const lives = [...this.lives(identity.nodeId), member];
    lives.sort((a, b) => a.identity.incarnation - b.identity.incarnation);
    this.#byNode.set(identity.nodeId, lives);
    return member;
  }

  /** Removes and returns the lives up to `upTo`; they are refused from now on. `held` ones stay unless `releaseHeld`. */
  fall(nodeId: NodeId, upTo: Incarnation, releaseHeld: boolean): Member[] {
    if ((this.#fallenUpTo.get(nodeId) ?? 0) < upTo) this.#fallenUpTo.set(nodeId, upTo);
    const lives = this.#byNode.get(nodeId) ?? [];
    const falls = (m: Member): boolean => m.identity.incarnation <= upTo && (releaseHeld || !m.held);
    const falling = lives.filter(falls);
    const rest = lives.filter((m) => !falls(m));
    if (rest.length > 0) this.#byNode.set(nodeId, rest);
    else this.#byNode.delete(nodeId);
    for (const member of falling) member.state = 'fallen';
    return falling;
  }

  /** Of one node, not fallen, oldest first. */
  lives(nodeId: NodeId): readonly Member[] {
    return this.#byNode.get(nodeId) ?? [];
  }
}

/** Which objects this server may grant on. */
export class Ownership {
  epoch: Epoch = epoch(0);
  servers: readonly ServerIdentity[] = [];
  /** The epoch in which the present list came into force, as far as we know. */
  #listEpoch: Epoch = epoch(0);
  #fingerprint = 0;
  /** Every list since the table was last complete, that one first, the present one last. */
  #history: (readonly ServerIdentity[])[] = [[]];
  readonly waitFor = new Set<Member>();

  constructor(readonly self: ServerIdentity) {}

  #ownedIn(list: readonly ServerIdentity[], key: ObjectKey): boolean {
    return sameServer(serverOf(list, classOfKey(key), objectOfKey(key)), this.self);
  }

  /** Not everybody who may hold something has told. */
  get rebuilding(): boolean {
    return this.#history.length > 1;
  }

  /** We are in the present list. */
  get serves(): boolean {
    return this.servers.some((server) => sameServer(server, this.self));
  }

  owns(key: ObjectKey): boolean {
    return this.#ownedIn(this.servers, key);
  }

  /** The table is complete for this object: nothing is held that it doesn't show. */
  trusts(key: ObjectKey): boolean {
    if (this.#history.length === 1) return this.owns(key);
    return this.#history.every((list) => this.#ownedIn(list, key));
  }

  /** @returns whether the list changed (or may have, unseen), so that claims are needed. */
  enter(view: TokenView): boolean {
    const skipped = view.epoch > this.epoch + 1;
    const changed = skipped || !sameList(view.servers, this.servers);
    this.epoch = view.epoch;
    if (!changed) return false;
    this.servers = view.servers;
    this.#listEpoch = view.epoch;
    this.#fingerprint = listFingerprint(view.servers);
    // Under a list that we have not seen any object may have been someone else's.
    if (skipped) this.#history = [[]];
    this.#history.push(view.servers);
    return true;
  }

  /**
   * Claims count if they were made under this very list, and in answer to an ask since it came into force: an older one may
   * have been answered before a grant of ours, then under way, arrived.
   */
  accepts(end: ClaimEndItem): boolean {
    const inTime = end.askedEpoch >= this.#listEpoch && end.epoch >= this.#listEpoch && end.epoch <= this.epoch;
    return inTime && end.listFingerprint === this.#fingerprint;
  }

  /** Everybody has claimed or fallen. */
  settleIfComplete(): boolean {
    if (this.#history.length === 1 || this.waitFor.size > 0) return false;
    this.#history = [this.servers];
    return true;
  }
}
