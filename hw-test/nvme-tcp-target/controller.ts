import { type Command, failed, type Outcome, STATUS, succeeded } from './command.js';
import {
  EVENT_REQUESTS_MAX,
  IDENTIFY_BYTES,
  identifyController,
  identifyNamespace,
  NVME_VERSION,
  namespaceDescriptors,
  namespaceList,
  QUEUE_ENTRIES_MAX,
} from './identify.js';
import type { Namespace } from './namespace.js';
import type { Queue } from './queue.js';

const ADMIN = {
  getLogPage: 0x02,
  identify: 0x06,
  abort: 0x08,
  setFeatures: 0x09,
  getFeatures: 0x0a,
  asynchronousEvent: 0x0c,
  keepAlive: 0x18,
} as const;
const FEATURE = { volatileWriteCache: 0x06, queueCount: 0x07, asynchronousEvents: 0x0b, keepAlive: 0x0f } as const;
const CNS = {
  namespace: 0,
  controller: 1,
  namespaceList: 2,
  namespaceDescriptors: 3,
  commandSetController: 6,
} as const;
const LOG = { errors: 0x01, smart: 0x02, firmware: 0x03 } as const;
const PROPERTY = { capabilities: 0x00, version: 0x08, configuration: 0x14, status: 0x1c } as const;
const IO_QUEUES_MAX = 4;
const ALL_NAMESPACES = 0xffffffff;
/** CAP: entries, contiguous queues, ready within 5 s, the NVM command set. */
const CAPABILITIES = BigInt(QUEUE_ENTRIES_MAX - 1) | (1n << 16n) | (10n << 24n) | (1n << 37n);

/** Where a host's association ends; its admin queue is the first of its queues, and all go together. */
export class Controller {
  readonly queues = new Set<Queue>();
  readonly #features = new Map<number, number>();
  #configuration = 0;
  #status = 0;
  #eventRequests = 0;
  #keepAlive: NodeJS.Timeout | undefined;

  constructor(
    readonly id: number,
    readonly subsystemNqn: string,
    readonly hostNqn: string,
    /** In hex. */
    readonly hostId: string,
    private readonly namespace: Namespace,
    private keepAliveMs: number,
  ) {
    this.#watch();
  }

  get ready(): boolean {
    return (this.#status & 1) !== 0;
  }

  close(): void {
    clearTimeout(this.#keepAlive);
    for (const queue of [...this.queues]) queue.close();
  }

  property(command: Command, set: boolean): Outcome {
    const offset = command.dword(11);
    if (set) {
      if (offset !== PROPERTY.configuration) return failed(STATUS.invalidField);
      this.#configure(command.dword(12));
      return succeeded();
    }
    switch (offset) {
      case PROPERTY.capabilities:
        return succeeded(CAPABILITIES);
      case PROPERTY.version:
        return succeeded(BigInt(NVME_VERSION));
      case PROPERTY.configuration:
        return succeeded(BigInt(this.#configuration));
      case PROPERTY.status:
        return succeeded(BigInt(this.#status));
      default:
        return failed(STATUS.invalidField);
    }
  }

  /** CC.EN brings CSTS.RDY, CC.SHN brings CSTS.SHST. */
  #configure(value: number): void {
    this.#configuration = value;
    this.#status = (value & 1) | ((value >>> 14) & 3 ? 2 << 2 : 0);
  }

  /** Null where an answer comes later or never. */
  admin(command: Command): Outcome | null {
    this.#watch();
    switch (command.opcode) {
      case ADMIN.identify:
        return this.#identify(command);
      case ADMIN.getLogPage:
        return this.#log(command);
      case ADMIN.setFeatures:
        return this.#setFeatures(command);
      case ADMIN.getFeatures:
        return this.#getFeatures(command);
      case ADMIN.asynchronousEvent:
        return ++this.#eventRequests > EVENT_REQUESTS_MAX ? failed(STATUS.eventLimit) : null;
      case ADMIN.keepAlive:
        return succeeded();
      case ADMIN.abort:
        // Bit 0: it was not aborted.
        return succeeded(1n);
      default:
        return failed(STATUS.invalidOpcode);
    }
  }

  #identify(command: Command): Outcome {
    const { nsid } = command;
    const page = (data: Uint8Array): Outcome => ({ status: STATUS.success, data });
    switch (command.dword(10) & 0xff) {
      case CNS.controller:
        return page(identifyController(this.subsystemNqn, this.id));
      case CNS.namespace:
        if (nsid !== 1 && nsid !== ALL_NAMESPACES) return failed(STATUS.invalidNamespace);
        return page(identifyNamespace(this.namespace.blockCount, this.namespace.blockBytes));
      case CNS.namespaceList:
        return page(namespaceList(nsid));
      case CNS.namespaceDescriptors:
        return nsid === 1 ? page(namespaceDescriptors(this.subsystemNqn)) : failed(STATUS.invalidNamespace);
      case CNS.commandSetController:
        // No limits of its own.
        return page(new Uint8Array(IDENTIFY_BYTES));
      default:
        return failed(STATUS.invalidField);
    }
  }

  #log(command: Command): Outcome {
    const page = command.dword(10) & 0xff;
    if (!(Object.values(LOG) as number[]).includes(page)) return failed(STATUS.invalidLogPage);
    const data = new Uint8Array(command.dataBytes);
    if (page === LOG.smart && data.byteLength > 3) new DataView(data.buffer).setUint16(1, 300, true);
    if (page === LOG.firmware && data.byteLength > 16) data.set([1, 0, 0, 0, 0, 0, 0, 0, 0x31]);
    return { status: STATUS.success, data };
  }

  #setFeatures(command: Command): Outcome {
    const value = command.dword(11);
    switch (command.dword(10) & 0xff) {
      case FEATURE.queueCount: {
        // Both counts are zero-based.
        const granted = Math.min(value & 0xffff, value >>> 16, IO_QUEUES_MAX - 1);
        this.#features.set(FEATURE.queueCount, granted * 0x10001);
        return succeeded(BigInt(granted * 0x10001));
      }
      case FEATURE.keepAlive:
        this.keepAliveMs = value;
        this.#watch();
        return succeeded();
      case FEATURE.asynchronousEvents:
        this.#features.set(FEATURE.asynchronousEvents, value);
        return succeeded();
      default:
        return failed(STATUS.invalidField);
    }
  }

  #getFeatures(command: Command): Outcome {
    const feature = command.dword(10) & 0xff;
    if (feature === FEATURE.keepAlive) return succeeded(BigInt(this.keepAliveMs));
    if (feature === FEATURE.volatileWriteCache) return succeeded(1n);
    const value = this.#features.get(feature);
    return value === undefined ? failed(STATUS.invalidField) : succeeded(BigInt(value));
  }

  /** Section 3.9: a host that is silent for longer loses its association. */
  #watch(): void {
    clearTimeout(this.#keepAlive);
    if (this.keepAliveMs > 0) this.#keepAlive = setTimeout(() => this.close(), this.keepAliveMs);
  }
}
