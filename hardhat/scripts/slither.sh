#!/usr/bin/env bash
# Runs slither over the contracts; fails on a finding of medium or high impact.
# Usage: scripts/slither.sh SLITHER   (its path; slither-analyzer 0.11.6 lives in a venv of its own: it pins web3 < 8)
set -euo pipefail
slither=${1:-slither}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$root/package.json" "$root/hardhat.config.ts" "$work"
cp -r "$root/src/." "$work/src"
ln -s "$root/node_modules" "$work/node_modules"
cd "$work"
node node_modules/hardhat/dist/src/cli.js build --no-tests >build.log 2>&1 || { cat build.log; exit 1; }
# Hardhat names the sources project/... and npm/...@version/...; slither looks for them as files.
ln -s . project
mkdir -p npm/@openzeppelin
version=$(node -p 'require("@openzeppelin/contracts/package.json").version')
ln -s "$root/node_modules/@openzeppelin/contracts" "npm/@openzeppelin/contracts@$version"
"$slither" . --ignore-compile --filter-paths "npm/|node_modules" --exclude-low --exclude-informational --exclude-optimization --fail-medium
