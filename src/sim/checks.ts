import { type ByteRange, overlaps } from '../common/byte-range.js';
import { PAGE_BYTES, RANGE_END, SECTOR_BYTES, SECTORS_PER_PAGE } from '../common/units.js';
import { conflicts } from '../token-manager/compatibility.js';
import { INODES_PER_SEGMENT, type Revocation, TokenClass, TokenMode } from '../token-manager/token.js';
import type { ClientEffect, ClientEvent } from '../token-manager/token-client-events.js';
import type { Holding } from '../token-manager/token-client-machine.js';
import type { SimNode } from './sim-node.js';
import type { Violation } from './violation.js';

/**
 * The invariants that hold between any two events, looked at from outside, as far as the event may have broken them.
 *
 * I1: no two nodes hold what conflicts, but one that is out of the way. I2: what hits rely on is covered by tokens that are held and not
 * given up, under a lease. I3: no token leaves while its bytes are dirty. S2: pages being written out are stable.
 * Owns what it needs to know when: the revocations that a handler is at work on, and which tokens the last event brought.
 */
interface Watched {
  readonly life: SimNode;
  /** With the handler, by handle. */
  readonly running: Map<number, Revocation>;
  /** Tokens that came in the last event. */
  granted: { readonly class: TokenClass; readonly object: number }[];
  stepped: boolean;
}

export class Checks {
  readonly #watched = new Map<SimNode, Watched>();
  #work: Watched[] = [];

  constructor(private readonly report: (violation: Violation) => void) {}

  /** From before its first event on. */
  watch(life: SimNode): void {
    const watched: Watched = { life, running: new Map(), granted: [], stepped: false };
    this.#watched.set(life, watched);
    life.map.onUnsettled = (ino) =>
      this.report({ check: 'I10', ino, text: `${life.name} sets the size of a file that hits may be growing` });
    const { machine } = life.node.tokens;
    const step = machine.step.bind(machine);
    machine.step = (event, nowMs) => {
      this.#before(watched, event);
      const effects = step(event, nowMs);
      this.#after(watched, event, effects);
      return effects;
    };
  }

  /** S2: what is on its way to a device stays as it is. */
  wroteByHit(life: SimNode, ino: number, range: ByteRange): void {
    const torn = life
      .cached(ino)
      ?.file.pagesIn(range)
      .find((page) => page.writing !== null);
    if (torn !== undefined)
      this.report({
        check: 'S2',
        ino,
        text: `a hit of ${life.name} writes to page ${torn.index}, which is being written out`,
      });
  }

  /** Of lives that are over and out of everybody's way. */
  forget(life: SimNode): void {
    this.#watched.delete(life);
  }

  #touch(watched: Watched): void {
    if (watched.stepped) return;
    watched.stepped = true;
    this.#work.push(watched);
  }

  #before(watched: Watched, event: ClientEvent): void {
    if (event.type !== 'revokeDone') return;
    const revocation = watched.running.get(event.handle);
    watched.running.delete(event.handle);
    if (revocation !== undefined) this.#checkLeft(watched.life, revocation);
  }

  #after(watched: Watched, event: ClientEvent, effects: readonly ClientEffect[]): void {
    for (const effect of effects) if (effect.type === 'revoke') watched.running.set(effect.handle, effect.revocation);
    if (event.type === 'fence') watched.running.clear();
    if (event.type === 'message')
      for (const item of event.message.items)
        if (item.kind === 'grant') watched.granted.push({ class: item.class, object: item.object });
    this.#touch(watched);
  }

  /** After every event of the world. */
  run(): void {
    for (const watched of this.#watched.values()) if (watched.life.map.changed) this.#touch(watched);
    if (this.#work.length === 0) return;
    const work = this.#work;
    this.#work = [];
    for (const watched of work) {
      watched.stepped = false;
      watched.life.map.changed = false;
      const holdings = watched.life.node.tokens.machine.holdings();
      for (const { class: tokenClass, object } of watched.granted)
        this.#checkAlone(watched, holdings, tokenClass, object);
      watched.granted = [];
      this.#checkPublished(watched, holdings);
    }
  }

  /** I1, for one object, between this node and every other one that isn't out of the way. */
  #checkAlone(watched: Watched, holdings: readonly Holding[], tokenClass: TokenClass, object: number): void {
    if (watched.life.outOfTheWay) return;
    const own = held(holdings, tokenClass, object);
    for (const other of this.#watched.values()) {
      if (other === watched || other.life.outOfTheWay) continue;
      const theirs = held(other.life.node.tokens.machine.holdings(), tokenClass, object);
      for (const a of own)
        for (const b of theirs) {
          if (!conflicts(a.mode, b.mode) || !overlaps(a.range, b.range)) continue;
          const what = `class ${tokenClass} object ${object}`;
          this.report({
            check: 'I1',
            ino: tokenClass === TokenClass.data ? object : 0,
            text: `${watched.life.name} holds ${nameOf(a)}, ${other.life.name} holds ${nameOf(b)}, ${what}`,
          });
          return;
        }
    }
  }

  /** I2: what one node's hits rely on. Once the lease is out nothing is relied on. */
  #checkPublished({ life, running }: Watched, holdings: readonly Holding[]): void {
    if (life.map.leaseDeadlineMs <= life.gate.nowMs()) return;
    for (const { ino, status, coverage } of life.map.published.values()) {
      for (const { start, end, mode } of coverage) {
        if (mode === TokenMode.none) continue;
        const own = held(holdings, TokenClass.data, ino);
        const taken = [...running.values()].some(
          (r) => r.class === TokenClass.data && r.object === ino && r.keep < mode && overlaps(r.range, { start, end }),
        );
        if (covered(own, start, Math.min(end, RANGE_END), mode) && !taken) continue;
        const text = `${life.name} lets hits use [${start}, ${end}) in mode ${mode}, holds ${own.map(nameOf).join(' ') || 'nothing'}`;
        this.report({ check: 'I2', ino, text: taken ? `${text}, and gives it up` : text });
        return;
      }
      if (status === TokenMode.none) continue;
      const segment = Math.floor(ino / INODES_PER_SEGMENT);
      const at = ino * SECTOR_BYTES;
      const own = held(holdings, TokenClass.status, segment);
      const taken = [...running.values()].some(
        (r) =>
          r.class === TokenClass.status &&
          r.object === segment &&
          r.keep < status &&
          r.range.start <= at &&
          at < r.range.end,
      );
      if (covered(own, at, at + SECTOR_BYTES, status) && !taken) continue;
      const text = `${life.name} lets hits rely on status mode ${status}${taken ? ', and gives it up' : ' that it does not hold'}`;
      this.report({ check: 'I2', ino, text });
      return;
    }
  }

  /** I3 and I2, when the handler says that it is done: nothing dirty, and if nothing is kept, nothing readable. */
  #checkLeft(life: SimNode, { class: tokenClass, object, range, keep }: Revocation): void {
    if (tokenClass === TokenClass.data) {
      const file = life.cached(object)?.file;
      for (const page of file?.pagesIn(range) ?? []) {
        const content = page.installed ? life.map.content(page.slot) : page;
        const mask = sectorsIn(page.index, range);
        const dirty = (content.dirtyMask & mask) !== 0 || hasPartialIn(page.index, content, range);
        if (dirty)
          this.report({ check: 'I3', ino: object, text: `${life.name} gives up a token, page ${page.index} is dirty` });
        else if (keep === TokenMode.none && (content.validMask & mask) !== 0)
          this.report({ check: 'I2', ino: object, text: `${life.name} gives up a token, page ${page.index} is kept` });
      }
    }
    if (tokenClass !== TokenClass.status || keep === TokenMode.exclusive) return;
    const base = object * INODES_PER_SEGMENT;
    for (const { ino } of life.map.published.values()) {
      const at = ino * SECTOR_BYTES;
      if (ino < base || ino >= base + INODES_PER_SEGMENT || at < range.start || at >= range.end) continue;
      if (life.cached(ino)?.dirty)
        this.report({ check: 'I3', ino, text: `${life.name} gives up the status token, its data is dirty` });
    }
  }

  /** Exclusively, or shared for writing. */
  mayWrite(life: SimNode, ino: number): boolean {
    const own = held(life.node.tokens.machine.holdings(), TokenClass.status, Math.floor(ino / INODES_PER_SEGMENT));
    return covered(own, ino * SECTOR_BYTES, (ino + 1) * SECTOR_BYTES, TokenMode.concurrentWrite);
  }

  /** At the end nothing may be in use any more. */
  checkIdle(life: SimNode): void {
    const pinned = life.node.tokens.machine.holdings().filter((holding) => holding.pinned);
    for (const holding of pinned)
      this.report({
        check: 'leak',
        ino: 0,
        text: `${life.name} has left a pin on class ${holding.class} ${nameOf(holding)}`,
      });
    if (life.node.tokens.machine.waitingCount > 0)
      this.report({ check: 'leak', ino: 0, text: `${life.name} has operations that wait for tokens` });
    if (life.transport.windowsOpen !== 0)
      this.report({ check: 'leak', ino: 0, text: `${life.name} has left ${life.transport.windowsOpen} windows open` });
  }
}

const held = (holdings: readonly Holding[], tokenClass: TokenClass, object: number): Holding[] =>
  holdings.filter((h) => !h.pinned && h.class === tokenClass && h.object === object);

function covered(own: readonly Holding[], start: number, end: number, mode: TokenMode): boolean {
  let reached = start;
  for (const holding of own) {
    const enough = holding.mode === mode || holding.mode === TokenMode.exclusive;
    if (enough && holding.range.start <= reached && reached < holding.range.end) reached = holding.range.end;
  }
  return reached >= end;
}

const nameOf = ({ mode, range }: Holding): string => `[${range.start}, ${range.end}) in mode ${mode}`;

/** A token's range is whole sectors. */
function sectorsIn(pageIndex: number, range: ByteRange): number {
  let mask = 0;
  for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
    const at = pageIndex * PAGE_BYTES + sector * SECTOR_BYTES;
    if (range.start <= at && at + SECTOR_BYTES <= range.end) mask |= 1 << sector;
  }
  return mask;
}

function hasPartialIn(
  pageIndex: number,
  { partialStart, partialEnd }: { readonly partialStart: number; readonly partialEnd: number },
  range: ByteRange,
): boolean {
  if (partialEnd <= partialStart) return false;
  const at = pageIndex * PAGE_BYTES;
  return overlaps({ start: at + partialStart, end: at + partialEnd }, range);
}
