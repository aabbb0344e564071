#!/usr/bin/env bash
# Downloads published weights into a folder, from their publishers, and checks their sizes and SHA-256.
#
#   bench/weights.sh FOLDER NAME...          NAME: vit_b, vit_l, vit_h (SAM), resnet18 (torchvision)
#
# A download that broke off resumes. curl takes the proxy from https_proxy. Files that exist already are checked and kept.
# WEIGHTS_TABLE names a table of files other than weights.tsv, for example one with the URLs of a mirror.
set -euo pipefail

table=${WEIGHTS_TABLE:-$(dirname "$0")/weights.tsv}

fail() {
  echo "error: $*" >&2
  exit 1
}

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

bytes_of() {
  wc -c <"$1" | tr -d ' '
}

# Whether a file has the size and the hash of its row; prints what it has instead.
check() {
  local path=$1 bytes=$2 hash=$3 found
  found=$(bytes_of "$path")
  [[ $found == "$bytes" ]] || { echo "$path has $found bytes, expected $bytes" >&2; return 1; }
  found=$(sha256 "$path")
  [[ $found == "$hash" ]] || { echo "$path has SHA-256 $found, expected $hash" >&2; return 1; }
}

fetch() {
  local name=$1 bytes=$2 hash=$3 url=$4 path=$folder/${4##*/}
  local part=$path.part status=0
  local by_hand="on a machine that can reach it, fetch $url ($bytes bytes, SHA-256 $hash), put it into $folder, and run this again to check it"
  if [[ -e $path ]]; then
    check "$path" "$bytes" "$hash" || fail "$path is damaged or another file: remove it and run this again"
    echo "$path exists and is whole"
    return
  fi
  command -v curl >/dev/null || fail "curl is not installed: install it, or $by_hand"
  # A part that is longer than the file is not a part of it.
  if [[ -e $part && $(bytes_of "$part") -gt $bytes ]]; then rm "$part"; fi
  if [[ ! -e $part || $(bytes_of "$part") -lt $bytes ]]; then
    echo "$name: $url, $bytes bytes"
    curl --fail --location --retry 3 --connect-timeout 20 --continue-at - --output "$part" "$url" || status=$?
    # 33: the server gives no parts; 36: it cannot resume from there.
    if [[ $status == 33 || $status == 36 ]]; then
      status=0
      rm -f "$part"
      curl --fail --location --retry 3 --connect-timeout 20 --output "$part" "$url" || status=$?
    fi
  fi
  case $status in
    0) ;;
    5 | 6 | 7 | 28 | 35 | 56 | 97)
      fail "${url%/*} cannot be reached (curl's status $status): behind a proxy set https_proxy; without internet, $by_hand" ;;
    18) fail "the download of $url broke off: run this again; it resumes from byte $(bytes_of "$part")" ;;
    22) fail "the server refuses $url: $by_hand" ;;
    23) fail "$part cannot be written: free space or choose another folder, and run this again" ;;
    *) fail "the download of $url failed (curl's status $status): run this again to resume, or $by_hand" ;;
  esac
  check "$part" "$bytes" "$hash" || { rm -f "$part"; fail "what $url gave is not the published file, and was removed: run this again, or $by_hand"; }
  mv "$part" "$path"
  echo "$path: $bytes bytes, SHA-256 $hash"
}

[[ $# -ge 2 ]] || fail "usage: weights.sh FOLDER NAME..., NAME is one of $(grep -v '^#' "$table" | cut -f 1 | tr '\n' ' ')"
folder=$1
shift
mkdir -p "$folder"
for name in "$@"; do
  row=$(awk -F '\t' -v name="$name" '$1 == name' "$table")
  [[ -n $row ]] || fail "no weights are called $name; $table has $(grep -v '^#' "$table" | cut -f 1 | tr '\n' ' ')"
  IFS=$'\t' read -r name bytes hash url <<<"$row"
  fetch "$name" "$bytes" "$hash" "$url"
done
