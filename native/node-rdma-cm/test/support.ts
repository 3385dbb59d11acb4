import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import {
  allocateMemory,
  type Completion,
  type CompletionQueue,
  type ConnectionId,
  Device,
  EventChannel,
  listDevices,
  type MemoryRegion,
  type ProtectionDomain,
  type QueuePair,
  type QueuePairOptions,
} from '../lib/index.js';

export const ADDRESS = process.env['HOLDFAST_HW_ADDRESS'] ?? '127.0.0.1';
export const MIB = 1 << 20;
export const PEER_PROGRAM = fileURLToPath(new URL('peer.mjs', import.meta.url));

/** A device with what a connection takes; completions are awaited by the id of their request. */
export class Setup {
  readonly device: Device;
  readonly domain: ProtectionDomain;
  readonly channel = new EventChannel();
  readonly memory: ArrayBuffer;
  readonly bytes: Uint8Array;
  readonly region: MemoryRegion;

  constructor(lengthBytes = 4 * MIB) {
    this.device = Device.open(process.env['HOLDFAST_HW_RDMA'] ?? (listDevices()[0]?.name as string));
    this.domain = this.device.createProtectionDomain();
    this.memory = allocateMemory(lengthBytes);
    this.bytes = new Uint8Array(this.memory);
    this.region = this.domain.registerMemory(this.memory, {
      localWrite: true,
      remoteRead: true,
      remoteWrite: true,
      remoteAtomic: true,
      windowBind: true,
    });
  }

  /** Connects to a listener. */
  async connect(
    port: number,
    options: Partial<QueuePairOptions> & {
      host?: string;
      privateData?: Uint8Array;
      rnrRetryCount?: number;
      prepare?: (end: End) => void;
    } = {},
  ): Promise<End> {
    const id = this.channel.createId();
    try {
      await id.resolveAddress(options.host ?? ADDRESS, port);
      await id.resolveRoute();
      const end = new End(this, id, options);
      options.prepare?.(end);
      end.established = await id.connect({
        queuePair: end.pair,
        ...(options.privateData === undefined ? {} : { privateData: options.privateData }),
        ...(options.rnrRetryCount === undefined ? {} : { rnrRetryCount: options.rnrRetryCount }),
      });
      return end;
    } catch (error) {
      id.close();
      throw error;
    }
  }

  /** Both ends of a connection, here. */
  async pair(
    options: Partial<QueuePairOptions> & { rnrRetryCount?: number } = {},
    prepare: (accepting: End) => void = () => {},
  ): Promise<[End, End]> {
    const listener = this.channel.createId();
    listener.bind(ADDRESS, 0);
    const accepted = new Promise<End>((resolve, reject) => {
      listener.onEvent = (event) => {
        if (event.type !== 'connectRequest') return;
        const end = new End(this, event.request.id, options);
        prepare(end);
        end.id.accept({ queuePair: end.pair }).then((established) => {
          end.established = established;
          resolve(end);
        }, reject);
      };
    });
    listener.listen();
    const connecting = await this.connect((listener.localAddress as { port: number }).port, options);
    const accepting = await accepted;
    listener.close();
    return [connecting, accepting];
  }

  close(): void {
    this.channel.close();
    this.device.close();
  }
}

export class End {
  readonly id: ConnectionId;
  readonly queue: CompletionQueue;
  readonly pair: QueuePair;
  established: { privateData: Uint8Array; responderResources: number; initiatorDepth: number } | null = null;
  readonly events: string[] = [];
  /** Completions that nobody has awaited yet. */
  readonly arrived: Completion[] = [];
  #waiting: { test: (completion: Completion) => boolean; resolve: (completion: Completion) => void }[] = [];

  constructor(setup: Setup, id: ConnectionId, options: Partial<QueuePairOptions>) {
    this.id = id;
    this.queue = setup.device.createCompletionQueue({
      depth: 1024,
      onCompletions: (batch) => {
        for (const completion of batch) {
          const found = this.#waiting.findIndex(({ test }) => test(completion));
          if (found < 0) this.arrived.push(completion);
          else this.#waiting.splice(found, 1)[0]?.resolve(completion);
        }
      },
    });
    this.pair = id.createQueuePair({ protectionDomain: setup.domain, sendCompletions: this.queue, ...options });
    id.onEvent = ({ type }) => this.events.push(type);
  }

  completion(id: number): Promise<Completion> {
    return this.completionThat((completion) => completion.id === id);
  }
  completionThat(test: (completion: Completion) => boolean): Promise<Completion> {
    const found = this.arrived.findIndex(test);
    if (found >= 0) return Promise.resolve(this.arrived.splice(found, 1)[0] as Completion);
    return new Promise((resolve) => this.#waiting.push({ test, resolve }));
  }
  /** Queued by the caller; posted here, and awaited. */
  async post(id: number): Promise<Completion> {
    this.pair.post();
    return await this.completion(id);
  }
  close(): void {
    this.id.close();
    this.queue.close();
  }
}

/** Talks to peer.mjs. */
export class PeerClient {
  readonly end: End;
  readonly setup: Setup;
  readonly address: number;
  readonly key: number;
  #nextId = 1_000_000;

  constructor(setup: Setup, end: End) {
    this.setup = setup;
    this.end = end;
    const { privateData } = end.established as { privateData: Uint8Array };
    const view = new DataView(privateData.buffer, privateData.byteOffset);
    this.address = view.getFloat64(0, true);
    this.key = view.getUint32(8, true);
  }

  static async connect(setup: Setup, port: number, options: Parameters<Setup['connect']>[1] = {}): Promise<PeerClient> {
    return new PeerClient(setup, await setup.connect(port, options));
  }

  /** The first 2 KiB of the memory are its message buffers. */
  async ask(
    question: Record<string, unknown>,
    { invalidateKey, immediate, pieces = false }: { invalidateKey?: number; immediate?: number; pieces?: boolean } = {},
  ): Promise<Record<string, unknown>> {
    const { pair } = this.end;
    const { region, bytes, memory } = this.setup;
    const id = this.#nextId++;
    pair.receive(region.segment(1024, 1024), id);
    const message = Buffer.from(JSON.stringify(question));
    bytes.set(message, 0);
    const segment = region.segment(0, message.length);
    if (invalidateKey !== undefined) pair.sendWithInvalidate(segment, invalidateKey, { signalled: false });
    else if (immediate !== undefined) pair.sendWithImmediate(segment, immediate, { signalled: false });
    else if (pieces)
      pair.send([region.segment(0, 5), region.segment(5, message.length - 5)], { signalled: false, inline: true });
    else pair.send(segment, { signalled: false });
    pair.post();
    const answer = await this.end.completion(id);
    if (answer.status !== 'success') throw new Error(`no answer: ${answer.status}`);
    return JSON.parse(Buffer.from(memory, 1024, answer.lengthBytes).toString()) as Record<string, unknown>;
  }
}

/** Starts peer.mjs, listening. */
export async function startPeer(port: number): Promise<ChildProcess> {
  const child = spawn(process.execPath, [PEER_PROGRAM, ADDRESS, String(port)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await outputLine(child, /listening/);
  return child;
}

/** Everything the program has printed, once that matches. */
export function outputLine(child: ChildProcess, pattern: RegExp): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    child.stdout?.on('data', (chunk) => {
      text += String(chunk);
      if (pattern.test(text)) resolve(text);
    });
    child.once('close', () => reject(new Error(`the program ended without ${pattern}: ${text}`)));
  });
}

export async function ended(child: ChildProcess): Promise<number | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  return child.exitCode;
}
