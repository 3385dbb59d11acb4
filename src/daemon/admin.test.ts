import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { silentLogger } from '../common/logger.js';
import type { AdminApi, AdminMethod, AdminParams, AdminResults } from './admin-api.js';
import { AdminClient, isUnreachable } from './admin-client.js';
import { type AdminServer, serveAdmin } from './admin-server.js';
import { ADMIN_REQUEST_BYTES_MAX, AdminFrames, encodeAdminFrame } from './admin-wire.js';
import { metricName } from './main-metrics.js';

const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-admin-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

class Answers implements AdminApi {
  readonly asked: [AdminMethod, unknown][] = [];
  hold: Promise<void> = Promise.resolve();
  async call<M extends AdminMethod>(method: M, params: AdminParams<M>): Promise<AdminResults[M]> {
    this.asked.push([method, params]);
    await this.hold;
    if (method === 'createFileSystem')
      throw new FsError('exists', { op: 'fs.create', object: 'data', detail: 'it is there' });
    if (method === 'counters') return { 'nsd.requests': 7 } as unknown as AdminResults[M];
    return [] as unknown as AdminResults[M];
  }
}

describe('the admin socket', () => {
  const socket = path.join(directory, 'a.sock.admin');
  let api: Answers;
  let counters: Counters;
  let server: AdminServer;
  beforeEach(async () => {
    api = new Answers();
    counters = new Counters();
    server = await serveAdmin(socket, api, { logger: silentLogger, counters });
  });
  afterEach(() => server.close());

  /** Sends bytes; resolves with how many came back before the connection ended. */
  const sendRaw = (bytes: Uint8Array): Promise<number> =>
    new Promise((resolve) => {
      let received = 0;
      const raw = connect(socket, () => raw.write(bytes));
      raw.on('data', (piece: Buffer) => {
        received += piece.length;
      });
      raw.on('error', () => undefined);
      raw.once('close', () => resolve(received));
    });

  test('can be opened by its owner only', () => {
    expect(statSync(socket).mode & 0o777).toBe(0o600);
  });

  test('takes so many connections and no more, and others when some have gone', async () => {
    const small = path.join(directory, 'small');
    const few = await serveAdmin(small, api, { logger: silentLogger, counters, connectionsMax: 2 });
    const clients = [await AdminClient.connect(small), await AdminClient.connect(small)];
    for (const client of clients) expect(await client.call('nodes', {})).toEqual([]);
    const third = connect(small);
    await new Promise((resolve) => third.once('close', resolve));
    expect(counters.get('admin.tooManyConnections')).toBe(1);
    expect(await clients[1]!.call('nodes', {})).toEqual([]);
    for (const client of clients) client.close();
    await few.close();
  });

  test('answers calls, many at once, each its own', async () => {
    const client = await AdminClient.connect(socket);
    const answers = await Promise.all([
      client.call('counters', {}),
      client.call('nodes', {}),
      client.call('tokens', { limit: 5 }),
    ]);
    expect(answers).toEqual([{ 'nsd.requests': 7 }, [], []]);
    expect(api.asked).toContainEqual(['tokens', { limit: 5 }]);
    client.close();
  });

  test("passes the daemon's own error on as it was", async () => {
    const client = await AdminClient.connect(socket);
    await expect(client.call('createFileSystem', { name: 'data' })).rejects.toMatchObject({
      reason: 'exists',
      code: 'EEXIST',
      op: 'fs.create',
      object: 'data',
      detail: 'it is there',
    });
    client.close();
  });

  test('refuses unknown methods and wrong parameters, and goes on', async () => {
    const client = await AdminClient.connect(socket);
    await expect(client.call('reboot' as AdminMethod, {} as never)).rejects.toMatchObject({ reason: 'notSupported' });
    await expect(client.call('constructor' as AdminMethod, {} as never)).rejects.toMatchObject({
      reason: 'notSupported',
    });
    await expect(client.call('tokens', { limit: -1 })).rejects.toMatchObject({ reason: 'invalidArgument' });
    await expect(client.call('createFileSystem', { name: 'a/b' })).rejects.toMatchObject({ reason: 'invalidArgument' });
    expect(await client.call('nodes', {})).toEqual([]);
    client.close();
  });

  test('ends a connection that sends something else, counts it, and serves the others', async () => {
    const oversized = Buffer.alloc(4);
    oversized.writeUInt32BE(ADMIN_REQUEST_BYTES_MAX + 1);
    const noJson = Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from('{x}')]);
    const noRequest = encodeAdminFrame({ id: -1, method: 'status', params: {} });
    for (const bytes of [oversized, noJson, noRequest]) expect(await sendRaw(bytes)).toBe(0);
    expect(counters.get('admin.badFrames')).toBe(3);
    const client = await AdminClient.connect(socket);
    expect(await client.call('nodes', {})).toEqual([]);
    client.close();
  });

  test('fails what is waiting when the daemon ends', async () => {
    api.hold = new Promise(() => undefined);
    const client = await AdminClient.connect(socket);
    const waiting = client.call('nodes', {});
    const outcome = expect(waiting).rejects.toSatisfy(isUnreachable);
    await expect.poll(() => api.asked.length).toBe(1);
    await server.close();
    await outcome;
    await expect(client.call('nodes', {})).rejects.toSatisfy(isUnreachable);
    await expect(AdminClient.connect(socket)).rejects.toMatchObject({ reason: 'unreachable' });
  });

  test('is not taken from a daemon that answers, nor from a file; a dead one is replaced', async () => {
    const parts = { logger: silentLogger, counters };
    await expect(serveAdmin(socket, api, parts)).rejects.toMatchObject({ reason: 'identityTaken' });
    const file = path.join(directory, 'file');
    writeFileSync(file, 'precious');
    await expect(serveAdmin(file, api, parts)).rejects.toMatchObject({ reason: 'exists' });
  });
});

test('frames arrive whole, however they are cut', () => {
  const values = [
    { id: 1, result: 'x'.repeat(300) },
    { id: 2, result: null },
    { id: 3, result: ['ä'] },
  ];
  const bytes = Buffer.concat(values.map((value) => encodeAdminFrame(value)));
  for (const step of [1, 2, 3, 7, 100, bytes.length]) {
    const frames = new AdminFrames(1000);
    const seen: unknown[] = [];
    for (let at = 0; at < bytes.length; at += step) seen.push(...frames.push(bytes.subarray(at, at + step)));
    expect(seen).toEqual(values);
  }
});

test('a counter has a metric name that Prometheus accepts', () => {
  expect(metricName('nsd.readSectors')).toBe('holdfast_nsd_read_sectors');
  expect(metricName('fabric.refusedHandshake.simultaneous')).toBe('holdfast_fabric_refused_handshake_simultaneous');
});
