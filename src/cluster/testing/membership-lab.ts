import { sleep } from '../../common/clock.js';
import { type NodeId, nodeId } from '../../common/ids.js';
import { silentLogger } from '../../common/logger.js';
import { type Life, membershipSettings } from '../membership.js';
import { MembershipRuntime } from '../membership-runtime.js';
import type { MemoryConnection, MemoryStoreOptions } from '../memory-store.js';
import { MemoryStore } from '../memory-store.js';
import { EMPTY_VIEW, lifeKey, parseView, StoreKey, type ViewRecord } from '../records.js';
import { ManualClock } from './manual-clock.js';

/**
 * Several nodes' memberships on one store in memory and one clock that stands still. Checks, whenever the view loses a life
 * and whenever a step of an expulsion is asked for, that F1's order was kept and that nobody served beyond their lease.
 */
export const TTL_MS = 5000;
export const KEY = new TextEncoder().encode('a cluster key');

export class LabNode {
  runtime: MembershipRuntime | null = null;
  connection: MemoryConnection | null = null;
  /** What the application may do: told by the listener only. */
  deadlineMs = 0;
  readonly events: string[] = [];
  /** Lives that this node refuses. */
  readonly refuses = new Set<string>();
  readonly fallen: string[] = [];
  /** Cut off from the other nodes. */
  isolated = false;

  constructor(
    readonly id: NodeId,
    readonly full: boolean,
  ) {}

  get life(): string | null {
    return this.runtime === null ? null : lifeKey(this.runtime.self);
  }
}

export class Lab {
  readonly clock = new ManualClock();
  readonly store: MemoryStore;
  readonly nodes = new Map<number, LabNode>();
  readonly violations: string[] = [];
  /** Lives whose logs can't be redone now. */
  readonly unreadable = new Set<string>();
  readonly settings = membershipSettings(TTL_MS);
  #view: ViewRecord = EMPTY_VIEW;
  /** Every runtime there ever was, by life, with the deadline that it was told last. */
  readonly #deadlines = new Map<string, number>();
  readonly #clean = new Set<string>();

  constructor(options: MemoryStoreOptions = {}) {
    this.store = new MemoryStore(this.clock, options);
    this.store
      .connect(() => 0)
      .watch(
        StoreKey.view,
        0,
        (change) => this.#viewChanged(parseView(change.value)),
        () => undefined,
      );
  }

  get view(): ViewRecord {
    return this.#view;
  }

  node(id: number): LabNode {
    const node = this.nodes.get(id);
    if (node === undefined) throw new Error(`no node ${id}`);
    return node;
  }

  /** Claims and joins; resolves when the node is in the view. */
  async start(
    id: number,
    options: { full?: boolean; identityWaitMs?: number; key?: Uint8Array; latencyMs?: number } = {},
  ): Promise<void> {
    const node = this.nodes.get(id) ?? new LabNode(nodeId(id), options.full ?? true);
    this.nodes.set(id, node);
    const { latencyMs } = options;
    const connection = this.store.connect(latencyMs === undefined ? undefined : () => latencyMs);
    node.connection = connection;
    let life = '';
    const runtime = await MembershipRuntime.claim({
      store: connection,
      clock: this.clock,
      clusterKey: options.key ?? KEY,
      nodeId: node.id,
      full: node.full,
      name: `node-${id}`,
      settings: this.settings,
      identityWaitMs: options.identityWaitMs ?? 60_000,
      newClusterId: () => 'lab',
      logger: silentLogger,
      listener: {
        lease: (deadlineMs) => {
          node.deadlineMs = deadlineMs;
          this.#deadlines.set(life, deadlineMs);
        },
        suspended: () => {
          if (node.deadlineMs > this.clock.nowMs()) this.violations.push(`${life} suspended with a lease`);
          node.events.push('suspended');
        },
        resumed: () => node.events.push('resumed'),
        fenced: () => node.events.push('fenced'),
      },
    });
    life = lifeKey(runtime.self);
    if (node.connection !== connection) {
      runtime.stop();
      return;
    }
    node.runtime = runtime;
    node.refuses.clear();
    node.events.length = 0;
    await runtime.join(
      { address: node.full ? { host: '127.0.0.1', port: 7000 + id } : null, tokenServer: node.full },
      {
        fence: (server, target) => this.#fence(node, server, target),
        tokensFall: (server, target) => this.#fall(node, server, target),
      },
    );
  }

  /** Dies without a word. */
  crash(id: number): void {
    const node = this.node(id);
    node.runtime?.stop();
    void node.connection?.close();
    if (node.life !== null) this.#deadlines.set(node.life, 0);
    node.runtime = null;
    node.connection = null;
  }

  async leave(id: number, clean = true): Promise<void> {
    const node = this.node(id);
    const runtime = node.runtime;
    const life = node.life;
    if (life !== null && clean) this.#clean.add(life);
    if (life !== null) this.#deadlines.set(life, 0);
    await runtime?.leave(10_000, clean);
    if (life !== null) this.#deadlines.set(life, 0);
    if (node.runtime === runtime) node.runtime = null;
  }

  #viewChanged(view: ViewRecord | null): void {
    if (view === null) {
      this.violations.push('the view is no record');
      return;
    }
    const before = this.#view;
    this.#view = view;
    if (view.epoch < before.epoch) this.violations.push(`epoch went from ${before.epoch} to ${view.epoch}`);
    if (view.epoch === before.epoch && String(view.tokenServers) !== String(before.tokenServers))
      this.violations.push(`token servers changed within epoch ${view.epoch}`);
    for (const gone of before.nodes) {
      const key = lifeKey(gone);
      if (view.nodes.some((node) => lifeKey(node) === key) || this.#clean.has(key)) continue;
      const deadlineMs = this.#deadlines.get(key) ?? 0;
      if (deadlineMs > this.clock.nowMs())
        this.violations.push(`${key} was expelled at ${this.clock.nowMs()} with a lease until ${deadlineMs}`);
      if (view.epoch === before.epoch) this.violations.push(`${key} was expelled within epoch ${view.epoch}`);
    }
    for (const entry of before.expelling) {
      const key = lifeKey(entry);
      if (view.expelling.some((other) => lifeKey(other) === key)) continue;
      // Who joined with this very change starts from a view without the dead life.
      for (const server of view.nodes.filter((node) => before.nodes.some((old) => lifeKey(old) === lifeKey(node)))) {
        const lab = this.nodes.get(server.nodeId);
        if (server.address !== null && lab?.life === lifeKey(server) && !lab.refuses.has(key))
          this.violations.push(`${key} was cleaned up, but node ${server.nodeId} doesn't refuse it`);
      }
    }
  }

  #server(driver: LabNode, server: Life): LabNode {
    const node = this.nodes.get(server.nodeId);
    if (node?.runtime === null || node === undefined || node.life !== lifeKey(server)) throw new Error('gone');
    if (node !== driver && (node.isolated || driver.isolated)) throw new Error('unreachable');
    return node;
  }

  async #fence(driver: LabNode, server: Life, target: Life): Promise<void> {
    await sleep(this.clock, 5);
    if (this.#view.nodes.some((node) => lifeKey(node) === lifeKey(target)))
      this.violations.push(`${lifeKey(target)} was fenced while it was in the view`);
    this.#server(driver, server).refuses.add(lifeKey(target));
  }

  async #fall(driver: LabNode, server: Life, target: Life): Promise<void> {
    const key = lifeKey(target);
    // I5: fence, then recover. Nodes that joined since are asked as well, before the entry goes.
    const known = driver.runtime?.view.nodes ?? new Map<NodeId, Life>();
    for (const node of known.values()) {
      const lab = this.nodes.get(node.nodeId);
      if (lab?.full === true && lab.life === lifeKey(node) && !lab.refuses.has(key))
        this.violations.push(`tokens of ${key} fell before node ${node.nodeId} refused it`);
    }
    await sleep(this.clock, 5);
    if (this.unreadable.has(key)) throw new Error('its log can not be read');
    // A token server lets everything fall that the node held up to that life.
    for (const { nodeId, incarnation } of this.#view.expelling)
      if (nodeId === target.nodeId && incarnation < target.incarnation)
        this.violations.push(`tokens of ${key} fell, and with them those of life ${incarnation}`);
    this.#server(driver, server).fallen.push(key);
  }
}
