import type { Epoch, Incarnation, NodeId } from '../common/ids.js';
import type {
  Fabric,
  IncomingMessage,
  MessageHandler,
  NodeIdentity,
  Peer,
  RequestHandler,
  RequestOptions,
  Window,
} from '../fabric/fabric.js';
import type { FabricNode } from '../fabric/fabric-node.js';
import type { PoolSegment } from '../native/page-pool.js';
import type { MessageType } from '../protocol/message-types.js';

/** What may be done to a node's messages; each is asked in turn, with what the one before left over. */
export interface FabricTap {
  /** Bodies to send in its place; the body itself when nothing is to change. */
  sending?(to: NodeId, type: MessageType, body: Uint8Array): readonly Uint8Array[];
  /** A request handler, before it is registered. */
  serving?(type: MessageType, handler: RequestHandler): RequestHandler;
  receiving?(type: MessageType, handler: MessageHandler): MessageHandler;
  forgetting?(node: NodeId, upTo: Incarnation): boolean;
}

/** The node's fabric with ears: the world listens for messages that faults wait for, planted bugs change them. */
export class TappedFabric implements Fabric {
  readonly inner: FabricNode;
  readonly taps: FabricTap[];
  readonly #peers = new Map<NodeId, Peer>();
  readonly #handlers = new Map<MessageType, MessageHandler>();

  constructor(inner: FabricNode, taps: FabricTap[]) {
    this.inner = inner;
    this.taps = taps;
  }

  get self(): NodeIdentity {
    return this.inner.self;
  }
  get epoch(): Epoch {
    return this.inner.epoch;
  }
  setEpoch(epoch: Epoch): void {
    this.inner.setEpoch(epoch);
  }
  peer(node: NodeId): Peer {
    let peer = this.#peers.get(node);
    if (peer === undefined) {
      peer = new TappedPeer(this.inner, node, this.taps);
      this.#peers.set(node, peer);
    }
    return peer;
  }
  handleRequests(type: MessageType, handler: RequestHandler): void {
    let tapped = handler;
    for (const tap of this.taps) tapped = tap.serving?.(type, tapped) ?? tapped;
    this.inner.handleRequests(type, tapped);
  }
  handleMessages(type: MessageType, handler: MessageHandler): void {
    let tapped = handler;
    for (const tap of this.taps) tapped = tap.receiving?.(type, tapped) ?? tapped;
    this.#handlers.set(type, tapped);
    this.inner.handleMessages(type, tapped);
  }
  /** As if it had come in. */
  forge(type: MessageType, message: IncomingMessage): void {
    this.#handlers.get(type)?.(message);
  }
  onPeerChange(listener: (peer: NodeIdentity, change: 'met' | 'replaced' | 'forgotten') => void): void {
    this.inner.onPeerChange(listener);
  }
  forget(node: NodeId, upTo: Incarnation): void {
    for (const tap of this.taps) if (tap.forgetting?.(node, upTo) === false) return;
    this.inner.forget(node, upTo);
  }
  expose(peer: NodeId, segments: readonly PoolSegment[], access: 'read' | 'write'): Window {
    return this.inner.expose(peer, segments, access);
  }
  close(): Promise<void> {
    return this.inner.close();
  }
}

/** Looks its peer up each time: the fabric may have made a new one. */
class TappedPeer implements Peer {
  constructor(
    private readonly fabric: FabricNode,
    readonly nodeId: NodeId,
    private readonly taps: readonly FabricTap[],
  ) {}

  get connected(): boolean {
    return this.fabric.peer(this.nodeId).connected;
  }
  request(type: MessageType, body: Uint8Array, options: RequestOptions): Promise<Uint8Array> {
    return this.fabric.peer(this.nodeId).request(type, body, options);
  }
  send(type: MessageType, body: Uint8Array): void {
    let bodies: readonly Uint8Array[] = [body];
    for (const tap of this.taps) {
      const { sending } = tap;
      if (sending !== undefined) bodies = bodies.flatMap((one) => sending.call(tap, this.nodeId, type, one));
    }
    for (const one of bodies) this.fabric.peer(this.nodeId).send(type, one);
  }
  writeRemote(...transfer: Parameters<Peer['writeRemote']>): Promise<void> {
    return this.fabric.peer(this.nodeId).writeRemote(...transfer);
  }
  readRemote(...transfer: Parameters<Peer['readRemote']>): Promise<void> {
    return this.fabric.peer(this.nodeId).readRemote(...transfer);
  }
}
