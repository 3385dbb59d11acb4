import { randomBytes, randomUUID } from 'node:crypto';
import { copyFile, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { FsError } from '../common/errors.js';
import { nodeId } from '../common/ids.js';
import { type TestNode, testNode } from '../fabric/test-support.js';
import { ROOT } from '../fs/file-system-api.js';
import { FaultDevice } from '../nsd/fault-device.js';
import { MessageType } from '../protocol/message-types.js';
import { counting, eventually } from './testing/counting.js';
import { type LocalCluster, type LocalClusterOptions, startLocalCluster } from './testing/local-cluster.js';

/** Whatever comes in wrong is refused with a clear error, is counted, and loses nothing. */
let cluster: LocalCluster | null = null;
const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
  await cluster?.close();
  cluster = null;
});
async function start(options: LocalClusterOptions = {}): Promise<LocalCluster> {
  cluster = await startLocalCluster({ nsdBytes: 128 << 20, pagePoolBytes: 32 << 20, ...options });
  return cluster;
}

/** The error of a call, and the engine's own behind it. */
async function failure(work: () => Promise<unknown>): Promise<{ code: string | undefined; reason: FsError }> {
  try {
    await work();
  } catch (error) {
    const { code, cause } = error as NodeJS.ErrnoException;
    if (FsError.is(cause)) return { code, reason: cause };
    if (FsError.is(error)) return { code, reason: error };
    throw error;
  }
  throw new Error('it succeeded');
}
/** Nothing that was refused has hurt anybody. */
async function works(client: FileSystemClient, name: string): Promise<void> {
  await client.writeFile(name, 'works');
  expect(await client.readFile(name, 'utf8')).toBe('works');
}

describe('a node that does not belong', () => {
  test('with another cluster key is not let in, neither by the store nor at the door', async () => {
    const it = await start();
    const keyFile = path.join(it.directory, 'other.key');
    await writeFile(keyFile, randomBytes(32), { mode: 0o600 });
    const refused = await failure(() => it.start(3, { keyFile, nsds: [], tokenServer: false }));
    expect(refused.reason.reason).toBe('wrongKey');
    const short = path.join(it.directory, 'short.key');
    await writeFile(short, 'short', { mode: 0o600 });
    expect((await failure(() => it.start(3, { keyFile: short, nsds: [] }))).reason.reason).toBe('badConfiguration');

    const stranger = knock(it, { clusterKey: randomBytes(32) });
    expect((await failure(() => call(stranger))).reason.reason).toBe('wrongKey');
    expect(stranger.counters.get('fabric.refusedHandshake.wrongKey')).toBeGreaterThan(0);
    await works(it.client(1), '/after');
  });

  test('with another version of the protocol, or of another cluster, is refused at the door', async () => {
    const it = await start();
    const clusterKey = await readFile(it.keyFile);
    const count = counting(it.engines);
    const old = await failure(() => call(knock(it, { clusterKey, handshakeVersion: 99 })));
    expect(old.reason.reason).toBe('wrongVersion');
    const other = await failure(() => call(knock(it, { clusterKey, clusterId: randomUUID() })));
    expect(other.reason.reason).toBe('wrongCluster');
    const since = count();
    expect(since.of(0, 'fabric.refusedHandshake.wrongVersion')).toBeGreaterThan(0);
    expect(since.of(0, 'fabric.refusedHandshake.wrongCluster')).toBeGreaterThan(0);
    await works(it.client(1), '/after');
  });

  /** A stranger that knows where node 1 is. */
  function knock(it: LocalCluster, options: Partial<Parameters<typeof testNode>[0]>): TestNode {
    const { membership } = it.engines[0]!;
    const address = membership.view.nodes.get(nodeId(1))!.address!;
    const made = testNode({
      node: 900,
      addresses: new Map([[1, address]]),
      clusterId: membership.view.clusterId,
      ...options,
    });
    cleanups.push(() => made.fabric.close());
    return made;
  }
  const call = (stranger: TestNode): Promise<unknown> =>
    stranger.fabric.peer(nodeId(1)).request(MessageType.tokenList, new Uint8Array(12), { timeoutMs: 60_000 });
});

describe('an NSD', () => {
  test('of another cluster, of another name, or no NSD at all is refused and left as it is', async () => {
    const first = await start({ nodes: 1 });
    const foreign = path.join(first.directory, '..', `${path.basename(first.directory)}-foreign`);
    await first.stopNodes();
    await copyFile(first.nsdPath(0), foreign);
    cleanups.push(() => rm(foreign, { force: true }));
    await first.close();

    const it = await start({ nodes: 1 });
    const nsd = (name: string, file: string, sizeBytes: number | null = null) => ({
      nsds: [{ name, path: file, sizeBytes, failureGroup: 2 }],
    });
    const other = await failure(() => it.start(1, nsd('nsd1', foreign)));
    expect(other.reason.reason).toBe('wrongNsd');
    expect(other.reason.message).toMatch(/another cluster/);
    // What a server has open is nobody else's, whatever it is called.
    const busy = await failure(() => it.start(1, nsd('nsd2', it.nsdPath(0))));
    expect(busy.reason.reason).toBe('busy');
    const renamed = path.join(it.directory, 'renamed');
    await copyFile(it.nsdPath(0), renamed);
    const named = await failure(() => it.start(1, nsd('nsd2', renamed)));
    expect(named.reason.reason).toBe('wrongNsd');
    expect(named.reason.message).toMatch(/'nsd1' of this cluster, not 'nsd2'/);
    const precious = path.join(it.directory, 'precious');
    const content = Buffer.alloc(8 << 20, 'not yours to format ');
    await writeFile(precious, content);
    expect((await failure(() => it.start(1, nsd('nsd2', precious)))).code).toBe('EIO');
    expect((await readFile(precious)).equals(content)).toBe(true);
    const missing = await failure(() => it.start(1, nsd('nsd2', path.join(it.directory, 'nowhere', 'nsd2'))));
    expect(missing.reason.reason).toBe('badConfiguration');
    const noDevice = await failure(() => it.start(1, nsd('nsd2', '/dev/null')));
    expect(noDevice.reason.reason).toBe('badConfiguration');
    expect(noDevice.reason.message).toContain('/dev/null');
    // The same device twice would be two NSDs on the same blocks.
    const twice = await failure(() =>
      it.start(1, {
        nsds: [
          { name: 'nsd2', path: path.join(it.directory, 'twice'), sizeBytes: 64 << 20, failureGroup: 2 },
          { name: 'nsd3', path: path.join(it.directory, 'twice'), sizeBytes: 64 << 20, failureGroup: 2 },
        ],
      }),
    );
    expect(twice.reason.reason).toBe('busy');
    // Whoever was refused has ended: the nodes that run know how often, and what still stands.
    await it.start(1, { nsds: [] });
    const counted = await it.engines[0]!.refusedNsds();
    expect(counted.map(({ nodeId: by, nsd: name, count }) => [by, name, count])).toEqual([
      [2, 'nsd1', 1],
      [2, 'nsd2', 5],
      [2, 'nsd3', 1],
    ]);
    expect(it.engines[0]!.counters()).toMatchObject({
      'nsd.refusedAtStart': 7,
      'nsd.refusedAtStart.wrongNsd': expect.any(Number),
    });
    expect(counted.every(({ standing }) => standing)).toBe(true);
    await works(it.client(0), '/after');
  });

  test('whose header names another file system than the cluster does is refused', async () => {
    const it = await start({ nodes: 2 });
    await works(it.client(1), '/before');
    const { uuid } = it.engines[1]!.stores[0]!;
    await it.engines[1]!.close();
    const { membership } = it.engines[0]!;
    const real = membership.view.nsds.get(uuid)!.fsUuid;
    await membership.updateNsd(uuid, (record) => ({ ...record!, fsUuid: randomUUID() }));
    const refused = await failure(() => it.start(1));
    expect(refused.reason.reason).toBe('wrongNsd');
    expect(refused.reason.message).toContain(real);
    await membership.updateNsd(uuid, (record) => ({ ...record!, fsUuid: real }));
    const standing = async () => (await it.engines[0]!.refusedNsds()).filter((nsd) => nsd.standing);
    expect(await standing()).toMatchObject([{ nodeId: 2, nsd: 'nsd2', reason: 'wrongNsd' }]);
    await it.start(1);
    expect(await it.client(1).readFile('/before', 'utf8')).toBe('works');
    expect(await standing()).toEqual([]);
    expect(it.engines[0]!.counters()['nsd.refusedAtStart.wrongNsd']).toBe(1);
  });

  test('that is not there makes EIO naming it, and only of what lies on it; when it is back everything is', async () => {
    const it = await start();
    const client = it.client(0);
    const blockBytes = 1 << 20;
    // Blocks go round over the NSDs, as soon as the region's first blocks are taken.
    const blocks = 12;
    const content = Buffer.concat(Array.from({ length: blocks }, (_, i) => Buffer.alloc(blockBytes, i + 1)));
    await client.writeFile('/spread', content);
    await client.syncAll();
    const { uuid } = it.engines[2]!.stores[0]!;
    const places = await client.locate('/spread');
    const away = new Set(
      places.flatMap((at) => (at.kind === 'data' && at.nsdUuid === uuid ? [at.offset / blockBytes] : [])),
    );
    await it.stopNodes();
    for (const index of [0, 1, 2]) await it.start(index);
    const again = it.client(0);
    const file = await again.open('/spread', 'r');
    await file.stat();
    await it.engines[2]!.close();
    const failed = new Set<number>();
    const piece = Buffer.alloc(blockBytes);
    for (let i = 0; i < blocks; i++) {
      try {
        await file.read(piece, 0, blockBytes, i * blockBytes);
        expect(piece.equals(content.subarray(i * blockBytes, (i + 1) * blockBytes))).toBe(true);
      } catch (error) {
        expect(error).toMatchObject({ code: 'EIO', reason: 'nsdUnavailable' });
        expect((error as Error).message).toContain(`nsd ${uuid}`);
        failed.add(i);
      }
    }
    expect(failed).toEqual(away);
    expect(away.size).toBeGreaterThan(0);
    expect(away.size).toBeLessThan(blocks);
    expect(it.engines[0]!.counters()['nsd.failed.nsdUnavailable']).toBeGreaterThan(0);
    await it.start(2);
    expect((await again.readFile('/spread')).equals(content)).toBe(true);
    await file.close();
  });
});

describe('a device', () => {
  /** Every node's device, as last started. */
  const faults: FaultDevice[] = [];
  const withFaults: LocalClusterOptions = {
    configure: (index) => ({
      wrapDevice: (device, _nsd, pool, scratch) => {
        faults[index] = new FaultDevice(device, pool, scratch);
        return faults[index];
      },
    }),
    settings: { cache: { writeBehindAgeMs: 3_600_000, writeRetryMs: 50 }, nsdTimeoutMs: 5000 },
  };
  /** A file of 3 MiB, synced, that no node has in its cache. */
  async function coldFile(it: LocalCluster): Promise<Buffer> {
    const content = randomBytes(3 << 20);
    await it.client(0).writeFile('/cold', content);
    await it.client(0).syncAll();
    await it.stopNodes();
    for (const index of it.engines.keys()) await it.start(index);
    await it.client(0).stat('/cold');
    return content;
  }

  test.each([
    ['EIO', 'eio', 'deviceError'],
    ['short reads', 'short', 'shortIo'],
  ] as const)(
    'that answers reads with %s: EIO naming NSD and place; the rest works; then it is over',
    async (_, kind, reason) => {
      const it = await start(withFaults);
      const content = await coldFile(it);
      const count = counting(it.engines);
      const rules = faults.map((device) => device.inject({ operation: 'read', kind }));
      const { code, reason: why } = await failure(() => it.client(0).readFile('/cold'));
      expect(code).toBe('EIO');
      expect(why.reason).toBe(reason);
      expect(why.message).toMatch(/at byte \d+.* 'nsd [0-9a-f-]{36}'/);
      expect(rules.some((rule) => rule.struck > 0)).toBe(true);
      const since = count();
      expect(since.of(0, `nsd.failed.${reason}`)).toBeGreaterThan(0);
      for (const rule of rules) rule.release();
      expect((await it.client(0).readFile('/cold')).equals(content)).toBe(true);
      await works(it.client(1), '/after');
    },
  );

  test.each([
    ['EIO', 'eio', 'EIO'],
    ['ENOSPC', 'enospc', 'ENOSPC'],
  ] as const)(
    'that refuses writes with %s: fsync says so; what was written is kept and reaches it later',
    async (_, kind, code) => {
      const it = await start(withFaults);
      const client = it.client(0);
      const file = await client.open('/written', 'w+');
      await file.sync();
      const content = randomBytes(1 << 20);
      const count = counting(it.engines);
      const rules = faults.map((device) => device.inject({ operation: 'write', kind }));
      await file.write(content, 0, content.length, 0);
      expect((await failure(() => file.sync())).code).toBe(code);
      expect(count().sum(`nsd.failed.${kind === 'eio' ? 'deviceError' : 'noSpace'}`)).toBeGreaterThan(0);
      for (const rule of rules) rule.release();
      expect((await client.readFile('/written')).equals(content)).toBe(true);
      await file.sync();
      await file.close();
      expect((await it.client(1).readFile('/written')).equals(content)).toBe(true);
      await it.stopNodes();
      for (const index of [0, 1, 2]) await it.start(index);
      expect((await it.client(2).readFile('/written')).equals(content)).toBe(true);
    },
  );

  test('whose bits flipped while it was off: EIO naming NSD and sector, for the file concerned only; writing it heals', async () => {
    const it = await start();
    const client = it.client(0);
    const marker = randomBytes(4096);
    const content = Buffer.concat([randomBytes(8192), marker, randomBytes(8192)]);
    await client.writeFile('/flipped', content);
    await client.writeFile('/intact', content.subarray(0, 8192));
    await client.syncAll();
    await it.stopNodes();
    let flipped = 0;
    for (let index = 0; index < 3; index++) flipped += await flip(it.nsdPath(index), marker);
    expect(flipped).toBe(1);
    for (const index of [0, 1, 2]) await it.start(index);
    const again = it.client(1);
    const count = counting(it.engines);
    await expect(again.readFile('/flipped')).rejects.toMatchObject({
      code: 'EIO',
      reason: 'checksumMismatch',
      message: expect.stringMatching(/nsd [0-9a-f-]{36} sector \d+/),
    });
    expect(count().sum('nsd.checksumMismatches')).toBeGreaterThan(0);
    expect((await again.readFile('/intact')).equals(content.subarray(0, 8192))).toBe(true);
    await again.writeFile('/flipped', content);
    expect((await it.client(2).readFile('/flipped')).equals(content)).toBe(true);
  });

  /** One bit of the sector that holds these bytes. @returns how many such sectors there were. */
  async function flip(file: string, bytes: Buffer): Promise<number> {
    const handle = await open(file, 'r+');
    try {
      const { size } = await stat(file);
      const piece = Buffer.alloc(8 << 20);
      let found = 0;
      for (let at = 0; at < size; at += piece.length) {
        const { bytesRead } = await handle.read(piece, 0, piece.length, at);
        for (let sector = 0; sector < bytesRead; sector += 4096) {
          if (!piece.subarray(sector, sector + 4096).equals(bytes)) continue;
          found++;
          await handle.write(Buffer.from([bytes[100]! ^ 0x10]), 0, 1, at + sector + 100);
        }
      }
      return found;
    } finally {
      await handle.close();
    }
  }
});

describe('a program', () => {
  test('with paths, offsets, handles and buffers that cannot be is told so, counted, and hurts nothing', async () => {
    const it = await start({ nodes: 2 });
    const client = it.client(0);
    const { fileSystem } = it.engines[0]!;
    const refusedBefore = (await client.stats()).client;
    await client.writeFile('/file', 'content');
    const code = async (work: () => Promise<unknown>): Promise<string | undefined> => {
      try {
        await work();
      } catch (error) {
        return (error as NodeJS.ErrnoException).code;
      }
      return 'it succeeded';
    };
    expect(await code(() => client.readFile('/fi\0le'))).toBe('ERR_INVALID_ARG_VALUE');
    expect(await code(() => client.readFile(`/${'x/'.repeat(2048)}`))).toBe('ENAMETOOLONG');
    expect(await code(() => client.writeFile(`/${'n'.repeat(256)}`, ''))).toBe('ENAMETOOLONG');
    const file = await client.open('/file', 'r+');
    const buffer = Buffer.alloc(16);
    expect(await code(async () => file.readSync(buffer, 0, 16, -2))).toBe('ERR_OUT_OF_RANGE');
    expect(await code(() => file.read(buffer, -1, 16, 0))).toBe('ERR_OUT_OF_RANGE');
    expect(await code(() => file.read(buffer, 17, 1, 0))).toBe('ERR_OUT_OF_RANGE');
    expect(await code(() => file.read(buffer, 0, 17, 0))).toBe('ERR_OUT_OF_RANGE');
    expect(await code(() => file.truncate(1.5))).toBe('ERR_OUT_OF_RANGE');
    // A buffer that goes away while it is read into: an error, and nobody else's bytes.
    const leaving = new Uint8Array(new ArrayBuffer(1 << 20));
    const large = await client.open('/large', 'w+');
    await it.client(1).writeFile('/large', Buffer.alloc(1 << 20, 5));
    const reading = large.read(leaving, 0, leaving.length, 0);
    structuredClone(leaving.buffer, { transfer: [leaving.buffer] });
    expect(await code(() => reading)).toBe('ERR_INVALID_STATE');
    // Bytes are taken at the call: what happens to the buffer afterwards changes nothing.
    const source = Buffer.alloc(1 << 20, 6);
    const writing = large.write(source, 0, source.length, 1 << 20);
    source.fill(7);
    await writing;
    expect(
      (await it.client(1).readFile('/large')).equals(
        Buffer.concat([Buffer.alloc(1 << 20, 5), Buffer.alloc(1 << 20, 6)]),
      ),
    ).toBe(true);
    await large.close();
    await file.close();
    expect(await code(() => file.read(buffer, 0, 16, 0))).toBe('EBADF');
    expect(await code(() => file.write('x'))).toBe('EBADF');
    const refused = (await client.stats()).client;
    const grown = (name: string): number => (refused[name] ?? 0) - (refusedBefore[name] ?? 0);
    expect(grown('client.refused.ERR_INVALID_ARG_VALUE')).toBe(1);
    expect(grown('client.refused.ERR_OUT_OF_RANGE')).toBe(5);
    expect(grown('client.refused.ENAMETOOLONG')).toBe(1);
    expect(grown('client.refused.ERR_INVALID_STATE')).toBe(1);
    expect(grown('client.refused.EBADF')).toBe(2);

    // And the engine itself believes nobody.
    const raw = await fileSystem.open('/file', 2, 0, ROOT);
    expect(await code(() => fileSystem.open('/fi\0le', 0, 0, ROOT))).toBe('EINVAL');
    expect(await code(() => fileSystem.stat(`/${'x/'.repeat(2048)}`, ROOT))).toBe('ENAMETOOLONG');
    for (const offset of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(await code(() => raw.read(offset, buffer))).toBe('EINVAL');
      expect(await code(() => raw.write(offset, buffer))).toBe(offset > 1 ? 'EFBIG' : 'EINVAL');
    }
    expect(await code(() => raw.truncate(-1))).toBe('EINVAL');
    expect(await code(() => raw.write(2 ** 53, buffer))).toBe('EFBIG');
    await raw.close();
    expect(await code(() => raw.read(0, buffer))).toBe('EBADF');
    // Unaligned is no error at all.
    const unaligned = await client.open('/unaligned', 'w+');
    await unaligned.write(Buffer.from('abc'), 0, 3, 4095);
    await unaligned.write(Buffer.from('xyz'), 0, 3, 16_383);
    const whole = await it.client(1).readFile('/unaligned');
    expect(whole.length).toBe(16_386);
    expect([whole.toString('latin1', 4095, 4098), whole.toString('latin1', 16_383)]).toEqual(['abc', 'xyz']);
    await unaligned.close();
    expect(await client.readFile('/file', 'utf8')).toBe('content');
  });
});

test('a full file system says ENOSPC at the write; everything acknowledged is there; removing makes room', async () => {
  const it = await start({ nodes: 2, nsdBytes: 64 << 20 });
  const client = it.client(0);
  await client.mkdir('/full');
  const count = counting(it.engines);
  const pieceBytes = 1 << 20;
  const acknowledged: number[] = [];
  let error: NodeJS.ErrnoException | null = null;
  for (let i = 0; error === null && i < 1000; i++) {
    const written = acknowledged.push(0) - 1;
    try {
      const file = await client.open(`/full/${i}`, 'w');
      try {
        for (let piece = 0; piece < 4; piece++) {
          await file.write(Buffer.alloc(pieceBytes, i + piece + 1), 0, pieceBytes, piece * pieceBytes);
          acknowledged[written]!++;
        }
      } finally {
        await file.close();
      }
    } catch (thrown) {
      error = thrown as NodeJS.ErrnoException;
    }
  }
  expect(error?.code).toBe('ENOSPC');
  expect(count().of(0, 'fs.noSpace')).toBeGreaterThan(0);
  expect(acknowledged.length).toBeGreaterThan(10);
  await client.syncAll();
  const other = it.client(1);
  const check = async (): Promise<void> => {
    for (const [i, pieces] of acknowledged.entries()) {
      if (pieces === 0) continue;
      const content = await other.readFile(`/full/${i}`);
      expect(content.length).toBeGreaterThanOrEqual(pieces * pieceBytes);
      for (let piece = 0; piece < pieces; piece++)
        expect(
          content
            .subarray(piece * pieceBytes, (piece + 1) * pieceBytes)
            .equals(Buffer.alloc(pieceBytes, i + piece + 1)),
        ).toBe(true);
    }
  };
  await check();
  // What is there may still be changed; what is removed makes room, on any node.
  const first = await other.open('/full/0', 'r+');
  await first.write(Buffer.alloc(pieceBytes, 1), 0, pieceBytes, 0);
  await first.close();
  await other.rm('/full/1');
  await other.rm('/full/2');
  acknowledged[1] = 0;
  acknowledged[2] = 0;
  // Room made on one node comes to the others when its inodes have been written out.
  await eventually('what was removed on one node is room on the other', async () => {
    try {
      await client.writeFile('/room', Buffer.alloc(4 << 20, 9));
      return true;
    } catch (thrown) {
      expect((thrown as NodeJS.ErrnoException).code).toBe('ENOSPC');
      return false;
    }
  });
  expect((await other.readFile('/room')).equals(Buffer.alloc(4 << 20, 9))).toBe(true);
  await check();
});
