/**
 * The token server's state, and what every part of it does with it: tell a node something, send and forget revocations.
 *
 * The machine is built in layers, each knowing only those before it: state, waiting line (server-line.ts), members and takeover
 * (server-takeover.ts), messages (token-server-machine.ts, which says what the whole promises).
 */
import type { ByteRange } from '../common/byte-range.js';
import type { Reason } from '../common/errors.js';
import { type Incarnation, nodeId } from '../common/ids.js';
import { classOfKey, HolderTable, type MemberIndex, type ObjectKey, objectOfKey } from './holder-table.js';
import { type Member, Members, Ownership } from './members.js';
import type { ServerIdentity } from './placement.js';
import { DeadlineHeap, type ObjectQueue, type QueuedRequest, type SentRevoke } from './request-queue.js';
import { StatusNotes } from './status-notes.js';
import type { TokenMode } from './token.js';
import type { Blocker, RequestItem, ToClientItem } from './token-messages.js';
import type { MemberIdentity, ServerEffect, ServerTransition, TokenServerSettings } from './token-server-events.js';

export interface TokenServerOptions {
  readonly self: ServerIdentity;
  readonly settings: TokenServerSettings;
  readonly fired: (transition: ServerTransition) => void;
}

export abstract class ServerState {
  protected readonly settings: TokenServerSettings;
  protected readonly fired: (transition: ServerTransition) => void;
  protected readonly table = new HolderTable();
  protected readonly notes = new StatusNotes();
  protected readonly members = new Members();
  protected readonly ownership: Ownership;
  protected readonly queues = new Map<ObjectKey, ObjectQueue>();
  protected readonly revokes = new Map<number, SentRevoke>();
  protected readonly deadlines = new DeadlineHeap();
  /** Requests under a later view than ours, or from lives that it brings. */
  protected early: { member: Member; epoch: number; item: RequestItem }[] = [];
  protected seq = 0;
  protected lastRevokeId = 0;
  protected reclaims = 0;
  protected reclaimCursor: IterableIterator<ObjectKey> | null = null;
  /** Scratch for `collect`: no allocation per request. */
  protected readonly hits: number[] = [];
  protected nowMs = 0;
  protected contradictionDueMs = Number.POSITIVE_INFINITY;
  protected touched: Member[] = [];
  protected violations: ServerEffect[] = [];

  constructor(options: TokenServerOptions) {
    this.settings = options.settings;
    this.fired = options.fired;
    this.ownership = new Ownership(options.self);
  }

  /** Which of this node's lives the machine serves in. */
  get life(): Incarnation {
    return this.ownership.self.incarnation;
  }

  /** When a `tick` is due, in milliseconds of the caller's clock; Infinity if never. */
  get nextWakeMs(): number {
    return Math.min(this.deadlines.nextMs(), this.contradictionDueMs);
  }

  get rangeCount(): number {
    return this.table.size;
  }

  get waitingCount(): number {
    let count = 0;
    for (const queue of this.queues.values()) count += queue.requests.length;
    return count;
  }

  /** Nodes whose claims a takeover still waits for. */
  get rebuildWaitsFor(): MemberIdentity[] {
    return [...this.ownership.waitFor].map((m) => m.identity);
  }

  protected takeEffects(): ServerEffect[] {
    const effects: ServerEffect[] = [];
    for (const member of this.touched) {
      const items = member.outbox!;
      member.outbox = null;
      if (member.state !== 'live') continue;
      const message = { epoch: this.ownership.epoch, toIncarnation: member.identity.incarnation, items };
      effects.push({ type: 'send', to: member.identity, message });
    }
    this.touched = [];
    if (this.violations.length > 0) {
      effects.push(...this.violations);
      this.violations = [];
    }
    return effects;
  }

  protected tell(member: Member, item: ToClientItem): void {
    if (member.outbox === null) {
      member.outbox = [];
      this.touched.push(member);
    }
    member.outbox.push(item);
  }

  protected refuse(member: Member, requestId: number, reason: Reason, blockers: readonly Blocker[]): void {
    this.tell(member, { kind: 'refusal', requestId, reason, epoch: this.ownership.epoch, blockers });
  }

  protected sendRevoke(
    key: ObjectKey,
    queue: ObjectQueue,
    holder: MemberIndex,
    required: ByteRange,
    desired: ByteRange,
    keep: TokenMode,
    request: QueuedRequest | null,
  ): void {
    const revoke: SentRevoke = {
      revokeId: ++this.lastRevokeId,
      key,
      member: holder,
      range: required,
      keep,
      upToSeq: this.seq,
      sentAtMs: this.nowMs,
      reclaim: request === null,
      prompt: request?.prompt ?? false,
    };
    queue.revokes.push(revoke);
    this.revokes.set(revoke.revokeId, revoke);
    if (revoke.reclaim) this.reclaims++;
    this.tell(this.members.at(holder), {
      kind: 'revoke',
      revokeId: revoke.revokeId,
      class: classOfKey(key),
      object: objectOfKey(key),
      required,
      desired,
      keep,
      prompt: revoke.prompt,
      requester: request?.member.identity.nodeId ?? nodeId(0),
      upToSeq: revoke.upToSeq,
    });
  }

  protected forgetRevoke(revoke: SentRevoke): void {
    this.revokes.delete(revoke.revokeId);
    if (revoke.reclaim) this.reclaims--;
    const queue = this.queues.get(revoke.key);
    if (queue !== undefined) queue.revokes = queue.revokes.filter((r) => r !== revoke);
  }
}
