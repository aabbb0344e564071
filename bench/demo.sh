#!/usr/bin/env bash
# `make demo`: the whole pipeline on synthetic scans, on the CPU. usage: bench/demo.sh PROGRAM FOLDER
set -euo pipefail
program=$1 folder=$2
if [[ -e $folder ]]; then
  echo "error: $folder exists already; remove it, or choose another folder with make demo DEMO=…" >&2
  exit 1
fi
mkdir -p "$folder"
step() { printf '\n── %s\n' "$*" >&2; "$@"; }

step "$program" phantom --out "$folder/scans" --cases 8 --size 128 --depth 16 --seed 1
step "$program" precompute --scans "$folder/scans" --store "$folder/store.zarr" --random-encoder 1 --preset native224 --augment none
step "$program" eval --store "$folder/store.zarr" --zero-shot --out "$folder/untrained"
step "$program" train --store "$folder/store.zarr" --run "$folder/run" --epochs 15 --batch-size 8 --warmup 10 --seed 1
# Fails unless training helped: the mean Dice must be well above that of the untrained model.
step "$program" eval --store "$folder/store.zarr" --run "$folder/run" --out "$folder/eval" --baseline "$folder/untrained" --min-gain 0.3
step "$program" predict --scan "$folder/scans/RawData/Training/img/img0001.nii.gz" --run "$folder/run" --out "$folder/mask.nii.gz"
printf '\nopen %s/eval/report.html\n' "$folder"
