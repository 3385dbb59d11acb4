/** Guest 1 serves a namespace until guest 2 has its power cut: what guest 2 then sees, within its deadlines. */
import { closeSync, openSync, readSync } from 'node:fs';
import { expect, test } from 'vitest';
import { hardware } from './guest/environment.js';
import { cutPower, EXCHANGE_DEADLINE_MS, publish, receive } from './guest/exchange.js';
import { connectNamespace, exportNamespace, failFast } from './guest/nvmet.js';
import { background } from './guest/tools.js';

const environment = hardware();
const target = { nqn: 'holdfast-power-cut', transport: 'rdma', port: 4420, portId: 1 } as const;

if (environment.guest === 1) {
  test('serves until the power is cut', async () => {
    const device = environment.nvme[0];
    if (device === undefined) throw new Error('no namespace may be written to here: name some with --nvme');
    exportNamespace({ ...target, device, address: environment.address });
    publish('serving');
    await receive('never', 2 * EXCHANGE_DEADLINE_MS);
  });
} else {
  test('a namespace of a guest that lost its power fails within its deadline', async () => {
    await receive('serving');
    const timeouts = ['--keep-alive-tmo=2', '--ctrl-loss-tmo=4', '--reconnect-delay=1'];
    const remote = await connectNamespace({ ...target, address: environment.peer }, timeouts);
    failFast(target.nqn, 2);
    const descriptor = openSync(remote, 'rs');
    expect(readSync(descriptor, Buffer.alloc(4096), 0, 4096, 0)).toBe(4096);

    await cutPower(1);
    // Ends by itself: the missed controller is noticed by its keep-alive, and waited for no longer than asked.
    const read = background('dd', [`if=${remote}`, 'of=/dev/null', 'iflag=direct', 'bs=4096', 'count=1', 'skip=16']);
    expect(await read.ended()).toBeGreaterThan(0);
    closeSync(descriptor);
  });
}
