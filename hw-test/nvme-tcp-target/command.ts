/**
 * A command as it came (NVM Express Base Specification 2.0, figure 87) and what becomes of it. The numbers are this target's own, not
 * napi-nvme's: a mistake in one of them shall not agree with itself.
 */
export const OPCODE = {
  flush: 0x00,
  write: 0x01,
  read: 0x02,
  reservationRegister: 0x0d,
  reservationReport: 0x0e,
  reservationAcquire: 0x11,
  reservationRelease: 0x15,
  fabrics: 0x7f,
} as const;

/** Status type and code, with the do-not-retry bit where repeating the command would change nothing. */
const DO_NOT_RETRY = 0x4000;
export const STATUS = {
  success: 0,
  invalidOpcode: 0x001 | DO_NOT_RETRY,
  invalidField: 0x002 | DO_NOT_RETRY,
  invalidNamespace: 0x00b | DO_NOT_RETRY,
  sequenceError: 0x00c | DO_NOT_RETRY,
  lengthInvalid: 0x00f | DO_NOT_RETRY,
  hostIdFormat: 0x018 | DO_NOT_RETRY,
  preemptedAndAborted: 0x01b | DO_NOT_RETRY,
  outOfRange: 0x080 | DO_NOT_RETRY,
  reservationConflict: 0x083 | DO_NOT_RETRY,
  eventLimit: 0x105 | DO_NOT_RETRY,
  invalidLogPage: 0x109 | DO_NOT_RETRY,
  connectInvalid: 0x182 | DO_NOT_RETRY,
} as const;

export interface Outcome {
  readonly status: number;
  /** Dwords 0 and 1 of the completion. */
  readonly result?: bigint;
  readonly data?: Uint8Array;
}

export const failed = (status: number): Outcome => ({ status });
export const succeeded = (result = 0n): Outcome => ({ status: STATUS.success, result });

const SGL_IN_CAPSULE = 0x01;
const SGL_TRANSPORT = 0x5a;

export class Command {
  readonly opcode: number;
  readonly id: number;
  readonly nsid: number;
  /** What the host lends for data, either way. */
  readonly dataBytes: number;
  readonly inCapsule: boolean;
  readonly describesData: boolean;
  data: Uint8Array = new Uint8Array(0);

  constructor(private readonly entry: DataView) {
    this.opcode = entry.getUint8(0);
    this.id = entry.getUint16(2, true);
    this.nsid = entry.getUint32(4, true);
    this.dataBytes = entry.getUint32(32, true);
    const descriptor = entry.getUint8(39);
    this.inCapsule = descriptor === SGL_IN_CAPSULE;
    this.describesData = this.inCapsule || descriptor === SGL_TRANSPORT;
  }

  /** Of a fabrics command (section 6). */
  get fabricsType(): number {
    return this.entry.getUint8(4);
  }
  /** Bits 1:0 of the opcode, or of the fabrics command type, say which way data goes. */
  get bringsData(): boolean {
    const kind = this.opcode === OPCODE.fabrics ? this.fabricsType : this.opcode;
    return (kind & 3) === 1 && this.dataBytes > 0;
  }
  dword(index: number): number {
    return this.entry.getUint32(index * 4, true);
  }
  u64(offset: number): bigint {
    return this.entry.getBigUint64(offset, true);
  }
  u16(offset: number): number {
    return this.entry.getUint16(offset, true);
  }
  /** A 64-bit field of the data that came with it; null when there is less. */
  dataU64(offset: number): bigint | null {
    const { data } = this;
    if (data.byteLength < offset + 8) return null;
    return new DataView(data.buffer, data.byteOffset).getBigUint64(offset, true);
  }
}
