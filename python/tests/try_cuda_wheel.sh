#!/usr/bin/env bash
# Installs the newest CUDA wheel of a folder, with the packages that it depends on, into an empty environment, and checks that the program loads
# NVIDIA's libraries from there. Where there is no driver, a stub without devices takes its place, and the program computes on the CPU.
#
#   python/tests/try_cuda_wheel.sh target/wheels
set -euo pipefail
wheel=$(ls -t "$1"/sam_ladder_cuda13-*.whl | head -1)
root=$(cd "$(dirname "$0")/../.." && pwd)
environment=$("$root/.ci/cuda-toolchain.sh")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$wheel"
unset PYTHONPATH LD_LIBRARY_PATH
if ! ldconfig -p | grep -q libcuda.so.1; then
  eval "$environment"
  mkdir "$folder/driver" && cp "$CUDA_HOME/lib64/stubs/libcuda.so" "$folder/driver/libcuda.so.1"
  export LD_LIBRARY_PATH=$folder/driver
fi
export PATH=$folder/venv/bin:/usr/bin:/bin
cd "$folder"
sam-ladder --version
sam-ladder doctor | tee doctor.txt
for library in libcublas libcudart libcudnn libcurand; do
  grep -q "$folder/venv/.*/$library" doctor.txt || { echo "try_cuda_wheel: $library is not that of the environment" >&2; exit 1; }
done
"$root/bench/demo.sh" "$(command -v sam-ladder)" demo
echo "try_cuda_wheel: $(basename "$wheel") installs, loads NVIDIA's libraries of its environment, and runs the demo"
