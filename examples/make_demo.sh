#!/usr/bin/env bash
# Remake demo.qcow2 and base.qcow2 with the real qemu-img and qemu-io (Debian package qemu-utils).
#
# Usage: examples/make_demo.sh [DIRECTORY]        (default: the directory of this script)
#
# The guest contents are the same each time. The images differ from run to run only where QEMU writes
# the time of day: in the date of the snapshot.
set -euo pipefail

target=$(cd "${1:-$(dirname "$0")}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Numbered lines, 16 bytes each: real text to read back, and compressible to about a quarter.
lines() { # LABEL COUNT
    local number
    for ((number = 0; number < $2; number++)); do
        printf '%-6s %08d\n' "$1" "$number"
    done
}

# Hexadecimal digits of a small random generator, which zlib shrinks to little more than half: compressed
# clusters of this start at odd host bytes and run into the next host cluster.
stubborn() { # SEED COUNT
    local state=$1 number
    for ((number = 0; number < $2; number++)); do
        state=$(((state * 1103515245 + 12345) & 0x7fffffff))
        printf '%07x\n' $((state >> 3))
    done
}

# Write FILE compressed at guest OFFSET (in KiB), cluster by cluster: QEMU compresses the clusters of one
# request in parallel and lays them out in the order in which they finish.
write_compressed() { # IMAGE FILE OFFSET
    local piece at=$3 commands=()
    rm -f piece.*
    split -b 8192 -d "$2" piece.
    for piece in piece.*; do
        commands+=(-c "write -q -c -s $piece ${at}k 8k")
        at=$((at + 8))
    done
    qemu-io -f qcow2 "${commands[@]}" "$1"
}

lines base 3072 >base.txt           # 48 KiB
lines first 1024 >first.txt         # 16 KiB
lines second 512 >second.txt        # 8 KiB
stubborn 2 4096 >stubborn.txt       # 32 KiB

# 8 KiB clusters: QEMU leaves the feature names out of the header at 4 KiB and below.
# The backing file: 48 KiB of text at the start, a pattern at 8 MiB (in a second L2 table), nothing else.
qemu-img create -q -f qcow2 -o cluster_size=8k base.qcow2 16M
qemu-io -f qcow2 \
    -c 'write -q -s base.txt 0 48k' \
    -c 'write -q -P 0x62 8M 16k' \
    base.qcow2

# The overlay: plain clusters, compressed clusters, then a snapshot.
qemu-img create -q -f qcow2 -o cluster_size=8k -b base.qcow2 -F qcow2 demo.qcow2
qemu-io -f qcow2 \
    -c 'write -q -s first.txt 0 16k' \
    -c 'write -q -P 0x64 8M 8k' \
    -c 'write -q -P 0x7a 1M 32k' \
    demo.qcow2
write_compressed demo.qcow2 stubborn.txt 128
write_compressed demo.qcow2 second.txt 160
qemu-img snapshot -c before-update demo.qcow2

# A persistent bitmap that records what the commands below change.
qemu-img bitmap --add -g 64k demo.qcow2 since-monday

# Changes after the snapshot: copied clusters, zero clusters without and with a host cluster behind them,
# zeros over the backing file, a compressed cluster overwritten in part, one more compressed cluster.
qemu-io -f qcow2 \
    -c 'write -q -s second.txt 0 8k' \
    -c 'write -q -z -u 1M 16k' \
    -c 'write -q -P 0x7b 1040k 8k' \
    -c 'write -q -z 1040k 8k' \
    -c 'write -q -z -u 32k 8k' \
    -c 'write -q -P 0x7c 161k 1k' \
    demo.qcow2
write_compressed demo.qcow2 first.txt 192

qemu-img check -q base.qcow2
qemu-img check -q demo.qcow2
mv base.qcow2 demo.qcow2 "$target"
