import {
  type CellLayout,
  cellsOf,
  cellsOfSize,
  type FileInput,
  type FileOutput,
  type FileState,
  fileModel,
} from './file-model.js';
import { History, type Pending } from './history.js';
import type { Operation } from './linearizability.js';

export type FilePending = Pending<FileInput, FileOutput>;

/**
 * A file that everybody works on, as the world knows it: its history, and what of it must survive a node's death (I8).
 */
export class HotFile {
  ino = 0;
  readonly history: History<FileState, FileInput, FileOutput>;
  readonly #syncs: { life: string; calledAt: number }[] = [];
  /** The last size that anybody saw, in cells: what the workload goes by. */
  seenSize = 0;

  constructor(
    readonly path: string,
    readonly layout: CellLayout,
    moment: () => number,
    nowMs: () => number,
  ) {
    this.history = new History(path, fileModel, moment, nowMs);
  }

  synced(life: string, calledAt: number): void {
    this.#syncs.push({ life, calledAt });
  }

  /** What the disks hold, in cells; a size that is no whole number of cells gives a last cell that matches nothing. */
  cellsOf(bytes: Uint8Array): number[] {
    const { layout } = this;
    const cells = cellsOf(layout, bytes.subarray(Math.min(bytes.length, layout.baseBytes)));
    return cellsOfSize(layout, bytes.length) < 0 ? [-1] : cells;
  }

  /**
   * I8: is every cell on the disks what it was when this life last synced the file, or something newer? Null when it is.
   * Judged cell by cell, from which operations were over before which. An fsync covers what its own node wrote; what others have dirty is theirs to sync,
   * and a power cut of all (`everywhere`) takes it.
   */
  lostOf(life: string, cells: readonly number[], everywhere = false): string | null {
    const synced = Math.max(
      Number.NEGATIVE_INFINITY,
      ...this.#syncs.filter((s) => s.life === life).map((s) => s.calledAt),
    );
    if (synced === Number.NEGATIVE_INFINITY) return null;
    const operations = [...this.history.operations, ...[...this.history.open].map(asOperation)];
    const count = Math.max(cells.length, ...operations.map(extentOf));
    for (let cell = 0; cell < count; cell++) {
      const found = cells[cell] ?? 0;
      const touching = operations.filter((operation) => touches(operation, cell));
      const durable = touching.filter(
        ({ output, returnedAt, client }) =>
          output !== null && returnedAt < synced && (!everywhere || client.startsWith(`${life}/`)),
      );
      const isNewest = (one: Operation<FileInput, FileOutput>): boolean =>
        durable.every((other) => other === one || other.calledAt < one.returnedAt);
      const candidates = touching.filter(isNewest);
      const fits = (one: Operation<FileInput, FileOutput>): boolean => {
        if (one.input.op === 'reverted') return (one.input.cells[cell] ?? 0) === found;
        if (one.input.op === 'truncate') return found === 0;
        const { stamp } = one.input as { stamp: number };
        return stamp === found || (found === 0 && one.output === null);
      };
      // Torn: changed since, on its way to the disks when the node died.
      if (
        found < 0 &&
        (everywhere
          ? candidates.some((one) => !durable.includes(one))
          : touching.some((one) => one.returnedAt > synced))
      )
        continue;
      if (touching.length === 0 ? found === 0 : candidates.some(fits)) continue;
      if (durable.length === 0 && found === 0) continue;
      const wanted = candidates.map((one) => JSON.stringify(one.input)).join(' or ');
      return `${this.path}: cell ${cell} is ${found} on the disks, after an fsync by ${life} that covers ${wanted}`;
    }
    return null;
  }
}

const asOperation = (pending: FilePending): Operation<FileInput, FileOutput> => ({
  ...pending,
  output: null,
  returnedAt: Number.POSITIVE_INFINITY,
});

function extentOf({ input, output }: Operation<FileInput, FileOutput>): number {
  if (input.op === 'write') return input.to;
  if (input.op === 'append') return output === null ? 0 : output[0]! + input.count;
  return input.op === 'reverted' ? input.cells.length : 0;
}

function touches({ input, output }: Operation<FileInput, FileOutput>, cell: number): boolean {
  switch (input.op) {
    case 'write':
      return input.from <= cell && cell < input.to;
    case 'append':
      // Of one that failed nobody knows where it went.
      return output === null || (output[0]! <= cell && cell < output[0]! + input.count);
    case 'truncate':
      return input.size <= cell;
    case 'reverted':
      return true;
    default:
      return false;
  }
}

export function fileText({ client, input, output, calledAt, returnedAt }: Operation<FileInput, FileOutput>): string {
  const { op, ...rest } = input;
  const result = output === null ? 'unknown' : JSON.stringify(output);
  return `[${calledAt}, ${returnedAt}] ${client}: ${op} ${JSON.stringify(rest)} -> ${result}`;
}
