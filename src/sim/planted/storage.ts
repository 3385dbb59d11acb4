import { chance } from '../../common/random.js';
import { MessageType } from '../../protocol/message-types.js';
import { decodeNsdFence } from '../../protocol/nsd-messages.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs between cache and device, and of what keeps a dead node's writes away from it. */

export const STORAGE_BUGS: readonly PlantedBug[] = [
  {
    name: 'fence-skipped',
    what: 'Tokens of a vanished node fall without its having been shut out from the NSDs (F1, I5).',
    needs: ['kill', 'killHolder', 'killRequester', 'killServer', 'killSynced'],
    alterActions: (_world, _life, real) => ({
      fence: () => Promise.resolve(),
      tokensFall: (server, target) => real.tokensFall(server, target),
    }),
  },
  {
    name: 'server-ignores-fence',
    what: 'An NSD server acknowledges the fence and goes on serving the old incarnation (F1, S4).',
    needs: ['lateWrites'],
    tap: (_world, life) => ({
      serving: (type, handler) =>
        type !== MessageType.nsdFence
          ? handler
          : ({ body }) => {
              const { node, upTo } = decodeNsdFence(body);
              life.fencedOthers.set(node, upTo);
              return new Uint8Array(0);
            },
      forgetting: () => false,
    }),
    alterNode(_world, life) {
      const server = life.node.nsdServer;
      if (server === null) return;
      server.fence = async (node, upTo) => {
        life.fencedOthers.set(node, upTo);
      };
    },
  },
  {
    name: 'fence-without-drain',
    what: 'An NSD server acknowledges the fence while writes from before it are still at the device (F1).',
    needs: ['stuckDisk'],
    likelySeed: 241,
    alterNode(world, life) {
      const server = life.node.nsdServer;
      if (server === null) return;
      const fence = server.fence.bind(server);
      server.fence = async (node, upTo, epoch) => {
        fence(node, upTo, epoch).catch((error: unknown) => world.broken(error, 'a fence'));
        life.fencedOthers.set(node, upTo);
      };
    },
  },
  {
    name: 'executed-twice',
    what: 'One write in ten that an NSD server has answered is executed once more, later (F6).',
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
  },
  {
    name: 'sync-without-write',
    what: 'An fsync returns at once, with nothing written (I8).',
    needs: ['killSynced'],
    likelySeed: 42,
    alterNode(_world, { node }) {
      const mount = node.mount.bind(node);
      node.mount = async (identity) => {
        const fileSystem = await mount(identity);
        const open = fileSystem.open.bind(fileSystem);
        fileSystem.open = async (...args) => {
          const file = await open(...args);
          file.sync = () => Promise.resolve();
          return file;
        };
        return fileSystem;
      };
    },
  },
  {
    name: 'flush-left-out',
    what: 'A disk says that it has flushed, and has not (I8).',
    needs: ['powerCut'],
    likelySeed: 19,
    alterNode(_world, { doors }) {
      for (const { store } of doors) store.flush = () => Promise.resolve();
    },
  },
];
