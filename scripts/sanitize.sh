#!/usr/bin/env bash
# The native addons under AddressSanitizer and UndefinedBehaviorSanitizer, with their own tests. Those that need devices: npm run hw-test -- --only sanitize.
set -euo pipefail
cd "$(dirname "$0")/.."
node scripts/build-native.mjs --sanitize
result=$(mktemp --suffix .json)
trap 'rm -f "$result"' EXIT
status=0
bash scripts/under-sanitizers.sh npx vitest run native src/native src/cache/cache-map src/fabric/tcp src/mount/fuse --reporter=default --reporter=json --outputFile.json="$result" || status=$?
node -e '
const r = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"));
const failed = r.numFailedTests + (r.success || r.numFailedTests > 0 ? 0 : 1) + (r.numPassedTests === 0 ? 1 : 0);
console.log(`${r.numPassedTests} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);' "$result"
exit $status
