import { spawn } from 'node:child_process';
import { mkdtempSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { parseMountOptions } from '../cli/commands-mount.js';
import { CallsCompiler } from '../mount/testing/calls-program.js';
import { canMount, MountClient } from '../mount/testing/mounted.js';
import { startDaemonCluster } from './testing/daemon-cluster.js';
import type { DaemonProcess } from './testing/daemon-process.js';

const OPTIONS = parseMountOptions([]);

/** The code of what a call is refused with, or what it gave. */
const codeOf = (call: Promise<unknown>): Promise<unknown> =>
  call.catch((error: NodeJS.ErrnoException) => error.code ?? error.message);

test.skipIf(!canMount())(
  'a daemon that is killed: no program reads what the kernel had cached, calls fail and end; the next one has what was synced (F4)',
  async () => {
    const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-mount-'));
    const watch = spawn('sh', ['-c', `read -r _; umount -l '${directory}'; rmdir '${directory}'`], {
      stdio: ['pipe', 'ignore', 'ignore'],
      detached: true,
    });
    const cluster = await startDaemonCluster({ nsds: 1, leaseTtl: '2s' });
    const calls = new CallsCompiler();
    const mount = async (daemon: DaemonProcess): Promise<void> => {
      const admin = await daemon.admin();
      await admin.call('mount', { name: 'test', target: directory, ...OPTIONS });
      admin.close();
    };
    let program: MountClient | null = null;
    try {
      const first = await cluster.start(1);
      await cluster.createFileSystem();
      await mount(first);
      program = await MountClient.start(directory);
      await program.run(({ fs, dir, kept }) => {
        const fd = fs.openSync(`${dir}/file`, 'w+');
        fs.writeSync(fd, 'x'.repeat(5000));
        fs.fsyncSync(fd);
        fs.closeSync(fd);
        kept['fd'] = fs.openSync(`${dir}/file`, 'r');
        fs.readSync(kept['fd'] as number, Buffer.alloc(5000), 0, 5000, 0);
      });
      const mapping = await calls.start();
      await mapping.run(`open ${directory}/file r`);
      await mapping.run('map 5000 r');
      expect(await mapping.run('get 4999')).toBe('120');

      await first.kill();
      const read = ({ fs, kept }: { fs: typeof import('node:fs'); kept: Record<string, unknown> }) =>
        fs.readSync(kept['fd'] as number, Buffer.alloc(10), 0, 10, 0);
      await expect.poll(() => codeOf(program!.run(read))).toBe('ENOTCONN');
      // Its page is gone, and nobody brings it: SIGBUS.
      await expect.poll(() => mapping.run('get 4999')).toBe('gone');
      program.kill();
      await program.gone;

      const second = await cluster.start(1);
      await expect.poll(() => codeOf(mount(second))).toBe(undefined);
      program = await MountClient.start(directory);
      expect(await program.run(({ fs, dir }) => fs.readFileSync(`${dir}/file`, 'utf8'))).toBe('x'.repeat(5000));
      program.kill();
      await program.gone;
      const admin = await second.admin();
      await admin.call('umount', { target: directory, lazy: false, force: false });
      expect(await admin.call('mounts', {})).toEqual([]);
      admin.close();
    } finally {
      program?.kill();
      await calls.end();
      await cluster.close();
      watch.kill();
      rmdirSync(directory);
    }
  },
);
