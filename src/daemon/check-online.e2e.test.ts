import { type ChildProcess, spawn } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import type { FileSystemClient } from '../client/file-system-client.js';
import { SECTOR_BYTES } from '../common/units.js';
import type { OnlineReport } from '../fs/check/online/online-report.js';
import { built } from './testing/child.js';
import { eventually } from './testing/counting.js';
import { startDaemonCluster } from './testing/daemon-cluster.js';

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let clean = cleanups.pop(); clean !== undefined; clean = cleanups.pop()) await clean();
});

/** Files and directories come, go, move and grow, in a directory that all use, until it is over; how often. */
async function work(client: FileSystemClient, own: string, isOver: () => boolean, did: () => void): Promise<void> {
  const gone = (error: { code?: string }): void => {
    if (!['ENOENT', 'EEXIST', 'ENOTEMPTY', 'EISDIR', 'ENOTDIR', 'ESTALE'].includes(error.code ?? '')) throw error;
  };
  for (let i = 0; !isOver(); i++) {
    const name = `/shared/${i % 7}`;
    await client.appendFile(name, `${own} ${i}\n`).catch(gone);
    await client.writeFile(`/shared/${own}-${i}`, Buffer.alloc((i * 997) % 20_000, i)).catch(gone);
    await client.rename(`/shared/${own}-${i}`, `/shared/${own}/${i}`).catch(gone);
    await client.link(`/shared/${own}/${i}`, `/shared/linked-${i % 5}`).catch(gone);
    await client.truncate(name, i % 50).catch(gone);
    if (i % 3 === 0) await client.unlink(name).catch(gone);
    if (i % 4 === 0) await client.unlink(`/shared/linked-${i % 5}`).catch(gone);
    if (i % 9 === 0) await client.mkdir(`/shared/${own}/directory-${i}`).catch(gone);
    if (i % 18 === 0) await client.rename(`/shared/${own}/directory-${i}`, `/shared/moved-${i}`).catch(gone);
    did();
  }
}

interface Ended {
  readonly code: number | string;
  readonly out: string;
  readonly error: string;
}
/** The tool as its users run it. */
function check(
  socket: string,
  args: readonly string[],
): { readonly process: ChildProcess; readonly ended: Promise<Ended> } {
  const child = spawn(process.execPath, [built('cli/main.js'), 'fs', 'check', 'test', '--socket', socket, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  let error = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    error += text;
  });
  const ended = new Promise<Ended>((resolve) =>
    child.once('close', (code, signal) => resolve({ code: code ?? signal ?? 'nothing', out, error })),
  );
  return { process: child, ended };
}

test('fs check --online while three daemons work: nothing is found; a damaged copy is, and mended; called off or killed, it leaves nothing behind', async () => {
  const cluster = await startDaemonCluster({ nsds: 2, leaseTtl: '30s' });
  cleanups.push(() => cluster.close());
  const daemons = [await cluster.start(1), await cluster.start(2), await cluster.start(3)];
  await cluster.createFileSystem(2);
  const clients = await Promise.all(daemons.map((daemon) => daemon.connect()));
  const file = (name: string): string => path.join(cluster.directory, name);
  const socket = file('node3.sock');
  await clients[0]!.mkdir('/shared');
  for (const own of ['a', 'b', 'c']) await clients[0]!.mkdir(`/shared/${own}`);
  await clients[0]!.mkdir('/kept');
  await clients[0]!.writeFile('/kept/file', 'kept');
  const { ino } = await clients[0]!.stat('/kept/file');

  let over = false;
  const counts = [0, 0, 0];
  const working = clients.map((client, i) =>
    work(
      client,
      'abc'[i]!,
      () => over,
      () => counts[i]!++,
    ),
  );
  const finish = async (): Promise<void> => {
    over = true;
    await Promise.all(working);
  };
  cleanups.push(() => finish().catch(() => undefined));
  await eventually('all work', async () => counts.every((count) => count > 20));

  const offline = await check(socket, []).ended;
  expect(offline.code).not.toBe(0);
  expect(offline.error).toContain('--online');

  for (let round = 0; round < 3; round++) {
    const { code, out, error } = await check(socket, ['--online', '--json', '--data']).ended;
    expect(code, out + error).toBe(0);
    const report = JSON.parse(out) as OnlineReport;
    expect(report.findings).toEqual([]);
    expect(report.notChecked.map(({ kind }) => kind)).toEqual(expect.arrayContaining(['logs', 'lostNumbers']));
    expect(report.inodes).toBeGreaterThan(10);
  }

  // Of the copies of an inode one rots, beside its checksum. Whoever came by would mend it.
  await finish();
  const idle = await clients[1]!.stat('/kept/file');
  expect(idle.ino).toBe(ino);
  const device = await readFile(file('node2.nsd'));
  const isIt = (at: number): boolean =>
    device.toString('latin1', at, at + 4) === 'HWI1' && device.readBigUInt64LE(at + 16) === BigInt(ino);
  let at = 0;
  while (at < device.length && !isIt(at)) at += SECTOR_BYTES;
  expect(at).toBeLessThan(device.length);
  const handle = await open(file('node2.nsd'), 'r+');
  await handle.write(Buffer.of(device[at + 200]! ^ 1), 0, 1, at + 200);
  await handle.sync();
  await handle.close();
  const found = await check(socket, ['--online']).ended;
  expect(found.code, found.out).toBe(1);
  expect(found.out).toMatch(/^copyDamaged: sector \d+ of NSD 1: can not be read.*\[--repair: written anew/);
  expect(found.out).toContain('not checked: ');
  const mended = await check(socket, ['--online', '--repair']).ended;
  expect(mended.code, mended.out).toBe(0);
  expect(mended.out).toMatch(/^copyDamaged: .* \[mended: written anew from the other copy\]/);
  expect((await check(socket, ['--online']).ended).out).not.toContain('copyDamaged');

  // Ctrl-C: it ends there, and in the daemon.
  const admin = await daemons[2]!.admin();
  cleanups.push(async () => admin.close());
  const isChecking = async (): Promise<boolean> => (await admin.call('checkProgress', {})).progress !== null;
  const slow = check(socket, ['--online', '--rate', '1']);
  await eventually('it checks', isChecking);
  slow.process.kill('SIGINT');
  expect((await slow.ended).code).toBe('SIGINT');
  await eventually('the daemon has given it up', async () => !(await isChecking()));

  // The daemon dies: whoever waits for it is told so, and nobody else notices.
  const waiting = check(socket, ['--online', '--rate', '1']);
  await eventually('it checks again', isChecking);
  await daemons[2]!.kill();
  const lost = await waiting.ended;
  expect(lost.code).toBe(3);
  expect(lost.error).toContain('node3.sock.admin');
  const first = await daemons[0]!.admin();
  cleanups.push(async () => first.close());
  await first.call('expel', { node: 3 });
  const after = await check(file('node1.sock'), ['--online', '--json']).ended;
  expect(JSON.parse(after.out)).toMatchObject({ findings: [] });
  for (const index of [0, 1]) {
    const last = await daemons[index]!.admin();
    await last.call('unmount', {});
    last.close();
  }
  expect(await first.call('checkFileSystem', { name: 'test' })).toMatchObject({ findings: [] });
}, 300_000);
