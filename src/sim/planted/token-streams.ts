import { chance } from '../../common/random.js';
import type { IncomingMessage } from '../../fabric/fabric.js';
import { MessageType } from '../../protocol/message-types.js';
import { TokenMode } from '../../token-manager/token.js';
import {
  decodeToClient,
  decodeToServer,
  encodeToClient,
  encodeToServer,
  type GrantItem,
  type RevokeItem,
  type ToClientItem,
  type ToServerItem,
} from '../../token-manager/token-messages.js';
import type { SimNode } from '../sim-node.js';
import type { FabricTap } from '../tapped-fabric.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs of what token servers and clients tell each other. */

/** Every other time, decided by the node's own random stream: a bug that always strikes is too easily found. */
const often = (life: SimNode): boolean => chance(life.random, 0.5);

/** Changes what a token server sends; null drops the item. */
function changeToClient(change: (item: ToClientItem) => ToClientItem | null): FabricTap {
  return {
    sending: (_to, type, body) => {
      if (type !== MessageType.tokenToClient) return [body];
      const message = decodeToClient(body);
      const items = message.items.flatMap((item) => change(item) ?? []);
      return items.length === 0 ? [] : encodeToClient({ ...message, items });
    },
  };
}

/** Changes what a token client sends; null drops the item. */
function changeToServer(change: (item: ToServerItem) => ToServerItem | null): FabricTap {
  return {
    sending: (_to, type, body) => {
      if (type !== MessageType.tokenToServer) return [body];
      const message = decodeToServer(body);
      const items = message.items.flatMap((item) => change(item) ?? []);
      return items.length === 0 ? [] : encodeToServer({ ...message, items });
    },
  };
}

export const TOKEN_STREAM_BUGS: readonly PlantedBug[] = [
  {
    name: 'revoke-lost',
    what: 'A token server sends a revocation that never arrives (I12).',
    tap: (_world, life) => changeToClient((item) => (item.kind === 'revoke' && life.random.next() < 0.2 ? null : item)),
  },
  {
    name: 'grant-lost',
    what: 'A token server sends a grant that never arrives (I12).',
    tap: (_world, life) => changeToClient((item) => (item.kind === 'grant' && life.random.next() < 0.1 ? null : item)),
  },
  {
    name: 'exclusive-beside-shared',
    what: 'A shared request is granted as exclusive: nobody else was called back for that (I1).',
    tap: (_world, life) =>
      changeToClient((item) =>
        item.kind === 'grant' && often(life)
          ? ({ ...item, parts: item.parts.map((part) => ({ ...part, mode: TokenMode.exclusive })) } satisfies GrantItem)
          : item,
      ),
  },
  {
    name: 'grant-before-answer',
    what: 'A token server takes a revocation for answered as soon as it is sent (T6, I1).',
    tap: (world, life) => ({
      sending: (to, type, body) => {
        if (type !== MessageType.tokenToClient) return [body];
        const message = decodeToClient(body);
        for (const item of message.items) {
          if (item.kind !== 'revoke' || !often(life)) continue;
          const answer = encodeToServer({
            epoch: message.epoch,
            toIncarnation: life.incarnation,
            seenSeq: item.upToSeq,
            items: [answerTo(item)],
          });
          const from = { nodeId: to, incarnation: message.toIncarnation };
          for (const one of answer) {
            const forged: IncomingMessage = { from, epoch: message.epoch, body: one, peer: life.fabric.peer(to) };
            world.scheduler.after(0, () => {
              if (life.serves) life.fabric.forge(MessageType.tokenToServer, forged);
            });
          }
        }
        return [body];
      },
    }),
  },
  {
    name: 'stale-statement-believed',
    what: 'Answers and releases are believed whatever grants they had seen: one that crosses a newer grant undoes it (T2).',
    tap: () => {
      let newest = 0;
      return {
        sending: (_to, type, body) => {
          if (type === MessageType.tokenToClient)
            for (const item of decodeToClient(body).items)
              if (item.kind === 'grant') newest = Math.max(newest, item.seq);
          return [body];
        },
        receiving: (type, handler) =>
          type !== MessageType.tokenToServer
            ? handler
            : (message) => {
                const decoded = decodeToServer(message.body);
                const items = decoded.items.map((item) =>
                  item.kind === 'answer' || item.kind === 'release' ? { ...item, asOfSeq: newest } : item,
                );
                for (const body of encodeToServer({ ...decoded, seenSeq: newest, items }))
                  handler({ ...message, body });
              },
      };
    },
  },
  {
    name: 'stream-out-of-order',
    what: 'One message in twenty from a token server to a node is overtaken by those behind it (T2).',
    tap: (_world, life) => ({
      sending: (to, type, body) => {
        if (type !== MessageType.tokenToClient || !chance(life.random, 0.05)) return [body];
        life.gate.after(1 + 3 * life.random.next(), () => life.fabric.inner.peer(to).send(type, body));
        return [];
      },
    }),
  },
  {
    name: 'answer-says-too-much',
    what: 'Who keeps a shared token says that it has given up all of it (I1).',
    tap: (_world, life) =>
      changeToServer((item) =>
        item.kind === 'answer' && item.mode === TokenMode.shared && often(life)
          ? { ...item, mode: TokenMode.none }
          : item,
      ),
  },
  {
    name: 'claims-lost',
    what: 'A new token server does not hear of every token that a node holds (T8).',
    needs: ['killServer', 'leave', 'flap'],
    likelySeed: 7,
    tap: (_world, life) => changeToServer((item) => (item.kind === 'claim' && often(life) ? null : item)),
  },
];

/** What a holder would say that gave up all that was required of it. */
function answerTo(item: RevokeItem) {
  return {
    kind: 'answer',
    revokeId: item.revokeId,
    class: item.class,
    object: item.object,
    asOfSeq: item.upToSeq,
    mode: item.keep,
    ranges: [item.required],
  } as const;
}
