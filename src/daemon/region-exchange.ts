import type { Membership } from '../cluster/membership-api.js';
import type { Clock } from '../common/clock.js';
import type { Counters } from '../common/counters.js';
import { FsError } from '../common/errors.js';
import { type FileSystemNumber, type NodeId, nodeId } from '../common/ids.js';
import type { Logger } from '../common/logger.js';
import type { Fabric, IncomingMessage } from '../fabric/fabric.js';
import { ALLOCATION_MAP } from '../fs/layout.js';
import type { MountedFileSystem } from '../fs/mount.js';
import { type RegionHolder, RegionMachine } from '../fs/space/region-machine.js';
import type { RegionAnswer, RegionAsk, Shipment, ShipmentAnswer } from '../fs/space/shipment.js';
import type { SpacePeers } from '../fs/space-peers.js';
import { MessageType } from '../protocol/message-types.js';
import {
  decodeHoldersQuestion,
  decodeHoldersReply,
  decodeRegionQuestion,
  decodeRegionReply,
  decodeShipment,
  decodeShipmentReply,
  encodeHoldersQuestion,
  encodeHoldersReply,
  encodeRegionQuestion,
  encodeRegionReply,
  encodeShipment,
  encodeShipmentReply,
} from '../protocol/region-messages.js';
import { tokenObject } from '../token-manager/file-system-scope.js';
import { serverOf } from '../token-manager/placement.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import type { TokenServer } from '../token-manager/token-server.js';
import { tokenViewOf } from '../token-manager/token-view.js';

/**
 * The allocation manager at work, and the way of frees to a region's holder (S6): carries SpacePeers' `region`, `holders` and `ship` between nodes.
 *
 * The manager of a file system is whoever serves the tokens of its allocation map: every node that has it mounted has a link with that one.
 * So what is for a node without an address (libraries, which nobody dials) goes by way of it. When that role moves, the new one begins with
 * nothing known, and the old one forgets.
 * Fault model: a manager that is away or doesn't know all holders yet (T8) is silent; so is a holder that is away, suspended or slow.
 */
export interface RegionExchangeParts {
  readonly fabric: Fabric;
  readonly membership: Membership;
  readonly clock: Clock;
  readonly counters: Counters;
  readonly logger: Logger;
  readonly tokenServer: TokenServer | null;
  readonly mounted: () => { readonly uuid: string; readonly fileSystem: MountedFileSystem } | null;
}

const TIMEOUT_MS_MAX = 60_000;

export class RegionExchange {
  readonly #parts: RegionExchangeParts;
  readonly #managers = new Map<FileSystemNumber, RegionMachine>();

  constructor(parts: RegionExchangeParts) {
    this.#parts = parts;
    const { fabric } = parts;
    fabric.handleRequests(MessageType.fsRegion, (message) => this.#answerRegion(message));
    fabric.handleRequests(MessageType.fsHolders, ({ body }) => {
      const { fileSystem, regionBytes, regions } = decodeHoldersQuestion(body);
      const pieces = this.#holders(fileSystem, regionBytes);
      if (pieces === null) return encodeHoldersReply(null);
      return encodeHoldersReply(regions.map((region) => holderOf(pieces, region)));
    });
    fabric.handleRequests(MessageType.fsShip, (message) => this.#answerShipment(message));
  }

  /** As the file system of this UUID and number sees them. */
  peers(fsUuid: string, fileSystem: FileSystemNumber): Pick<SpacePeers, 'region' | 'holders' | 'ship'> {
    return {
      region: (ask, timeoutMs) => this.#askRegion(fileSystem, ask, timeoutMs),
      holders: (ask, timeoutMs) => this.#askHolders({ fileSystem, ...ask }, timeoutMs),
      ship: (to, shipment, timeoutMs) => this.#ship(to, { fsUuid, fileSystem, shipment }, timeoutMs),
    };
  }

  #managerOf(fileSystem: FileSystemNumber): NodeId | null {
    const { servers } = tokenViewOf(this.#parts.membership.view);
    return serverOf(servers, TokenClass.data, mapObject(fileSystem))?.nodeId ?? null;
  }

  // What this node asks

  async #askRegion(fileSystem: FileSystemNumber, ask: RegionAsk, timeoutMs: number): Promise<RegionAnswer | null> {
    const reply = await this.#askManager(fileSystem, async (manager) => {
      const body = encodeRegionQuestion({ fileSystem, ...ask });
      return decodeRegionReply(await manager.request(MessageType.fsRegion, body, { timeoutMs }));
    });
    return reply === null || reply.kind === 'unknown' || reply.kind === 'none' ? null : (reply as RegionAnswer);
  }

  #askHolders(
    question: { fileSystem: FileSystemNumber; regionBytes: number; regions: readonly number[] },
    timeoutMs: number,
  ): Promise<readonly (NodeId | null)[] | null> {
    return this.#askManager(question.fileSystem, async (manager) =>
      decodeHoldersReply(await manager.request(MessageType.fsHolders, encodeHoldersQuestion(question), { timeoutMs })),
    );
  }

  async #askManager<T>(
    fileSystem: FileSystemNumber,
    ask: (manager: ReturnType<Fabric['peer']>) => Promise<T>,
  ): Promise<T | null> {
    const { fabric, counters, logger } = this.#parts;
    const manager = this.#managerOf(fileSystem);
    if (manager === null) return null;
    try {
      return await ask(fabric.peer(manager));
    } catch (error) {
      counters.add('fs.managerFailed');
      logger.warn({ node: manager, error: String(error) }, 'the allocation manager did not answer');
      return null;
    }
  }

  async #ship(
    to: NodeId,
    about: { fsUuid: string; fileSystem: FileSystemNumber; shipment: Shipment },
    timeoutMs: number,
  ): Promise<ShipmentAnswer> {
    const { fabric, membership, counters, logger } = this.#parts;
    try {
      const dialled = membership.view.nodes.get(to)?.address !== null || fabric.peer(to).connected;
      const by = dialled ? to : (this.#managerOf(about.fileSystem) ?? to);
      return (await this.#request(by, by === to ? null : to, about, timeoutMs)) ? 'applied' : 'notMine';
    } catch (error) {
      counters.add('fs.holdersSilent');
      logger.warn({ node: to, error: String(error) }, 'it is not known whether freed space has arrived');
      return 'silent';
    }
  }

  async #request(
    by: NodeId,
    relayTo: NodeId | null,
    about: { fsUuid: string; fileSystem: FileSystemNumber; shipment: Shipment },
    timeoutMs: number,
  ): Promise<boolean> {
    const body = encodeShipment({ ...about, relayTo, timeoutMs });
    return decodeShipmentReply(await this.#parts.fabric.peer(by).request(MessageType.fsShip, body, { timeoutMs }));
  }

  // What it is asked

  #answerRegion({ from, body }: IncomingMessage): Uint8Array {
    const { fileSystem, ...ask } = decodeRegionQuestion(body);
    const holders = this.#holders(fileSystem, ask.regionBytes);
    if (holders === null) return encodeRegionReply({ kind: 'unknown' });
    let machine = this.#managers.get(fileSystem);
    if (machine === undefined) {
      machine = new RegionMachine();
      this.#managers.set(fileSystem, machine);
    }
    const answer = machine.step({ type: 'asked', from: from.nodeId, ask, holders }, this.#parts.clock.nowMs());
    if (ask.count > 0) this.#parts.counters.add('fs.managerAnswered');
    return encodeRegionReply(answer ?? { kind: 'none' });
  }

  /** Ascending; null: this node isn't the manager, or doesn't know yet who holds what. */
  #holders(fileSystem: FileSystemNumber, regionBytes: number): RegionHolder[] | null {
    const pieces = this.#parts.tokenServer?.machine.holdersOfObject(TokenClass.data, mapObject(fileSystem)) ?? null;
    if (pieces === null) {
      this.#managers.delete(fileSystem);
      return null;
    }
    // Who only reads a region's sectors doesn't allocate from it.
    return pieces
      .filter(({ mode }) => mode === TokenMode.exclusive)
      .map(({ range, by }) => ({
        first: Math.floor(range.start / regionBytes),
        end: Math.ceil(range.end / regionBytes),
        node: by.nodeId,
      }))
      .sort((a, b) => a.first - b.first);
  }

  async #answerShipment({ body }: IncomingMessage): Promise<Uint8Array> {
    const { fsUuid, fileSystem, relayTo, timeoutMs, shipment } = decodeShipment(body);
    if (relayTo !== null) {
      if (!this.#parts.membership.view.nodes.has(nodeId(relayTo)))
        throw new FsError('notFound', { op: 'fs.ship', object: `node ${relayTo}`, detail: 'there is no such node' });
      const bounded = Math.min(timeoutMs, TIMEOUT_MS_MAX);
      this.#parts.counters.add('fs.shipmentsRelayed');
      return encodeShipmentReply(await this.#request(relayTo, null, { fsUuid, fileSystem, shipment }, bounded));
    }
    const here = this.#parts.mounted();
    if (here === null || here.uuid !== fsUuid) return encodeShipmentReply(false);
    return encodeShipmentReply((await here.fileSystem.applyShipment(shipment)) === 'applied');
  }
}

const mapObject = (fileSystem: FileSystemNumber) => tokenObject(TokenClass.data, fileSystem, ALLOCATION_MAP);

function holderOf(holders: readonly RegionHolder[], region: number): NodeId | null {
  return holders.find(({ first, end }) => first <= region && region < end)?.node ?? null;
}
