/**
 * One object as the token client sees it: what is held, who has it pinned, what is being called back, who waits.
 *
 * Invariants: every pin lies in held ranges of sufficient mode; after a revocation has begun no operation is pinned in its
 * range that it would have to wait for, except at a grant newer than the revocation, and that operation waits for its end.
 */
import { type ByteRange, overlaps, range } from '../common/byte-range.js';
import { SECTOR_BYTES } from '../common/units.js';
import { covers, meet, modeMask } from './compatibility.js';
import type { ServerIdentity } from './placement.js';
import { type FlatPieces, RangeMap, STRIDE } from './range-map.js';
import { TokenClass, TokenMode, type TokenObject, type TokenPins } from './token.js';
import type { AcquireOp, TokenGroup } from './token-client-events.js';
import type { RequestPart } from './token-messages.js';

/** For each mode, the held modes that allow it. */
export const COVER_MASK: readonly number[] = [
  TokenMode.none,
  TokenMode.shared,
  TokenMode.concurrentWrite,
  TokenMode.exclusive,
].map((mode) => modeMask(mode) | modeMask(TokenMode.exclusive));

/** A range in use by one operation. Also what `tryPin` returns for a single item. */
export class Pin implements TokenPins {
  /** Index in the object's list; -1 once released. */
  slot = -1;
  constructor(
    readonly owner: { unpin(pin: Pin): void },
    readonly object: ObjectState,
    readonly start: number,
    readonly end: number,
    readonly mode: TokenMode,
    /** Order of pins and revocations of this node. */
    readonly serial: number,
  ) {}
  release(): void {
    if (this.slot >= 0) this.owner.unpin(this);
  }
}

export class PinSet implements TokenPins {
  readonly pins: Pin[] = [];
  release(): void {
    for (const pin of this.pins) pin.release();
  }
}

export interface WaitingOp {
  readonly op: AcquireOp;
  readonly pins: PinSet;
  /** Groups before this index are pinned. */
  next: number;
  /** Where it waits; null while it waits for a server or for the end of a suspension. */
  waitsOn: ObjectState | null;
  /** Group `next` is pinned too, but revocations older than its grant must end first. */
  behindRevoke: boolean;
  done: boolean;
  /** By group: the request that was waited for instead of sending one. */
  joined: Map<number, SentRequest> | null;
}

export interface SentRequest {
  readonly requestId: number;
  readonly object: ObjectState;
  readonly group: TokenGroup;
  /** Null once the operation gave up. */
  waiter: WaitingOp | null;
  readonly groupIndex: number;
  /** Whom its grant may serve too; until when they wait for it. */
  readonly joiners: WaitingOp[];
  readonly joinUntilMs: number;
}

export interface Revoking {
  /** Names it to the handler; also its order among pins, once begun. */
  handle: number;
  readonly object: ObjectState;
  /** Who is answered; null for our own release, and when the server that asked has gone. */
  server: ServerIdentity | null;
  readonly revokeId: number;
  readonly releaseId: number | null;
  readonly required: ByteRange;
  readonly desired: ByteRange;
  /** What is given up: at least `required`. Decided when it begins. */
  give: ByteRange;
  /** Less than was asked for, if this node doesn't share writing there. Decided when it begins. */
  keep: TokenMode;
  /** Not waited for with: what is pinned is kept, and that is the answer. */
  readonly prompt: boolean;
  /** Pieces of newer grants are not meant. */
  upToSeq: number;
  /** held: the minimum time; draining: waiting for pins and older revocations; running: the handler has it. */
  phase: 'held' | 'draining' | 'running';
  readonly beginsAtMs: number;
}

/**
 * Whether a revocation takes something from who has it pinned in this mode. Coming down from exclusive to concurrent-write status: from everybody,
 * since who pins the one may have found the other.
 */
export const takesFrom = ({ keep, object }: Revoking, mode: TokenMode): boolean =>
  !covers(keep, mode) || (keep === TokenMode.concurrentWrite && object.tokenClass === TokenClass.status);

export class ObjectState {
  readonly held = new RangeMap();
  readonly pins: Pin[] = [];
  /** In the order in which they arrived. */
  revokes: Revoking[] = [];
  requests: SentRequest[] = [];
  waiters: WaitingOp[] = [];
  server: ServerIdentity | undefined;
  grantedAtMs = Number.NEGATIVE_INFINITY;
  /** No request before this time: the last one was refused as staleEpoch. */
  retryAtMs = Number.NEGATIVE_INFINITY;
  /** Used since the shrinking hand passed. */
  used = true;

  constructor(
    readonly tokenClass: TokenClass,
    readonly object: TokenObject,
  ) {}

  get idle(): boolean {
    return (
      this.pins.length === 0 && this.revokes.length === 0 && this.requests.length === 0 && this.waiters.length === 0
    );
  }

  addPin(pin: Pin): void {
    pin.slot = this.pins.length;
    this.pins.push(pin);
  }
  removePin(pin: Pin): void {
    const last = this.pins.pop()!;
    if (last !== pin) {
      this.pins[pin.slot] = last;
      last.slot = pin.slot;
    }
    pin.slot = -1;
  }

  covered(start: number, end: number, mode: TokenMode): boolean {
    return this.held.coveredBy(start, end, COVER_MASK[mode]!);
  }
  coversParts(parts: readonly RequestPart[]): boolean {
    for (const { required, mode } of parts) if (!this.covered(required.start, required.end, mode)) return false;
    return true;
  }

  /** A revocation has begun that a new pin would get in the way of. */
  beingRevoked(start: number, end: number, mode: TokenMode, beforeSerial = Number.POSITIVE_INFINITY): boolean {
    for (const r of this.revokes) {
      if (r.phase === 'held' || r.handle >= beforeSerial) continue;
      if (r.give.start < end && start < r.give.end && takesFrom(r, mode)) return true;
    }
    return false;
  }

  /** Pins that the revocation waits for. */
  pinnedAgainst(revoking: Revoking): boolean {
    for (const pin of this.pins) {
      if (pin.serial < revoking.handle && overlaps(pin, revoking.give) && takesFrom(revoking, pin.mode)) return true;
    }
    return false;
  }

  /** Whether what is wanted waits for a file to be closed, on this node or another one. */
  heldUp(parts: readonly RequestPart[]): boolean {
    const isWanted = (r: ByteRange): boolean => parts.some((part) => overlaps(part.required, r));
    if (this.requests.some((r) => r.waiter?.op.patient === true && r.group.parts.some((p) => isWanted(p.required))))
      return true;
    return this.revokes.some((r) => r.phase === 'draining' && isWanted(r.give) && this.pinnedAgainst(r));
  }

  /** The hull of the pieces that the revocation takes something from, or null if there are none. */
  affected(revoking: Revoking): ByteRange | null {
    const { give, keep, upToSeq } = revoking;
    const pieces: FlatPieces = [];
    this.held.collect(give.start, give.end, pieces);
    let start = Number.POSITIVE_INFINITY;
    let end = 0;
    for (let i = 0; i < pieces.length; i += STRIDE) {
      if (covers(keep, pieces[i + 2]! as TokenMode) || pieces[i + 3]! > upToSeq) continue;
      start = Math.min(start, pieces[i]!);
      end = pieces[i + 1]!;
    }
    return start < end ? range(start, end) : null;
  }

  /** Gives up what the revocation means; returns the ranges of which now at most `keep` is held. */
  giveUp(revoking: Revoking, settledSeq: number): ByteRange[] {
    const { give, keep, upToSeq } = revoking;
    const pieces: FlatPieces = [];
    this.held.collect(give.start, give.end, pieces);
    const rest: FlatPieces = [];
    const stated: ByteRange[] = [];
    let from = give.start;
    for (let i = 0; i < pieces.length; i += STRIDE) {
      const mode = pieces[i + 2]! as TokenMode;
      if (covers(keep, mode)) rest.push(pieces[i]!, pieces[i + 1]!, mode, pieces[i + 3]!);
      else if (pieces[i + 3]! <= upToSeq) {
        const left = meet(mode, keep);
        if (left !== TokenMode.none) rest.push(pieces[i]!, pieces[i + 1]!, left, pieces[i + 3]!);
      } else {
        rest.push(pieces[i]!, pieces[i + 1]!, mode, pieces[i + 3]!);
        if (from < pieces[i]!) stated.push(range(from, pieces[i]!));
        from = pieces[i + 1]!;
      }
    }
    if (from < give.end) stated.push(range(from, give.end));
    this.held.replace(give.start, give.end, rest, settledSeq);
    return stated;
  }

  /** Parts of the range that are held, not pinned and not being revoked. */
  free(within: ByteRange): ByteRange[] {
    const pieces: FlatPieces = [];
    this.held.collect(within.start, within.end, pieces);
    const busy: ByteRange[] = [...this.pins, ...this.revokes.map((r) => r.give)]
      .map((b) => range(floorSector(b.start), ceilSector(b.end)))
      .sort((a, b) => a.start - b.start);
    const free: ByteRange[] = [];
    for (let i = 0; i < pieces.length; i += STRIDE) {
      let from = pieces[i]!;
      const to = pieces[i + 1]!;
      for (const b of busy) {
        if (b.end <= from || b.start >= to) continue;
        if (b.start > from) free.push(range(from, b.start));
        from = b.end;
      }
      if (from < to) free.push(range(from, to));
    }
    return free;
  }
}

const floorSector = (offset: number): number => Math.floor(offset / SECTOR_BYTES) * SECTOR_BYTES;
const ceilSector = (offset: number): number => Math.ceil(offset / SECTOR_BYTES) * SECTOR_BYTES;

/**
 * T1: what a holder gives up for a request. Idle, all that is desired; working in sequence at o1 while the requester is at
 * o2, it keeps what lies before o2 if o1 < o2, else what lies from o1 on (GPFS's rule: two sequential writers split the
 * file once). Ranges in use by operations are kept beyond the required range.
 */
export function giveWay(
  required: ByteRange,
  desired: ByteRange,
  working: ByteRange | null,
  inUse: readonly ByteRange[],
): ByteRange {
  let start = Math.min(desired.start, required.start);
  let end = Math.max(desired.end, required.end);
  if (working !== null) {
    if (working.start < required.start) start = required.start;
    else end = Math.max(required.end, Math.min(end, floorSector(working.start)));
  }
  for (const use of inUse) {
    if (use.end <= required.start) start = Math.max(start, Math.min(required.start, ceilSector(use.end)));
    else if (use.start >= required.end) end = Math.min(end, Math.max(required.end, floorSector(use.start)));
    else {
      // It overlaps the required range, so its end is waited for in any case.
    }
  }
  return range(start, end);
}
