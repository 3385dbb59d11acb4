import { chance } from '../../common/random.js';
import type { SectorIo } from '../../nsd/nsd-api.js';
import {
  INODES_PER_SEGMENT,
  type Revocation,
  type StatusNote,
  TokenClass,
  TokenMode,
} from '../../token-manager/token.js';
import type { RevokeHandler } from '../../token-manager/token-client-api.js';
import type { SimNode } from '../sim-node.js';
import type { World } from '../world.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs of a holder that serves a revocation. */
type Serve = (revocation: Revocation, real: (revocation: Revocation) => Promise<void>) => Promise<void>;

/** Puts `serve` in front of the handler of one class, for the files that everybody uses. */
function wrapHandler(world: World, life: SimNode, tokenClass: TokenClass, serve: Serve): void {
  const { tokens } = life.node;
  const setRevokeHandler = tokens.setRevokeHandler.bind(tokens);
  tokens.setRevokeHandler = (handled, handler) => {
    if (handled !== tokenClass) return setRevokeHandler(handled, handler);
    const wrapped: RevokeHandler = {
      working: (object) => handler.working(object),
      writesConcurrently: (object, range) => handler.writesConcurrently?.(object, range) ?? false,
      gathered: (object, range, notes) => handler.gathered?.(object, range, notes),
      revoke: async (revocation) => {
        if (!isHot(world, revocation)) return handler.revoke(revocation);
        let notes: readonly StatusNote[] = [];
        await serve(revocation, async (real) => {
          notes = (await handler.revoke(real)) ?? [];
        });
        return notes;
      },
    };
    return setRevokeHandler(handled, wrapped);
  };
}

function isHot(world: World, { class: tokenClass, object }: Revocation): boolean {
  const objects = world
    .hotInodes()
    .map((ino) => (tokenClass === TokenClass.data ? ino : Math.floor(ino / INODES_PER_SEGMENT)));
  // Segment 0 has the directories: without them nothing would even begin.
  return object > 0 && objects.includes(object);
}

/** Writes during a revocation are answered without being done, of data or of what stands in single sectors: inodes. */
function notWritten(world: World, life: SimNode, what: 'data' | 'inodes'): void {
  let serving = 0;
  const serve: Serve = async (revocation, real) => {
    serving++;
    try {
      await real(revocation);
    } finally {
      serving--;
    }
  };
  wrapHandler(world, life, TokenClass.data, serve);
  wrapHandler(world, life, TokenClass.status, serve);
  const { node } = life;
  const nsdClient = node.nsdClient.bind(node);
  node.nsdClient = (uuids) => {
    const client = nsdClient(uuids);
    const write = client.write.bind(client);
    const isData = (ios: readonly SectorIo[]): boolean =>
      ios.some((io) => io.memory.offsetBytes < life.plan.fsStaging.offsetBytes);
    client.write = async (ios, options) => {
      if (serving === 0 || isData(ios) !== (what === 'data')) await write(ios, options);
    };
    return client;
  };
}

const often = (life: SimNode): boolean => chance(life.random, 0.5);

const serving =
  (tokenClass: TokenClass, serve: (life: SimNode, ...args: Parameters<Serve>) => Promise<void>) =>
  (world: World, life: SimNode): void =>
    wrapHandler(world, life, tokenClass, (revocation, real) => serve(life, revocation, real));

export const HOLDER_BUGS: readonly PlantedBug[] = [
  {
    name: 'release-without-flush',
    what: 'A data token is answered as given up without its bytes being flushed or dropped (T6, I3).',
    alterNode: serving(TokenClass.data, async (life, revocation, real) => {
      if (!often(life)) await real(revocation);
    }),
  },
  {
    name: 'release-before-flush-ended',
    what: 'A data token is answered while its flush is still under way (T6).',
    alterNode: serving(TokenClass.data, async (_life, revocation, real) => {
      real(revocation).catch(() => undefined);
    }),
  },
  {
    name: 'writable-after-downgrade',
    what: 'A revocation that leaves shared is answered, and the node goes on as if it held exclusive (I1, I2).',
    alterNode: serving(TokenClass.data, async (_life, revocation, real) => {
      if (revocation.keep !== TokenMode.shared) await real(revocation);
    }),
  },
  {
    name: 'status-without-flush',
    what: 'A status token is answered without size and times having been written (I13).',
    alterNode: serving(TokenClass.status, async (life, revocation, real) => {
      if (!often(life)) await real(revocation);
    }),
  },
  {
    name: 'bytes-not-written',
    what: 'What a revocation writes out is taken for written, and is not (T6).',
    alterNode: (world, life) => notWritten(world, life, 'data'),
  },
  {
    name: 'inode-not-written',
    what: 'Size and block pointers that a revocation writes out are taken for written, and are not (I13).',
    alterNode: (world, life) => notWritten(world, life, 'inodes'),
  },
  {
    name: 'cache-kept-after-revoke',
    what: 'Pages of a token that is given up are flushed, but stay.',
    alterNode: serving(TokenClass.data, (_life, revocation, real) => real({ ...revocation, keep: TokenMode.shared })),
  },
  {
    name: 'fills-not-waited-for',
    what: 'A revocation does not wait for reads in flight, read-ahead above all: what they bring is shown after the token has gone.',
    likelySeed: 4,
    alterNode: (world, life) =>
      wrapHandler(world, life, TokenClass.data, async (revocation, real) => {
        const file = life.cached(revocation.object);
        const done = real(revocation);
        const filling =
          file?.file.pagesIn(revocation.range).some((page) => page.filling !== null && !page.dirty) ?? false;
        if (!filling || file?.dirty) await done;
        else done.catch((error: unknown) => world.broken(error, 'a revocation that nobody waited for'));
      }),
  },
];
