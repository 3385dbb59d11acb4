/** The allocation manager and the way of shipped frees between the nodes of a TestVolume, in the same process; a test may lose, repeat or hold back what is sent. */
import { type Deferred, deferred } from '../common/deferred.js';
import { FsError } from '../common/errors.js';
import { type NodeId, nodeId } from '../common/ids.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { ALLOCATION_MAP } from './layout.js';
import type { MountedFileSystem } from './mount.js';
import { type RegionHolder, RegionMachine } from './space/region-machine.js';
import type { Shipment, ShipmentAnswer } from './space/shipment.js';
import type { SpacePeers } from './space-peers.js';
import type { TestTokens } from './testing-tokens.js';

const REGIONS = { start: 0, end: Number.MAX_SAFE_INTEGER };

export class TestSpace {
  readonly #nodes = new Map<
    number,
    { readonly fs: MountedFileSystem; readonly tokens: TestTokens; readonly gone: Deferred<ShipmentAnswer> }
  >();
  #machine = new RegionMachine();
  /** The manager doesn't answer. */
  away = false;
  /** Questions and shipments sent. */
  messages = 0;
  /** What happens to a shipment on its way; `deliver` brings it to the node, any number of times, at any time. */
  onShip: ((to: number, shipment: Shipment, deliver: () => Promise<ShipmentAnswer>) => Promise<ShipmentAnswer>) | null =
    null;

  constructor(readonly nowMs: () => number) {}

  joins(node: number, fs: MountedFileSystem, tokens: TestTokens): void {
    this.#nodes.set(node, { fs, tokens, gone: deferred() });
  }
  /** Its tokens have fallen; what it was sent it will never answer. */
  leaves(fs: MountedFileSystem): void {
    for (const [node, one] of this.#nodes) {
      if (one.fs !== fs) continue;
      this.#nodes.delete(node);
      one.gone.resolve('silent');
    }
  }
  /** The role moves: the next one knows nothing. */
  managerDies(): void {
    this.#machine = new RegionMachine();
  }

  #holders(regionBytes: number): RegionHolder[] {
    return [...this.#nodes]
      .flatMap(([node, { tokens }]) =>
        tokens
          .heldIn(TokenClass.data, ALLOCATION_MAP, REGIONS)
          .filter(({ mode }) => mode === TokenMode.exclusive)
          .map(({ range }) => ({
            first: range.start / regionBytes,
            end: range.end / regionBytes,
            node: nodeId(node),
          })),
      )
      .sort((a, b) => a.first - b.first);
  }

  async #deliver(to: NodeId, shipment: Shipment): Promise<ShipmentAnswer> {
    const node = this.#nodes.get(to);
    if (node === undefined) return 'silent';
    try {
      return await Promise.race([node.fs.applyShipment(shipment), node.gone.promise]);
    } catch (error) {
      if (!FsError.is(error)) throw error;
      return 'silent';
    }
  }

  peers(self: number): Pick<SpacePeers, 'region' | 'holders' | 'ship'> {
    return {
      region: async (ask) => {
        this.messages++;
        if (this.away) return null;
        const holders = this.#holders(ask.regionBytes);
        return this.#machine.step({ type: 'asked', from: nodeId(self), ask, holders }, this.nowMs());
      },
      holders: async ({ regions, regionBytes }) => {
        this.messages++;
        if (this.away) return null;
        const holders = this.#holders(regionBytes);
        return regions.map((region) => holders.find(({ first, end }) => first <= region && region < end)?.node ?? null);
      },
      ship: (to, shipment) => {
        this.messages++;
        const deliver = () => this.#deliver(to, shipment);
        return this.onShip === null ? deliver() : this.onShip(to, shipment, deliver);
      },
    };
  }
}
