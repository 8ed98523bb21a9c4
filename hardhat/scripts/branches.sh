#!/usr/bin/env bash
# Prints the coverage of lines, statements, branches and functions by running the same suite with forge; fails where a
# contract's lines or branches are below 95 %.
# Usage: scripts/branches.sh [FORGE]   (its path; without one, npm's @foundry-rs/forge is fetched into cache/, 80 MB)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
forge=${1:-}
if [ -z "$forge" ]; then
    npm install --prefix "$root/cache/forge" --no-save --ignore-scripts --no-audit --no-fund --loglevel=error \
        @foundry-rs/forge@1.7.1 >/dev/null
    forge=$(find "$root/cache/forge" -path '*/bin/forge' -type f -size +1M | head -1)
fi
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
"$forge" coverage --report summary >report.txt 2>errors.txt || { cat report.txt errors.txt; exit 1; }
grep -E "File|src/" report.txt | grep -v node_modules | tee table.txt
# Columns: file, lines, statements, branches, functions. A contract without branches says 100 % (0/0).
awk -F '|' '/src\// && ($3 + 0 < 95 || $5 + 0 < 95) { print $2 "is below 95 %"; low = 1 } END { exit low }' table.txt
