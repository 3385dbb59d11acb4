import path from 'node:path';
import type { FileSystemClient } from '../client/file-system-client.js';
import { eachLimit } from './limit.js';

/**
 * Simple throughput through one daemon's socket: sequential and random I/O on one file, creates, stats and removes of many.
 * Works in a directory of its own and removes it. It measures the way through the socket, not the library's hits.
 */
export interface BenchLine {
  readonly name: string;
  readonly operations: number;
  readonly bytes: number;
  readonly seconds: number;
}
export interface BenchOptions {
  readonly sizeBytes: number;
  readonly files: number;
  readonly inFlight: number;
}

const CHUNK_BYTES = 1 << 20;
const RANDOM_BYTES = 4096;
const RANDOM_READS = 10_000;
const SMALL_FILE_BYTES = 4096;

export async function runBench(client: FileSystemClient, root: string, options: BenchOptions): Promise<BenchLine[]> {
  const directory = await client.mkdtemp(path.posix.join(root, 'bench-'));
  try {
    return [...(await benchFile(client, directory, options)), ...(await benchTree(client, directory, options))];
  } finally {
    await client.rm(directory, { recursive: true, force: true });
  }
}

async function timed(name: string, operations: number, bytes: number, work: () => Promise<void>): Promise<BenchLine> {
  const started = performance.now();
  await work();
  return { name, operations, bytes, seconds: (performance.now() - started) / 1000 };
}

const upTo = function* (count: number): Iterable<number> {
  for (let i = 0; i < count; i++) yield i;
};

async function benchFile(client: FileSystemClient, directory: string, options: BenchOptions): Promise<BenchLine[]> {
  const chunks = Math.max(1, Math.floor(options.sizeBytes / CHUNK_BYTES));
  const bytes = chunks * CHUNK_BYTES;
  const content = new Uint8Array(CHUNK_BYTES);
  for (let i = 0; i < content.length; i++) content[i] = (i * 31 + (i >>> 8)) & 0xff;
  const handle = await client.open(path.posix.join(directory, 'file'), 'w+');
  const lanes = Math.min(8, options.inFlight);
  try {
    const written = await timed('write 1 MiB, sequential', chunks, bytes, () =>
      eachLimit(upTo(chunks), lanes, async (i) => {
        await handle.write(content, 0, CHUNK_BYTES, i * CHUNK_BYTES);
      }),
    );
    const synced = await timed('fsync', 1, 0, () => handle.sync());
    const readBack = await timed('read 1 MiB, sequential', chunks, bytes, () =>
      eachLimit(upTo(chunks), lanes, async (i) => {
        await handle.read(new Uint8Array(CHUNK_BYTES), 0, CHUNK_BYTES, i * CHUNK_BYTES);
      }),
    );
    const sectors = bytes / RANDOM_BYTES;
    const random = await timed('read 4 KiB, random', RANDOM_READS, RANDOM_READS * RANDOM_BYTES, () =>
      eachLimit(upTo(RANDOM_READS), options.inFlight, async () => {
        const sector = Math.floor(Math.random() * sectors);
        await handle.read(new Uint8Array(RANDOM_BYTES), 0, RANDOM_BYTES, sector * RANDOM_BYTES);
      }),
    );
    return [written, synced, readBack, random];
  } finally {
    await handle.close();
  }
}

async function benchTree(
  client: FileSystemClient,
  directory: string,
  { files, inFlight }: BenchOptions,
): Promise<BenchLine[]> {
  const content = new Uint8Array(SMALL_FILE_BYTES).fill(7);
  const name = (i: number): string => path.posix.join(directory, `f${i}`);
  const each = (work: (file: string) => Promise<unknown>): (() => Promise<void>) => {
    return () =>
      eachLimit(upTo(files), inFlight, async (i) => {
        await work(name(i));
      });
  };
  return [
    await timed(
      'create 4 KiB files',
      files,
      files * SMALL_FILE_BYTES,
      each((file) => client.writeFile(file, content)),
    ),
    await timed(
      'stat',
      files,
      0,
      each((file) => client.stat(file)),
    ),
    await timed(
      'read 4 KiB files',
      files,
      files * SMALL_FILE_BYTES,
      each((file) => client.readFile(file)),
    ),
    await timed(
      'rename',
      files,
      0,
      each((file) => client.rename(file, `${file}.new`)),
    ),
    await timed(
      'remove',
      files,
      0,
      each((file) => client.unlink(`${file}.new`)),
    ),
  ];
}
