import type { Epoch, NodeId } from '../common/ids.js';
import type { Life, MembershipEvent, MembershipSettings } from './membership.js';
import type { NodeRecord } from './membership-api.js';
import { type AliveRecord, type ExpellingRecord, lifeKey, sameLife, type ViewRecord } from './records.js';
import type { StoreMirror } from './store-mirror.js';

/**
 * The expulsion of lives that vanished, in F1's order: evidence -> refused (the identity can't be regained) -> new epoch
 * without it -> every full node has shut it out and drained -> every token server let its tokens fall -> cleaned up. Driven
 * by the live full node with the lowest id; part of the membership machine, and as pure.
 *
 * Invariants: the view loses a life only after its key says `refused` or belongs to a newer life; tokens fall only after
 * every full node of the present view has acknowledged the fence; an entry of `expelling` goes only after both.
 * Fault model: the driver may die between any two steps: all progress that counts is in the store, the next driver starts at
 * the view's `expelling` and asks again (fencing and falling are idempotent). A node that doesn't acknowledge is asked again
 * until it does or is itself expelled: what can't be reached is never assumed to be quiet.
 */
export type ExpulsionEffect =
  /** Create the target's key as refused, if it isn't there. */
  | { type: 'refuse'; target: Life }
  | { type: 'fence' | 'tokensFall'; target: ExpellingRecord; server: NodeRecord }
  /** Delete the key of a refusal that has served. */
  | { type: 'lift'; target: NodeId; revision: number };

type DriverEvent = Extract<MembershipEvent, { type: 'refused' | 'lifted' | 'fenceAnswered' | 'fallAnswered' }>;

interface Step {
  readonly done: Set<string>;
  readonly asked: Set<string>;
  readonly notBeforeMs: Map<string, number>;
}
const newStep = (): Step => ({ done: new Set(), asked: new Set(), notBeforeMs: new Map() });
interface Job {
  readonly fence: Step;
  readonly fall: Step;
}

type Evidence = 'none' | 'gone' | 'proven';

export class ExpulsionDriver {
  readonly #jobs = new Map<string, Job>();
  /** Since when a life of the view has no key, by this node's clock. */
  readonly #goneSinceMs = new Map<string, number>();
  /** Not to be asked again before; infinite while the answer is out. */
  readonly #refusing = new Map<string, number>();
  readonly #lifting = new Map<NodeId, number>();

  constructor(
    readonly self: Life & { readonly full: boolean },
    readonly settings: MembershipSettings,
  ) {}

  /**
   * Whether it is on this node to drive. When no full node of the view lives (all were killed and start again), the
   * claimants do it: otherwise nobody could ever join.
   */
  drives(mirror: StoreMirror, nowMs: number): boolean {
    this.#watchKeys(mirror, nowMs);
    if (!this.self.full) return false;
    const { view, alive } = mirror;
    const members = view.nodes.filter(
      (node) => node.address !== null && this.#evidence(node, alive.get(node.nodeId)) === 'none',
    );
    if (members.length > 0)
      return members.every((node) => node.nodeId >= this.self.nodeId) && hasLife(members, this.self);
    const claimants = [...alive].filter(([, record]) => record.state === 'alive' && record.full).map(([id]) => id);
    return claimants.length > 0 && Math.min(...claimants) === this.self.nodeId;
  }

  /** This node doesn't drive (any more): what it had asked for is somebody else's now. */
  stand(): void {
    this.#jobs.clear();
  }

  take(event: DriverEvent, nowMs: number): void {
    switch (event.type) {
      case 'refused':
        // Done or not, the watch tells; asked again after a while if it doesn't.
        this.#refusing.set(lifeKey(event.target), nowMs + this.settings.retryMs);
        break;
      case 'lifted':
        this.#lifting.set(event.target, nowMs + this.settings.retryMs);
        break;
      default: {
        const job = this.#jobs.get(lifeKey(event.target));
        const step = event.type === 'fenceAnswered' ? job?.fence : job?.fall;
        if (step === undefined) return;
        const server = lifeKey(event.server);
        step.asked.delete(server);
        if (event.done) step.done.add(server);
        else step.notBeforeMs.set(server, nowMs + this.settings.retryMs);
      }
    }
  }

  reconcile(mirror: StoreMirror, nowMs: number): ExpulsionEffect[] {
    return [...this.#refusals(mirror, nowMs), ...this.#cleanUps(mirror, nowMs), ...this.#lifts(mirror, nowMs)];
  }

  /** The view as it should be: without the lives that are proven dead, and without entries that are cleaned up. */
  nextView({ view, alive }: StoreMirror): ViewRecord {
    const dead = view.nodes.filter((node) => this.#evidence(node, alive.get(node.nodeId)) === 'proven');
    const open = view.expelling.filter((entry) => !this.#cleanedUp(entry, view));
    if (dead.length === 0) return open.length === view.expelling.length ? view : { ...view, expelling: open };
    const epoch = (view.epoch + 1) as Epoch;
    const added = dead.map(({ nodeId, incarnation }) => ({ nodeId, incarnation, epoch, clean: false }));
    const nodes = view.nodes.filter((node) => !hasLife(dead, node));
    const tokenServers = view.tokenServers.filter((id) => nodes.some((node) => node.nodeId === id));
    return { epoch, nodes, tokenServers, expelling: [...open, ...added] };
  }

  wakeMs(nowMs: number): number {
    const times: number[] = [];
    for (const sinceMs of this.#goneSinceMs.values()) times.push(sinceMs + this.settings.expelAfterMs);
    times.push(...this.#refusing.values(), ...this.#lifting.values());
    for (const job of this.#jobs.values())
      times.push(...job.fence.notBeforeMs.values(), ...job.fall.notBeforeMs.values());
    return Math.min(Number.POSITIVE_INFINITY, ...times.filter((time) => time > nowMs));
  }

  #watchKeys({ view, alive }: StoreMirror, nowMs: number): void {
    const gone = new Set<string>();
    for (const node of view.nodes) {
      const key = lifeKey(node);
      if (this.#evidence(node, alive.get(node.nodeId)) !== 'gone') continue;
      gone.add(key);
      if (!this.#goneSinceMs.has(key)) this.#goneSinceMs.set(key, nowMs);
    }
    for (const key of this.#goneSinceMs.keys()) if (!gone.has(key)) this.#goneSinceMs.delete(key);
    for (const key of this.#refusing.keys()) if (!gone.has(key)) this.#refusing.delete(key);
  }

  #evidence(node: NodeRecord, owner: AliveRecord | undefined): Evidence {
    if (owner === undefined || owner.incarnation < node.incarnation) return sameLife(node, this.self) ? 'none' : 'gone';
    if (owner.incarnation === node.incarnation && owner.state === 'alive') return 'none';
    return 'proven';
  }

  *#refusals({ view }: StoreMirror, nowMs: number): Iterable<ExpulsionEffect> {
    for (const { nodeId, incarnation } of view.nodes) {
      const key = lifeKey({ nodeId, incarnation });
      const sinceMs = this.#goneSinceMs.get(key);
      if (sinceMs === undefined || nowMs < sinceMs + this.settings.expelAfterMs) continue;
      if (nowMs < (this.#refusing.get(key) ?? 0)) continue;
      this.#refusing.set(key, Number.POSITIVE_INFINITY);
      yield { type: 'refuse', target: { nodeId, incarnation } };
    }
  }

  *#cleanUps({ view }: StoreMirror, nowMs: number): Iterable<ExpulsionEffect> {
    const open = new Set(view.expelling.map(lifeKey));
    for (const key of this.#jobs.keys()) if (!open.has(key)) this.#jobs.delete(key);
    for (const target of view.expelling) {
      const key = lifeKey(target);
      const job = this.#jobs.get(key) ?? { fence: newStep(), fall: newStep() };
      this.#jobs.set(key, job);
      const fenced = allDone(job.fence, fullNodes(view));
      const [type, step, servers] = fenced
        ? (['tokensFall', job.fall, tokenServers(view)] as const)
        : (['fence', job.fence, fullNodes(view)] as const);
      for (const server of servers) {
        const name = lifeKey(server);
        if (step.done.has(name) || step.asked.has(name) || nowMs < (step.notBeforeMs.get(name) ?? 0)) continue;
        step.asked.add(name);
        yield { type, target, server };
      }
    }
  }

  /** A server that joined in the meantime is asked too: it knows only what it was told. */
  #cleanedUp(entry: ExpellingRecord, view: ViewRecord): boolean {
    const job = this.#jobs.get(lifeKey(entry));
    return job !== undefined && allDone(job.fence, fullNodes(view)) && allDone(job.fall, tokenServers(view));
  }

  /** Only when no older life is left to refuse may the identity be used again. */
  *#lifts({ view, alive }: StoreMirror, nowMs: number): Iterable<ExpulsionEffect> {
    for (const target of this.#lifting.keys()) if (alive.get(target)?.state !== 'refused') this.#lifting.delete(target);
    for (const [target, record] of alive) {
      if (record.state !== 'refused' || nowMs < (this.#lifting.get(target) ?? 0)) continue;
      const serves = [...view.nodes, ...view.expelling].some(
        (life) => life.nodeId === target && life.incarnation <= record.incarnation,
      );
      if (serves) continue;
      this.#lifting.set(target, Number.POSITIVE_INFINITY);
      yield { type: 'lift', target, revision: record.revision };
    }
  }
}

const hasLife = (lives: readonly Life[], life: Life): boolean => lives.some((other) => sameLife(other, life));
/** Every full node may serve an NSD, or be about to: all of them must have shut the dead one out. */
const fullNodes = (view: ViewRecord): NodeRecord[] => view.nodes.filter((node) => node.address !== null);
const tokenServers = (view: ViewRecord): NodeRecord[] =>
  view.nodes.filter((node) => view.tokenServers.includes(node.nodeId));
const allDone = (step: Step, servers: readonly NodeRecord[]): boolean =>
  servers.every((server) => step.done.has(lifeKey(server)));
