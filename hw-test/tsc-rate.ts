/**
 * A guest under emulation sees the host's time stamp counter and measures its rate against an emulated timer at boot. On a busy
 * machine that measurement is wrong by any factor, and the guest's clock with it: deadlines in it pass too early. So the
 * rate is measured here and given to the guest; its own later, finer measurement corrects it by up to 1 %.
 */
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { command, renameInto } from './image.js';
import { cacheDirectory, projectRoot } from './paths.js';

export function tscRateKHz(): number {
  const source = path.join(projectRoot, 'hw-test/tsc-rate.cc');
  const program = path.join(cacheDirectory(), `tsc-rate-${Math.floor(statSync(source).mtimeMs)}`);
  if (!existsSync(program)) {
    const scratch = mkdtempSync(path.join(cacheDirectory(), 'tsc-'));
    try {
      command('g++', ['-O2', '-std=c++20', '-o', path.join(scratch, 'tsc-rate'), source]);
      renameInto(path.join(scratch, 'tsc-rate'), program);
    } finally {
      rmSync(scratch, { recursive: true, force: true });
    }
  }
  const rate = Number(command(program, []));
  if (!Number.isSafeInteger(rate) || rate < 100_000)
    throw new Error(`the time stamp counter runs at ${rate} kHz, which can't be`);
  return rate;
}
