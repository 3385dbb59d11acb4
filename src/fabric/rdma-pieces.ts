import type { Counters } from '../common/counters.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { TransferStatus } from '../protocol/frame.js';
import type { RemoteWindow, TransferOptions } from './fabric.js';
import type { OneSided } from './rdma-one-sided.js';
import type { UnitSender } from './rdma-sender.js';
import type { WindowTable } from './rdma-windows.js';
import { PIECE_LAST, PREFIX_BYTES, type Prefix, UnitKind, writePrefix } from './rdma-wire.js';
import { copySegments, slice } from './segments.js';
import type { VerbsMemory } from './verbs-port.js';

/**
 * Bulk that travels in messages: what is too small for a window to pay, and everything on devices without windows. Copied on
 * both sides, and counted (`fabric.rdma.bytesCopied`).
 *
 * Invariant: what the owner of a window copies, it looks up anew for each piece, so that a closed window is closed at once (S3).
 */
export interface Transfer {
  readonly id: number;
  readonly writing: boolean;
  readonly name: RemoteWindow;
  readonly windowOffsetBytes: number;
  readonly local: readonly PoolSegment[];
  readonly lengthBytes: number;
  readonly options: TransferOptions | undefined;
  /** Set while it runs one-sided. */
  oneSided: OneSided | null;
  /** Moved by messages: sent, or received. */
  movedBytes: number;
}

interface Answer {
  readonly prefix: Prefix;
  readonly identity: Uint8Array;
  sentBytes: number;
}

const ANSWERS_MAX = 4096;

export class Pieces {
  readonly #windows: WindowTable;
  readonly #pool: PagePool;
  readonly #memory: VerbsMemory;
  readonly #counters: Counters;
  readonly #writes: Transfer[] = [];
  readonly #answers: Answer[] = [];

  constructor(windows: WindowTable, pool: PagePool, memory: VerbsMemory, counters: Counters) {
    this.#windows = windows;
    this.#pool = pool;
    this.#memory = memory;
    this.#counters = counters;
  }

  write(transfer: Transfer): void {
    this.#writes.push(transfer);
  }

  forget(transfer: Transfer): void {
    remove(this.#writes, transfer);
  }

  /** The peer reads. False: it asks for too much at once. */
  answer(prefix: Prefix, identity: Uint8Array): boolean {
    if (this.#answers.length >= ANSWERS_MAX) return false;
    this.#answers.push({ prefix, identity, sentBytes: 0 });
    return true;
  }

  clear(): void {
    this.#writes.length = 0;
    this.#answers.length = 0;
  }

  pump(sender: UnitSender, peerNode: number): void {
    this.#pumpWrites(sender);
    this.#pumpAnswers(sender, peerNode);
  }

  /** A piece that the peer writes. Returns what it must be told, or null. */
  take(prefix: Prefix, identity: Uint8Array, at: number, peerNode: number): TransferStatus | null {
    const { offsetBytes, lengthBytes } = prefix;
    const to = this.#windows.find(identity, peerNode, 'write', offsetBytes, lengthBytes);
    if (typeof to === 'number') return to;
    this.copyIn(at, lengthBytes, to);
    return (prefix.detail & PIECE_LAST) === 0 ? null : TransferStatus.landed;
  }

  /** Our writes by messages. */
  #pumpWrites(sender: UnitSender): void {
    while (this.#writes.length > 0 && sender.ready) {
      const transfer = this.#writes[0]!;
      const take = Math.min(transfer.lengthBytes - transfer.movedBytes, sender.payloadBytesMax - PREFIX_BYTES);
      const from = slice(transfer.local, transfer.movedBytes, take);
      const last = transfer.movedBytes + take === transfer.lengthBytes;
      const offsetBytes = transfer.windowOffsetBytes + transfer.movedBytes;
      sender.emit(UnitKind.write, (bytes, view, at) => {
        writePrefix(bytes, view, at, transfer.id, last ? PIECE_LAST : 0, transfer.name, offsetBytes, take);
        return this.#copyOut(from, bytes, at, take);
      });
      transfer.movedBytes += take;
      if (last) this.#writes.shift();
    }
  }

  /** The peer's reads by messages. The window is looked up for each piece: it may have been closed in between. */
  #pumpAnswers(sender: UnitSender, peerNode: number): void {
    while (this.#answers.length > 0 && sender.ready) {
      const answer = this.#answers[0]!;
      const { prefix, identity } = answer;
      const take = Math.min(prefix.lengthBytes - answer.sentBytes, sender.payloadBytesMax - PREFIX_BYTES);
      const offsetBytes = prefix.offsetBytes + answer.sentBytes;
      const from = this.#windows.find(identity, peerNode, 'read', offsetBytes, take);
      if (typeof from === 'number') {
        this.#answers.shift();
        sender.emit(UnitKind.done, donePayload(prefix.transfer, from));
        continue;
      }
      const last = answer.sentBytes + take === prefix.lengthBytes;
      sender.emit(UnitKind.readData, (bytes, view, at) => {
        writePrefix(bytes, view, at, prefix.transfer, last ? PIECE_LAST : 0, null, answer.sentBytes, take);
        return this.#copyOut(from, bytes, at, take);
      });
      answer.sentBytes += take;
      if (last) this.#answers.shift();
    }
  }

  #copyOut(from: readonly PoolSegment[], bytes: Uint8Array, at: number, lengthBytes: number): number {
    const to = [{ offsetBytes: at + PREFIX_BYTES, lengthBytes }];
    copySegments(this.#pool.bytes, from, bytes, to);
    this.#counters.add('fabric.rdma.bytesCopied', lengthBytes);
    return PREFIX_BYTES + lengthBytes;
  }

  copyIn(at: number, lengthBytes: number, to: readonly PoolSegment[]): void {
    const from = [{ offsetBytes: at + PREFIX_BYTES, lengthBytes }];
    copySegments(this.#memory.bytes, from, this.#pool.bytes, to);
    this.#counters.add('fabric.rdma.bytesCopied', lengthBytes);
  }
}

export const donePayload =
  (transfer: number, status: TransferStatus) =>
  (bytes: Uint8Array, view: DataView, at: number): number => {
    writePrefix(bytes, view, at, transfer, status, null, 0, 0);
    return PREFIX_BYTES;
  };

export function remove<T>(list: T[], item: T): void {
  const index = list.indexOf(item);
  if (index >= 0) list.splice(index, 1);
}
