/**
 * Log pages: health, errors, firmware, asymmetric access (NVM Express Base Specification 2.0, section 5.16.1), and the discovery log
 * (NVMe over Fabrics 1.1, section 5). Pure.
 */
import { asciiField } from './nvme-identify.js';
import { decodeStatus, type NvmeStatus } from './nvme-status.js';

export interface SmartLog {
  readonly criticalWarning: {
    readonly spareBelowThreshold: boolean;
    readonly temperature: boolean;
    readonly reliabilityDegraded: boolean;
    readonly readOnly: boolean;
    readonly volatileBackupFailed: boolean;
    readonly persistentMemoryUnreliable: boolean;
  };
  readonly temperatureKelvin: number;
  readonly availableSparePercent: number;
  readonly availableSpareThresholdPercent: number;
  readonly usedPercent: number;
  /** In thousands of 512 bytes, as the controller counts. */
  readonly dataUnitsRead: bigint;
  readonly dataUnitsWritten: bigint;
  readonly hostReadCommands: bigint;
  readonly hostWriteCommands: bigint;
  readonly busyMinutes: bigint;
  readonly powerCycles: bigint;
  readonly powerOnHours: bigint;
  readonly unsafeShutdowns: bigint;
  readonly mediaErrors: bigint;
  readonly errorLogEntries: bigint;
}

export const SMART_LOG_BYTES = 512;
export const ERROR_LOG_ENTRY_BYTES = 64;
export const FIRMWARE_LOG_BYTES = 512;
export const DISCOVERY_ENTRY_BYTES = 1024;
export const DISCOVERY_HEADER_BYTES = 1024;

const viewOf = (bytes: Uint8Array, lengthBytes: number, what: string): DataView => {
  if (bytes.byteLength < lengthBytes) throw new RangeError(`${what} has at least ${lengthBytes} bytes`);
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
};

const u128 = (view: DataView, at: number): bigint =>
  view.getBigUint64(at, true) | (view.getBigUint64(at + 8, true) << 64n);

export function parseSmartLog(bytes: Uint8Array): SmartLog {
  const view = viewOf(bytes, SMART_LOG_BYTES, 'a health log');
  const warning = view.getUint8(0);
  return {
    criticalWarning: {
      spareBelowThreshold: (warning & 1) !== 0,
      temperature: (warning & 2) !== 0,
      reliabilityDegraded: (warning & 4) !== 0,
      readOnly: (warning & 8) !== 0,
      volatileBackupFailed: (warning & 16) !== 0,
      persistentMemoryUnreliable: (warning & 32) !== 0,
    },
    temperatureKelvin: view.getUint16(1, true),
    availableSparePercent: view.getUint8(3),
    availableSpareThresholdPercent: view.getUint8(4),
    usedPercent: view.getUint8(5),
    dataUnitsRead: u128(view, 32),
    dataUnitsWritten: u128(view, 48),
    hostReadCommands: u128(view, 64),
    hostWriteCommands: u128(view, 80),
    busyMinutes: u128(view, 96),
    powerCycles: u128(view, 112),
    powerOnHours: u128(view, 128),
    unsafeShutdowns: u128(view, 144),
    mediaErrors: u128(view, 160),
    errorLogEntries: u128(view, 176),
  };
}

export interface ErrorLogEntry {
  /** Counts up over the controller's life. */
  readonly errorCount: bigint;
  readonly submissionQueueId: number;
  readonly commandId: number;
  readonly status: NvmeStatus;
  readonly lba: bigint;
  readonly nsid: number;
}

/** Newest first; empty places are left out. */
export function parseErrorLog(bytes: Uint8Array): ErrorLogEntry[] {
  const view = viewOf(bytes, 0, 'an error log');
  const entries: ErrorLogEntry[] = [];
  for (let at = 0; at + ERROR_LOG_ENTRY_BYTES <= bytes.byteLength; at += ERROR_LOG_ENTRY_BYTES) {
    const errorCount = view.getBigUint64(at, true);
    if (errorCount === 0n) continue;
    entries.push({
      errorCount,
      submissionQueueId: view.getUint16(at + 8, true),
      commandId: view.getUint16(at + 10, true),
      // Here the phase bit is there.
      status: decodeStatus(view.getUint16(at + 12, true) >> 1),
      lba: view.getBigUint64(at + 16, true),
      nsid: view.getUint32(at + 24, true),
    });
  }
  return entries;
}

export interface FirmwareLog {
  readonly activeSlot: number;
  /** After the next reset; null when nothing is waiting. */
  readonly nextSlot: number | null;
  readonly slots: readonly { readonly slot: number; readonly revision: string }[];
}

export function parseFirmwareLog(bytes: Uint8Array): FirmwareLog {
  const view = viewOf(bytes, FIRMWARE_LOG_BYTES, 'a firmware log');
  const active = view.getUint8(0);
  const slots = Array.from({ length: 7 }, (_, index) => ({
    slot: index + 1,
    revision: asciiField(bytes, 8 + index * 8, 8),
  })).filter(({ revision }) => revision !== '');
  const next = (active >> 4) & 7;
  return { activeSlot: active & 7, nextSlot: next === 0 ? null : next, slots };
}

export interface DiscoveryEntry {
  readonly transport: string;
  readonly addressFamily: string;
  readonly subsystemType: 'referral' | 'nvme' | 'current' | 'unknown';
  readonly portId: number;
  readonly controllerId: number;
  readonly address: string;
  readonly service: string;
  readonly nqn: string;
  readonly secureChannel: 'notSpecified' | 'required' | 'notRequired' | 'unknown';
}

export interface DiscoveryLog {
  /** Changes when the log does. */
  readonly generation: bigint;
  readonly recordCount: number;
  readonly entries: readonly DiscoveryEntry[];
}

const TRANSPORTS: Readonly<Record<number, string>> = { 1: 'rdma', 2: 'fc', 3: 'tcp', 254: 'loop' };
const FAMILIES: Readonly<Record<number, string>> = { 0: 'pci', 1: 'ipv4', 2: 'ipv6', 3: 'ib', 4: 'fc', 254: 'loop' };
const SUBSYSTEM_TYPES: Readonly<Record<number, DiscoveryEntry['subsystemType']>> = {
  1: 'referral',
  2: 'nvme',
  3: 'current',
};
const SECURE_CHANNEL = ['notSpecified', 'required', 'notRequired', 'unknown'] as const;

/** The records that are in `bytes`; there may be more (`recordCount`). */
export function parseDiscoveryLog(bytes: Uint8Array): DiscoveryLog {
  const view = viewOf(bytes, DISCOVERY_HEADER_BYTES, 'a discovery log');
  const recordCount = view.getBigUint64(8, true);
  const there = Math.floor((bytes.byteLength - DISCOVERY_HEADER_BYTES) / DISCOVERY_ENTRY_BYTES);
  const fit = recordCount < BigInt(there) ? Number(recordCount) : there;
  const entries = Array.from({ length: fit }, (_, index): DiscoveryEntry => {
    const at = DISCOVERY_HEADER_BYTES + index * DISCOVERY_ENTRY_BYTES;
    const transport = view.getUint8(at);
    const family = view.getUint8(at + 1);
    return {
      transport: TRANSPORTS[transport] ?? `transport ${transport}`,
      addressFamily: FAMILIES[family] ?? `family ${family}`,
      subsystemType: SUBSYSTEM_TYPES[view.getUint8(at + 2)] ?? 'unknown',
      secureChannel: SECURE_CHANNEL[view.getUint8(at + 3) & 3]!,
      portId: view.getUint16(at + 4, true),
      controllerId: view.getUint16(at + 6, true),
      service: asciiField(bytes, at + 32, 32),
      nqn: asciiField(bytes, at + 256, 256),
      address: asciiField(bytes, at + 512, 256),
    };
  });
  return { generation: view.getBigUint64(0, true), recordCount: Number(recordCount), entries };
}
