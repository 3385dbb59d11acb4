import { type ByteRange, contains, overlaps, subtract, WHOLE } from '../common/byte-range.js';
import type { Clock, Timer } from '../common/clock.js';
import { sleep } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import type { InodeNumber } from '../common/ids.js';
import { silentLogger } from '../common/logger.js';
import { SeededRandom } from '../common/random.js';
import { PAGE_BYTES, SECTOR_BYTES } from '../common/units.js';
import { heapPagePool, type PagePool } from '../native/page-pool.js';
import { TokenClass, type TokenItem, TokenMode, type TokenPins } from '../token-manager/token.js';
import type { AcquireOptions, RevokeHandler, TokenClientApi } from '../token-manager/token-client-api.js';
import type { BackingStore, FilePiece, FileWrite } from './backing-store.js';
import type { CacheMap } from './cache-map.js';
import { TwinCacheMap } from './cache-map-twin.js';
import { createPageCache, type PageCacheSettings } from './page-cache.js';
import type { CachedFile, PageCacheApi } from './page-cache-api.js';

/** What the page cache's tests stand on: time by hand, a byte array for a file system, tokens that everybody is granted. */

/** Virtual time: it moves only when a test waits, straight to the next timer. */
export class ManualClock implements Clock {
  #nowMs = 1000;
  #sequence = 0;
  readonly #timers: { at: number; sequence: number; fire: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }
  wallNs(): bigint {
    return BigInt(Math.floor(this.#nowMs)) * 1_000_000n;
  }
  after(delayMs: number, fire: () => void): Timer {
    const timer = { at: this.#nowMs + delayMs, sequence: this.#sequence++, fire };
    this.#timers.push(timer);
    return {
      cancel: () => {
        const at = this.#timers.indexOf(timer);
        if (at >= 0) this.#timers.splice(at, 1);
      },
    };
  }

  /** Waits for the promise; fails when it can't come, or doesn't within `limitMs` of virtual time. */
  async until<T>(promise: Promise<T>, limitMs = 600_000): Promise<T> {
    let settled = false;
    promise.then(
      () => (settled = true),
      () => (settled = true),
    );
    const end = this.#nowMs + limitMs;
    for (await microtasks(); !settled; await microtasks()) {
      if (this.#timers.length === 0) throw new Error('stuck: no timer is left, and what is waited for has not come');
      if (this.#nowMs > end) throw new Error(`stuck: not within ${limitMs} ms of virtual time`);
      this.#step();
    }
    return promise;
  }
  async advance(ms: number): Promise<void> {
    const end = this.#nowMs + ms;
    for (await microtasks(); this.#timers.some((timer) => timer.at <= end); await microtasks()) this.#step();
    this.#nowMs = end;
  }
  /** Everything that needs no time to pass. */
  settle(): Promise<void> {
    return this.advance(0);
  }

  #step(): void {
    let first = 0;
    for (const [i, timer] of this.#timers.entries()) {
      const best = this.#timers[first]!;
      if (timer.at < best.at || (timer.at === best.at && timer.sequence < best.sequence)) first = i;
    }
    const [timer] = this.#timers.splice(first, 1);
    this.#nowMs = Math.max(this.#nowMs, timer!.at);
    timer!.fire();
  }
}

const microtasks = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Files as byte arrays. Checks what the cache promises it: whole sectors, ascending, stable while written (S2), room reserved. */
export class FakeBacking implements BackingStore {
  readonly files = new Map<InodeNumber, Uint8Array>();
  readonly #reserved = new Map<InodeNumber, Set<number>>();
  readonly reads: { ino: InodeNumber; pieces: readonly FilePiece[] }[] = [];
  readonly writes: { ino: InodeNumber; pieces: readonly FilePiece[] }[] = [];
  /** How many files each write of several had. */
  readonly together: number[] = [];
  /** Files of which a write could not be taken back behind the end. */
  readonly leftBehind: InodeNumber[] = [];
  readonly losses: { readonly ino: InodeNumber; readonly range: ByteRange; readonly reason: string }[] = [];
  /** Called by each operation; may wait, or throw in its place. */
  beforeRead: (pieces: readonly FilePiece[]) => Promise<void> = async () => undefined;
  beforeWrite: (pieces: readonly FilePiece[]) => Promise<void> = async () => undefined;
  beforeReserve: (range: ByteRange) => Promise<void> = async () => undefined;
  /** Files whose space was given back under write-outs in flight: they pass over what has none. */
  readonly punched = new Set<InodeNumber>();
  readsInFlight = 0;
  writesInFlight = 0;
  writesInFlightMax = 0;

  constructor(
    private readonly pool: PagePool,
    private readonly fileBytes: number,
  ) {}

  bytesOf(ino: InodeNumber): Uint8Array {
    let bytes = this.files.get(ino);
    if (bytes === undefined) this.files.set(ino, (bytes = new Uint8Array(this.fileBytes)));
    return bytes;
  }

  async read(ino: InodeNumber, pieces: readonly FilePiece[]): Promise<void> {
    this.#check(pieces);
    this.reads.push({ ino, pieces });
    this.readsInFlight++;
    try {
      await this.beforeRead(pieces);
      for (const { offsetBytes, lengthBytes, poolOffsetBytes } of pieces) {
        const target = this.pool.bytes.subarray(poolOffsetBytes, poolOffsetBytes + lengthBytes);
        target.fill(0);
        target.set(this.bytesOf(ino).subarray(offsetBytes, offsetBytes + lengthBytes));
      }
    } finally {
      this.readsInFlight--;
    }
  }

  leftBehindEnd(ino: InodeNumber): void {
    this.leftBehind.push(ino);
  }

  makeDurable(): Promise<boolean> {
    return Promise.resolve(true);
  }
  lost(ino: InodeNumber, range: ByteRange, cause: FsError): void {
    this.losses.push({ ino, range, reason: cause.reason });
  }
  writeTogether(writes: readonly FileWrite[]): Promise<void>[] {
    this.together.push(writes.length);
    return writes.map(({ ino, pieces }) => this.write(ino, pieces));
  }
  async write(ino: InodeNumber, pieces: readonly FilePiece[]): Promise<void> {
    this.#check(pieces);
    this.writes.push({ ino, pieces });
    this.writesInFlight++;
    this.writesInFlightMax = Math.max(this.writesInFlightMax, this.writesInFlight);
    const before = pieces.map(({ poolOffsetBytes, lengthBytes }) =>
      this.pool.bytes.slice(poolOffsetBytes, poolOffsetBytes + lengthBytes),
    );
    try {
      await this.beforeWrite(pieces);
      for (const [i, { offsetBytes, lengthBytes, poolOffsetBytes }] of pieces.entries()) {
        const now = this.pool.bytes.subarray(poolOffsetBytes, poolOffsetBytes + lengthBytes);
        if (Buffer.compare(now, before[i]!) !== 0) throw new Error('S2: the bytes changed while they were written');
        for (const sector of sectorsOf({ start: offsetBytes, end: offsetBytes + lengthBytes })) {
          const at = sector * SECTOR_BYTES;
          if (this.isReserved(ino, { start: at, end: at + 1 }))
            this.bytesOf(ino).set(now.subarray(at - offsetBytes, at - offsetBytes + SECTOR_BYTES), at);
          else if (!this.punched.has(ino)) throw new Error('a write where no space was reserved');
        }
      }
    } finally {
      this.writesInFlight--;
    }
  }

  async reserve(ino: InodeNumber, range: ByteRange): Promise<void> {
    await this.beforeReserve(range);
    let reserved = this.#reserved.get(ino);
    if (reserved === undefined) this.#reserved.set(ino, (reserved = new Set()));
    for (const sector of sectorsOf(range)) reserved.add(sector);
  }
  isReserved(ino: InodeNumber, range: ByteRange): boolean {
    const reserved = this.#reserved.get(ino);
    return [...sectorsOf(range)].every((sector) => reserved?.has(sector));
  }
  /** As a truncation does it: space given back, a hole there. */
  punch(ino: InodeNumber, range: ByteRange): void {
    this.punched.add(ino);
    const bytes = this.bytesOf(ino);
    for (const sector of sectorsOf({ start: range.start, end: Math.min(range.end, bytes.length) })) {
      if (sector * SECTOR_BYTES < range.start) continue;
      this.#reserved.get(ino)?.delete(sector);
      bytes.fill(0, sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
    }
  }

  #check(pieces: readonly FilePiece[]): void {
    let last = 0;
    for (const { offsetBytes, lengthBytes, poolOffsetBytes } of pieces) {
      const whole = offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0 && lengthBytes > 0;
      if (!whole || poolOffsetBytes % SECTOR_BYTES !== 0) throw new Error('pieces are whole sectors');
      if (offsetBytes < last) throw new Error('pieces are ascending');
      last = offsetBytes + lengthBytes;
    }
  }
}

function* sectorsOf(range: ByteRange): Generator<number> {
  for (let sector = Math.floor(range.start / SECTOR_BYTES); sector * SECTOR_BYTES < range.end; sector++) yield sector;
}

interface Held extends ByteRange {
  readonly mode: TokenMode;
}

/** Grants everything that isn't being revoked, and revokes when a test says so: waits for pins, runs the handler, takes away. */
export class FakeTokens implements TokenClientApi {
  readonly #held = new Map<number, Held[]>();
  readonly #pins = new Set<{ items: readonly TokenItem[] }>();
  readonly #revoking: { object: number; range: ByteRange }[] = [];
  handler: RevokeHandler | null = null;
  readonly asked: TokenItem[] = [];
  /** No more than what is required is granted. */
  strict = false;

  constructor(private readonly clock: Clock) {}

  tryPin(items: readonly TokenItem[]): TokenPins | null {
    if (items.some((item) => this.#isRevoking(item) || !this.#holds(item))) return null;
    const pin = { items };
    this.#pins.add(pin);
    return { release: () => void this.#pins.delete(pin) };
  }

  async acquire(items: readonly TokenItem[], options?: AcquireOptions): Promise<TokenPins> {
    for (;;) {
      const aborted = options?.signal?.aborted;
      if (aborted) throw new FsError('aborted', { op: 'token.acquire' });
      const pins = this.tryPin(items);
      if (pins !== null) return pins;
      if (items.some((item) => this.#isRevoking(item))) await sleep(this.clock, 1);
      else {
        await sleep(this.clock, 0);
        for (const item of items) this.#grant(item);
      }
    }
  }

  ask(items: readonly TokenItem[]): void {
    for (const item of items) void this.acquire([item]).then((pins) => pins.release());
  }

  heldRange(tokenClass: TokenClass, object: number, offset: number, mode: TokenMode): ByteRange | null {
    if (tokenClass !== TokenClass.data) return null;
    let pieces: ByteRange[] = (this.#held.get(object) ?? []).filter((held) => held.mode >= mode);
    for (const revoking of this.#revoking)
      if (revoking.object === object) pieces = pieces.flatMap((piece) => subtract(piece, revoking.range));
    let found = pieces.find((piece) => piece.start <= offset && offset < piece.end) ?? null;
    for (let grown = true; found !== null && grown; ) {
      const { start, end }: ByteRange = found;
      const next = pieces.find((piece) => piece.end === start || piece.start === end);
      grown = next !== undefined;
      if (next !== undefined) found = { start: Math.min(start, next.start), end: Math.max(end, next.end) };
    }
    return found;
  }

  heldMode(tokenClass: TokenClass, object: number, offset: number): TokenMode {
    if (tokenClass !== TokenClass.data) return TokenMode.none;
    return (
      (this.#held.get(object) ?? []).find((held) => held.start <= offset && offset < held.end)?.mode ?? TokenMode.none
    );
  }

  async release(_class: TokenClass, object: number, range: ByteRange): Promise<void> {
    await this.revoke(object, range, TokenMode.none);
  }
  setRevokeHandler(_class: TokenClass, handler: RevokeHandler): void {
    this.handler = handler;
  }

  /** `taken`: in the turn in which the token has gone, before anybody here can have it again. */
  async revoke(
    object: number,
    range: ByteRange,
    keep: TokenMode = TokenMode.none,
    taken: () => void = () => undefined,
  ): Promise<void> {
    const revoking = { object, range };
    this.#revoking.push(revoking);
    while ([...this.#pins].some(({ items }) => items.some((i) => i.object === object && overlaps(i.required, range))))
      await sleep(this.clock, 1);
    await this.handler!.revoke({ class: TokenClass.data, object, range, keep });
    this.#take(object, range, keep);
    taken();
    this.#revoking.splice(this.#revoking.indexOf(revoking), 1);
  }

  #isRevoking(item: TokenItem): boolean {
    return this.#revoking.some((r) => r.object === item.object && overlaps(r.range, item.required));
  }
  #holds({ object, required, mode }: TokenItem): boolean {
    const held = this.heldRange(TokenClass.data, object, required.start, mode);
    return held !== null && contains(held, required);
  }
  #grant(item: TokenItem): void {
    this.asked.push(item);
    const range = this.strict || this.#revoking.length > 0 ? item.required : item.desired;
    const stronger = (this.#held.get(item.object) ?? []).filter((held) => held.mode >= item.mode);
    let wanted: ByteRange[] = [range];
    for (const held of stronger) wanted = wanted.flatMap((piece) => subtract(piece, held));
    for (const piece of wanted) {
      this.#take(item.object, piece, TokenMode.none);
      this.#held.get(item.object)!.push({ start: piece.start, end: piece.end, mode: item.mode });
    }
  }
  #take(object: number, range: ByteRange, keep: TokenMode): void {
    const after: Held[] = [];
    for (const held of this.#held.get(object) ?? []) {
      for (const rest of subtract(held, range)) after.push({ ...rest, mode: held.mode });
      const cut = { start: Math.max(held.start, range.start), end: Math.min(held.end, range.end) };
      if (keep >= TokenMode.shared && cut.start < cut.end) after.push({ ...cut, mode: TokenMode.shared });
    }
    this.#held.set(object, after);
  }
}

export interface TestCache<C extends Clock = ManualClock> {
  readonly clock: C;
  readonly map: CacheMap;
  readonly backing: FakeBacking;
  readonly tokens: FakeTokens;
  readonly cache: PageCacheApi;
  readonly counters: Counters;
  readonly pool: PagePool;
}

interface TestOptions {
  readonly pages?: number;
  readonly fileBytes?: number;
  readonly entries?: number;
  readonly settings?: Partial<PageCacheSettings>;
}

export function testCache(options: TestOptions = {}): TestCache {
  const clock = new ManualClock();
  const pool = heapPagePool((options.pages ?? 64) * PAGE_BYTES);
  return testCacheOver(clock, pool, new TwinCacheMap(pool, clock, options.entries ?? 16), options);
}

/** Over a map and a clock of the test's own. */
export function testCacheOver<C extends Clock>(
  clock: C,
  pool: PagePool,
  map: CacheMap,
  options: TestOptions = {},
): TestCache<C> {
  map.setLeaseDeadline(Number.MAX_SAFE_INTEGER);
  const backing = new FakeBacking(pool, options.fileBytes ?? 4 << 20);
  const tokens = new FakeTokens(clock);
  const counters = new Counters();
  const cache = createPageCache({
    map,
    pool,
    tokens,
    backing,
    clock,
    random: new SeededRandom(1),
    logger: silentLogger,
    counters,
    settings: options.settings,
  });
  return { clock, map, backing, tokens, cache, counters, pool };
}

/** A file as the file system above would use it: tokens pinned around each operation, size set as writes are copied, hits tried first. */
export class TestFile {
  constructor(
    readonly t: TestCache<Clock>,
    readonly file: CachedFile,
  ) {}

  static open(t: TestCache<Clock>, ino: number, content: Uint8Array | number = 0): TestFile {
    const number = ino as InodeNumber;
    const sizeBytes = typeof content === 'number' ? content : content.length;
    if (typeof content !== 'number') t.backing.bytesOf(number).set(content);
    const file = t.cache.attach(number, { sizeBytes, mtimeNs: 0n, ctimeNs: 0n });
    file.setStatusMode(TokenMode.exclusive);
    return new TestFile(t, file);
  }

  get ino(): InodeNumber {
    return this.file.ino;
  }
  get size(): number {
    return this.file.state.sizeBytes;
  }

  async pinned<T>(range: ByteRange, mode: TokenMode, body: () => Promise<T>): Promise<T> {
    const pins = await this.t.tokens.acquire([this.file.dataItem(range, mode)]);
    try {
      return await body();
    } finally {
      this.file.publish();
      pins.release();
    }
  }

  /** Through the engine. */
  async read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    const end = Math.min(offset + length, this.size);
    if (offset >= end) return new Uint8Array(0);
    const target = new Uint8Array(end - offset);
    await this.pinned({ start: offset, end }, TokenMode.shared, () => this.file.read(offset, target, { signal }));
    return target;
  }
  async write(offset: number, source: Uint8Array, copied: () => void = () => undefined): Promise<void> {
    const end = offset + source.length;
    const onCopied = (): void => {
      this.file.noteWrite(end, this.t.clock.wallNs());
      copied();
    };
    await this.pinned({ start: offset, end }, TokenMode.exclusive, () => this.file.write(offset, source, { onCopied }));
  }
  /** As an application's thread does it: a hit if it can be, else the engine. */
  hitRead(offset: number, length: number): Uint8Array | number {
    const target = new Uint8Array(length);
    if (this.file.entry === null) return -2;
    const result = this.t.map.read(this.file.entry, offset, target);
    return result < 0 ? result : target.subarray(0, result);
  }
  hitWrite(offset: number, source: Uint8Array): number {
    return this.file.entry === null ? -2 : this.t.map.write(this.file.entry, offset, source, this.t.clock.wallNs());
  }
  async readAsApplication(offset: number, length: number): Promise<{ hit: boolean; bytes: Uint8Array }> {
    const hit = this.hitRead(offset, length);
    if (typeof hit !== 'number') return { hit: true, bytes: hit };
    return { hit: false, bytes: await this.read(offset, length) };
  }
  /** As the file system does it: write hits off, space given back, the pages behind it, zeros in the last sector. */
  async truncate(size: number): Promise<void> {
    await this.pinned({ start: size, end: WHOLE.end }, TokenMode.exclusive, async () => {
      this.file.setStatusMode(TokenMode.none);
      const before = this.size;
      if (size < before) {
        const sectorEnd = Math.ceil(size / SECTOR_BYTES) * SECTOR_BYTES;
        this.t.backing.punch(this.ino, { start: sectorEnd, end: WHOLE.end });
        await this.file.discard({ start: size, end: WHOLE.end });
        if (sectorEnd > size) await this.file.zero({ start: size, end: Math.min(before, sectorEnd) });
      }
      this.file.setState({ sizeBytes: size, mtimeNs: 1n, ctimeNs: 1n });
      this.file.setStatusMode(TokenMode.exclusive);
    });
  }
}

export const pattern = (length: number, seed: number): Uint8Array => {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = ((i * 31 + seed * 17 + (i >> 8)) % 255) + 1;
  return bytes;
};
