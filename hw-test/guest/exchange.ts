/**
 * How the guests of a suite tell each other things, and ask the host for a power cut: small files in the share. It doesn't touch
 * the network under test, and outlives a guest. There are no notifications across 9p, so waiting is looking again; every
 * wait has a deadline.
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { hardware } from './environment.js';

const LOOK_AGAIN_MS = 25;
export const EXCHANGE_DEADLINE_MS = 60_000;

async function appears(file: string, what: string, deadlineMs: number) {
  const endMs = performance.now() + deadlineMs;
  for (;;) {
    // A guest that has ended publishes nothing more; but it may have just before it ended, so the file is looked for after that.
    const gone = goneGuest();
    if (existsSync(file)) return;
    if (gone !== null) throw new Error(`${what}: guest ${gone} has ended`);
    if (performance.now() > endMs) throw new Error(`${what}: not within ${deadlineMs} ms`);
    await pause(LOOK_AGAIN_MS);
  }
}

function endMark(guest: number): string {
  return path.join(hardware().share, 'control', `ended-${guest}`);
}

/** Another guest of the suite that has ended, whether it was done, was cut off or crashed. */
function goneGuest(): number | null {
  const { guest, guests } = hardware();
  for (let other = 1; other <= guests; other++) if (other !== guest && existsSync(endMark(other))) return other;
  return null;
}

function exchangeFile(name: string): string {
  if (!/^[\w.-]+$/.test(name))
    throw new Error(`a name in the exchange is made of letters, digits, '.', '_' and '-', not ${name}`);
  return path.join(hardware().share, 'exchange', name);
}

/** Makes a value known to all guests under a name that is used once in a suite. */
export function publish(name: string, value: unknown = null) {
  const file = exchangeFile(name);
  writeFileSync(`${file}.new`, JSON.stringify(value));
  renameSync(`${file}.new`, file);
}

/** Waits for what a guest publishes, or has published, under that name. */
export async function receive<T = unknown>(name: string, deadlineMs = EXCHANGE_DEADLINE_MS): Promise<T> {
  const file = exchangeFile(name);
  await appears(file, `nothing was published as ${name}`, deadlineMs);
  return JSON.parse(readFileSync(file, 'utf8')) as T;
}

/** Waits until all guests of the suite have come to the barrier of that name. */
export async function barrier(name: string, deadlineMs = EXCHANGE_DEADLINE_MS) {
  const { guest, guests } = hardware();
  publish(`barrier.${name}.${guest}`);
  for (let other = 1; other <= guests; other++) {
    await appears(exchangeFile(`barrier.${name}.${other}`), `guest ${other} did not come to ${name}`, deadlineMs);
  }
}

/** Cuts the power of a guest, which may be this one: returns when it is off. Natively, its processes are killed. */
export async function cutPower(guest: number, deadlineMs = EXCHANGE_DEADLINE_MS) {
  writeFileSync(path.join(hardware().share, 'control', `cut-${guest}`), '');
  await appears(endMark(guest), `guest ${guest} is still on`, deadlineMs);
}
