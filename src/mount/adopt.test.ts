import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmdirSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { FuseSession } from './fuse-session.js';
import { Ledger } from './ledger.js';
import { abortConnection, closeDescriptor, fuseMounts, mountFuse, openFuseDevice, unmountFuse } from './mount-point.js';
import { MemoryFileSystem } from './testing/memory-file-system.js';
import { canMount, MountClient } from './testing/mounted.js';
import { SERVED, SERVER_SETTINGS } from './testing/server.js';
import { invalInode } from './wire/notify.js';
import { NotifyCode } from './wire/protocol.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const program = path.join(root, 'dist/src/mount/testing/server.js');

/** F4: a mount outlives its server, since another process has duplicates of its descriptor and the ledger. Here that is the test. */
describe.skipIf(!canMount())('a mount whose server is killed', () => {
  let device: number;
  let ledger: number;
  let directory: string;
  let watch: ChildProcess;
  const servers: ChildProcess[] = [];
  let client: MountClient;
  let connection: number;

  async function serve(
    ...args: string[]
  ): Promise<{ child: ChildProcess; ready: { resent: number; handles: number }; held: Promise<void> }> {
    const child = spawn(process.execPath, [program, ...args], {
      stdio: ['ignore', 'inherit', 'inherit', device, ledger, 'ipc'],
    });
    servers.push(child);
    let told = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      told = resolve;
    });
    const ready = await new Promise<{ resent: number; handles: number }>((resolve, reject) => {
      child.on('message', (message: 'held' | { resent: number; handles: number }) => {
        if (message === 'held') told();
        else resolve(message);
      });
      child.on('exit', (code) => reject(new Error(`the server ended with ${code}`)));
    });
    return { child, ready, held };
  }
  const end = (child: ChildProcess): Promise<void> =>
    new Promise((resolve) => {
      if (child.exitCode !== null || child.signalCode !== null) return resolve();
      child.on('exit', () => resolve());
      child.kill('SIGKILL');
    });

  beforeEach(async () => {
    directory = mkdtempSync(path.join(tmpdir(), 'holdfast-mount-'));
    watch = spawn('sh', ['-c', `read -r _; umount -l '${directory}'; rmdir '${directory}'`], {
      stdio: ['pipe', 'ignore', 'ignore'],
      detached: true,
    });
    device = openFuseDevice();
    ledger = FuseSession.createLedger(SERVER_SETTINGS);
    await mountFuse(device, directory, { source: 'test', allowOther: true });
    connection = (await fuseMounts()).findLast(({ target }) => target === directory)!.connection;
  });
  afterEach(async () => {
    await unmountFuse(directory, { lazy: true }).catch(() => undefined);
    await abortConnection(connection).catch(() => undefined);
    client.kill();
    await client.gone;
    await Promise.all(servers.splice(0).map(end));
    closeDescriptor(device);
    closeDescriptor(ledger);
    watch.kill();
    rmdirSync(directory);
  });

  it('goes on with the next one: old handles, and what was under way (F4)', async () => {
    const first = await serve('hold', 'setattr');
    client = await MountClient.start(directory);
    await client.run(({ fs, dir, kept }) => {
      kept['fd'] = fs.openSync(`${dir}/a`, 'r');
    });
    const truncated = client.run(({ fs, dir }) => fs.promises.truncate(`${dir}/slow`, 2).then(() => true));
    await first.held;
    await end(first.child);

    const second = await serve('adopt');
    expect(second.ready).toMatchObject({ resent: 1, handles: 2 }); // truncate opened one too
    expect(await truncated).toBe(true);
    const after = await client.run(({ fs, dir, kept }) => ({
      old: fs.readFileSync(kept['fd'] as number, 'utf8'),
      slow: fs.readFileSync(`${dir}/slow`, 'utf8'),
    }));
    expect(after).toEqual({ old: SERVED.a, slow: 'sl' });
  });

  it('gives errors and no hangs while there is none, and lets processes die (F4, M7)', async () => {
    const first = await serve('hold', 'mkdir');
    client = await MountClient.start(directory);
    await client.run(({ fs, dir, kept }) => {
      const fd = fs.openSync(`${dir}/a`, 'r');
      kept['fd'] = fd;
      fs.readSync(fd, Buffer.alloc(1), 0, 1, 0); // a page in the kernel
    });
    const made = client
      .run(({ fs, dir }) => fs.promises.mkdir(`${dir}/d`).then(() => 'made'))
      .catch((error: NodeJS.ErrnoException) => error.code);
    await first.held;
    await end(first.child);

    // What the guard does: requests move first, then the kernel's caches are cleared.
    const nobody = new MemoryFileSystem();
    const guard = new FuseSession([device], ledger, new ArrayBuffer(4096), SERVER_SETTINGS, nobody);
    nobody.session = guard;
    guard.refuse(constants.errno.EIO);
    guard.start();
    await guard.resend();
    expect(await made).toBe('EIO');
    for (const { node } of new Ledger(guard.ledgerMemory()).nodes()) {
      expect([0, constants.errno.ENOENT]).toContain(await guard.notify(NotifyCode.invalInode, invalInode(node, 0, 0)));
    }
    const old = client.run(({ fs, kept }) => fs.promises.readFile(`/proc/self/fd/${kept['fd']}`).then(() => 'read'));
    expect(await old.catch((error: NodeJS.ErrnoException) => error.code)).toBe('EIO');
    const page = client.run(({ fs, kept }) => fs.readSync(kept['fd'] as number, Buffer.alloc(1), 0, 1, 0));
    expect(await page.catch((error: NodeJS.ErrnoException) => error.code)).toBe('EIO');
    expect(nobody.seen).toEqual([]);
    expect(guard.counters().refused).toBeGreaterThan(0);

    // A process that holds a file of the mount ends: its FLUSH is answered.
    const other = await MountClient.start(directory);
    other.kill();
    await other.gone;
    await guard.close();

    const second = await serve('adopt');
    expect(second.ready.handles).toBe(1);
    expect(await client.run(({ fs, kept }) => fs.readFileSync(kept['fd'] as number, 'utf8'))).toBe(SERVED.a);
  });
});
