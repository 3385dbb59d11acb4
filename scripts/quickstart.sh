#!/usr/bin/env bash
# One command from a fresh clone to a file system that has been seen working: installs what is missing, builds, runs the show.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v node > /dev/null; then
  echo "holdfast: Node.js 20.10 or newer is needed, install it and run this again." >&2
  exit 1
fi
if ! node -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 10) ? 0 : 1)'; then
  echo "holdfast: Node.js 20.10 or newer is needed, this is $(node --version)." >&2
  exit 1
fi

log=$(mktemp "${TMPDIR:-/tmp}/holdfast-setup.XXXXXX.log")
# What a step prints is shown only when it fails.
quietly() {
  local what=$1
  shift
  echo "- $what ..."
  if ! "$@" > "$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "holdfast: $what failed, all of its output is in $log" >&2
    exit 1
  fi
}

echo "- system packages ..."
bash scripts/system-packages.sh
if [ ! -e node_modules/.package-lock.json ]; then
  quietly "installing packages" npm ci --no-audit --no-fund
fi
quietly "building" npm run build
rm -f "$log"
exec node --enable-source-maps dist/src/cli/quickstart.js "$@"
