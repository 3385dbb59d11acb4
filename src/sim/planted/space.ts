import { chance } from '../../common/random.js';
import { MessageType } from '../../protocol/message-types.js';
import { decodeShipment, encodeShipment } from '../../protocol/region-messages.js';
import type { PlantedBug } from './planted-bug.js';

/** What may go wrong with space. */
export const SPACE_BUGS: readonly PlantedBug[] = [
  {
    name: 'free-applied-twice',
    what: 'Of the shipped frees that a holder has applied, one in four is applied once more, later (S6).',
    tap: (_world, life) => ({
      serving: (type, handler) =>
        type !== MessageType.fsShip
          ? handler
          : async (message) => {
              const whole = decodeShipment(message.body);
              const reply = await handler(message);
              if (chance(life.random, 0.25))
                life.gate.after(2 + 100 * life.random.next(), () => {
                  const { shipment } = whole;
                  const again = { ...whole, shipment: { ...shipment, sequence: shipment.sequence + 1 } };
                  Promise.resolve(handler({ ...message, body: encodeShipment(again) })).catch(() => undefined);
                });
              return reply;
            },
    }),
  },
];
