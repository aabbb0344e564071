#!/usr/bin/env bash
# `make sweep`: a search on a store, by default the demo's. usage: bench/sweep.sh PROGRAM STORE CONFIG OUT
set -euo pipefail
program=$1 store=$2 config=$3 out=$4
step() { printf '\n── %s\n' "$*" >&2; "$@"; }

if [[ ! -e $store ]]; then
  # The demo's scans and store (bench/demo.sh).
  scans=$(dirname "$store")/scans
  mkdir -p "$(dirname "$store")"
  [[ -e $scans ]] || step "$program" phantom --out "$scans" --cases 8 --size 128 --depth 16 --seed 1
  step "$program" precompute --scans "$scans" --store "$store" --random-encoder 1 --preset native224 --augment none
fi
resume=()
[[ -e $out/sweep.json ]] && resume=(--resume)
step "$program" sweep --store "$store" --config "$config" --out "$out" "${resume[@]}"
[[ ! -e $out/sweep.html ]] || printf '\nopen %s/sweep.html\n' "$out"
