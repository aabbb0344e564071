#!/usr/bin/env bash
# Runs tests of the CUDA build on the host driver, on a machine without a GPU.
#
#   tests/cuda_host/run.sh quick    kernels in two orders of threads, and the golden step: minutes
#   tests/cuda_host/run.sh whole    and calls that fail, golden encoder and trajectories, runs, sweeps, other orders of streams: hours
set -euo pipefail
part=${1:-quick}
cd "$(dirname "$0")/../.."
environment=$(.ci/cuda-toolchain.sh)
eval "$environment"
target=${SAM_LADDER_CUDA_TARGET:-target-cuda}
driver=$PWD/$target/host-driver
cargo=${CARGO:-cargo}
tests=(--lib --test golden_step)
if [[ $part == whole ]]; then tests+=(--test cuda_host --test train_run --test golden_encoder --test golden_trajectory --test run_weights --test run_folder --test beyond_paper --test side_networks --test sweep); fi
"$cargo" test --release --workspace --features cuda --target-dir "$target" --no-run "${tests[@]}"
tests/cuda_host/build.sh "$driver"
export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} SAM_LADDER_TEST_DEVICE=cuda:0

run() { "$cargo" test --release --workspace --features cuda --target-dir "$target" "$@"; }
for order in forward reverse; do
  echo "kernels, threads of a block in $order order"
  SAM_LADDER_EMULATION_ORDER=$order run --lib -- cuda::tests::
done
run --test golden_step
if [[ $part == quick ]]; then exit; fi
run "${tests[@]}"
tests/cuda_host/build.sh "$driver"
export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} SAM_LADDER_TEST_DEVICE=cuda:0

run() { "$cargo" test --release --workspace --features cuda --target-dir "$target" "$@"; }
for order in forward reverse; do
  echo "kernels, threads of a block in $order order"
  SAM_LADDER_EMULATION_ORDER=$order run --lib -- cuda::tests::
done
run --test cuda_host
if [[ $part == quick ]]; then
  run --test golden_step
  run --test train_run -- a_run_through_a_graph a_resumed_run a_run_does_not_depend
  exit
fi
run "${tests[@]}"
for order in eager copies-first; do
  echo "streams: $order"
  SAM_LADDER_CUDA_ORDER=$order run --test train_run -- a_run_through_a_graph a_run_does_not_depend
done
SAM_LADDER_EMULATION_ORDER=shuffle run --test golden_step
