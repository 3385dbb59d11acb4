import { connectThrough } from '../../client/connect.js';
import type { EngineConfig } from '../../client/engine-contract.js';
import { argument, hear, tell } from './child.js';

/** A program that reads and writes synchronously: hits first, then what another node has changed meanwhile. */
export interface SyncProgramArguments {
  readonly config: EngineConfig;
  readonly path: string;
  readonly hits: number;
  readonly pages: number;
}
export interface SyncProgramHits {
  readonly kind: 'hits';
  readonly readHits: number;
  readonly writeHits: number;
  readonly tokenMessages: number;
  readonly fabricMessages: number;
}

const PAGE = 4096;
const args = argument<SyncProgramArguments>();
// Writing out by age would be messages of another cause.
const fs = await connectThrough({ ...args.config }, {}, new URL('./unhurried-engine.js', import.meta.url));
const file = await fs.open(args.path, 'w+');
const source = Buffer.alloc(PAGE, 255);
const target = Buffer.alloc(PAGE);
for (let i = 0; i < args.pages; i++) await file.write(source, 0, PAGE, i * PAGE);
file.readSync(target, 0, PAGE, 0);
file.writeSync(source, 0, PAGE, 0);

const before = (await fs.stats()).engine;
for (let i = 0; i < args.hits; i++) {
  const at = (i % args.pages) * PAGE;
  source.fill(i & 0x7f);
  if (file.writeSync(source, 0, PAGE, at) !== PAGE) throw new Error('a short write');
  if (file.readSync(target, 0, PAGE, at) !== PAGE || !target.equals(source)) throw new Error(`page ${i} is wrong`);
}
const after = (await fs.stats()).engine;
const grown = (name: string): number => (after[name] ?? 0) - (before[name] ?? 0);
const hits: SyncProgramHits = {
  kind: 'hits',
  readHits: grown('map.readHits'),
  writeHits: grown('map.writeHits'),
  tokenMessages: grown('tokens.messagesOut'),
  fabricMessages: grown('fabric.messagesOut'),
};
await tell({ ...hits });

await hear('changed');
const bytesRead = file.readSync(target, 0, PAGE, PAGE);
await tell({ kind: 'missed', bytesRead, first: target[0], last: target[PAGE - 1] });
file.writeSync('written synchronously', PAGE);
await file.close();
await fs.close();
await tell({ kind: 'closed' });
process.disconnect();
