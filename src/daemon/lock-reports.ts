import type { Membership } from '../cluster/membership-api.js';
import { FsError } from '../common/errors.js';
import { type NodeId, nodeId } from '../common/ids.js';
import type { Fabric } from '../fabric/fabric.js';
import type { MountedFileSystem } from '../fs/mount.js';
import {
  decodeLockQuestion,
  decodeLockReport,
  encodeLockQuestion,
  encodeLockReport,
  LOCK_REPORT_MAX,
  type LockReport,
  type ReportedLock,
} from '../protocol/lock-report-messages.js';
import { MessageType } from '../protocol/message-types.js';
import type { LockClientMachine } from '../token-manager/locks/lock-client-machine.js';
import { LockSpace, LockType } from '../token-manager/locks/lock-table.js';

/**
 * Who has locked what, for tools: each node tells what its own programs hold, wait for and deny. Libraries, which nobody dials, are asked by
 * a token server that has a link with them.
 *
 * Fault model: a node that doesn't answer is named in the answer, and nothing is known of it. What is told is of the moment each was asked.
 */
export interface LockReportsParts {
  readonly fabric: Fabric;
  readonly membership: Membership;
  readonly locks: () => LockClientMachine;
  readonly mounted: () => { readonly fileSystem: MountedFileSystem } | null;
}
export interface NodeLocks {
  readonly node: NodeId;
  /** Null: it did not answer. */
  readonly report: LockReport | null;
}

const TIMEOUT_MS = 5_000;

export class LockReports {
  readonly #parts: LockReportsParts;

  constructor(parts: LockReportsParts) {
    this.#parts = parts;
    parts.fabric.handleRequests(MessageType.lockReport, async ({ body }) => {
      const { relayTo, limit } = decodeLockQuestion(body);
      if (relayTo === null) return encodeLockReport(this.#own(limit));
      const to = nodeId(relayTo);
      if (!this.#reaches(to))
        throw new FsError('unreachable', { op: 'lock.report', object: `node ${relayTo}`, detail: 'no link with it' });
      return encodeLockReport(await this.#ask(to, null, limit));
    });
  }

  /** Of every node in the view. */
  async all(): Promise<NodeLocks[]> {
    const { membership, fabric } = this.#parts;
    return Promise.all(
      [...membership.view.nodes.keys()].map(async (node) => {
        if (node === fabric.self.nodeId) return { node, report: this.#own(LOCK_REPORT_MAX) };
        return { node, report: await this.#reportOf(node) };
      }),
    );
  }

  async #reportOf(node: NodeId): Promise<LockReport | null> {
    const relays = this.#reaches(node) ? [null] : this.#parts.membership.view.tokenServers;
    for (const relay of relays)
      try {
        if (relay === null) return await this.#ask(node, null, LOCK_REPORT_MAX);
        return await this.#ask(relay, node, LOCK_REPORT_MAX);
      } catch (error) {
        if (!FsError.is(error)) throw error;
      }
    return null;
  }

  #reaches(node: NodeId): boolean {
    const { membership, fabric } = this.#parts;
    const record = membership.view.nodes.get(node);
    return record !== undefined && (record.address !== null || fabric.peer(node).connected);
  }

  async #ask(to: NodeId, relayTo: NodeId | null, limit: number): Promise<LockReport> {
    const question = encodeLockQuestion(relayTo, limit);
    const answer = await this.#parts.fabric.peer(to).request(MessageType.lockReport, question, {
      timeoutMs: TIMEOUT_MS,
    });
    return decodeLockReport(answer);
  }

  #own(limit: number): LockReport {
    const locks: ReportedLock[] = [];
    const machine = this.#parts.locks();
    for (const [found, isHeld] of [
      [machine.held(), true],
      [machine.awaited(), false],
    ] as const)
      for (const { object, space, lock } of found) {
        if (locks.length >= limit) return { locks, more: true };
        const { start, end, type, owner } = lock;
        const whole = space === LockSpace.whole;
        locks.push({
          kind: whole ? (isHeld ? 'flockHeld' : 'flockWaiting') : isHeld ? 'held' : 'waiting',
          object,
          exclusive: type === LockType.write,
          deny: 'none',
          start,
          end,
          pid: owner.pid,
          process: owner.isProcess,
        });
      }
    for (const { ino, deny, writes } of this.#parts.mounted()?.fileSystem.shareModes() ?? []) {
      if (locks.length >= limit) return { locks, more: true };
      locks.push({ kind: 'share', object: ino, exclusive: writes, deny, start: 0, end: 0, pid: 0, process: false });
    }
    return { locks, more: false };
  }
}
