/**
 * NSDs in memory with volatile caches: their power can be cut, under living nodes or with them. What a flush has covered stays; of the rest each write
 * is there, not there, or (where an NSD keeps no intent, S1) torn, as the test says. Nodes notice it as they do with real ones: at their next read, write,
 * discard or flush (`lossesOf`). Each flush says what it is for, and can be left out, or be preceded by a power cut.
 */
import { FsError } from '../common/errors.js';
import type { NsdIndex } from '../common/ids.js';
import { chance, type Random } from '../common/random.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { NsdExtent, NsdFlushOptions, NsdWriteOptions, SectorIo } from '../nsd/nsd-api.js';
import { readsAsZeros } from '../nsd/nsd-layout.js';
import { FLUSHES, type Flush } from './durable.js';
import { keyOf } from './log/logged-sectors.js';
import { RamNsds } from './testing.js';

interface State {
  readonly bytes: Uint8Array | undefined;
  readonly word: number;
  readonly torn: boolean;
}
interface Change extends State {
  readonly at: number;
  readonly mayTear: boolean;
}
export type Fate = 'absent' | 'present' | 'torn';
export type Fates = (nsd: NsdIndex, sector: number) => Fate;
export const NOTHING_SURVIVES: Fates = () => 'absent';
export function randomFates(random: Random): Fates {
  const survival = random.next();
  return () => (chance(random, 0.3) ? 'torn' : chance(random, survival) ? 'present' : 'absent');
}

/** What the clients of all nodes share. */
class Caches {
  at = 0;
  /** By NSD and sector: as it was durably, and what came since. */
  readonly pending: Map<number, { base: State; changes: Change[] }>[];
  readonly torn: Set<number>[];
  readonly lives: number[];
  readonly seen = new Map<Flush, number>();
  leftOut: Flush | null = null;
  before: (why: Flush) => void = () => undefined;

  constructor(count: number) {
    const each = <T>(make: () => T): T[] => Array.from({ length: count }, make);
    this.pending = each(() => new Map());
    this.torn = each(() => new Set());
    this.lives = each(() => 1);
  }
}

export class VolatileNsds extends RamNsds {
  readonly #caches: Caches;
  readonly #pool: PagePool;
  readonly #met = new Map<NsdIndex, { life: number; losses: number }>();
  /** Sectors that are being written under a log record; and those whose zeros a file shows. */
  readonly #logged = new Set<number>();
  readonly #exposed = new Set<number>();

  constructor(blocks: readonly number[], pool: PagePool, other?: VolatileNsds) {
    super(blocks, pool, other);
    this.#pool = pool;
    this.#caches = other === undefined ? new Caches(blocks.length) : other.#caches;
  }
  override from(pool: PagePool): VolatileNsds {
    return new VolatileNsds(this.blocks, pool, this);
  }

  /** As if it did nothing. */
  leaveOut(why: Flush): void {
    this.#caches.leftOut = why;
  }
  /** Called when a flush is asked for, after what was to be called before. */
  beforeFlush(also: (why: Flush) => void): void {
    const { before } = this.#caches;
    this.#caches.before = (why) => {
      before(why);
      also(why);
    };
  }
  flushesFor(why: Flush): number {
    return this.#caches.seen.get(why) ?? 0;
  }
  /** Its bytes have another checksum than the one that is kept for them. */
  damage(nsd: NsdIndex, sector: number): void {
    this.#caches.torn[nsd]!.add(sector);
  }
  unflushedOn(nsd: NsdIndex): number {
    return this.#caches.pending[nsd]!.size;
  }

  /** Of all of them, at once. */
  powerCut(fate: Fates = NOTHING_SURVIVES): void {
    const { pending, torn, lives } = this.#caches;
    for (const [index, sectors] of pending.entries()) {
      const nsd = index as NsdIndex;
      for (const [sector, { base, changes }] of sectors) {
        let state = base;
        for (const change of changes) {
          const what = fate(nsd, sector);
          if (what === 'present') state = change;
          else if (what === 'torn' && change.mayTear) state = { ...state, torn: true };
        }
        super.put(nsd, sector, state.bytes, state.word);
        if (state.torn) torn[index]!.add(sector);
        else torn[index]!.delete(sector);
      }
      sectors.clear();
      lives[index]!++;
    }
  }

  protected override put(nsd: NsdIndex, sector: number, bytes: Uint8Array | undefined, word: number): void {
    const { pending, torn } = this.#caches;
    const before = {
      bytes: this.devices[nsd]!.get(sector),
      word: this.shared.words[nsd]!.get(sector) ?? 0,
      torn: torn[nsd]!.has(sector),
    };
    let entry = pending[nsd]!.get(sector);
    if (entry === undefined) {
      entry = { base: before, changes: [] };
      pending[nsd]!.set(sector, entry);
    }
    const key = keyOf({ nsd, sector });
    const mayTear = this.#logged.has(key) || (readsAsZeros(before.word) && !this.#exposed.has(key));
    entry.changes.push({ at: ++this.#caches.at, bytes, word, torn: false, mayTear });
    torn[nsd]!.delete(sector);
    super.put(nsd, sector, bytes, word);
  }

  override async read(ios: readonly SectorIo[]): Promise<void> {
    await super.read(ios);
    for (const { nsd } of ios) this.#meet(nsd);
    for (const { nsd, sector, memory } of ios)
      for (const at of sectors(memory)) {
        if (!this.#caches.torn[nsd]!.has(sector + at)) continue;
        this.#pool.bytes.fill(0xee, memory.offsetBytes, memory.offsetBytes + memory.lengthBytes);
        throw new FsError('checksumMismatch', { op: 'nsd.read', object: `nsd ${nsd} sector ${sector + at}` });
      }
  }
  override async write(ios: readonly SectorIo[], options: NsdWriteOptions = {}): Promise<void> {
    const logged = keysOf(ios.filter((io) => io.logged === true || io.selfChecking === true));
    const exposed = keysOf(ios.filter((io) => io.exposed === true));
    for (const key of logged) this.#logged.add(key);
    for (const key of exposed) this.#exposed.add(key);
    await super.write(ios);
    for (const key of logged) this.#logged.delete(key);
    for (const key of exposed) this.#exposed.delete(key);
    for (const { nsd } of ios) this.#meet(nsd);
    if (options.flush === undefined) return;
    const written = new Set(keysOf(ios));
    await this.#flush(new Set(ios.map(({ nsd }) => nsd)), options.flush, (nsd, sector) =>
      written.has(keyOf({ nsd, sector })),
    );
  }
  override async discard(extents: readonly NsdExtent[]): Promise<void> {
    await super.discard(extents);
    for (const { nsd } of extents) this.#meet(nsd);
  }
  override flush(nsds: readonly NsdIndex[], options?: NsdFlushOptions): Promise<void> {
    return this.#flush(new Set(nsds), options?.why, () => true);
  }

  async #flush(
    nsds: ReadonlySet<NsdIndex>,
    reason: string | undefined,
    covers: (nsd: NsdIndex, sector: number) => boolean,
  ): Promise<void> {
    const why = FLUSHES.find((name) => name === reason);
    if (why === undefined) throw new Error(`a flush without a name: ${reason}`);
    const { seen, pending, leftOut, before } = this.#caches;
    seen.set(why, (seen.get(why) ?? 0) + 1);
    before(why);
    const began = this.#caches.at;
    const life = [...this.#caches.lives];
    await super.flush([...nsds]);
    for (const nsd of nsds) {
      this.#meet(nsd);
      if (why === leftOut || life[nsd] !== this.#caches.lives[nsd]) continue;
      for (const [sector, entry] of pending[nsd]!) {
        if (!covers(nsd, sector)) continue;
        const covered = entry.changes.filter(({ at }) => at <= began);
        entry.base = covered.at(-1) ?? entry.base;
        entry.changes = entry.changes.slice(covered.length);
        if (entry.changes.length === 0) pending[nsd]!.delete(sector);
      }
    }
  }

  #meet(nsd: NsdIndex): void {
    const life = this.#caches.lives[nsd]!;
    const known = this.#met.get(nsd) ?? { life, losses: 0 };
    this.#met.set(nsd, { life, losses: known.losses + (known.life < life ? 1 : 0) });
  }
  override lossesOf(nsd: NsdIndex): number {
    return this.#met.get(nsd)?.losses ?? 0;
  }
}

const sectors = ({ lengthBytes }: PoolSegment): number[] =>
  Array.from({ length: lengthBytes / SECTOR_BYTES }, (_, index) => index);
const keysOf = (ios: readonly SectorIo[]): number[] =>
  ios.flatMap(({ nsd, sector, memory }) => sectors(memory).map((at) => keyOf({ nsd, sector: sector + at })));
