// Figures of this package as ratios to perftest (ib_send_lat, ib_read_bw, …) on the same machine, in the same run: both between two processes
// here, taking turns, the best of several rounds. Prints a table and `N passed, N failed` against the goals. Needs an RDMA device and perftest.
//   node bench/bench.mjs [--rounds 3] [--quick] [--only read]
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { allocateMemory, Device, EventChannel, listDevices } from '../dist/index.js';

const args = process.argv.slice(2);
const quick = args.includes('--quick');
const rounds = Number(args[args.indexOf('--rounds') + 1] && args.includes('--rounds') ? args[args.indexOf('--rounds') + 1] : 3);
const only = args.includes('--only') ? args[args.indexOf('--only') + 1] : '';
const deviceName = process.env.HOLDFAST_HW_RDMA ?? listDevices()[0].name;
const host = process.env.HOLDFAST_HW_ADDRESS ?? '127.0.0.1';
const KIB = 1024;

/** What is compared: our mode and sizes, perftest's program, the goal. Latency ratios are at most, rates at least. */
const CASES = [
  { name: '64 B ping-pong, event-driven', mode: 'events', bytes: 64, count: 2000, tool: ['ib_send_lat', '-e'], atMost: 3.0 },
  { name: '64 B ping-pong, busy polling', mode: 'polling', bytes: 64, count: 2000, tool: ['ib_send_lat'], atMost: 2.0 },
  { name: 'RDMA read, 1 MiB, 16 deep', mode: 'read', bytes: 1024 * KIB, count: 256, depth: 16, tool: ['ib_read_bw', '-t', '16'], atLeast: 0.8 },
  { name: 'RDMA read, 64 KiB, 16 deep', mode: 'read', bytes: 64 * KIB, count: 2048, depth: 16, tool: ['ib_read_bw', '-t', '16'], atLeast: 0.8 },
  { name: 'RDMA write, 1 MiB, 16 deep', mode: 'write', bytes: 1024 * KIB, count: 256, depth: 16, tool: ['ib_write_bw', '-t', '16'], atLeast: 0.8 },
  { name: 'RDMA write, 64 KiB, 16 deep', mode: 'write', bytes: 64 * KIB, count: 2048, depth: 16, tool: ['ib_write_bw', '-t', '16'], atLeast: 0.8 },
  { name: '64 B messages, 64 deep', mode: 'send', bytes: 64, count: 20_000, depth: 64, tool: ['ib_send_bw', '-t', '64'], atLeast: 0.5 },
];

const RECEIVES = 256;

class End {
  constructor(mode, bytes) {
    this.mode = mode;
    this.bytes = bytes;
    this.device = Device.open(deviceName);
    this.domain = this.device.createProtectionDomain();
    this.channel = new EventChannel();
    this.region = this.domain.registerMemory(allocateMemory(Math.max(bytes * 16, RECEIVES * 64)), {
      localWrite: true,
      remoteRead: true,
      remoteWrite: true,
    });
    this.messages = this.domain.registerMemory(allocateMemory(RECEIVES * 64), { localWrite: true });
    this.onBatch = () => {};
    this.queue = this.device.createCompletionQueue({
      depth: 1024,
      onCompletions: mode === 'events' ? (batch) => this.onBatch(batch) : null,
    });
  }
  pair(id) {
    const pair = id.createQueuePair({
      protectionDomain: this.domain,
      sendCompletions: this.queue,
      maxSend: 128,
      maxReceive: RECEIVES,
      maxInlineBytes: 64,
    });
    this.receives(pair, RECEIVES);
    return pair;
  }
  receives(pair, count) {
    for (let i = 0; i < count; i++) pair.receive(this.messages.segment(i * 64, 64), 1);
    pair.post();
  }
  /** Answers each message until the peer goes. */
  echo(pair, ours) {
    const segment = this.region.segment(0, this.bytes);
    const options = { signalled: false, inline: true };
    let taken = 0;
    const onBatch = (batch) => {
      if (batch.errorCount > 0) {
        // The server's end, when its peer goes.
        if (ours === undefined) return;
        throw new Error(`a request failed: ${batch.at(0).status}`);
      }
      for (let i = 0; i < batch.count; i++) {
        pair.send(segment, options);
        ours?.();
      }
      taken += batch.count;
      pair.post();
      if (taken >= RECEIVES / 2) {
        this.receives(pair, taken);
        taken = 0;
      }
    };
    this.onBatch = onBatch;
    return onBatch;
  }
}

async function serve(mode, bytes, port) {
  const end = new End(mode, bytes);
  const listener = end.channel.createId();
  listener.setReuseAddress(true);
  listener.bind(host, port);
  listener.onEvent = (event) => {
    if (event.type !== 'connectRequest') return;
    const { id } = event.request;
    const pair = end.pair(id);
    const location = new DataView(new ArrayBuffer(12));
    location.setFloat64(0, end.region.address, true);
    location.setUint32(8, end.region.remoteKey, true);
    let gone = false;
    id.onEvent = ({ type }) => {
      if (type === 'disconnected') gone = true;
      if (gone) process.exit(0);
    };
    const ready = id.accept({ queuePair: pair, privateData: new Uint8Array(location.buffer) });
    if (mode === 'events') end.echo(pair);
    if (mode === 'polling') {
      const onBatch = end.echo(pair);
      void ready.then(() => {
        const turn = () => {
          // Gone when nothing comes for so long: the event loop then has its turn.
          for (;;) {
            const batch = end.queue.poll(500_000);
            if (batch.count === 0 || batch.errorCount > 0) break;
            onBatch(batch);
          }
          setImmediate(turn);
        };
        turn();
      });
    }
    if (mode === 'send') {
      void ready.then(() => {
        let taken = 0;
        const turn = () => {
          for (;;) {
            const batch = end.queue.poll(500_000);
            if (batch.count === 0 || batch.errorCount > 0) break;
            taken += batch.count;
            if (taken >= 64) {
              end.receives(pair, taken);
              taken = 0;
            }
          }
          setImmediate(turn);
        };
        turn();
      });
    }
  };
  listener.listen();
  console.log('listening');
}

/** Microseconds one way, or MB/s, or messages/s. */
async function measure({ mode, bytes, count, depth }, port) {
  const end = new End(mode, bytes);
  const id = end.channel.createId();
  await id.resolveAddress(host, port);
  await id.resolveRoute();
  const pair = end.pair(id);
  const { privateData } = await id.connect({ queuePair: pair });
  const location = new DataView(privateData.buffer, privateData.byteOffset);
  const remote = { address: location.getFloat64(0, true), key: location.getUint32(8, true) };
  const total = quick ? Math.ceil(count / 8) : count;
  // A first part is not counted: the compiler of JavaScript is at work then.
  const warming = mode === 'read' || mode === 'write' ? Math.ceil(total / 8) : total;
  let result;
  if (mode === 'events' || mode === 'polling') {
    const times = new Float64Array(warming + total);
    let done = 0;
    let started = performance.now();
    const took = () => {
      const now = performance.now();
      if (done < times.length) times[done++] = now - started;
      started = now;
    };
    const onBatch = end.echo(pair, took);
    pair.send(end.region.segment(0, bytes), { signalled: false, inline: true });
    pair.post();
    if (mode === 'polling') while (done < times.length) onBatch(end.queue.poll(5_000_000));
    else
      await new Promise((resolve) => {
        end.onBatch = (batch) => {
          onBatch(batch);
          if (done >= times.length) resolve();
        };
      });
    result = (times.subarray(warming).sort()[Math.floor(total / 2)] * 1000) / 2;
  } else {
    // Signalled in quarters of what is outstanding: fewer completions, and the queue never runs dry.
    const every = Math.max(1, depth / 4);
    const segments = Array.from({ length: 16 }, (_, i) => end.region.segment(i * bytes, bytes));
    const remotes = segments.map(({ offsetBytes }) => ({ address: remote.address + offsetBytes, key: remote.key }));
    const quiet = { signalled: false, inline: mode === 'send' };
    const signalled = { signalled: true, inline: mode === 'send' };
    let posted = 0;
    let done = 0;
    const until = (goal) => {
      while (done < goal) {
        while (posted - done + every <= depth) {
          for (let i = 0; i < every; i++) {
            const options = i === every - 1 ? signalled : quiet;
            if (mode === 'read') pair.read(segments[posted % 16], remotes[posted % 16], options);
            else if (mode === 'write') pair.write(segments[posted % 16], remotes[posted % 16], options);
            else pair.send(segments[posted % 16], options);
            posted++;
          }
          pair.post();
        }
        const batch = end.queue.poll(5_000_000);
        if (batch.errorCount > 0) throw new Error(`a request failed: ${batch.at(0).status}`);
        done += batch.count * every;
      }
    };
    until(warming);
    const before = done;
    const started = performance.now();
    until(before + total);
    const seconds = (performance.now() - started) / 1000;
    result = mode === 'send' ? (done - before) / seconds : ((done - before) * bytes) / 1e6 / seconds;
  }
  id.close();
  end.channel.close();
  end.device.close();
  return result;
}

function run(command, commandArgs, onLine) {
  const child = spawn(command, commandArgs, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk) => {
      output += chunk;
      onLine?.(output);
    });
  return { child, ended: new Promise((resolve) => child.on('close', () => resolve(output))) };
}

async function ours(test, port) {
  const server = await new Promise((resolve, reject) => {
    const started = run(process.execPath, [fileURLToPath(import.meta.url), 'serve', test.mode, String(test.bytes), String(port)], (output) => {
      if (output.includes('listening')) resolve(started);
    });
    void started.ended.then((output) => reject(new Error(output)));
  });
  const result = await measure(test, port);
  await server.ended;
  return result;
}

/** Its last line of figures. Latency: typical; bandwidth: average, and the message rate. */
async function tool(test, port) {
  const count = quick ? Math.ceil(test.count / 8) : test.count;
  const common = [...test.tool.slice(1), '-d', deviceName, '-s', String(test.bytes), '-n', String(count), '-p', String(port), '-F', '-R'];
  const server = run(test.tool[0], common, undefined);
  let output = '';
  for (let attempt = 0; attempt < 20; attempt++) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    output = await run(test.tool[0], [...common, host]).ended;
    if (/^\s*\d+\s+\d+\s/m.test(output)) break;
  }
  await server.ended;
  const figures = [...output.matchAll(/^\s*\d+\s+\d+\s+(.*)$/gm)].at(-1)?.[1]?.trim().split(/\s+/).map(Number);
  if (figures === undefined) throw new Error(`${test.tool[0]} gave no figures: ${output}`);
  // t_min t_max t_typical … | peak average rate: MiB/s, and millions of messages.
  const figure = test.tool[0] === 'ib_send_lat' ? figures[2] : test.mode === 'send' ? figures[2] * 1e6 : figures[1] * 1.048576;
  if (!(figure > 0)) throw new Error(`${test.tool[0]} gave no figures: ${output}`);
  return figure;
}

// A shared machine disturbs in one direction only: the best run of each side is compared, all are shown.
const best = (test, values) => (test.atMost === undefined ? Math.max(...values) : Math.min(...values));

async function main() {
  let passed = 0;
  let failed = 0;
  let port = 18_700;
  for (const test of CASES.filter(({ mode }) => mode.startsWith(only))) {
    const theirs = [];
    const own = [];
    for (let round = 0; round < rounds; round++) {
      theirs.push(await tool(test, port++));
      own.push(await ours(test, port++));
    }
    const ratio = best(test, own) / best(test, theirs);
    const good = test.atMost === undefined ? ratio >= test.atLeast : ratio <= test.atMost;
    if (good) passed++;
    else failed++;
    const unit = test.mode === 'send' ? 'messages/s' : test.atMost === undefined ? 'MB/s' : 'µs';
    const digits = test.mode === 'send' ? 0 : 1;
    console.log(
      `${good ? 'ok  ' : 'FAIL'} ${test.name}: ${best(test, own).toFixed(digits)} ${unit}, ${test.tool[0]} ${best(test, theirs).toFixed(digits)}: ratio ${ratio.toFixed(2)} ` +
        `(goal ${test.atMost === undefined ? 'at least' : 'at most'} ${test.atMost ?? test.atLeast}; runs ${own.map((value) => value.toFixed(digits)).join(' ')} | ${theirs.map((value) => value.toFixed(digits)).join(' ')})`,
    );
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

if (args[0] === 'serve') await serve(args[1], Number(args[2]), Number(args[3]));
else await main();
