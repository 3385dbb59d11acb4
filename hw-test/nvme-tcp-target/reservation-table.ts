import { STATUS } from './command.js';

/**
 * The reservation of one namespace: NVM Express Base Specification 2.0, section 8.19 and sections 7.2 to 7.5. Registrants are hosts, by their
 * host identifiers, over whichever controller they come. Pure.
 *
 * Types: 1 write exclusive, 2 exclusive access, 3 and 4 the same for registrants only, 5 and 6 for all registrants, each of whom
 * is a holder then.
 */
export type Access = 'read' | 'write';
export const RESERVATION_TYPE_MAX = 6;
const ALL_REGISTRANTS_FROM = 5;
const REGISTRANTS_FROM = 3;

export interface ReservationFields {
  readonly action: number;
  readonly ignoreKey: boolean;
  readonly type: number;
  readonly currentKey: bigint;
  /** The new key of a registration, the key to preempt of an acquisition. */
  readonly otherKey: bigint;
  /** CPTPL: 0 as it is, 2 not through a power loss, 3 through it. */
  readonly persist: number;
}

export interface Registrant {
  readonly hostId: string;
  readonly key: bigint;
  readonly holds: boolean;
}

export class ReservationTable {
  #generation = 0;
  /** 0: nobody has reserved it. */
  #type = 0;
  #holder: string | null = null;
  #persists = false;
  readonly #keys = new Map<string, bigint>();

  /** Figure "Command Behavior in the Presence of a Reservation". */
  refuses(host: string, access: Access): boolean {
    if (this.#type === 0 || this.#holds(host)) return false;
    if (this.#type >= REGISTRANTS_FROM && this.#keys.has(host)) return false;
    const writeExclusive = this.#type % 2 === 1;
    return access === 'write' || !writeExclusive;
  }

  register(host: string, { action, ignoreKey, currentKey, otherKey: newKey, persist }: ReservationFields): number {
    if (action > 2 || persist === 1) return STATUS.invalidField;
    const known = this.#keys.get(host);
    if (action === 0) {
      if (known !== undefined && known !== newKey) return STATUS.reservationConflict;
      this.#keys.set(host, newKey);
    } else {
      if (!ignoreKey && known !== currentKey) return STATUS.reservationConflict;
      if (action === 2) this.#keys.set(host, newKey);
      else if (known === undefined) return STATUS.reservationConflict;
      else this.#unregister(host);
    }
    if (persist !== 0) this.#persists = persist === 3;
    this.#count();
    return STATUS.success;
  }

  /** @returns who was preempted, too */
  acquire(host: string, fields: ReservationFields): { readonly status: number; readonly preempted: readonly string[] } {
    const { action, ignoreKey, type, currentKey, otherKey } = fields;
    const end = (status: number, preempted: readonly string[] = []) => ({ status, preempted });
    if (action > 2 || ignoreKey || type < 1 || type > RESERVATION_TYPE_MAX) return end(STATUS.invalidField);
    if (this.#keys.get(host) !== currentKey) return end(STATUS.reservationConflict);
    if (action === 0) {
      if (this.#type === 0) this.#take(host, type);
      else if (this.#type !== type || !this.#holds(host)) return end(STATUS.reservationConflict);
      return end(STATUS.success);
    }
    const everyone = this.#type >= ALL_REGISTRANTS_FROM && otherKey === 0n;
    if (this.#type !== 0 && this.#type < ALL_REGISTRANTS_FROM && otherKey === 0n) return end(STATUS.invalidField);
    const matching = [...this.#keys].filter(([, key]) => everyone || key === otherKey).map(([id]) => id);
    if (matching.length === 0) return end(STATUS.reservationConflict);
    const holdersKey = this.#holder === null ? undefined : this.#keys.get(this.#holder);
    const takes = everyone || (this.#holder !== null && holdersKey === otherKey);
    // Who takes the reservation from itself stays a registrant.
    const preempted = takes ? matching.filter((id) => id !== host) : matching;
    for (const id of preempted) this.#unregister(id);
    if (takes) this.#take(host, type);
    this.#count();
    return end(STATUS.success, preempted);
  }

  release(host: string, { action, ignoreKey, type, currentKey }: ReservationFields): number {
    if (action > 1 || ignoreKey) return STATUS.invalidField;
    if (this.#keys.get(host) !== currentKey) return STATUS.reservationConflict;
    if (action === 1) {
      this.#keys.clear();
      this.#free();
      this.#count();
    } else if (this.#holds(host)) {
      if (type !== this.#type) return STATUS.invalidField;
      this.#free();
    }
    return STATUS.success;
  }

  report() {
    const registrants: readonly Registrant[] = [...this.#keys].map(([hostId, key]) => ({
      hostId,
      key,
      holds: this.#holds(hostId),
    }));
    return { generation: this.#generation, type: this.#type, persists: this.#persists, registrants };
  }

  powerLoss(): void {
    if (this.#persists) return;
    this.#keys.clear();
    this.#free();
    this.#generation = 0;
  }

  #holds(host: string): boolean {
    return this.#type >= ALL_REGISTRANTS_FROM ? this.#keys.has(host) : this.#type !== 0 && this.#holder === host;
  }
  #take(host: string, type: number): void {
    this.#type = type;
    this.#holder = type >= ALL_REGISTRANTS_FROM ? null : host;
  }
  #free(): void {
    this.#type = 0;
    this.#holder = null;
  }
  #unregister(host: string): void {
    this.#keys.delete(host);
    if (this.#holder === host || this.#keys.size === 0) this.#free();
  }
  #count(): void {
    this.#generation = (this.#generation + 1) >>> 0;
  }
}
