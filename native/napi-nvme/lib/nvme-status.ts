/**
 * The status of an NVMe command in words. Source: NVM Express Base Specification 2.0, figures 95 to 102, NVM Command Set
 * Specification 1.0, figures 17 and 18, NVMe over Fabrics.
 */
export type NvmeStatusType = 'generic' | 'command' | 'media' | 'path' | 'reserved' | 'vendor';

export interface NvmeStatus {
  /** As the completion had it, without the phase bit: code, type, retry delay, more, do not retry. */
  readonly raw: number;
  /** Generic, command specific, media and data integrity, path related, … */
  readonly type: NvmeStatusType;
  /** The status code within its type. */
  readonly code: number;
  readonly words: string;
  /** The controller says that the same command would fail again. */
  readonly doNotRetry: boolean;
  /** The controller's error log has more about it. */
  readonly more: boolean;
  /** Which of the controller's command retry delay times to wait, 0 for none. */
  readonly retryDelay: number;
}

const TYPES: readonly NvmeStatusType[] = [
  'generic',
  'command',
  'media',
  'path',
  'reserved',
  'reserved',
  'reserved',
  'vendor',
];

/** By type and code: (type << 8 | code). */
const WORDS: Readonly<Record<number, string>> = {
  0: 'successful completion',
  1: 'invalid command opcode',
  2: 'invalid field in command',
  3: 'command id conflict',
  4: 'data transfer error',
  5: 'command aborted due to power loss',
  6: 'internal error',
  7: 'command abort requested',
  8: 'command aborted, its submission queue was deleted',
  9: 'command aborted, a fused command failed',
  10: 'command aborted, a fused command is missing',
  11: 'invalid namespace or format',
  12: 'command sequence error',
  13: 'invalid scatter-gather list segment descriptor',
  14: 'invalid number of scatter-gather list descriptors',
  15: 'data length of the scatter-gather list is invalid',
  16: 'metadata length of the scatter-gather list is invalid',
  17: 'scatter-gather list descriptor type is invalid',
  18: 'invalid use of the controller memory buffer',
  19: 'offset of a physical region page is invalid',
  20: 'atomic write unit exceeded',
  21: 'operation denied',
  22: 'offset of the scatter-gather list is invalid',
  24: 'host identifier has an inconsistent format',
  25: 'keep alive timer expired',
  26: 'keep alive timeout is invalid',
  27: 'command aborted, a preempt and abort took the reservation',
  28: 'sanitize failed',
  29: 'sanitize in progress',
  30: 'granularity of the scatter-gather list data block is invalid',
  31: 'command is not supported for a queue in the controller memory buffer',
  32: 'namespace is write protected',
  33: 'command interrupted',
  34: 'transient transport error',
  35: 'command is prohibited by the lockdown',
  36: 'admin command media is not ready',
  128: 'LBA out of range',
  129: 'capacity exceeded',
  130: 'namespace not ready',
  131: 'reservation conflict',
  132: 'format in progress',
  133: 'value size is invalid',
  134: 'key size is invalid',
  135: 'key value pair does not exist',
  136: 'unrecovered error',
  137: 'key exists',
  256: 'completion queue is invalid',
  257: 'invalid queue identifier',
  258: 'invalid queue size',
  259: 'abort command limit exceeded',
  261: 'asynchronous event request limit exceeded',
  262: 'invalid firmware slot',
  263: 'invalid firmware image',
  264: 'invalid interrupt vector',
  265: 'invalid log page',
  266: 'invalid format',
  267: 'firmware activation requires a conventional reset',
  268: 'invalid queue deletion',
  269: 'feature identifier is not saveable',
  270: 'feature is not changeable',
  271: 'feature is not specific to a namespace',
  272: 'firmware activation requires a subsystem reset',
  273: 'firmware activation requires a controller reset',
  274: 'firmware activation would exceed the maximum time',
  275: 'firmware activation prohibited',
  276: 'overlapping range',
  277: 'insufficient capacity for the namespace',
  278: 'namespace identifier unavailable',
  280: 'namespace is attached already',
  281: 'namespace is private',
  282: 'namespace is not attached',
  283: 'thin provisioning is not supported',
  284: 'controller list is invalid',
  285: 'device self-test in progress',
  286: 'boot partition write prohibited',
  287: 'invalid controller identifier',
  288: 'invalid secondary controller state',
  289: 'invalid number of controller resources',
  290: 'invalid resource identifier',
  291: 'sanitize is prohibited while the persistent memory region is enabled',
  292: 'identifier of the asymmetric namespace access group is invalid',
  293: 'asymmetric namespace access attach failed',
  294: 'insufficient capacity',
  295: 'namespace attachment limit exceeded',
  296: 'prohibition of the command is not supported',
  297: 'I/O command set is not supported',
  298: 'I/O command set is not enabled',
  299: 'I/O command set combination rejected',
  300: 'I/O command set is invalid',
  301: 'identifier unavailable',
  384: 'conflicting attributes',
  385: 'invalid protection information',
  386: 'attempted write to a read-only range',
  387: 'command size limit exceeded',
  440: 'zoned boundary error',
  441: 'zone is full',
  442: 'zone is read-only',
  443: 'zone is offline',
  444: 'invalid write to a zone',
  445: 'too many active zones',
  446: 'too many open zones',
  447: 'invalid zone state transition',
  640: 'write fault',
  641: 'unrecovered read error',
  642: 'end-to-end guard check error',
  643: 'end-to-end application tag check error',
  644: 'end-to-end reference tag check error',
  645: 'compare failure',
  646: 'access denied',
  647: 'deallocated or unwritten logical block',
  648: 'end-to-end storage tag check error',
  768: 'internal path error',
  769: 'asymmetric access persistent loss',
  770: 'asymmetric access inaccessible',
  771: 'asymmetric access transition',
  864: 'controller path error',
  880: 'host path error',
  881: 'command aborted by the host',
};

/** What connect says in the place of command specific codes (NVMe over Fabrics). */
const CONNECT_WORDS: Readonly<Record<number, string>> = {
  384: 'connect: incompatible format',
  385: 'connect: controller is busy',
  386: 'connect: invalid parameters',
  387: 'connect: restart discovery',
  388: 'connect: this host is not allowed',
  400: 'discovery log has changed',
  401: 'authentication required',
};

export const STATUS = {
  invalidOpcode: 0x001,
  invalidField: 0x002,
  internalError: 0x006,
  abortRequested: 0x007,
  invalidNamespace: 0x00b,
  namespaceWriteProtected: 0x020,
  commandInterrupted: 0x021,
  transientTransport: 0x022,
  lbaOutOfRange: 0x080,
  capacityExceeded: 0x081,
  namespaceNotReady: 0x082,
  reservationConflict: 0x083,
  readOnlyRange: 0x182,
  guardCheck: 0x282,
  applicationTagCheck: 0x283,
  referenceTagCheck: 0x284,
  compareFailure: 0x285,
  internalPath: 0x300,
  anaPersistentLoss: 0x301,
  anaInaccessible: 0x302,
  anaTransition: 0x303,
  controllerPath: 0x360,
  hostPath: 0x370,
  hostAborted: 0x371,
} as const;

export function decodeStatus(raw: number, of: 'command' | 'connect' = 'command'): NvmeStatus {
  const code = raw & 0xff;
  const typeNumber = (raw >> 8) & 7;
  const type = TYPES[typeNumber]!;
  const key = (typeNumber << 8) | code;
  const known = (of === 'connect' ? CONNECT_WORDS[key] : undefined) ?? WORDS[key];
  return {
    raw,
    type,
    code,
    words: known ?? `${type === 'vendor' ? 'vendor specific' : 'unknown'} status 0x${key.toString(16)}`,
    doNotRetry: (raw & 0x4000) !== 0,
    more: (raw & 0x2000) !== 0,
    retryDelay: (raw >> 11) & 3,
  };
}

/** Type and code together, as in STATUS. */
export const statusKey = (raw: number): number => raw & 0x7ff;

const ERRNO: Readonly<Record<number, string>> = {
  [STATUS.invalidOpcode]: 'EOPNOTSUPP',
  [STATUS.invalidField]: 'EINVAL',
  [STATUS.abortRequested]: 'ETIMEDOUT',
  [STATUS.invalidNamespace]: 'ENODEV',
  [STATUS.namespaceWriteProtected]: 'EROFS',
  [STATUS.capacityExceeded]: 'ENOSPC',
  [STATUS.readOnlyRange]: 'EROFS',
  [STATUS.reservationConflict]: 'EBUSY',
  [STATUS.guardCheck]: 'EILSEQ',
  [STATUS.applicationTagCheck]: 'EILSEQ',
  [STATUS.referenceTagCheck]: 'EILSEQ',
  21: 'EPERM',
  35: 'EPERM',
  646: 'EACCES',
  387: 'EINVAL',
};

/** The errno that says the most about a status to who knows nothing of NVMe; EIO where none does. */
export function errnoOfStatus(raw: number): string {
  return ERRNO[statusKey(raw)] ?? 'EIO';
}

const PASSING: ReadonlySet<number> = new Set([
  STATUS.commandInterrupted,
  STATUS.transientTransport,
  STATUS.namespaceNotReady,
  STATUS.internalPath,
  STATUS.anaInaccessible,
  STATUS.anaTransition,
  STATUS.controllerPath,
  STATUS.hostPath,
  STATUS.hostAborted,
]);

/** Whether the same command may succeed a little later, perhaps over another path: the kernel doesn't repeat what is passed through. */
export function isPassing(raw: number): boolean {
  return (raw & 0x4000) === 0 && PASSING.has(statusKey(raw));
}
