/** Extended attributes: get, set, list, remove. Names, rights and errors are Linux's (fs/xattr.c, fs/posix_acl.c). */
import { FsError } from '../../common/errors.js';
import { TokenMode } from '../../token-manager/token.js';
import { type Acl, decodeAcl, encodeAcl, modeOf, withMode } from '../acl.js';
import { type Credentials, FileType, type OpOptions, type XattrSetOptions } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { checkAccess, isOwner, mayKeepSetgid, READ, S_ISGID, S_ISVTX, WRITE } from '../permissions.js';
import { type InodeRef, loadRef, pinInodes } from '../pinning.js';
import { publishStatus, withSettledState } from '../publishing.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';
import { sameName, type XattrEntry, XattrSpace } from '../xattr-format.js';
import { aclOf, allXattrs, giveUpXattrs, installXattrs, prepareXattrs, withXattrs } from '../xattrs.js';

export const XATTR_NAME_BYTES_MAX = 255;
export const XATTR_VALUE_BYTES_MAX = 65_536;
/** What a listing may say in all: beyond it nobody could list them. */
const XATTR_LIST_BYTES_MAX = 65_536;

type AclSpace = typeof XattrSpace.accessAcl | typeof XattrSpace.defaultAcl;
interface Name {
  readonly space: XattrSpace;
  readonly name: string;
}

const PREFIXES: readonly (readonly [string, XattrSpace])[] = [
  ['user.', XattrSpace.user],
  ['trusted.', XattrSpace.trusted],
  ['security.', XattrSpace.security],
];
const ACLS: Readonly<Record<string, AclSpace>> = {
  'system.posix_acl_access': XattrSpace.accessAcl,
  'system.posix_acl_default': XattrSpace.defaultAcl,
};
const isAcl = (space: XattrSpace): space is AclSpace =>
  space === XattrSpace.accessAcl || space === XattrSpace.defaultAcl;

function parseName(text: string, op: string, object: string): Name {
  const bytes = Buffer.byteLength(text);
  if (bytes === 0 || bytes > XATTR_NAME_BYTES_MAX || text.includes('\0'))
    throw new FsError('attributeNameTooLong', { op, object, detail: `an attribute's name of ${bytes} bytes` });
  const acl = ACLS[text];
  if (acl !== undefined) return { space: acl, name: '' };
  for (const [prefix, space] of PREFIXES) {
    if (!text.startsWith(prefix)) continue;
    if (text.length === prefix.length) throw new FsError('invalidArgument', { op, object, detail: 'an empty name' });
    return { space, name: text.slice(prefix.length) };
  }
  throw new FsError('notSupported', { op, object, detail: `no such space of attributes: ${text}` });
}

/** Null for what is ours alone. */
function fullName({ space, name }: Name): string | null {
  for (const [text, acl] of Object.entries(ACLS)) if (acl === space) return text;
  for (const [prefix, known] of PREFIXES) if (known === space) return prefix + name;
  return null;
}

const noAttribute = (op: string, object: string) => new FsError('noAttribute', { op, object });

function checkSpace(inode: Inode, { space }: Name, who: Credentials, mask: number, op: string, object: string): void {
  const writes = (mask & WRITE) !== 0;
  const refused = () => (writes ? new FsError('notPermitted', { op, object }) : noAttribute(op, object));
  if (space === XattrSpace.trusted && who.uid !== 0) throw refused();
  if (space === XattrSpace.security && writes && who.uid !== 0) throw refused();
  if (space !== XattrSpace.user) return;
  if (inode.type !== FileType.regular && !inode.isDirectory) throw refused();
  const sticky = inode.isDirectory && (inode.mode & S_ISVTX) !== 0;
  if (sticky && writes && !isOwner(inode, who)) throw refused();
  checkAccess(inode, who, mask, op, object);
}

async function reading<T>(
  volume: Volume,
  ref: InodeRef,
  op: string,
  options: OpOptions | undefined,
  use: (inode: Inode) => T,
): Promise<T> {
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.shared }], options);
  try {
    const inode = await loadRef(volume, ref, op);
    return await withXattrs(volume, inode, () => use(inode));
  } finally {
    pins.release();
  }
}

export function getXattr(
  volume: Volume,
  ref: InodeRef,
  text: string,
  credentials: Credentials,
  object: string,
  options: OpOptions | undefined,
): Promise<Uint8Array> {
  const op = 'getxattr';
  const name = parseName(text, op, object);
  return reading(volume, ref, op, options, (inode) => {
    if (isAcl(name.space)) {
      if (inode.type === FileType.symlink) throw new FsError('notSupported', { op, object });
      const acl = aclOf(inode, name.space);
      if (acl === null) throw noAttribute(op, object);
      return encodeAcl(name.space === XattrSpace.accessAcl ? withMode(acl, inode.mode) : acl);
    }
    checkSpace(inode, name, credentials, READ, op, object);
    const found = allXattrs(inode).find((entry) => sameName(entry, name));
    if (found === undefined) throw noAttribute(op, object);
    return found.value;
  });
}

/** Full names, in no order; of the trusted ones only root hears. */
export function listXattrs(
  volume: Volume,
  ref: InodeRef,
  credentials: Credentials,
  options: OpOptions | undefined,
): Promise<string[]> {
  return reading(volume, ref, 'listxattr', options, (inode) => {
    const names: string[] = [];
    for (const entry of allXattrs(inode)) {
      const name = fullName(entry);
      if (name !== null && (entry.space !== XattrSpace.trusted || credentials.uid === 0)) names.push(name);
    }
    return names;
  });
}

interface Change {
  readonly op: 'setxattr' | 'removexattr';
  readonly object: string;
  readonly credentials: Credentials;
  readonly name: Name;
  /** Null: removed. */
  readonly value: Uint8Array | null;
  readonly how: XattrSetOptions;
}

export async function setXattr(
  volume: Volume,
  ref: InodeRef,
  text: string,
  value: Uint8Array | null,
  credentials: Credentials,
  object: string,
  options: (XattrSetOptions & OpOptions) | undefined,
): Promise<void> {
  const op = value === null ? 'removexattr' : 'setxattr';
  const name = parseName(text, op, object);
  if (value !== null && value.length > XATTR_VALUE_BYTES_MAX)
    throw new FsError('attributeTooBig', { op, object, detail: `a value of ${value.length} bytes` });
  const change: Change = { op, object, credentials, name, value, how: options ?? {} };
  const pins = await pinInodes(volume, [{ ino: ref.ino, status: TokenMode.exclusive }], options);
  try {
    const inode = await loadRef(volume, ref, op);
    // One at a time for an inode, with everything else that takes and gives space.
    await inode.structure.run(async () => {
      while (!(await tryChange(volume, await loadRef(volume, ref, op), change)));
    });
  } finally {
    publishStatus(volume, ref.ino);
    pins.release();
  }
}

/** False: the inode got other attributes while the new ones were written. */
async function tryChange(volume: Volume, inode: Inode, change: Change): Promise<boolean> {
  const { space } = change.name;
  const planned = await withXattrs(volume, inode, () => {
    const plan = isAcl(space) ? planAcl(inode, space, change) : planValue(inode, change);
    return plan === null ? null : { ...plan, kept: inode.kept, inBlock: inode.xattrBlock };
  });
  if (planned === null) return true;
  const { kept, inBlock } = planned;
  const prepared = await prepareXattrs(volume, inode, planned.entries, { kept, inBlock }, change.op);
  if (inode.kept !== kept || !inode.valid) {
    giveUpXattrs(volume, prepared);
    volume.checkNotFenced(change.op, inode.ino);
    return false;
  }
  withSettledState(volume, inode, () => {
    const transaction = new MetadataTransaction(volume);
    installXattrs(inode, prepared);
    if (planned.mode !== null) inode.mode = planned.mode(inode.mode);
    inode.ctimeNs = transaction.nowNs;
    transaction.inode(inode);
    transaction.commit();
  });
  return true;
}

interface Plan {
  readonly entries: readonly XattrEntry[];
  readonly mode: ((mode: number) => number) | null;
}

function planValue(inode: Inode, { op, object, credentials, name, value, how }: Change): Plan | null {
  checkSpace(inode, name, credentials, WRITE, op, object);
  const all = allXattrs(inode);
  const present = all.some((entry) => sameName(entry, name));
  if (present && how.create === true) throw new FsError('exists', { op, object });
  if (!present && (how.replace === true || value === null)) throw noAttribute(op, object);
  const entries = all.filter((entry) => !sameName(entry, name));
  if (value !== null) entries.push({ ...name, value: value.slice() });
  let listed = 0;
  for (const entry of entries) listed += Buffer.byteLength(fullName(entry) ?? '') + 1;
  if (listed > XATTR_LIST_BYTES_MAX) throw new FsError('noSpace', { op, object, detail: 'too many attributes' });
  return { entries, mode: null };
}

/** Null: nothing to be done. */
function planAcl(inode: Inode, space: AclSpace, { op, object, credentials, value }: Change): Plan | null {
  const acl: Acl | null = value === null ? null : decodeAcl(value, op, object);
  if (inode.type === FileType.symlink) throw new FsError('notSupported', { op, object });
  if (space === XattrSpace.defaultAcl && !inode.isDirectory) {
    if (acl === null) return null;
    throw new FsError('accessDenied', { op, object, detail: 'a default list is for directories' });
  }
  if (!isOwner(inode, credentials)) throw new FsError('notPermitted', { op, object, detail: 'not the owner' });
  const entries = allXattrs(inode).filter((entry) => entry.space !== space);
  if (space === XattrSpace.defaultAcl) {
    if (acl !== null) entries.push({ space, name: '', value: encodeAcl(acl) });
    return { entries, mode: null };
  }
  if (acl === null) return { entries, mode: null };
  const { bits, more } = modeOf(acl);
  if (more) entries.push({ space, name: '', value: encodeAcl(acl) });
  const sgid = mayKeepSetgid(inode.gid, credentials) ? 0o7000 : 0o7000 & ~S_ISGID;
  return { entries, mode: (mode) => (mode & sgid) | bits };
}
