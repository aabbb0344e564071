#!/usr/bin/env bash
# Makes an archive of the program for machines like this one, and its SHA-256: the program, manual pages, completions, licences of all that it is
# made of, README, CHANGELOG and docs.
#
#   .ci/dist.sh OUT
#
# FEATURES=cuda builds for NVIDIA GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: .ci/dist.sh OUT}
cargo=${CARGO:-cargo}
features=${FEATURES:-}
"$cargo" build --release --locked ${features:+--features "$features"}
program=target/release/sam-ladder
version=$("$program" --version | cut -d' ' -f2)
name=sam-ladder-$version-$(uname -m)-linux${features:+-$features}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
here=$folder/$name
mkdir -p "$here/completions"
cp "$program" "$here/"
strip "$here/sam-ladder"
"$program" man --out "$here/man"
for shell in bash zsh fish; do "$program" completions $shell >"$here/completions/sam-ladder.$shell"; done
.ci/licences.py >"$here/LICENSES-OF-DEPENDENCIES.txt"
cp -r README.md CHANGELOG.md ARCHITECTURE.md LICENSE-MIT LICENSE-APACHE docs "$here/"
mkdir -p "$out"
# The same bytes from the same files, whenever it is made.
tar -C "$folder" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -cf - "$name" | gzip -n9 >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256" && cat "$name.tar.gz.sha256")
