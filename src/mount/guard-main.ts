import { constants } from 'node:os';
import { FUSE_SESSION_DEFAULTS, FuseSession } from './fuse-session.js';
import { Ledger } from './ledger.js';
import { abortConnection, unmountFuse } from './mount-point.js';
import { invalInode } from './wire/notify.js';
import { NotifyCode } from './wire/protocol.js';

/**
 * The guard of one mount (F4): a process beside the daemon, with duplicates of the mount's descriptor (3) and its ledger (4). Kernels go on showing pages that
 * they have cached, long after who gave them has died.
 *
 * Its standard input is held open by the daemon, which says there that all is over when it ends in good order. If it ends without a word, the daemon is dead: then
 * the guard makes requests move (all are asked for again, and refused; FLUSH is granted, so that processes can die), drops everything that the kernel keeps,
 * takes the mount off the tree, and aborts it. Fault model: of what blocks a notification (a page of a READ that the dead one had taken) it is known that it ends
 * with the abort, at the latest; so everything is dropped once more after that.
 */
const AT_ONCE = 256;
const DROP_TIMEOUT_MS = 5000;
const DEVICE = 3;
const LEDGER = 4;

const FAREWELL = 'over';

async function dropAll(session: FuseSession, nodes: readonly number[]): Promise<void> {
  for (let at = 0; at < nodes.length; at += AT_ONCE) {
    const some = nodes.slice(at, at + AT_ONCE);
    await Promise.all(
      some.map((node) => session.notify(NotifyCode.invalInode, invalInode(node, 0, 0)).catch(() => undefined)),
    );
  }
}

const within = (work: Promise<unknown>, ms: number): Promise<unknown> =>
  Promise.race([work, new Promise((resolve) => setTimeout(resolve, ms).unref())]);

async function daemonDied(target: string, connection: number): Promise<void> {
  const session = new FuseSession([DEVICE], LEDGER, new ArrayBuffer(4096), FUSE_SESSION_DEFAULTS, {
    request: (id) => session.answer(id, constants.errno.ENOTCONN),
    interrupted: () => undefined,
    forgotten: () => undefined,
    agreed: () => undefined,
    ended: () => undefined,
  });
  const nodes = [...new Ledger(session.ledgerMemory()).nodes()].map(({ node }) => node);
  session.refuse(constants.errno.ENOTCONN);
  session.start();
  await session.resend().catch(() => undefined);
  await within(dropAll(session, nodes), DROP_TIMEOUT_MS);
  await unmountFuse(target, { lazy: true }).catch(() => undefined);
  await abortConnection(connection).catch(() => undefined);
  await within(dropAll(session, nodes), DROP_TIMEOUT_MS);
}

const [target, connection] = process.argv.slice(2);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
let said = '';
process.stdin.setEncoding('utf8');
process.stdin.on('data', (text: string) => {
  said += text;
});
process.stdin.on('end', () => {
  if (said.startsWith(FAREWELL)) process.exit(0);
  daemonDied(target!, Number(connection)).then(
    () => process.exit(0),
    (error: unknown) => {
      process.stderr.write(`holdfast guard of ${target}: ${String(error)}\n`);
      process.exit(1);
    },
  );
});
process.stdin.resume();
