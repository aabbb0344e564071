#!/usr/bin/env bash
# `make table2`: the paper's ablation on one store; each arm has the same seeds. usage: bench/table2.sh PROGRAM STORE OUT "SEED SEED …" [train's options]
# Arms: SAM without fine-tuning and without prompts, only the CNN, only SAM, both. Finished parts are kept, so an interrupted table resumes.
set -euo pipefail
program=$1 store=$2 out=$3 seeds=$4
shift 4
mkdir -p "$out"
step() { printf '\n── %s\n' "$*" >&2; "$@" >/dev/null; }

declare -A folders
add() { folders[$1]=${folders[$1]:+${folders[$1]},}$2; }
for seed in $seeds; do
  evaluation=$out/untrained-$seed
  [[ -e $evaluation/cases.parquet ]] || step "$program" eval --store "$store" --zero-shot --arm sam-only --seed "$seed" --out "$evaluation"
  add untrained "$evaluation"
  for arm in cnn-only sam-only full; do
    run=$out/$arm-$seed
    if [[ ! -e $run/eval/cases.parquet ]]; then
      resume=()
      [[ ! -e $run/config.json ]] || resume=(--resume)
      step "$program" train --store "$store" --run "$run" --arm "$arm" --seed "$seed" "$@" "${resume[@]}"
      step "$program" eval --store "$store" --run "$run" --out "$run/eval"
    fi
    add "$arm" "$run/eval"
  done
done
"$program" table --row "SAM, not fine-tuned, no prompts=${folders[untrained]}" --row "CNN only=${folders[cnn-only]}" --row "SAM only=${folders[sam-only]}" \
  --row "full=${folders[full]}" --against full --published=ablation --out "$out" --name table2 --force
