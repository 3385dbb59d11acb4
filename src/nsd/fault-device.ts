import { FsError } from '../common/errors.js';
import { chance, type Random } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { BlockDevice } from './nsd-api.js';

/**
 * The fault port of the storage: a block device that fails as told. Wraps any other device.
 *
 * With `holdBack` it is a volatile write cache in front of the device: writes are acknowledged from memory, reads see them, a flush
 * carries them down, and `powerCut` loses each piece of `tearBytes` of them, or not, as the random source says. Without a flush in
 * between, later writes may survive where earlier ones to other places are lost, as on real devices.
 *
 * Invariant: what a flush that resolved had covered is never lost. Faults are checked in the order: cut, stall, error, short.
 */
export type FaultOperation = 'read' | 'write' | 'flush' | 'discard';

export interface FaultRule {
  readonly operation: FaultOperation;
  /** Device bytes [start, end) it applies to; everywhere when left out. Flushes have no place. */
  readonly start?: number;
  readonly end?: number;
  /** eio: the error; enospc: the error; short: part of the bytes, then shortIo; stall: waits for `release`; flip: one bit changes silently. */
  readonly kind: 'eio' | 'enospc' | 'short' | 'stall' | 'flip';
  /** How often it strikes before it is spent; without end when left out. */
  readonly times?: number;
}

interface ActiveRule {
  readonly rule: FaultRule;
  left: number;
  /** Operations waiting, if it stalls. */
  readonly stalled: (() => void)[];
  struck: number;
}
export interface Fault {
  /** Operations that it holds up at present. */
  readonly stalledCount: number;
  /** How often it has struck. */
  readonly struck: number;
  /** Takes the rule away and lets stalled operations go on. */
  release(): void;
}

export interface FaultDeviceOptions {
  readonly holdBack?: boolean;
  /** Granularity in which a power cut loses held-back writes; below a sector it tears sectors. */
  readonly tearBytes?: number;
}

export class FaultDevice implements BlockDevice {
  readonly #rules = new Set<ActiveRule>();
  /** Held-back writes in order; each a copy of the bytes. */
  #held: { readonly offsetBytes: number; readonly bytes: Uint8Array }[] = [];
  #cut = false;
  readonly #holdBack: boolean;
  readonly #tearBytes: number;
  /** What reached this device, by operation: for tests about batching. */
  readonly operations: Record<FaultOperation, number> = { read: 0, write: 0, flush: 0, discard: 0 };

  constructor(
    private readonly inner: BlockDevice,
    private readonly pool: PagePool,
    /** A sector of the pool's that is the device's own, for carrying held-back writes down. */
    private readonly scratch: PoolSegment,
    options: FaultDeviceOptions = {},
  ) {
    this.#holdBack = options.holdBack ?? false;
    this.#tearBytes = options.tearBytes ?? 512;
  }

  get lengthBytes(): number {
    return this.inner.lengthBytes;
  }
  get keeper(): string | undefined {
    return this.inner.keeper;
  }
  get logicalBlockBytes(): number {
    return this.inner.logicalBlockBytes;
  }
  get heldBackBytes(): number {
    return this.#held.reduce((sum, write) => sum + write.bytes.length, 0);
  }

  inject(rule: FaultRule): Fault {
    const active: ActiveRule = { rule, left: rule.times ?? Number.POSITIVE_INFINITY, stalled: [], struck: 0 };
    this.#rules.add(active);
    return {
      get stalledCount() {
        return active.stalled.length;
      },
      get struck() {
        return active.struck;
      },
      release: () => {
        this.#rules.delete(active);
        for (const go of active.stalled.splice(0)) go();
      },
    };
  }

  async read(offsetBytes: number, memory: PoolSegment): Promise<void> {
    this.operations.read++;
    const kind = await this.#strike('read', offsetBytes, memory.lengthBytes);
    await this.inner.read(offsetBytes, memory);
    this.#overlayHeld(offsetBytes, memory);
    if (kind === 'flip') this.pool.bytes[memory.offsetBytes + (memory.lengthBytes >> 1)]! ^= 0x10;
    if (kind === 'short') {
      const half = memory.lengthBytes >> 1;
      this.pool.bytes.fill(0xee, memory.offsetBytes + half, memory.offsetBytes + memory.lengthBytes);
      throw shortIo('read', offsetBytes, half, memory.lengthBytes);
    }
  }

  async write(offsetBytes: number, memory: PoolSegment, durable = false): Promise<void> {
    this.operations.write++;
    const kind = await this.#strike('write', offsetBytes, memory.lengthBytes);
    if (kind === null && !this.#holdBack) {
      await this.inner.write(offsetBytes, memory, durable);
      return;
    }
    const lengthBytes = kind === 'short' ? memory.lengthBytes >> 1 : memory.lengthBytes;
    const bytes = this.pool.bytes.slice(memory.offsetBytes, memory.offsetBytes + lengthBytes);
    if (kind === 'flip') bytes[lengthBytes >> 1]! ^= 0x10;
    this.#held.push({ offsetBytes, bytes });
    // With all before it: what is held back of the same place must not come after it.
    if (!this.#holdBack || durable) await this.#carryDown();
    if (kind === 'short') throw shortIo('write', offsetBytes, lengthBytes, memory.lengthBytes);
  }

  async flush(): Promise<void> {
    this.operations.flush++;
    await this.#strike('flush', 0, 0);
    await this.#carryDown();
    await this.inner.flush();
    this.#checkPower('flush', 0);
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.operations.discard++;
    await this.#strike('discard', offsetBytes, lengthBytes);
    await this.#carryDown();
    await this.inner.discard(offsetBytes, lengthBytes);
  }

  close(): Promise<void> {
    return this.inner.close();
  }

  /**
   * Power fails: of what was held back, each piece reaches the device or not. Operations fail until `powerOn`. What had been
   * under way may have happened or not.
   */
  async powerCut(random: Random): Promise<void> {
    this.#cut = true;
    for (const active of this.#rules) for (const go of active.stalled.splice(0)) go();
    const held = this.#held;
    this.#held = [];
    const survival = random.next();
    await this.#alone(async () => {
      // Any of them may arrive without the others; those to one place keep their order, as overlapping writes do.
      for (const { offsetBytes, bytes } of held)
        for (let at = 0; at < bytes.length; at += this.#tearBytes)
          if (chance(random, survival)) await this.#down(offsetBytes + at, bytes.subarray(at, at + this.#tearBytes));
      await this.inner.flush();
    });
  }
  powerOn(): void {
    this.#cut = false;
  }

  /** Changes bits of what is on the device, behind everyone's back. */
  async corrupt(offsetBytes: number, mask = 0x01): Promise<void> {
    await this.#carryDown();
    await this.#alone(async () => {
      const sector = Math.floor(offsetBytes / SECTOR_BYTES) * SECTOR_BYTES;
      await this.inner.read(sector, this.scratch);
      this.pool.bytes[this.scratch.offsetBytes + offsetBytes - sector]! ^= mask;
      await this.inner.write(sector, this.scratch);
    });
  }

  async #strike(operation: FaultOperation, offsetBytes: number, lengthBytes: number): Promise<'short' | 'flip' | null> {
    this.#checkPower(operation, offsetBytes);
    for (const active of this.#rules) {
      const { rule } = active;
      if (rule.operation !== operation || active.left <= 0) continue;
      const start = rule.start ?? 0;
      const end = rule.end ?? Number.POSITIVE_INFINITY;
      if (operation !== 'flush' && (offsetBytes >= end || offsetBytes + lengthBytes <= start)) continue;
      active.left--;
      active.struck++;
      if (rule.kind === 'stall') {
        await new Promise<void>((resolve) => {
          active.stalled.push(resolve);
        });
        this.#checkPower(operation, offsetBytes);
        continue;
      }
      if (rule.kind === 'eio')
        throw new FsError('deviceError', {
          op: `device.${operation}`,
          detail: `EIO at byte ${offsetBytes} (injected)`,
        });
      if (rule.kind === 'enospc')
        throw new FsError('noSpace', { op: `device.${operation}`, detail: `ENOSPC at byte ${offsetBytes} (injected)` });
      return rule.kind;
    }
    return null;
  }

  #checkPower(operation: FaultOperation, offsetBytes: number): void {
    if (this.#cut)
      throw new FsError('deviceError', {
        op: `device.${operation}`,
        detail: `EIO at byte ${offsetBytes} (power is off)`,
      });
  }

  #overlayHeld(offsetBytes: number, memory: PoolSegment): void {
    const end = offsetBytes + memory.lengthBytes;
    for (const write of this.#held) {
      const from = Math.max(offsetBytes, write.offsetBytes);
      const to = Math.min(end, write.offsetBytes + write.bytes.length);
      if (from >= to) continue;
      const bytes = write.bytes.subarray(from - write.offsetBytes, to - write.offsetBytes);
      this.pool.bytes.set(bytes, memory.offsetBytes + from - offsetBytes);
    }
  }

  #scratchFree: Promise<void> = Promise.resolve();
  /** The scratch sector is one. */
  #alone(work: () => Promise<void>): Promise<void> {
    const done = this.#scratchFree.then(work);
    this.#scratchFree = done.catch(() => undefined);
    return done;
  }

  #carryDown(): Promise<void> {
    return this.#alone(async () => {
      for (;;) {
        const write = this.#held[0];
        if (write === undefined) return;
        await this.#down(write.offsetBytes, write.bytes);
        // Still there unless the power went meanwhile.
        if (this.#held[0] === write) this.#held.shift();
      }
    });
  }

  /** Any bytes, any place: read, change, write by sectors. */
  async #down(offsetBytes: number, bytes: Uint8Array): Promise<void> {
    const scratch = this.scratch;
    for (let at = 0; at < bytes.length; ) {
      const position = offsetBytes + at;
      const sector = Math.floor(position / SECTOR_BYTES) * SECTOR_BYTES;
      const within = position - sector;
      const count = Math.min(SECTOR_BYTES - within, bytes.length - at);
      if (count < SECTOR_BYTES) await this.inner.read(sector, scratch);
      this.pool.bytes.set(bytes.subarray(at, at + count), scratch.offsetBytes + within);
      await this.inner.write(sector, scratch);
      at += count;
    }
  }
}

const shortIo = (op: string, offsetBytes: number, gotBytes: number, wantedBytes: number): FsError =>
  new FsError('shortIo', {
    op: `device.${op}`,
    detail: `${gotBytes} of ${wantedBytes} bytes at byte ${offsetBytes} (injected)`,
  });
