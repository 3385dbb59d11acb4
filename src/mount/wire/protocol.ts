/** Numbers of the kernel's FUSE protocol (linux/fuse.h, 7.45) that JavaScript needs. Sizes and offsets stand where they are used. */
export const Opcode = {
  lookup: 1,
  getattr: 3,
  setattr: 4,
  readlink: 5,
  symlink: 6,
  mknod: 8,
  mkdir: 9,
  unlink: 10,
  rmdir: 11,
  rename: 12,
  link: 13,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  fsync: 20,
  setxattr: 21,
  getxattr: 22,
  listxattr: 23,
  removexattr: 24,
  flush: 25,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  fsyncdir: 30,
  getlk: 31,
  setlk: 32,
  setlkw: 33,
  access: 34,
  create: 35,
  fallocate: 43,
  readdirplus: 44,
  rename2: 45,
  lseek: 46,
  copyFileRange: 47,
  syncfs: 50,
  tmpfile: 51,
  statx: 52,
  copyFileRange64: 53,
} as const;

export const NotifyCode = { invalInode: 2, invalEntry: 3, store: 4, resend: 7, incEpoch: 8 } as const;

/** Answered with an open: how the kernel treats the handle. */
export const OpenReplyFlag = {
  directIo: 1 << 0,
  keepCache: 1 << 1,
  cacheDir: 1 << 3,
  noFlush: 1 << 5,
  parallelDirectWrites: 1 << 6,
} as const;

/** Of a WRITE. `cache`: a page of a writable mapping, written back; from no process, its handle is a guess (M3). */
export const WriteFlag = { cache: 1, lockOwner: 2, killSetId: 4 } as const;

export const NODE_ROOT = 1;
export const NAME_BYTES_MAX = 255;
export const HEADER_BYTES = 40;
/** "For ever": the kernel keeps a name or attributes until they are taken back. */
export const VALID_FOR_EVER_SECONDS = 2 ** 31 - 1;
