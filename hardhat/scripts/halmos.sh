#!/usr/bin/env bash
# Proves proofs/Proofs.t.sol for every input and state with halmos.
# Usage: scripts/halmos.sh HALMOS FORGE   (their paths; halmos 0.3.3 and cvc5 in a venv of their own, forge from npm's @foundry-rs/forge)
set -euo pipefail
halmos=${1:-halmos}
forge=${2:-forge}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$root/src/." "$work/src"
cp -r "$root/proofs" "$work/proofs"
cat >"$work/foundry.toml" <<TOML
[profile.default]
src = "src"
test = "proofs"
offline = true
solc = "$root/scripts/solc.mjs"
evm_version = "prague"
optimizer = true
optimizer_runs = 10000
remappings = ["@openzeppelin/contracts/=$root/node_modules/@openzeppelin/contracts/"]
allow_paths = ["$root"]
TOML
cd "$work"
export PATH="$(dirname "$forge"):$PATH"
prove() { "$halmos" --contract Proofs --loop 2 --solver-timeout-assertion 900000 "$@"; }
prove --function "check_P[36]"
# Division by a constant is easy for integers and out of reach for bit vectors.
prove --function "check_P1" --solver-command "$(dirname "$halmos")/python $root/proofs/cvc5_as_int.py"
