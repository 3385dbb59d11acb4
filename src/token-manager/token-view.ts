import type { ClusterView } from '../cluster/membership-api.js';
import type { ServerIdentity } from './placement.js';
import type { TokenView } from './token-server-events.js';

/** What tokens need of a view: every node computes the same from the same epoch. */
export function tokenViewOf(view: ClusterView): TokenView {
  const servers: ServerIdentity[] = [];
  for (const id of view.tokenServers) {
    const record = view.nodes.get(id);
    if (record !== undefined) servers.push({ nodeId: id, incarnation: record.incarnation });
  }
  const nodes = [...view.nodes.values()].map(({ nodeId, incarnation }) => ({ nodeId, incarnation }));
  return { epoch: view.epoch, servers, nodes };
}
