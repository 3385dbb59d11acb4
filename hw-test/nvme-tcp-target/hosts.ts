import {
  type ConnectedController,
  connect,
  disconnectSubsystem,
  type NvmeNamespaceNode,
  readController,
  waitForNamespace,
} from 'napi-nvme';
import { TargetProcess } from './start.js';

/** This machine as two hosts of one target: each has a name, an identifier, and devices of its own. */
export interface TargetHost {
  readonly hostNqn: string;
  /** In hex, as reports have it. */
  readonly hostId: string;
  readonly controller: ConnectedController;
  readonly namespace: NvmeNamespaceNode;
  /** Until the kernel has its connection again. */
  live(): Promise<void>;
}

export const BLOCK_BYTES = 512;
export const NAMESPACE_BYTES = 1 << 20;
/** Longer than any test lets the target be away. */
const TIMEOUTS = { keepAliveS: 5, fastIoFailS: 60, controllerLossS: 120, reconnectDelayS: 1 };
const IDS = ['11111111-2222-4333-8444-555555555555', 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee'];

/** Starts a target with two hosts. `undo` first gets what takes it all back, in case a later step fails. */
export async function targetWithHosts(
  undo: (step: () => Promise<unknown>) => void,
): Promise<{ readonly target: TargetProcess; readonly hosts: readonly [TargetHost, TargetHost] }> {
  const address = process.env['HOLDFAST_HW_ADDRESS'] ?? '127.0.0.1';
  const subsystemNqns = IDS.map((_, index) => `nqn.2026-01.test.holdfast:target-${process.pid}-${index}`);
  const options = { address, subsystemNqns, lengthBytes: NAMESPACE_BYTES, blockBytes: BLOCK_BYTES };
  const target = await TargetProcess.start(process.env['HOLDFAST_HW_PROJECT'] ?? process.cwd(), options);
  undo(() => target.stop());
  const hosts: TargetHost[] = [];
  for (const [index, nqn] of subsystemNqns.entries()) {
    const hostNqn = `nqn.2026-01.test.holdfast:reserving-host-${index}`;
    const hostId = IDS[index]!;
    const service = target.port;
    const made = { transport: 'tcp', address, service, nqn, hostNqn, hostId, timeouts: TIMEOUTS, ioQueues: 1 } as const;
    const controller = await connect(made);
    undo(() => disconnectSubsystem(nqn));
    const namespace = await waitForNamespace(controller.name, 1);
    const live = async (): Promise<void> => {
      while ((await readController(controller.name))?.state !== 'live')
        await new Promise((resolve) => setTimeout(resolve, 20));
    };
    hosts.push({ hostNqn, hostId: hostId.replaceAll('-', ''), controller, namespace, live });
  }
  return { target, hosts: [hosts[0]!, hosts[1]!] };
}
