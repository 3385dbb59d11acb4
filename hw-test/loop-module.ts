/**
 * nvme-loop for the guest. Debian builds its kernel without this module but ships its source: the source package is unpacked
 * into the cache, the few files that make the module are built against the headers of the guest's kernel, as DKMS would, and
 * the source is deleted again. None of it is part of the project. Source, headers and kernel must be of one package version:
 * a module against other structures would load and then corrupt memory.
 */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { candidate, command, type KernelPackage, renameInto, unpackPackages } from './image.js';

export interface LoopModule {
  readonly path: string | null;
  readonly reason: string;
}

export function buildLoopModule(kernel: KernelPackage, directory: string, log: (line: string) => void): LoopModule {
  const target = path.join(directory, 'nvme-loop.ko');
  if (existsSync(target)) return { path: target, reason: 'built' };
  const series = /^\d+\.\d+/.exec(kernel.release)?.[0] ?? '';
  const source = `linux-source-${series}`;
  const headers = [`linux-headers-${kernel.release}`, `linux-headers-${kernel.release.replace(/-amd64$/, '-common')}`];
  for (const name of [source, ...headers]) {
    const version = candidate(name);
    if (version !== kernel.version) {
      return {
        path: null,
        reason: `no nvme-loop: the kernel is ${kernel.version}, ${name} is ${version ?? 'not there'}`,
      };
    }
  }
  log(`building nvme-loop from ${source} ${kernel.version}`);
  const tree = mkdtempSync(path.join(directory, 'loop-'));
  try {
    const tools = toolPackages(headers[0]!);
    unpackPackages([source, ...headers].map((name) => `${name}=${kernel.version}`).concat(tools), tree);
    relocateHeaders(tree, headers[0]!);
    const module = path.join(tree, 'module');
    mkdirSync(module);
    collectSource(path.join(tree, 'usr/src', `${source}.tar.xz`), source, module);
    writeFileSync(path.join(module, 'Makefile'), 'obj-m := nvme-loop.o\nnvme-loop-y := loop.o\n');
    command('make', ['-C', path.join(tree, 'usr/src', headers[0]!), `M=${module}`, 'modules']);
    renameInto(path.join(module, 'nvme-loop.ko'), target);
    return { path: target, reason: 'built' };
  } catch (error) {
    return { path: null, reason: `no nvme-loop: ${error instanceof Error ? error.message : String(error)}` };
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

/** linux-kbuild and linux-compiler, as the headers' package names them. */
function toolPackages(headers: string): string[] {
  return [...command('apt-cache', ['depends', headers]).matchAll(/Depends: (linux-kbuild\S*|linux-compiler\S*)/g)].map(
    (match) => match[1]!,
  );
}

/** The flavour's Makefile includes the common one by its installed path; everything else in the packages is relative. */
function relocateHeaders(tree: string, headers: string) {
  const makefile = path.join(tree, 'usr/src', headers, 'Makefile');
  writeFileSync(makefile, readFileSync(makefile, 'utf8').replaceAll('/usr/src/', `${tree}/usr/src/`));
}

/** loop.c with the headers that it includes from its own folder and from the host side's. */
function collectSource(archive: string, source: string, module: string) {
  const target = `${source}/drivers/nvme/target`;
  const host = `${source}/drivers/nvme/host`;
  const scratch = `${module}.source`;
  mkdirSync(scratch);
  command('tar', ['-xJf', archive, '-C', scratch, `${target}/loop.c`, `${target}/nvmet.h`, host]);
  copyFileSync(path.join(scratch, target, 'nvmet.h'), path.join(module, 'nvmet.h'));
  for (const name of readdirSync(path.join(scratch, host)).filter((name) => name.endsWith('.h'))) {
    copyFileSync(path.join(scratch, host, name), path.join(module, name));
  }
  const text = readFileSync(path.join(scratch, target, 'loop.c'), 'utf8');
  writeFileSync(path.join(module, 'loop.c'), text.replaceAll('"../host/', '"'));
}
