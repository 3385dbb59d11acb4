/** Whether everything has its place in the tree, and as many names as it says. From what was gathered; reads nothing. */
import { type InodeNumber, inodeNumber } from '../../common/ids.js';
import { FileType } from '../file-system-api.js';
import { directoryFault } from '../inode-format.js';
import { FIRST_USER_INODE, ROOT_DIRECTORY } from '../layout.js';
import { removeFrom } from './directory-edits.js';
import { editInode, freeInode } from './inode-edits.js';
import type { DirectoryFacts } from './inode-facts.js';
import { moveToLostAndFound } from './lost-and-found.js';
import type { Scan } from './scan.js';

const NOWHERE = inodeNumber(0);

export function checkTree(scan: Scan): void {
  checkLoops(scan);
  for (const ino of scan.inodes.inUse()) {
    if (ino < FIRST_USER_INODE) continue;
    const directory = scan.inodes.directories.get(ino);
    if (directory !== undefined) checkDirectoryPlace(scan, directory);
    else if (scan.inodes.type(ino) !== FileType.directory) checkFilePlace(scan, ino);
  }
  for (const directory of scan.inodes.directories.values()) checkDirectoryCounts(scan, directory);
}

function checkFilePlace(scan: Scan, ino: InodeNumber): void {
  const names = scan.inodes.names(ino);
  const links = scan.inodes.links(ino);
  if (names === 0 && links === 0)
    scan.report('orphan', { ino }, 'has neither a name nor links', 'freed', (edits) => freeInode(scan, edits, ino));
  else if (names === 0)
    scan.report('fileDetached', { ino }, `has no name, and ${links} links`, `becomes /lost+found/${ino}`, (edits) =>
      moveToLostAndFound(scan, edits, ino),
    );
  else if (names !== links)
    scan.report('linkCount', { ino }, `has ${names} names and ${links} links`, `${names} written`, (edits) =>
      editInode(scan, edits, ino, (fields) => {
        fields.nlink = names;
      }),
    );
}

function checkDirectoryPlace(scan: Scan, directory: DirectoryFacts): void {
  const { ino } = directory;
  if (directory.namedIn === NOWHERE) {
    if (scan.inodes.links(ino) === 0 && directory.foundEntries === 0)
      scan.report('orphan', { ino }, 'has neither a name nor links', 'freed', (edits) => freeInode(scan, edits, ino));
    else
      scan.report(
        'directoryDetached',
        { ino },
        'is a directory that nothing names',
        `becomes /lost+found/${ino}`,
        (edits) => moveToLostAndFound(scan, edits, ino),
      );
  } else if (directory.namedIn !== directory.parent)
    scan.report(
      'parentWrong',
      { ino },
      `is named in directory ${directory.namedIn}, and says that its parent is ${directory.parent}`,
      `${directory.namedIn} written`,
      (edits) =>
        editInode(scan, edits, ino, (fields) => {
          fields.parent = directory.namedIn;
        }),
    );
}

/** From each directory upwards; who comes back to where he was has found a loop, which is cut at its smallest number. */
function checkLoops(scan: Scan): void {
  const { directories } = scan.inodes;
  const seenIn = new Map<InodeNumber, InodeNumber>();
  for (const start of directories.keys()) {
    let at: InodeNumber = start;
    while (at !== ROOT_DIRECTORY && at !== NOWHERE && !seenIn.has(at)) {
      seenIn.set(at, start);
      at = directories.get(at)?.namedIn ?? NOWHERE;
    }
    if (at === ROOT_DIRECTORY || at === NOWHERE || seenIn.get(at) !== start) continue;
    const loop: InodeNumber[] = [at];
    for (let next = directories.get(at)!.namedIn; next !== at; next = directories.get(next)!.namedIn) loop.push(next);
    const cut = inodeNumber(Math.min(...loop));
    const naming = scan.namings.get(cut)!;
    scan.report(
      'directoryLoop',
      { ino: cut },
      `is below itself: directories ${[...loop].sort((a, b) => a - b).join(', ')} name each other`,
      `the name of ${cut} in directory ${naming.directory.ino} goes, it becomes /lost+found/${cut}`,
      // Named in lost+found first: between the two it has two names, of which the one that it speaks of itself stays.
      async (edits) => {
        await moveToLostAndFound(scan, edits, cut);
        await removeFrom(scan, naming.home, naming.directory, naming.entry)(edits);
      },
    );
  }
}

function checkDirectoryCounts(scan: Scan, directory: DirectoryFacts): void {
  const { ino, foundEntries, foundDirectories } = directory;
  const links = 2 + foundDirectories;
  if (scan.inodes.links(ino) !== links && (ino === ROOT_DIRECTORY || directory.namedIn !== NOWHERE))
    scan.report(
      'linkCount',
      { ino },
      `has ${foundDirectories} directories and ${scan.inodes.links(ino)} links`,
      `${links} written`,
      (edits) =>
        editInode(scan, edits, ino, (fields) => {
          fields.nlink = links;
        }),
    );
  const depth = Math.max(directory.depth, directory.foundDepth);
  const said = Math.max(directory.sizeBytes, directory.foundBytes);
  const sizeBytes =
    directoryFault(FileType.directory, { sizeBytes: said, depth }) === null ? said : directory.foundBytes;
  if (foundEntries === directory.entries && depth === directory.depth && sizeBytes === directory.sizeBytes) return;
  scan.report(
    'directoryCount',
    { ino },
    `has ${foundEntries} names in leaves of depth ${directory.foundDepth} up to byte ${directory.foundBytes}, ` +
      `and says ${directory.entries}, ${directory.depth} and ${directory.sizeBytes}`,
    'what there is written',
    (edits) =>
      editInode(scan, edits, ino, (fields) => {
        fields.directoryEntries = foundEntries;
        fields.directoryDepth = depth;
        fields.sizeBytes = sizeBytes;
      }),
  );
}
