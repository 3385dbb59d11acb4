import type { FileInput, FileOutput } from '../../sim/file-model.js';
import type { NodeConfig } from '../engine.js';
import type { LocksInput, LocksOutput } from './locks-model.js';
import type { NamesInput, NamesOutput } from './names-model.js';

/** What the load's test and its processes say to each other. */
export interface LoadArguments {
  readonly config: Omit<NodeConfig, 'logger' | 'wrapDevice'>;
  readonly index: number;
  /** Times are counted from here: process.hrtime, which all processes of a machine share. */
  readonly zeroNs: string;
}

/** One round: fresh files, a fresh directory. */
export interface Round {
  readonly kind: 'prepare' | 'round';
  readonly directory: string;
  readonly files: number;
  readonly layout: number;
  readonly seed: number;
  readonly clients: number;
  readonly operationsPerClient: number;
}

/** What one operation was, what came out, and when, in ns. */
export interface Recorded<Input, Output> {
  readonly client: string;
  readonly input: Input;
  readonly output: Output;
  readonly calledAt: number;
  readonly returnedAt: number;
}
export interface RoundDone {
  readonly kind: 'roundDone';
  readonly files: Recorded<FileInput, FileOutput>[][];
  readonly names: Recorded<NamesInput, NamesOutput>[];
  readonly locks: Recorded<LocksInput, LocksOutput>[];
}
export interface Unmounted {
  readonly kind: 'unmounted';
  readonly openFiles: number;
  readonly rangesHeld: number;
}
export interface Checked {
  readonly kind: 'checked';
  readonly problems: readonly string[];
  readonly lostSubBlocks: number;
  readonly lostInodes: number;
  readonly inodes: number;
}
export interface Idle {
  readonly kind: 'idle';
  readonly serverRanges: number;
  readonly serverWaiting: number;
}
