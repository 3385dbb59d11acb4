import type { PoolSegment } from '../native/page-pool.js';
import type { Run } from './rdma-wire.js';
import type { Work } from './rdma-work.js';
import type { VerbsQueue, VerbsWindow } from './verbs-port.js';

/** A transfer cut into reads or writes: each within one run of the peer's window, one piece's length, and the device's segments. */
export class OneSided {
  #run = 0;
  #runOffset: number;
  #segment = 0;
  #segmentOffset = 0;
  postedBytes = 0;
  doneBytes = 0;

  /** The caller has checked that the window holds it all. */
  constructor(
    readonly id: number,
    readonly writing: boolean,
    readonly runs: readonly Run[],
    windowOffsetBytes: number,
    readonly local: readonly PoolSegment[],
    readonly lengthBytes: number,
  ) {
    this.#runOffset = windowOffsetBytes;
    this.#skipRuns();
  }

  get finished(): boolean {
    return this.postedBytes === this.lengthBytes;
  }

  #skipRuns(): void {
    while (this.#run < this.runs.length && this.#runOffset >= this.runs[this.#run]!.lengthBytes) {
      this.#runOffset -= this.runs[this.#run]!.lengthBytes;
      this.#run++;
    }
  }

  next(pieceBytesMax: number, segmentsMax: number, onDone: (bytes: number) => void): OneSidedWork {
    const run = this.runs[this.#run]!;
    let room = Math.min(pieceBytesMax, run.lengthBytes - this.#runOffset, this.lengthBytes - this.postedBytes);
    const local: PoolSegment[] = [];
    let bytes = 0;
    while (room > 0 && local.length < segmentsMax) {
      const segment = this.local[this.#segment]!;
      const take = Math.min(room, segment.lengthBytes - this.#segmentOffset);
      local.push({ offsetBytes: segment.offsetBytes + this.#segmentOffset, lengthBytes: take });
      room -= take;
      bytes += take;
      this.#segmentOffset += take;
      if (this.#segmentOffset === segment.lengthBytes) {
        this.#segment++;
        this.#segmentOffset = 0;
      }
    }
    const address = run.address + this.#runOffset;
    this.#runOffset += bytes;
    this.#skipRuns();
    this.postedBytes += bytes;
    return new OneSidedWork(this.writing, local, address, run.key, bytes, onDone);
  }
}

export class OneSidedWork implements Work {
  readonly awaited = true;
  constructor(
    readonly writing: boolean,
    readonly local: readonly PoolSegment[],
    readonly address: number,
    readonly key: number,
    readonly bytes: number,
    readonly onDone: (bytes: number) => void,
  ) {}
  queue(queue: VerbsQueue, id: number, signalled: boolean): void {
    if (this.writing) queue.write(id, this.local, this.address, this.key, signalled);
    else queue.read(id, this.local, this.address, this.key, signalled);
  }
  done(): void {
    this.onDone(this.bytes);
  }
}

export class BindWork implements Work {
  readonly awaited = false;
  constructor(
    readonly window: VerbsWindow,
    readonly offsetBytes: number,
    readonly lengthBytes: number,
    readonly access: 'read' | 'write',
  ) {}
  queue(queue: VerbsQueue, id: number, signalled: boolean): void {
    queue.bind(id, this.window, this.offsetBytes, this.lengthBytes, this.access, signalled);
  }
  done(): void {}
}

export class InvalidateWork implements Work {
  constructor(
    readonly window: VerbsWindow,
    readonly after: (() => void) | null,
  ) {}
  get awaited(): boolean {
    return this.after !== null;
  }
  queue(queue: VerbsQueue, id: number, signalled: boolean): void {
    queue.invalidate(id, this.window, signalled);
  }
  done(): void {
    this.after?.();
  }
}
