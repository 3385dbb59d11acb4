// Builds the native addons with cmake-js. `--all` also builds the workspaces, which npm builds by itself on install.
// `--sanitize` builds with ASan and UBSan into build-asan/.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);
const cmakeJs = path.join(path.dirname(require.resolve('cmake-js/package.json')), 'bin', 'cmake-js');
const args = process.argv.slice(2);
const sanitize = args.includes('--sanitize');
const addons = ['native/core', 'native/tcp', 'native/fuse'];
if (args.includes('--all') || sanitize) addons.push('native/napi-nvme', 'native/node-rdma-cm');

for (const addon of addons) {
  const directory = path.join(root, addon);
  if (!existsSync(path.join(directory, 'CMakeLists.txt'))) continue;
  const cmakeArgs = [cmakeJs, 'compile', '--directory', directory, '--out', path.join(directory, sanitize ? 'build-asan' : 'build')];
  if (sanitize) cmakeArgs.push('--CDHOLDFAST_SANITIZE=ON');
  const result = spawnSync(process.execPath, cmakeArgs, { cwd: root, encoding: 'utf8' });
  if (result.status !== 0) {
    process.stderr.write(`${result.stdout}\n${result.stderr}\n`);
    process.stderr.write(`holdfast: ${addon} did not build; install the system packages first: bash scripts/system-packages.sh\n`);
    process.exit(1);
  }
  // RDMA is optional: without its libraries' headers CMake says so and builds nothing.
  const skipped = /not built, [^\n]*/.exec(`${result.stdout}${result.stderr}`.replaceAll(/\n[ \t]+/g, ' '))?.[0];
  process.stdout.write(skipped === undefined ? `holdfast: built ${addon}\n` : `holdfast: ${addon} ${skipped}\n`);
}
