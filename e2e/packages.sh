#!/usr/bin/env bash
# Installs what the Rust build, and the tests that run without a cluster, need and a bare Debian
# lacks. What a cluster needs beyond that is installed by portolan-cluster.
set -euo pipefail

declare -A wanted=([gcc]=/usr/bin/gcc [libc6-dev]=/usr/include/stdio.h [make]=/usr/bin/make
	[libmnl-dev]=/usr/include/libmnl/libmnl.h [libnftnl-dev]=/usr/include/libnftnl/set.h
	[pkg-config]=/usr/bin/pkg-config [iproute2]=/usr/sbin/ip [nftables]=/usr/sbin/nft
	[conntrack]=/usr/sbin/conntrack [valgrind]=/usr/bin/valgrind)
missing=()
for package in "${!wanted[@]}"; do
	[ -e "${wanted[$package]}" ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "==> install ${missing[*]}"
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
