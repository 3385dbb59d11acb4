/** What must not be, as a check found it. `check` names the invariant, or the check itself where it guards several. */
export interface Violation {
  readonly check: string;
  /** The inode concerned, 0 for none. */
  readonly ino: number;
  readonly text: string;
}

export class ViolationError extends Error {
  override readonly name = 'ViolationError';
  constructor(readonly violation: Violation) {
    super(`${violation.check}: ${violation.text}`);
  }
}
