#!/usr/bin/env bash
# Installs the newest wheel of a folder into an empty environment, and runs with it what a new user would: the program, the demo, the package.
#
#   python/tests/try_wheel.sh target/wheels
set -euo pipefail
wheel=$(ls -t "$1"/sam_ladder-*.whl | head -1)
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$wheel[python]"
# No other program and no source of the package is found.
export PATH="$folder/venv/bin:/usr/bin:/bin"
unset PYTHONPATH
cd "$folder"
sam-ladder --version
sam-ladder doctor
"$root/bench/demo.sh" "$(command -v sam-ladder)" demo
python - <<'CODE'
import sam_ladder

store = sam_ladder.open_store("demo/store.zarr")
run = sam_ladder.read_run("demo/run")
print(store, run, store.test.masks[store.test.cases[0]].shape, sep="\n")
try:
    sam_ladder.load_model("demo/run")
except ImportError as error:
    print(error)
CODE
echo "test-wheel: $(basename "$wheel") installs, and runs the demo"
