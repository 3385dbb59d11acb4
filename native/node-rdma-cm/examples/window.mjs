// A server opens a range of its memory for one write by a client, then closes it: node window.mjs serve HOST PORT, node window.mjs write HOST PORT TEXT.
import { allocateMemory, Device, EventChannel, rdmaSupport } from 'node-rdma-cm';

const [role, host, port, text = 'hello'] = process.argv.slice(2);
const support = rdmaSupport();
if (!support.usable) {
  console.error(support.error.message);
  process.exit(1);
}
const channel = new EventChannel();

/** Completions by the id of their request, as promises. */
function completionsOf(device) {
  const waiting = new Map();
  const queue = device.createCompletionQueue({
    depth: 64,
    onCompletions: (batch) => {
      for (const completion of batch) {
        const { resolve, reject } = waiting.get(completion.id) ?? {};
        if (completion.status === 'success') resolve?.(completion);
        else reject?.(new Error(`${completion.operation}: ${completion.status}`));
      }
    },
  });
  return { queue, completion: (id) => new Promise((resolve, reject) => waiting.set(id, { resolve, reject })) };
}

async function serve(request) {
  const { id } = request;
  const device = Device.open(id.deviceName);
  try {
    const domain = device.createProtectionDomain();
    // No remote access at all to the region itself.
    const region = domain.registerMemory(allocateMemory(8192), { localWrite: true, windowBind: true });
    const { queue, completion } = completionsOf(device);
    const pair = id.createQueuePair({ protectionDomain: domain, sendCompletions: queue, maxSend: 16, maxReceive: 16 });
    const done = completion(1);
    pair.receive(region.segment(4096, 64), 1);
    pair.post();
    await id.accept({ queuePair: pair });

    const window = domain.allocateWindow();
    const key = pair.bindWindow(window, region, 0, 1024, { remoteWrite: true }, { signalled: false });
    const offer = new DataView(region.buffer, 5120, 16);
    offer.setFloat64(0, region.address, true);
    offer.setUint32(8, key, true);
    pair.send(region.segment(5120, 16), { id: 2 });
    pair.post();
    const { lengthBytes, immediate } = await done;

    // From here on nobody writes there any more.
    const closed = completion(3);
    pair.invalidateLocal(window, { id: 3 });
    pair.post();
    await closed;
    console.log(`${immediate} bytes landed: ${Buffer.from(region.buffer, 0, immediate)} (announced in ${lengthBytes})`);
  } finally {
    id.close();
    device.close();
  }
}

async function write() {
  const id = channel.createId();
  await id.resolveAddress(host, Number(port));
  await id.resolveRoute();
  const device = Device.open(id.deviceName);
  const domain = device.createProtectionDomain();
  const region = domain.registerMemory(allocateMemory(8192), { localWrite: true });
  const { queue, completion } = completionsOf(device);
  const pair = id.createQueuePair({ protectionDomain: domain, sendCompletions: queue, maxSend: 16, maxReceive: 16 });
  const offered = completion(1);
  pair.receive(region.segment(4096, 16), 1);
  pair.post();
  await id.connect({ queuePair: pair });
  await offered;
  const offer = new DataView(region.buffer, 4096, 16);
  const bytes = Buffer.from(text);
  new Uint8Array(region.buffer).set(bytes);
  pair.write(region.segment(0, bytes.length), { address: offer.getFloat64(0, true), key: offer.getUint32(8, true) }, { signalled: false });
  const told = completion(2);
  pair.sendWithImmediate(region.segment(0, 1), bytes.length, { id: 2 });
  pair.post();
  await told;
  console.log(`wrote ${bytes.length} bytes`);
  id.close();
  device.close();
}

if (role === 'serve') {
  const listener = channel.createId();
  listener.bind(host, Number(port));
  listener.onEvent = (event) => {
    if (event.type === 'connectRequest') serve(event.request).catch((error) => console.error(error.message));
  };
  listener.listen();
  console.log(`listening on ${host} port ${listener.localAddress.port}`);
} else {
  await write();
}
