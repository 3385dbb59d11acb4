import { FUSE_SESSION_DEFAULTS, FuseSession } from '../fuse-session.js';
import { Ledger } from '../ledger.js';
import { MemoryFileSystem } from './memory-file-system.js';

/**
 * A server of a mount in a process of its own, to be killed: descriptor 3 is the mount's, 4 the ledger. Argument `hold OP`: the first such request
 * is never answered. What an earlier server told the kernel is in the ledger; its file system is the same by construction.
 */
export const SERVED = { a: 'a'.repeat(3 * 4096), slow: 'slow' } as const;

/** The settings of a ledger that such a server can be given. */
export const SERVER_SETTINGS = {
  ...FUSE_SESSION_DEFAULTS,
  smallSlots: 64,
  largeSlots: 4,
  nodesMax: 1024,
  handlesMax: 64,
};

async function main(): Promise<void> {
  const fs = new MemoryFileSystem();
  for (const [name, text] of Object.entries(SERVED)) fs.put(name, text);
  const session = new FuseSession([3], 4, new ArrayBuffer(4096), SERVER_SETTINGS, fs);
  fs.session = session;
  const ledger = new Ledger(session.ledgerMemory());
  fs.ledger = ledger;
  for (const { node, inode } of ledger.nodes()) fs.adopt(node, inode);
  for (const { handle, node } of ledger.handles()) fs.adoptHandle(handle, node);
  const hold = process.argv[2] === 'hold' ? process.argv[3] : undefined;
  if (hold !== undefined) {
    void fs.hold(hold as 'read').then(() => process.send?.('held'));
  }
  const resent = [...ledger.inFlight()].length;
  session.start();
  if (process.argv[2] === 'adopt') await session.resend();
  else await fs.until(() => fs.agreement !== null);
  process.send?.({ ready: true, resent, handles: fs.handles.size });
  process.on('disconnect', () => process.exit(0));
}

if (process.argv[1]?.endsWith('server.js') === true && process.send !== undefined) await main();
