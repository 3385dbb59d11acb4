import type { ByteRange } from '../common/byte-range.js';
import type { Revocation, StatusNote, TokenClass, TokenItem, TokenMode, TokenObject, TokenPins } from './token.js';

export interface AcquireOptions {
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Waits for open files elsewhere; else what an open file stands against is refused as soon as its node says so (tokenRefused). */
  readonly patient?: boolean | undefined;
}

/** What the cache and the file system see of tokens. */
export interface TokenClientApi {
  /** Everything held already: pinned at once, no message, no promise. Else null, and nothing is pinned. */
  tryPin(items: readonly TokenItem[]): TokenPins | null;
  /**
   * Takes all items in the total order (T4) and pins each as it arrives; one request message per token server concerned.
   * @throws {FsError} tokenDeadline naming who blocks, tokenRefused, aborted, suspended, fenced.
   */
  acquire(items: readonly TokenItem[], options?: AcquireOptions): Promise<TokenPins>;
  /**
   * Asks for what will be needed soon, each item for itself, and returns at once: those of one turn travel in one message per server.
   * What is granted is held and not pinned; what is refused is asked for again by whoever needs it.
   */
  ask(items: readonly TokenItem[]): void;
  /** The longest held range around `offset` with at least this mode and not being revoked, or null. */
  heldRange(tokenClass: TokenClass, object: TokenObject, offsetBytes: number, mode: TokenMode): ByteRange | null;
  /** What is held at the offset, being revoked or not: for whoever has it pinned. */
  heldMode(tokenClass: TokenClass, object: TokenObject, offsetBytes: number): TokenMode;
  /** Gives up what is held and unpinned in the range, after the revoke handler has run for it. */
  release(tokenClass: TokenClass, object: TokenObject, range: ByteRange): Promise<void>;
  /**
   * Who flushes and invalidates when a token of this class leaves. The token is answered as given up when the promise
   * resolves; a rejection is a broken invariant. `working` tells where an object is in use, to decide what beyond the
   * required range to give up (T1): null when it isn't.
   */
  setRevokeHandler(tokenClass: TokenClass, handler: RevokeHandler): void;
}

export interface RevokeHandler {
  /** What comes of it is told to the token server with the answer: of status only. */
  revoke(revocation: Revocation): Promise<readonly StatusNote[] | void>;
  /** The range from the object's present working position to where it expects to go, or null when it is idle. */
  working(object: TokenObject): ByteRange | null;
  /** Of status, which another node wants to share for writing: whether this one writes there too, and keeps it so; else all is given up. */
  writesConcurrently?(object: TokenObject, range: ByteRange): boolean;
  /**
   * Of status: concurrent-write has become exclusive, or notes came with the grant. Called before anybody can rely on it; what is not taken into the
   * inode is returned by the `revoke` that takes the token away; one that leaves something takes it in first.
   */
  gathered?(object: TokenObject, range: ByteRange, notes: readonly StatusNote[]): void;
}
