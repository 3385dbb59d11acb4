import { type InodeNumber, inodeNumber } from '../common/ids.js';
import { ByteReader, ByteWriter } from './codec.js';
import { uuidFromBytes, uuidToBytes } from './nsd-messages.js';

/**
 * fsShared: a read or write of a shared file, on its way to the node that owns it, and what came of it. Fault model: any bytes may arrive.
 *
 *   request  16 UUID of the file system · u64 incarnation that is meant · u8 op (1 read, 2 write, 3 sync) · u64 inode · u32 generation
 *            · u8 flags (1: at the end of the file, 2: data only) · u64 offset · u32 bytes to be read · u32 uid · u32 gid
 *            · u32 number of further groups · u32 each, ascending · bytes
 *   reply    u8 1: done, 0: not to be done there · u64 offset · u32 length · bytes
 */
export interface SharedRequest {
  readonly op: 'read' | 'write' | 'sync';
  readonly ino: InodeNumber;
  readonly generation: number;
  /** Null: at the end of the file. */
  readonly offsetBytes: number | null;
  /** Of a read. */
  readonly lengthBytes: number;
  /** Of a write. */
  readonly bytes: Uint8Array;
  /** Whose write it is: not everybody's leaves setuid bits. */
  readonly uid: number;
  readonly gid: number;
  /** Further ones, ascending: a member of a file's group keeps its setgid bit. */
  readonly groups: readonly number[];
  readonly dataOnly: boolean;
}
/** Null: it is not to be done there: not shared, removed, another file system. */
export type SharedReply = {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly bytes: Uint8Array;
} | null;
export interface SharedCall {
  readonly fsUuid: string;
  readonly incarnation: number;
  readonly request: SharedRequest;
}

/** Longer reads and writes don't go this way. */
export const SHARED_BYTES_MAX = 128 * 1024;
/** Who has more writes under tokens of his own. */
export const SHARED_GROUPS_MAX = 256;
const OPS = ['read', 'write', 'sync'] as const;
const AT_END = 1;
const DATA_ONLY = 2;

export function encodeSharedCall({ fsUuid, incarnation, request }: SharedCall): Uint8Array {
  const { op, ino, generation, offsetBytes, lengthBytes, bytes, uid, gid, groups, dataOnly } = request;
  return new ByteWriter(84 + 4 * groups.length + bytes.length)
    .raw(uuidToBytes(fsUuid))
    .u64(incarnation)
    .u8(OPS.indexOf(op) + 1)
    .u64(ino)
    .u32(generation)
    .u8((offsetBytes === null ? AT_END : 0) | (dataOnly ? DATA_ONLY : 0))
    .u64(offsetBytes ?? 0)
    .u32(lengthBytes)
    .u32(uid)
    .u32(gid)
    .u32(groups.length)
    .words(Uint32Array.from(groups))
    .bytes(bytes)
    .finish();
}

export function decodeSharedCall(body: Uint8Array): SharedCall {
  const r = new ByteReader(body, 'fsShared body');
  const fsUuid = uuidFromBytes(r.raw(16));
  const incarnation = r.u64();
  const op = OPS[r.u8() - 1];
  const ino = inodeNumber(r.u64());
  const generation = r.u32();
  const flags = r.u8();
  const offset = r.u64();
  const lengthBytes = r.u32();
  const uid = r.u32();
  const gid = r.u32();
  const groups = [...r.words(r.count(SHARED_GROUPS_MAX))];
  // The receiver keeps them while it waits for tokens.
  const bytes = r.bytes(SHARED_BYTES_MAX).slice();
  r.end();
  if (op === undefined || (flags & ~(AT_END | DATA_ONLY)) !== 0) throw r.bad(`op ${op}, flags ${flags}`);
  if (lengthBytes > SHARED_BYTES_MAX) throw r.bad(`${lengthBytes} bytes to be read`);
  if (groups.some((group, i) => i > 0 && group <= groups[i - 1]!)) throw r.bad('groups in no order');
  const offsetBytes = (flags & AT_END) !== 0 ? null : offset;
  const dataOnly = (flags & DATA_ONLY) !== 0;
  const request = { op, ino, generation, offsetBytes, lengthBytes, bytes, uid, gid, groups, dataOnly };
  return { fsUuid, incarnation, request };
}

export function encodeSharedReply(reply: SharedReply): Uint8Array {
  const { offsetBytes, lengthBytes, bytes } = reply ?? { offsetBytes: 0, lengthBytes: 0, bytes: new Uint8Array(0) };
  return new ByteWriter(20 + bytes.length)
    .u8(reply === null ? 0 : 1)
    .u64(offsetBytes)
    .u32(lengthBytes)
    .bytes(bytes)
    .finish();
}
export function decodeSharedReply(body: Uint8Array): SharedReply {
  const r = new ByteReader(body, 'fsShared reply');
  const done = r.u8() !== 0;
  const offsetBytes = r.u64();
  const lengthBytes = r.u32();
  const bytes = r.bytes(SHARED_BYTES_MAX);
  r.end();
  return done ? { offsetBytes, lengthBytes, bytes } : null;
}
