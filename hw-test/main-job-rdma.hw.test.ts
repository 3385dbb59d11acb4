/** The main job in two guests over RDMA: with namespaces of their own, then with one that both reach only over NVMe-oF RDMA. */
import { expect, test } from 'vitest';
import { type CounterSnapshot, sumCounters } from '../src/cli/quickstart-report.js';
import { hardware, ownNamespaces } from './guest/environment.js';
import { publish, receive } from './guest/exchange.js';
import { type MainJobResult, runMainJob } from './guest/main-job.js';
import { tool } from './guest/tools.js';

const { guest, address, peer } = hardware();
const DEADLINE_MS = 480_000;
const STEP_MS = 120_000;
const fabric = { rdma: 'required' } as const;

const of = (counters: CounterSnapshot, name: string): number => counters[name] ?? 0;

/** Every byte of a request that names a window was moved by an RDMA read or write, none by JavaScript and none by TCP. */
function expectOneSided({ counters, phases }: MainJobResult): void {
  const sum = sumCounters(counters);
  const served = of(sum, 'nsd.servedReadBytes') + of(sum, 'nsd.servedWriteBytes') - of(sum, 'nsd.servedInlineBytes');
  const oneSided = of(sum, 'fabric.rdma.bytesRead') + of(sum, 'fabric.rdma.bytesWritten');
  console.log(
    `one-sided: ${of(sum, 'fabric.rdma.bytesRead')} bytes read, ${of(sum, 'fabric.rdma.bytesWritten')} written; ` +
      `in messages: ${of(sum, 'nsd.servedInlineBytes')}; copied in JS: ${of(sum, 'fabric.rdma.bytesCopied')}`,
  );
  expect(oneSided).toBe(served);
  expect(oneSided).toBeGreaterThan(phases[0]!.bytes / 2);
  expect(of(sum, 'fabric.rdma.bytesCopied')).toBe(0);
  expect(of(sum, 'fabric.tcp.bytesRead') + of(sum, 'fabric.tcp.bytesWritten')).toBe(0);
}

test(
  'over RDMA: every file is the same from the other node, and what was remote went one-sided',
  async () => {
    const nsds = [{ name: `nsd-${guest}`, path: ownNamespaces(2)[0]!, failureGroup: guest }];
    const result = await runMainJob('rdma', { nsds, fabric });
    if (result !== null) expectOneSided(result);
  },
  DEADLINE_MS,
);

test(
  'the same with an NSD that node 2 reaches over NVMe-oF RDMA, and node 1 through node 2',
  async () => {
    const subsystem = 'nqn.2026-01.org.holdfast:main-job';
    const host = `${subsystem}-host`;
    const holdfast = (...args: string[]): Promise<string> =>
      tool(process.execPath, ['dist/src/cli/main.js', 'nsd', ...args], STEP_MS);
    if (guest === 1) {
      await holdfast('export', ownNamespaces(2)[1]!, '--subsystem', subsystem, '--host', host, '--address', address);
      publish('exported');
      const result = await runMainJob('fabrics', { nsds: [], fabric });
      expectOneSided(result!);
      await receive('detached', STEP_MS);
      await holdfast('unexport', subsystem);
      return;
    }
    await receive('exported', DEADLINE_MS);
    const attached = await holdfast('attach', subsystem, '--host', host, '--address', peer, '--lease', '60s', '--json');
    const { device } = JSON.parse(attached) as { device: string };
    await runMainJob('fabrics', { nsds: [{ name: 'nsd-far', path: device, failureGroup: 1 }], fabric });
    await holdfast('detach', subsystem);
    publish('detached');
  },
  DEADLINE_MS,
);
