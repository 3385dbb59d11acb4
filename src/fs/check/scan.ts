/**
 * One reading of a whole file system that nobody changes: what there is, and what does not fit.
 *
 * Each finding that can be mended carries its mending, which changes sectors in a `SectorEdits` and nothing else. Believes nothing: every structure is
 * verified before it is followed.
 */
import { FsError } from '../../common/errors.js';
import { type InodeNumber, nsdIndex } from '../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../common/units.js';
import type { Checksums } from '../../nsd/checksums.js';
import type { Extent, Geometry } from '../layout.js';
import { decodeSuperblock, encodeSuperblock, fsIdOf, type Superblock } from '../superblock.js';
import { checkMaps } from './allocation.js';
import type { CheckParts, SectorEdits } from './check-storage.js';
import { CheckStorage } from './check-storage.js';
import { ClaimedSpace } from './claimed-space.js';
import { FINDING_STAGES, type Finding, type FindingKind, STAGES, type Stage } from './findings.js';
import { InodeFacts } from './inode-facts.js';
import { checkInodes } from './inodes.js';
import { checkNames, type Naming } from './names.js';
import { PathFinder } from './paths.js';
import { RecordedLogs } from './recorded-logs.js';
import { checkSharedSpace } from './shared-space.js';
import { findSystemFiles, type SystemFile } from './system/system-files.js';
import { checkTree } from './tree.js';

export interface Progress {
  readonly phase: string;
  readonly done: number;
  /** 0: not known. */
  readonly total: number;
}

export interface ScanOptions {
  readonly onProgress?: ((progress: Progress) => void) | undefined;
}

export type Mending = (edits: SectorEdits) => Promise<void>;

export interface FoundNow {
  readonly kind: FindingKind;
  readonly object: string;
  /** What a path is wanted for. */
  readonly ino: InodeNumber | null;
  readonly detail: string;
  readonly mend: string | null;
  readonly mending: Mending | null;
}

/** More are counted, not kept: a repair comes to them when it has mended these. */
const FINDINGS_MAX = 10_000;

export class Scan {
  readonly storage: CheckStorage;
  readonly checksums: Checksums;
  readonly geometry: Geometry;
  readonly fsId: bigint;
  readonly inodes = new InodeFacts();
  readonly space: ClaimedSpace;
  readonly found: FoundNow[] = [];
  foundCount = 0;
  /** Inodes that are damaged: nothing is said about what names them. */
  readonly damaged = new Set<InodeNumber>();
  /** Of directories: the name that counts. */
  readonly namings = new Map<InodeNumber, Naming>();
  /** Something is damaged beyond mending that may point to anything: what nobody is seen to use may be in use. */
  blind = false;
  /** Those that are known. */
  readonly system = new Map<InodeNumber, SystemFile>();
  lostSubBlocks = 0;
  lostInodes = 0;
  readonly logs: RecordedLogs;
  readonly #options: ScanOptions;

  constructor(
    parts: CheckParts,
    readonly superblock: Superblock,
    options: ScanOptions,
  ) {
    this.storage = new CheckStorage(parts);
    this.checksums = parts.checksums;
    this.geometry = superblock.geometry;
    this.fsId = fsIdOf(superblock.fsUuid);
    this.space = new ClaimedSpace(superblock.geometry);
    this.logs = new RecordedLogs(this);
    this.#options = options;
  }

  /** @throws {FsError} what reading a superblock failed with, when there is no good one */
  static async run(parts: CheckParts, nsdCount: number | undefined, options: ScanOptions): Promise<Scan> {
    const { superblock, copies } = await readCopies(parts, nsdCount);
    const scan = new Scan(parts, superblock, options);
    scan.#checkCopies(copies);
    await findSystemFiles(scan);
    if (await checkInodes(scan)) {
      await checkSharedSpace(scan);
      await checkNames(scan);
      checkTree(scan);
      await checkMaps(scan);
      scan.logs.check();
    }
    scan.#checkSectorCopies();
    return scan;
  }

  progress(phase: string, done: number, total: number): void {
    this.#options.onProgress?.({ phase, done, total });
  }

  report(
    kind: FindingKind,
    about: { readonly object?: string; readonly ino?: InodeNumber },
    detail: string,
    mend: string | null = null,
    mending: Mending | null = null,
  ): void {
    this.foundCount++;
    if (this.found.length >= FINDINGS_MAX) return;
    const ino = about.ino ?? null;
    const object = about.object ?? (ino === null ? 'the file system' : `inode ${ino}`);
    this.found.push({ kind, object, ino, detail, mend, mending });
  }

  /** It could not be mended, for the reason given. */
  giveUp(found: FoundNow, why: string): void {
    if (found.kind === 'systemInode') this.blind = true;
    this.found[this.found.indexOf(found)] = { ...found, detail: `${found.detail}; not mended: ${why}`, mending: null };
  }

  /** The first stage that has something to be mended. */
  stageToMend(): Stage | null {
    const stages = new Set(
      this.found.filter(({ mending }) => mending !== null).map(({ kind }) => FINDING_STAGES[kind]),
    );
    const first = STAGES.find((stage) => stages.has(stage)) ?? null;
    return this.blind && first !== 'blocks' && first !== 'copies' ? null : first;
  }
  ofStage(stage: Stage): FoundNow[] {
    return this.found.filter(({ kind }) => FINDING_STAGES[kind] === stage);
  }

  /** With paths, which cost reading. */
  async describe(found: readonly FoundNow[]): Promise<Finding[]> {
    const finder = await PathFinder.for(
      this,
      found.flatMap(({ ino }) => (ino === null ? [] : [ino])),
    );
    return found.map(({ kind, object, ino, detail, mend, mending }) => ({
      kind,
      object,
      path: ino === null ? null : finder.pathOf(ino),
      detail,
      mend: mending === null || this.#hopeless(kind) ? null : mend,
    }));
  }
  #hopeless(kind: FindingKind): boolean {
    return this.blind && FINDING_STAGES[kind] !== 'blocks' && FINDING_STAGES[kind] !== 'copies';
  }

  #checkCopies(copies: readonly (Uint8Array | null)[]): void {
    const image = encodeSuperblock(this.superblock, this.checksums);
    for (const [nsd, copy] of copies.entries()) {
      if (copy !== null && Buffer.compare(copy, image) === 0) continue;
      this.report(
        'superblockCopy',
        { object: `superblock copy on NSD ${nsd}` },
        this.#copyFault(copy),
        'written anew from the best copy',
        async (edits) => edits.put(nsdIndex(nsd), 0, image.slice()),
      );
    }
  }
  #checkSectorCopies(): void {
    for (const { nsd, sector, bytes, bad, why } of this.storage.uneven.values())
      this.report(
        'copyDamaged',
        { object: `sector ${sector} of NSD ${bad}` },
        why,
        'written anew from the other copy',
        async (edits) => edits.put(nsd, sector, bytes.slice(), 'as it is'),
      );
  }

  #copyFault(copy: Uint8Array | null): string {
    if (copy === null) return 'it can not be read, its bytes do not have their checksum';
    try {
      const { fsUuid, generation } = decodeSuperblock(copy, this.checksums);
      if (fsUuid !== this.superblock.fsUuid) return `is of file system ${fsUuid}`;
      return `generation ${generation} instead of ${this.superblock.generation}, or of other content`;
    } catch (error) {
      return (FsError.is(error) ? error.detail : undefined) ?? String(error);
    }
  }

  /** Where a sector of a system's file is. */
  systemSector(ino: InodeNumber, index: number): Extent | null {
    const pointer = this.system.get(ino)?.blocks.get(Math.floor(index / SUB_BLOCKS_PER_BLOCK));
    const within = index % SUB_BLOCKS_PER_BLOCK;
    return pointer === undefined || within >= pointer.count
      ? null
      : { nsd: pointer.nsd, sector: pointer.sector + within, count: 1 };
  }

  claim(extent: Extent): void {
    this.space.claim(extent);
  }
}

/** Where a superblock is looked for when nobody says how many NSDs there are. */
const SUPERBLOCK_TRIES = 4;

/** All copies; the best is the one with the greatest generation of the file system that most copies are of. */
async function readCopies(
  parts: CheckParts,
  nsdCount = SUPERBLOCK_TRIES,
): Promise<{ superblock: Superblock; copies: (Uint8Array | null)[] }> {
  const storage = new CheckStorage(parts);
  const copies: (Uint8Array | null)[] = [];
  const good: Superblock[] = [];
  let failure: unknown = null;
  for (let index = 0; index < (good.length > 0 ? mostCommon(good).nsds.length : nsdCount); index++) {
    try {
      copies.push(await storage.readOne(nsdIndex(index), 0));
    } catch (error) {
      if (good.length > 0) throw error;
      failure ??= error;
      break;
    }
    try {
      const copy = copies[index]!;
      if (copy !== null) good.push(decodeSuperblock(copy, parts.checksums));
    } catch (error) {
      failure ??= error;
    }
  }
  if (good.length === 0)
    throw failure ?? new FsError('corrupt', { op: 'fs.check', object: 'superblock', detail: 'no copy can be read' });
  const superblock = mostCommon(good);
  return { superblock, copies: copies.slice(0, superblock.nsds.length) };
}

function mostCommon(good: readonly Superblock[]): Superblock {
  const votes = (one: Superblock): number => good.filter(({ fsUuid }) => fsUuid === one.fsUuid).length;
  return [...good].sort((a, b) => votes(b) - votes(a) || b.generation - a.generation)[0]!;
}
