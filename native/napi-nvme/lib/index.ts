export type { AccessWish, BlockAccess, NamespaceInfo } from './block-access.js';
export { type AttachOptions, BlockEngine, type EngineOptions, type OpenOptions } from './engine.js';
export { BlockIoError, NvmeCommandError } from './errors.js';
export {
  type ConnectedController,
  type ConnectOptions,
  connect,
  DISCOVERY_NQN,
  disconnect,
  disconnectSubsystem,
  discover,
  type FabricsAddress,
  FabricsError,
  type FabricsTimeouts,
  hostNqn,
  ioFailsAfterMs,
  timeoutsBelow,
  waitForNamespace,
} from './fabrics.js';
export * from './nvme-commands.js';
export { type CommandResult, NvmeDevice } from './nvme-device.js';
export type {
  IdentifyController,
  IdentifyNamespace,
  IdentifyNvmController,
  LbaFormat,
  PowerState,
} from './nvme-identify.js';
export type { DiscoveryEntry, DiscoveryLog, ErrorLogEntry, FirmwareLog, SmartLog } from './nvme-logs.js';
export { decodeStatus, type NvmeStatus, type NvmeStatusType, STATUS, statusKey } from './nvme-status.js';
export {
  listControllers,
  listSubsystems,
  type NvmeControllerNode,
  type NvmeNamespaceNode,
  type NvmeNamespacePath,
  type NvmeSubsystemNode,
  readController,
} from './nvme-topology.js';
export {
  type ConfigFs,
  type ExportedNamespace,
  type ExportedSubsystem,
  type ExportOptions,
  Nvmet,
  NvmetError,
  nvmetConfigFs,
} from './nvmet.js';
export type { BlockDeviceHandle, IoBuffer } from './opened-device.js';
export { guardOf, PROTECTION_BYTES, type ProtectionTags, protectionInformation } from './protection-information.js';
export {
  type ReservationRegistrant,
  type ReservationReport,
  type ReservationSupport,
  Reservations,
} from './reservations.js';
export { storageKeys } from './storage-identity.js';
