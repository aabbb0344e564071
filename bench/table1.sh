#!/usr/bin/env bash
# `make table1`: runs and published rows, in the form of the paper's Table I. usage: bench/table1.sh PROGRAM STORE OUT "ROW ROW …" [eval's options]
# A ROW is the folder of a run, or several separated by commas (seeds of one method). NAME= before it gives it another name. A run without an evaluation in its
# folder `eval` is evaluated first.
set -euo pipefail
program=$1 store=$2 out=$3 rows=$4
shift 4

arguments=()
for row in $rows; do
  for run in $(tr ',' ' ' <<<"${row#*=}"); do
    if [[ ! -e $run/cases.parquet && ! -e $run/eval/cases.parquet ]]; then
      printf '\n── eval %s\n' "$run" >&2
      "$program" eval --store "$store" --run "$run" --out "$run/eval" "$@" >/dev/null
    fi
  done
  arguments+=(--row "$row")
done
"$program" table "${arguments[@]}" --published --out "$out" --name table1 --force
