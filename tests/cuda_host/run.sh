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
if [[ $part == whole ]]; then
  for name in cuda_host cuda_host_precompute train_run golden_encoder golden_trajectory run_weights run_folder beyond_paper side_networks sweep; do tests+=(--test "$name"); done
fi

run() { "$cargo" test --release --workspace --features cuda --target-dir "$target" "$@"; }
run --no-run "${tests[@]}"
tests/cuda_host/build.sh "$driver"
export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} SAM_LADDER_TEST_DEVICE=cuda:0
for order in forward reverse; do
  echo "kernels, threads of a block in $order order"
  SAM_LADDER_EMULATION_ORDER=$order run --lib -- cuda::tests::
done
run --test golden_step
if [[ $part == quick ]]; then exit; fi
run "${tests[@]}"
for order in eager copies-first; do
  echo "streams: $order"
  SAM_LADDER_CUDA_ORDER=$order run --test train_run -- a_run_through_a_graph a_run_does_not_depend
done
SAM_LADDER_EMULATION_ORDER=shuffle run --test golden_step
