#!/usr/bin/env bash
# Print the path of a Chromium (or Chrome) that can run without a screen, and install Debian's where there is none.
#
#   SAM_LADDER_CHROMIUM=$(.ci/chromium.sh)
#
# SAM_LADDER_CHROMIUM, where set, is taken as it is.
set -euo pipefail

find_browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" && return
  done
  return 1
}

if [[ -n ${SAM_LADDER_CHROMIUM:-} ]]; then
  echo "$SAM_LADDER_CHROMIUM"
elif ! find_browser; then
  if ! command -v apt-get >/dev/null; then
    echo "error: no Chromium found: install chromium or Chrome, or name one in SAM_LADDER_CHROMIUM" >&2
    exit 1
  fi
  echo "test-pages: installing Chromium by apt-get" >&2
  sudo=$([[ $(id -u) == 0 ]] || echo sudo)
  { $sudo apt-get update --quiet && $sudo apt-get install --quiet --yes --no-install-recommends chromium fonts-dejavu-core; } >&2
  find_browser
fi
