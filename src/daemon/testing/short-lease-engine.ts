import type { Engine, EngineConfig } from '../../client/engine-contract.js';
import { startUnhurried } from './unhurried-engine.js';

/** The same with a short lease, for programs that are killed. */
export const SHORT_LEASE_MS = 1500;

export function startEngine(config: EngineConfig): Promise<Engine> {
  return startUnhurried(config, SHORT_LEASE_MS);
}
