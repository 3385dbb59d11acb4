import type { Clock } from '../common/clock.js';
import { FsError } from '../common/errors.js';
import { below, type Random } from '../common/random.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import { type DeviceImage, type DeviceOp, DeviceRecord, type Fate, randomFates } from '../nsd/device-record.js';
import type { BlockDevice } from '../nsd/nsd-api.js';

const CHUNK_BYTES = 4096;

/**
 * A disk of the simulated world: sparse memory that outlives the node that opens it. Transfers take virtual time, drawn from the
 * seed, and end in any order; a write takes effect at a moment of its own between its start and its end, chunk by chunk, so readers beside it see torn
 * writes as on a real device. What has taken effect survives the node's death (a killed process loses nothing that the kernel has); a power cut
 * (`powerCut`) leaves what a completed flush has covered, and of the rest each write wholly, torn, or not at all. Every write, discard and
 * flush is numbered in a record; `keepRecord` keeps them all, so that the disk can be built as it may be after a power cut at any moment.
 */
export class SimDisk {
  #chunks: DeviceImage;
  #record: DeviceRecord;
  #keeps = false;
  /** Counted up by every power cut: transfers of an older life come to nothing. */
  #life = 0;
  /** Times what a transfer takes otherwise: a disk that is busy with something else. */
  slowness = 1;

  constructor(
    readonly lengthBytes: number,
    private readonly clock: Clock,
    private readonly random: Random,
    private readonly latencyMs: { readonly min: number; readonly max: number } = { min: 0.02, max: 0.4 },
    /** What is on it already, durably: `DeviceRecord.imageAt` of another disk, for one. */
    image: DeviceImage = new Map(),
  ) {
    this.#chunks = new Map(image);
    this.#record = new DeviceRecord(image);
  }

  /** What is on it becomes what its record begins with, and from here on nothing of the record is forgotten. */
  keepRecord(): DeviceRecord {
    this.#keeps = true;
    this.#record = new DeviceRecord(this.#chunks);
    return this.#record;
  }

  /**
   * The power of the machine fails, and is there again: whoever had the disk open has lost the way to it.
   * @param fate of each write that no flush has covered; drawn from the disk's seed without it.
   */
  powerCut(fate: (op: DeviceOp, index: number) => Fate = randomFates(this.random)): void {
    this.#life++;
    this.#chunks = this.#record.cut(fate);
  }

  /** One node's way to the disk. Cutting it makes everything fail that has not taken effect: the target's side of a fence (S4). */
  open(pool: PagePool): BlockDevice & { cut(): void } {
    let shut = false;
    const life = this.#life;
    const isCut = (): boolean => shut || life !== this.#life;
    const gone = (op: string, offsetBytes: number): FsError =>
      new FsError('deviceError', { op, object: `sim disk at ${offsetBytes}`, detail: 'the path to the device is cut' });
    const check = (op: string, offsetBytes: number, lengthBytes: number): void => {
      if (isCut()) throw gone(op, offsetBytes);
      if (
        offsetBytes % CHUNK_BYTES !== 0 ||
        lengthBytes % CHUNK_BYTES !== 0 ||
        offsetBytes < 0 ||
        offsetBytes + lengthBytes > this.lengthBytes
      ) {
        throw new FsError('outOfRange', { op, object: `sim disk at ${offsetBytes}`, detail: `${lengthBytes} bytes` });
      }
    };
    const transfer = (op: string, offsetBytes: number, steps: (() => void)[]): Promise<void> =>
      new Promise((resolve, reject) => {
        const total = this.#latency();
        const run = (at: number): void => {
          if (isCut()) {
            reject(gone(op, offsetBytes));
            return;
          }
          steps[at]?.();
          if (at + 1 < steps.length) this.clock.after(total / (steps.length * 4), () => run(at + 1));
          else
            this.clock.after(total / 4, () => {
              if (isCut()) reject(gone(op, offsetBytes));
              else resolve();
            });
        };
        this.clock.after(total / 2, () => run(0));
      });
    return {
      lengthBytes: this.lengthBytes,
      keeper: `00000000-0000-4000-8000-${String(life + 1).padStart(12, '0')}`,
      logicalBlockBytes: 512,
      read: (offsetBytes: number, memory: PoolSegment) => {
        check('disk.read', offsetBytes, memory.lengthBytes);
        return transfer('disk.read', offsetBytes, [() => this.#copyOut(offsetBytes, pool.bytes, memory)]);
      },
      write: (offsetBytes: number, memory: PoolSegment, durable = false) => {
        check('disk.write', offsetBytes, memory.lengthBytes);
        // The device takes the bytes when it gets to them: memory that changes meanwhile is written changed (S2).
        const half = Math.ceil(memory.lengthBytes / CHUNK_BYTES / 2) * CHUNK_BYTES;
        const parts = [
          { at: 0, lengthBytes: half },
          { at: half, lengthBytes: memory.lengthBytes - half },
        ].filter((part) => part.lengthBytes > 0);
        const begun: number[] = [];
        return transfer(
          'disk.write',
          offsetBytes,
          parts.map((part) => () => {
            const bytes = pool.bytes.slice(
              memory.offsetBytes + part.at,
              memory.offsetBytes + part.at + part.lengthBytes,
            );
            begun.push(this.#record.begin({ kind: 'write', offsetBytes: offsetBytes + part.at, bytes, durable }));
            this.#copyIn(offsetBytes + part.at, bytes);
          }),
        ).then(() => this.#ended(begun));
      },
      flush: () => {
        check('disk.flush', 0, 0);
        const begun = this.#record.begin({ kind: 'flush' });
        return transfer('disk.flush', 0, []).then(() => {
          this.#ended([begun]);
          if (!this.#keeps) this.#record.compact();
        });
      },
      discard: (offsetBytes: number, lengthBytes: number) => {
        check('disk.discard', offsetBytes, lengthBytes);
        const begun: number[] = [];
        return transfer('disk.discard', offsetBytes, [
          () => {
            begun.push(this.#record.begin({ kind: 'discard', offsetBytes, lengthBytes }));
            for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += CHUNK_BYTES) this.#chunks.delete(at);
          },
        ]).then(() => this.#ended(begun));
      },
      close: () => Promise.resolve(),
      cut: () => {
        shut = true;
      },
    };
  }

  /** A sector as it is now, for whoever looks at the world from outside. */
  peek(offsetBytes: number): Uint8Array {
    return this.#chunks.get(offsetBytes)?.slice() ?? new Uint8Array(CHUNK_BYTES);
  }

  /** Flips one bit: decay. */
  corrupt(offsetBytes: number): void {
    const at = Math.floor(offsetBytes / CHUNK_BYTES) * CHUNK_BYTES;
    const chunk = this.peek(at);
    const index = offsetBytes - at;
    chunk[index] = chunk[index]! ^ (1 << below(this.random, 8));
    this.#ended([this.#record.begin({ kind: 'write', offsetBytes: at, bytes: chunk })]);
    this.#chunks.set(at, chunk);
  }

  #ended(begun: readonly number[]): void {
    for (const one of begun) this.#record.end(one);
  }

  #latency(): number {
    const { min, max } = this.latencyMs;
    return (min + this.random.next() * (max - min)) * this.slowness;
  }
  #copyOut(offsetBytes: number, pool: Uint8Array, memory: PoolSegment): void {
    for (let done = 0; done < memory.lengthBytes; done += CHUNK_BYTES) {
      const chunk = this.#chunks.get(offsetBytes + done);
      const target = memory.offsetBytes + done;
      if (chunk === undefined) pool.fill(0, target, target + CHUNK_BYTES);
      else pool.set(chunk, target);
    }
  }
  #copyIn(offsetBytes: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; done += CHUNK_BYTES)
      this.#chunks.set(offsetBytes + done, bytes.slice(done, done + CHUNK_BYTES));
  }
}
