import { errorFromRecord, errorToRecord, FsError, type FsErrorRecord } from '../common/errors.js';
import type { Reply } from './ops.js';

/**
 * Shared memory through which a waiting thread gets its answer: words 0 to 2 are state, bytes of JSON, bytes of payload; then the
 * JSON, then the payload. And the engine's health: word 0 is 1 when it is gone, word 1 the length of the error's JSON.
 *
 * Invariants: the state is stored last and then notified; a reply buffer that was given up on is never used again, since a
 * late answer may still land in it. Fault model: the engine's thread may die at any moment; the waiter looks at the health
 * word between slices of waiting.
 */
const WAITING = 0;
const RESULT = 1;
const ERROR = 2;
const HEAD_BYTES = 16;
const HEALTH_BYTES = 8192;
const SLICE_MS = 50;
/** Reply buffers grow in these steps. */
const GROW_BYTES = 256 * 1024;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export const newHealth = (): SharedArrayBuffer => new SharedArrayBuffer(HEALTH_BYTES);

/** The engine's thread: gone, and why. The first reason stays. */
export function reportDeath(health: SharedArrayBuffer, why: FsError): void {
  const words = new Int32Array(health);
  if (Atomics.load(words, 0) !== 0) return;
  const room = new Uint8Array(health, 8);
  let text = encoder.encode(JSON.stringify(errorToRecord(why)));
  if (text.length > room.length) text = encoder.encode(JSON.stringify({ reason: 701, op: why.op }));
  room.set(text);
  words[1] = text.length;
  Atomics.store(words, 0, 1);
  Atomics.notify(words, 0);
}

function deathOf(health: SharedArrayBuffer): FsError | null {
  const words = new Int32Array(health);
  if (Atomics.load(words, 0) === 0) return null;
  // TextDecoder takes no shared memory.
  const text = decoder.decode(new Uint8Array(health, 8, words[1]).slice());
  return errorFromRecord(JSON.parse(text) as FsErrorRecord);
}

/** The engine's thread: the answer of one request. */
export function answerSync(memory: SharedArrayBuffer, outcome: Reply | FsError): void {
  const words = new Int32Array(memory, 0, 3);
  const room = new Uint8Array(memory, HEAD_BYTES);
  let failed = FsError.is(outcome);
  let json = encoder.encode(JSON.stringify(FsError.is(outcome) ? errorToRecord(outcome) : outcome.result));
  let payload = FsError.is(outcome) ? undefined : outcome.payload;
  if (json.length + (payload?.length ?? 0) > room.length) {
    const detail = 'the answer is larger than the room that waits for it';
    json = encoder.encode(JSON.stringify(errorToRecord(new FsError('tooLarge', { op: 'reply', detail }))));
    payload = undefined;
    failed = true;
  }
  room.set(json);
  if (payload !== undefined) room.set(payload, json.length);
  words[1] = json.length;
  words[2] = payload?.length ?? 0;
  Atomics.store(words, 0, failed ? ERROR : RESULT);
  Atomics.notify(words, 0);
}

/** The waiting side: one request at a time, since the thread stands still meanwhile. */
export class SyncWaiter {
  #memory: SharedArrayBuffer | null = null;

  constructor(
    readonly health: SharedArrayBuffer,
    readonly deadlineMs: number,
  ) {}

  /** @returns memory for an answer of at most so many bytes, to be sent along with the request. */
  prepare(replyBytesMax: number): SharedArrayBuffer {
    const need = HEAD_BYTES + replyBytesMax;
    if (this.#memory === null || this.#memory.byteLength < need)
      this.#memory = new SharedArrayBuffer(Math.ceil(need / GROW_BYTES) * GROW_BYTES);
    new Int32Array(this.#memory)[0] = WAITING;
    return this.#memory;
  }

  /** The answer to the request that has just been sent. The payload is a view that the next request overwrites. */
  wait(op: string): Reply {
    const memory = this.#memory!;
    const words = new Int32Array(memory, 0, 3);
    const giveUpAt = performance.now() + this.deadlineMs;
    while (Atomics.load(words, 0) === WAITING) {
      if (Atomics.wait(words, 0, WAITING, SLICE_MS) !== 'timed-out') continue;
      const death = deathOf(this.health);
      const late = performance.now() >= giveUpAt;
      if (death === null && !late) continue;
      if (Atomics.load(words, 0) !== WAITING) break;
      this.#memory = null;
      const detail = `no answer within ${this.deadlineMs} ms; whether it will be done is not known`;
      throw death ?? new FsError('deadlinePassed', { op, detail });
    }
    const room = new Uint8Array(memory, HEAD_BYTES);
    const text = decoder.decode(room.slice(0, words[1]));
    if (Atomics.load(words, 0) === ERROR) throw errorFromRecord(JSON.parse(text) as FsErrorRecord);
    return {
      result: JSON.parse(text) as Reply['result'],
      payload: room.subarray(words[1]!, words[1]! + words[2]!),
    };
  }
}
