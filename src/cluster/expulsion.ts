import type { Epoch } from '../common/ids.js';
import type { Life, MembershipEvent, MembershipSettings } from './membership.js';
import type { NodeRecord } from './membership-api.js';
import { type AliveRecord, type ExpellingRecord, lifeKey, sameLife, type ViewRecord } from './records.js';
import type { StoreMirror } from './store-mirror.js';

/**
 * The expulsion of lives that vanished, in F1's order: evidence -> new epoch without it -> every full node has shut it out
 * and drained -> every token server let its tokens fall -> cleaned up. Driven by the live full node with the lowest id; part
 * of the membership machine, and as pure.
 *
 * Invariants: the view loses a life only when its key has been gone for a while or belongs to a newer life, as of the view's
 * revision that the swap names, or when an operator says that it is dead; tokens fall only after every full node of the present view has acknowledged the fence,
 * and those of one node's lives in their order; an entry of `expelling` goes only after both.
 * Fault model: the driver may die between any two steps: all progress that counts is in the store, the next driver starts at
 * the view's `expelling` and asks again (fencing and falling are idempotent). A node that doesn't acknowledge is asked again
 * until it does or is itself expelled: what can't be reached is never assumed to be quiet.
 */
export interface ExpulsionEffect {
  readonly type: 'fence' | 'tokensFall';
  readonly target: ExpellingRecord;
  readonly server: NodeRecord;
}

type DriverEvent = Extract<MembershipEvent, { type: 'fenceAnswered' | 'fallAnswered' }>;

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
    const claimants = [...alive].filter(([, record]) => record.full).map(([id]) => id);
    return claimants.length > 0 && Math.min(...claimants) === this.self.nodeId;
  }

  /** This node doesn't drive (any more): what it had asked for is somebody else's now. */
  stand(): void {
    this.#jobs.clear();
  }

  take(event: DriverEvent, nowMs: number): void {
    const job = this.#jobs.get(lifeKey(event.target));
    const step = event.type === 'fenceAnswered' ? job?.fence : job?.fall;
    if (step === undefined) return;
    const server = lifeKey(event.server);
    step.asked.delete(server);
    if (event.done) step.done.add(server);
    else step.notBeforeMs.set(server, nowMs + this.settings.retryMs);
  }

  reconcile({ view }: StoreMirror, nowMs: number): ExpulsionEffect[] {
    const open = new Set(view.expelling.map(lifeKey));
    for (const key of this.#jobs.keys()) if (!open.has(key)) this.#jobs.delete(key);
    return view.expelling.flatMap((target) => this.#cleanUp(target, view, nowMs));
  }

  /** The view as it should be: without the lives that are proven dead, and without entries that are cleaned up. */
  nextView({ view, alive }: StoreMirror, nowMs: number): ViewRecord {
    const dead = view.nodes.filter((node) => {
      const evidence = this.#evidence(node, alive.get(node.nodeId));
      const sinceMs = this.#goneSinceMs.get(lifeKey(node)) ?? nowMs;
      return evidence === 'proven' || (evidence === 'gone' && nowMs >= sinceMs + this.settings.expelAfterMs);
    });
    const open = view.expelling.filter((entry) => !this.#cleanedUp(entry, view));
    if (dead.length === 0) return open.length === view.expelling.length ? view : { ...view, expelling: open };
    return withoutLives({ ...view, expelling: open }, dead);
  }

  wakeMs(nowMs: number): number {
    const times: number[] = [];
    for (const sinceMs of this.#goneSinceMs.values()) times.push(sinceMs + this.settings.expelAfterMs);
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
  }

  #evidence(node: NodeRecord, owner: AliveRecord | undefined): Evidence {
    if (owner === undefined || owner.incarnation < node.incarnation) return sameLife(node, this.self) ? 'none' : 'gone';
    return owner.incarnation === node.incarnation ? 'none' : 'proven';
  }

  #cleanUp(target: ExpellingRecord, view: ViewRecord, nowMs: number): ExpulsionEffect[] {
    const key = lifeKey(target);
    const job = this.#jobs.get(key) ?? { fence: newStep(), fall: newStep() };
    this.#jobs.set(key, job);
    const fenced = allDone(job.fence, fullNodes(view));
    if (fenced && view.expelling.some((other) => isOlderLife(other, target))) return [];
    const step = fenced ? job.fall : job.fence;
    const effects: ExpulsionEffect[] = [];
    for (const server of fenced ? fallServers(view) : fullNodes(view)) {
      const name = lifeKey(server);
      if (step.done.has(name) || step.asked.has(name) || nowMs < (step.notBeforeMs.get(name) ?? 0)) continue;
      step.asked.add(name);
      effects.push({ type: fenced ? 'tokensFall' : 'fence', target, server });
    }
    return effects;
  }

  /** A server that joined in the meantime is asked too: it knows only what it was told. */
  #cleanedUp(entry: ExpellingRecord, view: ViewRecord): boolean {
    const job = this.#jobs.get(lifeKey(entry));
    return job !== undefined && allDone(job.fence, fullNodes(view)) && allDone(job.fall, fallServers(view));
  }
}

/** A new epoch in which these lives are being expelled. */
function withoutLives(view: ViewRecord, dead: readonly Life[]): ViewRecord {
  const epoch = (view.epoch + 1) as Epoch;
  const added = dead.map(({ nodeId, incarnation }) => ({ nodeId, incarnation, epoch, clean: false }));
  const nodes = view.nodes.filter((node) => !hasLife(dead, node));
  const tokenServers = view.tokenServers.filter((id) => nodes.some((node) => node.nodeId === id));
  return { epoch, nodes, tokenServers, expelling: [...view.expelling, ...added] };
}
export const withoutLife = (view: ViewRecord, life: Life): ViewRecord => withoutLives(view, [life]);

/** A token server lets what an older life holds fall with the newer one, whose log may be redone sooner: so they fall in their order (I6). */
const isOlderLife = (one: Life, of: Life): boolean => one.nodeId === of.nodeId && one.incarnation < of.incarnation;
const hasLife = (lives: readonly Life[], life: Life): boolean => lives.some((other) => sameLife(other, life));
/** Every full node may serve an NSD, or be about to: all of them must have shut the dead one out. */
const fullNodes = (view: ViewRecord): NodeRecord[] => view.nodes.filter((node) => node.address !== null);
const tokenServers = (view: ViewRecord): NodeRecord[] =>
  view.nodes.filter((node) => view.tokenServers.includes(node.nodeId));
/** With no token server left its log has to be redone all the same, which comes before the fall: one full node stands for them. */
const fallServers = (view: ViewRecord): NodeRecord[] => {
  const servers = tokenServers(view);
  return servers.length > 0 ? servers : fullNodes(view).slice(0, 1);
};
const allDone = (step: Step, servers: readonly NodeRecord[]): boolean =>
  servers.every((server) => step.done.has(lifeKey(server)));
