#!/usr/bin/env bash
# Make `cargo build --features cuda` compile and link on a machine without a GPU and without a CUDA installation.
#
#   eval "$(.ci/cuda-toolchain.sh)"     install what is missing, then print the environment to export
#
# A CUDA toolkit that is already there (nvcc on PATH) is taken as it is, and nothing is printed. Otherwise NVIDIA's own Python packages from
# PyPI are laid out like a toolkit in $SAM_LADDER_CUDA (default: ~/.cache/sam-ladder/cuda-13.0; about 3 GB, once). Binaries built
# this way run on any machine with an NVIDIA driver and with the CUDA 13 and cuDNN 9 libraries on its loader path.
set -euo pipefail

if [[ -z ${SAM_LADDER_CUDA:-} ]] && command -v nvcc >/dev/null; then
  exit 0
fi
toolkit=${SAM_LADDER_CUDA:-${XDG_CACHE_HOME:-$HOME/.cache}/sam-ladder/cuda-13.0}

# nvdisasm is on PyPI from 13.2 on; it reads the machine code of earlier compilers too.
wanted=(
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  'nvidia-cublas==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-curand>=10.4,<11' 'nvidia-cudnn-cu13>=9,<10' nvidia-cuda-nvdisasm==13.2.51
)

install_packages() {
  echo "check-cuda: installing the CUDA compiler and libraries from PyPI into $toolkit" >&2
  mkdir -p "$toolkit/lib64/stubs"
  [[ -x $toolkit/venv/bin/pip ]] || python3 -m venv "$toolkit/venv"
  "$toolkit/venv/bin/pip" install --quiet --disable-pip-version-check "${wanted[@]}" >&2
  local packages
  packages=$("$toolkit/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia
  # The packages' folders become one toolkit of symbolic links.
  cp -rsf "$packages"/cu13/{bin,include,nvvm} "$toolkit/"
  cp -rsf "$packages"/cudnn/include/. "$toolkit/include/"
  local library name
  for library in "$packages"/cu13/lib/*.so.* "$packages"/cudnn/lib/*.so.*; do
    name=${library##*/}
    ln -sf "$library" "$toolkit/lib64/$name"
    ln -sf "$library" "$toolkit/lib64/${name%%.so.*}.so" # what the linker looks for: -lcudart → libcudart.so
  done
  ln -sf "$packages"/cu13/lib/*.a "$toolkit/lib64/"
  echo "${wanted[*]}" >"$toolkit/complete"
}

# libcuda.so belongs to the driver, which only a machine with a GPU has: for linking, a library with the same exported names will do.
build_driver_stub() {
  local names
  names=$({
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]*[[:space:]]*\(' "$toolkit/include/cuda.h" | tr -d ' \t('
    cat "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-*/src/driver/sys/*.rs 2>/dev/null | grep -oE 'fn cu[A-Z][A-Za-z0-9_]*' | cut -c4-
  } | sort -u)
  for name in $names; do echo "int $name(void) { return 100; } /* CUDA_ERROR_NO_DEVICE */"; done >"$toolkit/driver_stub.c"
  cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$toolkit/lib64/stubs/libcuda.so" "$toolkit/driver_stub.c"
  ln -sf libcuda.so "$toolkit/lib64/stubs/libcuda.so.1"
}

[[ $(cat "$toolkit/complete" 2>/dev/null) == "${wanted[*]}" ]] || install_packages
build_driver_stub
cat <<ENVIRONMENT
export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}
export PATH=$toolkit/bin:\$PATH
export LIBRARY_PATH=$toolkit/lib64:$toolkit/lib64/stubs\${LIBRARY_PATH:+:\$LIBRARY_PATH}
export RUSTFLAGS="\${RUSTFLAGS:-} -L $toolkit/lib64 -L $toolkit/lib64/stubs -C link-arg=-Wl,--allow-shlib-undefined"
ENVIRONMENT
