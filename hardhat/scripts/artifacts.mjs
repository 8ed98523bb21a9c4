// Compiles the contracts and writes the committed artifacts, one JSON per contract; `--check` only compares.
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { hardhat, ROOT } from "./hardhat.mjs";

const CONTRACTS = ["Parameters", "CreditToken", "NodeRegistry", "Settlement", "Disputes", "Emission"];
const target = join(ROOT, "../contracts/hivemint/contracts/artifacts");
const check = process.argv.includes("--check");

// An immutable's key in the build is a number that depends on what was compiled with it; here it is its name.
function named(built) {
  const info = JSON.parse(readFileSync(join(ROOT, "artifacts/build-info", `${built.buildInfoId}.output.json`), "utf8"));
  const names = {};
  const visit = (node) => {
    if (node?.nodeType === "VariableDeclaration" && node.mutability === "immutable") names[node.id] = node.name;
    for (const child of Object.values(node ?? {})) if (typeof child === "object") visit(child);
  };
  for (const source of Object.values(info.output.sources)) visit(source.ast);
  const entries = Object.entries(built.immutableReferences).map(([id, places]) => [names[id], places]);
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}

hardhat("build", "--no-tests");
const stale = [];
const known = new Set(CONTRACTS.map((name) => `${name}.json`));
for (const name of CONTRACTS) {
  const built = JSON.parse(readFileSync(join(ROOT, "artifacts/src", `${name}.sol`, `${name}.json`), "utf8"));
  const { contractName, abi, bytecode, deployedBytecode } = built;
  const immutableReferences = named(built);
  const text = JSON.stringify({ contractName, abi, bytecode, deployedBytecode, immutableReferences }, null, 1) + "\n";
  const path = join(target, `${name}.json`);
  const before = readdirSync(target).includes(`${name}.json`) ? readFileSync(path, "utf8") : null;
  if (before === text) continue;
  stale.push(`${name}.json`);
  if (!check) writeFileSync(path, text);
}
for (const file of readdirSync(target).filter((f) => f.endsWith(".json") && !known.has(f))) {
  stale.push(file);
  if (!check) rmSync(join(target, file));
}
if (check && stale.length) {
  console.error(`Committed artifacts differ from the build: ${stale.join(", ")}.`);
  console.error("The Solidity sources changed. Run `make contracts` and commit what it writes.");
  process.exit(1);
}
console.log(stale.length ? `wrote ${stale.join(", ")}` : "artifacts are up to date");
