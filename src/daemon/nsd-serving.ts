import type { ClusterView, NsdRecord, NsdTarget } from '../cluster/membership-api.js';
import type { MembershipRuntime } from '../cluster/membership-runtime.js';
import type { Clock, Timer } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { type Deferred, deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import type { NodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Fabric, IncomingMessage } from '../fabric/fabric.js';
import type { NsdServer } from '../nsd/nsd-server.js';
import type { NsdStore } from '../nsd/nsd-store.js';
import { type ServingEffect, type ServingEvent, ServingMachine } from '../nsd/serving-machine.js';
import { MessageType } from '../protocol/message-types.js';
import { decodeNsdMove, encodeNsdMove, type NsdMove } from '../protocol/nsd-serving-messages.js';
import type { NsdPath } from './open-stores.js';

/**
 * Which of this node's NSDs it serves now: carries out what the serving machines say (S4), one machine for each path that it has.
 *
 * Owns the stores from `start` on. Fault model: the store, the other servers and the target may fail or not answer; the machines ask again.
 */
export interface TargetPort {
  /**
   * Shuts one server's subsystem for good: its namespace is disabled, which waits for the commands that are there, then it is unlinked from its
   * ports and loses its host. Resolves when nothing that came that way can land any more. May be called again.
   */
  shutOut(subsystem: string): Promise<void>;
}

export interface NsdServingParts {
  readonly membership: MembershipRuntime;
  readonly fabric: Fabric;
  readonly server: NsdServer | null;
  readonly paths: readonly NsdPath[];
  readonly target: TargetPort;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
}

const RETRY_MS = 250;
const START_TIMEOUT_MS = 30_000;
const RELEASE_TIMEOUT_MS = 5_000;
const SHUT_OUT_TIMEOUT_MS = 30_000;
/** Others that wait to hear that this node has let go of one NSD. */
const RELEASES_MAX = 16;

interface Served {
  readonly path: NsdPath;
  readonly machine: ServingMachine;
  readonly releases: { readonly generation: number; readonly done: Deferred<void> }[];
  readonly left: Deferred<void>;
  timer: Timer | null;
}

export class NsdServing {
  readonly #parts: NsdServingParts;
  readonly #served = new Map<string, Served>();
  readonly #watchers = new Set<() => void>();
  #unsubscribe: (() => void) | null = null;
  #stopped = false;

  constructor(parts: NsdServingParts) {
    this.#parts = parts;
    const { fabric, membership } = parts;
    for (const path of parts.paths) {
      const machine = new ServingMachine(membership.self.nodeId, { retryMs: RETRY_MS }, false);
      this.#served.set(path.uuid, { path, machine, releases: [], left: deferred(), timer: null });
    }
    fabric.handleRequests(MessageType.nsdRelease, (message) => this.#releaseAsked(message));
    fabric.handleRequests(MessageType.nsdShutOut, (message) => this.#shutOutAsked(message));
  }

  /** Those that are open, served or not. */
  get stores(): readonly NsdStore[] {
    return [...this.#served.values()].flatMap(({ path }) => path.store ?? []);
  }

  /** As a member. Says in the store that this node has these paths; resolves when each NSD is served, here or elsewhere. */
  async start(): Promise<void> {
    const { membership } = this.#parts;
    for (const { path } of this.#served.values()) await this.#enter(path);
    this.#unsubscribe = membership.onChange((view) => this.#viewChanged(view));
    this.#viewChanged(membership.view);
    const waiting = (): Served | undefined => [...this.#served.values()].find(({ machine }) => !machine.settled);
    await this.#until(
      () => waiting() === undefined,
      START_TIMEOUT_MS,
      () =>
        new FsError('nsdUnavailable', {
          op: 'nsd.start',
          object: `nsd ${waiting()?.path.uuid}`,
          detail: 'it can be opened, but its record in the store does not come back, or it can not be opened again',
        }),
    );
    // Opened to see what they are; another node serves them.
    for (const { path, machine } of this.#served.values()) if (!machine.serves) await path.close();
  }

  async #enter(path: NsdPath): Promise<void> {
    const { self } = this.#parts.membership;
    const { header, lengthBytes } = path;
    await this.#parts.membership.updateNsd(path.uuid, (record) => {
      const targets: Record<string, NsdTarget> = { ...record?.targets };
      delete targets[self.nodeId];
      if (path.target !== null) targets[self.nodeId] = path.target;
      return {
        uuid: path.uuid,
        name: header.name,
        fsUuid: record?.fsUuid ?? header.fsUuid,
        failureGroup: header.failureGroup,
        servers: [...new Set([...(record?.servers ?? []), self.nodeId])],
        serving: record === null ? self.nodeId : record.serving,
        moving: record?.moving ?? null,
        generation: record?.generation ?? 1,
        targets,
        lengthBytes,
      };
    });
  }

  /**
   * Moves an NSD to another of its servers, on an operator's order; resolves when that one serves it.
   * @throws {FsError} notFound, invalidArgument (not one of its servers, or not in the cluster); deadlinePassed, saying what it waits for: the
   * move itself goes on.
   */
  async takeover(uuid: string, to: NodeId, timeoutMs: number): Promise<void> {
    const { membership, logger } = this.#parts;
    const refuse = (detail: string) =>
      new FsError('invalidArgument', { op: 'nsd.takeover', object: `nsd ${uuid}`, detail });
    await membership.updateNsd(uuid, (record) => {
      if (record === null) throw new FsError('notFound', { op: 'nsd.takeover', object: `nsd ${uuid}` });
      if (!record.servers.includes(to)) throw refuse(`node ${to} has no path to it`);
      if (!membership.view.nodes.has(to)) throw refuse(`node ${to} is not in the cluster`);
      if (record.serving === to || record.moving?.to === to) return null;
      const from = record.moving?.from ?? record.serving;
      const generation = record.generation + 1;
      if (from === null) return { ...record, serving: to, moving: null, generation };
      return { ...record, serving: null, moving: { from, to }, generation };
    });
    logger.info({ nsd: uuid, to }, 'an NSD is moved to another server');
    const here = to === membership.self.nodeId ? this.#served.get(uuid) : undefined;
    const there = (): boolean =>
      membership.view.nsds.get(uuid)?.serving === to && (here === undefined || here.machine.serves);
    await this.#until(there, timeoutMs, () => {
      const from = membership.view.nsds.get(uuid)?.moving?.from;
      const target = from === undefined ? undefined : membership.view.nsds.get(uuid)?.targets[from];
      const detail =
        target === undefined
          ? `node ${from} has not answered that it lets go of it, and its path has no target to be shut at`
          : `node ${from} is not shut out yet: by itself, or at the target on node ${target.nodeId}`;
      return new FsError('deadlinePassed', {
        op: 'nsd.takeover',
        object: `nsd ${uuid}`,
        detail: `${detail}; the move goes on`,
      });
    });
  }

  /** In good order: what others can serve is given up. */
  async leave(timeoutMs: number): Promise<void> {
    if (this.#stopped) return;
    for (const served of this.#served.values()) this.#step(served, { type: 'leave' });
    const gone = Promise.all([...this.#served.values()].map(({ left }) => left.promise));
    const late = deferred<void>();
    const timer = this.#parts.clock.after(timeoutMs, () => late.resolve());
    await Promise.race([gone, late.promise]);
    timer.cancel();
  }

  /** At once: nothing is served from here on. The paths are their maker's to close. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#unsubscribe?.();
    for (const { path, timer, releases } of this.#served.values()) {
      timer?.cancel();
      this.#parts.server?.unexport(path.uuid);
      for (const { done } of releases)
        done.reject(new FsError('closed', { op: 'nsd.release', object: `nsd ${path.uuid}` }));
    }
  }

  // Events

  #viewChanged(view: ClusterView): void {
    const inView = new Set(view.nodes.keys());
    for (const served of this.#served.values()) {
      const record = view.nsds.get(served.path.uuid);
      if (record !== undefined) this.#step(served, { type: 'record', record, inView });
    }
    for (const watcher of [...this.#watchers]) watcher();
  }

  #releaseAsked(message: IncomingMessage): Promise<Uint8Array> {
    const move = decodeNsdMove(message.body);
    const served = this.#served.get(move.nsd);
    const refuse = (detail: string) =>
      new FsError('nsdUnavailable', { op: 'nsd.release', object: `nsd ${move.nsd}`, detail });
    // A life without a path to it has never had the lock on the device, and can't know what an older one left under way there.
    if (served === undefined || move.server !== this.#parts.membership.self.nodeId)
      throw refuse('this node has no path to it');
    if (this.#stopped || served.releases.length >= RELEASES_MAX) throw refuse('this node is ending');
    const done = deferred<void>();
    served.releases.push({ generation: move.generation, done });
    this.#step(served, { type: 'releaseAsked', generation: move.generation });
    return done.promise.then(() => NOTHING);
  }

  async #shutOutAsked(message: IncomingMessage): Promise<Uint8Array> {
    const { membership, target, logger, counters } = this.#parts;
    const move = decodeNsdMove(message.body);
    const object = `nsd ${move.nsd}, server ${move.server}`;
    const record = membership.view.nsds.get(move.nsd);
    if (record === undefined || record.moving?.from !== move.server || record.generation !== move.generation)
      throw new FsError('staleEpoch', {
        op: 'nsd.shutOut',
        object,
        detail: 'there is no such move, as far as this node knows',
      });
    const entry = record.targets[move.server];
    if (entry === undefined || entry.nodeId !== membership.self.nodeId)
      throw new FsError('notFound', { op: 'nsd.shutOut', object, detail: 'its target is not on this node' });
    logger.warn(
      { nsd: move.nsd, server: move.server, subsystem: entry.subsystem },
      'a server is shut out at the target',
    );
    await target.shutOut(entry.subsystem);
    counters.add('nsd.shutOuts');
    return NOTHING;
  }

  #step(served: Served, event: ServingEvent): void {
    if (this.#stopped) return;
    const { clock } = this.#parts;
    served.timer?.cancel();
    served.timer = null;
    for (const effect of served.machine.step(event, clock.nowMs())) this.#carryOut(served, effect);
    for (const watcher of [...this.#watchers]) watcher();
  }

  // Effects

  #carryOut(served: Served, effect: ServingEffect): void {
    const { path } = served;
    const { counters, clock } = this.#parts;
    switch (effect.type) {
      case 'open':
        this.#answer(served, 'opened', this.#open(path));
        return;
      case 'close':
        this.#parts.server?.unexport(path.uuid);
        this.#answer(served, 'closed', path.close());
        return;
      case 'swap':
        this.#answer(served, 'swapped', this.#swap(path.uuid, effect));
        return;
      case 'askRelease': {
        const { of, generation } = effect;
        this.#proof(
          served,
          'released',
          generation,
          this.#request(MessageType.nsdRelease, of, { nsd: path.uuid, server: of, generation }, RELEASE_TIMEOUT_MS),
        );
        return;
      }
      case 'shutOut':
        this.#proof(served, 'shutOut', effect.generation, this.#shutOut(path.uuid, effect.of, effect.generation));
        return;
      case 'answerRelease':
        for (const one of served.releases.filter(({ generation }) => generation <= effect.generation)) {
          served.releases.splice(served.releases.indexOf(one), 1);
          one.done.resolve();
        }
        counters.add('nsd.released');
        return;
      case 'left':
        served.left.resolve();
        return;
      case 'wake':
        served.timer = clock.after(Math.max(0, effect.atMs - clock.nowMs()), () =>
          this.#step(served, { type: 'tick' }),
        );
    }
  }

  #answer(served: Served, type: 'opened' | 'closed' | 'swapped', work: Promise<void>): void {
    work.then(
      () => this.#step(served, { type, done: true }),
      (error: unknown) => {
        this.#parts.logger.warn({ nsd: served.path.uuid, error: String(error) }, `NSD not ${type}; tried again`);
        this.#step(served, { type, done: false });
      },
    );
  }

  #proof(served: Served, type: 'released' | 'shutOut', generation: number, work: Promise<void>): void {
    work.then(
      () => this.#step(served, { type, generation, done: true }),
      (error: unknown) => {
        this.#parts.counters.add('nsd.takeoverWaits');
        this.#parts.logger.warn({ nsd: served.path.uuid, error: String(error) }, `a takeover waits: not ${type}`);
        this.#step(served, { type, generation, done: false });
      },
    );
  }

  async #open(path: NsdPath): Promise<void> {
    const { server, membership, counters, logger } = this.#parts;
    const store = await path.open();
    if (this.#stopped) return path.close();
    server?.export(store, membership.view.epoch);
    counters.add('nsd.servingBegun');
    logger.info({ nsd: path.uuid, path: path.config.path }, 'this node serves the NSD');
  }

  async #swap(uuid: string, { expected, next }: Extract<ServingEffect, { type: 'swap' }>): Promise<void> {
    let current: NsdRecord | null = null;
    await this.#parts.membership.updateNsd(uuid, (record) => {
      current = record;
      return record !== null && record.generation === expected ? { ...record, ...next } : null;
    });
    const seen = current as NsdRecord | null;
    if (seen?.generation === expected) return;
    throw new FsError('busy', {
      op: 'nsd.serving',
      object: `nsd ${uuid}`,
      detail: `its record is of generation ${seen?.generation} by now`,
    });
  }

  async #shutOut(uuid: string, server: NodeId, generation: number): Promise<void> {
    const target = this.#parts.membership.view.nsds.get(uuid)?.targets[server];
    if (target === undefined)
      throw new FsError('notSupported', {
        op: 'nsd.shutOut',
        object: `nsd ${uuid}`,
        detail: `the path of node ${server} has no target where it could be shut; it has to answer itself`,
      });
    await this.#request(MessageType.nsdShutOut, target.nodeId, { nsd: uuid, server, generation }, SHUT_OUT_TIMEOUT_MS);
  }

  async #request(type: MessageType, to: NodeId, move: NsdMove, timeoutMs: number): Promise<void> {
    await this.#parts.fabric.peer(to).request(type, encodeNsdMove(move), { timeoutMs });
  }

  /** Resolves once `there` is true; asked after every step and every view. */
  async #until(there: () => boolean, timeoutMs: number, late: () => FsError): Promise<void> {
    if (there()) return;
    const done = deferred<void>();
    const look = (): void => {
      if (there()) done.resolve();
    };
    this.#watchers.add(look);
    const timer = this.#parts.clock.after(timeoutMs, () => done.reject(late()));
    try {
      await done.promise;
    } finally {
      timer.cancel();
      this.#watchers.delete(look);
    }
  }
}

const NOTHING = new Uint8Array(0);
