/** One bit per sub-block of an NSD: what a check of a whole file system can afford to know of each of them. */
export class Bitmap {
  readonly bytes: Uint8Array;

  constructor(readonly length: number) {
    this.bytes = new Uint8Array(Math.ceil(length / 8));
  }

  has(at: number): boolean {
    return ((this.bytes[at >> 3]! >> (at & 7)) & 1) === 1;
  }
  add(at: number): void {
    this.bytes[at >> 3] = this.bytes[at >> 3]! | (1 << (at & 7));
  }
}
