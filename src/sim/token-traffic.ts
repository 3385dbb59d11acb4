import { FsError } from '../common/errors.js';
import type { NodeId } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { MessageType } from '../protocol/message-types.js';
import { TokenClass } from '../token-manager/token.js';
import {
  decodeToClient,
  decodeToServer,
  type ToClientItem,
  type ToServerItem,
} from '../token-manager/token-messages.js';
import type { Faults } from './faults.js';
import type { SimNode } from './sim-node.js';
import type { FabricTap } from './tapped-fabric.js';
import type { Trace } from './trace.js';

/** Listens to the token streams: they make up most of the trace, and tell faults when a revocation is under way. */
export class TokenTraffic {
  constructor(
    private readonly trace: Trace,
    private readonly faults: Faults,
  ) {}

  tap(life: SimNode): FabricTap {
    return {
      sending: (to, type, body) => {
        if (type === MessageType.tokenToServer) this.#toServer(life, to, body);
        else if (type === MessageType.tokenToClient) this.#toClient(life, to, body);
        return [body];
      },
    };
  }

  #toServer(life: SimNode, to: NodeId, body: Uint8Array): void {
    try {
      for (const item of decodeToServer(body).items)
        this.trace.add(life.id, inoOf(item), `to server ${to}: ${textOf(item)}`);
    } catch (error) {
      this.#bad(life, error);
    }
  }

  #toClient(life: SimNode, to: NodeId, body: Uint8Array): void {
    try {
      for (const item of decodeToClient(body).items) {
        this.trace.add(life.id, inoOf(item), `to client ${to}: ${textOf(item)}`);
        if (item.kind === 'revoke') this.faults.revokeSent(to, item.requester, item);
      }
    } catch (error) {
      this.#bad(life, error);
    }
  }

  #bad(life: SimNode, error: unknown): void {
    this.trace.add(life.id, 0, `a token message that is none: ${FsError.from(error, 'tap').message}`);
  }
}

function inoOf(item: ToClientItem | ToServerItem): number {
  return 'class' in item && item.class === TokenClass.data ? item.object : 0;
}

const place = (start: number, end: number): string =>
  `[${start / SECTOR_BYTES}, ${end > 2 ** 52 ? 'end' : end / SECTOR_BYTES})`;

function textOf(item: ToClientItem | ToServerItem): string {
  const object = 'class' in item ? `${item.class === TokenClass.data ? 'data' : 'status'} ${item.object}` : '';
  switch (item.kind) {
    case 'request':
      return `request ${item.requestId} ${object} ${item.parts.map((p) => `${p.mode}${place(p.required.start, p.required.end)}`).join(' ')}`;
    case 'grant':
      return `grant ${item.requestId} #${item.seq} ${object} ${item.parts.map((p) => `${p.mode}${place(p.range.start, p.range.end)}`).join(' ')}`;
    case 'revoke':
      return `revoke ${item.revokeId} ${object} ${place(item.required.start, item.required.end)} keep ${item.keep} for ${item.requester} up to #${item.upToSeq}`;
    case 'answer':
      return `answer ${item.revokeId} ${object} as of #${item.asOfSeq} keeps ${item.mode} of ${item.ranges.map((r) => place(r.start, r.end)).join(' ')}`;
    case 'release':
      return `release ${object} as of #${item.asOfSeq} ${item.ranges.map((r) => place(r.start, r.end)).join(' ')}`;
    case 'note':
      return `note ${item.object} sector ${item.note.offsetBytes / SECTOR_BYTES} version ${item.note.version} size ${item.note.sizeBytes}`;
    case 'claim':
      return `claim ${object} ${item.mode}${place(item.range.start, item.range.end)} #${item.seq}`;
    case 'refusal':
      return `refusal ${item.requestId} ${item.reason} ${item.blockers.map((b) => `${b.node}:${b.mode}${place(b.range.start, b.range.end)}`).join(' ')}`;
    case 'cancel':
      return `cancel ${item.requestId}`;
    case 'claimEnd':
      return `end of claims of epoch ${item.epoch}`;
    case 'ask':
      return `ask of epoch ${item.epoch}`;
    case 'contradiction':
      return `contradiction ${object} ${item.mode}${place(item.range.start, item.range.end)} with ${item.other}`;
  }
}
