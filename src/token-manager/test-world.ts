/**
 * For tests: some nodes, each with a token client and perhaps a token server, over channels that keep order and take as long
 * as the seed says. No clock and no fabric: one event at a time, chosen by a random source; after every event the
 * invariants are checked from outside, by what nodes hold and have pinned.
 *
 * Fault model: nodes die between any two events (their messages on the way may still arrive), are expelled from each server
 * at different times, return as new lives; servers leave and join the list; views reach nodes late.
 */
import { type ByteRange, overlaps, range } from '../common/byte-range.js';
import { epoch, incarnation, type NodeId, nodeId } from '../common/ids.js';
import { below, chance, pick, type Random, SeededRandom } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import { conflicts } from './compatibility.js';
import { groupItems } from './group-items.js';
import { StatusDisk, StatusNode } from './test-status.js';
import { type Revocation, TokenClass, type TokenItem, TokenMode, type TokenPins } from './token.js';
import {
  CLIENT_FAULT_TRANSITIONS,
  type ClientEffect,
  type ClientEvent,
  TOKEN_CLIENT_DEFAULTS,
} from './token-client-events.js';
import { TokenClientMachine, type TokenClientMachineOptions } from './token-client-machine.js';
import {
  decodeToClient,
  decodeToServer,
  encodeToClient,
  encodeToServer,
  type RequestItem,
  type ToClientMessage,
  type ToServerMessage,
} from './token-messages.js';
import {
  type MemberIdentity,
  SERVER_FAULT_TRANSITIONS,
  type ServerEffect,
  type ServerEvent,
  TOKEN_SERVER_DEFAULTS,
  type TokenView,
} from './token-server-events.js';
import { TokenServerMachine, type TokenServerOptions } from './token-server-machine.js';

export interface WorldOptions {
  readonly seed: number;
  readonly nodes: number;
  /** Nodes 1 to `servers` serve tokens. */
  readonly servers: number;
  readonly steps: number;
  /** Probability per step that a node dies or returns. */
  readonly deaths?: number;
  /** Probability per step that the list of servers changes. */
  readonly listChanges?: number;
  readonly minHoldMs?: number;
  /** Bounds of every table: small ones make ranges move by themselves. */
  readonly rangesMax?: number;
  readonly makeServer?: (options: TokenServerOptions) => TokenServerMachine;
  readonly makeClient?: (options: TokenClientMachineOptions) => TokenClientMachine;
  /** What the network does to a message on its way: the hook of mutations. */
  readonly alter?: (item: Altered) => Altered | null;
}
export type Altered =
  | { readonly to: 'server'; readonly message: ToServerMessage; readonly server: TokenServerMachine | null }
  | { readonly to: 'client'; readonly message: ToClientMessage };

interface Node {
  readonly identity: MemberIdentity;
  alive: boolean;
  readonly client: TokenClientMachine;
  readonly server: TokenServerMachine | null;
  readonly views: TokenView[];
  /** Fates of other nodes that this server has yet to hear. */
  readonly fates: ServerEvent[];
  readonly running: { readonly handle: number; readonly revocation: Revocation }[];
  readonly pins: TokenPins[];
  readonly ops: Map<number, { endless: boolean; items: readonly TokenItem[] }>;
  readonly status: StatusNode;
  working: ByteRange | null;
  drained: boolean;
  /** Requests at this server, in order of arrival: the shadow that T3 is judged by. */
  line: { by: MemberIdentity; item: RequestItem }[];
}

export class WorldError extends Error {}

const SECTORS = 8;

export class World {
  readonly fired = new Map<string, number>();
  readonly #disk = new StatusDisk();
  readonly #random: Random;
  readonly #options: WorldOptions;
  readonly #nodes: Node[] = [];
  readonly #channels = new Map<string, { from: Node; to: Node; bodies: { toServer: boolean; body: Uint8Array }[] }>();
  #view: TokenView = { epoch: epoch(0), servers: [], nodes: [] };
  #lastOpId = 0;
  #nowMs = 0;
  #calm = false;

  constructor(options: WorldOptions) {
    this.#options = options;
    this.#random = new SeededRandom(options.seed);
    for (let i = 1; i <= options.nodes; i++) this.#boot(nodeId(i), 1);
    this.#publish();
  }

  run(): void {
    for (let i = 0; i < this.#options.steps; i++) this.#event();
    this.#comeToRest();
  }

  #fire(name: string): void {
    this.fired.set(name, (this.fired.get(name) ?? 0) + 1);
    const faulty: readonly string[] = [...SERVER_FAULT_TRANSITIONS, ...CLIENT_FAULT_TRANSITIONS];
    // A conflicting claim comes with a violation that says more.
    const excused = name === 'itemFromOtherServer' || name === 'claimConflict' || name === 'contradicted';
    if (faulty.includes(name) && !excused) throw new WorldError(`a peer broke the protocol: ${name}`);
  }

  #boot(id: NodeId, life: number): void {
    const identity = { nodeId: id, incarnation: incarnation(life) };
    const fired = (name: string): void => this.#fire(name);
    let node: Node | undefined;
    const clientOptions: TokenClientMachineOptions = {
      self: identity,
      settings: {
        ...TOKEN_CLIENT_DEFAULTS,
        minHoldMs: this.#options.minHoldMs ?? 0,
        rangesMax: this.#options.rangesMax ?? TOKEN_CLIENT_DEFAULTS.rangesMax,
      },
      fired,
      working: () => node!.working,
      writesConcurrently: () => chance(this.#random, 0.8),
      onDrained: () => {
        node!.drained = true;
      },
    };
    const rangesMax = this.#options.rangesMax ?? TOKEN_SERVER_DEFAULTS.rangesMax;
    const serverOptions: TokenServerOptions = {
      self: identity,
      settings: { ...TOKEN_SERVER_DEFAULTS, rangesMax },
      fired,
    };
    const makeClient = this.#options.makeClient ?? ((o) => new TokenClientMachine(o));
    const makeServer = this.#options.makeServer ?? ((o) => new TokenServerMachine(o));
    node = {
      identity,
      alive: true,
      client: makeClient(clientOptions),
      server: id <= this.#options.servers ? makeServer(serverOptions) : null,
      views: [],
      fates: [],
      running: [],
      pins: [],
      ops: new Map(),
      status: new StatusNode(this.#disk, SECTORS, (object, offset) =>
        node!.client.heldMode(TokenClass.status, object, offset),
      ),
      working: null,
      drained: false,
      line: [],
    };
    this.#nodes.push(node);
  }

  get #alive(): Node[] {
    return this.#nodes.filter((n) => n.alive);
  }

  #publish(dropServer?: NodeId): void {
    const nodes = this.#alive.map((n) => n.identity);
    const able = this.#alive
      .filter((n) => n.server !== null && n.identity.nodeId !== dropServer)
      .map((n) => n.identity);
    const servers = able.length > 0 ? able : this.#alive.filter((n) => n.server !== null).map((n) => n.identity);
    servers.sort((a, b) => a.nodeId - b.nodeId);
    this.#view = { epoch: epoch(this.#view.epoch + 1), servers, nodes };
    for (const node of this.#alive) node.views.push(this.#view);
  }

  // ---- what may happen next

  #event(): void {
    const random = this.#random;
    this.#nowMs += random.next();
    if (chance(random, this.#options.deaths ?? 0)) this.#dieOrReturn();
    else if (chance(random, this.#options.listChanges ?? 0))
      this.#publish(nodeId(1 + below(random, this.#options.servers)));
    else {
      const what = random.next();
      if (what < 0.2) this.#startOp();
      else if (what < 0.35) this.#releasePins();
      else if (what < 0.5) this.#finishRevoke();
      else if (what < 0.54) this.#control();
      else if (what < 0.56) this.#disturb();
      else this.#deliver();
    }
    this.check();
  }

  #dieOrReturn(): void {
    const dead = this.#nodes.filter((n, i) => {
      const id = n.identity.nodeId;
      return !n.alive && !this.#nodes.slice(i + 1).some((later) => later.identity.nodeId === id);
    });
    const life = dead.length > 0 ? pick(this.#random, dead) : null;
    if (life !== null && chance(this.#random, 0.6)) {
      this.#boot(life.identity.nodeId, life.identity.incarnation + 1);
      this.#publish();
      return;
    }
    const alive = this.#alive;
    const victim = pick(this.#random, alive);
    if (alive.length <= 2) return;
    if (victim.server !== null && alive.filter((n) => n.server !== null).length === 1) return;
    // F1: evidence, new epoch, fence; then, at each server in its own time, the fall.
    victim.alive = false;
    this.#stepClient(victim, { type: 'fence' });
    victim.status.die();
    if (victim.ops.size > 0) throw new WorldError('F3: an operation outlives its node');
    this.#publish();
    const withLog = chance(this.#random, 0.3);
    for (const node of this.#alive) {
      if (node.server === null) continue;
      if (withLog) node.fates.push({ type: 'holdClosed', ...victim.identity });
      node.fates.push({ type: withLog ? 'released' : 'expelled', ...victim.identity });
    }
  }

  #startOp(): void {
    const random = this.#random;
    const node = pick(random, this.#alive);
    if (node.ops.size >= 4) return;
    const items: TokenItem[] = [];
    for (let n = 1 + below(random, 3); n > 0; n--) items.push(this.#randomItem());
    const pins = chance(random, 0.8) ? node.client.tryPin(items) : null;
    if (pins !== null) {
      node.pins.push(pins);
      this.#used(node, items);
      return;
    }
    const opId = ++this.#lastOpId;
    const endless = chance(random, 0.7);
    const deadlineAtMs = endless ? Number.POSITIVE_INFINITY : this.#nowMs + below(random, 60);
    node.ops.set(opId, { endless, items });
    const op = { opId, groups: groupItems(items), deadlineAtMs, nowait: chance(random, 0.05) };
    this.#stepClient(node, { type: 'acquire', ops: [op] });
  }

  #randomItem(): TokenItem {
    const random = this.#random;
    const at = below(random, SECTORS);
    const to = Math.min(SECTORS, at + 1 + below(random, 3));
    const wide = chance(random, 0.5);
    const required = range(at * SECTOR_BYTES, to * SECTOR_BYTES);
    const status = chance(random, 0.4);
    return {
      class: status ? TokenClass.status : TokenClass.data,
      // Three segments, so that several servers have their share.
      object: status ? below(random, 3) : below(random, 3) * 4096,
      mode:
        status && chance(random, 0.4)
          ? TokenMode.concurrentWrite
          : chance(random, 0.5)
            ? TokenMode.shared
            : TokenMode.exclusive,
      required,
      desired: wide
        ? range(below(random, at + 1) * SECTOR_BYTES, (to + below(random, SECTORS - to + 1)) * SECTOR_BYTES)
        : required,
    };
  }

  #releasePins(): void {
    const node = pick(this.#random, this.#alive);
    if (node.pins.length === 0) return;
    const [pins] = node.pins.splice(below(this.#random, node.pins.length), 1);
    pins!.release();
    if (node.drained) this.#stepClient(node, { type: 'drained' });
  }

  #finishRevoke(): void {
    const node = pick(this.#random, this.#alive);
    if (node.running.length === 0) return;
    const [running] = node.running.splice(below(this.#random, node.running.length), 1);
    this.#endRevoke(node, running!);
  }

  #endRevoke(node: Node, { handle, revocation }: Node['running'][number]): void {
    const { class: tokenClass, object, range: given, keep } = revocation;
    const notes = tokenClass === TokenClass.status ? node.status.ends(object, given, keep) : [];
    this.#stepClient(node, { type: 'revokeDone', handle, notes });
  }

  /** An operation has what it wanted. */
  #used(node: Node, items: readonly TokenItem[]): void {
    for (const item of items) {
      const wrong = item.class === TokenClass.status ? node.status.pinned(item) : null;
      if (wrong !== null) throw new WorldError(`I13: node ${node.identity.nodeId}: ${wrong}`);
    }
  }

  #control(): void {
    const node = pick(this.#random, this.#alive);
    const view = node.views[0];
    if (view !== undefined && chance(this.#random, 0.7)) {
      node.views.shift();
      this.#enterView(node, view);
    } else if (node.server !== null && node.fates.length > 0) this.#stepServer(node, node.fates.shift()!);
  }

  #enterView(node: Node, view: TokenView): void {
    const events = [
      () => this.#stepClient(node, { type: 'view', epoch: view.epoch, servers: view.servers }),
      () => node.server !== null && this.#stepServer(node, { type: 'view', view }),
    ];
    if (chance(this.#random, 0.5)) events.reverse();
    for (const event of events) event();
  }

  /** Aborts, voluntary releases, new working positions, time. */
  #disturb(): void {
    const random = this.#random;
    const node = pick(random, this.#alive);
    const what = random.next();
    if (what < 0.3) {
      const [opId] = node.ops.keys();
      if (opId !== undefined) this.#stepClient(node, { type: 'abort', opId });
    } else if (what < 0.6) {
      const { class: tokenClass, object, desired } = this.#randomItem();
      this.#stepClient(node, {
        type: 'release',
        releaseId: ++this.#lastOpId,
        class: tokenClass,
        object,
        range: desired,
      });
    } else if (what < 0.8) {
      const from = below(random, SECTORS);
      node.working = chance(random, 0.5) ? null : range(from * SECTOR_BYTES, (from + 2) * SECTOR_BYTES);
    } else if (what < 0.85) {
      this.#stepClient(node, { type: 'suspend' });
      this.#stepClient(node, { type: 'resume' });
    } else this.#passTime(10);
  }

  #passTime(ms: number): void {
    this.#nowMs += ms;
    for (const node of this.#alive) {
      if (node.client.nextWakeMs <= this.#nowMs) this.#stepClient(node, { type: 'tick' });
      if (node.server !== null && node.server.nextWakeMs <= this.#nowMs) this.#stepServer(node, { type: 'tick' });
    }
  }

  #deliver(): boolean {
    const ready = [...this.#channels.values()].filter((c) => c.bodies.length > 0);
    if (ready.length === 0) return false;
    const channel = pick(this.#random, ready);
    const { toServer, body } = channel.bodies.shift()!;
    const { from } = channel;
    // What was meant for an older life may reach the new one; it must not count there.
    const to = this.#alive.find((n) => n.identity.nodeId === channel.to.identity.nodeId);
    if (to === undefined) return true;
    if (toServer) {
      if (to.server === null) return true;
      this.#stepServer(to, { type: 'message', from: from.identity, message: decodeToServer(body) });
    } else this.#stepClient(to, { type: 'message', from: from.identity, message: decodeToClient(body) });
    return true;
  }

  // ---- machines

  #send(from: Node, to: MemberIdentity, toServer: boolean, message: ToServerMessage | ToClientMessage): void {
    const target = this.#nodes.find(
      (n) => n.identity.nodeId === to.nodeId && n.identity.incarnation === to.incarnation,
    );
    if (target === undefined) return;
    const altered = this.#options.alter?.(
      toServer
        ? { to: 'server', message: message as ToServerMessage, server: target.server }
        : { to: 'client', message: message as ToClientMessage },
    );
    if (altered === null) return;
    const sent = altered?.message ?? message;
    const name = `${from.identity.nodeId}.${from.identity.incarnation}>${to.nodeId}.${to.incarnation}`;
    const channel = this.#channels.get(name) ?? { from, to: target, bodies: [] };
    this.#channels.set(name, channel);
    const bodies = toServer ? encodeToServer(sent as ToServerMessage) : encodeToClient(sent as ToClientMessage);
    for (const body of bodies) channel.bodies.push({ toServer, body });
  }

  #stepClient(node: Node, event: ClientEvent): void {
    let effects: ClientEffect[] = node.client.step(event, this.#nowMs);
    while (effects.length > 0 || node.drained) {
      for (const effect of effects) this.#clientEffect(node, effect);
      effects = [];
      if (node.drained) {
        node.drained = false;
        effects = node.client.step({ type: 'drained' }, this.#nowMs);
      }
    }
  }

  #clientEffect(node: Node, effect: ClientEffect): void {
    switch (effect.type) {
      case 'send':
        this.#send(node, effect.to, true, effect.message);
        return;
      case 'revoke': {
        const { class: tokenClass, object, range: given } = effect.revocation;
        if (tokenClass === TokenClass.status) node.status.begins(object, given);
        node.running.push(effect);
        return;
      }
      case 'gathered':
        node.status.gathered(effect.object, effect.range, effect.notes);
        return;
      case 'pinned': {
        const { items } = node.ops.get(effect.opId)!;
        node.ops.delete(effect.opId);
        node.pins.push(effect.pins);
        this.#used(node, items);
        return;
      }
      case 'failed':
        node.ops.delete(effect.opId);
        return;
      case 'released':
      case 'broken':
        return;
    }
  }

  #stepServer(node: Node, event: ServerEvent): void {
    const effects = node.server!.step(event, this.#nowMs);
    this.#judgeOrder(node, event, effects);
    for (const effect of effects) {
      if (effect.type === 'send') this.#send(node, effect.to, false, effect.message);
      else throw new WorldError(`I1: ${effect.detail}`);
    }
  }

  // ---- judgement

  /** T3: nobody is granted while an earlier request that he conflicts with waits. */
  #judgeOrder(node: Node, event: ServerEvent, effects: readonly ServerEffect[]): void {
    const same = (a: MemberIdentity, b: MemberIdentity): boolean =>
      a.nodeId === b.nodeId && a.incarnation === b.incarnation;
    if (event.type === 'message') {
      const { from, message } = event;
      for (const item of message.items) if (item.kind === 'request') node.line.push({ by: from, item });
    }
    const grants: { to: MemberIdentity; requestId: number; seq: number }[] = [];
    for (const effect of effects) {
      if (effect.type !== 'send') continue;
      for (const item of effect.message.items) {
        if (item.kind === 'grant') grants.push({ to: effect.to, requestId: item.requestId, seq: item.seq });
        if (item.kind !== 'refusal') continue;
        node.line = node.line.filter((l) => !(same(l.by, effect.to) && l.item.requestId === item.requestId));
      }
    }
    // Requests of older lives are dropped on arrival, others fall with their sender or the object's ownership.
    const waiters = node.server!.waiters();
    const waits = (l: Node['line'][number]): boolean =>
      waiters.some((w) => same(w.by, l.by) && w.requestId === l.item.requestId) ||
      grants.some((g) => same(g.to, l.by) && g.requestId === l.item.requestId);
    node.line = node.line.filter(waits);
    for (const grant of grants.sort((a, b) => a.seq - b.seq)) {
      const at = node.line.findIndex((l) => same(l.by, grant.to) && l.item.requestId === grant.requestId);
      if (at < 0) continue;
      const { item, by } = node.line[at]!;
      for (const earlier of node.line.slice(0, at)) {
        const { item: other } = earlier;
        if (same(earlier.by, by) || other.class !== item.class || other.object !== item.object) continue;
        const unfair = item.parts.some((p) =>
          other.parts.some((q) => conflicts(p.mode, q.mode) && overlaps(p.required, q.required)),
        );
        if (unfair) throw new WorldError(`T3: node ${by.nodeId} overtakes node ${earlier.by.nodeId}`);
      }
      node.line.splice(at, 1);
    }
  }

  /** I1 over all nodes that are not dead, and that nobody uses what he doesn't hold. */
  check(): void {
    const all = this.#alive.map((node) => ({ node, holdings: node.client.holdings() }));
    for (const { node, holdings } of all) {
      for (const pin of holdings) {
        if (!pin.pinned) continue;
        let reached = pin.range.start;
        for (const h of holdings) {
          const covers = !h.pinned && h.class === pin.class && h.object === pin.object && h.range.start <= reached;
          if (covers && (h.mode === pin.mode || h.mode === TokenMode.exclusive))
            reached = Math.max(reached, h.range.end);
        }
        if (reached < pin.range.end) throw new WorldError(`I2: node ${node.identity.nodeId} uses what it doesn't hold`);
      }
    }
    for (let a = 0; a < all.length; a++) {
      for (let b = a + 1; b < all.length; b++) {
        for (const x of all[a]!.holdings) {
          for (const y of all[b]!.holdings) {
            const clash = x.class === y.class && x.object === y.object && overlaps(x.range, y.range);
            if (!clash || !conflicts(x.mode, y.mode)) continue;
            const [p, q] = [all[a]!.node.identity.nodeId, all[b]!.node.identity.nodeId];
            throw new WorldError(`I1: nodes ${p} and ${q}, class ${x.class} object ${x.object} at ${x.range.start}`);
          }
        }
      }
    }
  }

  /** Nothing new is begun; everything that is under way ends, or I12 is broken. */
  #comeToRest(): void {
    this.#calm = true;
    for (let round = 0; round < 20_000 && this.#calm; round++) {
      let moved = this.#deliver();
      for (const node of this.#alive) {
        if (node.pins.length + node.running.length + node.views.length + node.fates.length > 0) moved = true;
        if (node.pins.length > 0 && chance(this.#random, 0.5)) {
          node.pins.pop()!.release();
          if (node.drained) this.#stepClient(node, { type: 'drained' });
        }
        if (node.running.length > 0) this.#endRevoke(node, node.running.shift()!);
        if (node.views.length > 0) this.#enterView(node, node.views.shift()!);
        if (node.server !== null && node.fates.length > 0) this.#stepServer(node, node.fates.shift()!);
      }
      this.check();
      if (moved) continue;
      // An operation may be served by another one's grant; its own request still takes its time.
      if (this.#alive.every((n) => n.ops.size === 0 && (n.server?.waitingCount ?? 0) === 0)) break;
      const wake = Math.min(...this.#alive.flatMap((n) => [n.client.nextWakeMs, n.server?.nextWakeMs ?? Infinity]));
      if (wake === Infinity) break;
      this.#passTime(Math.max(0, wake - this.#nowMs));
    }
    for (const node of this.#alive) {
      if (node.ops.size > 0)
        throw new WorldError(`I12: ${node.ops.size} operations of node ${node.identity.nodeId} never end`);
      if (node.server !== null && node.server.waitingCount > 0) throw new WorldError('I12: a request waits for ever');
    }
    this.#tablesAgree();
  }

  /** What a node holds, the server of the object knows. */
  #tablesAgree(): void {
    const tables = this.#alive.flatMap((n) => (n.server === null ? [] : n.server.list(0, 1e6)));
    for (const node of this.#alive) {
      for (const h of node.client.holdings()) {
        let reached = h.range.start;
        const known = tables
          .filter((t) => t.by.nodeId === node.identity.nodeId && t.by.incarnation === node.identity.incarnation)
          .filter((t) => t.class === h.class && t.object === h.object && t.mode >= h.mode)
          .sort((a, b) => a.range.start - b.range.start);
        for (const t of known) if (t.range.start <= reached) reached = Math.max(reached, t.range.end);
        if (reached < h.range.end)
          throw new WorldError(`T8: node ${node.identity.nodeId} holds what no table shows: ${JSON.stringify(h)}`);
      }
    }
  }
}
