#!/usr/bin/env bash
# Runs a command with the addons as scripts/build-native.mjs --sanitize built them.
# Leaks are not looked for: node itself ends without freeing.
LD_PRELOAD="$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 HOLDFAST_NATIVE=asan exec "$@"
