import { randomUUID } from 'node:crypto';
import type { FileSystemClaims } from '../cluster/file-system-claims.js';
import type { NsdRecord } from '../cluster/membership-api.js';
import type { MembershipRuntime } from '../cluster/membership-runtime.js';
import type { FileSystemRecord } from '../cluster/records.js';
import { FsError } from '../common/errors.js';
import type { FormatOptions, HoldfastNode } from './node.js';

/**
 * Makes a file system: claims its NSDs in the store, formats them, and records it.
 *
 * Fault model: what fails gives the NSDs back. Who dies in the midst leaves them claimed for a file system that has no record, and its own claim as evidence
 * that it never will: such NSDs are as free as those of nobody.
 */
interface Parts {
  readonly node: HoldfastNode;
  readonly membership: MembershipRuntime;
  readonly claims: FileSystemClaims;
  readonly wasNeverMade: (fsUuid: string) => Promise<boolean>;
}

export async function createFileSystem(
  parts: Parts,
  name: string,
  nsdNames: readonly string[] | undefined,
  options: FormatOptions = {},
): Promise<FileSystemRecord> {
  const { node, membership, claims } = parts;
  if ((await membership.fileSystem(name)) !== null)
    throw new FsError('exists', { op: 'fs.create', object: name, detail: 'there is such a file system' });
  const chosen = await choose(parts, name, nsdNames);
  const uuid = randomUUID();
  const nsds = chosen.map((nsd) => nsd.uuid);
  await claims.beginMaking(uuid);
  try {
    for (const { uuid: nsd, fsUuid } of chosen) await claimNsd(membership, nsd, fsUuid, uuid);
    await node.format(
      { uuid, name, nsds },
      chosen.map((nsd) => nsd.failureGroup),
      options,
    );
    const number = await membership.allotFileSystemNumber(name);
    const record: FileSystemRecord = { uuid, number, nsds, createdMs: Date.now() };
    await membership.createFileSystem(name, record);
    await claims.endMaking(uuid, false);
    return record;
  } catch (error) {
    await giveBack(parts, uuid, nsds);
    throw error;
  }
}

async function choose(
  { membership, wasNeverMade }: Parts,
  name: string,
  nsdNames: readonly string[] | undefined,
): Promise<NsdRecord[]> {
  const known = [...membership.view.nsds.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const missing = (nsdNames ?? []).filter((wanted) => !known.some((nsd) => nsd.name === wanted));
  if (missing.length > 0)
    throw new FsError('notFound', { op: 'fs.create', object: missing.join(', '), detail: 'no such NSD' });
  const free: NsdRecord[] = [];
  const taken: NsdRecord[] = [];
  for (const nsd of known) (nsd.fsUuid === null || (await wasNeverMade(nsd.fsUuid)) ? free : taken).push(nsd);
  if (nsdNames !== undefined) {
    const busy = taken.filter((nsd) => nsdNames.includes(nsd.name));
    if (busy.length > 0)
      throw new FsError('busy', {
        op: 'fs.create',
        object: busy.map((nsd) => nsd.name).join(', '),
        detail: 'belongs to a file system already',
      });
  }
  const chosen = nsdNames === undefined ? free : free.filter((nsd) => nsdNames.includes(nsd.name));
  if (chosen.length === 0)
    throw new FsError('notFound', { op: 'fs.create', object: name, detail: 'the cluster has no free NSD' });
  return chosen;
}

/** From whom it was seen to belong to: nobody, or what was never made. */
const claimNsd = (membership: MembershipRuntime, nsd: string, from: string | null, to: string): Promise<void> =>
  membership.updateNsd(nsd, (record) => {
    if (record === null || (record.fsUuid !== from && record.fsUuid !== to))
      throw new FsError('busy', {
        op: 'fs.create',
        object: nsd,
        detail: 'was taken by another file system meanwhile',
      });
    return { ...record, fsUuid: to };
  });

/** Best effort: what can't be given back now is taken for free by the next one who asks. */
async function giveBack({ membership, claims }: Parts, uuid: string, nsds: readonly string[]): Promise<void> {
  const record = async (): Promise<void> => {
    await claims.endMaking(uuid, true);
    for (const nsd of nsds)
      await membership.updateNsd(nsd, (now) => (now?.fsUuid === uuid ? { ...now, fsUuid: null } : null));
  };
  await record().catch(() => undefined);
}
