import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, it } from 'vitest';
import { checkVolume, TestVolume } from '../../fs/testing.js';
import { canAskAboutSpace, canAskKernel, LocalCalls, LocalKernel } from '../testing/local-calls.js';
import { type Calls, LibraryCalls } from '../testing/posix-calls.js';
import type { Rule, RuleContext } from '../testing/posix-rules.js';
import { aclRules } from './acl.suite.js';
import { chmodRules } from './chmod.suite.js';
import { chownRules } from './chown.suite.js';
import { fallocateRules } from './fallocate.suite.js';
import { linkRules } from './link.suite.js';
import { mkdirRules } from './mkdir.suite.js';
import { mknodRules } from './mknod.suite.js';
import { openRules } from './open.suite.js';
import { renameRules } from './rename.suite.js';
import { rmdirRules } from './rmdir.suite.js';
import { seekRules } from './seek.suite.js';
import { symlinkRules } from './symlink.suite.js';
import { truncateRules } from './truncate.suite.js';
import { unlinkRules } from './unlink.suite.js';
import { utimensatRules } from './utimensat.suite.js';
import { xattrRules } from './xattr.suite.js';

/**
 * The rules of POSIX that are about names and attributes, on one node; with the acting and the looking side on two; and, as root, on a
 * local directory, so that what we expect is what the kernel does.
 */
const suites: Record<string, readonly Rule[]> = {
  'access lists': aclRules,
  chmod: chmodRules,
  chown: chownRules,
  fallocate: fallocateRules,
  link: linkRules,
  mkdir: mkdirRules,
  'mknod and mkfifo': mknodRules,
  open: openRules,
  rename: renameRules,
  rmdir: rmdirRules,
  'lseek to data and holes': seekRules,
  symlink: symlinkRules,
  truncate: truncateRules,
  unlink: unlinkRules,
  utimensat: utimensatRules,
  'extended attributes': xattrRules,
};

type Side = (dir: string) => Calls;

function context(act: Side, look: Side, dir: string, tick: () => Promise<void>): RuleContext {
  const looking = look(dir);
  return {
    act: act(dir),
    look: looking,
    dir,
    moved: async (path, action) => {
      const before = await looking.lstat(path);
      await tick();
      await action();
      const after = await looking.lstat(path);
      return (['atime', 'mtime', 'ctime'] as const)
        .filter((time) => after[time] !== before[time])
        .map((time) => time[0])
        .join('');
    },
  };
}

function runAll(rules: (rule: Rule) => boolean, makeContext: () => Promise<RuleContext>): void {
  for (const [call, suite] of Object.entries(suites))
    describe(call, () => {
      for (const rule of suite) if (rules(rule)) it(rule.name, async () => rule.run(await makeContext()));
    });
}

for (const nodes of [1, 2])
  describe(`on ${nodes} node(s)`, () => {
    let volume: TestVolume;
    const sides: LibraryCalls[] = [];
    const unmount: (() => Promise<void>)[] = [];
    let count = 0;
    beforeAll(async () => {
      volume = await TestVolume.create({ blocks: [128, 128] });
      for (let node = 1; node <= nodes; node++) {
        const { fs } = await volume.mount(node);
        sides.push(new LibraryCalls(fs, ''));
        unmount.push(() => fs.unmount());
      }
    });
    afterAll(async () => {
      for (const leave of unmount) await leave();
      const { problems, lostSubBlocks, lostInodes } = await checkVolume(volume);
      if (problems.length + lostSubBlocks + lostInodes > 0)
        throw new Error(
          `the file system is not sound afterwards: ${problems.join('; ')}, lost ${lostSubBlocks}, ${lostInodes}`,
        );
    });
    runAll(
      () => true,
      async () => {
        const dir = `/rule${count++}`;
        // What rules write stays dirty, on a clock that stands still.
        if (count % 8 === 0) for (const { fs } of sides) await fs.sync();
        await sides.at(-1)!.mkdir(dir.slice(1), 0o777);
        // Time never stands still there.
        return context(
          (d) => sides[0]!.in(d),
          (d) => sides.at(-1)!.in(d),
          dir,
          () => Promise.resolve(),
        );
      },
    );
  });

const asksAboutSpace = canAskAboutSpace();
describe.runIf(canAskKernel())('on a local directory', () => {
  let kernel: LocalKernel;
  let root = '';
  let count = 0;
  beforeAll(async () => {
    kernel = new LocalKernel();
    root = await mkdtemp(join(tmpdir(), 'holdfast-posix-'));
    await chmod(root, 0o755);
  });
  afterAll(async () => {
    kernel.close();
    await rm(root, { recursive: true });
  });
  /** Until a change gets another time than the ones before it. */
  const tick = async (): Promise<void> => {
    const clock = new LocalCalls(kernel, root);
    await clock.open('clock', 0o101, 0o600);
    const { ctime } = await clock.stat('clock');
    do await clock.chmod('clock', 0o600);
    while ((await clock.stat('clock')).ctime === ctime);
  };
  const side: Side = (dir) => new LocalCalls(kernel, dir);
  runAll(
    ({ ownLimits, ofSpace }) => ownLimits !== true && (ofSpace !== true || asksAboutSpace),
    async () => {
      const dir = `rule${count++}`;
      await side(root).mkdir(dir, 0o777);
      return context(side, side, join(root, dir), tick);
    },
  );
});
