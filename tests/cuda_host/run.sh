#!/usr/bin/env bash
# Runs tests of the CUDA build on the host driver, on a machine without a GPU.
#
#   tests/cuda_host/run.sh quick    kernels in two orders of threads, the golden step, recorded steps, waits, handles and memory
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

# What runs, by binary: filters of its tests, or nothing for all of them. Of sweeps and run folders those tests that depend on the device.
quick=(golden_step "cuda_host every_gate a_step_does_not a_device_has a_recording_that_fails auto_leaves a_graph_that a_recorded_step modules_are")
whole=(
  golden_step cuda_host cuda_host_precompute golden_encoder golden_trajectory side_networks dino_encoders train_run
  run_weights
  "run_folder a_run_says" beyond_paper "sweep trials_trained_together a_sweep_through_graphs"
)
if [[ $part == quick ]]; then parts=("${quick[@]}"); else parts=("${whole[@]}"); fi

binaries=(--lib)
for words in "${parts[@]}"; do binaries+=(--test "${words%% *}"); done
build test --no-run "${binaries[@]}"
tests/cuda_host/build.sh "$driver"
export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} SAM_LADDER_TEST_DEVICE=cuda:0

# Everything runs, also after a failure; the end says what failed.
failed=()
run() { # what is said of it, then cargo's arguments
  local from=$SECONDS
  echo "── $1"
  build test "${@:2}" || failed+=("$1")
  echo "── $1: $((SECONDS - from)) s"
}
for order in forward reverse; do
  SAM_LADDER_EMULATION_ORDER=$order run "kernels, threads of a block in $order order" --lib -- cuda::
done
for words in "${parts[@]}"; do
  read -ra words <<<"$words"
  run "${words[*]}" --test "${words[@]:0:1}" -- "${words[@]:1}"
done
if [[ $part == whole ]]; then
  for order in eager copies-first; do
    SAM_LADDER_CUDA_ORDER=$order run "streams: $order" --test train_run -- a_run_through_a_graph a_run_does_not_depend
  done
  SAM_LADDER_EMULATION_ORDER=shuffle run "threads of a block shuffled" --test golden_step
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'test-cuda-host: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "test-cuda-host: all passed in $SECONDS s"
