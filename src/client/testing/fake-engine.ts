import type { CacheMap, EntryId, SlotId } from '../../cache/cache-map.js';
import { NativeCacheMap } from '../../cache/cache-map-native.js';
import { FsError } from '../../common/errors.js';
import { PAGE_BYTES } from '../../common/units.js';
import { bootTimeMs, createPagePool } from '../../native/core.js';
import { TokenMode } from '../../token-manager/token.js';
import type { Engine, EngineConfig } from '../engine-contract.js';
import { MemoryFileSystem } from './memory-file-system.js';

/**
 * An engine for tests of the library: a file system in memory behind the real contract. `fileSystem` of the configuration says
 * which: 'memory'; 'mapped': one file, /hot, is cached in a real map; 'broken': does not start. Files named /control/... make it misbehave.
 */
const HOT_PAGES = 64;
const FAR_FUTURE_MS = 3_600_000;

export async function startEngine(config: EngineConfig): Promise<Engine> {
  if (config.fileSystem === 'broken')
    throw new FsError('storeUnavailable', { op: 'join', object: config.cluster.name, detail: 'no etcd answers' });
  const fs = new MemoryFileSystem();
  let failed: (why: FsError) => void = () => undefined;
  const reads = { count: 0 };
  fs.before = (op) => {
    if (op === 'read') reads.count++;
  };
  const access = fs.access.bind(fs);
  fs.access = (path, mode, who, options) =>
    path === '/control/hold' ? held(options?.signal) : access(path, mode, who, options);
  const unlink = fs.unlink.bind(fs);
  fs.unlink = async (path, who, options) => {
    if (path === '/control/fail') failed(new FsError('fenced', { op: 'engine', detail: 'told to' }));
    if (path === '/control/throw') setImmediate(() => Promise.reject(new Error('nobody catches this')));
    if (path.startsWith('/control/')) await new Promise<never>(() => undefined);
    await unlink(path, who, options);
  };
  const mapped = config.fileSystem === 'mapped' ? await mapHotFile(fs) : null;
  return {
    fileSystem: fs,
    mapIds: mapped,
    counters: () => ({ 'fake.reads': reads.count, 'fake.openFiles': fs.openFiles, 'fake.syncs': fs.syncs }),
    close: async () => {
      if (config.nodeName === 'slow-to-leave') await new Promise<never>(() => undefined);
    },
    onFailure: (listener) => {
      failed = listener;
    },
  };
}

/** Waits until the caller gives up: an operation whose token never comes. */
function held(signal: AbortSignal | undefined): Promise<void> {
  return new Promise((_resolve, reject) => {
    signal?.addEventListener('abort', () => reject(new FsError('aborted', { op: 'access' })));
  });
}

async function mapHotFile(fs: MemoryFileSystem): Promise<{ poolId: number; mapId: number }> {
  const sizeBytes = HOT_PAGES * PAGE_BYTES;
  const pool = createPagePool(sizeBytes);
  const native = NativeCacheMap.create(pool, 16);
  const map: CacheMap = native;
  const root = { uid: 0, gid: 0, groups: [], umask: 0 };
  const file = await fs.open('/hot', 0o102, 0o666, root);
  await file.truncate(sizeBytes);
  map.setLeaseDeadline(bootTimeMs() + FAR_FUTURE_MS);
  const entry = map.openEntry(file.ino, { sizeBytes, mtimeNs: 0n, ctimeNs: 0n }) as EntryId;
  map.setStatusMode(entry, TokenMode.exclusive);
  map.setCoverage(entry, [{ start: 0, end: sizeBytes, mode: TokenMode.exclusive }]);
  const content = { validMask: 0b1111, dirtyMask: 0, partialStart: 0, partialEnd: 0 };
  for (let page = 0; page < HOT_PAGES; page++) map.install(page as SlotId, entry, page, content, true);
  map.addDirtyCredits(HOT_PAGES);
  fs.entryOf = (ino) => (ino === file.ino ? entry : null);
  return { poolId: pool.id, mapId: native.id };
}
