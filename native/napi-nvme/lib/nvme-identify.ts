/**
 * What controllers and namespaces say about themselves: Identify data structures (NVM Express Base Specification 2.0, figures 275 and 276;
 * NVM Command Set Specification 1.0, figures 97 to 101). Field names are the specification's, and nvme-cli's, where a field is only
 * handed through; units are in the name where one was worked out.
 */
export interface PowerState {
  readonly maxPowerMilliwatts: number;
  readonly nonOperational: boolean;
  readonly entryLatencyUs: number;
  readonly exitLatencyUs: number;
}

export interface IdentifyController {
  readonly vid: number;
  readonly ssvid: number;
  /** Serial number, model and firmware revision, without the blanks that fill them up. */
  readonly sn: string;
  readonly mn: string;
  readonly fr: string;
  readonly cmic: number;
  readonly mdts: number;
  readonly cntlid: number;
  /** 0x10400 is 1.4.0. */
  readonly ver: number;
  readonly version: string;
  readonly oaes: number;
  readonly ctratt: number;
  readonly cntrltype: number;
  readonly oacs: number;
  readonly frmw: number;
  readonly lpa: number;
  readonly elpe: number;
  readonly npss: number;
  readonly wctemp: number;
  readonly cctemp: number;
  readonly tnvmcap: bigint;
  readonly unvmcap: bigint;
  readonly kas: number;
  readonly anatt: number;
  readonly anacap: number;
  readonly sqes: number;
  readonly cqes: number;
  readonly maxcmd: number;
  readonly nn: number;
  readonly oncs: number;
  readonly fna: number;
  readonly vwc: number;
  readonly awun: number;
  readonly awupf: number;
  readonly nwpc: number;
  readonly sgls: number;
  readonly subnqn: string;
  readonly ioccsz: number;
  readonly iorcsz: number;
  readonly icdoff: number;
  readonly firmware: { readonly slotCount: number; readonly slotOneReadOnly: boolean };
  readonly has: {
    readonly compare: boolean;
    readonly datasetManagement: boolean;
    readonly writeZeroes: boolean;
    readonly reservations: boolean;
    readonly verify: boolean;
    readonly volatileWriteCache: boolean;
    readonly namespaceWriteProtection: boolean;
    /** More than one controller can reach its namespaces. */
    readonly multipleControllers: boolean;
    readonly asymmetricAccess: boolean;
    readonly extendedLbaFormats: boolean;
  };
  readonly powerStates: readonly PowerState[];
}

export const LBA_FORMAT_PERFORMANCE = ['best', 'better', 'good', 'degraded'] as const;

export interface LbaFormat {
  readonly index: number;
  readonly lbaBytes: number;
  readonly metadataBytes: number;
  readonly performance: (typeof LBA_FORMAT_PERFORMANCE)[number];
  readonly inUse: boolean;
}

export interface IdentifyNamespace {
  readonly nsze: bigint;
  readonly ncap: bigint;
  readonly nuse: bigint;
  readonly nsfeat: number;
  readonly nlbaf: number;
  readonly flbas: number;
  readonly mc: number;
  readonly dpc: number;
  readonly dps: number;
  readonly nmic: number;
  readonly rescap: number;
  readonly fpi: number;
  readonly dlfeat: number;
  readonly noiob: number;
  readonly nvmcap: bigint;
  readonly npwg: number;
  readonly npwa: number;
  readonly npdg: number;
  readonly npda: number;
  readonly nows: number;
  readonly nsattr: number;
  readonly anagrpid: number;
  readonly nguid: string;
  readonly eui64: string;
  readonly lbaFormats: readonly LbaFormat[];
  /** The one in use. */
  readonly format: LbaFormat;
  readonly sizeBytes: number;
  readonly metadata: 'none' | 'separate' | 'extended';
  readonly protection: { readonly type: 0 | 1 | 2 | 3; readonly first: boolean };
  readonly writeProtected: boolean;
  readonly shared: boolean;
  readonly reservationTypes: readonly string[];
}

/** Identify controller of the NVM command set (CNS 6): how much a command without data may cover. */
export interface IdentifyNvmController {
  readonly vsl: number;
  readonly wzsl: number;
  readonly wusl: number;
  readonly dmrl: number;
  readonly dmrsl: number;
  readonly dmsl: bigint;
}

export const IDENTIFY_BYTES = 4096;

const view = (bytes: Uint8Array): DataView => {
  if (bytes.byteLength < IDENTIFY_BYTES) throw new RangeError(`identify data has ${IDENTIFY_BYTES} bytes`);
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
};

/** ASCII up to the first NUL, blanks trimmed; what isn't printable becomes a question mark, since it goes to logs and terminals. */
export function asciiField(bytes: Uint8Array, offset: number, length: number): string {
  let text = '';
  for (const byte of bytes.subarray(offset, offset + length)) {
    if (byte === 0) break;
    text += byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '?';
  }
  return text.trim();
}

const hex = (bytes: Uint8Array, offset: number, length: number): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset + offset, length).toString('hex');

const u128 = (data: DataView, offset: number): bigint =>
  data.getBigUint64(offset, true) | (data.getBigUint64(offset + 8, true) << 64n);

export function parseIdentifyController(bytes: Uint8Array): IdentifyController {
  const data = view(bytes);
  const u8 = (at: number): number => data.getUint8(at);
  const u16 = (at: number): number => data.getUint16(at, true);
  const u32 = (at: number): number => data.getUint32(at, true);
  const ver = u32(80);
  const npss = u8(263);
  const oncs = u16(520);
  return {
    vid: u16(0),
    ssvid: u16(2),
    sn: asciiField(bytes, 4, 20),
    mn: asciiField(bytes, 24, 40),
    fr: asciiField(bytes, 64, 8),
    cmic: u8(76),
    mdts: u8(77),
    cntlid: u16(78),
    ver,
    version: `${ver >>> 16}.${(ver >>> 8) & 0xff}.${ver & 0xff}`,
    oaes: u32(92),
    ctratt: u32(96),
    cntrltype: u8(111),
    oacs: u16(256),
    frmw: u8(260),
    lpa: u8(261),
    elpe: u8(262),
    npss,
    wctemp: u16(266),
    cctemp: u16(268),
    tnvmcap: u128(data, 280),
    unvmcap: u128(data, 296),
    kas: u16(320),
    anatt: u8(342),
    anacap: u8(343),
    sqes: u8(512),
    cqes: u8(513),
    maxcmd: u16(514),
    nn: u32(516),
    oncs,
    fna: u8(524),
    vwc: u8(525),
    awun: u16(526),
    awupf: u16(528),
    nwpc: u8(531),
    sgls: u32(536),
    subnqn: asciiField(bytes, 768, 256),
    ioccsz: u32(1792),
    iorcsz: u32(1796),
    icdoff: u16(1800),
    firmware: { slotCount: (u8(260) >> 1) & 7, slotOneReadOnly: (u8(260) & 1) !== 0 },
    has: {
      compare: (oncs & 1) !== 0,
      datasetManagement: (oncs & 4) !== 0,
      writeZeroes: (oncs & 8) !== 0,
      reservations: (oncs & 0x20) !== 0,
      verify: (oncs & 0x80) !== 0,
      volatileWriteCache: (u8(525) & 1) !== 0,
      namespaceWriteProtection: (u8(531) & 1) !== 0,
      multipleControllers: (u8(76) & 2) !== 0,
      asymmetricAccess: (u8(76) & 8) !== 0,
      extendedLbaFormats: (u32(96) & 0x8000) !== 0,
    },
    powerStates: Array.from({ length: Math.min(npss, 31) + 1 }, (_, index) => powerState(data, 2048 + index * 32)),
  };
}

function powerState(data: DataView, at: number): PowerState {
  const flags = data.getUint8(at + 3);
  // In hundredths of a watt, or, with the scale bit, in tenths of a milliwatt.
  const units = data.getUint16(at, true);
  return {
    maxPowerMilliwatts: (flags & 1) !== 0 ? units / 10 : units * 10,
    nonOperational: (flags & 2) !== 0,
    entryLatencyUs: data.getUint32(at + 4, true),
    exitLatencyUs: data.getUint32(at + 8, true),
  };
}

const RESERVATION_TYPES = [
  'persistThroughPowerLoss',
  'writeExclusive',
  'exclusiveAccess',
  'writeExclusiveRegistrants',
  'exclusiveAccessRegistrants',
  'writeExclusiveAllRegistrants',
  'exclusiveAccessAllRegistrants',
] as const;

export function parseIdentifyNamespace(bytes: Uint8Array): IdentifyNamespace {
  const data = view(bytes);
  const u8 = (at: number): number => data.getUint8(at);
  const u16 = (at: number): number => data.getUint16(at, true);
  const nlbaf = u8(25);
  const flbas = u8(26);
  const dps = u8(29);
  const rescap = u8(31);
  // With more than 16 formats the index has two high bits (NVMe 2.0).
  const inUse = (flbas & 0xf) | (nlbaf > 15 ? (flbas >> 1) & 0x30 : 0);
  const lbaFormats = Array.from({ length: Math.min(nlbaf, 63) + 1 }, (_, index) => {
    const word = data.getUint32(128 + index * 4, true);
    return {
      index,
      lbaBytes: 2 ** ((word >>> 16) & 0xff),
      metadataBytes: word & 0xffff,
      performance: LBA_FORMAT_PERFORMANCE[(word >>> 24) & 3]!,
      inUse: index === inUse,
    };
  });
  const format = lbaFormats[inUse];
  if (format === undefined)
    throw new RangeError(`the namespace is said to have format ${inUse} of ${lbaFormats.length}`);
  const nsze = data.getBigUint64(0, true);
  const protection = dps & 7;
  return {
    nsze,
    ncap: data.getBigUint64(8, true),
    nuse: data.getBigUint64(16, true),
    nsfeat: u8(24),
    nlbaf,
    flbas,
    mc: u8(27),
    dpc: u8(28),
    dps,
    nmic: u8(30),
    rescap,
    fpi: u8(32),
    dlfeat: u8(33),
    noiob: u16(46),
    nvmcap: u128(data, 48),
    npwg: u16(64),
    npwa: u16(66),
    npdg: u16(68),
    npda: u16(70),
    nows: u16(72),
    nsattr: u8(99),
    anagrpid: data.getUint32(92, true),
    nguid: hex(bytes, 104, 16),
    eui64: hex(bytes, 120, 8),
    lbaFormats,
    format,
    sizeBytes: Number(nsze) * format.lbaBytes,
    metadata: format.metadataBytes === 0 ? 'none' : (flbas & 0x10) !== 0 ? 'extended' : 'separate',
    protection: { type: (protection > 3 ? 0 : protection) as 0 | 1 | 2 | 3, first: (dps & 8) !== 0 },
    writeProtected: (u8(99) & 1) !== 0,
    shared: (u8(30) & 1) !== 0,
    reservationTypes: RESERVATION_TYPES.filter((_, bit) => (rescap & (1 << bit)) !== 0),
  };
}

export function parseIdentifyNvmController(bytes: Uint8Array): IdentifyNvmController {
  const data = view(bytes);
  return {
    vsl: data.getUint8(0),
    wzsl: data.getUint8(1),
    wusl: data.getUint8(2),
    dmrl: data.getUint8(3),
    dmrsl: data.getUint32(4, true),
    dmsl: data.getBigUint64(8, true),
  };
}

/** Identify namespace of the NVM command set (CNS 5): whether format `index` has protection information of 16 bits, the classic one. */
export function hasShortGuard(bytes: Uint8Array, index: number): boolean {
  return ((view(bytes).getUint32(12 + index * 4, true) >>> 7) & 3) === 0;
}

/** Identify list of active namespaces (CNS 2): ids in ascending order. */
export function parseNamespaceList(bytes: Uint8Array): number[] {
  const data = view(bytes);
  const ids: number[] = [];
  for (let at = 0; at < IDENTIFY_BYTES; at += 4) {
    const id = data.getUint32(at, true);
    if (id === 0) break;
    ids.push(id);
  }
  return ids;
}
