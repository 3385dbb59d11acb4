import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Counters } from '../../common/counters.js';
import { silentLogger } from '../../common/logger.js';
import { FuseMount } from '../../mount/fuse-mount.js';
import { MountClient } from '../../mount/testing/mounted.js';
import { systemClock } from '../system-clock.js';
import { type LocalCluster, type LocalClusterOptions, startLocalCluster } from './local-cluster.js';

/** A cluster whose first nodes have the file system mounted, and programs that use it there. Whatever becomes of this process, the mounts go. */
export interface MountedCluster {
  readonly cluster: LocalCluster;
  readonly mounts: FuseMount[];
  readonly directories: string[];
  readonly counters: Counters[];
  /** A program on a node. */
  program(index: number): Promise<MountClient>;
  close(): Promise<void>;
}

export async function startMountedCluster(options: LocalClusterOptions & { mounts: number }): Promise<MountedCluster> {
  const cluster = await startLocalCluster(options);
  const mounts: FuseMount[] = [];
  const directories: string[] = [];
  const counters: Counters[] = [];
  const watches: ChildProcess[] = [];
  const programs: MountClient[] = [];
  const close = async (): Promise<void> => {
    for (const program of programs) program.kill();
    await Promise.all(programs.map((program) => program.gone));
    await Promise.all(mounts.map((mount) => mount.close()));
    await cluster.close();
    for (const watch of watches) watch.kill();
    for (const directory of directories) rmdirSync(directory);
  };
  try {
    for (let index = 0; index < options.mounts; index++) {
      const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-mount-'));
      directories.push(directory);
      const watch = spawn('sh', ['-c', `read -r _; umount -l '${directory}'; rmdir '${directory}'`], {
        stdio: ['pipe', 'ignore', 'ignore'],
        detached: true,
      });
      watches.push(watch);
      const engine = cluster.engines[index]!;
      const found = (await engine.fileSystems())[0]!;
      const fileSystem = await engine.node.mount({ ...found.record, name: found.name });
      const counted = new Counters();
      counters.push(counted);
      mounts.push(
        await FuseMount.start({
          fileSystem,
          name: found.name,
          target: directory,
          clock: systemClock,
          counters: counted,
          logger: options.logger ?? silentLogger,
        }),
      );
    }
  } catch (error) {
    await close();
    throw error;
  }
  const program = async (index: number): Promise<MountClient> => {
    const client = await MountClient.start(directories[index]!);
    programs.push(client);
    return client;
  };
  return { cluster, mounts, directories, counters, program, close };
}
