import { constants } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { CacheMap, EntryId, SlotId } from '../cache/cache-map.js';
import { TwinCacheMap } from '../cache/cache-map-twin.js';
import { ALL_SECTORS_MASK } from '../cache/slot-content.js';
import { ManualClock } from '../cache/testing.js';
import { FsError } from '../common/errors.js';
import { inodeNumber } from '../common/ids.js';
import { PAGE_BYTES } from '../common/units.js';
import { heapPagePool } from '../native/page-pool.js';
import { TokenMode } from '../token-manager/token.js';
import { HandleIo } from './handle-io.js';
import type { OpArgs, OpName, Reply } from './ops.js';
import type { Session } from './session.js';

const PAGES = 256;
const FILE_BYTES = PAGES * PAGE_BYTES;
const BYTES = FILE_BYTES / 4;
const FROM_POOL = 7;
const FROM_ENGINE = 9;

/** An engine with one file whose `bring` shows all its pages to hits, or (contended) finds them gone again. */
class BringingSession implements Session {
  readonly failure = null;
  readonly transferBytesMax = 1 << 30;
  readonly calls: OpName[] = [];
  readonly hints: OpArgs<'hint'>[] = [];
  readonly map: CacheMap;
  readonly #entry: EntryId;
  contended = false;

  constructor() {
    const pool = heapPagePool(FILE_BYTES);
    pool.bytes.fill(FROM_POOL);
    this.map = new TwinCacheMap(pool, new ManualClock(), 4);
    this.map.setLeaseDeadline(Number.MAX_SAFE_INTEGER);
    this.#entry = this.map.openEntry(inodeNumber(5), { sizeBytes: FILE_BYTES, mtimeNs: 0n, ctimeNs: 0n })!;
    this.map.setStatusMode(this.#entry, TokenMode.shared);
    this.map.setCoverage(this.#entry, [{ start: 0, end: FILE_BYTES, mode: TokenMode.shared }]);
  }

  open(): HandleIo {
    return new HandleIo(this, {
      handle: 1,
      ino: 5,
      generation: 0,
      entry: this.#entry,
      flags: constants.O_RDONLY,
      atimeDue: false,
    });
  }
  async call<K extends OpName>(op: K): Promise<Reply<K>> {
    this.calls.push(op);
    const content = { validMask: ALL_SECTORS_MASK, dirtyMask: 0, partialStart: 0, partialEnd: 0 };
    if (op === 'bring' && !this.contended)
      for (let page = 0; page < PAGES; page++) this.map.install(page as SlotId, this.#entry, page, content, false);
    const payload = op === 'read' ? new Uint8Array(BYTES).fill(FROM_ENGINE) : undefined;
    return { result: {} as Reply<K>['result'], payload };
  }
  callSync(): never {
    throw new FsError('notSupported', { op: 'test' });
  }
  notify<K extends OpName>(op: K, args: OpArgs<K>): void {
    if (op === 'hint') this.hints.push(args as OpArgs<'hint'>);
  }
  onFailure(): () => void {
    return () => undefined;
  }
  async close(): Promise<void> {}
}

describe('a handle’s bytes', () => {
  it('copies a long read that missed by a hit, once the engine has brought the pages', async () => {
    const session = new BringingSession();
    const file = session.open();
    const target = new Uint8Array(BYTES);
    expect(await file.read(target, 0)).toBe(BYTES);
    expect(target.every((byte) => byte === FROM_POOL)).toBe(true);
    expect(await file.read(target, 0)).toBe(BYTES);
    expect(session.calls).toEqual(['bring']);
  });

  it('leaves the read to the engine when the pages went in between, and for a while after (T3)', async () => {
    const session = new BringingSession();
    session.contended = true;
    const file = session.open();
    const target = new Uint8Array(BYTES);
    for (let i = 0; i < 3; i++) expect(await file.read(target, 0)).toBe(BYTES);
    expect(target.every((byte) => byte === FROM_ENGINE)).toBe(true);
    expect(session.calls).toEqual(['bring', 'read', 'read', 'read']);
  });

  it('asks the engine for the bytes themselves where the read is short', async () => {
    const session = new BringingSession();
    const file = session.open();
    await file.read(new Uint8Array(4096), 0).catch(() => undefined);
    expect(session.calls).toEqual(['read']);
  });

  it('refuses a buffer that was detached while its pages were brought', async () => {
    const session = new BringingSession();
    const target = new Uint8Array(BYTES);
    const reading = session.open().read(target, 0);
    structuredClone(target.buffer, { transfer: [target.buffer] });
    await expect(reading).rejects.toMatchObject({ code: 'ERR_INVALID_STATE' });
  });

  it('says how far sequential hits have come, once in two megabytes', async () => {
    const session = new BringingSession();
    const file = session.open();
    const target = new Uint8Array(BYTES);
    await file.read(target, 0);
    const chunk = target.subarray(0, 4096);
    for (let at = BYTES; at < FILE_BYTES; at += chunk.length) file.tryRead(at, chunk);
    expect(session.hints).toEqual(
      [0, FILE_BYTES / 2].map((offset) => ({ handle: 1, kind: 'passed', offset, length: FILE_BYTES / 2 })),
    );
    // Whoever jumps about says nothing.
    for (let i = 0; i < 2000; i++) file.tryRead(((i * 7919) % PAGES) * PAGE_BYTES, chunk);
    expect(session.hints.length).toBe(2);
  });
});
