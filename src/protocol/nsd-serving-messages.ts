import { type NodeId, nodeId } from '../common/ids.js';
import { ByteReader, ByteWriter } from './codec.js';
import { uuidFromBytes, uuidToBytes } from './nsd-messages.js';

/** nsdRelease and nsdShutOut: the move that they are part of. Same bytes, both answered with an empty body. Fault model: any bytes may arrive. */
export interface NsdMove {
  readonly nsd: string;
  /** Whom it is moved from. */
  readonly server: NodeId;
  /** Of the record that has the move. */
  readonly generation: number;
}

export function encodeNsdMove({ nsd, server, generation }: NsdMove): Uint8Array {
  return new ByteWriter().raw(uuidToBytes(nsd)).u16(server).u64(generation).finish();
}
export function decodeNsdMove(body: Uint8Array): NsdMove {
  const reader = new ByteReader(body, 'nsd move');
  const move = { nsd: uuidFromBytes(reader.raw(16)), server: nodeId(reader.u16()), generation: reader.u64() };
  reader.end();
  return move;
}
