/**
 * The token server in one process: grants per second of the machine alone and through the codec, the client's fast path,
 * and memory per range. No network; run with --expose-gc.
 */
import { range, WHOLE } from '../src/common/byte-range.js';
import { epoch, incarnation, nodeId } from '../src/common/ids.js';
import { SECTOR_BYTES } from '../src/common/units.js';
import { HolderTable, objectKey } from '../src/token-manager/holder-table.js';
import { listFingerprint } from '../src/token-manager/placement.js';
import { TokenClass, TokenMode } from '../src/token-manager/token.js';
import { TOKEN_CLIENT_DEFAULTS } from '../src/token-manager/token-client-events.js';
import { TokenClientMachine } from '../src/token-manager/token-client-machine.js';
import {
  decodeToServer,
  encodeToClient,
  encodeToServer,
  type RequestItem,
  type ToServerItem,
} from '../src/token-manager/token-messages.js';
import { type ServerEffect, TOKEN_SERVER_DEFAULTS } from '../src/token-manager/token-server-events.js';
import { TokenServerMachine } from '../src/token-manager/token-server-machine.js';

const ignore = (): void => undefined;
const identity = (n: number) => ({ nodeId: nodeId(n), incarnation: incarnation(1) });
const SERVER = identity(1);
const CLIENTS = [identity(2), identity(3)];

function settledServer(): TokenServerMachine {
  const server = new TokenServerMachine({
    self: SERVER,
    settings: { ...TOKEN_SERVER_DEFAULTS, rangesMax: 10_000_000 },
    fired: ignore,
  });
  const view = { epoch: epoch(1), servers: [SERVER], nodes: CLIENTS };
  server.step({ type: 'view', view }, 0);
  for (const from of CLIENTS) {
    const end = {
      kind: 'claimEnd',
      epoch: epoch(1),
      askedEpoch: epoch(1),
      listFingerprint: listFingerprint([SERVER]),
    } as const;
    server.step({ type: 'message', from, message: message(0, [end]) }, 0);
  }
  return server;
}

const message = (seenSeq: number, items: readonly ToServerItem[]) => ({
  epoch: epoch(1),
  toIncarnation: SERVER.incarnation,
  seenSeq,
  items,
});

const request = (requestId: number, object: number, mode: TokenMode, at: number): RequestItem => {
  const required = range(at, at + SECTOR_BYTES);
  return {
    kind: 'request',
    requestId,
    class: TokenClass.data,
    object,
    parts: [{ mode, required, desired: WHOLE }],
    nowait: false,
    prompt: false,
    deadlineMs: 30_000,
  };
};

/** Per second of this process's CPU time: others on the machine don't count. */
function report(name: string, count: number, run: () => void): void {
  const before = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(before);
  const seconds = (user + system) / 1e6;
  console.log(
    `${name.padEnd(58)} ${Math.round(count / seconds)
      .toLocaleString('en')
      .padStart(12)} per CPU second`,
  );
}

function firstUse(count: number, codec: boolean): void {
  const server = settledServer();
  report(`server: first use of a file${codec ? ', through the codec' : ''}`, count, () => {
    for (let i = 0; i < count; i++) {
      const asked = message(i, [request(i + 1, i + 10, TokenMode.exclusive, 0)]);
      const received = codec ? decodeToServer(encodeToServer(asked)[0]!) : asked;
      const effects = server.step({ type: 'message', from: CLIENTS[0]!, message: received }, i);
      if (codec) encodeAll(effects);
    }
  });
}

const encodeAll = (effects: readonly ServerEffect[]): void => {
  for (const effect of effects) if (effect.type === 'send') encodeToClient(effect.message);
};

/** Every grant calls the other node back: request, revoke, answer, grant. */
function pingPong(count: number, codec: boolean): void {
  const server = settledServer();
  let seq = 0;
  const deliver = (from: (typeof CLIENTS)[number], item: ToServerItem): ServerEffect[] => {
    const sent = message(seq, [item]);
    const effects = server.step(
      { type: 'message', from, message: codec ? decodeToServer(encodeToServer(sent)[0]!) : sent },
      0,
    );
    if (codec) encodeAll(effects);
    return effects;
  };
  deliver(CLIENTS[1]!, request(1, 5, TokenMode.exclusive, 0));
  seq++;
  report(`server: conflicting grants${codec ? ', through the codec' : ''}`, count, () => {
    for (let i = 0; i < count; i++) {
      const [asks, holds] = i % 2 === 0 ? [CLIENTS[0]!, CLIENTS[1]!] : [CLIENTS[1]!, CLIENTS[0]!];
      const [effect] = deliver(asks, request(i + 2, 5, TokenMode.exclusive, 0));
      const item = effect?.type === 'send' ? effect.message.items[0] : undefined;
      if (item?.kind !== 'revoke') throw new Error('no revoke');
      const statement = { class: TokenClass.data, object: 5, asOfSeq: seq, mode: TokenMode.none, ranges: [WHOLE] };
      deliver(holds, { kind: 'answer', revokeId: item.revokeId, ...statement });
      seq++;
    }
  });
}

function fastPath(count: number): void {
  const client = new TokenClientMachine({
    self: CLIENTS[0]!,
    settings: TOKEN_CLIENT_DEFAULTS,
    fired: ignore,
    working: () => null,
    writesConcurrently: () => true,
    onDrained: ignore,
  });
  client.step({ type: 'view', epoch: epoch(1), servers: [SERVER] }, 0);
  const group = {
    class: TokenClass.data,
    object: 7,
    parts: [{ mode: TokenMode.exclusive, required: WHOLE, desired: WHOLE }],
  };
  client.step({ type: 'acquire', ops: [{ opId: 1, groups: [group], deadlineAtMs: 1e9, nowait: false }] }, 0);
  const grant = {
    kind: 'grant',
    requestId: 1,
    seq: 1,
    class: TokenClass.data,
    object: 7,
    parts: [{ mode: TokenMode.exclusive, range: WHOLE }],
  } as const;
  const told = { epoch: epoch(1), toIncarnation: CLIENTS[0]!.incarnation, items: [grant] };
  for (const effect of client.step({ type: 'message', from: SERVER, message: told }, 0)) {
    if (effect.type === 'pinned') effect.pins.release();
  }
  const item = { class: TokenClass.data, object: 7, mode: TokenMode.shared, required: range(0, 65536), desired: WHOLE };
  const items = [item];
  report('client: tryPin and release', count, () => {
    for (let i = 0; i < count; i++) client.tryPin(items)!.release();
  });
}

function memory(name: string, ranges: number, fill: (table: HolderTable) => void): void {
  const gc = (globalThis as { gc?: () => void }).gc;
  // The first collects, the second waits for what the first left to its helpers.
  gc?.();
  gc?.();
  const used = (): number => {
    const m = process.memoryUsage();
    return m.heapUsed + m.arrayBuffers;
  };
  const before = used();
  const table = new HolderTable();
  const started = process.hrtime.bigint();
  fill(table);
  const seconds = Number(process.hrtime.bigint() - started) / 1e9;
  gc?.();
  const bytes = used() - before;
  if (table.size !== ranges) throw new Error(`${table.size} ranges, ${ranges} expected`);
  const perRange = (bytes / ranges).toFixed(0);
  console.log(
    `${name.padEnd(58)} ${(bytes / 1e6).toFixed(1).padStart(8)} MB, ${perRange} bytes each, ${seconds.toFixed(2)} s`,
  );
}

const MILLION = 1_000_000;
for (const codec of [false, true]) {
  firstUse(300_000, codec);
  pingPong(200_000, codec);
}
fastPath(5 * MILLION);
memory('table: 1,000,000 files with one holder', MILLION, (table) => {
  for (let i = 0; i < MILLION; i++)
    table.assign(objectKey(TokenClass.data, i), 1, 0, WHOLE.end, TokenMode.exclusive, i, 0);
});
memory('table: 500,000 files with two readers', MILLION, (table) => {
  for (let i = 0; i < MILLION; i++) {
    table.assign(objectKey(TokenClass.data, i >> 1), i & 1, 0, WHOLE.end, TokenMode.shared, i, 0);
  }
});
memory('table: one file in 1,000,000 pieces of 16 writers', MILLION, (table) => {
  for (let i = 0; i < MILLION; i++) {
    // In a scattered order (7919 is prime), neighbours by different writers.
    const at = (i * 7919) % MILLION;
    const start = at * SECTOR_BYTES;
    table.assign(objectKey(TokenClass.data, 9), at % 16, start, start + SECTOR_BYTES, TokenMode.exclusive, i, 0);
  }
});
