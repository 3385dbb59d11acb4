import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { stringify } from 'yaml';
import { connectSocket } from '../../client/connect-socket.js';
import type { FileSystemClient } from '../../client/file-system-client.js';
import { adminSocketPath } from '../admin-api.js';
import { AdminClient } from '../admin-client.js';
import type { DaemonConfigInput } from '../config-schema.js';
import type { NsdFault } from '../open-stores.js';
import { built } from './child.js';
import { eventually } from './counting.js';

/** holdfastd as its users run it: a process with a configuration, killed by its process id. */
export interface DaemonProcess {
  readonly process: ChildProcess;
  readonly nodeId: number;
  connect(): Promise<FileSystemClient>;
  admin(): Promise<AdminClient>;
  /** Its exit code or the signal that ended it. */
  readonly exited: Promise<number | string>;
  /** What it has written so far, its earlier lives too. */
  log(): string;
  /** SIGKILL, and until it is gone. */
  kill(): Promise<void>;
  /** SIGTERM; its exit code or the signal that ended it. */
  stop(): Promise<number | string>;
}

export interface DaemonProcessOptions {
  readonly directory: string;
  readonly etcd: string;
  readonly keyFile: string;
  readonly nodeId: number;
  readonly nsd: boolean;
  readonly leaseTtl: string;
  /** Its NSD holds back what is not flushed: a kill loses or tears some of it. */
  readonly fault?: NsdFault;
}

export const CLUSTER_NAME = 'test';

/** @throws what it said last, when it ends before it is a member, or isn't in time: then it is killed. */
export async function untilMember(daemon: DaemonProcess): Promise<void> {
  let ended: number | string | null = null;
  void daemon.exited.then((how) => {
    ended = how;
  });
  try {
    await eventually(`node ${daemon.nodeId} is a member`, async () => {
      if (ended !== null) throw new Error(`it ended with ${ended}: ${daemon.log().slice(-2000)}`);
      const client = await daemon.admin().catch(() => null);
      if (client === null) return false;
      try {
        return (await client.call('status', {})).phase === 'member';
      } finally {
        client.close();
      }
    });
  } catch (error) {
    await daemon.kill();
    throw error;
  }
}

/** Starts it, and doesn't wait. */
export function launchDaemon(options: DaemonProcessOptions): DaemonProcess {
  const { directory, nodeId } = options;
  const file = (suffix: string): string => path.join(directory, `node${nodeId}.${suffix}`);
  const config: DaemonConfigInput = {
    clusterName: CLUSTER_NAME,
    nodeId,
    name: `node${nodeId}`,
    listen: { host: '127.0.0.1', port: 0 },
    etcd: [options.etcd],
    clusterKeyFile: options.keyFile,
    socket: file('sock'),
    pagePool: '64MiB',
    leaseTtl: options.leaseTtl,
    // What isn't synced stays in memory.
    dirtyAge: '10min',
    nsds: options.nsd
      ? [
          {
            name: `nsd${nodeId}`,
            path: file('nsd'),
            size: '256MiB',
            failureGroup: nodeId,
            ...(options.fault === undefined ? {} : { fault: options.fault }),
          },
        ]
      : [],
  };
  writeFileSync(file('yaml'), stringify(config));
  const log = openSync(file('log'), 'a');
  const child = spawn(process.execPath, ['--enable-source-maps', built('daemon/main.js'), '--config', file('yaml')], {
    stdio: ['ignore', log, log],
    env: { ...process.env, HOLDFAST_TEST_FAULTS: '1' },
  });
  closeSync(log);
  const exited = new Promise<number | string>((resolve) => {
    child.once('exit', (code, signal) => resolve(code ?? signal ?? 'nothing'));
    child.once('error', () => resolve('did not start'));
  });
  let ended: number | string | null = null;
  void exited.then((how) => {
    ended = how;
  });
  return {
    process: child,
    nodeId,
    exited,
    log: () => readFileSync(file('log'), 'utf8'),
    connect: () => connectSocket(file('sock')),
    admin: () => AdminClient.connect(adminSocketPath(file('sock'))),
    kill: async () => {
      if (ended === null) child.kill('SIGKILL');
      await exited;
    },
    stop: () => {
      if (ended === null) child.kill('SIGTERM');
      return exited;
    },
  };
}
