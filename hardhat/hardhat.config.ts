import { fileURLToPath } from "node:url";
import { defineConfig } from "hardhat/config";

// The npm compiler itself, so that nothing is fetched; named in both profiles, else Hardhat looks for a compiler list.
const soljson = fileURLToPath(new URL("node_modules/solc/soljson.js", import.meta.url));
const compiler = {
  version: "0.8.37",
  path: soljson,
  settings: {
    optimizer: { enabled: true, runs: 10_000 },
    evmVersion: "prague",
    // Without the hash of sources and their paths, any build of the same code gives the same bytes.
    metadata: { bytecodeHash: "none" },
  },
};

// HIVEMINT_DEEP=1 is the long run of `make test-all`.
const deep = process.env.HIVEMINT_DEEP === "1";

export default defineConfig({
  solidity: { profiles: { default: compiler, production: compiler } },
  paths: { sources: "src", tests: { solidity: "test" } },
  test: {
    solidity: {
      hardfork: "prague",
      blockGasLimit: 1_000_000_000n,
      fuzz: { runs: deep ? 2_000 : 64, seed: "0x68697665" },
      invariant: { runs: deep ? 128 : 12, depth: deep ? 128 : 40, failOnRevert: true },
    },
  },
});
