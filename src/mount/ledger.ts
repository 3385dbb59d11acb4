import { invariant } from '../common/assert.js';
import { loadFuseAddon } from '../native/fuse.js';

/**
 * The mount's ledger as JavaScript reads it (native/fuse/src/ledger.h has the layout): nodes and requests in flight, which C writes, and
 * the handles, which are written here. It is shared memory: a later daemon, and the guard, see what the one before wrote.
 *
 * Invariant: a handle's record is complete before its word `live` says so, and that is before the kernel is told of the handle.
 * Fault model: the writer may have died between any two stores; a record whose word doesn't say live is nothing.
 */
const LIVE_AT = 0;
const GENERATION_AT = 4;
const NODE_AT = 8;
const FLAGS_AT = 16;
const KIND_AT = 20;
const UID_AT = 24;
const GID_AT = 28;
const GENERATION_MAX = 2 ** 20 - 1;

const KINDS = ['file', 'directory'] as const;

export interface HandleRecord {
  readonly handle: number;
  readonly node: number;
  readonly kind: (typeof KINDS)[number];
  /** As open(2) had them. */
  readonly flags: number;
  readonly uid: number;
  readonly gid: number;
}
export interface NodeInLedger {
  readonly node: number;
  readonly inode: number;
  readonly generation: number;
  /** How often the kernel was told of it, less what it has forgotten. */
  readonly lookups: number;
}
export interface RequestInLedger {
  readonly unique: bigint;
  readonly node: number;
  readonly opcode: number;
  readonly pid: number;
}

export class Ledger {
  readonly #view: DataView;
  readonly #words: Int32Array;
  readonly #constants = loadFuseAddon().constants;
  readonly #slots: number;
  readonly #inFlightAt: number;
  readonly #nodesAt: number;
  readonly #handlesAt: number;
  readonly handleCapacity: number;
  readonly #freeHandles: number[] = [];

  /** `memory`: as a session hands it out, which has checked that it is one. */
  constructor(memory: ArrayBuffer) {
    this.#view = new DataView(memory);
    this.#words = new Int32Array(memory);
    const page = this.#constant('ledgerPageBytes');
    this.#slots = this.#header('slotCapacityAt');
    this.handleCapacity = this.#header('handleCapacityAt');
    this.#inFlightAt = page;
    this.#nodesAt = page + Math.ceil((this.#slots * this.#constant('inFlightRecordBytes')) / page) * page;
    this.#handlesAt = this.#u64(this.#constant('handlesOffsetAt'));
    for (let place = 1; place < this.#handlesUsed; place++) {
      if (this.#load(this.#handleAt(place) + LIVE_AT) === 0) this.#freeHandles.push(place);
    }
  }

  #constant(name: string): number {
    const value = this.#constants[name];
    invariant(value !== undefined, `native/fuse has no constant ${name}`);
    return value;
  }
  #header(name: string): number {
    return this.#view.getUint32(this.#constant(name), true);
  }
  #u64(at: number): number {
    return this.#view.getUint32(at + 4, true) * 2 ** 32 + this.#view.getUint32(at, true);
  }
  #load(at: number): number {
    return Atomics.load(this.#words, at >>> 2) >>> 0;
  }
  #store(at: number, value: number): void {
    Atomics.store(this.#words, at >>> 2, value);
  }

  *nodes(): Generator<NodeInLedger> {
    const used = this.#header('placesUsedAt');
    const bytes = this.#constant('nodeRecordBytes');
    for (let place = 1; place < used; place++) {
      const at = this.#nodesAt + place * bytes;
      if (this.#load(at + 28) === 0) continue;
      const node = this.#view.getUint32(at + 24, true) * 2 ** 32 + place;
      yield { node, inode: this.#u64(at), generation: this.#u64(at + 8), lookups: this.#u64(at + 16) };
    }
  }

  /** What its server had not answered. A server that goes on asks for these again (RESEND). */
  *inFlight(): Generator<RequestInLedger> {
    const bytes = this.#constant('inFlightRecordBytes');
    for (let slot = 0; slot < this.#slots; slot++) {
      const at = this.#inFlightAt + slot * bytes;
      const unique = this.#view.getBigUint64(at, true);
      if (unique === 0n) continue;
      yield {
        unique,
        node: this.#u64(at + 8),
        opcode: this.#view.getUint32(at + 16, true),
        pid: this.#view.getUint32(at + 20, true),
      };
    }
  }

  get #handlesUsed(): number {
    return Math.max(1, this.#header('handlesUsedAt'));
  }
  #handleAt(place: number): number {
    return this.#handlesAt + place * this.#constant('handleRecordBytes');
  }

  /** Before the answer that tells the kernel of it; null when the table is full. */
  openHandle(record: Omit<HandleRecord, 'handle'>): number | null {
    let place = this.#freeHandles.pop();
    if (place === undefined) {
      place = this.#handlesUsed;
      if (place >= this.handleCapacity) return null;
      this.#store(this.#constant('handlesUsedAt'), place + 1);
    }
    const at = this.#handleAt(place);
    this.#view.setUint32(at + NODE_AT, record.node >>> 0, true);
    this.#view.setUint32(at + NODE_AT + 4, Math.floor(record.node / 2 ** 32), true);
    this.#view.setUint32(at + FLAGS_AT, record.flags, true);
    this.#view.setUint32(at + KIND_AT, KINDS.indexOf(record.kind), true);
    this.#view.setUint32(at + UID_AT, record.uid, true);
    this.#view.setUint32(at + GID_AT, record.gid, true);
    this.#store(at + LIVE_AT, 1);
    return this.#load(at + GENERATION_AT) * 2 ** 32 + place;
  }

  /** Null: closed, or never opened. */
  handle(handle: number): HandleRecord | null {
    const place = handle % 2 ** 32;
    if (place < 1 || place >= this.#handlesUsed) return null;
    const at = this.#handleAt(place);
    if (this.#load(at + LIVE_AT) === 0 || this.#load(at + GENERATION_AT) !== Math.floor(handle / 2 ** 32)) return null;
    return {
      handle,
      node: this.#u64(at + NODE_AT),
      kind: KINDS[this.#view.getUint32(at + KIND_AT, true)] ?? 'file',
      flags: this.#view.getUint32(at + FLAGS_AT, true),
      uid: this.#view.getUint32(at + UID_AT, true),
      gid: this.#view.getUint32(at + GID_AT, true),
    };
  }

  /** False when it was closed already. */
  closeHandle(handle: number): boolean {
    if (this.handle(handle) === null) return false;
    const place = handle % 2 ** 32;
    const at = this.#handleAt(place);
    this.#store(at + LIVE_AT, 0);
    const next = this.#load(at + GENERATION_AT) + 1;
    // A place whose generations are used up is not used any more.
    if (next <= GENERATION_MAX) {
      this.#store(at + GENERATION_AT, next);
      this.#freeHandles.push(place);
    }
    return true;
  }

  *handles(): Generator<HandleRecord> {
    for (let place = 1; place < this.#handlesUsed; place++) {
      const record = this.handle(this.#load(this.#handleAt(place) + GENERATION_AT) * 2 ** 32 + place);
      if (record !== null) yield record;
    }
  }
}
