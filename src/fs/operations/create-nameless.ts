/**
 * A file without a name (O_TMPFILE): an orphan from its first moment on, in the log too, so that whoever recovers this node frees it; its last
 * close does so otherwise. A name that it gets ends that (link.ts).
 */
import { TokenMode } from '../../token-manager/token.js';
import type { Inode } from '../inode.js';
import { checkAccess, EXECUTE, WRITE } from '../permissions.js';
import { checkDirectory, type InodeRef, patiently, pinInodes } from '../pinning.js';
import { MetadataTransaction } from '../transaction.js';
import type { Volume } from '../volume.js';
import { installXattrs } from '../xattrs.js';
import { initialise, knowsHome, learnHome, type NewNode } from './create-node.js';
import { Inheritance } from './inheritance.js';

/** `onCreated`: in the turn in which it came to be, with its tokens pinned. */
export async function createNameless<T>(
  volume: Volume,
  parent: InodeRef,
  node: NewNode,
  onCreated: (inode: Inode) => T,
): Promise<T> {
  const ticket = volume.numbers.tryTake() ?? (await volume.numbers.take());
  const inheritance = new Inheritance(volume, ticket, node);
  let used = false;
  try {
    const pins = await pinInodes(
      volume,
      [
        { ino: parent.ino, status: TokenMode.shared },
        { ino: ticket.ino, status: TokenMode.exclusive, alone: true, wide: true },
      ],
      patiently(node.options),
    );
    try {
      for (;;) {
        const directory = await volume.inodes.load(parent.ino);
        checkDirectory(directory, parent, node.op, node.path);
        checkAccess(directory, node.credentials, WRITE | EXECUTE, node.op, node.path);
        const inherited = inheritance.tryFrom(directory);
        if (inherited === null) {
          await inheritance.prepare(directory);
          continue;
        }
        if (!knowsHome(volume, ticket)) {
          await learnHome(volume, ticket);
          continue;
        }
        const transaction = new MetadataTransaction(volume);
        const inode = volume.inodes.create(ticket.ino, ticket.home);
        used = true;
        initialise(volume, inode, directory, node, inherited, ticket.generation, transaction.nowNs);
        inode.nlink = 0;
        inode.orphan = true;
        installXattrs(inode, inheritance.use());
        transaction.numbers('numbersSettled', ticket.ino);
        transaction.looseEnd({ kind: 'orphan', ino: inode.ino, generation: inode.generation });
        transaction.inode(inode);
        transaction.commit();
        volume.counters.add('fs.creates');
        return onCreated(inode);
      }
    } finally {
      pins.release();
    }
  } finally {
    inheritance.giveUp();
    if (!used) volume.numbers.putBack(ticket);
  }
}
