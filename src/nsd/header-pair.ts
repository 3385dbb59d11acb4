import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { PagePool, PoolSegment } from '../native/page-pool.js';
import type { Checksums } from './checksums.js';
import type { BlockDevice } from './nsd-api.js';
import { decodeHeader, encodeHeader, geometryOf, type HeaderVerdict, type NsdHeader } from './nsd-layout.js';

/** The two headers of an NSD, one after the other with a flush between: of two good ones the higher generation counts. */
export interface HeaderParts {
  readonly device: BlockDevice;
  readonly pool: PagePool;
  readonly checksums: Checksums;
  /** Its first sector is used. */
  readonly staging: PoolSegment;
  readonly counters?: Counters;
}

/** @throws {FsError} wrongNsd, wrongFormat, deviceError */
export async function readHeaders(parts: HeaderParts): Promise<NsdHeader> {
  const { device, pool, checksums, staging } = parts;
  const memory: PoolSegment = { offsetBytes: staging.offsetBytes, lengthBytes: SECTOR_BYTES };
  const readAt = async (deviceSector: number): Promise<HeaderVerdict> => {
    try {
      await device.read(deviceSector * SECTOR_BYTES, memory);
    } catch (error) {
      failures.push(error);
      return { ok: false, kind: 'broken', why: error instanceof Error ? error.message : String(error) };
    }
    return decodeHeader(pool.bytes, memory.offsetBytes, device.lengthBytes, checksums);
  };
  const failures: unknown[] = [];
  if (device.lengthBytes < 2 * SECTOR_BYTES)
    throw new FsError('wrongNsd', { op: 'nsd.open', detail: 'the device is too small to hold an NSD' });
  const first = await readAt(0);
  // Where the copy is follows from the header; without one it can only be at the end.
  const lastSector = Math.floor(device.lengthBytes / SECTOR_BYTES) - 1;
  const copyAt = first.ok ? geometryOf(first.header).headerCopy : lastSector;
  const second = await readAt(copyAt);
  const valid = [first, second].filter((verdict) => verdict.ok).map((verdict) => verdict.header);
  const [a, b] = valid;
  if (a !== undefined && b !== undefined) {
    if (a.uuid !== b.uuid)
      throw new FsError('wrongNsd', {
        op: 'nsd.open',
        object: `nsd ${a.uuid}`,
        detail: `the header's copy is of nsd ${b.uuid}`,
      });
    return b.generation > a.generation ? b : a;
  }
  if (a !== undefined) {
    parts.counters?.add('nsd.headersBroken');
    // A copy found at the end of the device must be one that belongs there.
    if (!first.ok && geometryOf(a).headerCopy !== lastSector)
      throw new FsError('wrongNsd', {
        op: 'nsd.open',
        object: `nsd ${a.uuid}`,
        detail: "the header's copy is out of place",
      });
    return a;
  }
  const why = first.ok ? '' : first.why;
  const foreign = [first, second].some((verdict) => !verdict.ok && verdict.kind === 'foreign');
  if (failures.length === 2) throw failures[0];
  throw new FsError(foreign ? 'wrongFormat' : 'wrongNsd', {
    op: 'nsd.open',
    detail: foreign ? `an NSD this version can't read: ${why}` : `no NSD on the device: ${why}`,
    cause: failures[0],
  });
}

export async function writeHeaders(parts: HeaderParts, header: NsdHeader): Promise<void> {
  const { device, pool, checksums, staging } = parts;
  const memory: PoolSegment = { offsetBytes: staging.offsetBytes, lengthBytes: SECTOR_BYTES };
  encodeHeader(header, checksums, pool.bytes, memory.offsetBytes);
  await device.write(geometryOf(header).headerCopy * SECTOR_BYTES, memory);
  await device.flush();
  await device.write(0, memory);
  await device.flush();
}

/** The headers of an open NSD, changed one change after the other, and what they say about its lives. */
export class HeaderPair {
  #fresh = true;
  #last: Promise<void> = Promise.resolve();

  constructor(
    private readonly parts: HeaderParts,
    public header: NsdHeader,
  ) {}

  /** Before a life begins: others may have served the NSD since it was looked at. */
  async readAgain(): Promise<void> {
    if (this.#fresh) return;
    const { uuid } = this.header;
    const now = await readHeaders(this.parts);
    if (now.uuid !== uuid)
      throw new FsError('wrongNsd', { op: 'nsd.open', object: `nsd ${uuid}`, detail: `it is nsd ${now.uuid} by now` });
    this.header = now;
  }
  /** It was only looked at. */
  looked(): void {
    this.#fresh = false;
  }

  /** Durable when it resolves. */
  change(change: Partial<NsdHeader>): Promise<void> {
    const done = this.#last.then(async () => {
      const header = { ...this.header, ...change, generation: this.header.generation + 1 };
      await writeHeaders(this.parts, header);
      this.header = header;
    });
    this.#last = done.catch(() => undefined);
    return done;
  }

  /** What the life before had not flushed is there if it ended in good order, or if what kept its writes is the same as now. */
  beginLife(): Promise<void> {
    const { header } = this;
    const keeper = this.parts.device.keeper ?? null;
    const whole = header.ended || (keeper !== null && header.keeper === keeper);
    const life = header.life + 1;
    return this.change({ life, wholeSince: whole ? header.wholeSince : life, keeper, ended: false });
  }
}
