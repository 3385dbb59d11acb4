import type { IDuplexStream, IEvent, IWatchRequest, IWatchResponse } from 'etcd3';
import type { StoreWatch } from './cluster-store.js';

/**
 * One watch of one key prefix, on a stream of its own. etcd3's shared watcher isn't used: it never tells when changes were
 * compacted away, and a cancelled neighbour takes its stream along.
 *
 * Invariants: changes are delivered in order of revision, each once; after a reconnect it goes on behind the last revision
 * delivered; when that was compacted, `onGap` is called and it goes on from the oldest revision there is. Nothing is
 * delivered after `close`.
 * Fault model: the stream may fail to open, break, end, or fall silent (HTTP/2 keepalive then breaks it).
 */
type WatchStream = IDuplexStream<IWatchRequest, IWatchResponse> & { cancel?: () => void };

const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 1000;

export class EtcdWatch implements StoreWatch {
  #nextRevision: number;
  #stream: WatchStream | null = null;
  #backoffMs = BACKOFF_MIN_MS;
  #timer: NodeJS.Timeout | null = null;
  #closed = false;
  /** Counts streams: what an abandoned one still says is not heard. */
  #generation = 0;

  constructor(
    readonly open: () => Promise<IDuplexStream<IWatchRequest, IWatchResponse>>,
    readonly prefix: Buffer,
    fromRevision: number,
    readonly onEvent: (event: IEvent) => void,
    readonly onGap: () => void,
    readonly onClose: () => void,
  ) {
    this.#nextRevision = fromRevision + 1;
    void this.#connect();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#abandon();
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.onClose();
  }

  async #connect(): Promise<void> {
    const generation = ++this.#generation;
    let stream: WatchStream;
    try {
      stream = await this.open();
    } catch {
      this.#reconnect(generation);
      return;
    }
    stream.on('error', () => this.#reconnect(generation));
    stream.on('end', () => this.#reconnect(generation));
    if (this.#closed || generation !== this.#generation) {
      stream.cancel?.();
      return;
    }
    this.#stream = stream;
    stream.on('data', (answer) => this.#answered(answer, generation));
    stream.write({
      create_request: {
        key: this.prefix,
        range_end: prefixEnd(this.prefix),
        start_revision: this.#nextRevision,
        progress_notify: true,
      },
    });
  }

  #answered(answer: IWatchResponse, generation: number): void {
    if (this.#closed || generation !== this.#generation) return;
    this.#backoffMs = BACKOFF_MIN_MS;
    if (answer.canceled) {
      const compacted = Number(answer.compact_revision);
      const gap = compacted >= this.#nextRevision;
      if (gap) this.#nextRevision = compacted;
      this.#reconnect(generation);
      if (gap) this.onGap();
      return;
    }
    const events = answer.events ?? [];
    for (const event of events) {
      const revision = Number(event.kv.mod_revision);
      if (revision < this.#nextRevision) continue;
      this.onEvent(event);
      // The listener may have closed the watch.
      if (this.#closed || generation !== this.#generation) return;
    }
    // A transaction's events share a revision and one answer, so the revision is done only behind the loop. The header's says nothing
    // of events: a watch that is far behind gets them in several answers, all with the store's present revision. A progress
    // notification has none, and moves it: what it skips is other prefixes' business.
    const last = events.at(-1);
    if (last !== undefined) this.#nextRevision = Math.max(this.#nextRevision, Number(last.kv.mod_revision) + 1);
    else if (!answer.created) this.#nextRevision = Math.max(this.#nextRevision, Number(answer.header.revision) + 1);
  }

  #reconnect(generation: number): void {
    if (this.#closed || generation !== this.#generation) return;
    this.#abandon();
    this.#timer = setTimeout(() => {
      this.#timer = null;
      if (!this.#closed) void this.#connect();
    }, this.#backoffMs);
    this.#backoffMs = Math.min(BACKOFF_MAX_MS, this.#backoffMs * 2);
  }

  #abandon(): void {
    this.#generation++;
    const stream = this.#stream;
    this.#stream = null;
    stream?.cancel?.();
  }
}

/** The first key behind all keys that start with `prefix`. */
export function prefixEnd(prefix: Buffer): Buffer {
  const end = Buffer.from(prefix);
  for (let i = end.length - 1; i >= 0; i--) {
    if (end[i]! < 0xff) {
      end[i]!++;
      return end.subarray(0, i + 1);
    }
  }
  return Buffer.from([0]);
}
