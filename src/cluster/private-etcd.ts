import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { createServer } from 'node:net';
import { FsError } from '../common/errors.js';

/**
 * An etcd of our own, for local clusters and tests: one member, loopback unless told otherwise, its data in a directory of the caller's.
 * Owns nothing: who starts it stops it, by the process that is returned.
 */
export interface PrivateEtcd {
  readonly process: ChildProcess;
  readonly endpoint: string;
}

export interface PrivateEtcdOptions {
  /** Must exist; etcd keeps everything below it. */
  readonly dataDir: string;
  readonly logFile: string;
  /** Outlives the process that started it. */
  readonly detached?: boolean;
  readonly clientPort?: number;
  /** The address of this machine that clients use; loopback unless said otherwise. */
  readonly host?: string;
  readonly readyTimeoutMs?: number;
  /** As soon as there is a process, long before it answers: to write down whom to stop. */
  readonly onSpawn?: (child: ChildProcess, endpoint: string) => void;
}

export const ETCD_BINARY = '/usr/bin/etcd';

/** Starts etcd and resolves when it answers. @throws {FsError} internal: it isn't installed, ended, or never answered. */
export async function startPrivateEtcd(options: PrivateEtcdOptions): Promise<PrivateEtcd> {
  const [clientPort, peerPort] = await freePorts(2);
  const client = `http://${options.host ?? '127.0.0.1'}:${options.clientPort ?? clientPort}`;
  const peer = `http://127.0.0.1:${peerPort}`;
  const log = openSync(options.logFile, 'a', 0o600);
  const child = spawn(
    ETCD_BINARY,
    [
      ['--name', 'holdfast'],
      // Our clients look after a silent member every 2 s; etcd's default takes that for an attack.
      ['--grpc-keepalive-min-time', '1s'],
      ['--data-dir', options.dataDir],
      ['--listen-client-urls', client],
      ['--advertise-client-urls', client],
      ['--listen-peer-urls', peer],
      ['--initial-advertise-peer-urls', peer],
      ['--initial-cluster', `holdfast=${peer}`],
      ['--auto-compaction-mode', 'revision'],
      ['--auto-compaction-retention', '100000'],
      ['--logger', 'zap'],
      ['--log-level', 'warn'],
    ].flat(),
    { stdio: ['ignore', log, log], detached: options.detached ?? false, env: { PATH: '/usr/bin:/bin' } },
  );
  closeSync(log);
  if (child.pid !== undefined) options.onSpawn?.(child, client);
  const failed = new Promise<never>((_, reject) => {
    child.once('error', (error) =>
      reject(startError(`${ETCD_BINARY} does not start (apt-get install etcd-server)`, error)),
    );
    child.once('exit', (code, signal) =>
      reject(startError(`etcd ended with ${signal ?? code}, see ${options.logFile}`)),
    );
  });
  try {
    await Promise.race([healthy(client, options.readyTimeoutMs ?? 20_000, options.logFile), failed]);
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
  failed.catch(() => undefined);
  return { process: child, endpoint: client };
}

async function healthy(endpoint: string, timeoutMs: number, logFile: string): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      const answer = await fetch(`${endpoint}/health`, { signal: AbortSignal.timeout(1000) });
      if (answer.ok) return;
    } catch {
      // Not listening yet.
    }
    if (performance.now() > deadline) throw startError(`etcd did not answer within ${timeoutMs} ms, see ${logFile}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Loopback ports that were free a moment ago; all held at once, so that they differ. */
export async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from(
      { length: count },
      () =>
        new Promise<ReturnType<typeof createServer>>((resolve, reject) => {
          const server = createServer();
          server.once('error', reject);
          server.listen(0, '127.0.0.1', () => resolve(server));
        }),
    ),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

const startError = (detail: string, cause?: unknown): FsError =>
  new FsError('internal', { op: 'start', object: 'etcd', detail, cause });
