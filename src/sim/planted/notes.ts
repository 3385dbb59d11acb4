import { chance } from '../../common/random.js';
import { MessageType } from '../../protocol/message-types.js';
import { decodeToClient, decodeToServer, encodeToClient, encodeToServer } from '../../token-manager/token-messages.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs of what nodes that write one file side by side say of its size (concurrent-write status). */
export const NOTE_BUGS: readonly PlantedBug[] = [
  {
    name: 'note-not-told',
    what: 'A node gives concurrent-write status up, and says nothing of the size that it has come to (I13).',
    tap: (_world, life) => ({
      sending: (_to, type, body) => {
        if (type !== MessageType.tokenToServer) return [body];
        const message = decodeToServer(body);
        const items = message.items.filter((item) => item.kind !== 'note' || chance(life.random, 0.5));
        return items.length === 0 ? [] : encodeToServer({ ...message, items });
      },
    }),
  },
  {
    name: 'note-not-handed-out',
    what: 'Status is granted exclusively without the notes that have been gathered (I13).',
    tap: (_world, life) => ({
      sending: (_to, type, body) => {
        if (type !== MessageType.tokenToClient) return [body];
        const message = decodeToClient(body);
        const items = message.items.filter((item) => item.kind !== 'note' || chance(life.random, 0.5));
        return items.length === 0 ? [] : encodeToClient({ ...message, items });
      },
    }),
  },
];
