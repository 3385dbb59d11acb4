/**
 * What the parts of an online check share: looking, looking again under tokens, and what has come of it.
 *
 * What is read without tokens is of different moments, and is a suspicion at most. A suspicion becomes a finding when the same look, with the
 * tokens of all its objects pinned together, in one moment of this node, says it again; nobody can be changing them then, and whoever did has written out.
 */
import { WHOLE } from '../../../common/byte-range.js';
import { FsError } from '../../../common/errors.js';
import type { InodeNumber } from '../../../common/ids.js';
import { SECTOR_BYTES } from '../../../common/units.js';
import { TokenClass, type TokenItem, TokenMode, type TokenPins } from '../../../token-manager/token.js';
import { segmentOf } from '../../layout.js';
import { pinInodes, type Wanted } from '../../pinning.js';
import type { Volume } from '../../volume.js';
import { CheckStorage, type Uneven } from '../check-storage.js';
import type { Fault } from './look-at-inode.js';
import { mendCopy } from './mend-copy.js';
import type { NotCheckedKind, OnlineOptions, OnlineProgress } from './online-report.js';
import { View } from './view.js';

/** How often a look is repeated that this node's own operations disturb. */
const LOOKS_MAX = 50;
const TOKEN_TIMEOUT_MS = 30_000;
/** More are counted. */
const FINDINGS_MAX = 1000;
/** At most so much at once, when it reads slower than it may. */
const PACE_BURST_MS = 100;

/** Objects of a look, as inodes and as other tokens. */
export interface Objects {
  readonly inodes?: readonly { readonly ino: InodeNumber; readonly names?: boolean }[];
  readonly items?: readonly TokenItem[];
  readonly timeoutMs?: number;
}

export type Look = (view: View) => Promise<readonly Fault[]>;

export class OnlineContext {
  readonly found: { readonly fault: Fault; readonly mended: boolean }[] = [];
  foundCount = 0;
  suspicions = 0;
  sectorsRead = 0;
  readonly #notChecked = new Map<NotCheckedKind, number>();
  readonly #told = new Set<string>();
  readonly #storage: CheckStorage;
  readonly #began: number;

  constructor(
    readonly volume: Volume,
    readonly options: OnlineOptions,
  ) {
    this.#storage = new CheckStorage(volume.parts);
    this.#began = volume.clock.nowMs();
  }

  /** @throws {FsError} aborted, closed, fenced */
  goOn(): void {
    this.volume.checkOpen('fs.check');
    if (this.options.signal?.aborted === true)
      throw new FsError('aborted', { op: 'fs.check', detail: 'it was called off' });
  }
  progress(progress: OnlineProgress): void {
    this.options.onProgress?.(progress);
  }
  notChecked(kind: NotCheckedKind, count: number): void {
    this.#notChecked.set(kind, (this.#notChecked.get(kind) ?? 0) + count);
  }
  notCheckedCount(kind: NotCheckedKind): number {
    return this.#notChecked.get(kind) ?? 0;
  }

  view(): View {
    return new View(this.volume, this.#storage, (sectors) => this.#pace(sectors));
  }

  async #pace(sectors: number): Promise<void> {
    this.goOn();
    this.sectorsRead += sectors;
    const { readBytesPerS = 0, signal } = this.options;
    if (readBytesPerS === 0) return;
    const { clock } = this.volume;
    const aheadMs = ((this.sectorsRead * SECTOR_BYTES) / readBytesPerS) * 1000 - (clock.nowMs() - this.#began);
    if (aheadMs < PACE_BURST_MS) return;
    await new Promise<void>((resolve) => {
      const end = (): void => {
        timer.cancel();
        signal?.removeEventListener('abort', end);
        resolve();
      };
      const timer = clock.after(aheadMs, end);
      signal?.addEventListener('abort', end);
    });
    this.goOn();
  }

  /** Inodes that may be there: what leads to them is damaged. */
  readonly unreached = new Set<InodeNumber>();
  /** Where it lies; null: nowhere. Nothing is pinned yet. */
  async find(ino: InodeNumber): Promise<{ readonly nsd: number; readonly sector: number } | null> {
    try {
      return await this.volume.inodes.find(ino);
    } catch (error) {
      // A block of pointers of the inode file: that is found where these are looked at.
      if (!FsError.is(error) || !(error.reason === 'corrupt' || error.reason === 'checksumMismatch')) throw error;
      this.unreached.add(ino);
      return null;
    }
  }

  /** Without tokens, and if something does not fit, with them. */
  async look(objects: Objects, look: Look): Promise<void> {
    for (const { ino } of objects.inodes ?? []) await this.find(ino);
    const view = this.view();
    if ((await look(view)).length > 0 || view.uneven.size > 0) await this.confirm(objects, look);
  }

  /** With tokens. */
  async confirm(objects: Objects, look: Look): Promise<void> {
    this.suspicions++;
    const isUneven = await this.holding(objects, TokenMode.shared, async () => {
      const seen = await this.inOneMoment(look);
      for (const fault of seen?.faults ?? []) this.report(fault);
      if (seen === null || seen.view.uneven.size === 0) return false;
      if (this.options.repair !== true) for (const one of seen.view.uneven.values()) this.report(copyFault(one));
      return true;
    });
    if (isUneven === true && this.options.repair === true) await this.#mendCopies(objects, look);
  }

  /** With the tokens that order their writes: nobody writes there, nor has anything to be written. */
  async #mendCopies(objects: Objects, look: Look): Promise<void> {
    await this.holding(objects, TokenMode.exclusive, async () => {
      const seen = await this.inOneMoment(look);
      for (const one of seen?.view.uneven.values() ?? []) {
        await mendCopy(this.volume, one);
        this.report(copyFault(one), true);
      }
    });
    // What this node has read from the bad copy.
    const { tokens } = this.volume.parts;
    for (const { ino, names } of objects.inodes ?? []) {
      if (names === true) await tokens.release(TokenClass.data, ino, WHOLE);
      const sector = { start: ino * SECTOR_BYTES, end: (ino + 1) * SECTOR_BYTES };
      await tokens.release(TokenClass.status, segmentOf(ino), sector);
    }
    for (const item of objects.items ?? []) await tokens.release(item.class, item.object, item.required);
  }

  /** Null: this node's own operations always came between. */
  async inOneMoment(look: Look): Promise<{ readonly faults: readonly Fault[]; readonly view: View } | null> {
    for (let looks = 0; looks < LOOKS_MAX; looks++) {
      const view = this.view();
      const faults = await look(view);
      if (view.isOfOneMoment()) return { faults, view };
    }
    this.notChecked('busy', 1);
    return null;
  }

  /** Null: the tokens could not be had. */
  async holding<T>(objects: Objects, mode: TokenMode, body: () => Promise<T>): Promise<T | null> {
    for (const { ino } of objects.inodes ?? []) await this.find(ino);
    let pins: TokenPins;
    try {
      pins = await this.#pin(objects, mode);
    } catch (error) {
      if (!FsError.is(error) || (error.reason !== 'tokenDeadline' && error.reason !== 'tokenRefused')) throw error;
      this.notChecked('tokens', 1);
      return null;
    }
    try {
      return await body();
    } finally {
      pins.release();
    }
  }

  #pin({ inodes = [], items = [], timeoutMs = TOKEN_TIMEOUT_MS }: Objects, mode: TokenMode): Promise<TokenPins> {
    const options = { timeoutMs, signal: this.options.signal };
    const wanted = inodes.map(
      ({ ino, names }): Wanted => ({ ino, status: mode, ...(names === true ? { data: mode } : {}) }),
    );
    return pinInodes(this.volume, wanted, options, items);
  }

  report(fault: Fault, mended = false): void {
    const key = `${fault.kind} ${fault.object}`;
    if (this.#told.has(key)) return;
    this.#told.add(key);
    this.foundCount++;
    if (this.found.length < FINDINGS_MAX) this.found.push({ fault, mended });
  }
}

const copyFault = ({ bad, sector, why }: Uneven): Fault => ({
  kind: 'copyDamaged',
  object: `sector ${sector} of NSD ${bad}`,
  ino: null,
  detail: why,
});
