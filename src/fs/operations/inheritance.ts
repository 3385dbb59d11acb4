/**
 * What a new inode has of its directory and its maker: mode and group, lists of permissions; and the target of a link that is too long for the inode.
 * Mostly that is known in the turn of the creation; where it needs a block it is written before, and belongs to nobody until then.
 */
import { encodeAcl, inheritAcl } from '../acl.js';
import { FileType } from '../file-system-api.js';
import type { Inode } from '../inode.js';
import { AREA_BYTES } from '../inode-format.js';
import type { InodeTicket } from '../inode-numbers.js';
import { inheritedMode } from '../permissions.js';
import type { Volume } from '../volume.js';
import { type XattrEntry, XattrSpace } from '../xattr-format.js';
import {
  aclOf,
  allXattrs,
  giveUpXattrs,
  NO_XATTRS,
  type PreparedXattrs,
  prepareXattrs,
  tryPrepareXattrs,
} from '../xattrs.js';
import type { NewNode } from './create-node.js';

export interface Inherited {
  readonly mode: number;
  readonly gid: number;
}

export class Inheritance {
  readonly #volume: Volume;
  readonly #ticket: InodeTicket;
  readonly #node: NewNode;
  #prepared: PreparedXattrs | null = null;
  /** For which attributes of the directory. */
  #preparedFor: Uint8Array | null = null;

  constructor(volume: Volume, ticket: InodeTicket, node: NewNode) {
    this.#volume = volume;
    this.#ticket = ticket;
    this.#node = node;
  }

  /** Null: `prepare` first. */
  tryFrom(directory: Inode): Inherited | null {
    const { entries, ...inherited } = this.#of(directory);
    if (this.#prepared !== null && this.#preparedFor === directory.kept) return inherited;
    this.giveUp();
    const prepared = entries.length === 0 ? NO_XATTRS : tryPrepareXattrs(entries);
    if (prepared === null) return null;
    this.#prepared = prepared;
    this.#preparedFor = directory.kept;
    return inherited;
  }

  async prepare(directory: Inode): Promise<void> {
    const { kept } = directory;
    this.#prepared = await prepareXattrs(this.#volume, this.#ticket, this.#of(directory).entries, null, this.#node.op);
    this.#preparedFor = kept;
  }

  /** In the turn of the creation, after `tryFrom`. */
  use(): PreparedXattrs {
    const prepared = this.#prepared ?? NO_XATTRS;
    this.#prepared = null;
    return prepared;
  }

  giveUp(): void {
    if (this.#prepared !== null) giveUpXattrs(this.#volume, this.#prepared);
    this.#prepared = null;
  }

  #of(directory: Inode): Inherited & { readonly entries: readonly XattrEntry[] } {
    const { type, mode, credentials, target } = this.#node;
    const inherited = inheritedMode(directory, type, mode, credentials);
    if (type === FileType.symlink) {
      const long = target !== undefined && target.length > AREA_BYTES;
      return { ...inherited, entries: long ? [{ space: XattrSpace.linkTarget, name: '', value: target }] : [] };
    }
    const acl = aclOf(directory, XattrSpace.defaultAcl);
    if (acl === null) return { ...inherited, mode: inherited.mode & ~credentials.umask, entries: [] };
    const { mode: allowed, access } = inheritAcl(acl, inherited.mode);
    const entries: XattrEntry[] = [];
    if (access !== null) entries.push({ space: XattrSpace.accessAcl, name: '', value: encodeAcl(access) });
    if (type === FileType.directory)
      entries.push(...allXattrs(directory).filter(({ space }) => space === XattrSpace.defaultAcl));
    return { mode: allowed, gid: inherited.gid, entries };
  }
}
