import { type Command, failed, OPCODE, type Outcome, STATUS, succeeded } from './command.js';
import { type Access, type ReservationFields, ReservationTable } from './reservation-table.js';

const REPORT_HEADER_BYTES = 64;
const REGISTRANT_BYTES = 64;
/** In reports: the controllers here are made when a host connects (NVM Express Base Specification 2.0, section 3.1.2.1). */
const DYNAMIC_CONTROLLER = 0xffff;

/** Blocks in memory, with their reservation: NVM Command Set Specification 1.0, sections 3.2.4, 3.2.6 and 3.2.7.1. */
export class Namespace {
  readonly reservations = new ReservationTable();
  readonly memory: Buffer;
  readonly blockCount: number;

  constructor(
    lengthBytes: number,
    readonly blockBytes: number,
  ) {
    this.memory = Buffer.alloc(lengthBytes);
    this.blockCount = lengthBytes / blockBytes;
  }

  /** `preempted` is told whose commands under way are to be aborted. */
  execute(host: string, command: Command, preempted: (hosts: readonly string[]) => void): Outcome {
    if (command.nsid !== 1) return failed(STATUS.invalidNamespace);
    const access = ACCESS.get(command.opcode);
    if (access !== undefined && this.reservations.refuses(host, access)) return failed(STATUS.reservationConflict);
    switch (command.opcode) {
      case OPCODE.read:
      case OPCODE.write:
        return this.#transfer(command);
      case OPCODE.flush:
        return succeeded();
      case OPCODE.reservationRegister: {
        const fields = fieldsOf(command, 16);
        return fields === null ? failed(STATUS.lengthInvalid) : { status: this.reservations.register(host, fields) };
      }
      case OPCODE.reservationAcquire: {
        const fields = fieldsOf(command, 16);
        if (fields === null) return failed(STATUS.lengthInvalid);
        const outcome = this.reservations.acquire(host, fields);
        if (fields.action === 2) preempted(outcome.preempted);
        return { status: outcome.status };
      }
      case OPCODE.reservationRelease: {
        const fields = fieldsOf(command, 8);
        return fields === null ? failed(STATUS.lengthInvalid) : { status: this.reservations.release(host, fields) };
      }
      case OPCODE.reservationReport:
        return this.#report(command);
      default:
        return failed(STATUS.invalidOpcode);
    }
  }

  #transfer(command: Command): Outcome {
    const first = command.u64(40);
    const count = (command.dword(12) & 0xffff) + 1;
    if (first + BigInt(count) > BigInt(this.blockCount)) return failed(STATUS.outOfRange);
    const start = Number(first) * this.blockBytes;
    const end = start + count * this.blockBytes;
    if (command.dataBytes !== end - start) return failed(STATUS.lengthInvalid);
    if (command.opcode === OPCODE.read) return { status: STATUS.success, data: this.memory.subarray(start, end) };
    this.memory.set(command.data, start);
    return succeeded();
  }

  /** The extended data structure (section 7.4, figures 404 and 405): every host here has an identifier of 128 bits. */
  #report(command: Command): Outcome {
    if ((command.dword(11) & 1) === 0) return failed(STATUS.hostIdFormat);
    const { generation, type, persists, registrants } = this.reservations.report();
    const data = new Uint8Array(REPORT_HEADER_BYTES + registrants.length * REGISTRANT_BYTES);
    const view = new DataView(data.buffer);
    view.setUint32(0, generation, true);
    view.setUint8(4, type);
    view.setUint16(5, registrants.length, true);
    view.setUint8(9, persists ? 1 : 0);
    for (const [index, { hostId, key, holds }] of registrants.entries()) {
      const at = REPORT_HEADER_BYTES + index * REGISTRANT_BYTES;
      view.setUint16(at, DYNAMIC_CONTROLLER, true);
      view.setUint8(at + 2, holds ? 1 : 0);
      view.setBigUint64(at + 8, key, true);
      data.set(Buffer.from(hostId, 'hex'), at + 16);
    }
    const wantedBytes = (command.dword(10) + 1) * 4;
    // What it doesn't fill is zeros.
    const answer = new Uint8Array(Math.min(wantedBytes, command.dataBytes));
    answer.set(data.subarray(0, answer.byteLength));
    return { status: STATUS.success, data: answer };
  }
}

const ACCESS = new Map<number, Access>([
  [OPCODE.read, 'read'],
  [OPCODE.write, 'write'],
  [OPCODE.flush, 'write'],
]);

/** Dword 10 and the keys of register, acquire and release are alike. */
function fieldsOf(command: Command, dataBytes: number): ReservationFields | null {
  const currentKey = command.dataU64(0);
  const otherKey = dataBytes > 8 ? command.dataU64(8) : 0n;
  if (currentKey === null || otherKey === null) return null;
  const dword = command.dword(10);
  return {
    action: dword & 7,
    ignoreKey: (dword & 8) !== 0,
    type: (dword >>> 8) & 0xff,
    persist: dword >>> 30,
    currentKey,
    otherKey,
  };
}
