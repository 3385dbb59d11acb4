#!/usr/bin/env bash
# The one list of Debian packages that Holdfast needs; quickstart, test and .ci/run all source it.
# Installs what is missing and nothing else. Without root it names what is missing, in one sentence.
set -euo pipefail
packages=(build-essential cmake ninja-build pkg-config git liburing-dev libisal-dev libuv1-dev etcd-server)
for extra in "$@"; do packages+=("$extra"); done
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "holdfast: these Debian packages are missing, install them as root and run this again: apt-get install ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# etcd runs privately under `holdfast dev up`: the package must not start a system-wide one.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod +x "$policy"; trap 'rm -f "$policy"' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
