import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { FsError } from '../common/errors.js';

/**
 * The typed face of native/tcp: non-blocking sockets on this thread's event loop, frames parsed and checked in C++, bulk
 * received straight into the page pool. Everything is named by numbers or opaque values; a call for something already
 * closed does nothing, a call with arguments that don't fit throws TypeError.
 */
export interface TcpEngine {
  readonly __tcpEngine: unique symbol;
}

export interface TcpCallbacks {
  onAccept(listener: number, connection: number): void;
  /** `error` is an errno, 0 when connected. */
  onConnected(connection: number, error: number): void;
  /** A handshake record; only before startFrames. */
  onRecord(connection: number, record: Uint8Array): void;
  /**
   * Frames begin at offsets[0..frameCount) of the connection's receive buffer, valid until this returns;
   * completions[0..2*completionCount) are pairs of transfer id and TransferStatus.
   */
  onBatch(connection: number, frameCount: number, completionCount: number): void;
  /** Not called for a connection closed by closeConnection. `end` is a LinkEnd, `error` an errno or 0. */
  onClosed(connection: number, end: number, error: number): void;
}

export interface TcpStats {
  readonly bytesReceived: number;
  readonly bytesSent: number;
  readonly transferBytesLanded: number;
  readonly transferBytesDiscarded: number;
  readonly windowsRefused: number;
  readonly acceptFailures: number;
  readonly windowsOpen: number;
}

export interface TcpAddon {
  readonly constants: Readonly<Record<string, number>>;
  /** `callbacks` in the order of TcpCallbacks; the pool must not be detached while the engine lives. */
  createEngine(
    pool: ArrayBuffer,
    callbacks: readonly [
      TcpCallbacks['onAccept'],
      TcpCallbacks['onConnected'],
      TcpCallbacks['onRecord'],
      TcpCallbacks['onBatch'],
      TcpCallbacks['onClosed'],
    ],
    offsets: Uint32Array,
    completions: Uint32Array,
  ): TcpEngine;
  /** Closes every socket and window at once. Later calls with this engine throw. */
  destroyEngine(engine: TcpEngine): void;
  /** [errno or 0, listener, bound port]; `host` is a numeric address. */
  listen(engine: TcpEngine, host: string, port: number, backlog: number): [number, number, number];
  closeListener(engine: TcpEngine, listener: number): void;
  /** The connection, or a negative errno; onConnected follows. */
  dial(engine: TcpEngine, host: string, port: number): number;
  receiveBuffer(engine: TcpEngine, connection: number): ArrayBuffer | null;
  sendRecord(engine: TcpEngine, connection: number, record: Uint8Array): void;
  /** From now on frames; windows are checked against this node. */
  startFrames(engine: TcpEngine, connection: number, peerNode: number): void;
  /** A run of whole frames; checksums are written into it. Returns a LinkEnd, 0 when all is well. */
  send(engine: TcpEngine, connection: number, bytes: Uint8Array, start: number, end: number): number;
  /** `segments`: offset and length pairs within the pool. Queued until flush. `unchecked`: the data needs no checksum on its way. */
  write(
    engine: TcpEngine,
    connection: number,
    transfer: number,
    window: Uint8Array,
    windowOffsetBytes: number,
    segments: Float64Array,
    unchecked: 0 | 1,
  ): void;
  read(
    engine: TcpEngine,
    connection: number,
    transfer: number,
    window: Uint8Array,
    windowOffsetBytes: number,
    segments: Float64Array,
    unchecked: 0 | 1,
  ): void;
  flush(engine: TcpEngine, connection: number): number;
  /** When this returns the transfer touches the pool no more. */
  cancel(engine: TcpEngine, connection: number, transfer: number): void;
  closeConnection(engine: TcpEngine, connection: number): void;
  /** `access`: 1 the peer may read, 2 it may write. Returns the window's 16-byte name. */
  openWindow(engine: TcpEngine, peerNode: number, access: 1 | 2, segments: Float64Array): Uint8Array;
  /** When this returns no byte lands in the window, or leaves it, any more. */
  closeWindow(engine: TcpEngine, window: Uint8Array): boolean;
  stats(engine: TcpEngine): TcpStats;
}

let loaded: TcpAddon | undefined;

/** @throws {FsError} nativeMissing, with what to do about it. */
export function loadTcpAddon(): TcpAddon {
  loaded ??= load();
  return loaded;
}

function load(): TcpAddon {
  const here = path.dirname(fileURLToPath(import.meta.url));
  const build = process.env['HOLDFAST_NATIVE'] === 'asan' ? 'build-asan' : 'build';
  // From src/native when run by a test runner, from dist/src/native when built.
  const candidates = ['../..', '../../..'].map((up) => path.resolve(here, up, 'native/tcp', build, 'Release/tcp.node'));
  const found = candidates.find((file) => existsSync(file));
  if (found === undefined) {
    throw new FsError('nativeMissing', {
      op: 'load',
      object: 'native/tcp',
      detail: `the TCP addon is not built (looked for ${candidates.join(' and ')}); run: npm run build:native`,
    });
  }
  try {
    return createRequire(import.meta.url)(found) as TcpAddon;
  } catch (cause) {
    throw new FsError('nativeMissing', {
      op: 'load',
      object: found,
      detail: `the TCP addon does not load (${cause instanceof Error ? cause.message : String(cause)}); rebuild it: npm run build:native`,
      cause,
    });
  }
}
