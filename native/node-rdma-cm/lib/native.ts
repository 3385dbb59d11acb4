import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { type MissingPart, RdmaError } from './errors.js';

/** The whole boundary to the addon, typed. Layouts, numbers and names come from src/abi.h, through `abi`. */
export interface NativeAbi {
  /** Name -> number of each operation of a work request. */
  readonly operations: Readonly<Record<string, number>>;
  /** Number -> name, as completions carry them. */
  readonly operationNames: readonly string[];
  readonly statusNames: readonly string[];
  readonly cmEventNames: readonly string[];
  readonly asyncEventNames: readonly string[];
  readonly flags: {
    readonly signalled: number;
    readonly fence: number;
    readonly solicited: number;
    readonly inline: number;
  };
  readonly access: {
    readonly localWrite: number;
    readonly remoteWrite: number;
    readonly remoteRead: number;
    readonly remoteAtomic: number;
    readonly windowBind: number;
    readonly zeroBased: number;
    readonly relaxedOrdering: number;
  };
  /** Byte offsets in a work request. */
  readonly request: {
    readonly bytes: number;
    readonly operation: number;
    readonly flags: number;
    readonly id: number;
    readonly remoteAddress: number;
    readonly remoteKey: number;
    readonly immediate: number;
    readonly compareAdd: number;
    readonly swap: number;
    readonly window: number;
    readonly region: number;
    readonly bindOffset: number;
    readonly bindLength: number;
    readonly bindAccess: number;
    readonly segmentCount: number;
  };
  readonly receive: { readonly bytes: number; readonly id: number; readonly segmentCount: number };
  /** Segments follow their request. */
  readonly segment: {
    readonly bytes: number;
    readonly region: number;
    readonly length: number;
    readonly offset: number;
  };
  readonly completion: {
    readonly bytes: number;
    readonly id: number;
    readonly status: number;
    readonly operation: number;
    readonly queuePair: number;
    readonly length: number;
    readonly flags: number;
    readonly immediate: number;
    readonly invalidatedKey: number;
    readonly vendorError: number;
    readonly hasImmediate: number;
    readonly hasInvalidatedKey: number;
  };
  /** Indexes into a queue pair's shared state, an Uint32Array. */
  readonly state: {
    readonly sendsOutstanding: number;
    readonly receivesOutstanding: number;
    readonly phase: number;
    readonly phaseError: number;
    readonly phaseConnected: number;
  };
  readonly segmentsMax: number;
  readonly queueMax: number;
}

export interface NativePortInfo {
  readonly number: number;
  readonly state: string;
  readonly linkLayer: string;
  readonly activeMtuBytes: number;
  readonly maxMtuBytes: number;
  readonly lid: number;
  readonly maxMessageBytes: number;
  readonly activeSpeed: number;
  readonly activeWidth: number;
  readonly gids: readonly {
    readonly index: number;
    readonly gid: string;
    readonly type: string;
    readonly netdev: string | null;
  }[];
}

export interface NativeClosable {
  /** False when that was done before. Throws with `code` when the device refuses. */
  close(): boolean;
}

export interface NativeDevice extends NativeClosable {
  readonly name: string;
  readonly limits: Readonly<Record<string, number | boolean | string>>;
  ports(): readonly NativePortInfo[];
  createProtectionDomain(): NativeProtectionDomain;
  createCompletionQueue(
    depth: number,
    batchMax: number,
    spinUsMax: number,
    onCompletions: (count: number, errors: number) => void,
  ): NativeCompletionQueue;
}

export interface NativeProtectionDomain extends NativeClosable {
  registerMemory(buffer: ArrayBuffer, offsetBytes: number, lengthBytes: number, access: number): NativeMemoryRegion;
  allocateWindow(): NativeMemoryWindow;
  createSharedReceiveQueue(maxReceive: number, maxSegments: number): NativeReceiveQueue;
}

export interface NativeMemoryRegion extends NativeClosable {
  readonly slot: number;
  readonly address: number;
  readonly localKey: number;
  readonly remoteKey: number;
}

export interface NativeMemoryWindow extends NativeClosable {
  readonly slot: number;
  readonly key: number;
}

export interface NativeReceiveQueue extends NativeClosable {
  readonly receives: ArrayBuffer;
  readonly maxReceive: number;
  readonly maxSegments: number;
  readonly outstanding: number;
  postReceives(count: number): number;
  armLimit(count: number): void;
}

export interface NativeCompletionQueue extends NativeClosable {
  readonly completions: ArrayBuffer;
  readonly depth: number;
  /** Looks for at most so long; the batch is in the arena. Returns count + errors * 65536. */
  poll(maxWaitUs: number): number;
  setReferenced(referenced: boolean): void;
}

export interface NativeQueuePair extends NativeClosable {
  readonly handle: number;
  readonly number: number;
  readonly sends: ArrayBuffer;
  readonly receives: ArrayBuffer;
  readonly state: ArrayBuffer;
  readonly maxSend: number;
  readonly maxReceive: number;
  readonly maxSendSegments: number;
  readonly maxReceiveSegments: number;
  readonly maxInlineBytes: number;
  /** Both return how many were taken over; a refused one throws, with `postedCount`. */
  postSends(count: number): number;
  postReceives(count: number): number;
  moveToError(): void;
  /** Of the oldest signalled request without completion; 0 when there is none. */
  oldestSendAgeMs(): number;
}

export interface NativeCmEvent {
  readonly type: string;
  readonly status: number;
  /** The handle of the id it is for. */
  readonly id: number;
  /** Of a connection request. */
  readonly newId?: NativeConnectionId;
  readonly privateData?: ArrayBuffer;
  readonly responderResources?: number;
  readonly initiatorDepth?: number;
  readonly retryCount?: number;
  readonly rnrRetryCount?: number;
  readonly sharedReceiveQueue?: boolean;
  readonly remoteQueuePairNumber?: number;
}

export interface NativeEventChannel extends NativeClosable {
  createId(): NativeConnectionId;
  setReferenced(referenced: boolean): void;
}

export interface NativeConnectParameters {
  readonly privateData: Uint8Array;
  readonly responderResources: number;
  readonly initiatorDepth: number;
  readonly retryCount: number;
  readonly rnrRetryCount: number;
  readonly minRnrTimer: number;
}

export interface NativeAddress {
  readonly family: 'IPv4' | 'IPv6';
  readonly host: string;
  readonly port: number;
}

export interface NativeConnectionId extends NativeClosable {
  readonly handle: number;
  readonly deviceName: string | null;
  readonly portNumber: number;
  readonly localAddress: NativeAddress | null;
  readonly remoteAddress: NativeAddress | null;
  setOption(name: 'typeOfService' | 'reuseAddress' | 'ackTimeout', value: number): void;
  bind(host: string, port: number): void;
  resolveAddress(sourceHost: string | null, host: string, port: number, timeoutMs: number): void;
  resolveRoute(timeoutMs: number): void;
  listen(backlog: number): void;
  createQueuePair(
    domain: NativeProtectionDomain,
    sendQueue: NativeCompletionQueue,
    receiveQueue: NativeCompletionQueue,
    shared: NativeReceiveQueue | null,
    options: {
      readonly maxSend: number;
      readonly maxReceive: number;
      readonly maxSendSegments: number;
      readonly maxReceiveSegments: number;
      readonly maxInlineBytes: number;
    },
  ): NativeQueuePair;
  connect(queuePair: NativeQueuePair, parameters: NativeConnectParameters): void;
  accept(queuePair: NativeQueuePair, parameters: NativeConnectParameters): void;
  reject(privateData: Uint8Array): void;
  disconnect(): void;
}

export interface NativeAsyncEvent {
  readonly type: string;
  /** What it is about, as far as it is ours: handles of queue pairs; ports by number. */
  readonly queuePair?: number;
  readonly port?: number;
}

export interface NativeAddon {
  readonly abi: NativeAbi;
  /** Empty when there is none. Throws with `code`: ENOSYS without ib_uverbs. */
  listDevices(): readonly {
    readonly name: string;
    readonly nodeGuid: string;
    readonly nodeType: string;
    readonly transport: string;
  }[];
  openDevice(name: string, onAsyncEvent: (event: NativeAsyncEvent) => void): NativeDevice;
  createEventChannel(onEvent: (event: NativeCmEvent) => void): NativeEventChannel;
  /** Memory at a page's boundary, all zeros. */
  allocate(lengthBytes: number): ArrayBuffer;
  /** Whether children may be forked while memory is registered, and how: 'kernel', 'library', 'no'. */
  readonly forkSafety: string;
  /** Verbs objects that are alive in this process: for leak tests. */
  liveObjects(): Readonly<Record<string, number>>;
}

let loaded: NativeAddon | undefined;

/** Loads it at first use, so that importing the package never fails. @throws {RdmaError} that names what is missing. */
export function native(): NativeAddon {
  if (loaded !== undefined) return loaded;
  // The sanitizers' build, for this package's own tests.
  const directory = process.env['HOLDFAST_NATIVE'] === 'asan' ? 'build-asan' : 'build';
  const file = fileURLToPath(new URL(`../${directory}/Release/node_rdma_cm.node`, import.meta.url));
  if (!existsSync(file))
    throw missing(
      'addon',
      `${file} is missing; install librdmacm-dev and libibverbs-dev, then run \`npm rebuild node-rdma-cm\``,
    );
  try {
    loaded = createRequire(import.meta.url)(file) as NativeAddon;
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    if (/lib(rdmacm|ibverbs)/.test(message))
      throw missing('library', `${message}; install librdmacm1, libibverbs1 and ibverbs-providers`, cause);
    throw missing('addon', message, cause);
  }
  return loaded;
}

function missing(part: MissingPart, detail: string, cause?: unknown): RdmaError {
  return new RdmaError(
    part === 'addon' ? 'ERR_DLOPEN_FAILED' : 'ENODEV',
    'load',
    `RDMA can't be used here: ${detail}`,
    {
      missing: part,
      cause,
    },
  );
}

/** Makes of what the addon throws (an Error with `code` and `syscall`) an RdmaError; leaves TypeErrors and RangeErrors alone. */
export function nativeCall<T>(object: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (!(error instanceof Error) || error instanceof TypeError || error instanceof RangeError) throw error;
    const { code, syscall, postedCount } = error as Error & { code?: string; syscall?: string; postedCount?: number };
    if (code === undefined || syscall === undefined) throw error;
    throw new RdmaError(code, syscall, error.message, {
      object,
      cause: error,
      ...(postedCount === undefined ? {} : { postedCount }),
    });
  }
}
