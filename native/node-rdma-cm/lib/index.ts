export { CompletionQueue, type CompletionQueueOptions } from './completion-queue.js';
export {
  ACCEPT_DATA_BYTES_MAX,
  type Address,
  type CmEvent,
  CONNECT_DATA_BYTES_MAX,
  ConnectionId,
  type ConnectionRequest,
  type ConnectOptions,
  type Established,
  EventChannel,
  REJECT_DATA_BYTES_MAX,
} from './connection.js';
export {
  type AsyncEvent,
  type AsyncEventType,
  allocateMemory,
  Device,
  type DeviceLimits,
  type DeviceName,
  type Gid,
  listDevices,
  liveObjects,
  type Port,
  type RdmaSupport,
  rdmaSupport,
} from './device.js';
export { type MissingPart, RdmaError } from './errors.js';
export {
  type Access,
  type LocalSegment,
  MemoryRegion,
  MemoryWindow,
  ProtectionDomain,
  type RegisterOptions,
  type RemoteSegment,
} from './memory.js';
export { QueuePair, type QueuePairOptions, type QueuePairState, type RequestOptions } from './queue-pair.js';
export { SharedReceiveQueue, type SharedReceiveQueueOptions } from './shared-receive-queue.js';
export type { Completion, Completions, Operation, WorkStatus } from './work-completion.js';
