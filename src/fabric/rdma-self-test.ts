import type { Clock } from '../common/clock.js';
import { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { silentLogger } from '../common/logger.js';
import { heapPagePool } from '../native/page-pool.js';
import { TransferStatus } from '../protocol/frame.js';
import type { NodeIdentity } from './fabric.js';
import type { Link } from './link.js';
import { RdmaTransport } from './rdma-transport.js';
import type { OpenVerbsPort } from './verbs-port.js';

/**
 * Whether a device does what the fabric needs, tried on itself before it is trusted: register memory, connect, send a record each way,
 * write through a window and read back what landed, and, once the window is closed, write again and fail, with nothing changed.
 * A pool of its own; the node's is not touched.
 */
const POOL_BYTES = 64 * 1024;
const PIECE_BYTES = 16 * 1024;
const TIMEOUT_MS = 10_000;

export interface SelfTestOptions {
  readonly self: NodeIdentity;
  readonly clusterId: string;
  readonly clock: Clock;
  readonly open: OpenVerbsPort;
  readonly randomBytes?: ((count: number) => Uint8Array) | undefined;
  /** Where to listen, given the device's addresses; null: nowhere, it has none. */
  readonly host: (hosts: readonly string[]) => string | null;
}

/** @throws {FsError} what did not work. */
export async function selfTest(options: SelfTestOptions): Promise<void> {
  const pool = heapPagePool(POOL_BYTES);
  const port = options.open(pool);
  const failed = (detail: string, cause?: unknown) =>
    new FsError('deviceError', { op: 'fabric.rdma.selfTest', object: port.name, detail, cause });
  const transport = new RdmaTransport({
    self: options.self,
    clusterId: options.clusterId,
    pool,
    port,
    clock: options.clock,
    counters: new Counters(),
    logger: silentLogger,
    randomBytes: options.randomBytes,
    settings: { oneSidedAboveBytes: 0 },
  });
  const abort = new AbortController();
  const timer = options.clock.after(TIMEOUT_MS, () => abort.abort(failed('it took too long')));
  const within = <T>(work: Promise<T>): Promise<T> => {
    const late = new Promise<never>((_, reject) => {
      abort.signal.addEventListener('abort', () => reject(abort.signal.reason), { once: true });
    });
    late.catch(() => undefined);
    return Promise.race([work, late]);
  };
  try {
    if (!port.usable) throw failed('no port of it is up');
    const host = options.host(port.hosts);
    if (host === null) throw failed('it has no IP address');
    let accepted!: (link: Link) => void;
    const acceptedLink = new Promise<Link>((resolve) => (accepted = resolve));
    const address = await transport.listen({ host, port: 0 }, (link) => accepted(link));
    const one = await within(transport.dial(address, abort.signal));
    const two = await within(acceptedLink);
    await within(exchange(one, two));
    await within(exchange(two, one));
    one.startFrames(options.self.nodeId);
    two.startFrames(options.self.nodeId);
    if (!port.limits.windows) return;

    const target = { offsetBytes: PIECE_BYTES, lengthBytes: PIECE_BYTES };
    const source = { offsetBytes: 0, lengthBytes: PIECE_BYTES };
    const back = { offsetBytes: 2 * PIECE_BYTES, lengthBytes: PIECE_BYTES };
    for (let i = 0; i < PIECE_BYTES; i++) pool.bytes[i] = (i * 31 + 7) & 0xff;
    const into = transport.openWindow(options.self.nodeId, [target], 'write');
    const from = transport.openWindow(options.self.nodeId, [target], 'read');
    if ((await within(move(one, 1, true, into, source))) !== TransferStatus.landed) throw failed('a write was refused');
    if ((await within(move(one, 2, false, from, back))) !== TransferStatus.landed) throw failed('a read was refused');
    for (let i = 0; i < PIECE_BYTES; i++) {
      const right = (i * 31 + 7) & 0xff;
      if (pool.bytes[target.offsetBytes + i] !== right) throw failed('a write did not land as it was sent');
      if (pool.bytes[back.offsetBytes + i] !== right) throw failed('a read did not bring what is there');
    }
    await within(transport.closeWindow(into));
    pool.bytes.fill(0, 0, PIECE_BYTES);
    const late = await within(move(one, 3, true, into, source).catch(() => null));
    if (late === TransferStatus.landed || pool.bytes[target.offsetBytes] !== 7) {
      throw failed('a closed window could still be written through');
    }
  } catch (error) {
    throw FsError.from(error, 'fabric.rdma.selfTest', port.name);
  } finally {
    timer.cancel();
    transport.close();
  }
}

function exchange(from: Link, to: Link): Promise<void> {
  return new Promise((resolve, reject) => {
    to.events = {
      ...to.events,
      onRecord: () => resolve(),
      onClosed: reject,
    };
    from.events = { ...from.events, onClosed: reject };
    from.sendRecord(new Uint8Array(128).fill(1));
  });
}

function move(
  link: Link,
  id: number,
  writing: boolean,
  window: Uint8Array,
  local: { readonly offsetBytes: number; readonly lengthBytes: number },
): Promise<TransferStatus> {
  return new Promise((resolve, reject) => {
    link.events = { ...link.events, onTransferDone: (_id, status) => resolve(status), onClosed: reject };
    if (writing) link.write(id, window, 0, [local]);
    else link.read(id, window, 0, [local]);
    link.flush();
  });
}
