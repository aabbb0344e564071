#!/usr/bin/env bash
# Builds a Python wheel of the program and the package sam_ladder.
#
#   .ci/wheel.sh OUT
#
# Without FEATURES: `sam-ladder`, for any Linux with glibc 2.28 or later. With FEATURES=cuda: `sam-ladder-cuda13`, for NVIDIA GPUs and a glibc not
# older than this machine's. It depends on NVIDIA's packages on PyPI, and finds their libraries beside itself, as PyTorch does.
# WHEEL_COMPUTE_CAP (80) and SAM_LADDER_CUDA_ARCHITECTURES (80,90,100,120) say for which GPUs; CUDA_COMPUTE_CAP is the toolchain's.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
mkdir -p "${1:?usage: .ci/wheel.sh OUT}"
out=$(cd "$1" && pwd)
if [[ ! -x target/maturin/bin/maturin ]]; then
  python3 -m venv target/maturin
  target/maturin/bin/pip install --quiet --disable-pip-version-check 'maturin[zig]==1.16.0'
fi
export PATH=$root/target/maturin/bin:$PATH
if [[ -z ${FEATURES:-} ]]; then
  cd python && exec maturin build --release --zig --compatibility manylinux_2_28 --out "$out"
fi

# The package under its other name, with its dependencies.
package=target/wheel-cuda13
rm -rf $package && cp -r python $package
libraries='"nvidia-cublas>=13,<14", "nvidia-cuda-nvrtc>=13,<14", "nvidia-cuda-runtime>=13,<14", "nvidia-cudnn-cu13>=9,<10", "nvidia-curand>=10.4,<11"'
sed -i -e 's/^name = "sam-ladder"$/name = "sam-ladder-cuda13"/' -e "s|^dynamic = .*|&\ndependencies = [$libraries]|" \
  -e 's/"sam-ladder\[/"sam-ladder-cuda13[/' -e "s|^manifest-path = .*|manifest-path = \"$root/Cargo.toml\"\nfeatures = [\"cuda\"]|" $package/pyproject.toml
# Where pip puts the libraries, seen from the folder in which it puts the program.
places=
for python in 3.10 3.11 3.12 3.13 3.14; do
  for library in cu13 cudnn; do places+=:\$ORIGIN/../lib/python$python/site-packages/nvidia/$library/lib; done
done
environment=$(.ci/cuda-toolchain.sh)
eval "$environment"
export NVCC=${NVCC:-$root/.ci/nvcc} CUDA_COMPUTE_CAP=${WHEEL_COMPUTE_CAP:-80} SAM_LADDER_CUDA_ARCHITECTURES=${SAM_LADDER_CUDA_ARCHITECTURES-80,90,100,120}
glibc=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
cd $package && maturin build --release --compatibility "manylinux_${glibc/./_}" --auditwheel skip --out "$out" -- -C "link-arg=-Wl,--enable-new-dtags,-rpath,${places#:}"
