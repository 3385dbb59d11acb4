import { describe, expect, it } from 'vitest';
import { epoch, incarnation, nodeId, nsdIndex } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { TransportAddress } from '../fabric/link.js';
import { realClock, testNode } from '../fabric/test-support.js';
import { SegmentArena } from '../native/buffer-arena.js';
import { createPagePool } from '../native/core.js';
import { checksumsJs } from './checksum-js.js';
import { NsdClient } from './nsd-client.js';
import { NsdServer } from './nsd-server.js';
import { NsdStore } from './nsd-store.js';
import { deviceBytesFor, mustAllocate, RamDevice } from './testing.js';

const UUID = '11111111-2222-4333-8444-555555555555';
const NSD = nsdIndex(3);

describe('an NSD over TCP', () => {
  it('carries small and large requests, errors and the fence between two nodes', async () => {
    const addresses = new Map<number, TransportAddress>();
    const [serverPool, clientPool] = [createPagePool(16 << 20), createPagePool(16 << 20)];
    const one = testNode({ node: 1, addresses, pool: serverPool });
    const two = testNode({ node: 2, addresses, pool: clientPool });
    try {
      addresses.set(1, await one.fabric.listen({ host: '127.0.0.1', port: 0 }));
      addresses.set(2, await two.fabric.listen({ host: '127.0.0.1', port: 0 }));

      const arena = new SegmentArena({ offsetBytes: 0, lengthBytes: serverPool.lengthBytes });
      const device = new RamDevice(deviceBytesFor(1500), serverPool);
      const parts = { device, pool: serverPool, checksums: checksumsJs, staging: mustAllocate(arena, 16) };
      await NsdStore.format(parts, { uuid: UUID, clusterId: 'test-cluster', failureGroup: 1, name: 'n' });
      const freeBytes = arena.freeBytes;
      const server = new NsdServer({ fabric: one.fabric, pool: serverPool, arena, checksums: checksumsJs });
      server.export(await NsdStore.open(parts), epoch(0));
      const client = new NsdClient({
        fabric: two.fabric,
        pool: clientPool,
        checksums: checksumsJs,
        clock: realClock,
        locate: (nsd) => (nsd === NSD ? { uuid: UUID, servers: [nodeId(1)] } : null),
      });

      for (const count of [1, 4, 5, 1400]) {
        const memory = { offsetBytes: 0, lengthBytes: count * SECTOR_BYTES };
        const bytes = clientPool.bytes.subarray(0, memory.lengthBytes);
        for (let i = 0; i < bytes.length; i += 64) bytes[i] = i >> 6;
        const written = bytes.slice();
        await client.write([{ nsd: NSD, sector: 50, memory }]);
        bytes.fill(0xee);
        await client.read([{ nsd: NSD, sector: 50, memory }]);
        expect(Buffer.from(bytes).equals(Buffer.from(written))).toBe(true);
      }
      await client.flush([NSD]);
      const beyond = { nsd: NSD, sector: 1499, memory: { offsetBytes: 0, lengthBytes: 2 * SECTOR_BYTES } };
      await expect(client.read([beyond])).rejects.toMatchObject({ reason: 'outOfRange', code: 'EINVAL' });
      await server.fence(nodeId(2), incarnation(1), one.fabric.epoch);
      await expect(client.read([{ ...beyond, sector: 50 }])).rejects.toMatchObject({
        reason: 'fenced',
        code: 'ESTALE',
      });
      expect(arena.freeBytes).toBe(freeBytes);
    } finally {
      await Promise.all([one.fabric.close(), two.fabric.close()]);
      serverPool.close();
      clientPool.close();
    }
  });
});
