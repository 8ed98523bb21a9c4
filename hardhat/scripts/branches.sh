#!/usr/bin/env bash
# Prints the coverage of lines, statements and branches, by running the same suite with forge.
# Usage: scripts/branches.sh FORGE   (its path, from npm's @foundry-rs/forge)
set -euo pipefail
forge=${1:-forge}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$root/src/." "$work/src"
cp -r "$root/test" "$work/test"
rm -r "$work/test/gas"
cat >"$work/foundry.toml" <<TOML
[profile.default]
src = "src"
test = "test"
offline = true
solc = "$root/scripts/solc.mjs"
evm_version = "prague"
optimizer = true
optimizer_runs = 10000
remappings = ["@openzeppelin/contracts/=$root/node_modules/@openzeppelin/contracts/"]
allow_paths = ["$root"]
[fuzz]
runs = 64
seed = "0x68697665"
[invariant]
runs = 12
depth = 40
fail_on_revert = true
TOML
cd "$work"
"$forge" coverage --report summary 2>/dev/null | grep -E "File|src/" | grep -v node_modules
