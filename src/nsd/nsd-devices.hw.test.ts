/** The same suite over the four kinds of namespaces: this machine's own, and attached by nvme-loop, RDMA and TCP. */
import { describe, expect, it } from 'vitest';
import { attach, LoopDevice, TRANSPORTS } from '../../hw-test/nvme-targets.js';
import { nsdDeviceSuite } from './nsd-device.suite.js';

const namespaces = (process.env['HOLDFAST_HW_NVME'] ?? '').split(',').filter((name) => name !== '');
const DEVICE_BYTES = 48 << 20;

describe('the devices that there are', () => {
  it('are some', () => {
    expect(namespaces.length + TRANSPORTS.length).toBeGreaterThan(2);
  });
});

for (const path of namespaces)
  nsdDeviceSuite(`the namespace ${path}`, () => ({ path, access: 'passthrough', close: () => undefined }));

for (const transport of TRANSPORTS)
  nsdDeviceSuite(`a namespace attached over ${transport}`, async () => {
    const device = new LoopDevice(DEVICE_BYTES, transport === 'rdma' ? 4096 : 512);
    const attached = await attach(transport, device.path);
    const close = async (): Promise<void> => {
      await attached.detach();
      device.close();
    };
    return { path: attached.namespace.blockPath, access: 'passthrough', close };
  });
