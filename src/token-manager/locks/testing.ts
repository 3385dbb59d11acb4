/** For tests: nodes with a lock client each, some with a lock server, over channels that keep order and take as long as chance wants. */
import { type Epoch, epoch, type Incarnation, incarnation, nodeId } from '../../common/ids.js';
import { below, chance, type Random } from '../../common/random.js';
import type { ServerIdentity } from '../placement.js';
import type { TokenView } from '../token-server-events.js';
import type { LockClientEffect, LockClientEvent, LockOp } from './lock-client-events.js';
import { LockClientMachine } from './lock-client-machine.js';
import { decodeLockToClient, decodeLockToServer, encodeLockToClient, encodeLockToServer } from './lock-messages.js';
import { type LockServerEvent, LockServerMachine } from './lock-server-machine.js';
import { LOCK_END, type Lock, type LockOwner, LockSpace, LockType } from './lock-table.js';

interface TestNode {
  readonly identity: ServerIdentity;
  readonly client: LockClientMachine;
  readonly server: LockServerMachine | null;
  readonly events: (() => void)[];
}
export interface Ended {
  readonly op: LockOp;
  readonly result: 'done' | string;
  readonly blocker: Lock | null;
}

export class LockWorld {
  readonly nodes = new Map<number, TestNode>();
  readonly counts = new Map<string, number>();
  readonly ended: Ended[] = [];
  readonly ops = new Map<number, LockOp>();
  onEnded: (ended: Ended) => void = () => undefined;
  /** Bodies that arrived. */
  messages = 0;
  nowMs = 1;
  #channels = new Map<string, (() => void)[]>();
  #epoch: Epoch = epoch(0);
  #lastOp = 0;
  #lives = 0;

  constructor(
    readonly random: Random,
    servers: readonly number[],
    clients: readonly number[],
  ) {
    for (const id of servers) this.#add(id, true);
    for (const id of clients) this.#add(id, false);
    this.publish();
    this.run();
  }

  #add(id: number, serves: boolean): void {
    const identity = { nodeId: nodeId(id), incarnation: incarnation(++this.#lives) };
    const count = (what: string): void => {
      this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
    };
    const client = new LockClientMachine({ self: identity, count });
    const server = serves ? new LockServerMachine({ self: identity, count }) : null;
    this.nodes.set(id, { identity, client, server, events: [] });
  }

  owner(node: number, id: number, isProcess = true): LockOwner {
    const { identity } = this.nodes.get(node)!;
    return { node: identity.nodeId, incarnation: identity.incarnation, id, pid: 100 + id, isProcess };
  }

  /** A new view: everybody learns of it in its own time. */
  publish(): void {
    this.#epoch = epoch(this.#epoch + 1);
    const members = [...this.nodes.values()];
    const view: TokenView = {
      epoch: this.#epoch,
      servers: members.filter(({ server }) => server !== null).map(({ identity }) => identity),
      nodes: members.map(({ identity }) => identity),
    };
    for (const node of members)
      node.events.push(() => {
        if (node.server !== null) this.#stepServer(node, { type: 'view', view });
        this.#stepClient(node, { type: 'view', epoch: view.epoch, servers: view.servers });
      });
  }

  kill(id: number): ServerIdentity {
    const { identity } = this.nodes.get(id)!;
    this.nodes.delete(id);
    for (const key of [...this.#channels.keys()])
      if (key.startsWith(`${id}>`) || key.endsWith(`>${id}`)) this.#channels.delete(key);
    this.publish();
    return identity;
  }
  /** Fenced: every server hears of it, after the view. */
  fell({ nodeId: id, incarnation: life }: ServerIdentity): void {
    for (const node of this.nodes.values())
      if (node.server !== null)
        node.events.push(() =>
          this.#stepServer(node, { type: 'fallen', nodeId: id, incarnation: life as Incarnation, releaseHeld: true }),
        );
  }
  revive(id: number, serves: boolean): void {
    this.#add(id, serves);
    this.publish();
  }

  #stepServer(node: TestNode, event: LockServerEvent): void {
    if (this.nodes.get(node.identity.nodeId) !== node) return;
    for (const { to, message } of node.server!.step(event, this.nowMs))
      for (const body of encodeLockToClient(message))
        this.#send(node, to.nodeId, (target) =>
          this.#stepClient(target, { type: 'message', from: node.identity, message: decodeLockToClient(body) }),
        );
  }
  #stepClient(node: TestNode, event: LockClientEvent): void {
    if (this.nodes.get(node.identity.nodeId) !== node) return;
    for (const effect of node.client.step(event, this.nowMs)) this.#clientEffect(node, effect);
  }
  #clientEffect(node: TestNode, effect: LockClientEffect): void {
    if (effect.type === 'send') {
      for (const body of encodeLockToServer(effect.message))
        this.#send(node, effect.to.nodeId, (target) => {
          if (target.server !== null)
            this.#stepServer(target, { type: 'message', from: node.identity, message: decodeLockToServer(body) });
        });
      return;
    }
    const op = this.ops.get(effect.opId)!;
    this.ops.delete(effect.opId);
    const ended = { op, result: effect.type === 'done' ? 'done' : effect.reason, blocker: effect.blocker };
    this.ended.push(ended);
    this.onEnded(ended);
  }

  #send(from: TestNode, to: number, deliver: (target: TestNode) => void): void {
    const key = `${from.identity.nodeId}>${to}`;
    const channel = this.#channels.get(key) ?? [];
    this.#channels.set(key, channel);
    channel.push(() => {
      const target = this.nodes.get(to);
      if (target === undefined) return;
      this.messages++;
      deliver(target);
    });
  }

  do(node: number, wish: Partial<LockOp> & Pick<LockOp, 'kind' | 'object' | 'owner'>): number {
    const opId = ++this.#lastOp;
    const op: LockOp = {
      opId,
      space: LockSpace.ranges,
      type: LockType.write,
      at: { start: 0, end: LOCK_END },
      wait: false,
      deadlineAtMs: Number.POSITIVE_INFINITY,
      ...wish,
    };
    this.ops.set(opId, op);
    this.#stepClient(this.nodes.get(node)!, { type: 'op', op });
    return opId;
  }
  abort(node: number, opId: number): void {
    this.#stepClient(this.nodes.get(node)!, { type: 'abort', opId });
  }
  /** Runs everything that is under way, and says how this operation ended. */
  result(opId: number): string {
    this.run();
    const ended = this.ended.find(({ op }) => op.opId === opId);
    return ended?.result ?? 'waits';
  }

  /** One thing happens somewhere. False: nothing is under way. */
  step(): boolean {
    const possible: (() => void)[][] = [...this.#channels.values()].filter((channel) => channel.length > 0);
    for (const node of this.nodes.values()) if (node.events.length > 0) possible.push(node.events);
    if (possible.length === 0) return false;
    this.nowMs += 1;
    const next = possible[below(this.random, possible.length)]!;
    next.shift()!();
    return true;
  }
  run(): void {
    for (let idle = 0; idle < 3; ) {
      if (this.step()) {
        idle = 0;
        continue;
      }
      // What is asked again after a while.
      idle++;
      this.nowMs += 100;
      for (const node of [...this.nodes.values()]) this.#stepClient(node, { type: 'tick' });
    }
  }
  some(probability: number): boolean {
    return chance(this.random, probability);
  }
}
