import type { SlotId } from '../../cache/cache-map.js';
import { sleep } from '../../common/clock.js';
import { chance } from '../../common/random.js';
import { MessageType } from '../../protocol/message-types.js';
import { decodeNsdFence } from '../../protocol/nsd-messages.js';
import { WatchedCacheMap } from '../watched-map.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs on the way between cache and device. */
class NoSharedPins extends WatchedCacheMap {
  override tryPinShared(_slot: SlotId): boolean {
    return true;
  }
  override unpinShared(_slot: SlotId): void {}
}

const unstablePages: PlantedBug = {
  name: 'unstable-pages',
  what: 'Hits write to pages that are on their way to a device (S2).',
  knownSeeds: [1],
  makeMap: ({ scheduler, plan }, { pool }) => new NoSharedPins(pool, scheduler, 64, plan.slotCount),
};

const executedTwice: PlantedBug = {
  name: 'executed-twice',
  what: 'One write in ten that an NSD server has answered is executed once more, later (F6).',
  knownSeeds: [1],
  tap: (_world, life) => ({
    serving: (type, handler) =>
      type !== MessageType.nsdWrite
        ? handler
        : async (message) => {
            const again = { ...message, body: message.body.slice() };
            const reply = await handler(message);
            if (chance(life.random, 0.1))
              life.gate.after(2 + 20 * life.random.next(), () => {
                // Its window has been closed: only what came along with the message can be written again.
                Promise.resolve(handler(again)).catch(() => undefined);
              });
            return reply;
          },
  }),
};

/** The world is told that the fence is up: only the bytes of a late write can give it away. */
const fenceWithoutDrain: PlantedBug = {
  name: 'fence-without-drain',
  what: 'A write that came before the fence, from a node on its way out, is executed after its tokens have fallen (F1).',
  knownSeeds: [1],
  tap: (world, life) => ({
    serving: (type, handler) => {
      if (type === MessageType.nsdFence)
        return ({ body }) => {
          const { node, upTo } = decodeNsdFence(body);
          life.fencedOthers.set(node, upTo);
          return new Uint8Array(0);
        };
      if (type !== MessageType.nsdWrite) return handler;
      return async (message) => {
        const { from } = message;
        const sender = world.lives.find((one) => one.name === `${from.nodeId}.${from.incarnation}`);
        const leaves = sender !== undefined && (sender.state === 'dead' || sender.gate.paused || sender.suspended);
        if (!leaves) return handler(message);
        const kept = { ...message, body: message.body.slice() };
        while (!sender.outOfTheWay && !sender.serves) await sleep(life.gate, 5);
        await sleep(life.gate, 40 * life.random.next());
        return handler(kept);
      };
    },
  }),
  alterNode(_world, life) {
    const server = life.node.nsdServer;
    if (server === null) return;
    server.fence = (node, upTo) => {
      life.fencedOthers.set(node, upTo);
      return Promise.resolve();
    };
  },
};

export const STORAGE_BUGS: readonly PlantedBug[] = [unstablePages, executedTwice, fenceWithoutDrain];
