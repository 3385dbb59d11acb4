import { type NodeId, nodeId } from '../common/ids.js';
import { ByteReader, ByteWriter } from './codec.js';
import { uuidFromBytes, uuidToBytes } from './nsd-messages.js';

/** fsSettle: a node is asked to bring its freed space to an end (see fs/space-peers.ts). Fault model: any bytes may arrive. */
export interface SettleRequest {
  readonly fsUuid: string;
  readonly what: 0 | 1 | 2 | 3 | 4;
  /** Whoever receives it asks this node in its turn, if it has a link with it: nodes that are never dialled. Null: it is meant itself. */
  readonly relayTo: NodeId | null;
  readonly timeoutMs: number;
}
export interface SettleReply {
  /** Has the file system mounted; else there was nothing to do. */
  readonly mounted: boolean;
  readonly freedSubBlocks: number;
  readonly unusedNumbers: number;
}

export function encodeSettle({ fsUuid, what, relayTo, timeoutMs }: SettleRequest): Uint8Array {
  return new ByteWriter()
    .raw(uuidToBytes(fsUuid))
    .u8(what)
    .u16(relayTo ?? 0)
    .u32(timeoutMs)
    .finish();
}
export function decodeSettle(body: Uint8Array): SettleRequest {
  const r = new ByteReader(body, 'fsSettle body');
  const fsUuid = uuidFromBytes(r.raw(16));
  const what = r.u8();
  if (what !== 0 && what !== 1 && what !== 2 && what !== 3 && what !== 4) throw r.bad(`what ${what}`);
  const relay = r.u16();
  const timeoutMs = r.u32();
  r.end();
  return { fsUuid, what, relayTo: relay === 0 ? null : nodeId(relay), timeoutMs };
}

export function encodeSettleReply({ mounted, freedSubBlocks, unusedNumbers }: SettleReply): Uint8Array {
  return new ByteWriter()
    .u8(mounted ? 1 : 0)
    .u64(freedSubBlocks)
    .u32(unusedNumbers)
    .finish();
}
export function decodeSettleReply(body: Uint8Array): SettleReply {
  const r = new ByteReader(body, 'fsSettle reply');
  const mounted = r.u8();
  if (mounted > 1) throw r.bad(`mounted ${mounted}`);
  const reply = { mounted: mounted === 1, freedSubBlocks: r.u64(), unusedNumbers: r.u32() };
  r.end();
  return reply;
}
