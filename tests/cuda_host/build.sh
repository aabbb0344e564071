#!/usr/bin/env bash
# Builds the host driver: libcuda.so.1 and the libraries that the program calls, without a GPU and without NVIDIA's.
#
#   tests/cuda_host/build.sh OUT     OUT gets the libraries; LD_LIBRARY_PATH=OUT runs a CUDA build of the program on them
#
# Needs the environment that `.ci/cuda-toolchain.sh` prints (NVIDIA's headers, for the types of the calls).
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
kernels=$root/ops/src
objects=$out/objects
mkdir -p "$objects" "$out/candle"
toolkit=${CUDA_HOME:?run eval "$(.ci/cuda-toolchain.sh)" before}
candle=$(cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --locked --features cuda |
  python3 -c 'import json, os, sys; print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "candle-kernels"))')/src

# SAM_LADDER_CUDA_SANITIZE=1: with the address sanitizer; run with LD_PRELOAD="$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0
sanitize=()
if [[ -n ${SAM_LADDER_CUDA_SANITIZE:-} ]]; then sanitize=(-fsanitize=address -fno-omit-frame-pointer); fi
# What every x86-64 of the last ten years has; other processors take their compiler's defaults.
vectors=()
if [[ $(uname -m) == x86_64 ]]; then vectors=(-mavx2 -mfma -mf16c); fi
flags=(-std=c++20 -O2 "${vectors[@]}" -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -ftls-model=initial-exec -Wall -Wextra -Wno-missing-field-initializers "${sanitize[@]}")
as_kernel=("${flags[@]}" -w -I"$kernels" -fsanitize=alignment -fsanitize-undefined-trap-on-error)
as_candle=("${as_kernel[@]}" -I"$here/candle" -I"$candle" -D__CUDA_ARCH__=800 -D__CUDACC_VER_MAJOR__=13 -D__CUDACC_VER_MINOR__=0)

# Objects stay that are newer than all they are made of, if the command is the same.
compile() { # object source flags…
  local object=$objects/$1.o source=$2 command sources
  shift 2
  command=$(printf '%q ' g++ "$@" -MMD -MF "$object.d" -c "$source" -o "$object")
  if [[ -e $object && -e $object.d && $command == "$(cat "$object.command" 2>/dev/null)" ]]; then
    mapfile -t sources < <(sed 's/^[^ ]*://; s/\\$//' "$object.d" | tr -s ' ' '\n' | grep .)
    if [[ -z $(find "${sources[@]}" -newer "$object" -print -quit 2>&1) ]]; then return; fi
  fi
  echo "$command" >"$object.command"
  echo "$command || { rm -f $object; exit 255; }" >>"$objects/commands"
}

: >"$objects/commands"
for file in memory streams context modules report; do compile "$file" "$here/$file.cpp" "${flags[@]}" -I"$toolkit/include"; done
compile emulation "$here/emulation.cpp" "${flags[@]}" -I"$kernels" -I"$here" -I"$toolkit/include"
ours=()
for file in "$kernels"/*/kernel.cu; do
  name=$(basename "$(dirname "$file")")
  ours+=("ours-$name")
  compile "ours-$name" "$file" "${as_kernel[@]}" -x c++
done
theirs=()
for name in affine binary cast conv fill indexing reduce ternary unary; do
  source=$out/candle/$name.cpp
  theirs+=("candle-$name")
  {
    echo "#include \"register.h\""
    echo "#include \"$candle/$name.cu\""
    g++ "${as_candle[@]}" -E -D__global__=SAM_LADDER_GLOBAL -include "$here/candle/register.h" -x c++ "$candle/$name.cu" |
      tr '\n' ' ' | grep -oE 'SAM_LADDER_GLOBAL +void +[A-Za-z_0-9]+' | sed -E 's/.* ([A-Za-z_0-9]+)$/SAM_LADDER_KERNEL(\1)/'
  } >"$source.new"
  if cmp -s "$source.new" "$source"; then rm "$source.new"; else mv "$source.new" "$source"; fi
  compile "candle-$name" "$source" "${as_candle[@]}"
done
for file in cublas cudnn curand; do compile "$file" "$here/$file.cpp" "${flags[@]}" -O3 -ffast-math -fno-finite-math-only -I"$toolkit/include"; done
xargs -d '\n' -r -P "$(nproc)" -I{} bash -c '{}' <"$objects/commands"

# Whatever else NVIDIA's libraries export ends the process with its name when it is called.
missing() { # object, names on standard input
  {
    echo '#include <cstdio>'
    echo '#include <cstdlib>'
    while read -r name; do
      echo "extern \"C\" __attribute__((visibility(\"default\"), weak)) int $name() { std::fprintf(stderr, \"host CUDA driver: $name is not part of it\\n\"); std::abort(); }"
    done
  } >"$out/$1.cpp.new"
  if [[ -e $objects/$1.o ]] && cmp -s "$out/$1.cpp.new" "$out/$1.cpp"; then return; fi
  mv "$out/$1.cpp.new" "$out/$1.cpp"
  g++ -w -fPIC -O1 -c "$out/$1.cpp" -o "$objects/$1.o"
}
exported() { nm -D --defined-only "$1" | awk '$2 == "T" || $2 == "W" { sub(/@.*/, "", $3); print $3 }' | sort -u; }
library() { # soname, missing's object, objects…
  local soname=$1
  shift
  g++ -shared "${sanitize[@]}" -o "$out/$soname" "-Wl,-soname,$soname" -Wl,--allow-multiple-definition -Wl,-z,now "${@/#/$objects/}" -L"$out" ${dependencies[@]+"${dependencies[@]}"} -lpthread -ldl
}
suffix() { local out=(); for name in "$@"; do out+=("$name.o"); done; printf '%s\n' "${out[@]}"; }
dependencies=()
exported "$toolkit/lib64/stubs/libcuda.so" | missing missing-cuda
mapfile -t parts < <(suffix memory streams context modules report emulation "${ours[@]}" "${theirs[@]}" missing-cuda)
library libcuda.so.1 "${parts[@]}"
dependencies=("$out/libcuda.so.1")
for name in cublas:13 cudnn:9 curand:10; do
  soname=lib${name%:*}.so.${name#*:}
  exported "$toolkit/lib64/$soname" | missing "missing-${name%:*}"
  library "$soname" "${name%:*}.o" "missing-${name%:*}.o"
done
# The CUDA runtime is NVIDIA's: candle links it, and the program calls nothing of it.
ln -sf "$toolkit/lib64/libcudart.so.13" "$out/"
for soname in libcublasLt.so.13 libnvrtc.so.13; do
  exported "$toolkit/lib64/$soname" | missing "missing-${soname%%.*}"
  library "$soname" "missing-${soname%%.*}.o"
done
