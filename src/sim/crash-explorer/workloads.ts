import { SeededRandom } from '../../common/random.js';
import { fsync, HELD_PATH, type ModelMachine, OPERATIONS, type Operation, SETUP } from './operations.js';
import { Impossible, Tree } from './tree-model.js';

/**
 * The list of workloads. `lazy`: one operation after the other, and then the machine is left alone until everything has reached the disks by itself; `synced`: after
 * each operation an fsync of what it touched, as careful programs do.
 *
 * Every list of one and of two operations that can be done is there; of the longer ones as many as are asked for, drawn from a seed.
 */
export type Mode = 'lazy' | 'synced';
/**
 * What they begin with: `plain`; `copies`, a file system with two copies of its metadata and logs; `crowded`, one whose inode file has to grow for the next
 * files.
 */
export const VARIANTS = ['plain', 'copies', 'crowded'] as const;
export type Variant = (typeof VARIANTS)[number];
export interface Workload {
  /** `lazy:creat-new,fsync-new`, or `lazy@copies:…`; as `--only` takes it. */
  readonly id: string;
  readonly variant: Variant;
  readonly operations: readonly Operation[];
  /** After each of the operations; the first is what was set up. */
  readonly states: readonly Tree[];
  /** The inode that the long-lived handle has open, as the model numbers it. */
  readonly held: number;
  /** What was done before this operation is looked at by the workload that ends there. */
  readonly lastBegins: number;
}

const SETUP_STAMP = 100;
let start: ModelMachine | null = null;
function setupState(): ModelMachine {
  if (start !== null) return start;
  let tree = Tree.empty();
  SETUP.forEach((operation, index) => {
    tree = operation.model({ tree, held: 0 }, SETUP_STAMP + index);
  });
  start = { tree, held: tree.lookUp(HELD_PATH) };
  return start;
}
export const setupStamp = (index: number): number => SETUP_STAMP + index;

/** Null: it can't be done. */
export function workloadOf(operations: readonly Operation[], mode: Mode, variant: Variant = 'plain'): Workload | null {
  const { tree, held } = setupState();
  const states = [tree];
  const done: Operation[] = [];
  let lastBegins = 0;
  const add = (operation: Operation): boolean => {
    try {
      states.push(operation.model({ tree: states.at(-1)!, held }, done.length + 1));
      done.push(operation);
      return true;
    } catch (error) {
      if (error instanceof Impossible) return false;
      throw error;
    }
  };
  for (const operation of operations) {
    lastBegins = done.length;
    if (!add(operation)) return null;
    // What was moved away can't be opened by that name; then its directory is synced.
    if (mode === 'synced' && operation.durable === undefined && !add(fsync(operation.touches))) add(fsync('/'));
  }
  const id = `${mode}${variant === 'plain' ? '' : `@${variant}`}:${operations.map((operation) => operation.id).join(',')}`;
  return { id, variant, operations: done, states, held, lastBegins };
}

const endsDurable = (operations: readonly Operation[]): boolean => operations.at(-1)!.durable !== undefined;

function* inBothModes(operations: readonly Operation[], variant: Variant): Generator<Workload> {
  const lazy = workloadOf(operations, 'lazy', variant);
  if (lazy === null) return;
  yield lazy;
  // Of syncs alone there is but one.
  if (operations.some(({ durable }) => durable === undefined)) {
    const synced = workloadOf(operations, 'synced', variant);
    if (synced !== null) yield synced;
  }
}

/** An fsync at the beginning finds nothing to do: what follows it is the list without it. */
export function* exhaustive(length: 1 | 2, variant: Variant = 'plain'): Generator<Workload> {
  const operations = variant === 'crowded' ? OPERATIONS.filter(({ kind }) => MAKES_INODES.has(kind)) : OPERATIONS;
  for (const first of operations) {
    if (length === 1) yield* inBothModes([first], variant);
    else if (first.durable === undefined) for (const second of operations) yield* inBothModes([first, second], variant);
  }
}
const MAKES_INODES: ReadonlySet<string> = new Set(['creat', 'mkdir', 'symlink']);

/** Of three operations, each once; every other one ends with an fsync or a sync. */
export function* sampled(seed: number): Generator<Workload> {
  const random = new SeededRandom(seed);
  const seen = new Set<string>();
  for (let tries = 0; tries < 1_000_000; tries++) {
    const draw = (): Operation => OPERATIONS[Math.floor(random.next() * OPERATIONS.length)]!;
    const operations = [draw(), draw(), draw()];
    const mode = random.next() < 0.5 ? 'lazy' : 'synced';
    if (operations[0]!.durable !== undefined || (mode === 'lazy' && tries % 2 === 0 && !endsDurable(operations)))
      continue;
    const workload = workloadOf(operations, mode);
    if (workload === null || seen.has(workload.id)) continue;
    seen.add(workload.id);
    yield workload;
  }
}

export function workloadById(id: string): Workload | null {
  const [kind, list] = id.split(':');
  const [mode, named = 'plain'] = kind!.split('@');
  const variant = VARIANTS.find((one) => one === named);
  if ((mode !== 'lazy' && mode !== 'synced') || list === undefined || variant === undefined) return null;
  const operations = list.split(',').map((name) => OPERATIONS.find((operation) => operation.id === name));
  return operations.every((operation) => operation !== undefined) ? workloadOf(operations, mode, variant) : null;
}
