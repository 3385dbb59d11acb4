import { NvmeCommandError } from './errors.js';
import {
  RESERVATION_REPORT_BYTES_MAX,
  RESERVATION_TYPE,
  type ReservationType,
  reservationAcquireCommand,
  reservationRegisterCommand,
  reservationReleaseCommand,
  reservationReportCommand,
} from './nvme-commands.js';
import type { NvmeDevice } from './nvme-device.js';

/**
 * Reservations of one namespace: who may read or write it, kept by the controller (NVM Express Base Specification 2.0, section 8.19).
 *
 * Not every controller has them; `support` says so before anything is tried, and every call on one that hasn't fails with EOPNOTSUPP and
 * that sentence. Fault model: a conflict is EBUSY, a wrong key is EBUSY too (the controller doesn't tell the two apart).
 */
export interface ReservationSupport {
  readonly supported: boolean;
  /** Why not; null when they are there. */
  readonly reason: string | null;
  readonly types: readonly ReservationType[];
  readonly persistThroughPowerLoss: boolean;
}

export interface ReservationRegistrant {
  readonly controllerId: number;
  readonly holdsReservation: boolean;
  readonly key: bigint;
  /** In hex: 16 or 32 digits. */
  readonly hostId: string;
}

export interface ReservationReport {
  readonly generation: number;
  /** Null when nobody holds one. */
  readonly type: ReservationType | null;
  readonly persistsThroughPowerLoss: boolean;
  readonly registrants: readonly ReservationRegistrant[];
}

const TYPE_NAMES = new Map<number, ReservationType>(
  (Object.keys(RESERVATION_TYPE) as ReservationType[]).map((name) => [RESERVATION_TYPE[name], name]),
);

/** The registrants that fit into `bytes`, and how many there are. @throws {RangeError} when it is no report. */
export function parseReservationReport(
  bytes: Uint8Array,
  extended = true,
): ReservationReport & { readonly registrantCount: number } {
  const headerBytes = extended ? 64 : 24;
  const recordBytes = extended ? 64 : 24;
  if (bytes.byteLength < headerBytes) throw new RangeError('too short for a reservation report');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const typeNumber = view.getUint8(4);
  const type = typeNumber === 0 ? null : TYPE_NAMES.get(typeNumber);
  if (type === undefined) throw new RangeError(`a reservation of unknown type ${typeNumber}`);
  const registrantCount = view.getUint16(5, true);
  const fit = Math.min(registrantCount, Math.floor((bytes.byteLength - headerBytes) / recordBytes));
  const registrants = Array.from({ length: fit }, (_, index) => {
    const at = headerBytes + index * recordBytes;
    const hostId = extended ? bytes.subarray(at + 16, at + 32) : bytes.subarray(at + 8, at + 16);
    return {
      controllerId: view.getUint16(at, true),
      holdsReservation: (view.getUint8(at + 2) & 1) !== 0,
      key: view.getBigUint64(extended ? at + 8 : at + 16, true),
      hostId: Buffer.from(hostId).toString('hex'),
    };
  });
  return {
    generation: view.getUint32(0, true),
    type,
    persistsThroughPowerLoss: view.getUint8(9) !== 0,
    registrants,
    registrantCount,
  };
}

export class Reservations {
  #support: ReservationSupport | undefined;

  constructor(private readonly device: NvmeDevice) {}

  async support(): Promise<ReservationSupport> {
    if (this.#support !== undefined) return this.#support;
    const controller = await this.device.identifyController();
    const namespace = await this.device.identifyNamespace();
    const types = namespace.reservationTypes.filter((name): name is ReservationType => name in RESERVATION_TYPE);
    let reason: string | null = null;
    if (!controller.has.reservations) reason = 'the controller has no reservations';
    else if (types.length === 0) reason = 'the namespace has no type of reservation';
    this.#support = {
      supported: reason === null,
      reason,
      types,
      persistThroughPowerLoss: namespace.reservationTypes.includes('persistThroughPowerLoss'),
    };
    return this.#support;
  }

  /** Makes this host a registrant under `key`. */
  async register(
    key: bigint,
    options: {
      replaces?: bigint;
      ignoreExistingKey?: boolean;
      persistThroughPowerLoss?: 'unchanged' | 'off' | 'on';
    } = {},
  ): Promise<void> {
    const nsid = await this.#check('reservation register');
    const { replaces, ...rest } = options;
    await this.device.send(
      reservationRegisterCommand(nsid, {
        ...rest,
        action: replaces === undefined && !options.ignoreExistingKey ? 'register' : 'replace',
        currentKey: replaces ?? 0n,
        newKey: key,
      }),
    );
  }

  async unregister(key: bigint): Promise<void> {
    const nsid = await this.#check('reservation register');
    await this.device.send(reservationRegisterCommand(nsid, { action: 'unregister', currentKey: key }));
  }

  async acquire(key: bigint, type: ReservationType): Promise<void> {
    const nsid = await this.#check('reservation acquire');
    await this.device.send(reservationAcquireCommand(nsid, { action: 'acquire', type, currentKey: key }));
  }

  /** Takes it from who holds `preemptKey`, whose registration goes; with `abort` its commands under way, too. */
  async preempt(
    key: bigint,
    preemptKey: bigint,
    type: ReservationType,
    options: { abort?: boolean } = {},
  ): Promise<void> {
    const nsid = await this.#check('reservation acquire');
    await this.device.send(
      reservationAcquireCommand(nsid, {
        action: options.abort ? 'preemptAndAbort' : 'preempt',
        type,
        currentKey: key,
        preemptKey,
      }),
    );
  }

  async release(key: bigint, type: ReservationType): Promise<void> {
    const nsid = await this.#check('reservation release');
    await this.device.send(reservationReleaseCommand(nsid, { action: 'release', type, currentKey: key }));
  }

  /** Ends the reservation and every registration. */
  async clear(key: bigint): Promise<void> {
    const nsid = await this.#check('reservation release');
    const { type } = await this.report();
    await this.device.send(
      reservationReleaseCommand(nsid, { action: 'clear', type: type ?? 'writeExclusive', currentKey: key }),
    );
  }

  async report(): Promise<ReservationReport> {
    const nsid = await this.#check('reservation report');
    for (let lengthBytes = 4096; ; ) {
      const { data } = await this.device.send(reservationReportCommand(nsid, lengthBytes));
      const { registrantCount, ...report } = parseReservationReport(data ?? new Uint8Array(0));
      const neededBytes = Math.min(64 + registrantCount * 64, RESERVATION_REPORT_BYTES_MAX);
      if (neededBytes <= lengthBytes) return report;
      lengthBytes = neededBytes;
    }
  }

  async #check(command: string): Promise<number> {
    const { supported, reason } = await this.support();
    if (!supported || this.device.nsid === null)
      throw new NvmeCommandError('EOPNOTSUPP', command, this.device.path, null, reason ?? 'this is no namespace');
    return this.device.nsid;
  }
}
