import { createHash } from 'node:crypto';
import path from 'node:path';
import type { FileSystemClient } from '../client/file-system-client.js';
import { eachLimit } from './limit.js';
import { Progress } from './progress.js';
import { localTree, scanTree, type Tree } from './tree.js';

/** What the quickstart checks: that every file is the same everywhere, and that writers on two nodes lose no byte. */
export interface ImportRoot {
  /** On this machine. */
  readonly local: string;
  /** In Holdfast. */
  readonly inside: string;
}

/** Caches that tools keep in node_modules (.vite, .cache): they may change while we look. */
export const skipped = (entry: string): boolean => /^\.[^/]*$/.test(entry) && entry !== '.bin';

export interface Expected {
  /** Path in Holdfast -> SHA-256, hex; of a symbolic link: its target. */
  readonly files: ReadonlyMap<string, string>;
  readonly symlinks: ReadonlyMap<string, string>;
  readonly bytes: number;
}

const IN_FLIGHT = 64;
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

export async function hashLocal(roots: readonly ImportRoot[]): Promise<Expected> {
  const files = new Map<string, string>();
  const symlinks = new Map<string, string>();
  let bytes = 0;
  for (const root of roots) {
    const tree: Tree = await scanTree(localTree, root.local, skipped);
    bytes += tree.bytes;
    await eachLimit(tree.files, IN_FLIGHT, async (entry) => {
      files.set(
        path.posix.join(root.inside, entry.path),
        sha256(await localTree.readFile(path.join(root.local, entry.path))),
      );
    });
    for (const entry of tree.symlinks)
      symlinks.set(
        path.posix.join(root.inside, entry.path),
        await localTree.readlink(path.join(root.local, entry.path)),
      );
  }
  return { files, symlinks, bytes };
}

export interface Comparison {
  readonly seconds: number;
  readonly differences: readonly string[];
}

/** Reads everything through one node. @returns what is missing, wrong or too much. */
export async function compare(
  client: FileSystemClient,
  expected: Expected,
  roots: readonly ImportRoot[],
  label: string,
): Promise<Comparison> {
  const started = performance.now();
  const differences: string[] = [];
  const progress = new Progress(label, expected.files.size, expected.bytes, false);
  try {
    await eachLimit(expected.files, IN_FLIGHT, async ([file, hash]) => {
      try {
        const bytes = await client.readFile(file);
        if (sha256(bytes) !== hash) differences.push(`${file}: other bytes`);
        progress.add(1, bytes.length);
      } catch (error) {
        differences.push(`${file}: ${error instanceof Error ? error.message : String(error)}`);
        progress.add(1, 0);
      }
    });
  } finally {
    progress.stop();
  }
  const seconds = (performance.now() - started) / 1000;
  await eachLimit(expected.symlinks, IN_FLIGHT, async ([link, target]) => {
    const found = await client.readlink(link).catch((error: unknown) => String(error));
    if (found !== target) differences.push(`${link}: points to ${found}, not to ${target}`);
  });
  for (const root of roots) differences.push(...(await tooMuch(client, root, expected)));
  return { seconds, differences };
}

async function tooMuch(client: FileSystemClient, root: ImportRoot, expected: Expected): Promise<string[]> {
  const extra: string[] = [];
  let level = [root.inside];
  while (level.length > 0) {
    const next: string[] = [];
    await eachLimit(level, IN_FLIGHT, async (directory) => {
      for (const entry of await client.readdir(directory, { withFileTypes: true })) {
        const file = path.posix.join(directory, entry.name);
        if (entry.isDirectory()) next.push(file);
        else if (!expected.files.has(file) && !expected.symlinks.has(file)) extra.push(`${file}: nobody put it there`);
      }
    });
    level = next;
  }
  return extra;
}

const RECORD_BYTES = 1000;
/** What two writers write: every record into the shared file, every fourth appended to the log. */
export const togetherBytes = (records: number): number => 2 * RECORD_BYTES * (records + Math.ceil(records / 4));
/** Record `index` of the shared file as its writer makes it: who wrote it, which it is, and a pattern of both. */
function record(writer: number, index: number): Uint8Array {
  const bytes = new Uint8Array(RECORD_BYTES);
  for (let i = 0; i < RECORD_BYTES; i++) bytes[i] = (writer * 97 + index * 31 + i * 7) & 0xff;
  new DataView(bytes.buffer).setUint32(0, index * 16 + writer);
  return bytes;
}

/**
 * Two writers at once, each on its own node: records interleaved in one file (they share sectors and pages, so tokens move
 * all the time), and records appended to another. Then every byte is read back through every node.
 */
export async function writeTogether(
  writers: readonly FileSystemClient[],
  readers: readonly FileSystemClient[],
  records: number,
): Promise<Comparison> {
  const started = performance.now();
  const shared = '/shared-records';
  const log = '/shared-log';
  for (const file of [shared, log]) await writers[0]!.writeFile(file, '');
  const handles = await Promise.all(
    writers.map(async (client) => ({ shared: await client.open(shared, 'r+'), log: await client.open(log, 'a') })),
  );
  await Promise.all(
    handles.map(async (handle, writer) => {
      for (let index = 0; index < records; index++) {
        const bytes = record(writer, index);
        await handle.shared.write(bytes, 0, RECORD_BYTES, (index * writers.length + writer) * RECORD_BYTES);
        if (index % 4 === 0) await handle.log.write(bytes, 0, RECORD_BYTES);
      }
    }),
  );
  for (const handle of handles) await Promise.all([handle.shared.close(), handle.log.close()]);

  const differences: string[] = [];
  for (const [i, reader] of readers.entries()) {
    const bytes = await reader.readFile(shared);
    const lengthBytes = records * writers.length * RECORD_BYTES;
    if (bytes.length !== lengthBytes)
      differences.push(`${shared} from node ${i + 1}: ${bytes.length} bytes, not ${lengthBytes}`);
    for (let index = 0; index < records; index++)
      for (let writer = 0; writer < writers.length; writer++) {
        const at = (index * writers.length + writer) * RECORD_BYTES;
        if (!bytes.subarray(at, at + RECORD_BYTES).equals(record(writer, index)))
          differences.push(`${shared} from node ${i + 1}: record ${index} of writer ${writer} is damaged`);
      }
    differences.push(...checkLog(await reader.readFile(log), writers.length, records, `${log} from node ${i + 1}`));
  }
  return { seconds: (performance.now() - started) / 1000, differences };
}

/** Every appended record is there once, whole, and those of one writer in their order. */
function checkLog(bytes: Buffer, writers: number, records: number, what: string): string[] {
  const perWriter = Math.ceil(records / 4);
  if (bytes.length !== perWriter * writers * RECORD_BYTES)
    return [`${what}: ${bytes.length} bytes, not ${perWriter * writers * RECORD_BYTES}`];
  const next = Array.from({ length: writers }, () => 0);
  for (let at = 0; at < bytes.length; at += RECORD_BYTES) {
    const header = bytes.readUInt32BE(at);
    const [writer, index] = [header % 16, Math.floor(header / 16)];
    if (next[writer] !== index || !bytes.subarray(at, at + RECORD_BYTES).equals(record(writer, index)))
      return [`${what}: the record at ${at} is damaged or out of order`];
    next[writer] = index + 4;
  }
  return [];
}
