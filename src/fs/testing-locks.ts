/** Lock clients for tests: the real machines of a server and its nodes in one process, whose messages take no time. */
import { FsError } from '../common/errors.js';
import { epoch, incarnation, nodeId } from '../common/ids.js';
import type { LockClientApi, LockOptions, LockWanted } from '../token-manager/locks/lock-client-api.js';
import type { LockClientEvent, LockOp } from '../token-manager/locks/lock-client-events.js';
import { LockClientMachine } from '../token-manager/locks/lock-client-machine.js';
import { type LockServerEvent, LockServerMachine } from '../token-manager/locks/lock-server-machine.js';
import { type Lock, type LockOwner, LockType } from '../token-manager/locks/lock-table.js';

const SERVER = { nodeId: nodeId(1000), incarnation: incarnation(1) };

export class TestLockServer {
  readonly #machine = new LockServerMachine({ self: SERVER, count: () => undefined });
  readonly clients: TestLocks[] = [];
  #epoch = 0;
  messages = 0;

  join(client: TestLocks): void {
    this.clients.push(client);
    this.#view();
  }
  /** Dead, and fenced. */
  bury(client: TestLocks): void {
    this.clients.splice(this.clients.indexOf(client), 1);
    this.#view();
    this.step({ type: 'fallen', ...client.identity, releaseHeld: true });
  }
  #view(): void {
    const view = {
      epoch: epoch(++this.#epoch),
      servers: [SERVER],
      nodes: this.clients.map(({ identity }) => identity),
    };
    this.step({ type: 'view', view });
    for (const client of this.clients) client.step({ type: 'view', epoch: view.epoch, servers: view.servers });
  }
  step(event: LockServerEvent): void {
    for (const { to, message } of this.#machine.step(event, 0)) {
      this.messages++;
      const client = this.clients.find(({ identity }) => identity.nodeId === to.nodeId);
      client?.step({ type: 'message', from: SERVER, message });
    }
  }
}

export class TestLocks implements LockClientApi {
  readonly identity;
  readonly #server: TestLockServer;
  readonly #machine: LockClientMachine;
  readonly #waiting = new Map<number, { resolve(blocker: Lock | null): void; reject(error: unknown): void }>();
  readonly #events: LockClientEvent[] = [];
  #running = false;
  #lastId = 0;
  #lastOwner = 0;

  constructor(server: TestLockServer, node: number, life: number) {
    this.identity = { nodeId: nodeId(node), incarnation: incarnation(life) };
    this.#server = server;
    this.#machine = new LockClientMachine({ self: this.identity, count: () => undefined });
    server.join(this);
  }

  newOwner(pid: number, isProcess: boolean): LockOwner {
    const { nodeId: node, incarnation: life } = this.identity;
    return { node, incarnation: life, id: ++this.#lastOwner, pid, isProcess };
  }
  async lock(wanted: LockWanted, type: LockType, wait: boolean, options?: LockOptions): Promise<void> {
    await this.#do('lock', wanted, type, wait, options);
  }
  async unlock(wanted: LockWanted, options?: LockOptions): Promise<void> {
    await this.#do('unlock', wanted, LockType.write, false, options);
  }
  test(wanted: LockWanted, type: LockType, options?: LockOptions): Promise<Lock | null> {
    return this.#do('test', wanted, type, false, options);
  }

  #do(
    kind: LockOp['kind'],
    wanted: LockWanted,
    type: LockType,
    wait: boolean,
    options: LockOptions | undefined,
  ): Promise<Lock | null> {
    const opId = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(opId, { resolve, reject });
      this.step({ type: 'op', op: { opId, kind, ...wanted, type, wait, deadlineAtMs: Number.POSITIVE_INFINITY } });
      options?.signal?.addEventListener('abort', () => this.step({ type: 'abort', opId }), { once: true });
    });
  }

  step(event: LockClientEvent): void {
    this.#events.push(event);
    if (this.#running) return;
    this.#running = true;
    for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
      for (const effect of this.#machine.step(next, 0)) {
        if (effect.type === 'send') {
          this.#server.messages++;
          this.#server.step({ type: 'message', from: this.identity, message: effect.message });
          continue;
        }
        const waiting = this.#waiting.get(effect.opId);
        this.#waiting.delete(effect.opId);
        if (effect.type === 'done') waiting?.resolve(effect.blocker);
        else waiting?.reject(new FsError(effect.reason, { op: 'lock' }));
      }
    }
    this.#running = false;
  }
}
