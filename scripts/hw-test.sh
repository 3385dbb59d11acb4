#!/usr/bin/env bash
# The tests that need RDMA and NVMe devices, in guests that emulate them: installs what that takes, builds, runs. See docs/hw-test.md.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/system-packages.sh qemu-system-x86 busybox-static cpio kmod xz-utils iproute2 rdma-core librdmacm-dev libibverbs-dev \
  rdmacm-utils ibverbs-utils perftest nvme-cli fio libnvme-dev
[ -e node_modules/.package-lock.json ] || npm ci --no-fund --no-audit
npm run --silent build
exec node --enable-source-maps dist/hw-test/main.js "$@"
