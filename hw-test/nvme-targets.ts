/** What the tests over fabrics connect to: devices of memory in this guest, exported by its own nvmet. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import {
  type ConnectedController,
  connect,
  disconnectSubsystem,
  type FabricsAddress,
  type FabricsTimeouts,
  type NvmeNamespaceNode,
  Nvmet,
  waitForNamespace,
} from 'napi-nvme';

export const run = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();

export const HOST = 'nqn.2026-01.test.holdfast:host-a';
export const OTHER_HOST = 'nqn.2026-01.test.holdfast:host-b';

export type Transport = FabricsAddress['transport'];
const own = process.env['HOLDFAST_HW_ADDRESS'] ?? '127.0.0.1';
export const addressOf = (transport: Transport): FabricsAddress =>
  transport === 'loop' ? { transport } : { transport, address: own, service: transport === 'tcp' ? '4420' : '4421' };
/** nvme-loop isn't part of Debian's kernel; where it could not be built there is none. */
export const TRANSPORTS: readonly Transport[] =
  process.env['HOLDFAST_HW_LOOP'] === '1' ? ['loop', 'rdma', 'tcp'] : ['rdma', 'tcp'];

/** A loop device over a file in memory. */
export class LoopDevice {
  static #count = 0;
  readonly file = `/tmp/target-${process.pid}-${LoopDevice.#count++}`;
  readonly path: string;
  constructor(lengthBytes: number, sectorBytes = 512) {
    fs.writeFileSync(this.file, '');
    fs.truncateSync(this.file, lengthBytes);
    this.path = run('losetup', '--find', '--show', `--sector-size=${sectorBytes}`, this.file);
  }
  resize(lengthBytes: number): void {
    fs.truncateSync(this.file, lengthBytes);
    run('losetup', '--set-capacity', this.path);
  }
  close(): void {
    run('losetup', '--detach', this.path);
    fs.rmSync(this.file);
  }
}

/** A disk of memory whose every answer takes `latencyMs`. */
export class SlowDevice {
  readonly path: string;
  readonly #folder: string;
  constructor(latencyMs: number, megabytes = 16) {
    run('modprobe', 'null_blk', 'nr_devices=0');
    const name = `slow${process.pid}`;
    this.#folder = `/sys/kernel/config/nullb/${name}`;
    fs.mkdirSync(this.#folder);
    const settings = { memory_backed: 1, size: megabytes, irqmode: 2, completion_nsec: latencyMs * 1e6, power: 1 };
    for (const [attribute, value] of Object.entries(settings))
      fs.writeFileSync(`${this.#folder}/${attribute}`, String(value));
    const found = [`/dev/${name}`, `/dev/nullb${fs.readFileSync(`${this.#folder}/index`, 'utf8').trim()}`].find(
      (file) => fs.existsSync(file),
    );
    if (found === undefined) throw new Error('null_blk made no device');
    this.path = found;
  }
  close(): void {
    fs.writeFileSync(`${this.#folder}/power`, '0');
    fs.rmdirSync(this.#folder);
  }
}

/** An export of a device and this machine's connection to it. */
export interface Attached {
  readonly nqn: string;
  readonly controller: ConnectedController;
  readonly namespace: NvmeNamespaceNode;
  detach(): Promise<void>;
}

let count = 0;
export async function attach(
  transport: Transport,
  devicePath: string,
  options: { timeouts?: FabricsTimeouts; nqn?: string } = {},
): Promise<Attached> {
  const nvmet = new Nvmet();
  const nqn = options.nqn ?? `nqn.2026-01.test.holdfast:t${process.pid}-${count++}`;
  const port = addressOf(transport);
  await nvmet.export({ subsystemNqn: nqn, devicePath, allowedHosts: [HOST], port });
  const controller = await connect({
    ...port,
    nqn,
    hostNqn: HOST,
    ...(options.timeouts === undefined ? {} : { timeouts: options.timeouts }),
  });
  const namespace = await waitForNamespace(controller.name, 1);
  return {
    nqn,
    controller,
    namespace,
    detach: async () => {
      await disconnectSubsystem(nqn);
      await nvmet.unexport(nqn);
    },
  };
}
