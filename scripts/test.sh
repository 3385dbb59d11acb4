#!/usr/bin/env bash
# All set-up, then every suite: `npm test`, or with --full the counts that the issues name.
set -euo pipefail
cd "$(dirname "$0")/.."
node -e 'if (Number(process.versions.node.split(".")[0]) < 20) { console.error("holdfast: Node.js 20 or newer is needed, this is " + process.version); process.exit(1) }'
bash scripts/system-packages.sh rumur librdmacm-dev libibverbs-dev
[ -e node_modules/.package-lock.json ] || npm ci --no-fund --no-audit
npm run --silent build
exec node scripts/test.mjs "$@"
