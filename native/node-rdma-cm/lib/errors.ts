import type { Operation, WorkStatus } from './work-completion.js';

/** What is missing on a machine where RDMA can't be used, from the bottom up. */
export type MissingPart =
  /** The addon was not built: librdmacm-dev was missing then. */
  | 'addon'
  /** librdmacm.so or libibverbs.so is not installed. */
  | 'library'
  /** The kernel modules rdma_ucm and ib_uverbs are not loaded. */
  | 'module'
  /** No RDMA device. */
  | 'device';

export interface RdmaErrorDetails {
  /** What it happened to: `queue pair 17`, `connection to 10.0.0.1:7471`, … */
  readonly object?: string;
  readonly missing?: MissingPart;
  /** A connection manager event's own status: the reason of a reject as a number, or an errno. */
  readonly cmStatus?: number;
  /** What the peer sent along with its reject. */
  readonly privateData?: Uint8Array;
  /** Of a failed `post`: how many of the batch's requests were handed over before the one that was refused. */
  readonly postedCount?: number;
  /** Of a failed work request. */
  readonly workStatus?: WorkStatus;
  readonly workOperation?: Operation;
  readonly cause?: unknown;
}

/** Everything that RDMA itself refuses or fails. Wrong arguments are TypeErrors and RangeErrors. */
export class RdmaError extends Error {
  override readonly name = 'RdmaError';
  readonly object: string | null;
  readonly missing: MissingPart | null;
  readonly cmStatus: number | null;
  readonly privateData: Uint8Array | null;
  readonly postedCount: number | null;
  readonly workStatus: WorkStatus | null;
  readonly workOperation: Operation | null;

  constructor(
    /** The errno's name: 'ECONNREFUSED', 'ETIMEDOUT', 'ENODEV', 'ENOMEM', … */
    readonly code: string,
    /** The call or the event that failed: 'rdma_connect', 'ibv_reg_mr', 'send', … */
    readonly operation: string,
    detail: string,
    details: RdmaErrorDetails = {},
  ) {
    super(
      `${code}: ${detail}, ${operation}${details.object === undefined ? '' : ` of ${details.object}`}`,
      details.cause === undefined ? undefined : { cause: details.cause },
    );
    this.object = details.object ?? null;
    this.missing = details.missing ?? null;
    this.cmStatus = details.cmStatus ?? null;
    this.privateData = details.privateData ?? null;
    this.postedCount = details.postedCount ?? null;
    this.workStatus = details.workStatus ?? null;
    this.workOperation = details.workOperation ?? null;
  }
}

/** Every step, whatever others throw; then throws what was thrown first. */
export function doAll(steps: readonly (() => void)[]): void {
  const thrown: unknown[] = [];
  for (const step of steps) {
    try {
      step();
    } catch (error) {
      thrown.push(error);
    }
  }
  if (thrown.length > 0) throw thrown[0];
}
