import { BlockEngine } from 'napi-nvme';
import { below, chance, SeededRandom } from '../../common/random.js';
import { SECTOR_BYTES } from '../../common/units.js';
import { crc32c, crc32cSectors, createPagePool } from '../../native/core.js';
import { PoolEngine } from '../../nsd/block-engine-device.js';
import { HoldBackDevice } from '../../nsd/hold-back-device.js';
import { NsdStore } from '../../nsd/nsd-store.js';
import { argument, tell } from './child.js';
import type { NsdRound, NsdWriterArguments } from './nsd-writer-protocol.js';

/**
 * A process that writes to an NSD over the fault port until it is killed: rounds of writes beside each other, then a flush. Each round is told
 * before its first write, and that it was flushed after its flush.
 */
const { file, seed, sectors, firstValue, skipIntentFlush } = argument<NsdWriterArguments>();
const LANES = 6;
const SECTORS_MAX = 4;
const random = new SeededRandom(seed);
const pool = createPagePool(4 << 20);
const engine = new PoolEngine(new BlockEngine({ queueDepth: 32 }), pool);
const at = (sector: number, count: number) => ({
  offsetBytes: sector * SECTOR_BYTES,
  lengthBytes: count * SECTOR_BYTES,
});
const held = new HoldBackDevice(await engine.open(file), pool, at(64, 16), { random: random.fork(), earlyChance: 0.3 });
const checksums = { sectors: crc32cSectors, bytes: (bytes: Uint8Array) => crc32c(bytes) };
const store = await NsdStore.open({ device: held, pool, checksums, staging: at(0, 64) });

let asked = 0;
if (skipIntentFlush) {
  const flush = held.flush.bind(held);
  held.flush = () => (asked > 0 ? flush() : Promise.resolve());
}
let value = firstValue;
for (;;) {
  const lanes = Array.from({ length: LANES }, () => {
    const sector = below(random, sectors - SECTORS_MAX);
    return { sector, count: 1 + below(random, SECTORS_MAX), value: value++ };
  });
  // Two lanes of a round never meet in a sector: which of them is last would be nobody's to know.
  const writes = lanes.filter((one, i) =>
    lanes
      .slice(0, i)
      .every((other) => other.sector + other.count <= one.sector || one.sector + one.count <= other.sector),
  );
  await tell({ kind: 'round', writes } satisfies NsdRound);
  await Promise.all(
    writes.map(async (write, lane) => {
      const memory = at(128 + lane * SECTORS_MAX, write.count);
      new Uint32Array(pool.buffer, memory.offsetBytes, memory.lengthBytes / 4).fill(write.value);
      const crcs = new Uint32Array(write.count);
      checksums.sectors(pool.bytes, memory.offsetBytes, write.count, crcs, 0);
      await store.write(write.sector, memory, { crcs });
    }),
  );
  // Some rounds are flushed with the next one.
  if (chance(random, 0.4)) continue;
  asked++;
  await store.flush();
  asked--;
  await tell({ kind: 'flushed' });
}
