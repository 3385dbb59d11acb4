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
  readonly depthMax: number;
}

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

export interface NativeEngine {
  readonly submissions: ArrayBuffer;
  readonly completions: ArrayBuffer;
  attach(
    buffer: ArrayBuffer,
    wantRegistered: boolean,
  ): { readonly slot: number; readonly addressModulo: number; readonly registerErrno: number };
  /** False while operations name it. */
  detach(slot: number): boolean;
  /** @param direct 0 prefer, 1 require, 2 off */
  open(path: string, readOnly: boolean, direct: number): Promise<NativeTarget>;
  closeTarget(slot: number): boolean;
  /** Takes the first `count` instructions of the arena. */
  submit(count: number): void;
  /** Waits at most so long for one; returns how many there are. */
  poll(maxWaitUs: number): number;
  /** Waits for what is in flight, in the event loop, then releases everything. */
  close(): void;
}

export interface NativeAddon {
  readonly abi: NativeAbi;
  readonly Engine: new (depth: number, spinUs: number, onCompletions: (count: number) => void) => NativeEngine;
  allocate(lengthBytes: number): ArrayBuffer;
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
