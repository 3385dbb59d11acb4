import { existsSync } from 'node:fs';
import { connectThrough } from '../../client/connect.js';
import type { EngineConfig } from '../../client/engine-contract.js';
import { argument, hear, tell } from './child.js';

/**
 * A program that uses the library: writes files, keeps them open and dirty, and then computes without ever yielding, until a
 * file says that it is enough; or just waits to be killed.
 */
export interface LibraryProgramArguments {
  readonly config: EngineConfig;
  readonly directory: string;
  readonly files: number;
  readonly fileBytes: number;
  /** Compute until this file exists; null: wait for whatever comes. */
  readonly computeUntil: string | null;
}

const args = argument<LibraryProgramArguments>();
const engine = new URL('./short-lease-engine.js', import.meta.url);
const fs = await connectThrough({ ...args.config }, {}, engine);
await fs.mkdir(args.directory);
const handles = [];
for (let i = 0; i < args.files; i++) {
  const handle = await fs.open(`${args.directory}/${i}`, 'w+');
  await handle.write(Buffer.alloc(args.fileBytes, i + 1), 0, args.fileBytes, 0);
  handles.push(handle);
}
const counters = (await fs.stats()).engine;
await tell({ kind: 'written', dirtyPages: counters['cache.dirtyPages'] ?? 0 });

if (args.computeUntil === null) {
  await hear('end');
} else {
  const begun = performance.now();
  let turns = 0;
  let timerFired = false;
  setTimeout(() => {
    timerFired = true;
  }, 0);
  let sum = 0;
  while (!existsSync(args.computeUntil)) {
    for (let i = 0; i < 2_000_000; i++) sum = (sum + Math.imul(i, 2654435761)) | 0;
    turns++;
  }
  await tell({ kind: 'computed', computedMs: performance.now() - begun, turns, timerFired, sum });
}
for (const handle of handles) await handle.close();
await fs.close();
await tell({ kind: 'closed' });
process.disconnect();
