/** Encoding what is told to the kernel unasked: the bytes behind a notification's header. */
const encoder = new TextEncoder();

function u64(view: DataView, at: number, value: number): void {
  view.setBigInt64(at, BigInt(value), true);
}

/** Attributes alone (`offset` -1), or with pages: `length` 0 or less is to the end of the file. */
export function invalInode(node: number, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(24);
  const view = new DataView(bytes.buffer);
  u64(view, 0, node);
  u64(view, 8, offset);
  u64(view, 16, length);
  return bytes;
}

/** `expireOnly`: the name is looked up again at its next use; what hangs on it (pages, mounts, cwd) stays. */
export function invalEntry(directory: number, name: string, expireOnly: boolean): Uint8Array {
  const encoded = encoder.encode(name);
  const bytes = new Uint8Array(16 + encoded.length + 1);
  const view = new DataView(bytes.buffer);
  u64(view, 0, directory);
  view.setUint32(8, encoded.length, true);
  view.setUint32(12, expireOnly ? 1 : 0, true);
  bytes.set(encoded, 16);
  return bytes;
}

/** Puts bytes into the kernel's pages, and makes its idea of the size at least their end. */
export function store(node: number, offset: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(24 + data.length);
  const view = new DataView(bytes.buffer);
  u64(view, 0, node);
  u64(view, 8, offset);
  view.setUint32(16, data.length, true);
  bytes.set(data, 24);
  return bytes;
}

/** RESEND, INC_EPOCH: nothing behind the header. */
export const NOTHING = new Uint8Array(0);
