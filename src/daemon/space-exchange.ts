import type { Membership } from '../cluster/membership-api.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { type FileSystemNumber, type NodeId, nodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Fabric, IncomingMessage } from '../fabric/fabric.js';
import type { MountedFileSystem } from '../fs/mount.js';
import { type SettledPeers, Settling, type SpacePeers } from '../fs/space-peers.js';
import { MessageType } from '../protocol/message-types.js';
import {
  decodeSettle,
  decodeSettleReply,
  encodeSettle,
  encodeSettleReply,
  type SettleReply,
} from '../protocol/space-messages.js';
import { tokenObject } from '../token-manager/file-system-scope.js';
import { serverOf } from '../token-manager/placement.js';
import { TokenClass } from '../token-manager/token.js';
import { tokenViewOf } from '../token-manager/token-view.js';

/**
 * Carries SpacePeers between nodes: one request to each other node of the view. Nodes without an address (libraries) are never dialled;
 * the token server of the root's segment, with which every node that has mounted has a link, asks them in its turn.
 *
 * Fault model: a node that is away, suspended or slow costs the asker its deadline, and is counted as one that didn't answer.
 */
export interface SpaceExchangeParts {
  readonly fabric: Fabric;
  readonly membership: Membership;
  readonly counters: Counters;
  readonly logger: Logger;
  /** This node knows afterwards what stands about copies. */
  readonly catchUp: () => Promise<void>;
  readonly mounted: () => { readonly uuid: string; readonly fileSystem: MountedFileSystem } | null;
}

const TIMEOUT_MS_MAX = 60_000;

export class SpaceExchange {
  readonly #parts: SpaceExchangeParts;

  constructor(parts: SpaceExchangeParts) {
    this.#parts = parts;
    parts.fabric.handleRequests(MessageType.fsSettle, (message) => this.#answer(message));
  }

  /** The other nodes, as the file system of this UUID and number sees them. */
  peers(fsUuid: string, number: FileSystemNumber): Pick<SpacePeers, 'settle'> {
    return { settle: (what, timeoutMs) => this.#ask(fsUuid, number, what, timeoutMs) };
  }

  async #ask(fsUuid: string, number: FileSystemNumber, what: Settling, timeoutMs: number): Promise<SettledPeers> {
    const { fabric, membership, counters, logger } = this.#parts;
    const { view } = membership;
    const { servers } = tokenViewOf(view);
    const relay = serverOf(servers, TokenClass.status, tokenObject(TokenClass.status, number, 0))?.nodeId ?? null;
    const others = [...view.nodes.values()].filter((node) => node.nodeId !== fabric.self.nodeId);
    counters.add('fs.peersAsked', others.length);
    const answers = await Promise.all(
      others.map(async (node) => {
        try {
          const direct = node.address !== null || relay === null || relay === fabric.self.nodeId;
          const reply = direct
            ? await this.#request(node.nodeId, null, { fsUuid, what, timeoutMs })
            : await this.#request(relay, node.nodeId, { fsUuid, what, timeoutMs });
          return { node, reply };
        } catch (error) {
          counters.add('fs.peersSilent');
          logger.warn({ node: node.nodeId, error: String(error) }, 'a node was not heard about the space it has freed');
          return { node, reply: null };
        }
      }),
    );
    let unusedNumbers = 0;
    let mark: string | null = `${view.epoch}`;
    for (const { node, reply } of answers) {
      unusedNumbers += reply?.unusedNumbers ?? 0;
      if (reply === null || mark === null) mark = null;
      else mark += ` ${node.nodeId}/${node.incarnation}:${reply.freedSubBlocks}`;
    }
    return { mark, unusedNumbers };
  }

  async #request(
    to: NodeId,
    relayTo: NodeId | null,
    { fsUuid, what, timeoutMs }: { fsUuid: string; what: Settling; timeoutMs: number },
  ): Promise<SettleReply> {
    const peer = this.#parts.fabric.peer(to);
    // Nobody dials a node without an address: one that has no link with us has nothing mounted, or is on its way to us.
    if (relayTo === null && this.#parts.membership.view.nodes.get(to)?.address === null && !peer.connected)
      return { mounted: false, freedSubBlocks: 0, unusedNumbers: 0 };
    const body = encodeSettle({ fsUuid, what, relayTo, timeoutMs });
    return decodeSettleReply(await peer.request(MessageType.fsSettle, body, { timeoutMs }));
  }

  async #answer({ body }: IncomingMessage): Promise<Uint8Array> {
    const { fsUuid, what, relayTo, timeoutMs } = decodeSettle(body);
    if (relayTo !== null) {
      if (!this.#parts.membership.view.nodes.has(nodeId(relayTo)))
        throw new FsError('notFound', { op: 'fs.settle', object: `node ${relayTo}`, detail: 'there is no such node' });
      const bounded = Math.min(timeoutMs, TIMEOUT_MS_MAX);
      return encodeSettleReply(await this.#request(relayTo, null, { fsUuid, what, timeoutMs: bounded }));
    }
    const { mounted, counters, catchUp } = this.#parts;
    if (what === Settling.copies || what === Settling.changes) await catchUp();
    const here = mounted();
    const freedSubBlocks = counters.get('fs.subBlocksFreed');
    if (here === null || here.uuid !== fsUuid)
      return encodeSettleReply({ mounted: false, freedSubBlocks, unusedNumbers: 0 });
    return encodeSettleReply({ mounted: true, ...(await here.fileSystem.settle(what)) });
  }
}
