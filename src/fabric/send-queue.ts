import { invariant } from '../common/assert.js';
import { FRAME_AT, FRAME_HEADER_BYTES, FRAME_MAGIC, FRAME_VERSION, getU64 } from '../protocol/frame.js';
import type { Link } from './link.js';

/**
 * The stream's sending end: frames, encoded once into slabs, kept until the other side has them, sent from there and
 * after a break sent again from there. A body is copied exactly once, here.
 *
 * Invariants: frames lie in the slabs in order of their sequences without gaps; acked <= sent <= last appended; no frame
 * crosses from one slab to the next; a slab is used anew only when everything in it has been acknowledged.
 */
const SLAB_BYTES = 64 * 1024;
const SPARE_SLABS_MAX = 4;
/** Handed to the link and not yet acknowledged: beyond it the rest waits here instead of piling up in the link. */
const IN_FLIGHT_BYTES_MAX = 16 * 1024 * 1024;

interface Slab {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Bytes filled. */
  used: number;
  /** Bytes already handed to the present link. */
  sent: number;
  /** Sequence of the last frame in it. */
  last: number;
}

function newSlab(lengthBytes: number): Slab {
  const bytes = new Uint8Array(lengthBytes);
  return { bytes, view: new DataView(bytes.buffer), used: 0, sent: 0, last: 0 };
}

export class SendQueue {
  readonly #slabs: Slab[] = [];
  readonly #spare: Slab[] = [];
  /** Index of the first slab with something unsent. */
  #sending = 0;
  #bytes = 0;
  /** Sum of `sent` over the slabs. */
  #bytesSent = 0;
  #last = 0;
  #sent = 0;
  /** Highest ever handed to any link: what the other side may rightly acknowledge. */
  #sentEver = 0;
  #acked = 0;

  get last(): number {
    return this.#last;
  }
  get acked(): number {
    return this.#acked;
  }
  get sentEver(): number {
    return this.#sentEver;
  }
  get inFlight(): number {
    return this.#sent - this.#acked;
  }
  get hasUnsent(): boolean {
    return this.#sent < this.#last;
  }
  /** Messages not yet acknowledged, sent or not. */
  get countUnacked(): number {
    return this.#last - this.#acked;
  }
  /** Memory held by them. */
  get bytesHeld(): number {
    return this.#bytes;
  }

  append(
    kind: number,
    epoch: number,
    incarnation: number,
    ack: number,
    requestSequence: number,
    messageType: number,
    creditMessages: number,
    body: Uint8Array,
  ): void {
    const bodyBytes = body.length;
    const need = FRAME_HEADER_BYTES + bodyBytes;
    let slab = this.#slabs[this.#slabs.length - 1];
    if (slab === undefined || slab.bytes.length - slab.used < need) slab = this.#addSlab(need);
    const view = slab.view;
    const at = slab.used;
    const sequence = ++this.#last;
    view.setUint32(at, FRAME_MAGIC | (FRAME_VERSION << 16) | (kind << 24), true);
    view.setUint32(at + FRAME_AT.bodyBytes, bodyBytes, true);
    view.setUint32(at + FRAME_AT.epoch, epoch, true);
    view.setUint32(at + FRAME_AT.incarnation, incarnation, true);
    view.setUint32(at + FRAME_AT.sequence, sequence >>> 0, true);
    view.setUint32(at + FRAME_AT.sequence + 4, (sequence / 0x1_0000_0000) >>> 0, true);
    view.setUint32(at + FRAME_AT.ack, ack >>> 0, true);
    view.setUint32(at + FRAME_AT.ack + 4, (ack / 0x1_0000_0000) >>> 0, true);
    view.setUint32(at + FRAME_AT.requestSequence, requestSequence >>> 0, true);
    view.setUint32(at + FRAME_AT.requestSequence + 4, (requestSequence / 0x1_0000_0000) >>> 0, true);
    view.setUint32(at + FRAME_AT.messageType, messageType | (creditMessages << 16), true);
    slab.bytes.set(body, at + FRAME_HEADER_BYTES);
    slab.used = at + need;
    slab.last = sequence;
  }

  /** Hands the link everything not yet sent up to `limit`, a sequence. False when that, or the bytes under way, held something back. */
  flush(link: Link, limit: number): boolean {
    while (this.#sending < this.#slabs.length) {
      const slab = this.#slabs[this.#sending]!;
      if (slab.sent < slab.used) {
        if (this.#sent >= limit || this.#bytesSent >= IN_FLIGHT_BYTES_MAX) return false;
        const start = slab.sent;
        let end = slab.used;
        let through = slab.last;
        if (through > limit) {
          end = start;
          through = this.#sent;
          while (through < limit) {
            end += FRAME_HEADER_BYTES + slab.view.getUint32(end + FRAME_AT.bodyBytes, true);
            through++;
          }
        }
        slab.sent = end;
        this.#bytesSent += end - start;
        this.#sent = through;
        if (through > this.#sentEver) this.#sentEver = through;
        link.send(slab.bytes, start, end);
        if (link.closed) return true;
        if (end < slab.used) return false;
      }
      if (this.#sending === this.#slabs.length - 1) break;
      this.#sending++;
    }
    return true;
  }

  /** Everything up to `sequence` has arrived. The caller has checked that it was ever sent. */
  acknowledge(sequence: number): void {
    if (sequence <= this.#acked) return;
    invariant(sequence <= this.#sentEver, 'acknowledged what was never sent');
    this.#acked = sequence;
    // After a break the other side may know more than this link has been given again.
    if (sequence > this.#sent) this.#sent = sequence;
    while (this.#slabs.length > 0) {
      const slab = this.#slabs[0]!;
      if (slab.last > sequence) return;
      this.#bytesSent -= slab.sent;
      if (this.#slabs.length === 1) {
        if (slab.bytes.length === SLAB_BYTES) {
          slab.used = slab.sent = 0;
        } else {
          this.#bytes -= slab.bytes.length;
          this.#slabs.length = 0;
        }
        this.#sending = 0;
        return;
      }
      this.#slabs.shift();
      this.#bytes -= slab.bytes.length;
      if (this.#sending > 0) this.#sending--;
      if (slab.bytes.length === SLAB_BYTES && this.#spare.length < SPARE_SLABS_MAX) {
        slab.used = slab.sent = slab.last = 0;
        this.#spare.push(slab);
      }
    }
  }

  /** A new link: what is not acknowledged is sent again from the beginning. */
  rewind(): void {
    this.#sending = 0;
    this.#sent = this.#acked;
    this.#bytesSent = 0;
    for (const slab of this.#slabs) slab.sent = 0;
    const head = this.#slabs[0];
    if (head === undefined) return;
    let at = 0;
    while (at < head.used && getU64(head.view, at + FRAME_AT.sequence) <= this.#acked) {
      at += FRAME_HEADER_BYTES + head.view.getUint32(at + FRAME_AT.bodyBytes, true);
    }
    head.sent = at;
    this.#bytesSent = at;
  }

  #addSlab(need: number): Slab {
    const tail = this.#slabs[this.#slabs.length - 1];
    const slab = need > SLAB_BYTES ? newSlab(need) : (this.#spare.pop() ?? newSlab(SLAB_BYTES));
    // An empty tail would stay between full slabs with nothing in it and an old sequence.
    if (tail !== undefined && tail.used === 0) {
      this.#slabs.pop();
      this.#bytes -= tail.bytes.length;
      if (this.#spare.length < SPARE_SLABS_MAX) this.#spare.push(tail);
      if (this.#sending > this.#slabs.length) this.#sending = this.#slabs.length;
    }
    this.#slabs.push(slab);
    this.#bytes += slab.bytes.length;
    return slab;
  }
}
