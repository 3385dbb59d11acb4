import { constants } from 'node:fs';
import { expect, test } from 'vitest';
import { inodeNumber } from '../common/ids.js';
import { SECTOR_BYTES } from '../common/units.js';
import { TokenClass, TokenMode } from '../token-manager/token.js';
import { ROOT } from './file-system-api.js';
import { segmentOf } from './layout.js';
import { type TestNode, TestVolume, turns } from './testing.js';

const { O_CREAT, O_RDWR } = constants;
const RUN = 8;
const FILES = 96;

async function twoNodes(): Promise<{ maker: TestNode; looker: TestNode; paths: string[] }> {
  const volume = await TestVolume.create();
  const maker = await volume.mount(1, { inodeRun: RUN });
  const looker = await volume.mount(2, { inodeRun: RUN });
  const paths = Array.from({ length: FILES }, (_, i) => `/file-${i}`);
  for (const path of paths) await (await maker.fs.open(path, O_CREAT | O_RDWR, 0o644, ROOT)).close();
  return { maker, looker, paths };
}
const holds = (node: TestNode, ino: number, mode: TokenMode): boolean =>
  node.tokens.heldRange(TokenClass.status, segmentOf(inodeNumber(ino)), ino * SECTOR_BYTES, mode) !== null;

test('who looks at inodes in ascending order finds what comes next', async () => {
  const { maker, looker, paths } = await twoNodes();
  // The arbiter of these tests takes from holders no more than is required.
  await maker.tokens.revokeAll();
  let waited = 0;
  for (const path of paths) {
    if (looker.fs.tryStat(path, true, ROOT) === null) {
      waited++;
      await looker.fs.stat(path, ROOT);
    }
    await turns();
  }
  // The first two runs, and the one that is asked for when the second is entered may be on its way yet.
  expect(waited).toBeLessThanOrEqual(4);
  expect(looker.counters.get('fs.inodesAhead')).toBeGreaterThanOrEqual(FILES - 4 * RUN);
});

test('what nobody goes on from is not read ahead: one file of each run, and the runs out of order', async () => {
  const { looker, paths } = await twoNodes();
  for (let at = FILES - RUN; at >= 0; at -= RUN) await looker.fs.stat(paths[at]!, ROOT);
  await turns();
  expect(looker.counters.get('fs.inodesAhead')).toBe(0);
});

test('it ends where numbers are free: what a node creates in stays with it', async () => {
  const { maker, looker, paths } = await twoNodes();
  const last = (await maker.fs.stat(paths[FILES - 1]!, ROOT)).ino;
  for (const path of paths) await looker.fs.stat(path, ROOT);
  await turns();
  expect(holds(maker, last + 4 * RUN + 1, TokenMode.exclusive)).toBe(true);
  const requests = maker.tokens.requests;
  for (let i = 0; i < 4 * RUN; i++) await (await maker.fs.open(`/more-${i}`, O_CREAT | O_RDWR, 0o644, ROOT)).close();
  expect(maker.tokens.requests - requests).toBeLessThanOrEqual(3);
});

test('I13: what was read ahead is not believed any more when another node has changed it', async () => {
  const { maker, looker, paths } = await twoNodes();
  await maker.tokens.revokeAll();
  for (const path of paths.slice(0, FILES / 2)) await looker.fs.stat(path, ROOT);
  await turns();
  expect(looker.counters.get('fs.inodesAhead')).toBeGreaterThan(0);
  for (const path of paths) await maker.fs.setAttributes(path, { mode: 0o600 }, true, ROOT);
  for (const path of paths) expect((await looker.fs.stat(path, ROOT)).mode & 0o777).toBe(0o600);
});

test('unmounting waits for what is under way', async () => {
  const { looker, paths } = await twoNodes();
  for (const path of paths.slice(0, RUN + 2)) await looker.fs.stat(path, ROOT);
  await looker.fs.unmount();
  expect(looker.counters.get('fs.inodesAhead') + looker.counters.get('fs.inodeAheadFailures')).toBeGreaterThan(0);
});
