import { sleep } from '../common/clock.js';
import type { NodeId } from '../common/ids.js';
import { below, chance, pick, type SeededRandom } from '../common/random.js';
import type { Crossing, Verdict } from '../fabric/memory-link.js';
import type { RevokeItem } from '../token-manager/token-messages.js';
import { type FaultPlan, LEASE_TTL_MS } from './seed-plan.js';
import type { SimNode } from './sim-node.js';
import type { World } from './world.js';

/** Whom a fault waits for: who is called back, who is called back for, who has been promised that something is durable. */
type Ambushed = 'holder' | 'requester' | 'synced';
const AMBUSHED = { killHolder: 'holder', killRequester: 'requester', killSynced: 'synced' } as const;

/**
 * What goes wrong, when the plan says so. Owns the network's policy and everything that has to be undone at the end.
 *
 * Invariant: one node at a time is on its way out, so that the others can always go on.
 */
export class Faults {
  /** Extra delay per direction, "from>to". */
  readonly #slow = new Map<string, number>();
  readonly #cutChance = new Map<string, number>();
  readonly #undo: (() => void)[] = [];
  /** Waits for a revocation of a hot file to be under way. */
  #ambush: { readonly who: Ambushed; spring: (victim: SimNode) => void } | null = null;
  /** A node is on its way out. */
  #taken = false;
  /** Leaves again as soon as it has joined, so many times. */
  #passingBy = { id: 0, times: 0 };
  #leaseAsked: (() => void) | null = null;
  applied = 0;

  constructor(
    private readonly world: World,
    private readonly random: SeededRandom,
    private readonly jitter: SeededRandom,
  ) {
    world.network.policy = (crossing) => this.#cross(crossing);
  }

  #cross({ from, to, kind }: Crossing): Verdict {
    const pair = `${from}>${to}`;
    const cut = this.#cutChance.get(pair);
    if (cut !== undefined && chance(this.jitter, cut)) return 'cut';
    const share = this.jitter.next();
    // Mostly quick, now and then late.
    const delayMs = 0.02 + 0.15 * share + (share > 0.97 ? 2 * this.jitter.next() : 0);
    return { delayMs: delayMs + (this.#slow.get(pair) ?? 0) * (kind === 'connect' ? 0.2 : 1) };
  }

  async run(): Promise<void> {
    const running: Promise<void>[] = [];
    for (const fault of this.world.plan.faults) {
      while (this.world.workload.ended < fault.atOperation) await sleep(this.world.scheduler, 1);
      running.push(this.#apply(fault));
      await sleep(this.world.scheduler, 0);
    }
    await Promise.all(running);
  }

  async #apply(fault: FaultPlan): Promise<void> {
    const { world, random } = this;
    const say = (text: string): void => world.trace.add(0, 0, `fault ${fault.kind}: ${text}`);
    this.applied++;
    switch (fault.kind) {
      case 'cut': {
        const [a, b] = this.#pair();
        say(`between ${a} and ${b}`);
        await this.#during(
          fault.forMs,
          () => this.#both(this.#cutChance, a, b, 0.05),
          () => this.#both(this.#cutChance, a, b, null),
        );
        world.network.cut(`n${a}`, `n${b}`);
        return;
      }
      case 'slowLink': {
        const [a, b] = this.#pair();
        const delayMs = 2 + 60 * random.next();
        say(`${delayMs.toFixed(1)} ms between ${a} and ${b}`);
        await this.#during(
          fault.forMs,
          () => this.#both(this.#slow, a, b, delayMs),
          () => this.#both(this.#slow, a, b, null),
        );
        return;
      }
      case 'partition': {
        const [a, b] = this.#pair();
        say(`${a} and ${b} for ${fault.forMs.toFixed(0)} ms`);
        await this.#during(
          fault.forMs,
          () => world.network.setReachable(`n${a}`, `n${b}`, false),
          () => world.network.setReachable(`n${a}`, `n${b}`, true),
        );
        return;
      }
      case 'storeOutage':
        // Not while somebody is on the way out: then nobody might be left to drive.
        await this.#untilAllUp();
        say(`for ${fault.forMs.toFixed(0)} ms`);
        await this.#withoutStore(fault.forMs);
        if (!chance(random, 0.4)) return;
        await this.#storeIsBack(0.3 + 3 * random.next());
        await this.#withoutStore(50 + 200 * random.next());
        return;
      case 'slowDisk': {
        const { disk, server } = pick(random, world.disks);
        say(`of node ${server}`);
        await this.#during(
          fault.forMs,
          () => {
            disk.slowness = 40;
          },
          () => {
            disk.slowness = 1;
          },
        );
        return;
      }
      case 'pause': {
        await this.#untilAllUp();
        const life = pick(random, world.up);
        say(`node ${life.name} for ${fault.forMs.toFixed(0)} ms`);
        await this.#during(
          fault.forMs,
          () => life.gate.pause(),
          () => life.gate.resume(),
        );
        return;
      }
      case 'kill': {
        const life = await this.#victim();
        say(`node ${life.name}`);
        world.kill(life);
        return this.#untilBack();
      }
      case 'powerCut': {
        await this.#alone();
        say('all machines');
        world.powerCut();
        return this.#untilBack();
      }
      case 'killServer': {
        const life = await this.#victim((one) => one.id <= world.plan.tokenServers);
        say(`node ${life.name}`);
        world.kill(life);
        return this.#untilBack();
      }
      case 'killHolder':
      case 'killRequester':
      case 'killSynced': {
        await this.#alone();
        const life = await this.#inAmbush(AMBUSHED[fault.kind]);
        say(`node ${life.name}`);
        world.kill(life);
        return this.#untilBack();
      }
      case 'zombie': {
        // Stopped for longer than its lease and its expulsion take; its application's threads run on.
        const life = await this.#victim();
        const forMs = LEASE_TTL_MS * (2.3 + random.next());
        say(`node ${life.name} stands still for ${forMs.toFixed(0)} ms`);
        await this.#during(
          forMs,
          () => life.gate.pause(),
          () => life.gate.resume(),
        );
        return this.#untilBack();
      }
      case 'storeCut': {
        const life = await this.#victim();
        const forMs = LEASE_TTL_MS * (2.3 + random.next());
        say(`node ${life.name} for ${forMs.toFixed(0)} ms`);
        await this.#during(
          forMs,
          () => life.connection.setConnected(false),
          () => {
            // What the node missed may be gone from the store's history.
            if (chance(random, 0.5)) world.store.compact();
            life.connection.setConnected(true);
          },
        );
        return this.#untilBack();
      }
      case 'lateWrites': {
        // What it sends to a disk's server is under way until its lease is out, or for longer than its expulsion takes.
        const life = await this.#dirtyVictim();
        const forMs = LEASE_TTL_MS * (2.3 + random.next());
        const delayMs = LEASE_TTL_MS * (1 + 1.5 * random.next());
        const servers = world.disks.map((disk) => disk.server).filter((server) => server !== life.id);
        say(`node ${life.name} to ${servers.join()} for ${forMs.toFixed(0)} ms`);
        await this.#during(
          forMs,
          () => {
            for (const server of servers) this.#slow.set(`n${life.id}>n${server}`, delayMs);
            life.connection.setConnected(false);
          },
          () => {
            for (const server of servers) this.#slow.delete(`n${life.id}>n${server}`);
            life.connection.setConnected(true);
          },
        );
        return this.#untilBack();
      }
      case 'stuckDisk': {
        // What a node has under way at a disk when it dies may take longer there than its expulsion takes elsewhere.
        const { disk, server } = pick(random, world.disks);
        const life = await this.#dirtyVictim((one) => one.id !== server);
        const forMs = 60 + 150 * random.next();
        say(`of node ${server} for ${forMs.toFixed(0)} ms, then node ${life.name}`);
        await this.#during(
          forMs,
          () => {
            disk.slowness = 4000 + 14_000 * random.next();
          },
          () => {
            disk.slowness = 1;
          },
        );
        world.kill(life);
        return this.#untilBack();
      }
      case 'resend': {
        // Requests to a disk's server take longer than they are given, one way or both: the first is still on its way, or has been
        // executed and its answer is, when the next is sent.
        const { server } = pick(random, world.disks);
        const others = world.up.filter(({ id }) => id !== server);
        // An earlier fault may have left nobody else.
        if (others.length === 0) return;
        const from = pick(random, others).id;
        const allowedMs = world.plan.nsdAttemptTimeoutMs ?? 0;
        const both = chance(random, 0.5);
        const delayMs = allowedMs * (0.6 + random.next());
        say(
          `node ${from} to ${server}, ${delayMs.toFixed(1)} ms ${both ? 'both ways' : 'back'}, ${allowedMs.toFixed(1)} allowed`,
        );
        await this.#during(
          fault.forMs,
          () => {
            this.#slow.set(`n${server}>n${from}`, delayMs);
            if (both) this.#slow.set(`n${from}>n${server}`, delayMs);
          },
          () => {
            this.#slow.delete(`n${server}>n${from}`);
            this.#slow.delete(`n${from}>n${server}`);
          },
        );
        return;
      }
      case 'copyAway': {
        // Its server goes on without it, so that everybody can say that he knows; and it comes back under load, without what was written meanwhile.
        const life = await this.#victim((one) => one.doors.length > 0);
        say(`NSD of node ${life.name} for ${fault.forMs.toFixed(0)} ms`);
        let back: Promise<void> | null = null;
        await life.nsdAway();
        await this.#during(
          fault.forMs,
          () => undefined,
          () => {
            back = life.nsdBack();
          },
        );
        await back;
        await this.#copiesUp();
        return this.#untilBack();
      }
      case 'leave': {
        const life = await this.#victim((one) => one.id <= world.plan.tokenServers);
        await this.#leave(life, fault.forMs, chance(random, 0.2));
        return this.#untilBack();
      }
      case 'flap': {
        // A token server goes, and comes and goes a few times more without getting to work: objects move away and back within
        // milliseconds, while what was granted before is still on its way.
        const life = await this.#victim((one) => one.id <= world.plan.tokenServers);
        await this.#leave(life, 10);
        this.#passingBy = { id: life.id, times: 2 + below(random, 4) };
        const delayMs = 3 + 30 * random.next();
        say(`node ${life.name}, ${delayMs.toFixed(1)} ms between the others`);
        const links = world.up.flatMap(({ id }) => world.up.map((other) => `n${id}>n${other.id}`));
        for (const link of links) this.#slow.set(link, delayMs);
        await this.#untilAllUp();
        for (const link of links) this.#slow.delete(link);
        return this.#untilBack();
      }
    }
  }

  passesBy(id: NodeId): boolean {
    return this.#passingBy.id === id && this.#passingBy.times-- > 0;
  }

  /** In order, if it can; `unheard`: nobody hears of it before it has been expelled. */
  async #leave(life: SimNode, awayMs: number, unheard = false): Promise<void> {
    const { world } = this;
    const say = (text: string): void => world.trace.add(0, 0, `leaving: node ${life.name} ${text}`);
    say('begins');
    await world.workload.stopLife(life);
    if (life.state !== 'up') return;
    try {
      for (const file of life.files.values()) await file.close();
      await life.unmount();
      if (unheard) {
        say('is not heard');
        life.connection.setConnected(false);
        const forMs = LEASE_TTL_MS * (2.3 + this.random.next());
        world.scheduler.after(forMs, () => life.connection.setConnected(true));
      }
      await life.leave();
    } catch (error) {
      // What it could not write it has given up: gone like any other.
      say(`gives up: ${String(error)}`);
      world.kill(life);
      return;
    }
    await sleep(world.scheduler, awayMs);
    world.lifeEnded(life);
  }

  /** Called for every revoke that leaves a server. */
  revokeSent(holder: NodeId, requester: NodeId, item: RevokeItem): void {
    const ambush = this.#ambush;
    if (ambush === null || ambush.who === 'synced') return;
    const victim = this.world.nodes.get(ambush.who === 'holder' ? holder : requester);
    if (victim === undefined || victim.state !== 'up' || item.requester === 0) return;
    this.#ambush = null;
    ambush.spring(victim);
  }

  /** Called for every fsync of a hot file that has succeeded. */
  syncDone(life: SimNode): void {
    const ambush = this.#ambush;
    if (ambush?.who !== 'synced') return;
    this.#ambush = null;
    ambush.spring(life);
  }

  async #inAmbush(who: Ambushed): Promise<SimNode> {
    const { scheduler } = this.world;
    const delayMs = this.random.next() < 0.3 ? 0 : 3 * this.random.next();
    let skip = below(this.random, 6);
    const sprung = await new Promise<SimNode | null>((resolve) => {
      const timer = scheduler.after(3000, () => {
        this.#ambush = null;
        resolve(null);
      });
      const spring = (victim: SimNode): void => {
        if (skip-- > 0) {
          this.#ambush = { who, spring };
          return;
        }
        timer.cancel();
        scheduler.after(delayMs, () => resolve(victim));
      };
      this.#ambush = { who, spring };
    });
    return sprung?.state === 'up' ? sprung : pick(this.random, this.world.up);
  }

  /** One that has something to write, if there is one soon. */
  async #dirtyVictim(fits: (life: SimNode) => boolean = () => true): Promise<SimNode> {
    await this.#alone();
    const isDirty = (life: SimNode): boolean => this.world.hot.some(({ ino }) => life.cached(ino)?.dirty === true);
    for (let look = 0; look < 100; look++) {
      const dirty = this.world.up.filter((life) => fits(life) && isDirty(life));
      if (dirty.length > 0) return pick(this.random, dirty);
      await sleep(this.world.scheduler, 1);
    }
    return pick(this.random, this.world.up.filter(fits));
  }

  async heal(): Promise<void> {
    this.#ambush = null;
    for (const undo of this.#undo.splice(0)) undo();
    this.#slow.clear();
    this.#cutChance.clear();
  }

  async #during(forMs: number, begin: () => void, end: () => void): Promise<void> {
    begin();
    this.#undo.push(end);
    await sleep(this.world.scheduler, forMs);
    const at = this.#undo.indexOf(end);
    if (at >= 0) this.#undo.splice(at, 1);
    end();
  }

  /** Called when a node asks the store for a lease. */
  leaseAsked(): void {
    this.#leaseAsked?.();
  }

  /** The store is there for as long as a call or two take, or until somebody who lost his lease asks for one. */
  async #storeIsBack(forMs: number): Promise<void> {
    const { scheduler } = this.world;
    if (forMs > 1.5) return sleep(scheduler, forMs);
    await new Promise<void>((resolve) => {
      const timer = scheduler.after(100 * forMs, resolve);
      this.#leaseAsked = () => {
        timer.cancel();
        resolve();
      };
    });
    this.#leaseAsked = null;
  }

  #withoutStore(forMs: number): Promise<void> {
    const { store } = this.world;
    return this.#during(
      forMs,
      () => store.setAvailable(false),
      () => store.setAvailable(true),
    );
  }

  #pair(): [number, number] {
    const a = 1 + below(this.random, this.world.plan.nodeCount);
    const b = 1 + below(this.random, this.world.plan.nodeCount - 1);
    return [a, b >= a ? b + 1 : b];
  }

  #both(map: Map<string, number>, a: number, b: number, value: number | null): void {
    for (const pair of [`n${a}>n${b}`, `n${b}>n${a}`])
      if (value === null) map.delete(pair);
      else map.set(pair, value);
  }

  async #untilAllUp(): Promise<void> {
    while (!this.world.allUp) await sleep(this.world.scheduler, 5);
  }

  /** Or the run is at its end, which waits for it as well. */
  async #copiesUp(): Promise<void> {
    while (!this.world.copiesUp) await sleep(this.world.scheduler, 20);
  }

  /** Nobody else is on the way out; from now on somebody is, until `#untilBack`. */
  async #alone(): Promise<void> {
    while (this.#taken || !this.world.allUp) await sleep(this.world.scheduler, 5);
    this.#taken = true;
  }

  async #untilBack(): Promise<void> {
    await this.#untilAllUp();
    this.#taken = false;
  }

  async #victim(fits: (life: SimNode) => boolean = () => true): Promise<SimNode> {
    await this.#alone();
    return pick(this.random, this.world.up.filter(fits));
  }
}
