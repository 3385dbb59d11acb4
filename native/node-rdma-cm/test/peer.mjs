// The other end of the tests: a process (or another guest) that serves connections until it is told to exit. Messages are JSON, one
// question, one answer. What it accepts with tells where its memory is: address (f64), key (u32), length (u32).
// node peer.mjs HOST PORT [DEVICE]
import { allocateMemory, Device, EventChannel, listDevices } from '../dist/index.js';

const [host, port, deviceName] = process.argv.slice(2);
const MESSAGE_BYTES = 1024;
const RECEIVES = 16;
const SHARED_BYTES = 4 << 20;

const device = Device.open(deviceName ?? listDevices()[0].name);
const domain = device.createProtectionDomain();
const memory = allocateMemory(SHARED_BYTES);
const everything = { localWrite: true, remoteRead: true, remoteWrite: true, remoteAtomic: true, windowBind: true };
let shared = domain.registerMemory(memory, everything);
const channel = new EventChannel();

class Session {
  stalled = false;
  /** Immediate data of writes. */
  noted = [];
  window = domain.allocateWindow();
  waiting = new Map();

  /** @param common Its receives come from a shared queue. */
  constructor(id, common) {
    this.common = common ? domain.createSharedReceiveQueue({ maxReceive: RECEIVES }) : null;
    this.queue = device.createCompletionQueue({ depth: 512, onCompletions: (batch) => this.completed(batch) });
    this.messages = domain.registerMemory(allocateMemory((RECEIVES + 1) * MESSAGE_BYTES), { localWrite: true });
    this.id = id;
    const sharing = common ? { sharedReceiveQueue: this.common } : {};
    this.pair = id.createQueuePair({ protectionDomain: domain, sendCompletions: this.queue, ...sharing });
    for (let slot = 0; slot < RECEIVES; slot++) this.receive(slot);
    this.post();
    id.onEvent = (event) => {
      if (event.type === 'disconnected') this.close();
    };
  }
  close() {
    this.id.close();
    this.window.close();
    this.queue.close();
    this.common?.close();
    this.messages.close();
  }
  post() {
    this.common?.post();
    this.pair.post();
  }
  receive(slot) {
    (this.common ?? this.pair).receive(this.messages.segment(slot * MESSAGE_BYTES, MESSAGE_BYTES), slot);
  }
  completed(batch) {
    for (const { id, operation, status, lengthBytes, invalidatedKey, immediate } of batch) {
      if (operation === 'receiveWriteWithImmediate') {
        this.noted.push(immediate);
        this.receive(id);
        continue;
      }
      if (operation !== 'receive') {
        this.waiting.get(id)?.(status);
        continue;
      }
      if (status !== 'success') continue;
      const text = Buffer.from(this.messages.buffer, id * MESSAGE_BYTES, lengthBytes).toString();
      if (!this.stalled) this.receive(id);
      void this.answer(JSON.parse(text), invalidatedKey, immediate);
    }
    if (!this.pair.closed && this.pair.state !== 'error') this.post();
  }
  done(queueRequest) {
    return new Promise((resolve) => {
      const id = this.waiting.size + 1000;
      this.waiting.set(id, resolve);
      queueRequest(id);
      this.pair.post();
    });
  }
  async answer(question, invalidatedKey, immediate) {
    const reply = (object) => {
      const bytes = Buffer.from(JSON.stringify(object));
      new Uint8Array(this.messages.buffer).set(bytes, RECEIVES * MESSAGE_BYTES);
      this.pair.send(this.messages.segment(RECEIVES * MESSAGE_BYTES, bytes.length), { id: 1 });
      this.pair.post();
    };
    switch (question.op) {
      case 'echo':
        return reply({ text: question.text, invalidatedKey, immediate });
      case 'noted':
        return reply({ immediates: this.noted });
      case 'bind': {
        const { offset, length, access } = question;
        let key;
        const status = await this.done((id) => {
          key = this.pair.bindWindow(this.window, shared, offset, length, access, { id });
        });
        return reply({ status, key, address: shared.address + offset });
      }
      case 'invalidate':
        return reply({ status: await this.done((id) => this.pair.invalidateLocal(this.window, { id })) });
      case 'fill':
        new Uint8Array(memory).fill(question.byte, question.offset, question.offset + question.length);
        return reply({});
      case 'look':
        return reply({ text: Buffer.from(memory, question.offset, question.length).toString('latin1') });
      case 'stall':
        this.stalled = true;
        return reply({ receives: this.pair.receivesOutstanding });
      case 'deregister':
        // Each of its transfers in flight fails; nothing lands later.
        reply({});
        setTimeout(() => {
          shared.close();
          new Uint8Array(memory).fill(0);
          shared = domain.registerMemory(memory, everything);
        }, question.afterMs);
        return;
      case 'location':
        return reply({ address: shared.address, key: shared.remoteKey });
      case 'die':
        reply({});
        return setTimeout(() => process.kill(process.pid, 'SIGKILL'), question.afterMs);
      case 'error':
        return this.pair.moveToError();
      case 'exit':
        reply({});
        setTimeout(() => process.exit(0), 200);
        return;
      default:
        return reply({ error: 'unknown' });
    }
  }
}

const listener = channel.createId();
listener.setReuseAddress(true);
listener.bind(host, Number(port));
listener.onEvent = (event) => {
  if (event.type !== 'connectRequest') return;
  const { id, privateData } = event.request;
  if (privateData[0] === 0xff) {
    id.reject(Buffer.from('not you'));
    id.close();
    return;
  }
  const session = new Session(id, privateData[0] === 1);
  const location = new DataView(new ArrayBuffer(16));
  location.setFloat64(0, shared.address, true);
  location.setUint32(8, shared.remoteKey, true);
  location.setUint32(12, SHARED_BYTES, true);
  id.accept({ queuePair: session.pair, privateData: new Uint8Array(location.buffer) }).catch(() => session.close());
};
listener.listen();
console.log(`listening on ${host} port ${port}`);
