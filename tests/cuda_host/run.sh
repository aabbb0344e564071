#!/usr/bin/env bash
# Runs tests of the CUDA build on the host driver, on a machine without a GPU.
#
#   tests/cuda_host/run.sh quick    kernels in two orders of threads, the golden step, recorded steps, waits and handles
#   tests/cuda_host/run.sh whole    and calls that fail, golden encoder and trajectories, runs, sweeps, other orders of streams
#   tests/cuda_host/run.sh count    the calls of a training step and of an encoder pass at their real sizes
#
# CUDA_TARGET is the folder of the build (default: target-cuda).
set -euo pipefail
part=${1:-quick}
cd "$(dirname "$0")/../.."
environment=$(.ci/cuda-toolchain.sh)
eval "$environment"
target=${CUDA_TARGET:-target-cuda}
mkdir -p "$target"
target=$(cd "$target" && pwd)
driver=$target/host-driver
cargo=${CARGO:-cargo}

build() { "$cargo" "$1" --release --workspace --features cuda --target-dir "$target" "${@:2}"; }
if [[ $part == count ]]; then
  build build --example gpu_step --example gpu_encoder
  tests/cuda_host/build.sh "$driver"
  exec tests/cuda_host/count.py "$target/release/examples" "$driver" "$target/host-calls"
fi

tests=(--lib --test golden_step --test cuda_host)
if [[ $part == whole ]]; then
  for name in cuda_host_precompute train_run golden_encoder golden_trajectory run_weights run_folder beyond_paper side_networks sweep; do tests+=(--test "$name"); done
fi
build test --no-run "${tests[@]}"
tests/cuda_host/build.sh "$driver"
export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} SAM_LADDER_TEST_DEVICE=cuda:0
for order in forward reverse; do
  echo "kernels, threads of a block in $order order"
  SAM_LADDER_EMULATION_ORDER=$order build test --lib -- cuda::tests::
done
build test --test golden_step
if [[ $part == quick ]]; then
  build test --test cuda_host -- every_gate a_step_does_not a_device_has a_recording_that_fails
  exit
fi
build test "${tests[@]}"
for order in eager copies-first; do
  echo "streams: $order"
  SAM_LADDER_CUDA_ORDER=$order build test --test train_run -- a_run_through_a_graph a_run_does_not_depend
done
SAM_LADDER_EMULATION_ORDER=shuffle build test --test golden_step
