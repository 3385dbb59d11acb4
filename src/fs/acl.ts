/**
 * POSIX access lists (POSIX.1e draft 17), in the form in which Linux hands them out as extended attributes: u32 version 2, then entries of u16 tag,
 * u16 permissions, u32 id.
 *
 * What the owner, the mask and others may do is the inode's mode: where the two disagree, the mode counts, so that chmod need not know of lists. A stored
 * access list always has a mask (one without says no more than a mode, and is none).
 */
import { FsError } from '../common/errors.js';
import { getU16, getU32, setU16, setU32 } from './sector.js';

export const AclTag = { owner: 1, user: 2, group: 4, namedGroup: 8, mask: 16, others: 32 } as const;
type AclTag = (typeof AclTag)[keyof typeof AclTag];
const TAGS: ReadonlySet<number> = new Set(Object.values(AclTag));
const NAMED: ReadonlySet<number> = new Set([AclTag.user, AclTag.namedGroup]);

export interface AclEntry {
  readonly tag: AclTag;
  readonly permissions: number;
  /** Of a named user or group. */
  readonly id: number;
}
export type Acl = readonly AclEntry[];

const VERSION = 2;
const HEADER_BYTES = 4;
const ENTRY_BYTES = 8;
const NO_ID = 0xffff_ffff;

/** Null: no entries, which means no list. @throws {FsError} invalidArgument, notSupported */
export function decodeAcl(bytes: Uint8Array, op: string, object: string): Acl | null {
  if (bytes.length === 0) return null;
  const wrong = (detail: string) => new FsError('invalidArgument', { op, object, detail: `an access list ${detail}` });
  if (bytes.length < HEADER_BYTES) throw wrong('without a header');
  if (getU32(bytes, 0) !== VERSION)
    throw new FsError('notSupported', { op, object, detail: `version ${getU32(bytes, 0)} of access lists` });
  if ((bytes.length - HEADER_BYTES) % ENTRY_BYTES !== 0) throw wrong(`of ${bytes.length} bytes`);
  const entries: AclEntry[] = [];
  for (let at = HEADER_BYTES; at < bytes.length; at += ENTRY_BYTES) {
    const tag = getU16(bytes, at);
    if (!TAGS.has(tag)) throw wrong(`with tag ${tag}`);
    entries.push({ tag: tag as AclTag, permissions: getU16(bytes, at + 2), id: getU32(bytes, at + 4) });
  }
  if (entries.length === 0) return null;
  const fault = aclFault(entries);
  if (fault !== null) throw wrong(fault);
  return entries;
}

export function encodeAcl(acl: Acl): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + acl.length * ENTRY_BYTES);
  setU32(bytes, 0, VERSION);
  acl.forEach(({ tag, permissions, id }, index) => {
    const at = HEADER_BYTES + index * ENTRY_BYTES;
    setU16(bytes, at, tag);
    setU16(bytes, at + 2, permissions);
    setU32(bytes, at + 4, NAMED.has(tag) ? id : NO_ID);
  });
  return bytes;
}

/** Owner, named users, group, named groups, mask, others: in this order, with a mask where there are names. */
function aclFault(acl: Acl): string | null {
  const seen = new Set<string>();
  let last = 0;
  for (const { tag, permissions, id } of acl) {
    if (permissions > 7) return `with permissions ${permissions}`;
    if (tag < last) return 'out of order';
    last = tag;
    if (NAMED.has(tag)) {
      if (id === NO_ID) return 'with a name that is none';
    } else if (seen.has(String(tag))) return `with tag ${tag} twice`;
    seen.add(String(tag));
  }
  for (const tag of [AclTag.owner, AclTag.group, AclTag.others])
    if (!seen.has(String(tag))) return `without tag ${tag}`;
  const named = acl.some(({ tag }) => NAMED.has(tag));
  if (named && !seen.has(String(AclTag.mask))) return 'with names and no mask';
  return null;
}

const hasMask = (acl: Acl): boolean => acl.some(({ tag }) => tag === AclTag.mask);

/** Permissions as the mode has them, where it has them. */
function inMode(acl: Acl, { tag, permissions }: AclEntry, mode: number): number {
  if (tag === AclTag.owner) return (mode >> 6) & 7;
  if (tag === AclTag.mask || (tag === AclTag.group && !hasMask(acl))) return (mode >> 3) & 7;
  return tag === AclTag.others ? mode & 7 : permissions;
}

/** The list with what the mode says now. */
export const withMode = (acl: Acl, mode: number): Acl =>
  acl.map((entry) => ({ ...entry, permissions: inMode(acl, entry, mode) }));

/** The permission bits that a list stands for; and whether it says more than they do. */
export function modeOf(acl: Acl): { bits: number; more: boolean } {
  const of = (tag: AclTag): number => acl.find((entry) => entry.tag === tag)?.permissions ?? 0;
  const masked = hasMask(acl);
  return {
    bits: (of(AclTag.owner) << 6) | (of(masked ? AclTag.mask : AclTag.group) << 3) | of(AclTag.others),
    more: masked,
  };
}

/** Draft 17, 23.1.5. The owner is known not to ask. */
export function aclAllows(
  acl: Acl,
  mode: number,
  wanted: number,
  isUser: (uid: number) => boolean,
  inGroup: (gid: number) => boolean,
  gid: number,
): boolean {
  const mask = (mode >> 3) & 7;
  let member = false;
  for (const entry of acl) {
    if (entry.tag === AclTag.user && isUser(entry.id)) return (entry.permissions & mask & wanted) === wanted;
    const isGroup = entry.tag === AclTag.group ? inGroup(gid) : entry.tag === AclTag.namedGroup && inGroup(entry.id);
    if (!isGroup) continue;
    member = true;
    if ((entry.permissions & wanted) === wanted) return (entry.permissions & mask & wanted) === wanted;
  }
  return !member && (mode & wanted) === wanted;
}

/** What a new file gets of its directory's default list: its mode, of which the umask takes nothing, and its access list or null. */
export function inheritAcl(acl: Acl, mode: number): { mode: number; access: Acl | null } {
  const { bits, more } = modeOf(acl);
  const inherited = (mode & ~0o777) | (mode & bits);
  return { mode: inherited, access: more ? withMode(acl, inherited) : null };
}
