import { Settling } from '../../fs/space-peers.js';
import { MessageType } from '../../protocol/message-types.js';
import { decodeSettle, encodeSettleReply } from '../../protocol/space-messages.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs in giving up a copy, and in bringing it up to date (S5). */

export const COPY_BUGS: readonly PlantedBug[] = [
  {
    name: 'copy-back-at-once',
    what: 'A copy that has missed writes is taken for up to date as soon as there is a way to it (S5).',
    needs: ['copyAway'],
    likelySeed: 41,
    copyRecords: (_world, { membership }) => ({
      updateCopies: (change) =>
        membership.updateCopies((copies) => {
          const changed = change(copies);
          if (changed === null) return null;
          return new Map(
            [...changed].map(([uuid, record]) => [
              uuid,
              record.state === 'resync' ? { ...record, state: 'up' } : record,
            ]),
          );
        }),
    }),
  },
  {
    name: 'changes-not-ended',
    what: 'A node says that what it had begun while a copy was passed over has ended, and has not looked (S5).',
    needs: ['copyAway'],
    likelySeed: 3113,
    tap: () => ({
      serving: (type, handler) =>
        type !== MessageType.fsSettle
          ? handler
          : (message) =>
              decodeSettle(message.body).what === Settling.changes
                ? encodeSettleReply({ mounted: true, freedSubBlocks: 0, unusedNumbers: 0 })
                : handler(message),
    }),
  },
];
