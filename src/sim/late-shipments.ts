import { chance, SeededRandom } from '../common/random.js';
import { MessageType } from '../protocol/message-types.js';
import type { SimNode } from './sim-node.js';
import type { FabricTap } from './tapped-fabric.js';

const SHARE = 0.3;

/**
 * Frees that are shipped to a region's holder come again, later: as when a node sends them once more because it has heard no answer, while the first is
 * still on its way. By then the space may be in use again, the region somebody else's, the node that had sent it gone.
 */
export function lateShipments(life: SimNode, seed: number): FabricTap {
  // Drawn apart, so that nothing else is drawn otherwise.
  const random = new SeededRandom(seed);
  return {
    serving: (type, handler) =>
      type !== MessageType.fsShip
        ? handler
        : async (message) => {
            const again = { ...message, body: message.body.slice() };
            const reply = await handler(message);
            if (chance(random, SHARE))
              life.gate.after(5 + 300 * random.next(), () => {
                // Whoever has unmounted says so.
                Promise.resolve(handler(again)).catch(() => undefined);
              });
            return reply;
          },
  };
}
