import net from 'node:net';
import { type Command, failed, OPCODE, type Outcome, STATUS, succeeded } from './command.js';
import { Controller } from './controller.js';
import { Namespace } from './namespace.js';
import { Queue } from './queue.js';

/**
 * An NVMe/TCP target for tests, in this process: one namespace in memory, with reservations, shown by several subsystems so that one
 * machine can be several hosts of it (Linux joins the controllers of one subsystem into one device). And faults on order: commands held back,
 * refused, a loss of power. NVM Express Base Specification 2.0, section 3.3.2 (queues over fabrics) and section 6 (Connect, Property Get and Set).
 *
 * Left out: discovery, authentication, digests, asymmetric access, asynchronous events (requests for them are kept, none ever happens).
 */
export interface TargetOptions {
  readonly address: string;
  readonly subsystemNqns: readonly string[];
  readonly lengthBytes: number;
  readonly blockBytes: number;
}

/** Which commands a fault is about: of one host, or of all. */
export interface FaultSelector {
  readonly set: 'admin' | 'io';
  readonly opcode: number;
  readonly hostNqn: string | null;
}

type Fault = FaultSelector &
  ({ readonly kind: 'hold' } | { readonly kind: 'refuse'; readonly status: number; left: number });

interface HeldCommand {
  readonly queue: Queue;
  readonly command: Command;
}

const FABRICS = { propertySet: 0x00, connect: 0x01, propertyGet: 0x04, disconnect: 0x08 } as const;
const CONNECT_DATA_BYTES = 1024;
const NQN_BYTES = 256;
const ANY_CONTROLLER = 0xffff;

export class Target {
  readonly #namespace: Namespace;
  readonly #controllers = new Map<number, Controller>();
  readonly #queues = new Set<Queue>();
  readonly #server: net.Server;
  #nextController = 1;
  #faults: Fault[] = [];
  #held: HeldCommand[] = [];

  constructor(
    private readonly options: TargetOptions,
    private readonly heldChanged: (count: number) => void,
    /** A host has all that it needs for I/O, for the first time or again. */
    private readonly hostReady: () => void,
  ) {
    this.#namespace = new Namespace(options.lengthBytes, options.blockBytes);
    this.#server = net.createServer((socket) => {
      const queue = new Queue(
        socket,
        (from, command) => this.#execute(from, command),
        (gone) => this.#forget(gone),
      );
      this.#queues.add(queue);
    });
  }

  listen(): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(0, this.options.address, () => {
        const address = this.#server.address();
        if (typeof address === 'object' && address !== null) resolve(address.port);
        else reject(new Error('listening nowhere'));
      });
    });
  }

  close(): void {
    this.#server.close();
    this.#dropConnections();
  }

  hold(selector: FaultSelector): void {
    this.#faults.push({ ...selector, kind: 'hold' });
  }

  /** `status` as in a completion, without the phase bit; to so many commands. */
  refuse(selector: FaultSelector, status: number, count: number): void {
    this.#faults.push({ ...selector, kind: 'refuse', status, left: count });
  }

  /** No more faults; what was held goes on. */
  heal(): void {
    this.#faults = [];
    const held = this.#held;
    this.#held = [];
    for (const { queue, command } of held) this.#process(queue, command);
    this.heldChanged(0);
  }

  /** Connections and what isn't to survive go, memory stays. */
  powerLoss(): void {
    this.#dropConnections();
    this.#namespace.reservations.powerLoss();
  }

  /** So many hosts more are registrants, under keys from `firstKey` on, as if they had come and gone. */
  enrol(count: number, firstKey: bigint): void {
    for (let index = 0; index < count; index++)
      this.#namespace.reservations.register((index + 1).toString(16).padStart(32, 'e'), {
        action: 0,
        ignoreKey: false,
        type: 0,
        currentKey: 0n,
        otherKey: firstKey + BigInt(index),
        persist: 0,
      });
  }

  contents(offset: number, lengthBytes: number): Uint8Array {
    return Uint8Array.from(this.#namespace.memory.subarray(offset, offset + lengthBytes));
  }

  #dropConnections(): void {
    for (const queue of [...this.#queues]) queue.close();
  }

  #forget(queue: Queue): void {
    this.#queues.delete(queue);
    const { controller } = queue;
    this.#keepHeld((held) => held.queue !== queue);
    if (controller === null) return;
    controller.queues.delete(queue);
    if (queue.id !== 0) return;
    controller.close();
    this.#controllers.delete(controller.id);
  }

  #keepHeld(keep: (held: HeldCommand) => boolean): void {
    const before = this.#held.length;
    this.#held = this.#held.filter(keep);
    if (this.#held.length !== before) this.heldChanged(this.#held.length);
  }

  #execute(queue: Queue, command: Command): void {
    const fault = this.#faultFor(queue, command);
    if (fault?.kind === 'hold') {
      this.#held.push({ queue, command });
      this.heldChanged(this.#held.length);
    } else if (fault?.kind === 'refuse') {
      if (--fault.left === 0) this.#faults = this.#faults.filter((one) => one !== fault);
      queue.answer(command, failed(fault.status));
    } else this.#process(queue, command);
  }

  #faultFor(queue: Queue, command: Command): Fault | undefined {
    if (command.opcode === OPCODE.fabrics) return undefined;
    const set = queue.id === 0 ? 'admin' : 'io';
    const hostNqn = queue.controller?.hostNqn;
    return this.#faults.find(
      (one) => one.set === set && one.opcode === command.opcode && (one.hostNqn === null || one.hostNqn === hostNqn),
    );
  }

  #process(queue: Queue, command: Command): void {
    const outcome = this.#outcome(queue, command);
    if (outcome !== null) queue.answer(command, outcome);
  }

  #outcome(queue: Queue, command: Command): Outcome | null {
    const { controller } = queue;
    if (command.opcode === OPCODE.fabrics) return this.#fabrics(queue, command);
    if (controller === null || !controller.ready) return failed(STATUS.sequenceError);
    if (queue.id === 0) return controller.admin(command);
    return this.#namespace.execute(controller.hostId, command, (hosts) => this.#abort(hosts));
  }

  #abort(hosts: readonly string[]): void {
    const mine = ({ queue }: HeldCommand): boolean => hosts.includes(queue.controller?.hostId ?? '');
    for (const held of this.#held.filter(mine)) held.queue.answer(held.command, failed(STATUS.preemptedAndAborted));
    this.#keepHeld((held) => !mine(held));
  }

  #fabrics(queue: Queue, command: Command): Outcome {
    const { controller } = queue;
    const type = command.fabricsType;
    if (type === FABRICS.connect)
      return controller === null ? this.#connect(queue, command) : failed(STATUS.sequenceError);
    if (controller === null) return failed(STATUS.sequenceError);
    switch (type) {
      case FABRICS.propertyGet:
      case FABRICS.propertySet:
        return queue.id === 0
          ? controller.property(command, type === FABRICS.propertySet)
          : failed(STATUS.invalidField);
      case FABRICS.disconnect:
        return queue.id === 0 ? failed(STATUS.invalidField) : succeeded();
      default:
        return failed(STATUS.invalidField);
    }
  }

  /** Section 6.3: the admin queue makes a controller, the others name it. */
  #connect(queue: Queue, command: Command): Outcome {
    const data = Buffer.from(command.data);
    if (data.length < CONNECT_DATA_BYTES) return failed(STATUS.lengthInvalid);
    const hostId = data.toString('hex', 0, 16);
    const wanted = data.readUInt16LE(16);
    const [subsystemNqn, hostNqn] = [256, 512].map((at) => nqnAt(data, at));
    const id = command.u16(42);
    const entries = command.u16(44) + 1;
    if (!this.options.subsystemNqns.includes(subsystemNqn!) || hostNqn === '' || /^0*$/.test(hostId))
      return failed(STATUS.connectInvalid);
    if (id === 0) {
      if (wanted !== ANY_CONTROLLER) return failed(STATUS.connectInvalid);
      const keepAliveMs = command.dword(12);
      const made = new Controller(
        this.#nextController++,
        subsystemNqn!,
        hostNqn!,
        hostId,
        this.#namespace,
        keepAliveMs,
      );
      this.#controllers.set(made.id, made);
      made.queues.add(queue);
      queue.connected(made, 0, entries);
      return succeeded(BigInt(made.id));
    }
    const known = this.#controllers.get(wanted);
    if (known === undefined || known.hostId !== hostId || known.hostNqn !== hostNqn || !known.ready)
      return failed(STATUS.connectInvalid);
    known.queues.add(queue);
    queue.connected(known, id, entries);
    this.hostReady();
    return succeeded(BigInt(known.id));
  }
}

function nqnAt(data: Buffer, offset: number): string {
  const end = data.indexOf(0, offset);
  return data.toString('utf8', offset, end < 0 || end > offset + NQN_BYTES ? offset + NQN_BYTES : end);
}
