/**
 * Single NVMe commands as 72 bytes, the layout in which the kernel takes them (struct nvme_uring_cmd of linux/nvme_ioctl.h): opcode at 0, nsid
 * at 4, dwords 2 and 3 at 8, dwords 10 to 15 at 40, the timeout at 64; addresses and lengths are filled in by the addon. Pure.
 *
 * Source: NVM Express Base Specification 2.0, sections 5 (admin) and 7 (reservations); NVM Command Set Specification 1.0, section 3.2.
 */
export const COMMAND_BYTES = 72;

/** What is sent, and what moves with it. */
export interface NvmeCommand {
  readonly name: string;
  readonly set: 'admin' | 'io';
  readonly bytes: Uint8Array;
  /** Bytes of data, in the direction that the opcode says. */
  readonly dataBytes: number;
  readonly data: Uint8Array | null;
  readonly metadataBytes: number;
  readonly metadata: Uint8Array | null;
}

export interface CommandFields {
  readonly opcode: number;
  readonly nsid?: number;
  readonly cdw2?: number;
  readonly cdw3?: number;
  readonly cdw10?: number;
  readonly cdw11?: number;
  readonly cdw12?: number;
  readonly cdw13?: number;
  readonly cdw14?: number;
  readonly cdw15?: number;
  readonly timeoutMs?: number;
  readonly dataBytes?: number;
  readonly data?: Uint8Array | null;
  readonly metadataBytes?: number;
  readonly metadata?: Uint8Array | null;
}

const U32 = 2 ** 32;

function field(name: string, value: number, limit = U32): number {
  if (!Number.isInteger(value) || value < 0 || value >= limit)
    throw new RangeError(`${name} is a whole number below ${limit}, not ${String(value)}`);
  return value;
}

export function makeCommand(name: string, set: 'admin' | 'io', fields: CommandFields): NvmeCommand {
  const bytes = new Uint8Array(COMMAND_BYTES);
  const data = new DataView(bytes.buffer);
  data.setUint8(0, field('opcode', fields.opcode, 256));
  data.setUint32(4, field('nsid', fields.nsid ?? 0), true);
  data.setUint32(8, field('cdw2', fields.cdw2 ?? 0), true);
  data.setUint32(12, field('cdw3', fields.cdw3 ?? 0), true);
  const dwords = [fields.cdw10, fields.cdw11, fields.cdw12, fields.cdw13, fields.cdw14, fields.cdw15];
  for (const [index, value] of dwords.entries())
    data.setUint32(40 + index * 4, field(`cdw${10 + index}`, value ?? 0), true);
  data.setUint32(64, field('timeoutMs', fields.timeoutMs ?? 0), true);
  const payload = fields.data ?? null;
  const metadata = fields.metadata ?? null;
  return {
    name,
    set,
    bytes,
    dataBytes: field('dataBytes', fields.dataBytes ?? payload?.byteLength ?? 0),
    data: payload,
    metadataBytes: field('metadataBytes', fields.metadataBytes ?? metadata?.byteLength ?? 0),
    metadata,
  };
}

export const CNS = { namespace: 0, controller: 1, namespaceList: 2, nvmNamespace: 5, nvmController: 6 } as const;

/** Identify: 4096 bytes about a namespace or the controller. `csi` 0 is the NVM command set. */
export function identifyCommand(cns: number, nsid = 0, csi = 0, timeoutMs = 0): NvmeCommand {
  return makeCommand('identify', 'admin', {
    opcode: 0x06,
    nsid,
    cdw10: field('cns', cns, 256),
    cdw11: field('csi', csi, 256) * 2 ** 24,
    timeoutMs,
    dataBytes: 4096,
  });
}

export const LOG_PAGE = { errors: 0x01, smart: 0x02, firmware: 0x03, asymmetricAccess: 0x0c, discovery: 0x70 } as const;
export const ALL_NAMESPACES = 0xffffffff;

export function getLogPageCommand(
  page: number,
  lengthBytes: number,
  options: { nsid?: number; offsetBytes?: number; specific?: number; retain?: boolean; timeoutMs?: number } = {},
): NvmeCommand {
  if (!Number.isInteger(lengthBytes) || lengthBytes <= 0 || lengthBytes % 4 !== 0)
    throw new RangeError('a log page is read in dwords');
  const dwords = lengthBytes / 4 - 1;
  const offset = options.offsetBytes ?? 0;
  if (!Number.isSafeInteger(offset) || offset < 0 || offset % 4 !== 0)
    throw new RangeError('a log page is read at dwords');
  return makeCommand('get log page', 'admin', {
    opcode: 0x02,
    nsid: options.nsid ?? ALL_NAMESPACES,
    cdw10:
      field('page', page, 256) +
      field('specific', options.specific ?? 0, 128) * 2 ** 8 +
      (options.retain === true ? 2 ** 15 : 0) +
      (dwords % 2 ** 16) * 2 ** 16,
    cdw11: Math.floor(dwords / 2 ** 16),
    cdw12: offset % U32,
    cdw13: Math.floor(offset / U32),
    timeoutMs: options.timeoutMs ?? 0,
    dataBytes: lengthBytes,
  });
}

export function getFeaturesCommand(feature: number, nsid = 0, dataBytes = 0): NvmeCommand {
  return makeCommand('get features', 'admin', { opcode: 0x0a, nsid, cdw10: field('feature', feature, 256), dataBytes });
}

export function setFeaturesCommand(feature: number, nsid: number, value: number): NvmeCommand {
  return makeCommand('set features', 'admin', {
    opcode: 0x09,
    nsid,
    cdw10: field('feature', feature, 256),
    cdw11: value,
  });
}

/** One block range of a dataset management command. */
export interface DatasetRange {
  readonly lba: number;
  readonly blockCount: number;
  readonly contextAttributes?: number;
}

export function datasetManagementCommand(
  nsid: number,
  ranges: readonly DatasetRange[],
  hints: { deallocate?: boolean; integralRead?: boolean; integralWrite?: boolean },
  timeoutMs = 0,
): NvmeCommand {
  if (ranges.length < 1 || ranges.length > 256) throw new RangeError('a command takes 1 to 256 ranges');
  const data = new Uint8Array(ranges.length * 16);
  const view = new DataView(data.buffer);
  for (const [index, range] of ranges.entries()) {
    view.setUint32(index * 16, field('contextAttributes', range.contextAttributes ?? 0), true);
    view.setUint32(index * 16 + 4, field('blockCount', range.blockCount), true);
    view.setBigUint64(index * 16 + 8, BigInt(field('lba', range.lba, Number.MAX_SAFE_INTEGER)), true);
  }
  return makeCommand('dataset management', 'io', {
    opcode: 0x09,
    nsid,
    cdw10: ranges.length - 1,
    cdw11: (hints.deallocate ? 4 : 0) + (hints.integralWrite ? 2 : 0) + (hints.integralRead ? 1 : 0),
    timeoutMs,
    data,
  });
}

/** Protection information as the host has it: what to check, and the tags; without `byController` it travels as metadata. */
export interface ProtectionFields {
  /** PRACT: the controller makes and strips it. */
  readonly byController?: boolean;
  readonly checkGuard?: boolean;
  readonly checkApplicationTag?: boolean;
  readonly checkReferenceTag?: boolean;
  readonly referenceTag?: number;
  readonly applicationTag?: number;
  readonly applicationTagMask?: number;
}

const BLOCK_OPCODES = { read: 0x02, write: 0x01, compare: 0x05, writeZeroes: 0x08, verify: 0x0c } as const;

export interface BlockCommandFields {
  readonly lba: number;
  readonly blockCount: number;
  readonly dataBytes?: number;
  readonly data?: Uint8Array | null;
  readonly metadataBytes?: number;
  readonly metadata?: Uint8Array | null;
  readonly forceUnitAccess?: boolean;
  readonly limitedRetry?: boolean;
  readonly protection?: ProtectionFields;
  readonly timeoutMs?: number;
}

/** Read, write, compare, write zeroes or verify with everything that such a command can say; the engine has them without the frills. */
export function blockCommand(name: keyof typeof BLOCK_OPCODES, nsid: number, fields: BlockCommandFields): NvmeCommand {
  const { protection = {} } = fields;
  const lba = field('lba', fields.lba, Number.MAX_SAFE_INTEGER);
  if (fields.blockCount === 0) throw new RangeError('a command takes at least one block');
  return makeCommand(name, 'io', {
    opcode: BLOCK_OPCODES[name],
    nsid,
    cdw10: lba % U32,
    cdw11: Math.floor(lba / U32),
    cdw12:
      field('blockCount', fields.blockCount, 65_537) -
      1 +
      (fields.limitedRetry ? 2 ** 31 : 0) +
      (fields.forceUnitAccess ? 2 ** 30 : 0) +
      (protection.byController ? 2 ** 29 : 0) +
      (protection.checkGuard ? 2 ** 28 : 0) +
      (protection.checkApplicationTag ? 2 ** 27 : 0) +
      (protection.checkReferenceTag ? 2 ** 26 : 0),
    cdw14: protection.referenceTag ?? 0,
    cdw15:
      field('applicationTag', protection.applicationTag ?? 0, 65_536) +
      field('applicationTagMask', protection.applicationTagMask ?? 0, 65_536) * 65_536,
    timeoutMs: fields.timeoutMs ?? 0,
    dataBytes: fields.dataBytes ?? fields.data?.byteLength ?? 0,
    data: fields.data ?? null,
    metadataBytes: fields.metadataBytes ?? fields.metadata?.byteLength ?? 0,
    metadata: fields.metadata ?? null,
  });
}

export const flushCommand = (nsid: number, timeoutMs = 0): NvmeCommand =>
  makeCommand('flush', 'io', { opcode: 0x00, nsid, timeoutMs });

// Reservations

export const RESERVATION_TYPE = {
  writeExclusive: 1,
  exclusiveAccess: 2,
  writeExclusiveRegistrants: 3,
  exclusiveAccessRegistrants: 4,
  writeExclusiveAllRegistrants: 5,
  exclusiveAccessAllRegistrants: 6,
} as const;
export type ReservationType = keyof typeof RESERVATION_TYPE;

const REGISTER = { register: 0, unregister: 1, replace: 2 } as const;
const ACQUIRE = { acquire: 0, preempt: 1, preemptAndAbort: 2 } as const;
const RELEASE = { release: 0, clear: 1 } as const;
const PERSIST = { unchanged: 0, off: 2, on: 3 } as const;
const IGNORE_KEY = 8;

function keys(...values: readonly bigint[]): Uint8Array {
  const data = new Uint8Array(values.length * 8);
  const view = new DataView(data.buffer);
  for (const [index, value] of values.entries()) {
    if (typeof value !== 'bigint' || value < 0n || value >= 1n << 64n)
      throw new RangeError('a reservation key is a bigint of 64 bits');
    view.setBigUint64(index * 8, value, true);
  }
  return data;
}

export function reservationRegisterCommand(
  nsid: number,
  fields: {
    readonly action: keyof typeof REGISTER;
    readonly currentKey?: bigint;
    readonly newKey?: bigint;
    readonly ignoreExistingKey?: boolean;
    readonly persistThroughPowerLoss?: keyof typeof PERSIST;
  },
): NvmeCommand {
  return makeCommand('reservation register', 'io', {
    opcode: 0x0d,
    nsid,
    cdw10:
      REGISTER[fields.action] +
      (fields.ignoreExistingKey ? IGNORE_KEY : 0) +
      PERSIST[fields.persistThroughPowerLoss ?? 'unchanged'] * 2 ** 30,
    data: keys(fields.currentKey ?? 0n, fields.newKey ?? 0n),
  });
}

export function reservationAcquireCommand(
  nsid: number,
  fields: {
    readonly action: keyof typeof ACQUIRE;
    readonly type: ReservationType;
    readonly currentKey: bigint;
    readonly preemptKey?: bigint;
    readonly ignoreExistingKey?: boolean;
  },
): NvmeCommand {
  return makeCommand('reservation acquire', 'io', {
    opcode: 0x11,
    nsid,
    cdw10:
      ACQUIRE[fields.action] + (fields.ignoreExistingKey ? IGNORE_KEY : 0) + RESERVATION_TYPE[fields.type] * 2 ** 8,
    data: keys(fields.currentKey, fields.preemptKey ?? 0n),
  });
}

export function reservationReleaseCommand(
  nsid: number,
  fields: {
    readonly action: keyof typeof RELEASE;
    readonly type: ReservationType;
    readonly currentKey: bigint;
    readonly ignoreExistingKey?: boolean;
  },
): NvmeCommand {
  return makeCommand('reservation release', 'io', {
    opcode: 0x15,
    nsid,
    cdw10:
      RELEASE[fields.action] + (fields.ignoreExistingKey ? IGNORE_KEY : 0) + RESERVATION_TYPE[fields.type] * 2 ** 8,
    data: keys(fields.currentKey),
  });
}

export const RESERVATION_REPORT_BYTES_MAX = 65_536;

/** With the extended data structure: host identifiers of 128 bits, which fabrics have always. */
export function reservationReportCommand(nsid: number, lengthBytes = 4096, extended = true): NvmeCommand {
  if (lengthBytes % 4 !== 0 || lengthBytes < 64 || lengthBytes > RESERVATION_REPORT_BYTES_MAX)
    throw new RangeError(`a report has 64 to ${RESERVATION_REPORT_BYTES_MAX} bytes, in dwords`);
  return makeCommand('reservation report', 'io', {
    opcode: 0x0e,
    nsid,
    cdw10: lengthBytes / 4 - 1,
    cdw11: extended ? 1 : 0,
    dataBytes: lengthBytes,
  });
}
