/**
 * A check of a file system that is mounted and worked on, by a node that has it mounted, as an ordinary client of the tokens.
 *
 * Four passes (docs/check.md): system and inodes, names, link counts, space. Each reads what is in place, without tokens and so without disturbing anybody; what does
 * not fit is looked at again under the tokens of all that it concerns (online-context.ts). What can't be known while nodes have things on their way is counted
 * and told. Nothing is changed, but for damaged copies with `repair`.
 *
 * Memory: as the offline check (a bit per sub-block, some 17 bytes per inode, a little per directory), doubtful names and sub-blocks up to bounds.
 * Fault model: being called off, unmounted or fenced at any moment leaves no pin and nothing half done.
 */
import { FsError } from '../../../common/errors.js';
import type { Volume } from '../../volume.js';
import { Census } from './census.js';
import { InodePass } from './inode-pass.js';
import type { Fault } from './look-at-inode.js';
import { NamePass } from './name-pass.js';
import { OnlineContext } from './online-context.js';
import { OnlinePaths } from './online-paths.js';
import {
  NOT_CHECKED,
  type NotCheckedKind,
  type OnlineFinding,
  type OnlineOptions,
  type OnlineReport,
} from './online-report.js';
import { SpacePass } from './space-pass.js';
import { lookAtSystem } from './system-look.js';

const MENDED = 'written anew from the other copy';

export async function checkOnline(volume: Volume, options: OnlineOptions = {}): Promise<OnlineReport> {
  const context = new OnlineContext(volume, options);
  try {
    return await run(context);
  } catch (error) {
    // Called off, whatever that made of what was under way.
    if (options.signal?.aborted === true) throw new FsError('aborted', { op: 'fs.check', detail: 'it was called off' });
    throw error;
  }
}

async function run(context: OnlineContext): Promise<OnlineReport> {
  const { options } = context;
  const first = new InodePass(context);
  const fourth = new SpacePass(context, first);
  context.progress({ phase: 'superblocks and logs', done: 0, total: 0 });
  await lookAtSystem(context, first, fourth);
  await first.run();
  if (options.data !== true) context.notChecked('data', first.regularFiles);
  const second = new NamePass(context, first);
  await second.run();
  await new Census(context, first, second).run();
  await fourth.run();
  const paths = await OnlinePaths.for(
    context,
    second,
    context.found.flatMap(({ fault }) => (fault.ino === null ? [] : [fault.ino])),
  );
  const described = (fault: Fault): OnlineFinding => ({
    ...fault,
    path: fault.ino === null ? null : paths.pathOf(fault.ino),
    mend: fault.kind === 'copyDamaged' || fault.kind === 'superblockCopy' ? MENDED : null,
  });
  const mended = context.found.filter((found) => found.mended).map(({ fault }) => described(fault));
  const findings = context.found.filter((found) => !found.mended).map(({ fault }) => described(fault));
  return {
    findings,
    findingCount: context.foundCount - mended.length,
    mended,
    notChecked: (Object.keys(NOT_CHECKED) as NotCheckedKind[]).flatMap((kind) => {
      const count = context.notCheckedCount(kind);
      return count === 0 ? [] : [{ kind, count, what: NOT_CHECKED[kind] }];
    }),
    suspicions: context.suspicions,
    inodes: first.inodes.count,
    directories: first.directories.size,
    sectorsRead: context.sectorsRead,
  };
}
