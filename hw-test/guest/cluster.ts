/**
 * A Holdfast cluster across guests, for tests: etcd in guest 1, a daemon on every guest as it is built, and each daemon's sockets reachable from the
 * others, so that one test drives them all. Leases are long: what emulation takes its time for is no failure.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { stringify } from 'yaml';
import { startPrivateEtcd } from '../../src/cluster/private-etcd.js';
import { adminSocketPath } from '../../src/daemon/admin-api.js';
import { AdminClient } from '../../src/daemon/admin-client.js';
import type { DaemonConfigInput } from '../../src/daemon/config-schema.js';
import { hardware } from './environment.js';
import { publish, receive } from './exchange.js';

const ETCD_PORT = 2379;
const DAEMON_PORT = 7400;
const READY_MS = 300_000;
const STOP_MS = 60_000;
const LOOK_AGAIN_MS = 50;

export interface GuestDaemon {
  readonly nodeId: number;
  readonly process: ChildProcess;
  readonly socket: string;
  readonly log: string;
  readonly admin: AdminClient;
  /** In good order. @returns its exit status, or the signal it ended by. */
  stop(): Promise<number | string>;
  /** Resolves when it has ended, whoever ended it. */
  readonly ended: Promise<number | string>;
}

interface Shared {
  readonly endpoint: string;
  readonly key: string;
}

/** Guest 1: starts etcd and makes the cluster's key, for all guests. @returns how to stop it. */
export async function startStore(name: string, directory: string): Promise<() => Promise<void>> {
  const dataDir = path.join(directory, 'etcd');
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const etcd = await startPrivateEtcd({
    dataDir,
    logFile: path.join(directory, 'etcd.log'),
    host: hardware().address,
    clientPort: ETCD_PORT,
    readyTimeoutMs: READY_MS,
  });
  publish(`${name}.store`, { endpoint: etcd.endpoint, key: randomBytes(32).toString('hex') } satisfies Shared);
  const ended = new Promise<void>((resolve) => etcd.process.once('exit', () => resolve()));
  return async () => {
    etcd.process.kill('SIGTERM');
    await ended;
  };
}

export type GuestDaemonConfig = Partial<DaemonConfigInput> & Pick<DaemonConfigInput, 'nsds'>;

/** This guest's daemon, with the node id of the guest. Resolves when it is a member. */
export async function startDaemon(name: string, directory: string, config: GuestDaemonConfig): Promise<GuestDaemon> {
  const { guest, address, share } = hardware();
  const { endpoint, key } = await receive<Shared>(`${name}.store`, READY_MS);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const file = (suffix: string): string => path.join(directory, `node-${guest}.${suffix}`);
  writeFileSync(file('key'), `${key}\n`, { mode: 0o600 });
  const whole: DaemonConfigInput = {
    clusterName: name,
    nodeId: guest,
    name: `guest-${guest}`,
    // Natively all daemons are on one machine.
    listen: { host: address, port: DAEMON_PORT + guest },
    etcd: [endpoint],
    clusterKeyFile: file('key'),
    socket: file('sock'),
    pagePool: '128MiB',
    leaseTtl: '60s',
    ...config,
  };
  writeFileSync(file('yaml'), stringify(whole), { mode: 0o600 });
  // Among the results, whatever becomes of the guest.
  const logFile = path.join(share, `guest${guest}`, `${name}-holdfastd.log`);
  const log = openSync(logFile, 'a');
  const main = path.resolve('dist/src/daemon/main.js');
  const child = spawn(process.execPath, ['--enable-source-maps', main, '--config', file('yaml')], {
    stdio: ['ignore', log, log],
  });
  closeSync(log);
  const ended = new Promise<number | string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (code, signal) => resolve(code ?? signal ?? 'unknown'));
  });
  try {
    const admin = await ready(child, file('sock'));
    return {
      nodeId: guest,
      process: child,
      socket: file('sock'),
      log: logFile,
      admin,
      ended,
      async stop() {
        admin.close();
        child.kill('SIGTERM');
        const timer = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
        const outcome = await ended;
        clearTimeout(timer);
        return outcome;
      },
    };
  } catch (error) {
    child.kill('SIGKILL');
    throw new Error(`daemon ${guest} did not start: ${String(error)}\n${readFileSync(logFile, 'utf8').slice(-4000)}`);
  }
}

async function ready(child: ChildProcess, socket: string): Promise<AdminClient> {
  const endMs = performance.now() + READY_MS;
  for (;;) {
    try {
      const admin = await AdminClient.connect(adminSocketPath(socket));
      const { phase } = await admin.call('status', {});
      if (phase === 'member') return admin;
      admin.close();
    } catch {
      // Not listening yet.
    }
    if (child.exitCode !== null || child.signalCode !== null) throw new Error('it has ended');
    if (performance.now() > endMs) throw new Error(`it is no member after ${READY_MS} ms`);
    await pause(LOOK_AGAIN_MS);
  }
}

/** Pipes what connects to `from` to `to`: a unix socket's path or a TCP address. Resolves when it listens. @returns how to end it. */
export async function forward(
  from: string | net.ListenOptions,
  to: string | net.TcpNetConnectOpts,
): Promise<() => Promise<void>> {
  const open = new Set<net.Socket>();
  const server = net.createServer((near) => {
    const far = typeof to === 'string' ? net.connect(to) : net.connect(to);
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(socket);
      socket.setNoDelay(true);
      socket.on('error', () => undefined);
      socket.once('close', () => {
        open.delete(socket);
        other.destroy();
      });
      socket.pipe(other);
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(typeof from === 'string' ? { path: from } : from, resolve);
  });
  return async () => {
    for (const socket of open) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
}
