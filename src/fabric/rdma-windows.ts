import type { PoolSegment } from '../native/page-pool.js';
import { TransferStatus } from '../protocol/frame.js';
import type { RemoteWindow } from './fabric.js';
import { encodeName, IDENTITY_BYTES, NAME_RUNS_MAX, type Run } from './rdma-wire.js';
import { slice } from './segments.js';
import type { VerbsPort, VerbsWindow } from './verbs-port.js';

/**
 * Which parts of our pool which peer may reach, and through which links it can do so by itself. The table outlives links and
 * devices; the keys do not.
 *
 * A window is bound on a link run by run: one window of type 2 per contiguous piece, for exactly the bytes named, on that link's
 * queue pair only. Invariant (S3): `close` resolves when every binding has been invalidated, or its queue pair destroyed; only then
 * are the type-2 windows used anew, the longest unused first, so that a key comes round again as late as possible.
 */
export interface BindingLink {
  readonly linkNumber: number;
  readonly pool: WindowPool;
  /** Posts the binds at once, or with the next message, and returns the runs with their keys; null when there is no room for them now. */
  bindRuns(
    windows: readonly VerbsWindow[],
    runs: readonly PoolSegment[],
    access: 'read' | 'write',
    withNextMessage: boolean,
  ): Run[] | null;
  /** `done` when all are invalid. If the link ends first, the table hears it by `linkGone`. */
  invalidate(windows: readonly VerbsWindow[], done: () => void): void;
}

interface Binding {
  readonly windows: readonly VerbsWindow[];
  runs: readonly Run[];
  /** Waits for it to end, if somebody closes the window. */
  over: (() => void) | null;
}

interface OpenWindow {
  readonly key: string;
  readonly peerNode: number;
  readonly access: 'read' | 'write';
  readonly segments: readonly PoolSegment[];
  readonly runs: readonly PoolSegment[];
  readonly lengthBytes: number;
  readonly bindings: Map<BindingLink, Binding>;
}

export class WindowTable {
  readonly #open = new Map<string, OpenWindow>();
  /** All windows bound on a link, closing ones too. */
  readonly #byLink = new Map<BindingLink, Set<OpenWindow>>();

  get openCount(): number {
    return this.#open.size;
  }

  /**
   * @param identity 16 bytes that nobody can guess.
   * @param link The present one with that peer, on which the window is bound at once, or with the next message; null: on demand.
   */
  open(
    identity: Uint8Array,
    peerNode: number,
    segments: readonly PoolSegment[],
    access: 'read' | 'write',
    link: BindingLink | null,
    withNextMessage = false,
  ): RemoteWindow {
    const runs = merge(segments);
    const window: OpenWindow = {
      key: keyOf(identity),
      peerNode,
      access,
      segments: [...segments],
      runs,
      lengthBytes: runs.reduce((sum, run) => sum + run.lengthBytes, 0),
      bindings: new Map(),
    };
    this.#open.set(window.key, window);
    const bound = link === null || runs.length > NAME_RUNS_MAX ? null : this.#bind(window, link, withNextMessage);
    return encodeName(identity, bound === null ? null : { linkNumber: link!.linkNumber, runs: bound });
  }

  /** For a peer without keys. Null: it must be moved by messages. */
  keysFor(
    identity: Uint8Array,
    peerNode: number,
    access: 'read' | 'write',
    link: BindingLink,
    runsMax: number,
  ): readonly Run[] | null | TransferStatus {
    const window = this.#judge(identity, peerNode, access);
    if (typeof window === 'number') return window;
    if (window.runs.length > runsMax) return null;
    return this.#bind(window, link, true);
  }

  /** The segments of a part of a window, for messages. */
  find(
    identity: Uint8Array,
    peerNode: number,
    access: 'read' | 'write',
    offsetBytes: number,
    lengthBytes: number,
  ): readonly PoolSegment[] | TransferStatus {
    const window = this.#judge(identity, peerNode, access);
    if (typeof window === 'number') return window;
    if (offsetBytes + lengthBytes > window.lengthBytes) return TransferStatus.outOfBounds;
    return slice(window.segments, offsetBytes, lengthBytes);
  }

  #judge(identity: Uint8Array, peerNode: number, access: 'read' | 'write'): OpenWindow | TransferStatus {
    const window = this.#open.get(keyOf(identity));
    if (window === undefined) return TransferStatus.windowUnknown;
    if (window.peerNode !== peerNode || window.access !== access) return TransferStatus.windowDenied;
    return window;
  }

  #bind(window: OpenWindow, link: BindingLink, withNextMessage: boolean): readonly Run[] | null {
    const present = window.bindings.get(link);
    if (present !== undefined) return present.runs;
    const windows = link.pool.take(window.runs.length);
    if (windows === null) return null;
    // Before it is tried: if the link ends over it, some may be bound, and all go with it.
    const binding: Binding = { windows, runs: [], over: null };
    window.bindings.set(link, binding);
    let of = this.#byLink.get(link);
    if (of === undefined) {
      of = new Set();
      this.#byLink.set(link, of);
    }
    of.add(window);
    const runs = link.bindRuns(windows, window.runs, window.access, withNextMessage);
    if (runs !== null) {
      binding.runs = runs;
    } else if (window.bindings.delete(link)) {
      of.delete(window);
      link.pool.give(windows);
    }
    return runs;
  }

  /** From the call on nobody gets keys, and messages find nothing. When it resolves, no key works any more either. */
  async close(name: RemoteWindow): Promise<void> {
    const window = this.#open.get(keyOf(name));
    if (window === undefined) return;
    this.#open.delete(window.key);
    const ends: Promise<void>[] = [];
    for (const [link, binding] of window.bindings) {
      ends.push(
        new Promise((resolve) => {
          binding.over = resolve;
          link.invalidate(binding.windows, () => {
            if (!window.bindings.delete(link)) return;
            this.#byLink.get(link)?.delete(window);
            link.pool.give(binding.windows);
            resolve();
          });
        }),
      );
    }
    if (ends.length > 0) await Promise.all(ends);
  }

  /** Its queue pair is about to be destroyed. What is bound there can't be bound again elsewhere: those type-2 windows go first. */
  linkGone(link: BindingLink): void {
    const of = this.#byLink.get(link);
    if (of === undefined) return;
    this.#byLink.delete(link);
    for (const window of of) {
      const binding = window.bindings.get(link)!;
      window.bindings.delete(link);
      link.pool.drop(binding.windows);
      binding.over?.();
    }
  }

  clear(): void {
    this.#open.clear();
  }
}

/** Type-2 windows of a device, made when needed, never more than it has. */
export class WindowPool {
  readonly #port: VerbsPort;
  readonly #max: number;
  readonly #free: VerbsWindow[] = [];
  #count = 0;

  constructor(port: VerbsPort, max: number) {
    this.#port = port;
    this.#max = Math.min(max, port.limits.windows ? port.limits.windowsMax : 0);
  }

  /** Null: that many are not to be had. */
  take(count: number): VerbsWindow[] | null {
    if (this.#free.length + this.#max - this.#count < count) return null;
    const taken = this.#free.splice(0, count);
    while (taken.length < count) {
      try {
        taken.push(this.#port.allocateWindow());
        this.#count++;
      } catch {
        // The device has fewer than it says, or none any more: others use it, too.
        this.give(taken);
        return null;
      }
    }
    return taken;
  }

  give(windows: readonly VerbsWindow[]): void {
    this.#free.push(...windows);
  }

  drop(windows: readonly VerbsWindow[]): void {
    this.#count -= windows.length;
    for (const window of windows) window.close();
  }
}

/** Neighbours in the pool that follow one another in the window are one run. */
export function merge(segments: readonly PoolSegment[]): PoolSegment[] {
  const runs: { offsetBytes: number; lengthBytes: number }[] = [];
  for (const { offsetBytes, lengthBytes } of segments) {
    const last = runs[runs.length - 1];
    if (last !== undefined && last.offsetBytes + last.lengthBytes === offsetBytes) last.lengthBytes += lengthBytes;
    else runs.push({ offsetBytes, lengthBytes });
  }
  return runs;
}

const keyOf = (name: Uint8Array): string =>
  Buffer.from(name.buffer, name.byteOffset, IDENTITY_BYTES).toString('latin1');
