export {
  type AttachOptions,
  type BlockDeviceHandle,
  BlockEngine,
  type EngineOptions,
  type IoBuffer,
  type OpenOptions,
} from './engine.js';
export { BlockIoError } from './errors.js';
