/**
 * The token client's state, its fast path, and what every part of it does with it: tell a server something, find an object.
 *
 * The machine is built in layers, each knowing only those before it: state, operations (client-operations.ts), grants and
 * refusals (client-grants.ts), giving way (client-revocations.ts), views, time and the lease (token-client-machine.ts, which
 * says what the whole promises).
 */
import { type ByteRange, range } from '../common/byte-range.js';
import { type Epoch, type NodeId, epoch as toEpoch } from '../common/ids.js';
import {
  COVER_MASK,
  ObjectState,
  Pin,
  PinSet,
  type Revoking,
  type SentRequest,
  takesFrom,
  type WaitingOp,
} from './client-object.js';
import { type ServerIdentity, serverOf } from './placement.js';
import { type StatusNote, TokenClass, type TokenItem, TokenMode, type TokenObject, type TokenPins } from './token.js';
import type { ClientEffect, ClientTransition, TokenClientSettings } from './token-client-events.js';
import type { ToServerItem } from './token-messages.js';

export interface TokenClientMachineOptions {
  readonly self: ServerIdentity;
  readonly settings: TokenClientSettings;
  readonly fired: (transition: ClientTransition) => void;
  /** Where the object is in use now, or null: RevokeHandler.working. */
  readonly working: (tokenClass: TokenClass, object: TokenObject) => ByteRange | null;
  /** RevokeHandler.writesConcurrently. */
  readonly writesConcurrently: (object: TokenObject, range: ByteRange) => boolean;
  /** A pin was released that a revocation waits for: a `drained` event is due. May be called inside `step`. */
  readonly onDrained: () => void;
}

/** What we know of one life of a server. */
export interface Link {
  readonly identity: ServerIdentity;
  seenSeq: number;
  /** An ask for an epoch that we have not reached. */
  askedEpoch: Epoch | null;
  outbox: ToServerItem[] | null;
  /** That came before the grant that they belong to. */
  notes: { readonly object: TokenObject; readonly note: StatusNote }[];
}

export const NEVER = Number.POSITIVE_INFINITY;

export abstract class ClientState {
  protected readonly self: ServerIdentity;
  protected readonly settings: TokenClientSettings;
  protected readonly fired: (transition: ClientTransition) => void;
  protected readonly working: TokenClientMachineOptions['working'];
  protected readonly writesConcurrently: TokenClientMachineOptions['writesConcurrently'];
  protected readonly onDrained: () => void;
  protected epoch = toEpoch(0);
  protected servers: readonly ServerIdentity[] = [];
  protected readonly links = new Map<NodeId, Link>();
  /** By class, then object. */
  protected objects: Map<TokenObject, ObjectState>[] = Object.values(TokenClass).map(() => new Map());
  protected readonly ops = new Map<number, WaitingOp>();
  protected readonly requests = new Map<number, SentRequest>();
  protected readonly revokes = new Map<number, Revoking>();
  /** Revocations that are left of each of our own releases. */
  protected readonly releases = new Map<number, number>();
  /** By object and sector: what we have told of inodes that we wrote to with others, until we see that it is in the inode. */
  protected readonly told = new Map<TokenObject, Map<number, StatusNote>>();
  protected drained = new Set<ObjectState>();
  protected lastRequestId = 0;
  /** Seen from any server in any life. */
  protected highestSeq = 0;
  protected serial = 0;
  protected pieces = 0;
  protected shrinkCursor: Iterator<ObjectState> | null = null;
  protected suspended = false;
  protected fenced = false;
  protected nowMs = 0;
  protected wakeDueMs = NEVER;
  protected touched: Link[] = [];
  protected effects: ClientEffect[] = [];
  /** What others told of inodes: carried out before anybody uses these, who was pinned earlier in the step included. */
  protected gathered: ClientEffect[] = [];

  constructor(options: TokenClientMachineOptions) {
    this.self = options.self;
    this.settings = options.settings;
    this.fired = options.fired;
    this.working = options.working;
    this.writesConcurrently = options.writesConcurrently;
    this.onDrained = options.onDrained;
  }

  /** All items held and in nobody's way: pinned. Else null, and nothing is. */
  tryPin(items: readonly TokenItem[]): TokenPins | null {
    if (this.suspended || this.fenced) return null;
    for (const item of items) {
      const state = this.objects[item.class]!.get(item.object);
      if (state === undefined) return null;
      const { start, end } = item.required;
      if (!state.covered(start, end, item.mode)) return null;
      if (state.revokes.length > 0 && state.beingRevoked(start, end, item.mode)) return null;
    }
    if (items.length === 1) return this.pinItem(items[0]!);
    const set = new PinSet();
    for (const item of items) set.pins.push(this.pinItem(item));
    return set;
  }

  protected pinItem(item: TokenItem): Pin {
    const state = this.objects[item.class]!.get(item.object)!;
    state.used = true;
    return this.pin(state, item.required.start, item.required.end, item.mode);
  }

  protected pin(state: ObjectState, start: number, end: number, mode: TokenMode): Pin {
    const pin = new Pin(this, state, start, end, mode, ++this.serial);
    state.addPin(pin);
    return pin;
  }

  /** Called by the pin. */
  unpin(pin: Pin): void {
    const state = pin.object;
    state.removePin(pin);
    if (state.revokes.length === 0 || this.fenced) return;
    this.drained.add(state);
    this.onDrained();
  }

  /** See TokenClientApi. */
  heldRange(tokenClass: TokenClass, object: TokenObject, offsetBytes: number, mode: TokenMode): ByteRange | null {
    const state = this.suspended || this.fenced ? undefined : this.objects[tokenClass]!.get(object);
    const span = state?.held.spanAround(offsetBytes, COVER_MASK[mode]!);
    if (state === undefined || span === null || span === undefined) return null;
    let { start, end } = span;
    for (const r of state.revokes) {
      if (r.phase === 'held' || !takesFrom(r, mode)) continue;
      if (r.give.end <= offsetBytes) start = Math.max(start, r.give.end);
      else if (r.give.start > offsetBytes) end = Math.min(end, r.give.start);
      else return null;
    }
    return range(start, end);
  }

  /** See TokenClientApi. */
  heldMode(tokenClass: TokenClass, object: TokenObject, offsetBytes: number): TokenMode {
    const held: number[] = [];
    this.objects[tokenClass]!.get(object)?.held.collect(offsetBytes, offsetBytes + 1, held);
    return (held[2] ?? TokenMode.none) as TokenMode;
  }

  /** When a `tick` is due, in milliseconds of the caller's clock; Infinity if never. */
  get nextWakeMs(): number {
    return this.wakeDueMs;
  }

  get rangeCount(): number {
    return this.pieces;
  }

  get waitingCount(): number {
    return this.ops.size;
  }

  /** `moreFollows`: the messages wait for what the next step adds to them. */
  protected takeEffects(moreFollows: boolean): ClientEffect[] {
    const effects = this.gathered.length === 0 ? this.effects : this.gathered.concat(this.effects);
    this.effects = [];
    this.gathered = [];
    if (this.touched.length === 0 || moreFollows) return effects;
    const sends: ClientEffect[] = [];
    for (const link of this.touched) {
      const items = link.outbox!;
      link.outbox = null;
      const { seenSeq, identity } = link;
      const message = { epoch: this.epoch, toIncarnation: identity.incarnation, seenSeq, items };
      sends.push({ type: 'send', to: identity, message });
    }
    this.touched = [];
    return effects.length === 0 ? sends : sends.concat(effects);
  }

  protected tell(link: Link, item: ToServerItem): void {
    if (link.outbox === null) {
      link.outbox = [];
      this.touched.push(link);
    }
    link.outbox.push(item);
  }

  protected *states(): Generator<ObjectState> {
    for (const objects of this.objects) yield* [...objects.values()];
  }

  protected state(tokenClass: TokenClass, object: TokenObject): ObjectState {
    const objects = this.objects[tokenClass]!;
    let state = objects.get(object);
    if (state === undefined) {
      state = new ObjectState(tokenClass, object);
      state.server = serverOf(this.servers, tokenClass, object);
      objects.set(object, state);
    }
    return state;
  }

  protected forgetIfEmpty(state: ObjectState): void {
    if (state.idle && state.held.size === 0) this.objects[state.tokenClass]!.delete(state.object);
  }

  protected link(identity: ServerIdentity): Link | undefined {
    const known = this.links.get(identity.nodeId);
    if (known !== undefined && known.identity.incarnation >= identity.incarnation) {
      return known.identity.incarnation === identity.incarnation ? known : undefined;
    }
    const { nodeId, incarnation } = identity;
    const link: Link = { identity: { nodeId, incarnation }, seenSeq: 0, askedEpoch: null, outbox: null, notes: [] };
    this.links.set(nodeId, link);
    return link;
  }

  /** Undefined while there is no server, or a newer life of it than our view knows has spoken. */
  protected linkOf(state: ObjectState): Link | undefined {
    return state.server === undefined ? undefined : this.link(state.server);
  }

  protected wakeAt(atMs: number): void {
    if (atMs < this.wakeDueMs) this.wakeDueMs = atMs;
  }
}
