/**
 * The guest's kernel and initramfs, made once and kept in a cache: Debian's kernel package is downloaded and unpacked (not
 * installed), the modules that reaching the host's root takes are put beside a static busybox and guest/boot.sh.
 * The cache's folder is named by the kernel's release and package version, and appears whole or not at all.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { buildLoopModule } from './loop-module.js';
import { cacheDirectory, projectRoot } from './paths.js';

/** What the initramfs loads before anything else is reachable. */
const BOOT_MODULES = ['virtio_pci', 'virtio_net', '9p', '9pnet_virtio', 'overlay', 'nvme'];

export interface GuestImage {
  readonly directory: string;
  readonly release: string;
  readonly packageVersion: string;
  readonly kernel: string;
  readonly initramfs: string;
  /** Path of nvme-loop.ko, or null with the reason. */
  readonly loopModule: string | null;
  readonly loopModuleReason: string;
}

/** Runs a program of the image's making; its failure is an error with what it printed. */
export function command(program: string, args: readonly string[], options: { cwd?: string; input?: string } = {}) {
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    encoding: 'utf8',
    maxBuffer: 64 << 20,
    timeout: 600_000,
    env: { ...process.env, LC_ALL: 'C', PATH: `${process.env.PATH}:/usr/sbin:/sbin` },
    ...options,
  });
  if (error !== undefined) throw new Error(`${program} does not run: ${error.message}`);
  if (status !== 0)
    throw new Error(`${program} ${args.join(' ')} ended with ${status}: ${stderr.trim() || stdout.trim()}`);
  return stdout;
}

export interface KernelPackage {
  readonly name: string;
  readonly release: string;
  readonly version: string;
}

const architecture = 'amd64';

/** The kernel that linux-image-amd64 stands for today: a full one, not the cloud flavour, which has no RDMA. */
export function kernelPackage(): KernelPackage {
  const depends = command('apt-cache', ['depends', `linux-image-${architecture}`]);
  const release = /Depends: linux-image-(\S+)/.exec(depends)?.[1];
  if (release === undefined) throw new Error(`apt knows no linux-image-${architecture}: run apt-get update`);
  for (const name of [`linux-image-${release}-unsigned`, `linux-image-${release}`]) {
    const version = candidate(name);
    if (version !== null) return { name, release, version };
  }
  throw new Error(`apt has no linux-image-${release}`);
}

export function candidate(name: string): string | null {
  const version = /Candidate: (\S+)/.exec(command('apt-cache', ['policy', name]))?.[1];
  return version === undefined || version === '(none)' ? null : version;
}

/** Downloads packages and unpacks them under `into`. The files are deleted once unpacked. */
export function unpackPackages(packages: readonly string[], into: string) {
  const download = path.join(into, 'download');
  mkdirSync(download, { recursive: true });
  // apt fetches as its own user where it can; a folder that it may write to spares a warning.
  chmodSync(download, 0o777);
  command('apt-get', ['download', '-q', ...packages], { cwd: download });
  for (const file of readdirSync(download)) command('dpkg', ['-x', path.join(download, file), into]);
  rmSync(download, { recursive: true });
}

/** Packages of an older index may be gone from the archive; one refresh of the index is worth a try. */
export function withFreshIndex<T>(attempt: () => T): T {
  try {
    return attempt();
  } catch (error) {
    if (process.getuid?.() !== 0) throw error;
    command('apt-get', ['update', '-q']);
    return attempt();
  }
}

/** The image of today's kernel; made when the cache has none. */
export function guestImage(log: (line: string) => void): GuestImage {
  return withFreshIndex(() => {
    const kernel = kernelPackage();
    const directory = path.join(cacheDirectory(), `${kernel.release}_${kernel.version.replaceAll(/[^\w.+-]/g, '-')}`);
    if (!existsSync(directory)) {
      log(`downloading ${kernel.name} ${kernel.version}`);
      mkdirSync(cacheDirectory(), { recursive: true });
      const fresh = mkdtempSync(path.join(cacheDirectory(), 'new-'));
      try {
        unpackPackages([`${kernel.name}=${kernel.version}`], fresh);
        command('depmod', ['-b', fresh, kernel.release]);
        chmodSync(fresh, 0o755);
        renameInto(fresh, directory);
      } finally {
        rmSync(fresh, { recursive: true, force: true });
      }
    }
    const loop = buildLoopModule(kernel, directory, log);
    return {
      directory,
      release: kernel.release,
      packageVersion: kernel.version,
      kernel: path.join(directory, 'boot', `vmlinuz-${kernel.release}`),
      initramfs: initramfs(directory, kernel.release),
      loopModule: loop.path,
      loopModuleReason: loop.reason,
    };
  });
}

/** Another run may have made the same folder meanwhile: then its one stays. */
export function renameInto(from: string, to: string) {
  try {
    renameSync(from, to);
  } catch (error) {
    if (!existsSync(to)) throw error;
  }
}

/** A few MB: named by what is in it, so that a change of boot.sh makes a new one. */
function initramfs(directory: string, release: string): string {
  const boot = path.join(projectRoot, 'hw-test/guest/boot.sh');
  const hash = createHash('sha256').update(readFileSync(boot)).update(BOOT_MODULES.join()).digest('hex').slice(0, 12);
  const target = path.join(directory, `initramfs-${hash}.cpio`);
  if (existsSync(target)) return target;
  const tree = mkdtempSync(path.join(directory, 'initramfs-'));
  try {
    for (const folder of ['bin', 'modules', 'dev', 'proc', 'sys']) mkdirSync(path.join(tree, folder));
    copyFileSync('/bin/busybox', path.join(tree, 'bin/busybox'));
    command('ln', ['-s', 'busybox', path.join(tree, 'bin/sh')]);
    copyFileSync(boot, path.join(tree, 'init'));
    chmodSync(path.join(tree, 'init'), 0o755);
    writeFileSync(path.join(tree, 'modules/order'), `${moduleClosure(directory, release, tree).join('\n')}\n`);
    const names = command('find', ['.', '-print0'], { cwd: tree });
    writeFileSync(`${tree}.cpio`, spawnCpio(tree, names));
    renameInto(`${tree}.cpio`, target);
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
  return target;
}

function spawnCpio(cwd: string, names: string): Buffer {
  const { status, stdout, stderr, error } = spawnSync('cpio', ['--null', '-o', '--quiet', '-H', 'newc', '-R', '0:0'], {
    cwd,
    input: names,
    maxBuffer: 256 << 20,
  });
  if (error !== undefined || status !== 0) throw new Error(`cpio failed: ${error?.message ?? stderr.toString()}`);
  return stdout;
}

/** Copies the boot modules with all they need, and gives their names in the order of loading. */
function moduleClosure(directory: string, release: string, tree: string): string[] {
  const order: string[] = [];
  for (const module of BOOT_MODULES) {
    for (const line of command('modprobe', ['-d', directory, '-S', release, '--show-depends', module]).split('\n')) {
      const file = /^insmod (\S+)/.exec(line)?.[1];
      if (file === undefined) continue;
      const name = path.basename(file);
      if (order.includes(name)) continue;
      copyFileSync(file, path.join(tree, 'modules', name));
      order.push(name);
    }
  }
  return order;
}
