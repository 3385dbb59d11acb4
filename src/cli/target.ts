import path from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { connectSocket } from '../client/connect-socket.js';
import type { FileSystemClient } from '../client/file-system-client.js';
import { processCredentials } from '../client/socket-session.js';
import { FsError } from '../common/errors.js';
import { adminSocketPath } from '../daemon/admin-api.js';
import { AdminClient } from '../daemon/admin-client.js';
import { readState } from '../daemon/dev-cluster.js';
import { UsageError } from './output.js';

/** Which daemon a command talks to, and how it reaches it. */
export interface TargetOptions {
  readonly dir: string;
  readonly socket?: string | undefined;
  readonly node?: number | undefined;
  readonly json?: boolean | undefined;
}

export const DEFAULT_DIR = '.holdfast';

export function parseCount(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max))
      throw new InvalidArgumentError(`Expected a whole number from ${min} to ${max}.`);
    return value;
  };
}

export function withTarget(command: Command): Command {
  return command
    .addOption(new Option('--dir <path>', 'directory of the local cluster').default(DEFAULT_DIR).env('HOLDFAST_DIR'))
    .addOption(new Option('--node <n>', 'node of the local cluster (default: 1)').argParser(parseCount(1, 32_767)))
    .addOption(
      new Option('--socket <path>', 'socket of a daemon, instead of --dir and --node')
        .env('HOLDFAST_SOCKET')
        .conflicts('node'),
    );
}
export const withJson = (command: Command): Command => command.option('--json', 'print JSON, for programs');

/** @throws {FsError | UsageError} when no daemon is named by it. */
export function socketOf({ dir, socket, node }: TargetOptions): string {
  if (socket !== undefined) return path.resolve(socket);
  const state = readState(path.resolve(dir));
  if (state === null) {
    const detail = `there is no local cluster in ${dir}; start one with 'holdfast dev up', or name a daemon with --socket`;
    throw new FsError('unreachable', { op: 'connect', detail });
  }
  const wanted = node ?? state.nodes[0]?.nodeId ?? 1;
  const found = state.nodes.find((candidate) => candidate.nodeId === wanted);
  if (found === undefined) {
    const known = state.nodes.map((candidate) => candidate.nodeId).join(', ');
    throw new UsageError(`the local cluster has no node ${wanted}, it has ${known}`);
  }
  return found.socket;
}

/** A daemon that is asked by a person answers now or isn't there: no long tries to connect again. */
const RECONNECT_FOR_MS = 5000;

export async function withAdmin<T>(options: TargetOptions, use: (admin: AdminClient) => Promise<T>): Promise<T> {
  const admin = await AdminClient.connect(adminSocketPath(socketOf(options)));
  try {
    return await use(admin);
  } finally {
    admin.close();
  }
}

/** `umask` 0: what is created gets exactly the mode that is asked for. */
export function openClient(socket: string, umask?: number): Promise<FileSystemClient> {
  const credentials = processCredentials();
  return connectSocket(socket, {
    credentials: umask === undefined ? credentials : { ...credentials, umask },
    reconnectForMs: RECONNECT_FOR_MS,
  });
}

export async function withFiles<T>(
  options: TargetOptions,
  use: (files: FileSystemClient) => Promise<T>,
  umask?: number,
): Promise<T> {
  const files = await openClient(socketOf(options), umask);
  try {
    return await use(files);
  } finally {
    await files.close();
  }
}

const REMOTE = 'hf:';
/** The path within Holdfast of `hf:/path`, or null for a local one. @throws {UsageError} for `hf:path`. */
export function remotePath(text: string): string | null {
  if (!text.startsWith(REMOTE)) return null;
  const inside = text.slice(REMOTE.length);
  if (!inside.startsWith('/')) throw new UsageError(`paths in Holdfast are absolute: hf:/${inside}`);
  return inside;
}
/** For commands that only know Holdfast's own paths: `hf:` is optional. */
export function insidePath(text: string): string {
  const inside = remotePath(text) ?? text;
  if (!inside.startsWith('/')) throw new UsageError(`paths in Holdfast are absolute: /${inside}`);
  return inside;
}
