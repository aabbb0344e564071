#!/usr/bin/env bash
# Checks every dependency with cargo-deny, as deny.toml says: licences, sources, and the security advisories of RustSec, whose database is at
# github.com. Installs cargo-deny in target/tools (about five minutes, once).
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
tools=$PWD/target/tools
if [[ $("$tools/bin/cargo-deny" --version 2>/dev/null) != "cargo-deny $version" ]]; then
  cargo install cargo-deny --locked --version $version --root "$tools"
fi
PATH=$tools/bin:$PATH cargo deny --all-features check
