/**
 * Which token server serves an object (T8): rendezvous hashing of the inode's segment, so that an inode's status and data
 * tokens share a server (one message asks for both), and a change of the list of servers moves only what it must.
 *
 * Pure; every node computes the same answer from the same list. A list is identified by its servers' incarnations too: a
 * server that returned as a new incarnation has forgotten everything.
 */
import type { Incarnation, NodeId } from '../common/ids.js';
import { INODES_PER_SEGMENT, isBySegment, type TokenClass, type TokenObject } from './token.js';

export interface ServerIdentity {
  readonly nodeId: NodeId;
  readonly incarnation: Incarnation;
}

export const segmentOf = (tokenClass: TokenClass, object: TokenObject): number =>
  isBySegment(tokenClass) ? object : Math.floor(object / INODES_PER_SEGMENT);

/** splitmix32's finaliser: every bit of the input moves half the bits of the output. */
function mix(value: number): number {
  let z = value >>> 0;
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return (z ^ (z >>> 16)) >>> 0;
}

/** The highest hash wins; equal hashes (one in 2^32) go to the lower node. Undefined when the list is empty. */
export function serverOf<Server extends ServerIdentity>(
  servers: readonly Server[],
  tokenClass: TokenClass,
  object: TokenObject,
): Server | undefined {
  const segment = segmentOf(tokenClass, object);
  const seed = mix((segment % 2 ** 32) ^ mix(Math.floor(segment / 2 ** 32) + 0x9e3779b9));
  let best: Server | undefined;
  let bestHash = -1;
  for (const server of servers) {
    const hash = mix(seed ^ Math.imul(server.nodeId, 0x9e3779b1));
    if (hash > bestHash || (hash === bestHash && server.nodeId < best!.nodeId)) {
      best = server;
      bestHash = hash;
    }
  }
  return best;
}

export const sameServer = (a: ServerIdentity | undefined, b: ServerIdentity | undefined): boolean =>
  a === undefined || b === undefined ? a === b : a.nodeId === b.nodeId && a.incarnation === b.incarnation;

export const sameList = (a: readonly ServerIdentity[], b: readonly ServerIdentity[]): boolean =>
  a.length === b.length && a.every((server, i) => sameServer(server, b[i]));

/** Names a list of servers in claims (FNV-1a over ids and incarnations, ascending by node). */
export function listFingerprint(servers: readonly ServerIdentity[]): number {
  let hash = 0x811c9dc5;
  const add = (value: number): void => {
    for (let i = 0; i < 4; i++) hash = Math.imul(hash ^ ((value >>> (8 * i)) & 0xff), 0x01000193);
  };
  for (const server of servers) {
    add(server.nodeId);
    add(server.incarnation % 2 ** 32);
    add(Math.floor(server.incarnation / 2 ** 32));
  }
  return hash >>> 0;
}
