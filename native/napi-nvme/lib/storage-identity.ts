import fs from 'node:fs';
import path from 'node:path';
import { major, minor, SYSTEM_ROOTS, type SystemRoots } from './device-node.js';

/**
 * By what one storage may be met again under another name: a namespace has a block and a character device (and one of each for every
 * path, where the kernel doesn't join them), a disk has partitions, a loop device has a file. Nothing is opened; sysfs is asked.
 *
 * Fault model: any of it may be missing or vanish while it is looked at; then there is less to go by, never an error.
 */

/** @returns keys: two paths with a key in common lead to bytes in common. None where the path leads nowhere. */
export function storageKeys(file: string, roots: SystemRoots = SYSTEM_ROOTS): string[] {
  const stats = fs.statSync(file, { bigint: true, throwIfNoEntry: false });
  if (stats === undefined) return [];
  const inode = `inode ${stats.dev}:${stats.ino}`;
  if (stats.isBlockDevice()) return [inode, ...deviceKeys('block', numbersOf(stats.rdev), roots)];
  if (stats.isCharacterDevice()) return [inode, ...deviceKeys('char', numbersOf(stats.rdev), roots)];
  return [inode];
}

/**
 * Device files over which a namespace can be opened, this one's included, in an order that is the same from wherever it is asked:
 * character devices first. Empty for everything else. @internal
 */
export function namespaceFiles(file: string, roots: SystemRoots = SYSTEM_ROOTS): string[] {
  const stats = fs.statSync(file, { bigint: true, throwIfNoEntry: false });
  if (stats === undefined || !(stats.isBlockDevice() || stats.isCharacterDevice())) return [];
  const own = namespaceOf(stats.isBlockDevice() ? 'block' : 'char', numbersOf(stats.rdev), roots);
  if (own === null) return [];
  const numbers = samePlaces(own, roots);
  return [...numbers.map((number) => `ng${number}`), ...numbers.map((number) => `nvme${number}`)]
    .map((name) => path.join(roots.dev, name))
    .filter((name) => fs.existsSync(name));
}

/** @param numbers major:minor @internal */
export function deviceKeys(kind: 'block' | 'char', numbers: string, roots: SystemRoots): string[] {
  const namespace = namespaceOf(kind, numbers, roots);
  if (namespace !== null) return samePlaces(namespace, roots).flatMap((number) => namespaceKeys(number, roots));
  if (kind === 'char') return [];
  return blockKeys(path.join(roots.sys, 'dev/block', numbers), numbers);
}

function namespaceKeys(number: string, roots: SystemRoots): string[] {
  const folder = path.join(roots.sys, 'class/block', `nvme${number}`);
  const numbers = line(folder, 'dev');
  return [`namespace ${number}`, ...(numbers === null ? [] : blockKeys(folder, numbers))];
}

/** A disk overlaps each of its partitions, partitions don't overlap each other. */
function blockKeys(folder: string, numbers: string): string[] {
  const partitions = list(folder).flatMap((name) => {
    const inside = path.join(folder, name);
    return line(inside, 'partition') === null ? [] : (line(inside, 'dev') ?? []);
  });
  const backing = line(path.join(folder, 'loop'), 'backing_file');
  const stats = backing === null ? undefined : fs.statSync(backing, { bigint: true, throwIfNoEntry: false });
  return [
    ...[numbers, ...partitions].map((one) => `block ${one}`),
    ...(stats === undefined ? [] : [`inode ${stats.dev}:${stats.ino}`]),
  ];
}

/** The 0n1 of /dev/nvme0n1 and /dev/ng0n1; null for what is no whole namespace. */
function namespaceOf(kind: 'block' | 'char', numbers: string, roots: SystemRoots): string | null {
  try {
    const name = path.basename(fs.realpathSync(path.join(roots.sys, 'dev', kind, numbers)));
    return (kind === 'block' ? /^nvme(\d+n\d+)$/ : /^ng(\d+n\d+)$/).exec(name)?.[1] ?? null;
  } catch {
    return null;
  }
}

/**
 * The namespace and, where each path has devices of its own, the same namespace over other paths: by its UUID, NGUID or EUI64. What the
 * kernel makes up for a namespace that has none (`nvme.vendor-serial-model-id`) is no proof.
 */
function samePlaces(number: string, roots: SystemRoots): string[] {
  const folder = path.join(roots.sys, 'class/block');
  const id = line(path.join(folder, `nvme${number}`), 'wwid');
  if (id === null || !/^(uuid|eui)\./.test(id)) return [number];
  const same = list(folder).flatMap((name) => {
    const other = /^nvme(\d+n\d+)$/.exec(name)?.[1];
    return other !== undefined && line(path.join(folder, name), 'wwid') === id ? [other] : [];
  });
  return same.includes(number) ? same.sort() : [number];
}

function line(folder: string, name: string): string | null {
  try {
    return fs.readFileSync(path.join(folder, name), 'utf8').trim();
  } catch {
    return null;
  }
}

function list(folder: string): string[] {
  try {
    return fs.readdirSync(folder);
  } catch {
    return [];
  }
}

const numbersOf = (rdev: bigint): string => `${major(rdev)}:${minor(rdev)}`;
