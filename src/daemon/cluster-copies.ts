import type { ClusterView, CopyRecord, Membership } from '../cluster/membership-api.js';
import { type Clock, sleep } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { NodeId, NsdIndex } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import { Settling, type SpacePeers } from '../fs/space-peers.js';
import type { CopyState, CopyStates } from '../nsd/copy-states.js';

/**
 * The states of copies, kept in the cluster store (S5), as one file system's nodes go by them.
 *
 * Order of giving up a copy: *failing* in the store -> every node of the view says that it knows (so nobody reads it) -> *stale* in the store -> writes
 * may pass it over. A node that doesn't answer is waited for until it has been expelled; whoever dies in the midst leaves it failing, and the next write
 * that can't reach it goes on from there. All of it is one key, so that two nodes can't give up one copy each of the same sectors.
 * Fault model: the store's and the peers'; everything ends at a deadline, and then the write has failed.
 */
export interface CopyRecordStore {
  /** See MembershipRuntime.updateCopies. */
  updateCopies(
    change: (copies: ReadonlyMap<string, CopyRecord>) => ReadonlyMap<string, CopyRecord> | null,
  ): Promise<void>;
}

export interface ClusterCopiesParts {
  readonly self: NodeId;
  /** The file system's NSDs by index. */
  readonly uuids: readonly string[];
  readonly membership: Membership;
  readonly records: CopyRecordStore;
  readonly peers: Pick<SpacePeers, 'settle'>;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
}

/** A server that is just starting, or moving, is waited for so long. */
const GRACE_MS = 3_000;
const LOOK_MS = 100;
/** How long a node that doesn't answer is waited for: it is expelled meanwhile, if it is dead. */
const MARK_TIMEOUT_MS = 60_000;
const PEERS_TIMEOUT_MS = 5_000;
const CHANGES_TIMEOUT_MS = 45_000;

export class ClusterCopies implements CopyStates {
  readonly #parts: ClusterCopiesParts;
  readonly #marking = new Map<NsdIndex, Promise<'stale' | 'again'>>();

  constructor(parts: ClusterCopiesParts) {
    this.#parts = parts;
  }

  get #view(): ClusterView {
    return this.#parts.membership.view;
  }

  stateOf(nsd: NsdIndex): CopyState {
    return this.#view.copies.get(this.#parts.uuids[nsd] ?? '')?.state ?? 'up';
  }
  isNear(nsd: NsdIndex): boolean {
    return this.#view.nsds.get(this.#parts.uuids[nsd] ?? '')?.serving === this.#parts.self;
  }
  isReachable(nsd: NsdIndex): boolean {
    const record = this.#view.nsds.get(this.#parts.uuids[nsd] ?? '');
    return record !== undefined && record.serving !== null && this.#view.nodes.has(record.serving);
  }
  onChange(listener: () => void): () => void {
    return this.#parts.membership.onChange(listener);
  }

  missed(nsd: NsdIndex, cause: FsError): Promise<'stale' | 'again'> {
    const under = this.#marking.get(nsd);
    if (under !== undefined) return under;
    const marking = this.#mark(nsd, cause).finally(() => this.#marking.delete(nsd));
    this.#marking.set(nsd, marking);
    return marking;
  }

  async #mark(nsd: NsdIndex, cause: FsError): Promise<'stale' | 'again'> {
    const { clock, counters, logger, self } = this.#parts;
    // Who was expelled has no say; and finds that out otherwise.
    if (!this.#view.nodes.has(self)) throw this.#refusal(nsd, cause);
    const beganMs = clock.nowMs();
    // Nobody served it at that moment: that may be over.
    if (cause.reason === 'nsdUnavailable')
      for (; clock.nowMs() - beganMs < GRACE_MS && this.stateOf(nsd) !== 'stale'; await sleep(clock, LOOK_MS))
        if (this.isReachable(nsd)) return 'again';
    while (clock.nowMs() - beganMs < MARK_TIMEOUT_MS) {
      const state = await this.#change(nsd, (record, copies) => {
        if (record.state === 'resync') return 'stale';
        if (record.state !== 'up') return null;
        if (this.#othersNeeded(nsd, copies)) throw this.#refusal(nsd, cause);
        return 'failing';
      });
      if (state === 'stale') {
        counters.add('copies.markedStale');
        logger.error({ nsd: this.#parts.uuids[nsd], cause: cause.message }, 'a copy is stale from here on');
        return 'stale';
      }
      if (await this.#everybodyKnows(Settling.copies, PEERS_TIMEOUT_MS))
        await this.#change(nsd, (record) => (record.state === 'failing' ? 'stale' : null));
      else await sleep(clock, LOOK_MS);
    }
    throw this.#refusal(nsd, cause);
  }

  /** An NSD that may have the other copy of something does not have everything itself. */
  #othersNeeded(nsd: NsdIndex, copies: ReadonlyMap<string, CopyRecord>): boolean {
    const { uuids } = this.#parts;
    const groupOf = (uuid: string): number => this.#view.nsds.get(uuid)?.failureGroup ?? 0;
    const own = uuids[nsd]!;
    const others = uuids.filter((uuid) => uuid !== own);
    const elsewhere = others.filter((uuid) => groupOf(uuid) !== groupOf(own));
    return (elsewhere.length > 0 ? elsewhere : others).some((uuid) => (copies.get(uuid)?.state ?? 'up') !== 'up');
  }

  #refusal(nsd: NsdIndex, cause: FsError): FsError {
    this.#parts.counters.add('copies.markRefused');
    const detail =
      'it could not be reached, and could not be marked stale: an NSD or a node that is needed for that is away too';
    return new FsError('nsdUnavailable', { op: 'nsd.mark', object: `nsd ${this.#parts.uuids[nsd]}`, detail, cause });
  }

  async refused(nsd: NsdIndex): Promise<void> {
    await this.#change(nsd, (record) => (record.state === 'resync' ? 'resync' : null));
  }

  async beginResync(nsd: NsdIndex): Promise<number | null> {
    await this.#change(nsd, (record) => (record.state === 'up' ? null : 'resync'));
    const begun = this.#record(nsd);
    if (begun.state !== 'resync') return null;
    if (!(await this.#everybodyKnows(Settling.changes, CHANGES_TIMEOUT_MS))) return null;
    return begun.generation;
  }

  async endResync(nsd: NsdIndex, generation: number): Promise<boolean> {
    const uuid = this.#parts.uuids[nsd]!;
    let done = false;
    await this.#parts.records.updateCopies((copies) => {
      const record = copies.get(uuid);
      done = record?.state === 'resync' && record.generation === generation;
      return done ? new Map(copies).set(uuid, { state: 'up', generation, sinceMs: this.#wallMs() }) : null;
    });
    return done;
  }

  #record(nsd: NsdIndex): CopyRecord {
    return this.#view.copies.get(this.#parts.uuids[nsd]!) ?? UP;
  }
  #wallMs(): number {
    return Number(this.#parts.clock.wallNs() / 1_000_000n);
  }

  /** Null leaves it. Returns the state that stands then. */
  async #change(
    nsd: NsdIndex,
    next: (record: CopyRecord, copies: ReadonlyMap<string, CopyRecord>) => CopyState | null,
  ): Promise<CopyState> {
    const uuid = this.#parts.uuids[nsd]!;
    let state: CopyState = 'up';
    await this.#parts.records.updateCopies((copies) => {
      const record = copies.get(uuid) ?? UP;
      const wanted = next(record, copies);
      state = wanted ?? record.state;
      if (wanted === null) return null;
      const sinceMs = wanted === record.state ? record.sinceMs : this.#wallMs();
      return new Map(copies).set(uuid, { state: wanted, generation: record.generation + 1, sinceMs });
    });
    return state;
  }

  /** This node knows; so do all others of the view. */
  async #everybodyKnows(what: Settling, timeoutMs: number): Promise<boolean> {
    return (await this.#parts.peers.settle(what, timeoutMs)).mark !== null;
  }
}

const UP: CopyRecord = { state: 'up', generation: 0, sinceMs: 0 };
