// Measures the gas of real transactions (test/gas) and compares it with snapshots/GasTest.json; `--update` rewrites it.
// Hardhat's own `--snapshot-check` also compares the gas of the tests' code, which says nothing.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { hardhat, ROOT } from "./hardhat.mjs";

const path = join(ROOT, "snapshots/GasTest.json");
const before = readFileSync(path, "utf8");
hardhat("test", "solidity", "--test-profile", "gas", "--snapshot", "test/gas/Gas.t.sol");
const after = readFileSync(path, "utf8");
const [old, now] = [JSON.parse(before), JSON.parse(after)];
const names = [...new Set([...Object.keys(old), ...Object.keys(now)])];
for (const name of names) {
  const change = old[name] === now[name] ? "" : `  was ${old[name] ?? "not measured"}`;
  console.log(`${(now[name] ?? "-").padStart(9)}  ${name}${change}`);
}
const changed = names.some((name) => old[name] !== now[name]);
// Hardhat writes them in the order in which the tests end.
if (changed && process.argv.includes("--update")) {
  writeFileSync(path, JSON.stringify(Object.fromEntries(Object.entries(now).sort()), null, 2) + "\n");
} else {
  writeFileSync(path, before);
}
if (changed && !process.argv.includes("--update")) {
  console.error("The gas of a transaction changed. If that is meant, run `npm run gas:update` in hardhat/ and commit it.");
  process.exit(1);
}
