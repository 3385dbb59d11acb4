/**
 * The tokens of one file system among those of a cluster. Cache and file system know inodes and segments; the cluster's token servers
 * know objects of all its file systems, which must not be taken for one another: an object is the file system's number times 2^40,
 * plus the inode (status: the same in segments), so that an inode's status and data still meet at one server, in their order (T4).
 *
 * A revocation of another file system's object may come behind an unmount; it finds nothing here to make safe.
 */
import type { ByteRange } from '../common/byte-range.js';
import type { FileSystemNumber } from '../common/ids.js';
import {
  isBySegment,
  OBJECTS_PER_FILE_SYSTEM,
  type Revocation,
  SEGMENTS_PER_FILE_SYSTEM,
  TokenClass,
  type TokenItem,
  TokenMode,
  type TokenObject,
  type TokenPins,
} from './token.js';
import type { AcquireOptions, RevokeHandler, TokenClientApi } from './token-client-api.js';

/** How many objects of this class a file system has. */
const objectsOf = (tokenClass: TokenClass): number =>
  isBySegment(tokenClass) ? SEGMENTS_PER_FILE_SYSTEM : OBJECTS_PER_FILE_SYSTEM;

/** An object taken apart: the file system's number, and the inode, or for status and open tokens the segment. */
export function placeOf(tokenClass: TokenClass, object: TokenObject): { fileSystem: number; id: number } {
  const fileSystem = Math.floor(object / objectsOf(tokenClass));
  return { fileSystem, id: object - fileSystem * objectsOf(tokenClass) };
}

export const tokenObject = (tokenClass: TokenClass, fileSystem: FileSystemNumber, id: number): TokenObject =>
  fileSystem * objectsOf(tokenClass) + id;

export const className = (tokenClass: TokenClass): string => nameIn(TokenClass, tokenClass);
export const modeName = (mode: TokenMode): string => nameIn(TokenMode, mode);
const nameIn = (table: Readonly<Record<string, number>>, value: number): string =>
  Object.keys(table).find((name) => table[name] === value) ?? String(value);

/** For errors and logs: `data 7 of file system 0`. */
export function objectText(tokenClass: TokenClass, object: TokenObject): string {
  const { fileSystem, id } = placeOf(tokenClass, object);
  return `${className(tokenClass)} ${id} of file system ${fileSystem}`;
}

/** What the cache and the file system numbered so see of the node's token client. The first file system needs no translation. */
export function scopedTokens(tokens: TokenClientApi, fileSystem: FileSystemNumber): TokenClientApi {
  return new FileSystemTokens(tokens, fileSystem);
}

class FileSystemTokens implements TokenClientApi {
  readonly #tokens: TokenClientApi;
  readonly #number: FileSystemNumber;

  constructor(tokens: TokenClientApi, fileSystem: FileSystemNumber) {
    this.#tokens = tokens;
    this.#number = fileSystem;
  }

  tryPin(items: readonly TokenItem[]): TokenPins | null {
    return this.#tokens.tryPin(this.#items(items));
  }
  acquire(items: readonly TokenItem[], options?: AcquireOptions): Promise<TokenPins> {
    return this.#tokens.acquire(this.#items(items), options);
  }
  ask(items: readonly TokenItem[]): void {
    this.#tokens.ask(this.#items(items));
  }
  heldRange(tokenClass: TokenClass, object: TokenObject, offsetBytes: number, mode: TokenMode): ByteRange | null {
    return this.#tokens.heldRange(tokenClass, this.#object(tokenClass, object), offsetBytes, mode);
  }
  heldMode(tokenClass: TokenClass, object: TokenObject, offsetBytes: number): TokenMode {
    return this.#tokens.heldMode(tokenClass, this.#object(tokenClass, object), offsetBytes);
  }
  release(tokenClass: TokenClass, object: TokenObject, range: ByteRange): Promise<void> {
    return this.#tokens.release(tokenClass, this.#object(tokenClass, object), range);
  }

  setRevokeHandler(tokenClass: TokenClass, handler: RevokeHandler): void {
    this.#tokens.setRevokeHandler(tokenClass, {
      revoke: async (revocation: Revocation) => {
        const { fileSystem, id } = placeOf(tokenClass, revocation.object);
        if (fileSystem !== this.#number) return;
        return handler.revoke({ ...revocation, object: id });
      },
      working: (object) => {
        const { fileSystem, id } = placeOf(tokenClass, object);
        return fileSystem === this.#number ? handler.working(id) : null;
      },
      writesConcurrently: (object, range) => {
        const { fileSystem, id } = placeOf(tokenClass, object);
        return fileSystem === this.#number && (handler.writesConcurrently?.(id, range) ?? false);
      },
      gathered: (object, range, notes) => {
        const { fileSystem, id } = placeOf(tokenClass, object);
        if (fileSystem === this.#number) handler.gathered?.(id, range, notes);
      },
    });
  }

  #object(tokenClass: TokenClass, id: number): TokenObject {
    return tokenObject(tokenClass, this.#number, id);
  }

  #items(items: readonly TokenItem[]): readonly TokenItem[] {
    // Nothing to add, and nothing to pay for it.
    if (this.#number === 0) return items;
    return items.map((item) => ({ ...item, object: this.#object(item.class, item.object) }));
  }
}
