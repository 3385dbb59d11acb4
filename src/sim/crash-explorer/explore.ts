import { below, chance, type Random, SeededRandom } from '../../common/random.js';
import type { PagePool } from '../../native/page-pool.js';
import { type DeviceImage, type DeviceOp, DeviceRecord } from '../../nsd/device-record.js';
import { RecordingDevice } from '../../nsd/recording-device.js';
import { type CrashState, type Depth, statesAt } from './crash-states.js';
import { ImageDevice } from './image-device.js';
import { type Found, judge, lookAt } from './oracle.js';
import type { PlantedOrder } from './planted-order.js';
import { DEVICE_BYTES, type Moment, runWorkload, StillClock, setUp } from './run-workload.js';
import { checksums, newMemory, Stack } from './stack.js';
import type { Variant, Workload } from './workloads.js';

/**
 * One workload: run once, crashed at every write, discard and flush of its last operation and of what follows it (what was before belongs to the workload that ends
 * there), each crash in several ways, recovered, and judged. States with the same bytes on all disks are recovered once.
 */
export interface ExploreOptions {
  readonly depth: Depth;
  /** Of the states, how many also die again while they are being recovered (I9). */
  readonly againShare: number;
  readonly seed: number;
  readonly planted?: PlantedOrder | null;
}
export interface Explored {
  readonly id: string;
  readonly moments: number;
  /** Judged; of them `distinct` were different on the disks, and recovered. */
  readonly states: number;
  readonly distinct: number;
  /** Recoveries that were cut off and begun anew. */
  readonly again: number;
  readonly violation: string | null;
}
type Outcome = { readonly found: Found } | { readonly failed: string };

const RECOVERY_REAL_MS = 20_000;

export class Explorer {
  readonly #memory: PagePool = newMemory();
  readonly #recoveryMemory: PagePool = newMemory();
  /** What workloads begin with, by variant. */
  readonly #bases = new Map<Variant, Promise<DeviceImage[]>>();

  #base(variant: Variant): Promise<DeviceImage[]> {
    let base = this.#bases.get(variant);
    if (base === undefined) {
      base = setUp(this.#memory, variant);
      this.#bases.set(variant, base);
    }
    return base;
  }

  async explore(workload: Workload, { depth, againShare, seed, planted = null }: ExploreOptions): Promise<Explored> {
    // What is drawn for a moment, or for a state, is the same however many others are looked at: so a failure replays with any depth.
    const randomFor = (what: string): SeededRandom =>
      new SeededRandom(seed ^ checksums.bytes(Buffer.from(`${workload.id} ${what}`)));
    const counts = { moments: 0, states: 0, distinct: 0, again: 0 };
    const done = (violation: string | null): Explored => ({ id: workload.id, ...counts, violation });
    const base = await this.#base(workload.variant);
    let recording: Awaited<ReturnType<typeof runWorkload>>;
    try {
      // The order of the devices' transfers is the same for workloads that begin alike.
      recording = await runWorkload(base, workload, this.#memory, { seed, planted });
    } catch (error) {
      return done(`it did not run to its end: ${textOf(error)}`);
    }
    const outcomes = new Map<string, Outcome>();
    const judged = new Set<string>();
    for (const moment of recording.moments) {
      const { begun, durable } = moment.progress;
      if (begun <= workload.lastBegins) continue;
      counts.moments++;
      for (const state of statesAt(recording, moment, base, depth, randomFor(`at ${moment.events}`))) {
        const known = `${begun}.${durable}.${state.torn} ${state.key}`;
        if (judged.has(known)) continue;
        judged.add(known);
        counts.states++;
        let outcome = outcomes.get(state.key);
        if (outcome === undefined) {
          counts.distinct++;
          outcome = await this.#recover(state.images, 3);
          outcomes.set(state.key, outcome);
        }
        const wrong = verdict(workload, moment, state, outcome);
        if (wrong !== null) return done(`${where(moment, state)}: ${wrong}`);
        const random = randomFor(known);
        if (!chance(random, againShare)) continue;
        counts.again++;
        const cut = await this.#recoverCutOff(state.images, random);
        const twice = await this.#recover(cut.images, 4);
        const still = verdict(workload, moment, { ...state, torn: true }, twice);
        if (still !== null) return done(`${where(moment, state)}, and again after ${cut.events} (I9): ${still}`);
      }
    }
    return done(null);
  }

  async #recover(images: readonly DeviceImage[], life: number): Promise<Outcome> {
    const pool = this.#recoveryMemory;
    const devices = images.map((image) => new ImageDevice(DEVICE_BYTES, pool, image));
    const recovered = async (): Promise<Outcome> => {
      const stack = await Stack.mount(devices, pool, new StillClock(), { life });
      const seen = await lookAt(stack.fs);
      const report = await stack.unmount();
      return { found: { ...seen, report } };
    };
    return bounded(recovered());
  }

  /** The disks after the power failed while they were being recovered. */
  async #recoverCutOff(
    images: readonly DeviceImage[],
    random: Random,
  ): Promise<{ images: DeviceImage[]; events: string }> {
    const pool = this.#recoveryMemory;
    const moments: number[][] = [];
    const records: DeviceRecord[] = images.map(
      (image) => new WatchedRecord(image, () => moments.push(records.map((record) => record.events))),
    );
    const devices = images.map(
      (image, disk) => new RecordingDevice(new ImageDevice(DEVICE_BYTES, pool, image), pool, records[disk]!),
    );
    await bounded(
      Stack.mount(devices, pool, new StillClock(), { life: 3 }).then(() => ({ failed: 'it was not cut off' })),
    );
    const events = moments[below(random, moments.length)] ?? records.map(() => 0);
    const moment: Moment = { events, progress: { begun: 0, durable: 0, contents: new Map() } };
    const states = [
      ...statesAt({ records, moments: [] }, moment, images, { extremes: 2, random: 1, aloneMax: 0 }, random),
    ];
    return { images: [...states[below(random, states.length)]!.images], events: events.join(' and ') };
  }
}

function verdict(workload: Workload, { progress }: Moment, { torn }: CrashState, outcome: Outcome): string | null {
  return 'failed' in outcome ? outcome.failed : judge(workload, progress, outcome.found, torn);
}
const where = ({ events, progress }: Moment, { name }: CrashState): string =>
  `power cut after ${events.join(' and ')} events in operation ${progress.begun}, ${name}`;
const textOf = (error: unknown): string => (error instanceof Error ? (error.stack ?? error.message) : String(error));

/** A recovery that throws or hangs is an outcome, too. */
async function bounded(work: Promise<Outcome>): Promise<Outcome> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<Outcome>((resolve) => {
    timer = setTimeout(() => resolve({ failed: 'the recovery hangs' }), RECOVERY_REAL_MS);
  });
  try {
    return await Promise.race([work, late]);
  } catch (error) {
    return { failed: `the recovery failed: ${textOf(error)}` };
  } finally {
    clearTimeout(timer);
  }
}

/** Says so with each event. */
class WatchedRecord extends DeviceRecord {
  constructor(
    base: DeviceImage,
    private readonly onEvent: () => void,
  ) {
    super(base);
  }
  override begin(op: DeviceOp): number {
    const begun = super.begin(op);
    this.onEvent();
    return begun;
  }
  override end(begun: number): void {
    super.end(begun);
    this.onEvent();
  }
}
