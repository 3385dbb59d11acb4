import type { FsError } from '../common/errors.js';
import type { RemoteWindow } from '../fabric/fabric.js';
import type { FrameBatch, Link, LinkEvents, Transport, TransportAddress } from '../fabric/link.js';
import type { MemoryTransport } from '../fabric/memory-link.js';
import type { PoolSegment } from '../native/page-pool.js';
import type { TransferStatus } from '../protocol/frame.js';
import type { NodeGate } from './node-gate.js';

/**
 * A node's links, noticed through its gate: a paused node's frames wait, one-sided transfers go on (the adapter does them), as they
 * do beside a process that is stopped. Counts windows, so that a leaked one is found.
 */
export class GatedTransport implements Transport {
  readonly #inner: MemoryTransport;
  readonly #gate: NodeGate;
  windowsOpen = 0;

  constructor(inner: MemoryTransport, gate: NodeGate) {
    this.#inner = inner;
    this.#gate = gate;
  }

  listen(address: TransportAddress, accept: (link: Link) => void): Promise<TransportAddress> {
    return this.#inner.listen(address, (link) => {
      const gated = new GatedLink(link, this.#gate);
      this.#gate.enter(() => accept(gated));
    });
  }

  dial(address: TransportAddress, signal: AbortSignal): Promise<Link> {
    return this.#gate.pass(this.#inner.dial(address, signal).then((link) => new GatedLink(link, this.#gate)));
  }

  openWindow(peerNode: number, segments: readonly PoolSegment[], access: 'read' | 'write'): RemoteWindow {
    this.windowsOpen++;
    return this.#inner.openWindow(peerNode, segments, access);
  }
  closeWindow(window: RemoteWindow): Promise<void> {
    this.windowsOpen--;
    return this.#inner.closeWindow(window);
  }
  close(): void {
    this.#inner.close();
  }
}

class GatedLink implements Link {
  events: LinkEvents = {
    onRecord: () => undefined,
    onFrames: () => undefined,
    onTransferDone: () => undefined,
    onClosed: () => undefined,
  };
  readonly #inner: Link;
  #over = false;

  constructor(inner: Link, gate: NodeGate) {
    this.#inner = inner;
    const notice = (run: () => void): void =>
      gate.enter(() => {
        if (!this.#over) run();
      });
    inner.events = {
      onRecord: (record: Uint8Array) => notice(() => this.events.onRecord(record)),
      onFrames: (batch: FrameBatch) => notice(() => this.events.onFrames(batch)),
      onTransferDone: (id: number, status: TransferStatus) => notice(() => this.events.onTransferDone(id, status)),
      onClosed: (error: FsError, counter: string) =>
        notice(() => {
          this.#over = true;
          this.events.onClosed(error, counter);
        }),
    };
  }

  get name(): string {
    return this.#inner.name;
  }
  /** Broken, but not noticed yet: still open to this node. */
  get closed(): boolean {
    return this.#over;
  }
  sendRecord(record: Uint8Array): void {
    this.#inner.sendRecord(record);
  }
  startFrames(peerNode: number): void {
    this.#inner.startFrames(peerNode);
  }
  send(bytes: Uint8Array, start: number, end: number): void {
    this.#inner.send(bytes, start, end);
  }
  write(transfer: number, window: RemoteWindow, windowOffsetBytes: number, local: readonly PoolSegment[]): void {
    this.#inner.write(transfer, window, windowOffsetBytes, local);
  }
  read(transfer: number, window: RemoteWindow, windowOffsetBytes: number, local: readonly PoolSegment[]): void {
    this.#inner.read(transfer, window, windowOffsetBytes, local);
  }
  flush(): void {
    this.#inner.flush();
  }
  cancel(transfer: number): void {
    this.#inner.cancel(transfer);
  }
  close(): void {
    this.#over = true;
    this.#inner.close();
  }
}
