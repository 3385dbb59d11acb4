import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { FsError, type Reason } from '../common/errors.js';
import { incarnation, nodeId } from '../common/ids.js';
import type { NodeIdentity } from './fabric.js';
import { HANDSHAKE_RECORD_BYTES } from './link.js';

/**
 * The handshake: who are you, and do you hold the cluster's key. A pure machine: records in, records and an outcome out.
 *
 *     dialer                                   acceptor
 *     hello(D) ------------------------------>
 *              <------------------------------ hello(A), proof(A) = HMAC(key, "acceptor" | hello(D) | hello(A))
 *     proof(D) = HMAC(key, "dialer" | ...) -->
 *              <------------------------------ welcome = HMAC(session key, "welcome")
 *
 * Both proofs cover both hellos, and these carry fresh nonces of both sides: nothing recorded earlier fits, and a proof
 * can't be turned round, since it names its role. They also cover what was said while the connection was made (RDMA: the private
 * data of both sides), so that the proof is of this connection. The session key is derived from the same bytes. Instead of any
 * record either side may send `refuse` with a reason, and closes.
 *
 * Record, 128 bytes, little-endian: 0 u32 magic 'HFHS', 4 u16 version, 6 u8 kind, 7 u8 role, then
 *   hello: 8 cluster (16: SHA-256 of its id, cut), 24 u32 node, 28 u32 node wanted (0: whoever), 32 u32 incarnation,
 *          40 nonce (32), 72 instance (8: drawn when the process started, tells two processes with one identity apart)
 *   proof, welcome: 8 HMAC-SHA256 (32)
 *   refuse: 8 u16 Refusal
 * All other bytes are zero.
 *
 * Fault model: the other side may send anything, including what it recorded elsewhere. Version comes first and stays where
 * it is, so that a future version can be told apart instead of looking like noise.
 */
const MAGIC = 0x53484648;
export const HANDSHAKE_VERSION = 1;
const Kind = { hello: 1, proof: 2, welcome: 3, refuse: 4 } as const;
const NONCE_BYTES = 32;
export const INSTANCE_BYTES = 8;

export const Refusal = {
  wrongVersion: 1,
  wrongCluster: 2,
  wrongKey: 3,
  wrongNode: 4,
  fenced: 5,
  simultaneous: 6,
  identityTaken: 7,
  malformed: 8,
  closing: 9,
} as const;
export type Refusal = (typeof Refusal)[keyof typeof Refusal];

const REFUSALS: Record<Refusal, { readonly name: string; readonly reason: Reason; readonly detail: string }> = {
  [Refusal.wrongVersion]: { name: 'wrongVersion', reason: 'wrongVersion', detail: 'protocol versions differ' },
  [Refusal.wrongCluster]: { name: 'wrongCluster', reason: 'wrongCluster', detail: 'belongs to another cluster' },
  [Refusal.wrongKey]: { name: 'wrongKey', reason: 'wrongKey', detail: 'cluster keys differ' },
  [Refusal.wrongNode]: { name: 'wrongNode', reason: 'identityTaken', detail: 'another node answers at this address' },
  [Refusal.fenced]: { name: 'fenced', reason: 'fenced', detail: 'this incarnation has been fenced or replaced' },
  [Refusal.simultaneous]: { name: 'simultaneous', reason: 'busy', detail: "the other side's dial takes precedence" },
  [Refusal.identityTaken]: {
    name: 'identityTaken',
    reason: 'identityTaken',
    detail: 'two processes claim one node id and incarnation',
  },
  [Refusal.malformed]: { name: 'malformed', reason: 'badFrame', detail: 'not a handshake record' },
  [Refusal.closing]: { name: 'closing', reason: 'closed', detail: 'the other side is closing' },
};

export interface HandshakePeer extends NodeIdentity {
  /** Hex; drawn by the peer's process when it started. */
  readonly instance: string;
}

export interface HandshakeConfig {
  readonly role: 'dialer' | 'acceptor';
  readonly self: NodeIdentity;
  readonly clusterId: string;
  readonly clusterKey: Buffer;
  readonly instance: Uint8Array;
  readonly randomBytes: (count: number) => Uint8Array;
  /** Dialer: whom it means to reach. */
  readonly wanted?: number | undefined;
  /** Link.channelBinding and Link.claimed. */
  readonly channelBinding?: Uint8Array | undefined;
  readonly claimed?: NodeIdentity | null | undefined;
  /** Called once the peer has proved that it holds the key. */
  readonly admit: (peer: HandshakePeer) => Refusal | null;
  /** Tests only: speak another version. */
  readonly version?: number | undefined;
}

export type HandshakeStep =
  | { readonly is: 'going'; readonly send: readonly Uint8Array[] }
  | {
      readonly is: 'done';
      readonly send: readonly Uint8Array[];
      readonly peer: HandshakePeer;
      readonly sessionKey: Buffer;
    }
  | {
      readonly is: 'refused';
      readonly send: readonly Uint8Array[];
      readonly refusal: Refusal;
      /** Who refused. */
      readonly by: 'us' | 'them';
      /** Known only if the hello was readable; not proven. */
      readonly claimedNode: number | null;
    };

export const refusalName = (refusal: Refusal): string => REFUSALS[refusal].name;
export function refusalError(refusal: Refusal, by: 'us' | 'them', object: string): FsError {
  const { reason, detail } = REFUSALS[refusal];
  return new FsError(reason, {
    op: 'fabric.handshake',
    object,
    detail: `${detail} (refused by ${by === 'us' ? 'this side' : 'the other side'})`,
  });
}

type State = 'hello' | 'proof' | 'welcome' | 'over';

export class Handshake {
  readonly #config: HandshakeConfig;
  readonly #ownHello: Uint8Array;
  readonly #cluster: Buffer;
  #state: State = 'hello';
  #peerHello: Uint8Array | undefined;
  #peer: HandshakePeer | undefined;

  constructor(config: HandshakeConfig) {
    this.#config = config;
    this.#cluster = createHash('sha256').update(config.clusterId).digest().subarray(0, 16);
    const hello = this.#record(Kind.hello);
    const view = new DataView(hello.buffer);
    hello.set(this.#cluster, 8);
    view.setUint32(24, config.self.nodeId, true);
    view.setUint32(28, config.wanted ?? 0, true);
    view.setUint32(32, config.self.incarnation, true);
    hello.set(config.randomBytes(NONCE_BYTES), 40);
    hello.set(config.instance, 72);
    this.#ownHello = hello;
  }

  /** What to send before anything has arrived. */
  start(): readonly Uint8Array[] {
    return this.#config.role === 'dialer' ? [this.#ownHello] : [];
  }

  onRecord(record: Uint8Array): HandshakeStep {
    if (this.#state === 'over' || record.length !== HANDSHAKE_RECORD_BYTES) return this.#refuse(Refusal.malformed);
    const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
    if (view.getUint32(0, true) !== MAGIC) return this.#refuse(Refusal.malformed);
    const kind = view.getUint8(6);
    if (kind === Kind.refuse) {
      this.#state = 'over';
      const code = view.getUint16(8, true);
      const refusal = (code in REFUSALS ? code : Refusal.malformed) as Refusal;
      return { is: 'refused', send: [], refusal, by: 'them', claimedNode: this.#peer?.nodeId ?? null };
    }
    if (view.getUint16(4, true) !== this.#version) return this.#refuse(Refusal.wrongVersion);
    const peerRole = this.#config.role === 'dialer' ? 2 : 1;
    if (view.getUint8(7) !== peerRole) return this.#refuse(Refusal.malformed);
    if (this.#state === 'hello' && kind === Kind.hello) return this.#onHello(record, view);
    if (this.#state === 'proof' && kind === Kind.proof) return this.#onProof(record);
    if (this.#state === 'welcome' && kind === Kind.welcome) return this.#onWelcome(record);
    return this.#refuse(Refusal.malformed);
  }

  #onHello(record: Uint8Array, view: DataView): HandshakeStep {
    const peerNode = view.getUint32(24, true);
    const wanted = view.getUint32(28, true);
    const self = this.#config.self;
    if (!timingSafeEqual(record.subarray(8, 24), this.#cluster)) return this.#refuse(Refusal.wrongCluster);
    if (peerNode === 0 || peerNode > 0xffff) return this.#refuse(Refusal.malformed);
    this.#peerHello = record.slice();
    this.#peer = {
      nodeId: nodeId(peerNode),
      incarnation: incarnation(view.getUint32(32, true)),
      instance: Buffer.from(record.subarray(72, 72 + INSTANCE_BYTES)).toString('hex'),
    };
    const expected = this.#config.wanted;
    if (peerNode === self.nodeId || (wanted !== 0 && wanted !== self.nodeId)) return this.#refuse(Refusal.wrongNode);
    if (expected !== undefined && peerNode !== expected) return this.#refuse(Refusal.wrongNode);
    const claimed = this.#config.claimed ?? null;
    if (claimed !== null && (claimed.nodeId !== peerNode || claimed.incarnation !== this.#peer.incarnation)) {
      return this.#refuse(Refusal.wrongNode);
    }
    this.#state = 'proof';
    if (this.#config.role === 'dialer') return { is: 'going', send: [] };
    return { is: 'going', send: [this.#ownHello, this.#withMac(Kind.proof, this.#mac('acceptor'))] };
  }

  #onProof(record: Uint8Array): HandshakeStep {
    const peerRole = this.#config.role === 'dialer' ? 'acceptor' : 'dialer';
    if (!timingSafeEqual(record.subarray(8, 40), this.#mac(peerRole))) return this.#refuse(Refusal.wrongKey);
    const refusal = this.#config.admit(this.#peer!);
    if (refusal !== null) return this.#refuse(refusal);
    if (this.#config.role === 'dialer') {
      this.#state = 'welcome';
      return { is: 'going', send: [this.#withMac(Kind.proof, this.#mac('dialer'))] };
    }
    this.#state = 'over';
    const sessionKey = this.#mac('session');
    const send = [this.#withMac(Kind.welcome, createHmac('sha256', sessionKey).update('welcome').digest())];
    return { is: 'done', send, peer: this.#peer!, sessionKey };
  }

  #onWelcome(record: Uint8Array): HandshakeStep {
    const sessionKey = this.#mac('session');
    const expected = createHmac('sha256', sessionKey).update('welcome').digest();
    if (!timingSafeEqual(record.subarray(8, 40), expected)) return this.#refuse(Refusal.wrongKey);
    this.#state = 'over';
    return { is: 'done', send: [], peer: this.#peer!, sessionKey };
  }

  #refuse(refusal: Refusal): HandshakeStep {
    this.#state = 'over';
    const record = this.#record(Kind.refuse);
    new DataView(record.buffer).setUint16(8, refusal, true);
    return { is: 'refused', send: [record], refusal, by: 'us', claimedNode: this.#peer?.nodeId ?? null };
  }

  get #version(): number {
    return this.#config.version ?? HANDSHAKE_VERSION;
  }

  #record(kind: number): Uint8Array {
    const record = new Uint8Array(HANDSHAKE_RECORD_BYTES);
    const view = new DataView(record.buffer);
    view.setUint32(0, MAGIC, true);
    view.setUint16(4, this.#version, true);
    view.setUint8(6, kind);
    view.setUint8(7, this.#config.role === 'dialer' ? 1 : 2);
    return record;
  }

  #withMac(kind: number, mac: Buffer): Uint8Array {
    const record = this.#record(kind);
    record.set(mac, 8);
    return record;
  }

  #mac(label: 'dialer' | 'acceptor' | 'session'): Buffer {
    const [first, second] =
      this.#config.role === 'dialer' ? [this.#ownHello, this.#peerHello!] : [this.#peerHello!, this.#ownHello];
    const mac = createHmac('sha256', this.#config.clusterKey).update(label).update(first).update(second);
    const { channelBinding } = this.#config;
    if (channelBinding !== undefined) mac.update(channelBinding);
    return mac.digest();
  }
}
