#!/usr/bin/env bash
# `make gpu-pack`: packs the binaries of target-cuda and what else `make gpu-check` needs, for a machine with a GPU and without Rust.
#
#   bench/gpu/pack.sh OUT.tar.xz
#
# On that machine: tar xf OUT.tar.xz && python3 gpu/bench/gpu/check.py --binaries gpu/bin
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: pack.sh OUT.tar.xz}
limit=60000000
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/gpu/bin"

newest() { ls -t target-cuda/release/deps/"$1"-* 2>/dev/null | grep -v '\.' | head -1; }

cp target-cuda/release/sam-ladder "$folder/gpu/bin/"
for example in gpu_step gpu_encoder gpu_rates; do cp "target-cuda/release/examples/$example" "$folder/gpu/bin/"; done
for test in sam_ladder_ops golden_encoder golden_step golden_trajectory; do
  binary=$(newest "$test")
  [[ -n $binary ]] || { echo "gpu-pack: no test binary $test in target-cuda/release/deps, run make gpu-binaries" >&2; exit 1; }
  cp "$binary" "$folder/gpu/bin/$test"
done
strip "$folder"/gpu/bin/*
mkdir -p "$folder/gpu/bench/gpu" "$folder/gpu/tests" "$folder/gpu/python"
cp bench/*.py "$folder/gpu/bench/"
cp bench/gpu/*.py "$folder/gpu/bench/gpu/"
cp -r python/sam_ladder "$folder/gpu/python/"
cp -r tests/golden "$folder/gpu/tests/"
# The binaries hold the same kernels and libraries. One block, and a dictionary that spans two binaries, stores these once.
tar -C "$folder" -cf - gpu | xz -T1 --lzma2=preset=6,dict=192MiB >"$folder/packed"
bytes=$(stat -c %s "$folder/packed")
if ((bytes > limit)); then
  echo "gpu-pack: $((bytes / 1000000)) MB packed, more than the limit of 60 MB; $out is not written" >&2
  exit 1
fi
mv "$folder/packed" "$out"
echo "gpu-pack: $out, $((bytes / 1000000)) MB"
