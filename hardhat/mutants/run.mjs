// Seeds one fault at a time into a copy of the contracts and runs the Solidity suite on it: each must be caught.
// Usage: node mutants/run.mjs [part of a name or file ...]      (`make mutants` runs all)
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { FAULTS } from "./faults.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const work = join(root, "mutants", ".work");
const cli = join(root, "node_modules/hardhat/dist/src/cli.js");

function prepare() {
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  for (const file of ["package.json", "hardhat.config.ts"]) cpSync(join(root, file), join(work, file));
  cpSync(join(root, "test"), join(work, "test"), { recursive: true });
  rmSync(join(work, "test/gas"), { recursive: true });
  cpSync(join(root, "../contracts/src"), join(work, "src"), { recursive: true });
}

// The tests of the contract in which the fault is run first: most faults are caught there, in a third of the time.
const NEAREST = { Escrow: ["Settlement", "Close", "Orders"], Settlement: ["Settlement", "Close"] };

function nearest({ file }) {
  const name = file.replace(".sol", "");
  return (NEAREST[name] ?? [name]).map((test) => `test/${test}.t.sol`).filter((path) => existsSync(join(work, path)));
}

function suite(...tests) {
  const args = [cli, "--build-profile", "unoptimized", "test", "solidity", ...tests, "--test-profile", "mutants"];
  return spawnSync(process.execPath, args, { cwd: work, encoding: "utf8", maxBuffer: 1 << 28 });
}

// What became of a fault: caught (by which test), missed, or broken (it no longer compiles, so it proves nothing).
function judge({ status, stdout, stderr }) {
  const failing = [...stdout.matchAll(/^\s+\d+\) (\w+)\(/gm)].map((m) => m[1]);
  if (failing.length) return { verdict: "caught", by: `${failing[0]}${failing.length > 1 ? ` (+${failing.length - 1})` : ""}` };
  if (status === 0) return { verdict: "MISSED", by: "" };
  return { verdict: "BROKEN", by: (stdout + stderr).split("\n").find((line) => /Error/.test(line)) ?? "" };
}

function verdict(fault) {
  const near = nearest(fault);
  const first = near.length ? judge(suite(...near)) : null;
  return first?.verdict === "caught" ? first : judge(suite());
}

function seed({ file, find, put }) {
  const text = readFileSync(join(root, "../contracts/src", file), "utf8");
  if (text.split(find).length !== 2) return false;
  writeFileSync(join(work, "src", file), text.replace(find, () => put));
  return true;
}

const wanted = process.argv.slice(2);
const faults = FAULTS.filter(({ name, file }) => !wanted.length || wanted.some((part) => `${name} ${file}`.includes(part)));
prepare();
const first = judge(suite());
if (first.verdict !== "MISSED") {
  console.error(`The suite fails on the contracts as they are: ${first.by}. Mend that first.`);
  process.exit(1);
}
let bad = 0;
console.log(`${"fault".padEnd(38)} ${"contract".padEnd(14)} ${"verdict".padEnd(8)} caught by`);
for (const fault of faults) {
  const result = seed(fault) ? verdict(fault) : { verdict: "BROKEN", by: "its place is not in the source, or not once" };
  if (result.verdict !== "caught") bad += 1;
  console.log(`${fault.name.padEnd(38)} ${fault.file.replace(".sol", "").padEnd(14)} ${result.verdict.padEnd(8)} ${result.by}`);
  cpSync(join(root, "../contracts/src", fault.file), join(work, "src", fault.file));
}
rmSync(work, { recursive: true, force: true });
console.log(`${faults.length - bad} of ${faults.length} faults caught`);
process.exit(bad ? 1 : 0);
