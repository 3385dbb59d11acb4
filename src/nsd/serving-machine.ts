import type { NodeId } from '../common/ids.js';

/**
 * Whether this node serves an NSD to which several nodes have a path. A pure machine, one per NSD and node:
 * (state, event, now) -> effects; `nsd-serving.ts` in the daemon carries them out.
 *
 * Only one server serves an NSD (S4). Who that is stands in the cluster store and moves by compare-and-swap:
 *
 *     serving A  --takeover-->  nobody, moving from A to B  --A is shut out-->  serving B
 *
 * Between the two, B asks A to give it up: A serves nothing of an older generation from then on, waits for what is at the device,
 * closes it, and says so. An A that doesn't answer, or is gone, is shut out at the target instead; where there is no target, B
 * waits for A to come back and say so. A server that leaves in good order gives the NSD up, and the next in the list takes it.
 *
 * Invariants
 * - The device is open for serving only while the newest record known says `serving` this node and nobody moves.
 * - Having answered a release of generation g, this node never serves under a record before g, however late its own view is.
 * - `claim` (serving B) is asked for only after A's answer, or the target's.
 * Fault model: every answer may be lost, late or an error; the record may change at any time; this node may die anywhere: all that counts is
 * in the record, and each step may be done again. A taker that dies leaves `moving`; another takeover names another taker, and the same A.
 */
export interface ServingRecord {
  readonly serving: NodeId | null;
  readonly moving: { readonly from: NodeId; readonly to: NodeId } | null;
  readonly generation: number;
  /** In order of preference. */
  readonly servers: readonly NodeId[];
}

export interface ServingSettings {
  /** Between attempts of whatever failed. */
  readonly retryMs: number;
}

export type ServingEvent =
  | { readonly type: 'record'; readonly record: ServingRecord; readonly inView: ReadonlySet<NodeId> }
  /** Another node, that takes over, wants to hear when this one serves no record before `generation` any more. */
  | { readonly type: 'releaseAsked'; readonly generation: number }
  | { readonly type: 'opened' | 'closed' | 'swapped'; readonly done: boolean }
  /** Answers to the effects of that generation; those of an older move say nothing about the present one. */
  | { readonly type: 'released' | 'shutOut'; readonly generation: number; readonly done: boolean }
  /** This node leaves in good order. */
  | { readonly type: 'leave' }
  | { readonly type: 'tick' };

export type ServingEffect =
  /** Open the device, read its header, export it. Answered by `opened`. */
  | { readonly type: 'open' }
  /** Refuse requests, wait for what is at the device, flush, close it. Answered by `closed`. */
  | { readonly type: 'close' }
  /** Answer every `releaseAsked` of this generation and before. */
  | { readonly type: 'answerRelease'; readonly generation: number }
  /** Answered by `released`. */
  | { readonly type: 'askRelease'; readonly of: NodeId; readonly generation: number }
  /** Shut this server's path at its target. Answered by `shutOut`. */
  | { readonly type: 'shutOut'; readonly of: NodeId; readonly generation: number }
  /** Change the record if it is still of `expected`. Answered by `swapped`. */
  | {
      readonly type: 'swap';
      readonly expected: number;
      readonly next: Pick<ServingRecord, 'serving' | 'moving' | 'generation'>;
    }
  /** Closed and, if another could serve it, given up: this node may end. */
  | { readonly type: 'left' }
  | { readonly type: 'wake'; readonly atMs: number };

type Device = 'closed' | 'opening' | 'open' | 'closing';
type Proof = 'none' | 'asking' | 'shutting' | 'given';

export class ServingMachine {
  #record: ServingRecord | null = null;
  #inView: ReadonlySet<NodeId> = new Set();
  #device: Device;
  /** No record before this generation is served under. */
  #releasedBefore = 0;
  #unanswered = 0;
  /** That the one it moves from is shut out, for the move of `#provenGeneration`. */
  #proof: Proof = 'none';
  #provenGeneration = 0;
  /** The server was asked in this move and did not say so: its target is next. */
  #silent = false;
  #swapping: Pick<ServingRecord, 'serving' | 'moving' | 'generation'> | null = null;
  #leaving = false;
  #left = false;
  #retryAtMs = 0;
  #effects: ServingEffect[] = [];

  /** `open`: the device is open and exported already. */
  constructor(
    readonly self: NodeId,
    readonly settings: ServingSettings,
    open: boolean,
  ) {
    this.#device = open ? 'open' : 'closed';
  }

  get serves(): boolean {
    return this.#device === 'open';
  }
  get record(): ServingRecord | null {
    return this.#record;
  }
  /** Nothing is under way: it serves, or another does, or is to. */
  get settled(): boolean {
    return this.#record !== null && (this.#wantsOpen ? this.#device === 'open' : this.#device === 'closed');
  }

  step(event: ServingEvent, nowMs: number): ServingEffect[] {
    this.#effects = [];
    this.#take(event, nowMs);
    this.#reconcile(nowMs);
    return this.#effects;
  }

  #take(event: ServingEvent, nowMs: number): void {
    const retry = (done: boolean): void => {
      if (!done) this.#retryAtMs = nowMs + this.settings.retryMs;
    };
    switch (event.type) {
      case 'record':
        this.#inView = event.inView;
        if (this.#record === null || event.record.generation >= this.#record.generation) this.#record = event.record;
        break;
      case 'releaseAsked':
        this.#releasedBefore = Math.max(this.#releasedBefore, event.generation);
        this.#unanswered = Math.max(this.#unanswered, event.generation);
        break;
      case 'opened':
        this.#device = event.done ? 'open' : 'closed';
        retry(event.done);
        break;
      case 'closed':
        this.#device = event.done ? 'closed' : 'open';
        retry(event.done);
        break;
      case 'released':
        if (this.#proof !== 'asking' || event.generation !== this.#provenGeneration) break;
        this.#proof = event.done ? 'given' : 'none';
        this.#silent = !event.done;
        break;
      case 'shutOut':
        if (this.#proof !== 'shutting' || event.generation !== this.#provenGeneration) break;
        this.#proof = event.done ? 'given' : 'none';
        // It may have come back meanwhile.
        this.#silent = false;
        retry(event.done);
        break;
      case 'swapped':
        // What the store took is so, though it may take a while to come back as a record.
        if (event.done && this.#record !== null) this.#record = { ...this.#record, ...this.#swapping };
        this.#swapping = null;
        retry(event.done);
        break;
      case 'leave':
        this.#leaving = true;
        break;
      case 'tick':
        break;
    }
  }

  get #wantsOpen(): boolean {
    const record = this.#record;
    return (
      !this.#leaving &&
      record !== null &&
      record.serving === this.self &&
      record.moving === null &&
      record.generation >= this.#releasedBefore
    );
  }

  #reconcile(nowMs: number): void {
    const record = this.#record;
    if (this.#left || record === null) return;
    const wants = this.#wantsOpen;
    const rests = nowMs < this.#retryAtMs;
    if (this.#device === 'open' && !wants && !rests) {
      this.#device = 'closing';
      this.#effects.push({ type: 'close' });
    }
    if (this.#device === 'closed') {
      if (this.#unanswered > 0) {
        this.#effects.push({ type: 'answerRelease', generation: this.#unanswered });
        this.#unanswered = 0;
      }
      if (wants && !rests) {
        this.#device = 'opening';
        this.#effects.push({ type: 'open' });
      }
    }
    if (!rests) this.#move(record);
    if (this.#leaving && this.#device === 'closed' && this.#swapping === null && !this.#givesUp(record)) {
      this.#left = true;
      this.#effects.push({ type: 'left' });
      return;
    }
    if (rests) this.#effects.push({ type: 'wake', atMs: this.#retryAtMs });
  }

  /** With another server to take it; else it stays this node's, for its next life. */
  #givesUp(record: ServingRecord): boolean {
    return record.serving === this.self && record.servers.some((server) => server !== this.self);
  }

  #move(record: ServingRecord): void {
    if (this.#swapping !== null) return;
    const { serving, moving, generation } = record;
    if (this.#leaving) {
      if (this.#device === 'closed' && this.#givesUp(record)) this.#swap(generation, { serving: null, moving });
      return;
    }
    if (moving === null) {
      const first = record.servers.find((server) => this.#inView.has(server));
      if (serving === null && first === this.self) this.#swap(generation, { serving: this.self, moving: null });
      return;
    }
    if (moving.to === this.self) this.#takeOver(moving.from, generation);
  }

  #takeOver(from: NodeId, generation: number): void {
    if (this.#provenGeneration !== generation) {
      this.#provenGeneration = generation;
      this.#proof = from === this.self ? 'given' : 'none';
      this.#silent = false;
    }
    if (this.#proof === 'given') {
      if (this.#device === 'closed') this.#swap(generation, { serving: this.self, moving: null });
    } else if (this.#proof === 'none') {
      const ask = this.#inView.has(from) && !this.#silent;
      this.#proof = ask ? 'asking' : 'shutting';
      this.#effects.push({ type: ask ? 'askRelease' : 'shutOut', of: from, generation });
    }
  }

  #swap(expected: number, next: Pick<ServingRecord, 'serving' | 'moving'>): void {
    this.#swapping = { ...next, generation: expected + 1 };
    this.#effects.push({ type: 'swap', expected, next: this.#swapping });
  }
}
