import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

/** The whole boundary to the addon, typed. Layouts and numbers come from src/abi.h, through `abi`. */
export interface NativeAbi {
  readonly read: number;
  readonly write: number;
  readonly flush: number;
  readonly discard: number;
  readonly writeZeroes: number;
  readonly compare: number;
  readonly verify: number;
  readonly durable: number;
  readonly instructionBytes: number;
  readonly operationAt: number;
  readonly targetAt: number;
  readonly bufferAt: number;
  readonly tagAt: number;
  readonly offsetAt: number;
  readonly bufferOffsetAt: number;
  readonly lengthAt: number;
  readonly completionBytes: number;
  readonly completionTagAt: number;
  readonly completionErrorAt: number;
  readonly completionDoneAt: number;
  readonly completionStatusAt: number;
  readonly controlWrittenAt: number;
  readonly controlDispatchingAt: number;
  readonly commandBytes: number;
  readonly depthMax: number;
}

/** Where the fields of the arenas are, in words of 4 bytes and numbers of 8, for typed arrays over them. */
export interface Layout {
  readonly instruction: {
    readonly words: number;
    readonly numbers: number;
    readonly operation: number;
    readonly target: number;
    readonly buffer: number;
    readonly tag: number;
    readonly offset: number;
    readonly bufferOffset: number;
    readonly length: number;
  };
  readonly completion: {
    readonly words: number;
    readonly numbers: number;
    readonly tag: number;
    readonly error: number;
    readonly done: number;
    readonly status: number;
  };
  readonly control: { readonly written: number; readonly dispatching: number };
}

/** Typed arrays have the machine's order of bytes, which is the addon's. */
export const layoutOf = (abi: NativeAbi): Layout => ({
  instruction: {
    words: abi.instructionBytes / 4,
    numbers: abi.instructionBytes / 8,
    operation: abi.operationAt / 4,
    target: abi.targetAt / 4,
    buffer: abi.bufferAt / 4,
    tag: abi.tagAt / 4,
    offset: abi.offsetAt / 8,
    bufferOffset: abi.bufferOffsetAt / 8,
    length: abi.lengthAt / 8,
  },
  completion: {
    words: abi.completionBytes / 4,
    numbers: abi.completionBytes / 8,
    tag: abi.completionTagAt / 4,
    error: abi.completionErrorAt / 4,
    done: abi.completionDoneAt / 8,
    status: abi.completionStatusAt / 4,
  },
  control: { written: abi.controlWrittenAt / 4, dispatching: abi.controlDispatchingAt / 4 },
});

export interface NativeTarget {
  readonly slot: number;
  readonly block: boolean;
  readonly direct: boolean;
  readonly readOnly: boolean;
  readonly sizeBytes: number;
  readonly logicalBlockBytes: number;
  readonly physicalBlockBytes: number;
  readonly memoryAlignBytes: number;
}

/** What commands to a namespace must know of it; see NamespaceGeometry in src/nvme_command.h. */
export interface NativeGeometry {
  readonly nsid: number;
  readonly lbaBytes: number;
  readonly lbaCount: number;
  readonly protectionType: number;
  readonly optionalCommands: number;
  readonly transferBlocksMax: number;
  readonly boundaryBlocks: number;
  readonly zeroesBlocksMax: number;
  readonly verifyBlocksMax: number;
  readonly deallocateBlocksMax: number;
  readonly timeoutMs: number;
}

export interface NativeCommandResult {
  /** The kernel's, 0 for none. */
  readonly errno: number;
  /** The controller's, without the phase bit; 0 for success. */
  readonly status: number;
  readonly result: number;
  readonly resultHigh: number;
  readonly data: Uint8Array | null;
  readonly metadata: Uint8Array | null;
}

export interface NativeEngine {
  readonly submissions: ArrayBuffer;
  readonly completions: ArrayBuffer;
  attach(
    buffer: ArrayBuffer,
    wantRegistered: boolean,
  ): { readonly slot: number; readonly addressModulo: number; readonly registerErrno: number };
  /** False while operations name it. */
  detach(slot: number): boolean;
  /**
   * @param direct 0 prefer, 1 require, 2 off
   * @param lock null: without a lock; else other files of the same storage whose locks matter too: the first is held, the rest are tried
   */
  open(path: string, readOnly: boolean, direct: number, lock: readonly string[] | null): Promise<NativeTarget>;
  /** A namespace by its character device. */
  openNamespace(
    path: string,
    readOnly: boolean,
    geometry: NativeGeometry,
    lock: readonly string[] | null,
  ): Promise<NativeTarget>;
  /** Whether this kernel's rings have room for NVMe commands. */
  readonly passesCommands: boolean;
  closeTarget(slot: number): boolean;
  readonly control: ArrayBuffer;
  /** Takes the instructions that are written. */
  submit(): void;
  /** Takes them too, then waits at most so long for a completion; returns how many there are. */
  poll(maxWaitUs: number): number;
  /** Waits for what is in flight, in the event loop, then releases everything. */
  close(): void;
}

export interface NativeAddon {
  readonly abi: NativeAbi;
  readonly Engine: new (depth: number, spinUs: number, onCompletions: (count: number) => void) => NativeEngine;
  allocate(lengthBytes: number): ArrayBuffer;
  sendCommand(
    fd: number,
    io: boolean,
    command: Uint8Array,
    dataBytes: number,
    data: Uint8Array | null,
    metadataBytes: number,
    metadata: Uint8Array | null,
  ): Promise<NativeCommandResult>;
  /** 0 for what is no namespace. */
  namespaceId(fd: number): number;
  /** The commands one after the other; after a discard's its range. */
  encodeCommands(
    geometry: NativeGeometry,
    operation: number,
    offsetBytes: number,
    lengthBytes: number,
    address: number,
  ): Uint8Array;
}

let loaded: NativeAddon | undefined;

/** Loads it at first use, so that importing the package never fails. @throws {Error} that says what to run. */
export function native(): NativeAddon {
  if (loaded !== undefined) return loaded;
  // The sanitizers' build, for this package's own tests.
  const directory = process.env['HOLDFAST_NATIVE'] === 'asan' ? 'build-asan' : 'build';
  const file = fileURLToPath(new URL(`../${directory}/Release/napi_nvme.node`, import.meta.url));
  if (!existsSync(file))
    throw Object.assign(new Error(`napi-nvme is not built: ${file} is missing; run \`npm rebuild napi-nvme\``), {
      code: 'ERR_DLOPEN_FAILED',
    });
  loaded = createRequire(import.meta.url)(file) as NativeAddon;
  return loaded;
}
