import type { Membership } from '../cluster/membership-api.js';
import type { FileSystemNumber, InodeNumber } from '../common/ids.js';
import type { Fabric } from '../fabric/fabric.js';
import { segmentOf } from '../fs/layout.js';
import type { MountedFileSystem } from '../fs/mount.js';
import type { SharedOwners } from '../fs/shared/shared-io.js';
import { MessageType } from '../protocol/message-types.js';
import {
  decodeSharedCall,
  decodeSharedReply,
  encodeSharedCall,
  encodeSharedReply,
} from '../protocol/shared-io-messages.js';
import { tokenObject } from '../token-manager/file-system-scope.js';
import { serverOf } from '../token-manager/placement.js';
import { TokenClass } from '../token-manager/token.js';
import { tokenViewOf } from '../token-manager/token-view.js';

/**
 * Carries what is asked of the owners of shared files. The owner of a file is whoever serves its tokens: a full node, which every node dials, and the
 * same for all who have the same view. Views that differ for a moment do no harm, since whoever does it has the tokens.
 *
 * A session executes a request once, however often its connection breaks (F6). It ends when the owner's life is over, or at its deadline.
 */
export interface SharedExchangeParts {
  readonly fabric: Fabric;
  readonly membership: Membership;
  readonly mounted: () => { readonly uuid: string; readonly fileSystem: MountedFileSystem } | null;
}

const TIMEOUT_MS = 60_000;

export class SharedExchange {
  readonly #parts: SharedExchangeParts;

  constructor(parts: SharedExchangeParts) {
    this.#parts = parts;
    const { fabric, mounted } = parts;
    fabric.handleRequests(MessageType.fsShared, async ({ body }) => {
      const { fsUuid, incarnation, request } = decodeSharedCall(body);
      const here = mounted();
      if (here === null || here.uuid !== fsUuid || incarnation !== fabric.self.incarnation)
        return encodeSharedReply(null);
      return encodeSharedReply(await here.fileSystem.serveShared(request));
    });
  }

  /** As the file system of this UUID and number sees them. */
  owners(fsUuid: string, number: FileSystemNumber): SharedOwners {
    const { fabric, membership } = this.#parts;
    return {
      ownerOf: (ino: InodeNumber) => {
        const { servers } = tokenViewOf(membership.view);
        const owner = serverOf(servers, TokenClass.status, tokenObject(TokenClass.status, number, segmentOf(ino)));
        if (owner === null || owner === undefined || owner.nodeId === fabric.self.nodeId) return null;
        return { nodeId: owner.nodeId, incarnation: owner.incarnation };
      },
      isThere: ({ nodeId, incarnation }) => {
        const { view } = membership;
        // One that is being expelled may still have something on its way.
        if (view.expelling.some((life) => life.nodeId === nodeId && life.incarnation === incarnation)) return true;
        return view.nodes.get(nodeId)?.incarnation === incarnation;
      },
      ask: async ({ nodeId, incarnation }, request, signal) => {
        const body = encodeSharedCall({ fsUuid, incarnation, request });
        const options = { timeoutMs: TIMEOUT_MS, ...(signal === undefined ? {} : { signal }) };
        return decodeSharedReply(await fabric.peer(nodeId).request(MessageType.fsShared, body, options));
      },
    };
  }
}
