// The Solidity part of `make test`: builds, compares the committed artifacts, runs every Solidity test, and compares
// the gas of real transactions with the snapshot. HIVEMINT_PROFILE=deep runs long fuzz and invariant tests.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { hardhat, ROOT } from "./hardhat.mjs";

const profile = process.env.HIVEMINT_PROFILE || "default";
if (!["default", "deep"].includes(profile)) {
  console.error(`HIVEMINT_PROFILE is "${profile}"; it can be "default" or "deep".`);
  process.exit(2);
}
run("artifacts.mjs", "--check");
hardhat("test", "solidity", "--test-profile", profile, "--grep-exclude", "testGas_");
run("gas.mjs");

function run(script, ...args) {
  const { status } = spawnSync(process.execPath, [join(ROOT, "scripts", script), ...args], { stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}
