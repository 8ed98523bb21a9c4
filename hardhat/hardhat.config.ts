import { fileURLToPath } from "node:url";
import { defineConfig } from "hardhat/config";

// The npm compiler itself, so that nothing is fetched; named in both profiles, else Hardhat looks for a compiler list.
const soljson = fileURLToPath(import.meta.resolve("solc/soljson.js"));
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

// The seed is fixed: a run that fails, fails again.
function profile(size: { fuzzRuns: number; runs: number; depth: number; shrink?: number }) {
  return {
    blockGasLimit: 1_000_000_000n,
    gasLimit: 1_000_000_000n,
    fuzz: { runs: size.fuzzRuns, seed: "0x68697665" },
    invariant: { runs: size.runs, depth: size.depth, failOnRevert: true, shrinkRunLimit: size.shrink ?? 2_000 },
  };
}

// Compiles three times as fast; the seeded faults are run on it.
const unoptimized = { ...compiler, settings: { ...compiler.settings, optimizer: { enabled: false } } };

export default defineConfig({
  solidity: { profiles: { default: compiler, production: compiler, unoptimized } },
  paths: { sources: "src", tests: { solidity: "test" } },
  test: {
    solidity: {
      profiles: {
        default: profile({ fuzzRuns: 64, runs: 12, depth: 40 }),
        // `make test-all`
        deep: profile({ fuzzRuns: 2_000, runs: 128, depth: 150 }),
        // The shortest run that still catches every seeded fault.
        mutants: profile({ fuzzRuns: 32, runs: 8, depth: 40, shrink: 0 }),
        // Each call is a transaction of its own: the gas of calldata and signatures is counted.
        gas: { ...profile({ fuzzRuns: 1, runs: 1, depth: 1 }), isolate: true },
      },
    },
  },
});
