import { expect, test } from 'vitest';
import { range, WHOLE } from '../common/byte-range.js';
import { FILE_SYSTEM_NUMBER_MAX, fileSystemNumber } from '../common/ids.js';
import { objectText, placeOf, scopedTokens } from './file-system-scope.js';
import { OBJECT_MAX } from './holder-table.js';
import { segmentOf } from './placement.js';
import {
  compareItems,
  OBJECTS_PER_FILE_SYSTEM,
  type Revocation,
  TokenClass,
  type TokenItem,
  TokenMode,
  type TokenPins,
} from './token.js';
import type { RevokeHandler, TokenClientApi } from './token-client-api.js';

const PINS: TokenPins = { release: () => undefined };

/** Says what it was asked for. */
class Asked implements TokenClientApi {
  readonly items: TokenItem[] = [];
  readonly objects: number[] = [];
  readonly handlers = new Map<TokenClass, RevokeHandler>();
  tryPin(items: readonly TokenItem[]): null {
    this.items.push(...items);
    return null;
  }
  async acquire(items: readonly TokenItem[]): Promise<TokenPins> {
    this.items.push(...items);
    return PINS;
  }
  ask(items: readonly TokenItem[]): void {
    this.items.push(...items);
  }
  heldRange(_class: TokenClass, object: number): null {
    this.objects.push(object);
    return null;
  }
  heldMode(_class: TokenClass, object: number): TokenMode {
    this.objects.push(object);
    return TokenMode.none;
  }
  async release(_class: TokenClass, object: number): Promise<void> {
    this.objects.push(object);
  }
  setRevokeHandler(tokenClass: TokenClass, handler: RevokeHandler): void {
    this.handlers.set(tokenClass, handler);
  }
}

const item = (tokenClass: TokenClass, object: number): TokenItem => ({
  class: tokenClass,
  object,
  mode: TokenMode.exclusive,
  required: WHOLE,
  desired: WHOLE,
});

test('the same inode of two file systems is two objects, in every call', async () => {
  const asked = [new Asked(), new Asked()];
  for (const [number, tokens] of asked.entries()) {
    const scope = scopedTokens(tokens, fileSystemNumber(number));
    const items = [item(TokenClass.status, 0), item(TokenClass.data, 7)];
    scope.tryPin(items);
    await scope.acquire(items);
    scope.ask(items);
    scope.heldRange(TokenClass.data, 7, 0, TokenMode.shared);
    await scope.release(TokenClass.status, 0, WHOLE);
  }
  const [first, second] = asked.map(({ items, objects }) => [...items.map(({ object }) => object), ...objects]);
  expect(first).toEqual([0, 7, 0, 7, 0, 7, 7, 0]);
  expect(second).toHaveLength(first!.length);
  for (const [i, object] of second!.entries()) expect(object).not.toBe(first![i]);
});

test("an inode's status and data meet at one server, in one order, in every file system", () => {
  const tokens = new Asked();
  const last = OBJECTS_PER_FILE_SYSTEM - 1;
  for (const number of [0, 1, FILE_SYSTEM_NUMBER_MAX]) {
    const scope = scopedTokens(tokens, fileSystemNumber(number));
    for (const ino of [3, 4095, 4096, last]) {
      scope.tryPin([item(TokenClass.status, Math.floor(ino / 4096)), item(TokenClass.data, ino)]);
      const [status, data] = tokens.items.splice(0) as [TokenItem, TokenItem];
      expect(segmentOf(TokenClass.data, data.object)).toBe(segmentOf(TokenClass.status, status.object));
      expect(compareItems(status, data)).toBeLessThan(0);
      expect(data.object).toBeLessThanOrEqual(OBJECT_MAX);
      expect(placeOf(TokenClass.data, data.object)).toEqual({ fileSystem: number, id: ino });
      expect(placeOf(TokenClass.status, status.object)).toEqual({ fileSystem: number, id: Math.floor(ino / 4096) });
    }
  }
});

test("a revocation comes with the inode's number; another file system's has nothing to make safe here", async () => {
  const tokens = new Asked();
  const scope = scopedTokens(tokens, fileSystemNumber(3));
  const served: Revocation[] = [];
  scope.setRevokeHandler(TokenClass.data, {
    revoke: async (revocation) => void served.push(revocation),
    working: (object) => range(object, object + 1),
  });
  const handler = tokens.handlers.get(TokenClass.data)!;
  const revocation = { class: TokenClass.data, range: WHOLE, keep: TokenMode.none };
  await handler.revoke({ ...revocation, object: 3 * OBJECTS_PER_FILE_SYSTEM + 7 });
  await handler.revoke({ ...revocation, object: 7 });
  expect(served).toEqual([{ ...revocation, object: 7 }]);
  expect(handler.working(3 * OBJECTS_PER_FILE_SYSTEM + 9)).toEqual(range(9, 10));
  expect(handler.working(9)).toBeNull();
});

test('errors and logs name both', () => {
  expect(objectText(TokenClass.data, 2 * OBJECTS_PER_FILE_SYSTEM + 5)).toBe('data 5 of file system 2');
});
