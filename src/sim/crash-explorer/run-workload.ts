import { constants } from 'node:fs';
import { type Clock, sleep } from '../../common/clock.js';
import { SeededRandom } from '../../common/random.js';
import { type FileSystem, ROOT } from '../../fs/file-system-api.js';
import { FIRST_USER_INODE, INODES_PER_BLOCK } from '../../fs/layout.js';
import type { PagePool } from '../../native/page-pool.js';
import type { DeviceImage, DeviceRecord } from '../../nsd/device-record.js';
import { deviceBytesFor } from '../../nsd/testing.js';
import { Scheduler } from '../scheduler.js';
import { SimDisk } from '../sim-disk.js';
import { ImageDevice } from './image-device.js';
import { CROWD_PATH, HELD_PATH, SETUP } from './operations.js';
import type { PlantedOrder } from './planted-order.js';
import { format, NSD_COUNT, Stack, type StackSize } from './stack.js';
import { setupStamp, type Variant, type Workload } from './workloads.js';

/**
 * A workload at work on the real file system, in virtual time, with every write, discard and flush of its disks in a record, and what was under way at each
 * of these moments.
 */
const SIZE: Omit<StackSize, 'metadataCopies'> = { blocks: 8, logBytes: 128 * 1024 };
const SUB_BLOCKS = 256;
export const DEVICE_BYTES = deviceBytesFor(SIZE.blocks * SUB_BLOCKS);
const STEPS_MAX = 200_000;
/** Everything has been written and its space given back by then. */
const IDLE_MS = 150;

/** What the oracle has to know of a moment. */
export interface Progress {
  /** Operations begun: the last of them may be done, half done or not. */
  readonly begun: number;
  /** All names and attributes of this state at least are durable. */
  readonly durable: number;
  /** By inode of the model: the contents of this state at least are. */
  readonly contents: ReadonlyMap<number, number>;
}
export interface Moment {
  /** Of each disk, how many events of its record there had been. */
  readonly events: readonly number[];
  readonly progress: Progress;
}
export interface Recording {
  readonly records: readonly DeviceRecord[];
  readonly moments: readonly Moment[];
}

/** Time stands still: what is to happen happens at once, and nothing by itself. */
export class StillClock implements Clock {
  #wallNs = 1_800_000_000_000_000_000n;
  nowMs(): number {
    return 1;
  }
  wallNs(): bigint {
    this.#wallNs += 1000n;
    return this.#wallNs;
  }
  after(): { cancel(): void } {
    return { cancel: () => undefined };
  }
}

/** As many files more as leave few numbers in the inode file's first block: who makes a file makes it grow. */
const CROWD_FILES =
  INODES_PER_BLOCK - FIRST_USER_INODE - 1 - SETUP.filter(({ kind }) => kind === 'creat' || kind === 'mkdir').length - 2;
async function crowd(fs: FileSystem): Promise<void> {
  await fs.mkdir(CROWD_PATH, 0o755, ROOT);
  for (let i = 0; i < CROWD_FILES; i++)
    await (await fs.open(`${CROWD_PATH}/${i}`, constants.O_CREAT | constants.O_RDWR, 0o644, ROOT)).close();
}

/** The disks that all workloads of a kind begin with. */
export async function setUp(pool: PagePool, variant: Variant): Promise<DeviceImage[]> {
  const scheduler = new Scheduler();
  const devices = Array.from({ length: NSD_COUNT }, () => new ImageDevice(DEVICE_BYTES, pool, new Map()));
  const course = async (): Promise<void> => {
    await format(devices, pool, scheduler, { ...SIZE, metadataCopies: variant === 'copies' ? 2 : 1 });
    const stack = await Stack.mount(devices, pool, scheduler, { life: 1 });
    const held = await stack.fs.open('/', constants.O_RDONLY, 0, ROOT);
    for (const [index, operation] of SETUP.entries()) await operation.run({ fs: stack.fs, held }, setupStamp(index));
    await held.close();
    if (variant === 'crowded') await crowd(stack.fs);
    const { problems } = await stack.unmount();
    if (problems.length > 0) throw new Error(`what is set up is not sound: ${problems.join('; ')}`);
  };
  await scheduler.run(course(), { stepsMax: STEPS_MAX });
  return devices.map((device) => device.image());
}

/** @throws what an operation throws that should have succeeded. */
export async function runWorkload(
  images: readonly DeviceImage[],
  workload: Workload,
  pool: PagePool,
  { seed, planted = null }: { readonly seed: number; readonly planted?: PlantedOrder | null },
): Promise<Recording> {
  const scheduler = new Scheduler();
  const random = new SeededRandom(seed);
  const disks = images.map(
    (image) => new SimDisk(DEVICE_BYTES, scheduler, random.fork(), { min: 0.02, max: 0.3 }, image),
  );
  let records: DeviceRecord[] = [];
  let progress: Progress = { begun: 0, durable: 0, contents: new Map() };
  const moments: Moment[] = [];
  const note = (): void => {
    if (records.length === 0) return;
    const events = records.map((record) => record.events);
    const last = moments.at(-1);
    if (last?.progress === progress && last.events.every((count, index) => count === events[index])) return;
    moments.push({ events, progress });
  };
  const course = async (): Promise<void> => {
    const devices = disks.map((disk) => disk.open(pool));
    const stack = await Stack.mount(devices, pool, scheduler, { life: 2, planted });
    const held = await stack.fs.open(HELD_PATH, constants.O_RDWR, 0, ROOT);
    await stack.fs.sync();
    records = disks.map((disk) => disk.keepRecord());
    for (const [index, operation] of workload.operations.entries()) {
      const begun = index + 1;
      progress = { ...progress, begun };
      await operation.run({ fs: stack.fs, held }, begun);
      if (operation.durable !== undefined) progress = afterSync(progress, workload, operation.durable);
      note();
    }
    await sleep(scheduler, IDLE_MS);
  };
  await scheduler.run(course(), { stepsMax: STEPS_MAX, check: note });
  return { records, moments };
}

/** fsync writes the log as far as it goes (docs/log.md), so all names are durable, and this file's contents. */

function afterSync(progress: Progress, workload: Workload, what: string): Progress {
  const tree = workload.states[progress.begun]!;
  const contents = new Map(progress.contents);
  const of = what === 'all' ? [...tree.ids()] : [what === 'held' ? workload.held : tree.lookUp(what)];
  for (const id of of) contents.set(id, progress.begun);
  return { begun: progress.begun, durable: progress.begun, contents };
}
