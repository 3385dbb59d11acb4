import type { SectorIo } from '../../nsd/nsd-api.js';
import { INODES_PER_SEGMENT, type Revocation, TokenClass, TokenMode } from '../../token-manager/token.js';
import type { RevokeHandler } from '../../token-manager/token-client-api.js';
import type { SimNode } from '../sim-node.js';
import type { World } from '../world.js';
import type { PlantedBug } from './planted-bug.js';

/** Bugs of a holder that serves a revocation, seen by what readers get only. */
type Serve = (revocation: Revocation, real: (revocation: Revocation) => Promise<void>) => Promise<void>;

/** Puts `serve` in front of the handler of one class, for the files that everybody uses. */
function wrapHandler(world: World, life: SimNode, tokenClass: TokenClass, serve: Serve): void {
  const { tokens } = life.node;
  const setRevokeHandler = tokens.setRevokeHandler.bind(tokens);
  tokens.setRevokeHandler = (handled, handler) => {
    if (handled !== tokenClass) return setRevokeHandler(handled, handler);
    const wrapped: RevokeHandler = {
      working: (object) => handler.working(object),
      revoke: (revocation) =>
        isHot(world, revocation) ? serve(revocation, (real) => handler.revoke(real)) : handler.revoke(revocation),
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

const bytesNotWritten: PlantedBug = {
  name: 'bytes-not-written',
  what: 'What a revocation writes out is taken for written, and is not (T6).',
  knownSeeds: [1],
  alterNode(world, life) {
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
      // Whole pages' worth is data; single sectors are inodes and maps.
      const isData = (ios: readonly SectorIo[]): boolean =>
        ios.some((io) => io.memory.offsetBytes < life.plan.fsStaging.offsetBytes);
      client.write = async (ios, options) => {
        if (serving === 0 || !isData(ios)) await write(ios, options);
      };
      return client;
    };
  },
};

const cacheKeptAfterRevoke: PlantedBug = {
  name: 'cache-kept-after-revoke',
  what: 'Pages of a token that is given up are flushed, but stay.',
  knownSeeds: [1],
  alterNode: (world, life) =>
    wrapHandler(world, life, TokenClass.data, (revocation, real) => real({ ...revocation, keep: TokenMode.shared })),
};

const fillsNotWaitedFor: PlantedBug = {
  name: 'fills-not-waited-for',
  what: 'A revocation does not wait for reads in flight: what they bring is shown after the token has gone.',
  knownSeeds: [1],
  alterNode: (world, life) =>
    wrapHandler(world, life, TokenClass.data, async (revocation, real) => {
      const file = life.cached(revocation.object);
      const done = real(revocation);
      const filling =
        file?.file.pagesIn(revocation.range).some((page) => page.filling !== null && !page.dirty) ?? false;
      if (!filling || file?.dirty) await done;
      else done.catch((error: unknown) => world.broken(error, 'a revocation that nobody waited for'));
    }),
};

export const HOLDER_BUGS: readonly PlantedBug[] = [bytesNotWritten, cacheKeptAfterRevoke, fillsNotWaitedFor];
