import type { MembershipSettings } from './membership.js';

/**
 * The lease of one node, as a machine of its own inside membership: when to renew, when it has run out, what counts again.
 *
 * Invariants: the deadline is (time the acknowledged request was sent) + ttl - margin; it moves back only when the store says
 * that the lease is gone, then to now; while a regained lease waits for its confirmation nothing moves it on. Times are the
 * Clock's milliseconds.
 */
/** kept: acknowledged. gone: the store has forgotten the lease. unknown: no answer in time. taken: somebody else has the key. */
export type LeaseOutcome = 'kept' | 'gone' | 'unknown' | 'taken';

export type LeaseEffect =
  | { type: 'suspended' }
  | { type: 'lease'; deadlineMs: number }
  | { type: 'resumed' }
  | { type: 'renew' }
  | { type: 'regain' };

export class LeaseKeeper {
  #deadlineMs: number;
  #toldMs = 0;
  /** The deadline of a regained lease that waits to be confirmed; 0: none. */
  #unconfirmedMs = 0;
  #nextMs: number;
  #asking = false;
  #gone = false;
  #suspended = false;

  constructor(
    readonly settings: MembershipSettings,
    grantedAtMs: number,
  ) {
    this.#deadlineMs = this.#deadlineOf(grantedAtMs);
    this.#nextMs = grantedAtMs + settings.renewEveryMs;
  }

  get suspended(): boolean {
    return this.#suspended;
  }
  valid(nowMs: number): boolean {
    return !this.#suspended && nowMs < this.#deadlineMs;
  }

  renewed(sentAtMs: number, outcome: LeaseOutcome, nowMs: number): void {
    this.#asking = false;
    if (outcome === 'kept') {
      const deadlineMs = this.#deadlineOf(sentAtMs);
      if (this.#unconfirmedMs > 0) this.#unconfirmedMs = Math.max(this.#unconfirmedMs, deadlineMs);
      else this.#deadlineMs = Math.max(this.#deadlineMs, deadlineMs);
      this.#nextMs = sentAtMs + this.settings.renewEveryMs;
      return;
    }
    // What etcd forgot may have been taken over from that moment on, however long our own deadline still runs.
    if (outcome === 'gone') {
      this.#gone = true;
      this.#unconfirmedMs = 0;
      this.#deadlineMs = Math.min(this.#deadlineMs, nowMs);
    }
    this.#nextMs = outcome === 'gone' ? nowMs : nowMs + this.settings.retryMs;
  }

  regained(sentAtMs: number, outcome: LeaseOutcome, nowMs: number): void {
    this.#asking = false;
    this.#nextMs = nowMs + this.settings.retryMs;
    if (outcome !== 'kept') return;
    this.#gone = false;
    this.#unconfirmedMs = this.#deadlineOf(sentAtMs);
    this.#nextMs = sentAtMs + this.settings.renewEveryMs;
  }

  /** No expulsion can come in between any more. */
  confirm(): void {
    if (this.#gone) return;
    this.#deadlineMs = Math.max(this.#deadlineMs, this.#unconfirmedMs);
    this.#unconfirmedMs = 0;
  }

  reconcile(nowMs: number): LeaseEffect[] {
    const effects: LeaseEffect[] = [];
    if (!this.#suspended && nowMs >= this.#deadlineMs) {
      this.#suspended = true;
      effects.push({ type: 'suspended' });
    }
    const resumes = this.#suspended && nowMs < this.#deadlineMs;
    if (resumes) this.#suspended = false;
    if (this.#deadlineMs !== this.#toldMs) {
      this.#toldMs = this.#deadlineMs;
      effects.push({ type: 'lease', deadlineMs: this.#deadlineMs });
    }
    if (resumes) effects.push({ type: 'resumed' });
    if (!this.#asking && nowMs >= this.#nextMs) {
      this.#asking = true;
      effects.push({ type: this.#gone ? 'regain' : 'renew' });
    }
    return effects;
  }

  wakeMs(): number {
    const expiryMs = this.#suspended ? Number.POSITIVE_INFINITY : this.#deadlineMs;
    return Math.min(expiryMs, this.#asking ? Number.POSITIVE_INFINITY : this.#nextMs);
  }

  #deadlineOf(sentAtMs: number): number {
    return sentAtMs + this.settings.ttlMs - this.settings.leaseMarginMs;
  }
}
