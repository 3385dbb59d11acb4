/**
 * File locks on one node: what its processes and handles hold, what they wait for, and who decides.
 *
 * Of a file that is delegated to this node its own table is the truth: no message. Of others the lock server decides; what it granted is
 * mirrored here, to be claimed when the server changes, to be given up when a handle closes, and for deadlock detection. Pure:
 * `(event, now) -> effects`.
 * Invariants: the mirror is what the answers of the server say, in their order; an operation that was given up (abort, deadline) while the
 * server may have granted it holds up its owner's later ones on that file until it is known, and is then undone; every operation ends
 * (I12); nothing is decided while the lease is out (F3).
 * Fault model: servers die, return as new lives, and hand files over; answers of the past are dropped.
 */
import type { Reason } from '../../common/errors.js';
import { type Epoch, epoch as toEpoch } from '../../common/ids.js';
import { listFingerprint, type ServerIdentity, sameServer, serverOf } from '../placement.js';
import { TokenClass } from '../token.js';
import { findCycle, type OwnerReport, type OwnerWait, type PlacedPiece } from './deadlock.js';
import type {
  FileState,
  LockClientEffect,
  LockClientEvent,
  LockClientOptions,
  LockOp,
  Request,
} from './lock-client-events.js';
import {
  LOCK_PIECES_MAX,
  type LockMessage,
  type LockServerRequest,
  type LockToClientItem,
  type LockToServerItem,
} from './lock-messages.js';
import { FileLocks, type Lock, type LockOwner, LockSpace, LockType } from './lock-table.js';

const NEVER = Number.POSITIVE_INFINITY;
const RETRY_MS = 20;

interface Link {
  readonly identity: ServerIdentity;
  askedEpoch: Epoch | null;
  outbox: LockToServerItem[];
}

export class LockClientMachine {
  readonly #self: ServerIdentity;
  readonly #count: (what: string) => void;
  readonly #idleFilesMax: number;
  #epoch = toEpoch(0);
  #servers: readonly ServerIdentity[] = [];
  readonly #links = new Map<number, Link>();
  readonly #files = new Map<number, FileState>();
  /** Operations under way. */
  readonly #ops = new Map<number, LockOp>();
  readonly #requests = new Map<number, Request>();
  #lastRequestId = 0;
  #suspended = false;
  #fenced = false;
  /** While suspended. */
  #heldOps: LockOp[] = [];
  #retryAtMs = NEVER;
  #effects: LockClientEffect[] = [];
  readonly #reported = new Map<number, OwnerReport>();
  readonly #changed = new Map<number, LockOwner>();
  readonly #waits = new Map<number, number>();
  #lastVersion = 0;
  #nowMs = 0;

  constructor({ self, count, idleFilesMax }: LockClientOptions) {
    this.#self = self;
    this.#count = count;
    this.#idleFilesMax = idleFilesMax ?? 10_000;
  }

  get nextWakeMs(): number {
    let next = this.#retryAtMs;
    for (const op of this.#ops.values()) next = Math.min(next, op.deadlineAtMs);
    return next;
  }
  /** Files of which this node decides alone, and files of which it knows locks. */
  get usage(): { readonly alone: number; readonly files: number; readonly waiting: number } {
    let alone = 0;
    for (const file of this.#files.values()) if (file.alone) alone++;
    return { alone, files: this.#files.size, waiting: this.#ops.size };
  }
  /** What this node's owners hold, as far as it knows. */
  *held(): Generator<{ readonly object: number; readonly space: LockSpace; readonly lock: Lock }> {
    for (const { object, locks } of this.#files.values())
      for (const space of SPACES) for (const lock of locks.spaces[space].all()) yield { object, space, lock };
  }

  /** What they wait for. */
  *awaited(): Generator<{ readonly object: number; readonly space: LockSpace; readonly lock: Lock }> {
    for (const { kind, wait, object, space, owner, type, at } of this.#ops.values())
      if (kind === 'lock' && wait) yield { object, space, lock: { owner, type, ...at } };
  }

  step(event: LockClientEvent, nowMs: number): LockClientEffect[] {
    this.#nowMs = nowMs;
    if (this.#fenced) {
      if (event.type === 'op')
        this.#effects.push({ type: 'failed', opId: event.op.opId, reason: 'fenced', blocker: null });
    } else this.#handle(event);
    return this.#takeEffects();
  }

  #handle(event: LockClientEvent): void {
    switch (event.type) {
      case 'view':
        this.#enterView(event.epoch, event.servers);
        break;
      case 'message':
        this.#receive(event.from, event.message);
        break;
      case 'op':
        this.#ops.set(event.op.opId, event.op);
        this.#run(event.op);
        break;
      case 'abort':
        this.#giveUp(event.opId, 'aborted');
        break;
      case 'suspend':
        this.#suspended = true;
        break;
      case 'resume': {
        this.#suspended = false;
        const held = this.#heldOps;
        this.#heldOps = [];
        for (const op of held) if (this.#ops.has(op.opId)) this.#run(op);
        break;
      }
      case 'fence':
        this.#fence();
        return;
      case 'tick':
        break;
    }
    for (const op of [...this.#ops.values()])
      if (op.deadlineAtMs <= this.#nowMs) this.#giveUp(op.opId, this.#suspended ? 'suspended' : 'tokenDeadline');
    if (this.#retryAtMs <= this.#nowMs) this.#resend();
    this.#tellDetector();
  }

  #takeEffects(): LockClientEffect[] {
    const sends: LockClientEffect[] = [];
    for (const link of this.#links.values()) {
      if (link.outbox.length === 0) continue;
      const message = { epoch: this.#epoch, toIncarnation: link.identity.incarnation, items: link.outbox };
      sends.push({ type: 'send', to: link.identity, message });
      link.outbox = [];
    }
    const effects = this.#effects;
    this.#effects = [];
    return sends.length === 0 ? effects : sends.concat(effects);
  }

  // Links and views

  #link(identity: ServerIdentity): Link | undefined {
    const known = this.#links.get(identity.nodeId);
    if (known !== undefined && known.identity.incarnation >= identity.incarnation)
      return known.identity.incarnation === identity.incarnation ? known : undefined;
    const link: Link = { identity, askedEpoch: null, outbox: [] };
    this.#links.set(identity.nodeId, link);
    return link;
  }

  #enterView(epoch: Epoch, servers: readonly ServerIdentity[]): void {
    if (epoch <= this.#epoch) return;
    const detector = this.#detector();
    this.#epoch = epoch;
    this.#servers = servers;
    for (const file of [...this.#files.values()]) {
      const server = serverOf(servers, TokenClass.lock, file.object);
      if (sameServer(server, file.server)) continue;
      this.#count('serverChanged');
      file.server = server;
      file.since = epoch;
      const requests = file.requests;
      file.requests = [];
      for (const request of requests) {
        this.#requests.delete(request.requestId);
        // What the new server doesn't know was never granted; nor does it know what is to be undone.
        if (isUnlock(request) || (!request.abandoned && request.op !== null)) this.#send(request);
      }
      this.#afterAbandoned(file);
      this.#forgetIfIdle(file);
    }
    for (const link of this.#links.values()) this.#answerAsk(link);
    if (!sameServer(detector, this.#detector())) this.#reported.clear();
    for (const report of [...this.#waits.keys()]) this.#touchId(report);
    this.#resend();
  }

  #answerAsk(link: Link): void {
    if (link.askedEpoch === null || link.askedEpoch > this.#epoch) return;
    const { askedEpoch } = link;
    link.askedEpoch = null;
    for (const file of this.#files.values()) {
      if (!sameServer(file.server, link.identity)) continue;
      if (file.alone) link.outbox.push({ kind: 'alone', object: file.object });
      else this.#tellHeld(link, file);
    }
    // What was under way there is sent again, behind the claims: a server that asks has forgotten it.
    link.outbox.push({
      kind: 'claimEnd',
      epoch: this.#epoch,
      askedEpoch,
      listFingerprint: listFingerprint(this.#servers),
    });
    this.#reported.clear();
    for (const owner of [...this.#waits.keys()]) this.#touchId(owner);
  }

  #tellHeld(link: Link, { object, locks }: FileState): void {
    for (const space of SPACES)
      for (const lock of locks.spaces[space].all()) link.outbox.push({ kind: 'held', object, space, lock });
  }

  #resend(): void {
    this.#retryAtMs = NEVER;
    for (const file of this.#files.values()) {
      for (const request of file.requests.slice()) {
        if (request.sent) continue;
        file.requests = file.requests.filter((other) => other !== request);
        this.#requests.delete(request.requestId);
        this.#send(request);
      }
    }
  }

  #receive(from: ServerIdentity, message: LockMessage<LockToClientItem>): void {
    const link = message.toIncarnation === this.#self.incarnation ? this.#link(from) : undefined;
    if (link === undefined) {
      this.#count('messageOfOldLife');
      return;
    }
    for (const item of message.items) this.#item(link, message.epoch, item);
  }

  #item(link: Link, epoch: Epoch, item: LockToClientItem): void {
    switch (item.kind) {
      case 'granted':
      case 'refused':
      case 'queued':
      case 'failed':
      case 'redo': {
        const request = this.#requests.get(item.requestId);
        if (request === undefined || !sameServer(request.file.server, link.identity)) this.#count('answerUnknown');
        else this.#answer(request, item);
        return;
      }
      case 'delegated':
      case 'recall': {
        const file = this.#files.get(item.object);
        // Of before the file was another server's: what it says is not true any more.
        if (file !== undefined && (!sameServer(file.server, link.identity) || epoch < file.since))
          this.#count('answerUnknown');
        else if (item.kind === 'recall') {
          if (file?.alone === true) this.#handOver(link, file);
        } else if (file === undefined) link.outbox.push({ kind: 'handover', object: item.object });
        else {
          this.#count('delegated');
          file.alone = true;
          this.#trim();
        }
        return;
      }
      case 'ask':
        link.askedEpoch = item.epoch;
        this.#answerAsk(link);
        return;
      case 'confirm': {
        this.#tellDetector();
        const holds = this.#reported.get(item.owner.id)?.version === item.version;
        link.outbox.push({ kind: 'confirmed', checkId: item.checkId, owner: item.owner, holds });
        return;
      }
      case 'victim':
        this.#tellDetector();
        if (this.#reported.get(item.owner.id)?.version === item.version) this.#giveUp(item.opId, 'deadlock');
        return;
    }
  }

  // Operations

  #file(object: number): FileState {
    let file = this.#files.get(object);
    if (file === undefined) {
      const server = serverOf(this.#servers, TokenClass.lock, object);
      const [since, locks] = [this.#epoch, new FileLocks()];
      file = { object, locks, server, since, alone: false, requests: [], waiting: [], behind: [] };
      this.#files.set(object, file);
    }
    return file;
  }

  #forgetIfIdle(file: FileState): void {
    const { locks, alone, requests, waiting, behind } = file;
    if (!alone && locks.size === 0 && requests.length === 0 && waiting.length === 0 && behind.length === 0)
      this.#files.delete(file.object);
  }

  #run(op: LockOp): void {
    if (this.#suspended) {
      this.#heldOps.push(op);
      return;
    }
    const file = this.#file(op.object);
    if (file.requests.some((r) => r.abandoned && r.owner.id === op.owner.id)) {
      file.behind.push(op);
      return;
    }
    const nothing = op.kind === 'unlock' && file.locks.spaces[op.space].pieces(op.owner, op.at).length === 0;
    if (nothing) this.#done(op, null);
    else if (file.alone) this.#decide(file, op);
    else {
      const pieces: Request['pieces'] = [];
      const { owner, space, at } = op;
      const rest = { op, pieces, sinceMs: this.#nowMs, requestId: 0, sent: false, queued: false, abandoned: false };
      this.#send({ file, owner, space, at, ...rest });
    }
    this.#forgetIfIdle(file);
  }

  #done(op: LockOp, blocker: Lock | null): void {
    this.#ops.delete(op.opId);
    this.#effects.push({ type: 'done', opId: op.opId, blocker });
  }
  #failed(op: LockOp, reason: Reason, blocker: Lock | null): void {
    this.#ops.delete(op.opId);
    this.#effects.push({ type: 'failed', opId: op.opId, reason, blocker });
  }

  /** This node is alone with the file. */
  #decide(file: FileState, op: LockOp): void {
    const table = file.locks.spaces[op.space];
    this.#touch(op.owner);
    if (op.kind === 'unlock') {
      table.assign(op.owner, op.at, []);
      this.#done(op, null);
      this.#wake(file);
      return;
    }
    if (op.kind === 'test') {
      this.#done(op, table.conflict(op.owner, op.type, op.at));
      return;
    }
    const { outcome, gaveUp } = file.locks.take(op);
    if (outcome === 'granted') this.#done(op, null);
    else if (outcome === 'full') this.#failed(op, 'noLocks', null);
    else if (!op.wait) this.#failed(op, 'lockHeld', outcome.blocker);
    else {
      file.waiting.push({ op, sinceMs: this.#nowMs });
      this.#waitBegan(op, outcome.blocker);
    }
    if (gaveUp) this.#wake(file);
  }

  #wake(file: FileState): void {
    for (let again = true; again; ) {
      again = false;
      for (const waiting of file.waiting.slice()) {
        const { outcome, gaveUp } = file.locks.take(waiting.op);
        if (outcome !== 'granted' && outcome !== 'full') continue;
        file.waiting = file.waiting.filter((other) => other !== waiting);
        this.#waitEnded(waiting.op);
        if (outcome === 'full') this.#failed(waiting.op, 'noLocks', null);
        else this.#done(waiting.op, null);
        again ||= gaveUp;
      }
    }
  }

  #send(request: Request): void {
    const { file, op, owner, space, at } = request;
    const { object } = file;
    const link = file.server === undefined ? undefined : this.#link(file.server);
    if (request.queued && op !== null) this.#waitEnded(op);
    const requestId = ++this.#lastRequestId;
    const fresh: Request = { ...request, requestId, queued: false, sent: link !== undefined };
    file.requests.push(fresh);
    this.#requests.set(requestId, fresh);
    this.#touch(owner);
    if (link === undefined) return;
    this.#count('requests');
    let item: LockServerRequest;
    if (op === null || op.kind === 'unlock')
      item = { kind: 'reduce', requestId, object, space, owner, at, pieces: request.pieces };
    else if (op.kind === 'test') item = { kind: 'test', requestId, object, space, owner, type: op.type, at };
    else item = { kind: 'lock', requestId, object, space, owner, type: op.type, at, wait: op.wait };
    link.outbox.push(item);
  }

  #answer(
    request: Request,
    item: LockToClientItem & { readonly kind: 'granted' | 'refused' | 'queued' | 'failed' | 'redo' },
  ): void {
    const { file, op, owner, space, at } = request;
    const table = file.locks.spaces[space];
    this.#touch(owner);
    // A conversion of flock has given up what there was.
    const converts = op?.kind === 'lock' && space === LockSpace.whole && table.pieces(owner, at)[0]?.type !== op.type;
    if (item.kind === 'queued') {
      if (converts) table.assign(owner, at, []);
      request.queued = true;
      if (op !== null && !request.abandoned) this.#waitBegan(op, null);
      return;
    }
    if (item.kind === 'failed' && item.reason === 'staleEpoch') {
      request.sent = false;
      if (request.queued && op !== null && !request.abandoned) this.#waitEnded(op);
      request.queued = false;
      this.#retryAtMs = Math.min(this.#retryAtMs, this.#nowMs + RETRY_MS);
      if (!request.abandoned || request.op === null || isUnlock(request)) return;
    }
    this.#endRequest(request);
    if (item.kind === 'redo') {
      if (op === null) {
        if (file.alone) table.assign(owner, at, request.pieces);
        else this.#send(request);
      } else if (!request.abandoned) {
        if (file.alone) this.#decide(file, op);
        else this.#send(request);
      }
    } else if (op === null || op.kind === 'unlock') {
      if (item.kind === 'granted') table.assign(owner, at, request.pieces);
      if (op !== null && !request.abandoned) {
        if (item.kind === 'granted') this.#done(op, null);
        else this.#failed(op, item.kind === 'failed' ? item.reason : 'internal', null);
      }
    } else if (op.kind === 'test') {
      if (request.abandoned) this.#count('answerTooLate');
      else if (item.kind === 'failed') this.#failed(op, item.reason, null);
      else this.#done(op, item.kind === 'refused' ? item.blocker : null);
    } else {
      const before = converts ? [] : table.pieces(owner, at);
      if (item.kind === 'granted') {
        if (request.abandoned) this.#undo(request, before);
        else {
          table.set(owner, op.type, at);
          this.#done(op, null);
        }
      } else {
        if (converts) {
          table.assign(owner, at, []);
          if (item.kind === 'failed') this.#undo(request, []);
        }
        if (!request.abandoned) {
          if (item.kind === 'refused') this.#failed(op, 'lockHeld', item.blocker);
          else this.#failed(op, item.reason, null);
        }
      }
    }
    this.#afterAbandoned(file);
    this.#forgetIfIdle(file);
  }

  #endRequest(request: Request): void {
    const { file, op } = request;
    if (request.queued && op !== null && !request.abandoned) this.#waitEnded(op);
    this.#requests.delete(request.requestId);
    file.requests = file.requests.filter((other) => other !== request);
  }

  /** The server gave what nobody wants any more: the owner has what it had. */
  #undo({ file, owner, space, at }: Request, pieces: Request['pieces']): void {
    this.#count('undone');
    const table = file.locks.spaces[space];
    table.assign(owner, at, pieces);
    let from = at.start;
    for (let i = 0; i === 0 || i < pieces.length; i += LOCK_PIECES_MAX) {
      const some = pieces.slice(i, i + LOCK_PIECES_MAX);
      const end = i + LOCK_PIECES_MAX < pieces.length ? some.at(-1)!.end : at.end;
      const rest = { op: null, sinceMs: this.#nowMs, requestId: 0, sent: false, queued: false, abandoned: false };
      this.#send({ file, owner, space, at: { start: from, end }, pieces: some, ...rest });
      from = end;
    }
  }

  #afterAbandoned(file: FileState): void {
    if (file.behind.length === 0 || file.requests.some((request) => request.abandoned)) return;
    const behind = file.behind;
    file.behind = [];
    for (const op of behind) if (this.#ops.has(op.opId)) this.#run(op);
  }

  #giveUp(opId: number, reason: Reason): void {
    const op = this.#ops.get(opId);
    if (op === undefined) return;
    this.#count(`gaveUp.${reason}`);
    const file = this.#file(op.object);
    this.#touch(op.owner);
    const local = file.waiting.find((waiting) => waiting.op === op);
    if (local !== undefined) {
      file.waiting = file.waiting.filter((waiting) => waiting !== local);
      this.#waitEnded(op);
    }
    const request = file.requests.find((one) => one.op === op);
    if (request !== undefined) {
      if (request.queued) this.#waitEnded(op);
      // An unlock is not undone: it is told to be late, and done all the same.
      request.abandoned = true;
      const link = file.server === undefined ? undefined : this.#link(file.server);
      if (!request.sent && op.kind !== 'unlock') this.#endRequest(request);
      else if (op.kind === 'lock') link?.outbox.push({ kind: 'cancel', requestId: request.requestId });
    }
    this.#failed(op, reason, null);
    this.#afterAbandoned(file);
    this.#forgetIfIdle(file);
  }

  // The lock token

  #handOver(link: Link, file: FileState): void {
    this.#count('handedOver');
    this.#tellHeld(link, file);
    link.outbox.push({ kind: 'handover', object: file.object });
    file.alone = false;
    const waiting = file.waiting;
    file.waiting = [];
    for (const { op, sinceMs } of waiting) {
      this.#waitEnded(op);
      const { owner, space, at } = op;
      const rest = { op, pieces: [], sinceMs, requestId: 0, sent: false, queued: false, abandoned: false };
      this.#send({ file, owner, space, at, ...rest });
    }
    this.#forgetIfIdle(file);
  }

  /** Too many files without a lock: the longest there goes back. */
  #trim(): void {
    if (this.#files.size <= this.#idleFilesMax) return;
    for (const file of this.#files.values()) {
      const { alone, locks, requests, waiting, behind, server } = file;
      if (!alone || locks.size > 0 || requests.length > 0 || waiting.length > 0 || behind.length > 0) continue;
      const link = server === undefined ? undefined : this.#link(server);
      if (link === undefined) continue;
      link.outbox.push({ kind: 'handover', object: file.object });
      this.#files.delete(file.object);
      return;
    }
  }

  // Deadlocks

  #touch(owner: LockOwner): void {
    if (owner.isProcess) this.#changed.set(owner.id, owner);
  }
  #touchId(id: number): void {
    for (const op of this.#ops.values()) if (op.owner.id === id) this.#touch(op.owner);
  }

  /** A process waits. If that closes a circle among this node's own, it is the one to give in, as on Linux. */
  #waitBegan(op: LockOp, _blocker: Lock | null): void {
    this.#count('waits');
    this.#touch(op.owner);
    if (!op.owner.isProcess || op.space !== LockSpace.ranges) return;
    this.#waits.set(op.owner.id, (this.#waits.get(op.owner.id) ?? 0) + 1);
    const reports = this.#ownReports();
    const own = reports.find((report) => report.owner.id === op.owner.id);
    if (own === undefined) return;
    const mine = { ...own, waits: own.waits.filter((wait) => wait.opId === op.opId) };
    const others = reports.map((report) => (report === own ? mine : report));
    if (findCycle(others, mine) !== null) this.#giveUp(op.opId, 'deadlock');
  }

  #waitEnded(op: LockOp): void {
    this.#touch(op.owner);
    if (!op.owner.isProcess || op.space !== LockSpace.ranges) return;
    const left = (this.#waits.get(op.owner.id) ?? 1) - 1;
    if (left > 0) this.#waits.set(op.owner.id, left);
    else this.#waits.delete(op.owner.id);
  }

  #ownReports(): OwnerReport[] {
    const owners = new Map<number, LockOwner>();
    for (const op of this.#ops.values()) if (this.#waits.has(op.owner.id)) owners.set(op.owner.id, op.owner);
    return [...owners.values()].map((owner) => this.#reportOf(owner));
  }

  #reportOf(owner: LockOwner): OwnerReport {
    const waits: OwnerWait[] = [];
    const holds: PlacedPiece[] = [];
    const wait = ({ object, opId, type, at, space }: LockOp, sinceMs: number): void => {
      if (space === LockSpace.ranges) waits.push({ object, opId, type, start: at.start, end: at.end, sinceMs });
    };
    for (const file of this.#files.values()) {
      const { object, requests } = file;
      for (const { op, sinceMs } of file.waiting) if (op.owner.id === owner.id) wait(op, sinceMs);
      let reduces = false;
      for (const request of requests) {
        if (request.owner.id !== owner.id || request.space !== LockSpace.ranges) continue;
        if (request.queued && !request.abandoned && request.op !== null) wait(request.op, request.sinceMs);
        // It may have gone already.
        const isWeaker = request.op?.kind === 'lock' && request.op.type === LockType.read && !request.queued;
        if (request.op === null || request.op.kind === 'unlock' || isWeaker) reduces = true;
      }
      if (reduces) continue;
      for (const piece of file.locks.spaces[LockSpace.ranges].all())
        if (piece.owner.id === owner.id) holds.push({ object, type: piece.type, start: piece.start, end: piece.end });
    }
    return { owner, version: ++this.#lastVersion, waits, holds };
  }

  #detector(): ServerIdentity | undefined {
    return serverOf(this.#servers, TokenClass.lock, 0);
  }

  /** Whoever waits and holds nothing is in no circle, and costs no message. */
  #tellDetector(): void {
    if (this.#changed.size === 0) return;
    const server = this.#detector();
    const link = server === undefined ? undefined : this.#link(server);
    for (const [id, owner] of this.#changed) {
      const told = this.#reported.get(id);
      const report = this.#waits.has(id) ? this.#reportOf(owner) : null;
      if (report !== null && report.waits.length > 0 && report.holds.length > 0) {
        if (told !== undefined && sameReport(told, report)) continue;
        if (link === undefined) continue;
        this.#reported.set(id, report);
        link.outbox.push({ kind: 'report', report });
      } else if (told !== undefined) {
        this.#reported.delete(id);
        link?.outbox.push({ kind: 'report', report: { owner, version: ++this.#lastVersion, waits: [], holds: [] } });
      }
    }
    this.#changed.clear();
  }

  #fence(): void {
    this.#fenced = true;
    for (const op of [...this.#ops.values()]) this.#failed(op, 'fenced', null);
    this.#files.clear();
    this.#requests.clear();
    this.#heldOps = [];
    this.#retryAtMs = NEVER;
    for (const link of this.#links.values()) link.outbox = [];
  }
}

/** Done in any case, whoever waits for it. */
const isUnlock = ({ op }: Request): boolean => op?.kind === 'unlock';

const SPACES = [LockSpace.ranges, LockSpace.whole] as const;

const samePlaces = (a: readonly PlacedPiece[], b: readonly PlacedPiece[]): boolean =>
  a.length === b.length &&
  a.every((p, i) => {
    const q = b[i]!;
    return p.object === q.object && p.type === q.type && p.start === q.start && p.end === q.end;
  });
const sameReport = (a: OwnerReport, b: OwnerReport): boolean =>
  samePlaces(a.holds, b.holds) &&
  samePlaces(a.waits, b.waits) &&
  a.waits.every((wait, i) => wait.opId === b.waits[i]!.opId);
