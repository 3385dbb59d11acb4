import type { Coverage, EntryId } from '../../cache/cache-map.js';
import type { IncomingMessage } from '../../fabric/fabric.js';
import { MessageType } from '../../protocol/message-types.js';
import { type Revocation, TokenClass, TokenMode } from '../../token-manager/token.js';
import type { RevokeHandler } from '../../token-manager/token-client-api.js';
import {
  decodeToClient,
  decodeToServer,
  encodeToClient,
  encodeToServer,
  type GrantItem,
  type RevokeItem,
  type ToClientItem,
} from '../../token-manager/token-messages.js';
import type { SimNode } from '../sim-node.js';
import type { FabricTap } from '../tapped-fabric.js';
import { WatchedCacheMap } from '../watched-map.js';
import type { World } from '../world.js';
import type { PlantedBug } from './planted-bug.js';

/**
 * The bugs that the simulator has to find. Each breaks one rule, in every node, at a seam of the world; which check notices is the
 * check's affair.
 */
const MAP_ENTRIES = 64;

/** Every other time, decided by the node's own random stream: a bug that always strikes is too easily found. */
const often = (life: SimNode): boolean => life.random.next() < 0.5;

/** Stands between the token client and the owner of a class of tokens. */
function wrapRevokes(
  life: SimNode,
  wanted: TokenClass,
  revoke: (revocation: Revocation, real: RevokeHandler) => Promise<void>,
): void {
  const { tokens } = life.node;
  const set = tokens.setRevokeHandler.bind(tokens);
  tokens.setRevokeHandler = (tokenClass, real) => {
    if (tokenClass !== wanted) set(tokenClass, real);
    else
      set(tokenClass, { revoke: (revocation) => revoke(revocation, real), working: (object) => real.working(object) });
  };
}

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

const map = (world: World, life: SimNode, Kind: typeof WatchedCacheMap): WatchedCacheMap =>
  new Kind(life.pool, world.scheduler, MAP_ENTRIES, world.plan.slotCount);

class LeaseForEver extends WatchedCacheMap {
  override setLeaseDeadline(): void {
    super.setLeaseDeadline(Number.MAX_SAFE_INTEGER);
  }
}

class CoverageNeverShrinks extends WatchedCacheMap {
  readonly #before = new Map<EntryId, readonly Coverage[]>();
  override setCoverage(entry: EntryId, ranges: readonly Coverage[]): void {
    const kept = ranges.length === 0 ? (this.#before.get(entry) ?? ranges) : ranges;
    this.#before.set(entry, kept);
    super.setCoverage(entry, kept);
  }
  override closeEntry(entry: EntryId): void {
    this.#before.delete(entry);
    super.closeEntry(entry);
  }
}

class StatusNeverLowered extends WatchedCacheMap {
  override setStatusMode(entry: EntryId, mode: TokenMode): void {
    super.setStatusMode(entry, Math.max(mode, this.published.get(entry)?.status ?? mode) as TokenMode);
  }
}

class SizeComesLate extends WatchedCacheMap {
  late: (run: () => void) => void = (run) => run();
  override noteWrite(entry: EntryId, endBytes: number, wallNs: bigint): void {
    if (endBytes <= this.entryState(entry).sizeBytes) super.noteWrite(entry, endBytes, wallNs);
    else this.late(() => this.published.has(entry) && super.noteWrite(entry, endBytes, wallNs));
  }
}

export const PLANTED_BUGS: readonly PlantedBug[] = [
  {
    name: 'release-without-flush',
    what: 'A data token is answered as given up without its bytes being flushed or dropped (T6, I3).',
    knownSeeds: [1],
    alterNode: (_world, life) =>
      wrapRevokes(life, TokenClass.data, (revocation, real) =>
        often(life) ? Promise.resolve() : real.revoke(revocation),
      ),
  },
  {
    name: 'release-before-flush-ended',
    what: 'A data token is answered while its flush is still under way (T6).',
    knownSeeds: [1],
    alterNode: (_world, life) =>
      wrapRevokes(life, TokenClass.data, (revocation, real) => {
        real.revoke(revocation).catch(() => undefined);
        return Promise.resolve();
      }),
  },
  {
    name: 'writable-after-downgrade',
    what: 'A revocation that leaves shared is answered, and the node goes on as if it held exclusive (I1, I2).',
    knownSeeds: [1],
    alterNode: (_world, life) =>
      wrapRevokes(life, TokenClass.data, (revocation, real) =>
        revocation.keep === TokenMode.shared ? Promise.resolve() : real.revoke(revocation),
      ),
  },
  {
    name: 'status-without-flush',
    what: 'A status token is answered without size and times having been written (I13).',
    knownSeeds: [1],
    alterNode: (_world, life) =>
      wrapRevokes(life, TokenClass.status, (revocation, real) =>
        often(life) ? Promise.resolve() : real.revoke(revocation),
      ),
  },
  {
    name: 'revoke-lost',
    what: 'A token server sends a revocation that never arrives (I12).',
    knownSeeds: [1],
    tap: (_world, life) => changeToClient((item) => (item.kind === 'revoke' && life.random.next() < 0.2 ? null : item)),
  },
  {
    name: 'grant-lost',
    what: 'A token server sends a grant that never arrives (I12).',
    knownSeeds: [1],
    tap: (_world, life) => changeToClient((item) => (item.kind === 'grant' && life.random.next() < 0.1 ? null : item)),
  },
  {
    name: 'exclusive-beside-shared',
    what: 'A shared request is granted as exclusive: nobody else was called back for that (I1).',
    knownSeeds: [1],
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
    knownSeeds: [1],
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
    knownSeeds: [2],
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
    name: 'coverage-kept',
    what: 'Hits go on in a range that has been given up (I2).',
    knownSeeds: [1],
    makeMap: (world, life) => map(world, life, CoverageNeverShrinks),
  },
  {
    name: 'status-kept',
    what: 'Hits go on relying on a status token that has been lowered (I2).',
    knownSeeds: [1],
    makeMap: (world, life) => map(world, life, StatusNeverLowered),
  },
  {
    name: 'lease-for-ever',
    what: 'The lease word never ends: a node that is cut off serves its cache (I7, F2).',
    knownSeeds: [9],
    makeMap: (world, life) => map(world, life, LeaseForEver),
  },
  {
    name: 'size-published-late',
    what: 'The size grows a millisecond after the write has returned (I13).',
    knownSeeds: [1],
    makeMap: (world, life) => {
      const made = map(world, life, SizeComesLate) as SizeComesLate;
      made.late = (run) => void world.scheduler.after(1, run);
      return made;
    },
  },
  {
    name: 'fence-skipped',
    what: 'Tokens of a vanished node fall without its having been shut out from the NSDs (F1, I5).',
    knownSeeds: [1],
    alterActions: (_world, _life, real) => ({
      fence: () => Promise.resolve(),
      tokensFall: (server, target) => real.tokensFall(server, target),
    }),
  },
  {
    name: 'server-ignores-fence',
    what: 'An NSD server acknowledges the fence and goes on serving the old incarnation (F1, S4).',
    knownSeeds: [1],
    tap: () => ({
      serving: (type, handler) => (type === MessageType.nsdFence ? () => new Uint8Array(0) : handler),
      forgetting: () => false,
    }),
    alterNode: (_world, life) => {
      const server = life.node.nsdServer;
      if (server !== null) server.fence = () => Promise.resolve();
    },
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
