/**
 * The fourth pass: space. Sub-blocks that two inodes point to, or that an inode points to and the map says are free; inodes in use whose
 * numbers are free. These are what does harm: somebody would be given them again. The other way about (marked as used, and nobody's) is what every node
 * has on its way, and can only be counted.
 */
import { type InodeNumber, inodeNumber, type NsdIndex, nsdIndex } from '../../../common/ids.js';
import { SUB_BLOCKS_PER_BLOCK } from '../../../common/units.js';
import { copiesOf } from '../../../nsd/copies.js';
import { INODES_PER_SEGMENT, type TokenItem } from '../../../token-manager/token.js';
import { FREE_INODE } from '../../inode-format.js';
import {
  ALLOCATION_MAP,
  type Extent,
  FIRST_USER_INODE,
  INODE_MAP,
  regionOf,
  regionRange,
  segmentRange,
} from '../../layout.js';
import {
  BITMAPS_AT,
  countBits,
  inodeUsed,
  regionFault,
  regionFree,
  segmentFault,
  segmentFree,
  segmentGeneration,
} from '../../map-formats.js';
import { UNREADABLE } from '../inodes.js';
import { walkPointers } from '../pointer-walk.js';
import type { InodePass } from './inode-pass.js';
import { readInode } from './look-at-directory.js';
import { type Fault, lookAtInode } from './look-at-inode.js';
import type { OnlineContext } from './online-context.js';
import type { View } from './view.js';

/** Sub-blocks that are looked into; of more it is said that there are more. */
const DOUBTFUL_MAX = 100_000;

interface Claim {
  readonly ino: InodeNumber;
  readonly pointer: Extent;
}

export class SpacePass {
  /** By NSD: sub-blocks that are claimed, and free in the map as it was read. */
  readonly #unmarked: readonly Set<number>[];
  #doubtful = 0;
  /** Logs and superblocks. */
  readonly system: Extent[] = [];

  constructor(
    readonly context: OnlineContext,
    readonly first: InodePass,
  ) {
    this.#unmarked = context.volume.geometry.nsdBlocks.map(() => new Set());
  }

  async run(): Promise<void> {
    await this.#regions();
    await this.#claims();
    await this.#segments();
  }

  // Regions

  async #regions(): Promise<void> {
    const { context } = this;
    const { geometry } = context.volume;
    const homes = await this.#mapBlocks(ALLOCATION_MAP);
    const count = geometry.regionCount * geometry.nsdCount;
    for (let index = 0; index < count; index++) {
      if (index % SUB_BLOCKS_PER_BLOCK === 0) context.progress({ phase: 'allocation map', done: index, total: count });
      const home = placeIn(homes, index);
      if (home === null) continue;
      const region = Math.floor(index / geometry.nsdCount);
      const look = async (view: View) => this.#region(await view.readOne(home.nsd, home.sector), index);
      await context.look({ items: [this.#regionItem(region)] }, look);
      const sector = await context.view().readOne(home.nsd, home.sector);
      if (sector !== null) this.#compareRegion(sector, index);
    }
    context.notChecked('freeMarks', geometry.regionCount);
  }

  #regionItem(region: number): TokenItem {
    const { volume } = this.context;
    return volume.dataItem(ALLOCATION_MAP, regionRange(volume.geometry, region));
  }

  #region(sector: Uint8Array | null, index: number): Fault[] {
    const { geometry, fsId, checksums } = this.context.volume;
    const region = Math.floor(index / geometry.nsdCount);
    const fault = sector === null ? UNREADABLE : regionFault(sector, index, geometry, fsId, checksums);
    const object = `allocation map sector ${index} (region ${region} of NSD ${index % geometry.nsdCount})`;
    return fault === null ? [] : [{ kind: 'regionDamaged', object, ino: null, detail: fault }];
  }

  #compareRegion(sector: Uint8Array, index: number): void {
    const { context, first } = this;
    const { geometry } = context.volume;
    if (this.#region(sector, index).length > 0) return;
    const nsd = nsdIndex(index % geometry.nsdCount);
    const region = Math.floor(index / geometry.nsdCount);
    const bits = first.space.bits(nsd);
    let lost = 0;
    for (let block = 0; block < geometry.regionBlocks; block++) {
      const whole = region * geometry.regionBlocks + block;
      if (whole >= geometry.nsdBlocks[nsd]!) break;
      for (let byte = 0; byte < SUB_BLOCKS_PER_BLOCK / 8; byte++) {
        const marked = sector[BITMAPS_AT + block * (SUB_BLOCKS_PER_BLOCK / 8) + byte]!;
        const claimed = bits[whole * (SUB_BLOCKS_PER_BLOCK / 8) + byte]!;
        if (marked === claimed) continue;
        for (let bit = 0; bit < 8; bit++) {
          const isMarked = (marked >> bit) & 1;
          if (isMarked === ((claimed >> bit) & 1)) continue;
          if (isMarked === 1) lost++;
          else this.#doubt(nsd, whole * SUB_BLOCKS_PER_BLOCK + byte * 8 + bit);
        }
      }
    }
    if (lost > 0) context.notChecked('lostSpace', lost);
  }

  #doubt(nsd: NsdIndex, sector: number): void {
    if (this.#doubtful >= DOUBTFUL_MAX) {
      this.context.notChecked('busy', 1);
      return;
    }
    this.#doubtful++;
    this.#unmarked[nsd]!.add(sector);
  }

  // Who points to what is doubtful

  async #claims(): Promise<void> {
    const { context, first } = this;
    if (this.#doubtful === 0 && first.space.sharedSubBlocks === 0) return;
    const claims: Claim[] = this.system
      .filter((pointer) => this.#isDoubtful(pointer))
      .map((pointer) => ({ ino: SYSTEM, pointer }));
    for (const ino of first.inodes.inUse()) {
      await context.find(ino);
      for (const pointer of await this.#pointersOf(context.view(), ino))
        if (this.#isDoubtful(pointer)) claims.push({ ino, pointer });
    }
    claims.sort((a, b) => a.pointer.sector - b.pointer.sector);
    await this.#shared(claims);
    for (const claim of claims) if (claim.ino !== SYSTEM) await this.#marked(claim);
  }

  #isDoubtful(extent: Extent): boolean {
    if (this.first.space.isShared(extent)) return true;
    return copiesOf(extent.nsd).some((nsd) => {
      const unmarked = this.#unmarked[nsd]!;
      for (let at = 0; at < extent.count; at++) if (unmarked.has(extent.sector + at)) return true;
      return false;
    });
  }

  /** Of nothing that can be believed: none. */
  async #pointersOf(view: View, ino: InodeNumber): Promise<Extent[]> {
    const { volume } = this.context;
    const home = volume.inodes.locate(ino);
    const pointers: Extent[] = [];
    if (home)
      await lookAtInode(
        { view, volume, data: false, claim: (extent) => pointers.push(extent) },
        ino,
        await view.readOne(home.nsd, home.sector),
      );
    return pointers;
  }

  /** In the order of their first sectors: who overlaps with whom. */
  async #shared(claims: readonly Claim[]): Promise<void> {
    let open: Claim[] = [];
    for (const claim of claims) {
      open = open.filter(({ pointer }) => pointer.sector + pointer.count > claim.pointer.sector);
      for (const other of open) if (overlap(other.pointer, claim.pointer)) await this.#pair(other, claim);
      open.push(claim);
    }
  }

  async #pair(a: Claim, b: Claim): Promise<void> {
    const inodes = [...new Set([a.ino, b.ino])].filter((ino) => ino !== SYSTEM).map((ino) => ({ ino }));
    const { nsd, sector, count } = b.pointer;
    await this.context.confirm({ inodes }, async (view) => {
      const ofA = a.ino === SYSTEM ? [a.pointer] : await this.#pointersOf(view, a.ino);
      if (!ofA.some((pointer) => isThis(pointer, a.pointer))) return [];
      const ofB = b.ino === SYSTEM ? [b.pointer] : a.ino === b.ino ? ofA : await this.#pointersOf(view, b.ino);
      const times = ofB.filter((pointer) => isThis(pointer, b.pointer)).length;
      if (times < (a.ino === b.ino && isThis(a.pointer, b.pointer) ? 2 : 1)) return [];
      const object = `sub-blocks ${sector} to ${sector + count - 1} of NSD ${copiesOf(nsd).join(' and ')}`;
      const whose = a.ino === SYSTEM ? 'a log or a superblock' : `inode ${a.ino}`;
      return [{ kind: 'spaceShared', object, ino: b.ino, detail: `belong to ${whose} and to inode ${b.ino}` }];
    });
  }

  /** Whether the map says that it is free, with the map and the inode held together. */
  async #marked({ ino, pointer }: Claim): Promise<void> {
    const { context } = this;
    const { geometry, fsId, checksums } = context.volume;
    const region = regionOf(geometry, pointer.sector);
    const homes = await this.#mapBlocks(ALLOCATION_MAP);
    await context.confirm({ inodes: [{ ino }], items: [this.#regionItem(region)] }, async (view) => {
      if (!(await this.#pointersOf(view, ino)).some((now) => isThis(now, pointer))) return [];
      const faults: Fault[] = [];
      for (const nsd of copiesOf(pointer.nsd)) {
        const index = region * geometry.nsdCount + nsd;
        const home = placeIn(homes, index);
        const sector = home === null ? null : await view.readOne(home.nsd, home.sector);
        // Said of the map.
        if (sector === null || regionFault(sector, index, geometry, fsId, checksums) !== null) continue;
        const block = Math.floor(pointer.sector / SUB_BLOCKS_PER_BLOCK) - region * geometry.regionBlocks;
        const free = countBits(sector, block, pointer.sector % SUB_BLOCKS_PER_BLOCK, pointer.count, 0);
        if (free > 0)
          faults.push({
            kind: 'spaceFreeButUsed',
            object: `allocation map sector ${index} (region ${region} of NSD ${nsd})`,
            ino: null,
            detail:
              `${free} of sub-blocks ${pointer.sector} to ${pointer.sector + pointer.count - 1} are marked as free, ` +
              `and inode ${ino} points to them (${regionFree(sector)} free in all)`,
          });
      }
      return faults;
    });
  }

  // Segments

  async #segments(): Promise<void> {
    const { context } = this;
    const { geometry } = context.volume;
    const homes = await this.#mapBlocks(INODE_MAP);
    for (let segment = 0; segment < geometry.segmentCount; segment++) {
      if (segment % SUB_BLOCKS_PER_BLOCK === 0)
        context.progress({ phase: 'inode map', done: segment, total: geometry.segmentCount });
      const home = placeIn(homes, segment);
      if (home !== null) await this.#segment(segment, home);
    }
  }

  async #segment(segment: number, home: Extent): Promise<void> {
    const { context } = this;
    const { volume } = context;
    const items = [volume.dataItem(INODE_MAP, segmentRange(segment))];
    const fault = (sector: Uint8Array | null): string | null =>
      sector === null ? UNREADABLE : segmentFault(sector, segment, volume.fsId, volume.checksums);
    const object = `inode map segment ${segment}`;
    await context.look({ items }, async (view) => {
      const detail = fault(await view.readOne(home.nsd, home.sector));
      return detail === null ? [] : [{ kind: 'segmentDamaged', object, ino: null, detail }];
    });
    const sector = await context.view().readOne(home.nsd, home.sector);
    if (sector === null || fault(sector) !== null) return;
    const { inodes, damaged } = this.first;
    let inUse = 0;
    for (let slot = 0; slot < INODES_PER_SEGMENT; slot++) {
      const ino = inodeNumber(segment * INODES_PER_SEGMENT + slot);
      if (ino < FIRST_USER_INODE || damaged.has(ino)) {
        inUse++;
        continue;
      }
      const isUsed = inodes.type(ino) !== FREE_INODE;
      if (isUsed) inUse++;
      const isMarked = inodeUsed(sector, slot);
      if ((!isUsed || isMarked) && inodes.generation(ino) < segmentGeneration(sector)) continue;
      if (isUsed || inodes.generation(ino) > 0) await this.#number(segment, home, ino);
    }
    const lost = INODES_PER_SEGMENT - segmentFree(sector) - inUse;
    if (lost > 0) context.notChecked('lostNumbers', lost);
  }

  async #number(segment: number, home: Extent, ino: InodeNumber): Promise<void> {
    const { context } = this;
    const { volume } = context;
    const object = `inode map segment ${segment}`;
    const items = [volume.dataItem(INODE_MAP, segmentRange(segment))];
    await context.confirm({ inodes: [{ ino }], items }, async (view) => {
      const sector = await view.readOne(home.nsd, home.sector);
      if (sector === null || segmentFault(sector, segment, volume.fsId, volume.checksums) !== null) return [];
      const fields = await readInode(view, volume, ino);
      if (fields === null) return [];
      const faults: Fault[] = [];
      if (fields.type !== FREE_INODE && !inodeUsed(sector, ino % INODES_PER_SEGMENT))
        faults.push({
          kind: 'numberFreeButUsed',
          object,
          ino: null,
          detail: `number ${ino} is in use, and marked as free`,
        });
      const next = segmentGeneration(sector);
      if (fields.generation >= next)
        faults.push({
          kind: 'generationLow',
          object,
          ino: null,
          detail: `its next generation is ${next}, inode ${ino} has ${fields.generation} already`,
        });
      return faults;
    });
  }

  /** Laid out by mkfs, and never moved. */
  async #mapBlocks(ino: InodeNumber): Promise<Map<number, Extent>> {
    const { context } = this;
    const { volume } = context;
    const { fsId, geometry, checksums } = volume;
    const blocks = new Map<number, Extent>();
    await context.find(ino);
    const view = context.view();
    const fields = await readInode(view, volume, ino);
    if (fields !== null)
      await walkPointers({ storage: view, fsId, geometry, checksums }, ino, fields, {
        block: (block, pointer) => void blocks.set(block, pointer),
        indirect: () => undefined,
        broken: () => undefined,
      });
    return blocks;
  }
}

const SYSTEM = inodeNumber(0);

function placeIn(blocks: ReadonlyMap<number, Extent>, index: number): Extent | null {
  const pointer = blocks.get(Math.floor(index / SUB_BLOCKS_PER_BLOCK));
  const within = index % SUB_BLOCKS_PER_BLOCK;
  return pointer === undefined || within >= pointer.count
    ? null
    : { nsd: pointer.nsd, sector: pointer.sector + within, count: 1 };
}

const isThis = (a: Extent, b: Extent): boolean => a.nsd === b.nsd && a.sector === b.sector && a.count === b.count;

const overlap = (a: Extent, b: Extent): boolean =>
  a.sector < b.sector + b.count &&
  b.sector < a.sector + a.count &&
  copiesOf(a.nsd).some((copy) => copiesOf(b.nsd).includes(copy));
