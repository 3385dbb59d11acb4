/**
 * Token clients for tests, and the arbiter in the same process that grants to them. First come, first served per object; what is granted is
 * pinned in the same turn, all of an object together. A test can call everything back on command.
 */
import { type ByteRange, intersect, overlaps, subtract } from '../common/byte-range.js';
import { deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { conflicts, covers, join, keepBeside, meet } from '../token-manager/compatibility.js';
import { objectKey } from '../token-manager/holder-table.js';
import { StatusNotes } from '../token-manager/status-notes.js';
import {
  type Revocation,
  type StatusNote,
  TokenClass,
  type TokenItem,
  TokenMode,
  type TokenObject,
  type TokenPins,
} from '../token-manager/token.js';
import type { AcquireOptions, RevokeHandler, TokenClientApi } from '../token-manager/token-client-api.js';
import { groupBy } from './group.js';

const keyOf = (item: { class: TokenClass; object: TokenObject }): string => `${item.class}/${item.object}`;

interface Held {
  readonly range: ByteRange;
  readonly mode: TokenMode;
}

interface Grant {
  readonly key: string;
  readonly items: readonly TokenItem[];
  readonly patient: boolean;
  aborted: boolean;
  readonly ended: Promise<void>;
}
const inUse = ([item]: readonly TokenItem[]): FsError =>
  new FsError('tokenRefused', { op: 'token.acquire', object: `open ${item!.object}` });

/** Grants to its clients, one request per object at a time; takes from the others what conflicts. */
export class TestArbiter {
  readonly clients: TestTokens[] = [];
  readonly #grants = new Set<Grant>();
  /** Of status: what writers side by side have told (src/token-manager/status-notes.ts). */
  readonly notes = new StatusNotes();
  messages = 0;

  /** All items of one object together, pinned in the turn in which they are granted (T3); see group-items.ts for why. */
  async grant(
    client: TestTokens,
    items: readonly TokenItem[],
    { patient = false, signal }: AcquireOptions,
  ): Promise<TokenPins | null> {
    const key = keyOf(items[0]!);
    const prompt = items[0]!.class === TokenClass.open && !patient;
    const meets = (grant: Grant): boolean =>
      !grant.aborted &&
      grant.key === key &&
      items.some((item) => grant.items.some((other) => overlaps(other.required, item.required)));
    if (prompt && [...this.#grants].some((grant) => grant.patient && meets(grant))) throw inUse(items);
    const before = [...this.#grants].filter(meets).map((grant) => grant.ended);
    let leave!: () => void;
    const ended = new Promise<void>((resolve) => {
      leave = resolve;
    });
    const grant: Grant = { key, items, patient, aborted: false, ended };
    this.#grants.add(grant);
    const abort = (): void => {
      grant.aborted = true;
    };
    signal?.addEventListener('abort', abort);
    try {
      await Promise.all(before);
      if (prompt) for (const other of this.clients) if (other !== client && other.hasOpen(items)) throw inUse(items);
      // Somebody else's grant may have given away again, as desired, what was called back while another item was waited for.
      while (items.some((item) => this.#inTheWay(client, item).length > 0))
        for (const item of items) await this.#callBack(client, item);
      if (grant.aborted) throw new FsError('aborted', { op: 'token.acquire' });
      const granted = items.map((item) => ({ ...item, mode: this.#granted(client, item) }));
      for (const item of granted) client.take(item, this.#free(client, item), this.#notesFor(item));
      return client.tryPin(items);
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#grants.delete(grant);
      leave();
    }
  }

  /** Shared and concurrent-write on one node are exclusive. */
  #wanted(client: TestTokens, { class: tokenClass, object, required, mode }: TokenItem): TokenMode {
    const own = client.heldIn(tokenClass, object, required);
    const wanted = own.reduce((joined, held) => (conflicts(mode, held.mode) ? join(joined, held.mode) : joined), mode);
    const isNoted = tokenClass === TokenClass.status && this.notes.any(objectKey(tokenClass, object), required);
    return wanted === TokenMode.shared && isNoted ? TokenMode.exclusive : wanted;
  }
  /** Who wants to share status for writing and is alone with it has it exclusively. */
  #granted(client: TestTokens, item: TokenItem): TokenMode {
    const mode = this.#wanted(client, item);
    if (item.class !== TokenClass.status || mode !== TokenMode.concurrentWrite) return mode;
    const isHeld = this.clients.some(
      (other) => other !== client && other.heldIn(item.class, item.object, item.required).length > 0,
    );
    const isWaitedFor = [...this.#grants].filter(
      ({ key, items }) => key === keyOf(item) && items.some((other) => overlaps(other.required, item.required)),
    );
    return isHeld || isWaitedFor.length > 1 ? mode : TokenMode.exclusive;
  }
  #notesFor(item: TokenItem): StatusNote[] {
    if (item.class !== TokenClass.status || item.mode !== TokenMode.exclusive) return [];
    return this.notes.in(objectKey(item.class, item.object), item.required);
  }

  settleNotes(client: TestTokens, { object, range }: Revocation, told: readonly StatusNote[]): void {
    const key = objectKey(TokenClass.status, object);
    const by = this.clients.indexOf(client);
    for (const note of told) this.notes.told(key, by, note);
    this.notes.stated(
      key,
      by,
      range,
      (offset) => client.heldMode(TokenClass.status, object, offset) === TokenMode.exclusive,
    );
  }

  /** What others hold of it that can't stay. */
  #inTheWay(client: TestTokens, item: TokenItem): { readonly other: TestTokens; readonly held: Held }[] {
    const mode = this.#wanted(client, item);
    return this.clients
      .filter((other) => other !== client)
      .flatMap((other) =>
        other
          .heldIn(item.class, item.object, item.required)
          .filter((held) => conflicts(held.mode, mode))
          .map((held) => ({ other, held })),
      );
  }
  async #callBack(client: TestTokens, item: TokenItem): Promise<void> {
    const mode = this.#wanted(client, item);
    for (const { other, held } of this.#inTheWay(client, item)) {
      const range = intersect(held.range, item.required);
      const keep = keepBeside(mode, held.mode);
      await other.revoke({ class: item.class, object: item.object, range, keep });
    }
  }
  /** What of the desired range nobody else holds, around the required one. */
  #free(client: TestTokens, item: TokenItem): ByteRange {
    const key = objectKey(item.class, item.object);
    // Here neighbours with notes are left alone, whatever the mode.
    const isNoted = item.class === TokenClass.status && this.notes.any(key, item.desired);
    if (isNoted || (item.class === TokenClass.status && item.mode === TokenMode.concurrentWrite)) return item.required;
    let free: ByteRange[] = [item.desired];
    for (const other of this.clients) {
      if (other === client) continue;
      for (const held of other.heldIn(item.class, item.object, item.desired))
        if (conflicts(held.mode, item.mode)) free = free.flatMap((range) => subtract(range, held.range));
    }
    return free.find((range) => overlaps(range, item.required)) ?? item.required;
  }
}

/** One node's token client. */
export class TestTokens implements TokenClientApi {
  readonly #arbiter: TestArbiter;
  readonly #held = new Map<string, Held[]>();
  readonly #handlers = new Map<TokenClass, RevokeHandler>();
  readonly #pins = new Set<{ items: readonly TokenItem[] }>();
  readonly #revoking: { key: string; range: ByteRange }[] = [];
  readonly #gathered: { object: TokenObject; range: ByteRange; notes: readonly StatusNote[] }[] = [];
  #waiters: (() => void)[] = [];
  #dead = false;
  readonly #fallen = deferred<void>();
  /** Acquires that were not satisfied by what was held; what is asked for ahead in one call counts once. */
  requests = 0;

  constructor(arbiter: TestArbiter) {
    this.#arbiter = arbiter;
    arbiter.clients.push(this);
  }

  heldIn(tokenClass: TokenClass, object: TokenObject, range: ByteRange): Held[] {
    return (this.#held.get(`${tokenClass}/${object}`) ?? []).filter((held) => overlaps(held.range, range));
  }
  #covers(item: TokenItem): boolean {
    let missing: ByteRange[] = [item.required];
    for (const held of this.heldIn(item.class, item.object, item.required))
      if (covers(held.mode, item.mode)) missing = missing.flatMap((range) => subtract(range, held.range));
    return missing.length === 0;
  }
  #isRevoking(item: TokenItem): boolean {
    const key = `${item.class}/${item.object}`;
    return this.#revoking.some((one) => one.key === key && overlaps(one.range, item.required));
  }

  tryPin(items: readonly TokenItem[]): TokenPins | null {
    for (const item of items) if (this.#isRevoking(item) || !this.#covers(item)) return null;
    return this.#pin(items);
  }
  #pin(items: readonly TokenItem[]): TokenPins {
    const pin = { items };
    this.#pins.add(pin);
    let released = false;
    return {
      release: () => {
        if (released) throw new Error('pins released twice');
        released = true;
        this.#pins.delete(pin);
        this.#wake();
      },
    };
  }
  /** It answers no revoke any more: whoever waits for one waits until what it holds falls. */
  die(): void {
    this.#dead = true;
    this.#wake();
  }
  /** Its log has been redone (I6). */
  fall(): void {
    this.#fallen.resolve();
  }
  hasOpen(items: readonly TokenItem[]): boolean {
    const isAgainst = (held: TokenItem, wanted: TokenItem): boolean =>
      keyOf(held) === keyOf(wanted) && overlaps(held.required, wanted.required) && conflicts(held.mode, wanted.mode);
    return [...this.#pins].some((pin) => pin.items.some((held) => items.some((wanted) => isAgainst(held, wanted))));
  }
  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }
  #wait(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  async acquire(items: readonly TokenItem[], options?: AcquireOptions): Promise<TokenPins> {
    const { signal } = options ?? {};
    const pins = this.#acquire(items, false, options);
    if (signal === undefined) return pins;
    return new Promise((resolve, reject) => {
      let over = false;
      const abort = (): void => {
        over = true;
        reject(new FsError('aborted', { op: 'token.acquire' }));
      };
      signal.addEventListener('abort', abort, { once: true });
      pins
        .then((granted) => (over ? granted.release() : resolve(granted)), reject)
        .finally(() => signal.removeEventListener('abort', abort));
    });
  }
  ask(items: readonly TokenItem[]): void {
    const missing = items.filter((item) => !this.#covers(item));
    if (missing.length > 0) this.requests++;
    for (const item of missing)
      void this.#acquire([item], true).then(
        (pins) => pins.release(),
        () => undefined,
      );
  }

  async #acquire(items: readonly TokenItem[], counted: boolean, options?: AcquireOptions): Promise<TokenPins> {
    const pins: TokenPins[] = [];
    let asked = counted;
    for (const group of groupBy(items, keyOf).values()) {
      for (;;) {
        const pinned = this.tryPin(group);
        if (pinned !== null) {
          pins.push(pinned);
          break;
        }
        if (group.some((item) => this.#isRevoking(item))) {
          // Of open tokens: until a file is closed.
          const isPinned = group.some((item) => this.hasOpen([{ ...item, mode: TokenMode.exclusive }]));
          if (group[0]!.class === TokenClass.open && options?.patient !== true && isPinned) {
            for (const pin of pins) pin.release();
            throw inUse(group);
          }
          await this.#wait();
          continue;
        }
        if (!asked) this.requests++;
        asked = true;
        try {
          const granted = await this.#arbiter.grant(this, group, options ?? {});
          if (granted === null) continue;
          pins.push(granted);
          break;
        } catch (error) {
          for (const pin of pins) pin.release();
          throw error;
        }
      }
    }
    return { release: () => pins.forEach((pin) => void pin.release()) };
  }
  take(item: TokenItem, granted: ByteRange, notes: readonly StatusNote[] = []): void {
    const key = `${item.class}/${item.object}`;
    const wasShared = this.heldIn(item.class, item.object, granted).some(
      ({ mode }) => mode === TokenMode.concurrentWrite,
    );
    const fresh = notes.filter(
      ({ offsetBytes }) => this.heldMode(item.class, item.object, offsetBytes) !== TokenMode.exclusive,
    );
    if (item.class === TokenClass.status && item.mode === TokenMode.exclusive && (wasShared || fresh.length > 0))
      this.#gathered.push({ object: item.object, range: granted, notes: fresh });
    const rest: Held[] = [];
    let missing: ByteRange[] = [granted];
    for (const held of this.#held.get(key) ?? []) {
      if (covers(held.mode, item.mode)) {
        rest.push(held);
        missing = missing.flatMap((range) => subtract(range, held.range));
      } else {
        for (const range of subtract(held.range, granted)) rest.push({ range, mode: held.mode });
        if (!overlaps(held.range, granted)) continue;
        const both = intersect(held.range, granted);
        rest.push({ range: both, mode: join(held.mode, item.mode) });
        missing = missing.flatMap((range) => subtract(range, both));
      }
    }
    for (const range of missing) rest.push({ range, mode: item.mode });
    this.#held.set(key, rest);
    for (const { object, range, notes } of this.#gathered.splice(0))
      this.#handlers.get(TokenClass.status)?.gathered?.(object, range, notes);
  }

  heldRange(tokenClass: TokenClass, object: TokenObject, offsetBytes: number, mode: TokenMode): ByteRange | null {
    const key = `${tokenClass}/${object}`;
    const at = { start: offsetBytes, end: offsetBytes + 1 };
    if (this.#revoking.some((one) => one.key === key && overlaps(one.range, at))) return null;
    const held = this.heldIn(tokenClass, object, at).find((one) => covers(one.mode, mode));
    if (held === undefined) return null;
    let { start, end } = held.range;
    for (const { range } of this.#revoking.filter((one) => one.key === key)) {
      if (range.end <= offsetBytes) start = Math.max(start, range.end);
      if (range.start > offsetBytes) end = Math.min(end, range.start);
    }
    return { start, end };
  }

  heldMode(tokenClass: TokenClass, object: TokenObject, offsetBytes: number): TokenMode {
    const at = { start: offsetBytes, end: offsetBytes + 1 };
    return this.heldIn(tokenClass, object, at)[0]?.mode ?? TokenMode.none;
  }

  async release(tokenClass: TokenClass, object: TokenObject, range: ByteRange): Promise<void> {
    for (const held of this.heldIn(tokenClass, object, range))
      await this.revoke({ class: tokenClass, object, range: intersect(held.range, range), keep: TokenMode.none });
  }
  setRevokeHandler(tokenClass: TokenClass, handler: RevokeHandler): void {
    this.#handlers.set(tokenClass, handler);
  }

  async revoke(asked: Revocation): Promise<void> {
    let revocation = asked;
    const { class: tokenClass, object } = asked;
    const key = `${tokenClass}/${object}`;
    const comesDown = tokenClass === TokenClass.status && asked.keep === TokenMode.concurrentWrite;
    if (comesDown && !(this.#handlers.get(tokenClass)?.writesConcurrently?.(object, asked.range) ?? false))
      revocation = { ...asked, keep: TokenMode.none };
    const mark = { key, range: revocation.range };
    this.#revoking.push(mark);
    try {
      const pinned = (): boolean =>
        [...this.#pins].some(({ items }) =>
          items.some(
            (item) =>
              keyOf(item) === key &&
              overlaps(item.required, revocation.range) &&
              (comesDown || !covers(revocation.keep, item.mode)),
          ),
        );
      while (pinned() && !this.#dead) await this.#wait();
      const handled = this.#dead ? undefined : this.#handlers.get(tokenClass)?.revoke(revocation);
      await (this.#dead ? this.#fallen.promise : Promise.race([handled, this.#fallen.promise]));
      // Of one that falls nobody hears anything.
      if (tokenClass === TokenClass.status && !this.#dead)
        this.#arbiter.settleNotes(this, revocation, (await handled) ?? []);
      const rest: Held[] = [];
      for (const held of this.#held.get(key) ?? []) {
        for (const range of subtract(held.range, revocation.range)) rest.push({ range, mode: held.mode });
        const left = meet(held.mode, revocation.keep);
        if (left !== TokenMode.none && overlaps(held.range, revocation.range))
          rest.push({ range: intersect(held.range, revocation.range), mode: left });
      }
      this.#held.set(key, rest);
    } finally {
      this.#revoking.splice(this.#revoking.indexOf(mark), 1);
      this.#wake();
    }
  }

  /** Exclusive status comes, with all that was told, while a revocation of what was held before it is being served. */
  async crossed(object: TokenObject, range: ByteRange, keep: TokenMode): Promise<void> {
    const item = { class: TokenClass.status, object };
    const served = this.#handlers.get(TokenClass.status)!.revoke({ ...item, range, keep });
    const asked = { ...item, mode: TokenMode.exclusive, required: range, desired: range };
    this.take(asked, range, this.#arbiter.notes.in(objectKey(TokenClass.status, object), range));
    await served;
  }

  /** Everything, as another node's greed would: what is dirty is written, what is cached is dropped. */
  async revokeAll(): Promise<void> {
    for (const [key, held] of [...this.#held]) {
      const [tokenClass, object] = key.split('/').map(Number) as [TokenClass, number];
      // Where a file is open that would wait until it is closed.
      const isPinned = [...this.#pins].some(({ items }) => items.some((item) => keyOf(item) === key));
      if (tokenClass === TokenClass.open && isPinned) continue;
      for (const { range } of [...held]) await this.revoke({ class: tokenClass, object, range, keep: TokenMode.none });
    }
  }
}
