/** A broken invariant. A daemon that meets one fences itself and exits; a library fails its handles (F7). */
export class InvariantError extends Error {
  override readonly name = 'InvariantError';
}

/** Assertions stay on in production: never serve what may be wrong. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}

export function unreachable(value: never, what: string): never {
  throw new InvariantError(`${what}: unexpected ${JSON.stringify(value)}`);
}
