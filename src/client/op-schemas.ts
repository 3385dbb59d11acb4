import { z } from 'zod';
import { ALLOCATE_MODES, DENIES, LOCK_KINDS, type OpArgs, type OpName, WIRE_HINT_KINDS } from './ops.js';

/**
 * What a socket may send as arguments. In-process transports are typed by the compiler; bytes from a socket are believed only
 * after they passed here. Unknown keys are refused: a client that sends them expects something this engine doesn't do.
 */
const path = z
  .string()
  .min(1)
  .max(4096)
  .refine((p) => p.startsWith('/') && !p.includes('\0'), 'an absolute path without NUL');
const target = z
  .string()
  .min(1)
  .max(4096)
  .refine((p) => !p.includes('\0'), 'no NUL');
const handle = z.int().min(1).max(0xffffffff);
const bytes = z.int().min(0);
const mode = z.int().min(0).max(0o7777);
const flags = z.int().min(0).max(0x7fffffff);
/** -1: unchanged, as chown has it. */
const id = z.int().min(-1).max(0xfffffffe).optional();
const nanoseconds = z
  .string()
  .regex(/^(?:-?[0-9]{1,19}|now)$/)
  .optional();
const changes = z.strictObject({
  mode: mode.optional(),
  uid: id,
  gid: id,
  atimeNs: nanoseconds,
  mtimeNs: nanoseconds,
});
const xattrTarget = { path: path.optional(), follow: z.boolean().optional(), handle: handle.optional() };
const name = z.string().max(255);
const none = z.strictObject({});

export const OP_SCHEMAS: { readonly [K in OpName]: z.ZodType<OpArgs<K>> } = {
  open: z.strictObject({
    path,
    flags,
    mode,
    identify: z.boolean().optional(),
    deny: z.enum(DENIES).optional(),
    busyTimeoutMs: bytes.optional(),
  }),
  close: z.strictObject({ handle }),
  read: z.strictObject({ handle, offset: bytes, length: bytes }),
  bring: z.strictObject({ handle, offset: bytes, length: bytes }),
  write: z.strictObject({ handle, offset: bytes.nullable() }),
  truncateHandle: z.strictObject({ handle, size: bytes }),
  allocate: z.strictObject({
    handle,
    mode: z.enum(ALLOCATE_MODES),
    offset: bytes,
    length: bytes,
    keepSize: z.boolean(),
  }),
  copyRange: z.strictObject({ handle, offset: bytes, to: handle, toOffset: bytes, length: bytes }),
  linkHandle: z.strictObject({ handle, to: path }),
  seek: z.strictObject({ handle, offset: bytes, what: z.enum(['data', 'hole']) }),
  statHandle: z.strictObject({ handle }),
  setAttributesHandle: z.strictObject({ handle, changes }),
  sync: z.strictObject({ handle, dataOnly: z.boolean() }),
  hint: z.strictObject({ handle, kind: z.enum(WIRE_HINT_KINDS), offset: bytes, length: bytes }),
  lock: z.strictObject({
    handle,
    kind: z.enum(LOCK_KINDS),
    type: z.enum(['read', 'write']),
    offset: bytes,
    length: bytes,
    wait: z.boolean(),
    timeoutMs: bytes.optional(),
    pid: z.int().min(0).max(0xffffffff),
  }),
  unlock: z.strictObject({ handle, kind: z.enum(LOCK_KINDS), offset: bytes, length: bytes }),
  getLock: z.strictObject({
    handle,
    kind: z.enum(LOCK_KINDS),
    type: z.enum(['read', 'write']),
    offset: bytes,
    length: bytes,
  }),
  reopen: z.strictObject({ handle, path, ino: bytes, generation: bytes, flags }),
  readFile: z.strictObject({ path, flags, limit: bytes }),
  writeFile: z.strictObject({ path, flags, mode, sync: z.boolean(), changes: changes.optional() }),
  stat: z.strictObject({ path, follow: z.boolean() }),
  access: z.strictObject({ path, mode: z.int().min(0).max(7) }),
  mkdir: z.strictObject({ path, mode, recursive: z.boolean() }),
  rmdir: z.strictObject({ path }),
  unlink: z.strictObject({ path }),
  mknod: z.strictObject({ path, type: z.int().min(1).max(7), mode, rdev: z.int().min(0).max(0xffffffff) }),
  rename: z.strictObject({ from: path, to: path, noReplace: z.boolean().optional(), exchange: z.boolean().optional() }),
  link: z.strictObject({ from: path, to: path }),
  symlink: z.strictObject({ path, target }),
  readlink: z.strictObject({ path }),
  realpath: z.strictObject({ path }),
  readdir: z.strictObject({ path }),
  readdirMore: z.strictObject({ cursor: bytes, from: bytes }),
  setAttributes: z.strictObject({ path, changes, follow: z.boolean() }),
  truncate: z.strictObject({ path, size: bytes }),
  sharedWrite: z.strictObject({ path, on: z.boolean().optional() }),
  locate: z.strictObject({ path, offset: bytes, length: bytes }),
  statfs: z.strictObject({ path }),
  copyFile: z.strictObject({ from: path, to: path, mode: z.int().min(0).max(7) }),
  getXattr: z.strictObject({ ...xattrTarget, name }),
  listXattrs: z.strictObject(xattrTarget),
  setXattr: z.strictObject({ ...xattrTarget, name, create: z.boolean().optional(), replace: z.boolean().optional() }),
  removeXattr: z.strictObject({ ...xattrTarget, name }),
  syncAll: none,
  counters: none,
};
